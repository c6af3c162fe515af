"""The words of a text: where they stand, how they are cleaned, and what no text may hold."""

from __future__ import annotations

import re
from dataclasses import dataclass

UNREADABLE = re.compile("[\0\ud800-\udfff]")
"""NUL and lone surrogates, which tokenizers refuse and files do not hold."""
_DROPPED = re.compile(r"[,.'!?\"()*#:;~]")


@dataclass(frozen=True, slots=True)
class WordSpan:
    """A whitespace word of a text; offsets in Unicode code points, `end` exclusive."""

    index: int
    start: int
    end: int
    word: str


def split_words(text: str) -> list[WordSpan]:
    """The whitespace words of a text, as DGM4 counts them."""
    return [WordSpan(i, m.start(), m.end(), m.group()) for i, m in enumerate(re.finditer(r"\S+", text))]


def legible(text: str) -> str:
    """The text with one U+FFFD for each character that stores and tokenizers refuse."""
    return UNREADABLE.sub("\ufffd", text)


def clean_word(word: str) -> list[str]:
    """The published caption cleaning of one word: none, one or several words, as `-` and `/` part them."""
    kept = _DROPPED.sub("", word.lower()).replace("-", " ").replace("/", " ")
    return kept.replace("<person>", "person").split()


def clean_caption(text: str, max_words: int) -> str:
    """The published caption cleaning of a whole text, cut after `max_words` cleaned words."""
    return " ".join([cleaned for span in split_words(text) for cleaned in clean_word(span.word)][:max_words])
