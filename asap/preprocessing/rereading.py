"""Rereading: other readings of words that a vocabulary cannot read, or that hide what they say.

A person sees "minister" in fullwidth letters, with an invisible character inside, with a Cyrillic letter for a Latin
one, or as `&#109;inister`. A vocabulary sees something else, so a changed word could pass unnoticed. Such words, and no
others, get other readings; `asap.preprocessing.text.TextCodec` takes the one with the fewest unreadable pieces. The
look-alikes are those of Unicode's table of confusables (UTS #39), from the package confusable-homoglyphs.
"""

from __future__ import annotations

import html
import re
import unicodedata
from functools import lru_cache
from typing import NamedTuple

_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f"
    "\ufeff\uffa0\ufff9-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
"""Characters without a shape: those of category Cf that occur outside of Arabic and Indic digits, variation selectors,
fillers, and tags."""
_PARTS_WORDS = re.compile("[\u200b\u2060\ufeff]+")
"""Invisible characters that may stand between two words: a line may break at U+200B."""
_ENTITY = re.compile(
    r"&(?:#0{0,8}\d{1,7}|#[xX]0{0,8}[0-9a-fA-F]{1,6}"  # no more digits: int() refuses thousands of them
    r"|amp|lt|gt|quot|apos|nbsp|shy|zwn?j|[lr][sd]quo|[nm]dash|hellip"
    r"|[A-Za-z]{1,2}(?:acute|grave|circ|uml|cedil|tilde|ring|slash|lig|caron));"
)
"""An HTML entity: a number, or a name that texts use. `law&order;` is a name too, but no text means it."""
_RUN = re.compile("([-/])")
"""Separators of the parts of a word, each of which may have a script of its own: `IT-специалист`."""
_CAPITAL_I = dict.fromkeys("\u0399\u0406\u04c0", "I")
"""Capitals that Unicode's table gives as look-alikes of a small l."""
MAX_REREAD = 2000
"""The longest word that is read anew, in characters: normalizing its combining marks takes quadratic time."""


class Reading(NamedTuple):
    """A word as it may be read."""

    word: str
    """May hold spaces: an invisible character can part two words."""
    changes: tuple[str, ...] = ()
    """The differences from the word as written, as a reader of a warning understands them."""


def hides(word: str) -> bool:
    """Return True if a word hides what it says: in invisible characters, entities, fullwidth forms or look-alikes.

    A look-alike hides something if it stands among Latin letters; a word of another script is as it seems.
    """
    if _ENTITY.search(word):
        return True
    if word.isascii():
        return False
    if _INVISIBLE.search(word) or any(unicodedata.east_asian_width(character) == "F" for character in word):
        return True
    return _latin(word, False) != word


def is_latin(text: str) -> bool:
    """Return True if a text is Latin: two thirds of its letters are, and all others look like Latin ones.

    A letter without a look-alike shows that another language is quoted, and then its words are left as they are.
    """
    if text.isascii():
        return True
    letters = [character for character in text if _is_letter(character)]
    others = [character for character in letters if not _is_latin(character)]
    return 3 * len(others) <= len(letters) and all(map(_look_alike, others))


def other_readings(word: str, *, in_latin_text: bool) -> list[Reading]:
    """Return the readings of a word that differ from it, the one with the fewest changes first.

    Args:
        word: a whitespace word.
        in_latin_text: True if the words around it are Latin. Then a word of look-alikes alone is taken for Latin too.
    """
    shown, changes = _ENTITY.sub(lambda entity: html.unescape(entity[0]), word), list[str]()
    if shown != word:
        changes.append("entities undone")
    readings = [Reading(shown, tuple(changes))]
    # An invisible character is dropped or parts two words; both are readings.
    joined = _INVISIBLE.sub("", shown)
    bases = [joined]
    if joined != shown:
        changes.append("invisible characters removed")
        bases.append(_INVISIBLE.sub("", _PARTS_WORDS.sub(" ", shown)))
    for base in dict.fromkeys(bases):
        so_far = list(changes)
        readings.append(Reading(base, tuple(so_far)))
        plain = unicodedata.normalize("NFKC", base)
        if len(plain) > 2 * len(base) + 8:  # one character of a prayer is eighteen letters
            plain = base
        if plain != base:
            so_far.append("fullwidth and other forms replaced by plain ones")
            readings.append(Reading(plain, tuple(so_far)))
        marks = unicodedata.normalize("NFD", plain)
        bare = "".join(character for character in marks if unicodedata.category(character) not in ("Mn", "Me"))
        if bare != marks:
            readings.append(Reading(bare, (*so_far, "combining marks removed")))
        latin = " ".join(_latin(part, in_latin_text) for part in bare.split(" "))
        if latin != bare:
            readings.append(Reading(latin, (*so_far, "look-alike letters replaced")))
    return [reading for reading in dict.fromkeys(readings) if reading.word != word]


def _latin(word: str, in_latin_text: bool) -> str:
    """Replace the look-alikes in the Latin parts of a word. A part with a letter that has none stays as it is."""
    return "".join(_latin_part(part, in_latin_text) for part in _RUN.split(word))


def _latin_part(part: str, in_latin_text: bool) -> str:
    letters = [character for character in part if _is_letter(character)]
    others = [character for character in letters if not _is_latin(character)]
    # A single letter, as in TNF-α, is a symbol and no word.
    is_latin_word = len(others) < len(letters) or (in_latin_text and len(letters) > 1)
    if not is_latin_word or not all(map(_look_alike, others)):
        return part
    return "".join(_look_alike(character) or character for character in part)


@lru_cache(2**12)
def _look_alike(character: str) -> str | None:
    """Return the ASCII character that looks like this one, for a letter a letter of its case; None if there is none."""
    from confusable_homoglyphs import confusables  # reads a table of half a megabyte, which most texts do not need

    if character.isascii() or character in _CAPITAL_I:
        return _CAPITAL_I.get(character)
    alike = [entry["c"] for entry in confusables.confusables_data.get(character, ())]
    alike = [other for other in alike if len(other) == 1 and other.isascii()]
    if not _is_letter(character):
        return next((other for other in alike if not other.isalnum()), None)
    alike = [other for other in alike if other.isalpha()]
    return next((other for other in alike if other.isupper() == character.isupper()), next(iter(alike), None))


def _is_letter(character: str) -> bool:
    """Return True for a letter, but for modifiers: the apostrophe of Hawaiʻi is named a letter."""
    return character.isalpha() and unicodedata.category(character) != "Lm"


@lru_cache(2**12)
def _is_latin(character: str) -> bool:
    """Return True for a Latin letter, by its name in Unicode; in another form (NFKC), an ASCII letter is one too."""
    return unicodedata.name(character, "").startswith("LATIN ") or unicodedata.normalize("NFKC", character).isascii()
