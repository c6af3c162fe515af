"""Evidence from the model's outputs: probabilities of each pass over a text, boxes in pixels, scores of words, and how
far picture, text and caption agree.

Shapes: R pairs, P passes over their texts (a long text has several, one after the other), T tokens of all passes
without [CLS], W words of all texts, L tokens of the longest pass, E contrastive features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import box_convert

from asap.labels import IMAGE_TYPES
from asap.model.asap import AsapOutput

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]
Booleans = NDArray[np.bool_]


def probabilities(output: AsapOutput) -> Tensor:
    """Turn the logits of P passes into probabilities, (P, 9 + L - 1), on their device.

    The columns are the score, the four types, the corners of the box and the tokens after [CLS]. One tensor, so that a
    GPU is waited for once.
    """
    score_P1 = output.logits_real_fake.softmax(-1)[:, 1:]
    box_P4 = box_convert(output.box_cxcywh, "cxcywh", "xyxy").clamp(0, 1)
    tokens_PL = output.logits_token.softmax(-1)[..., 1]
    return torch.cat([score_P1, output.logits_multilabel.sigmoid(), box_P4, tokens_PL], dim=1)


@dataclass(frozen=True, eq=False)
class PassEvidence:
    """Probabilities from P passes of the model, those of a pair one after the other."""

    score_P: Floats
    """Probability that the pair is manipulated, from the binary head."""
    types_P4: Floats
    """Probability of each type, in the order of `asap.labels.TYPES`."""
    box_P4: Floats
    """Corners of the box, in [0, 1] of the image and clipped to it."""
    tokens_T: Floats
    """Probability that each token after [CLS] is manipulated, pass by pass."""
    pass_of_T: Integers
    """The pass of each token."""

    @classmethod
    def read(cls, batches: Sequence[Floats], order_P: Integers, lengths_P: Integers) -> Self:
        """Put batches of `probabilities` together.

        Args:
            batches: the probabilities of the passes, in batches.
            order_P: the number of each pass, in the order of the batches.
            lengths_P: tokens of each pass without [CLS], by their number.
        """
        values_P9 = np.empty((len(lengths_P), 9), np.float32)
        values_P9[order_P] = np.concatenate([batch[:, :9] for batch in batches])
        # Tokens leave their batches in the order of these, and without padding.
        starts_P = np.cumsum(lengths_P) - lengths_P
        sorted_P = lengths_P[order_P]
        sizes = np.cumsum([len(batch) for batch in batches])[:-1]
        flat = [
            batch[:, 9:][np.arange(batch.shape[1] - 9) < lengths[:, None]]
            for batch, lengths in zip(batches, np.split(sorted_P, sizes), strict=True)
        ]
        tokens_T = np.empty(int(lengths_P.sum()), np.float32)
        tokens_T[ranges(starts_P[order_P], sorted_P)] = np.concatenate(flat)
        pass_of_T = np.repeat(np.arange(len(lengths_P)), lengths_P)
        return cls(values_P9[:, 0], values_P9[:, 1:5], values_P9[:, 5:], tokens_T, pass_of_T)

    def is_finite(self) -> Booleans:
        """Return True for each pass, (P,), whose values are all finite; a NaN would pass as authentic."""
        whole_P = np.isfinite(self.score_P) & np.isfinite(self.types_P4).all(1) & np.isfinite(self.box_P4).all(1)
        whole_P[self.pass_of_T[~np.isfinite(self.tokens_T)]] = False
        return whole_P


def ranges(starts: Integers, lengths: Integers) -> Integers:
    """Return the numbers of ranges, one after the other: those from each start, as many as its length."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - lengths), lengths)


def highest(values_P: Floats, first_R: Integers) -> Floats:
    """Return the maximum over the passes of each row; `first_R` is the number of its first pass."""
    return np.asarray(np.maximum.reduceat(values_P, first_R, axis=0))


def surest_boxes(evidence: PassEvidence, first_R: Integers, sizes_R2: NDArray[np.integer]) -> NDArray[np.float64]:
    """Return the box of each row from its pass with the highest image type, (R, 4), in pixels of its image.

    Args:
        evidence: the evidence of the passes.
        first_R: the number of the first pass of each row.
        sizes_R2: width and height of the images, in pixels.
    """
    certainty_P = evidence.types_P4[:, : len(IMAGE_TYPES)].max(1)
    counts_R = np.diff(first_R, append=len(certainty_P))
    is_surest_P = certainty_P == np.repeat(highest(certainty_P, first_R), counts_R)
    # The first of several equal ones. A row with NaN has none, is an error, and keeps its first pass here.
    surest_R = first_R.copy()
    numbers = np.flatnonzero(is_surest_P)[::-1]
    surest_R[np.repeat(np.arange(len(first_R)), counts_R)[numbers]] = numbers
    return evidence.box_P4[surest_R].astype(np.float64) * np.tile(sizes_R2, 2)


def score_words(tokens_T: Floats, word_of_T: Integers, words: int) -> Floats:
    """Score each of so many words as the maximum over its tokens, (W,); a word without tokens scores 0."""
    scores_W = np.zeros(words, np.float32)
    with np.errstate(invalid="ignore"):  # NaN stays NaN, and makes its pair an error
        np.maximum.at(scores_W, word_of_T, tokens_T)
    return scores_W


def agreements(
    image_RE: Floats,
    text_PE: Floats,
    text_rows: Integers,
    caption_CE: Floats,
    caption_rows: Integers,
    captioned_R: Booleans,
) -> Floats:
    """Return cosines of the contrastive features of R rows, (R, 3), from features of unit length.

    The columns are picture and text, picture and caption, text and caption; NaN if one of the two is missing. A text or
    a caption of several passes counts by the pass that agrees most.

    Args:
        image_RE: features of the images.
        text_PE: features of the passes over the texts.
        text_rows: for each pass over a text, the number of its row.
        caption_CE: features of the passes over the captions.
        caption_rows: for each pass over a caption, the number of its row.
        captioned_R: for each row, True if its text is a caption, so that the row has no text.
    """
    found_R3 = np.full((len(captioned_R), 3), np.nan, np.float32)
    found_R3[:, 0] = _highest_cosine(image_RE[text_rows], text_PE, text_rows, len(captioned_R))
    if len(caption_rows):
        text_of, caption_of = np.nonzero(text_rows[:, None] == caption_rows)
        found_R3[:, 1] = _highest_cosine(image_RE[caption_rows], caption_CE, caption_rows, len(captioned_R))
        both = caption_rows[caption_of]
        found_R3[:, 2] = _highest_cosine(text_PE[text_of], caption_CE[caption_of], both, len(captioned_R))
    # A caption in place of the text agrees with the picture as a caption.
    found_R3[captioned_R, 1] = found_R3[captioned_R, 0]
    found_R3[captioned_R, 0] = found_R3[captioned_R, 2] = np.nan
    return found_R3


def _highest_cosine(ones_PE: Floats, others_PE: Floats, rows: Integers, count: int) -> Floats:
    """Return the highest cosine of the P pairs of features of each row; NaN for a row without one."""
    highest_R = np.full(count, -np.inf, np.float32)
    with np.errstate(invalid="ignore"):  # NaN is greater than every cosine
        np.maximum.at(highest_R, rows, (ones_PE * others_PE).sum(1).clip(-1, 1))
    highest_R[~np.isfinite(highest_R)] = np.nan
    return highest_R
