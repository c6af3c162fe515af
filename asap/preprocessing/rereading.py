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
_ENTITY = re.compile(r"&(?:#\d+|#[xX][0-9a-fA-F]+|[A-Za-z]\w*);")


class Reading(NamedTuple):
    """A word as it may be read."""

    word: str
    """May hold spaces: an invisible character can part two words."""
    changes: tuple[str, ...] = ()
    """The differences from the word as written, as a reader of a warning understands them."""


def hides(word: str) -> bool:
    """Return True if a word hides what it says: in invisible characters, entities, fullwidth forms or mixed scripts."""
    if word.isascii():
        return bool(_ENTITY.search(word)) and html.unescape(word) != word
    if _INVISIBLE.search(word) or _ENTITY.search(word):
        return True
    if any(unicodedata.east_asian_width(character) == "F" for character in word):
        return True
    scripts = {_script(character) for character in word if character.isalpha()}
    return "LATIN" in scripts and len(scripts) > 1


def is_latin(text: str) -> bool:
    """Return True if at least half of the letters of a text are Latin, look-alikes not counted."""
    if text.isascii():
        return True
    letters = [character for character in text if character.isalpha()]
    return 2 * sum(_script(character) == "LATIN" for character in letters) >= len(letters)


def other_readings(word: str, *, in_latin_text: bool) -> list[Reading]:
    """Return the readings of a word that differ from it, the one with the fewest changes first.

    Args:
        word: a whitespace word.
        in_latin_text: True if the words around it are Latin. Then a word of look-alikes alone is taken for Latin too.
    """
    shown, changes = html.unescape(word), list[str]()
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
    """Replace the look-alikes of ASCII characters in a Latin word; leave a word of another script as it is."""
    letters = [character for character in word if character.isalpha()]
    has_latin = any(_script(character) == "LATIN" for character in letters)
    are_all_alike = all(character.isascii() or _look_alike(character) for character in letters)
    if not has_latin and not (in_latin_text and are_all_alike):
        return word
    return "".join(character if character.isascii() else _look_alike(character) or character for character in word)


@lru_cache(2**12)
def _look_alike(character: str) -> str | None:
    """Return the ASCII character that looks like this one, a letter if there is one; None if there is none."""
    from confusable_homoglyphs import confusables  # reads a table of half a megabyte, which most texts do not need

    alike = [entry["c"] for entry in confusables.confusables_data.get(character, ())]
    ascii_alike = [other for other in alike if len(other) == 1 and other.isascii()]
    return next((other for other in ascii_alike if other.isalpha()), next(iter(ascii_alike), None))


@lru_cache(2**12)
def _script(character: str) -> str:
    """Return the script of a letter: the first word of its name in Unicode, such as LATIN or CYRILLIC."""
    script = unicodedata.name(character, "").partition(" ")[0]
    # Latin letters in other forms are named by the form, and read as Latin.
    return "LATIN" if unicodedata.normalize("NFKC", character).isascii() else script
