"""Evidence from the model's outputs: probabilities of each pass over a text, boxes in pixels, scores of words, and how
far picture, text and caption agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.ops import box_convert

from asap.finding import Box
from asap.labels import IMAGE_TYPES, TYPES
from asap.model.asap import AsapOutput

Floats = NDArray[np.float32]


class PassEvidence(NamedTuple):
    """Probabilities from one pass of the model over one pair."""

    score: float
    """Probability that the pair is manipulated, from the binary head."""
    types: Floats
    """Probability of each type, (4,), in the order of `asap.labels.TYPES`."""
    box_xyxy: Floats
    """Corners of the box, (4,), in [0, 1] of the image and clipped to it."""
    tokens: Floats
    """Probability that each token after [CLS] is manipulated."""

    @property
    def is_finite(self) -> bool:
        """True if every value is finite; a NaN would be below every threshold and pass as authentic."""
        return bool(np.isfinite(self.score) and all(np.isfinite(values).all() for values in self[1:]))


def read_output(output: AsapOutput, lengths: Sequence[int]) -> list[PassEvidence]:
    """Turn the logits of P passes into probabilities on the CPU. `lengths`: tokens of each pass without [CLS]."""
    score_P1 = output.logits_real_fake.softmax(-1)[:, 1:]
    box_P4 = box_convert(output.box_cxcywh, "cxcywh", "xyxy").clamp(0, 1)
    # One tensor, so that a GPU is waited for twice a batch and not four times.
    values_P9 = torch.cat([score_P1, output.logits_multilabel.sigmoid(), box_P4], dim=1).cpu().numpy()
    tokens_PL = output.logits_token.softmax(-1)[..., 1].cpu().numpy()
    return [
        PassEvidence(float(values[0]), values[1:5], values[5:], tokens[:length])
        for values, tokens, length in zip(values_P9, tokens_PL, lengths, strict=True)
    ]


def highest_types(passes: Sequence[PassEvidence]) -> dict[str, float]:
    """Return the probability of each type, the maximum over the passes."""
    return dict(zip(TYPES, np.max([evidence.types for evidence in passes], axis=0).tolist(), strict=True))


def box_px(passes: Sequence[PassEvidence], width: int, height: int) -> Box:
    """Return the box of the pass with the highest image type, in pixels of an image of this size."""
    surest = max(passes, key=lambda evidence: evidence.types[: len(IMAGE_TYPES)].max())
    x0, y0, x1, y1 = surest.box_xyxy.tolist()
    return x0 * width, y0 * height, x1 * width, y1 * height


def score_words(passes: Sequence[PassEvidence], word_index: Sequence[Sequence[int]], words: int) -> list[float]:
    """Score each word as the maximum over its tokens; a word without tokens scores 0.

    Args:
        passes: the evidence of each pass over the text.
        word_index: for each pass, the index of the word that each token belongs to.
        words: number of words in the text.
    """
    scores = np.zeros(words, np.float32)
    for evidence, index in zip(passes, word_index, strict=True):
        np.maximum.at(scores, index, evidence.tokens)
    return [float(score) for score in scores]


class Agreement(NamedTuple):
    """Cosines of the contrastive features of a pair and its caption, from -1 to 1; None if one of the two is missing.

    A text or a caption of several passes counts by the pass that agrees most.
    """

    image_text: float | None
    image_caption: float | None
    text_caption: float | None


def agreements(
    image_RE: Floats,
    text_PE: Floats,
    text_rows: Sequence[int],
    caption_CE: Floats,
    caption_rows: Sequence[int],
    captioned: Sequence[bool],
) -> list[Agreement]:
    """Return the agreement of each of R rows, from features of unit length.

    Args:
        image_RE: features of the images.
        text_PE: features of the passes over the texts.
        text_rows: for each pass over a text, the number of its row.
        caption_CE: features of the passes over the captions.
        caption_rows: for each pass over a caption, the number of its row.
        captioned: for each row, True if its text is a caption, so that the row has no text.
    """
    passes: list[list[int]] = [[] for _ in captioned]
    for number, row in enumerate(text_rows):
        passes[row].append(number)
    both = [(text, caption) for caption, row in enumerate(caption_rows) for text in passes[row]]
    text_of, caption_of = ([pair[side] for pair in both] for side in (0, 1))
    with_text = _highest(image_RE[text_rows], text_PE, text_rows, len(captioned))
    with_caption = _highest(image_RE[caption_rows], caption_CE, caption_rows, len(captioned))
    between = _highest(
        text_PE[text_of], caption_CE[caption_of], [caption_rows[caption] for caption in caption_of], len(captioned)
    )
    return [
        Agreement(None, with_text[row], None)
        if is_caption
        else Agreement(with_text[row], with_caption[row], between[row])
        for row, is_caption in enumerate(captioned)
    ]


def _highest(ones_PE: Floats, others_PE: Floats, rows: Sequence[int], count: int) -> list[float | None]:
    """Return the highest cosine of the P pairs of features of each row; None for a row without one, and for NaN."""
    highest = np.full(count, -np.inf, np.float32)
    with np.errstate(invalid="ignore"):  # NaN is greater than every cosine, and found below
        np.maximum.at(highest, np.asarray(rows, np.intp), (ones_PE * others_PE).sum(1).clip(-1, 1))
    return [float(value) if np.isfinite(value) else None for value in highest]
