"""The words of a text: where they stand, how they are cleaned, and what no text may hold."""

from __future__ import annotations

import re
from dataclasses import dataclass

UNREADABLE = re.compile("[\0\ud800-\udfff]")
"""NUL and lone surrogates, which tokenizers refuse and files do not hold."""
MAX_CHARACTERS = 20_000
"""Of a text: one that is longer is refused."""
_DROPPED = re.compile(r"[,.'!?\"()*#:;~]")
_COMMON = re.compile(r"(?<![a-z0-9])[a-z0-9]{1,12}")
"""What a vocabulary may hold as one piece; of what is left it holds the characters."""


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


def replace_unreadable(text: str) -> str:
    """The text with one U+FFFD for each character that stores and tokenizers refuse."""
    return UNREADABLE.sub("\ufffd", text)


def clean_word(word: str) -> list[str]:
    """The published caption cleaning of one word: none, one or several words, as `-` and `/` part them."""
    kept = _DROPPED.sub("", word.lower()).replace("-", " ").replace("/", " ")
    return kept.replace("<person>", "person").split()


def clean_caption(text: str, max_words: int) -> str:
    """The published caption cleaning of a whole text, cut after `max_words` cleaned words."""
    return " ".join([cleaned for span in split_words(text) for cleaned in clean_word(span.word)][:max_words])


def estimate_passes(text: str, *, max_words: int = 50, max_tokens: int = 64) -> int:
    """About how many passes of the model a text takes, told without a tokenizer, in milliseconds; at least 1.

    It fills passes as `TextCodec` does: `max_words` common words are one, and so is one word, however long.
    A small vocabulary makes about twice as many of plain English, letters at random make up to ten times as many.
    """
    if len(text) > MAX_CHARACTERS:
        return 1
    passes = words_left = pieces_left = 0
    for word in _COMMON.sub("x", " ".join(clean_word(text))).split():
        pieces = min(len(word), max_tokens - 1)
        if not words_left or pieces > pieces_left:
            passes, words_left, pieces_left = passes + 1, max_words, max_tokens - 1
        words_left -= 1
        pieces_left -= pieces
    return max(1, passes)
