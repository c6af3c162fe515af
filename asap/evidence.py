"""What the model returned, as evidence: probabilities of each pass over a text, boxes in pixels, scores of words."""

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
    """Probabilities from one pass over one pair."""

    score: float
    """Manipulated, from the binary head."""
    types: Floats
    """(4,), in the order of `asap.labels.TYPES`."""
    box_xyxy: Floats
    """(4,), in [0, 1] of the picture, clipped to it."""
    tokens: Floats
    """Manipulated, for each token after [CLS]."""

    @property
    def is_finite(self) -> bool:
        """Whether all of it are numbers; a NaN would pass every threshold as authentic."""
        return bool(np.isfinite(self.score) and all(np.isfinite(values).all() for values in self[1:]))


def read_output(output: AsapOutput, lengths: Sequence[int]) -> list[PassEvidence]:
    """Logits of P passes to probabilities on the CPU. lengths: tokens without [CLS] of each pass."""
    score_P1 = output.logits_real_fake.softmax(-1)[:, 1:]
    box_P4 = box_convert(output.box_cxcywh, "cxcywh", "xyxy").clamp(0, 1)
    values_P9 = torch.cat([score_P1, output.logits_multilabel.sigmoid(), box_P4], dim=1).cpu().numpy()
    tokens_PL = output.logits_token.softmax(-1)[..., 1].cpu().numpy()
    return [
        PassEvidence(float(values[0]), values[1:5], values[5:], tokens[:length])
        for values, tokens, length in zip(values_P9, tokens_PL, lengths, strict=True)
    ]


def highest_types(passes: Sequence[PassEvidence]) -> dict[str, float]:
    """The highest probability of any pass for each type."""
    return dict(zip(TYPES, np.max([seen.types for seen in passes], axis=0).tolist(), strict=True))


def box_px(passes: Sequence[PassEvidence], width: int, height: int) -> Box:
    """The box of the pass that is surest of an image type, in pixels of a picture of that size."""
    surest = max(passes, key=lambda seen: seen.types[: len(IMAGE_TYPES)].max())
    x0, y0, x1, y1 = surest.box_xyxy.tolist()
    return x0 * width, y0 * height, x1 * width, y1 * height


def score_words(passes: Sequence[PassEvidence], word_index: Sequence[Sequence[int]], words: int) -> list[float]:
    """The highest of its tokens for each of so many words; 0 for a word without any. word_index: token to word."""
    scores = np.zeros(words, np.float32)
    for seen, index in zip(passes, word_index, strict=True):
        np.maximum.at(scores, index, seen.tokens)
    return [float(score) for score in scores]
