"""The words of a text: their offsets, the published cleaning, and the characters that no text may hold."""

from __future__ import annotations

import re
from dataclasses import dataclass

from asap.errors import TextInvalid, TextMissing

UNREADABLE = re.compile("[\0\ud800-\udfff]")
"""NUL and lone surrogates, which tokenizers refuse and files cannot hold."""
MAX_CHARACTERS = 20_000
"""The longest text that is accepted, in characters."""
MIN_TEXT_READ = 0.5
"""Share of a text's characters that the vocabulary must read. With less, the pair counts as one without a text."""
READING_VERSION = 1
"""Version of what the model gets of a picture and a text. It grows when the same bytes or characters reach the model as
others than before, and scores that were kept from then on are not used again."""
_DROPPED = re.compile(r"[,.'!?\"()*#:;~]")
_COMMON = re.compile(r"(?<![a-z0-9])[a-z0-9]{1,12}")
"""The start of a word, which a vocabulary may hold as one piece; the rest counts one piece a character."""


@dataclass(frozen=True, slots=True)
class WordSpan:
    """A whitespace word of a text; offsets in Unicode code points, `end` exclusive."""

    index: int
    start: int
    end: int
    word: str


def split_words(text: str) -> list[WordSpan]:
    """Return the whitespace words of a text, as DGM4 counts them."""
    return [WordSpan(i, m.start(), m.end(), m.group()) for i, m in enumerate(re.finditer(r"\S+", text))]


def check_text(text: str | None, max_characters: int = MAX_CHARACTERS) -> str:
    """Return the text of a pair. Raises `TextMissing` or `TextInvalid` if it is none, too long, or without a word."""
    if text is None:
        raise TextMissing("the pair has no text")
    if not isinstance(text, str):
        raise TextInvalid(f"the text is not a string but a {type(text).__name__}")
    if len(text) > max_characters:
        raise TextInvalid(f"the text has {len(text)} characters; the limit is {max_characters}. Submit a part of it.")
    if not text.strip():
        raise TextMissing("the text is blank")
    if not clean_word(text):
        raise no_word_left(text)
    return text


def no_word_left(text: str) -> TextInvalid:
    """Return the error of a text of which the model reads no word."""
    return TextInvalid(f"no word is left of the text after cleaning: {text[:80]!r}")


def replace_unreadable(text: str) -> str:
    """Replace each character that files and tokenizers refuse with one U+FFFD, which keeps all offsets."""
    return UNREADABLE.sub("\ufffd", text)


def clean_word(word: str) -> list[str]:
    """Clean one word as the published code cleans captions. `-` and `/` split a word, and `--` leaves none."""
    kept = _DROPPED.sub("", word.lower()).replace("-", " ").replace("/", " ")
    return kept.replace("<person>", "person").split()


def clean_caption(text: str, max_words: int) -> str:
    """Clean a whole text as the published code does, cut after `max_words` cleaned words."""
    return " ".join([cleaned for span in split_words(text) for cleaned in clean_word(span.word)][:max_words])


def estimate_passes(text: str, *, max_words: int = 50, max_tokens: int = 64) -> int:
    """Estimate how many passes of the model a text takes, at least 1. This takes milliseconds and no tokenizer.

    It fills passes as `TextCodec` does: `max_words` common words are one pass, and so is one word, however long. A
    small vocabulary needs about twice as many passes for plain English; random letters need up to ten times as many.
    """
    if len(text) > MAX_CHARACTERS:
        return 1  # the text will be refused
    passes = words_left = pieces_left = 0
    for word in _COMMON.sub("x", " ".join(clean_word(text))).split():
        pieces = min(len(word), max_tokens - 1)  # [CLS] takes one token of each pass
        if not words_left or pieces > pieces_left:
            passes, words_left, pieces_left = passes + 1, max_words, max_tokens - 1
        words_left -= 1
        pieces_left -= pieces
    return max(1, passes)
