"""The scores of many pairs as columns, and what a policy makes of them.

A Python object for each pair, type, box and word takes longer than a GPU takes for the pair. A scan stores the columns
as they are; `Scores.findings` makes the findings of people who ask for a few pairs.

Shapes: R pairs, W words of all texts, those of a pair one after the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import isnan
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from asap.errors import InputError
from asap.finding import Word
from asap.labels import IMAGE_TYPES, TYPES, VERDICTS
from asap.policy import Policy
from asap.preprocessing.text import EncodedText
from asap.preprocessing.words import split_words

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Booleans = NDArray[np.bool_]

_IMAGE_COLUMNS = [TYPES.index(name) for name in IMAGE_TYPES]
_FAMILIARITY = ("familiarity", "familiarity_image", "familiarity_text")
_AGREEMENT = ("agreement_image_text", "agreement_image_caption", "agreement_text_caption")


class Verdicts(NamedTuple):
    """The judgment of a policy on R pairs, as columns."""

    codes_R: NDArray[np.int64]
    """Positions in `asap.labels.VERDICTS`."""
    flagged_R4: Booleans
    """True where a type is flagged."""
    has_box_R: Booleans
    """True where an image type is flagged, so that the finding has a box."""
    flagged_W: Booleans
    """True where a word is flagged."""
    strange_R2: Booleans
    """True where picture and text of an unfamiliar pair are too strange to judge the pair."""


@dataclass(frozen=True, eq=False)
class Scores:
    """All that the model says of R pairs, before any policy."""

    texts: Sequence[EncodedText]
    captioned_R: Booleans
    """True where the text is a caption that replaced a missing text."""
    score_R: Floats
    types_R4: Floats
    """Probability of each type; NaN for the text types of a captioned pair."""
    box_R4: Doubles
    """The predicted boxes, in pixels of the original images."""
    words_W: Floats
    """The score of each word; a captioned pair has none."""
    familiarity_R3: Doubles
    """The fields of `asap.familiarity.PairFamiliarity`; NaN for those that are None."""
    agreement_R3: Floats
    """The columns of `asap.evidence.agreements`."""
    errors: dict[int, InputError] = field(default_factory=dict)
    """The errors of pairs that the model failed on, by their number. Their columns mean nothing."""

    @classmethod
    def empty(cls, texts: Sequence[EncodedText], captioned_R: Booleans) -> Self:
        """Return the columns of these pairs, to be filled."""
        rows = len(texts)
        words = sum(text.word_count for text, captioned in zip(texts, captioned_R, strict=True) if not captioned)
        return cls(
            texts, captioned_R, np.zeros(rows, np.float32), np.zeros((rows, 4), np.float32), np.zeros((rows, 4)),
            np.zeros(words, np.float32), np.full((rows, 3), np.nan), np.full((rows, 3), np.nan, np.float32),
        )  # fmt: skip

    @cached_property
    def word_starts(self) -> NDArray[np.int64]:
        """Position of the first word of each pair, (R + 1,); the last entry is the number of all words."""
        counts_R = np.fromiter((text.word_count for text in self.texts), np.int64, len(self.texts))
        return np.concatenate([[0], np.cumsum(np.where(self.captioned_R, 0, counts_R))])

    @cached_property
    def shares_read(self) -> Doubles:
        """Share of each text that the vocabulary reads, (R,); NaN for a captioned pair."""
        shares_R = np.fromiter((text.share_read for text in self.texts), np.float64, len(self.texts))
        return np.where(self.captioned_R, np.nan, shares_R)

    def judge(self, policy: Policy) -> Verdicts:
        """Apply a policy to all pairs, as `asap.policy.apply_policy` does to one."""
        # Thresholds are compared in double precision, as Python does.
        score_R, types_R4 = self.score_R.astype(np.float64), self.types_R4.astype(np.float64)
        with np.errstate(invalid="ignore"):
            is_strange_R3 = self.familiarity_R3 < policy.unfamiliar
            flagged_R4 = types_R4 >= [policy.types[name] for name in TYPES]
        unfamiliar_R = is_strange_R3[:, 0]
        # From authentic up by one for each threshold that is reached.
        codes_R = VERDICTS.index("authentic") - (score_R >= policy.review) - (score_R >= policy.manipulated)
        codes_R[unfamiliar_R] = VERDICTS.index("unfamiliar")
        flagged_R4 &= ~unfamiliar_R[:, None]  # what the model says of such a pair is no evidence
        flagged_W = self.words_W.astype(np.float64) >= policy.word
        flagged_W &= ~np.repeat(unfamiliar_R, np.diff(self.word_starts))
        has_box_R = np.asarray(flagged_R4[:, _IMAGE_COLUMNS].any(1))
        return Verdicts(codes_R, flagged_R4, has_box_R, flagged_W, is_strange_R3[:, 1:] & unfamiliar_R[:, None])

    def flagged_words(self, verdicts: Verdicts) -> dict[int, list[Word]]:
        """Return the flagged words by the number of their pair, for pairs that have any."""
        flagged: dict[int, list[Word]] = {}
        places = np.flatnonzero(verdicts.flagged_W)
        rows = np.searchsorted(self.word_starts, places, side="right") - 1
        number, spans = -1, []
        for row, place, score in zip(rows.tolist(), places.tolist(), self.words_W[places].tolist(), strict=True):
            if row != number:
                number, spans = row, split_words(self.texts[row].text)
            span = spans[place - int(self.word_starts[row])]
            word = Word(index=span.index, start=span.start, end=span.end, word=span.word, score=score)
            flagged.setdefault(row, []).append(word)
        return flagged

    def fields(self, policy: Policy) -> Iterator[dict[str, Any]]:
        """Yield the fields of each pair's `Finding` that the model and the policy decide, in their order."""
        verdicts = self.judge(policy)
        words = self.flagged_words(verdicts)
        types, boxes = _optional(self.types_R4), self.box_R4.tolist()
        familiarity, agreement = _optional(self.familiarity_R3), _optional(self.agreement_R3)
        scores, all_words = self.score_R.tolist(), self.words_W.tolist()
        text_read, flagged = _optional(self.shares_read[:, None]), verdicts.flagged_R4.tolist()
        starts, captioned = self.word_starts.tolist(), self.captioned_R.tolist()
        strange = verdicts.strange_R2.tolist()
        for row, box in enumerate(map(tuple, boxes)):
            yield {
                "verdict": VERDICTS[verdicts.codes_R[row]],
                "score": scores[row],
                "types": dict(zip(TYPES, types[row], strict=True)),
                "flagged_types": [name for name, is_flagged in zip(TYPES, flagged[row], strict=True) if is_flagged],
                "raw_box_px": box,
                "box_px": box if verdicts.has_box_R[row] else None,
                "word_scores": None if captioned[row] else all_words[starts[row] : starts[row + 1]],
                "words": None if captioned[row] else words.get(row, []),
                "text_read": text_read[row][0],
                "unfamiliar_parts": tuple(
                    part for part, is_strange in zip(("image", "text"), strange[row], strict=True) if is_strange
                ),
                **dict(zip(_FAMILIARITY, familiarity[row], strict=True)),
                **dict(zip(_AGREEMENT, agreement[row], strict=True)),
            }


def _optional(values: NDArray[np.floating]) -> list[list[float | None]]:
    """Return the rows of an array as lists, with None for NaN."""
    return [[None if isnan(value) else value for value in row] for row in values.tolist()]
