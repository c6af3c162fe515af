"""Augmentation in training: changes of the picture, and of its box with it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from asap.preprocessing.images import BoxXyxy, Pixels

Augmentation = Literal["none", "flip", "published"]
"""No change, a flip alone, or the flip and RandAugment of the published recipe."""

_SIDE = re.compile(r"\b(left|right)(most|ward|wards|hand)?\b|\((l|r)([ -]+(to )?r)?\)", re.IGNORECASE)


def names_a_side(*texts: str) -> bool:
    """Return True if a text says left or right, so that it would be wrong for the mirrored picture.

    Only whole words count, and the `(L)`, `(R)` and `(L-R)` of news captions: "leftover", "copyright" and "rights" name
    no side. "She left the house" and "all right" count as naming one. That error is cheap: a pair that is not mirrored
    costs a little variety, but a pair that is mirrored against its text teaches that text and picture may disagree.
    """
    return any(_SIDE.search(text) for text in texts)


def horizontal_flip(pixels: Pixels, box_xyxy: BoxXyxy | None) -> tuple[Pixels, BoxXyxy | None]:
    """Mirror the picture, (H, W, 3), left to right, and its box (in pixels of the picture) with it."""
    flipped = np.ascontiguousarray(pixels[:, ::-1])
    if box_xyxy is None:
        return flipped, None
    x0, y0, x1, y1 = box_xyxy
    width = pixels.shape[1]
    return flipped, (width - x1, y0, width - x0, y1)


_OPERATIONS: tuple[Callable[[Image.Image, float], Image.Image], ...] = (
    lambda image, factor: image,
    lambda image, factor: ImageOps.autocontrast(image),
    lambda image, factor: ImageOps.equalize(image),
    lambda image, factor: ImageEnhance.Brightness(image).enhance(factor),
    lambda image, factor: ImageEnhance.Sharpness(image).enhance(factor),
)


def rand_augment(pixels: Pixels, generator: np.random.Generator, count: int = 2, magnitude: int = 7) -> Pixels:
    """Apply RandAugment as in the recipe of ALBEF, which ASAP follows: (H, W, 3) uint8 in and out.

    Boxes stay as they are, since no operation moves pixels.

    Args:
        pixels: the picture.
        generator: the source of randomness.
        count: the number of operations to draw, with replacement, from Identity, AutoContrast, Equalize, Brightness and
            Sharpness. Each is applied with probability 0.5.
        magnitude: strength from 0 to 10; the enhancement factor is 0.1 + 0.18 * magnitude.
    """
    chosen = generator.integers(len(_OPERATIONS), size=count)
    applied = chosen[generator.random(count) < 0.5]
    if not applied.any():  # only Identity, whose index is 0
        return pixels
    image = Image.fromarray(pixels)
    for index in applied:
        image = _OPERATIONS[index](image, 0.1 + 0.18 * magnitude)
    return np.array(image)


def augment(
    pixels: Pixels,
    box_xyxy: BoxXyxy | None,
    seed: int,
    epoch: int,
    row_id: int,
    augmentation: Augmentation = "published",
    *,
    may_flip: bool = True,
) -> tuple[Pixels, BoxXyxy | None]:
    """Return the picture and its box as an epoch shows them: flipped with probability 0.5, then RandAugment(2, 7).

    The result depends on the arguments alone: the same (seed, epoch, row_id) gives the same picture on any worker, in
    any order.

    Args:
        pixels: the picture, (H, W, 3).
        box_xyxy: its box in pixels of the picture, or None.
        seed: the seed of the run, at least 0.
        epoch: the number of the epoch, at least 0.
        row_id: the number of the pair in the training set, at least 0.
        augmentation: RandAugment is applied for `published` only; `none` returns the arguments unchanged.
        may_flip: False for a pair whose text names a side. The other random draws are the same either way.
    """
    if augmentation == "none":
        return pixels, box_xyxy
    generator = np.random.default_rng((seed, epoch, row_id))
    # The draw comes first: it must happen whether or not the pair may be flipped.
    if generator.random() < 0.5 and may_flip:
        pixels, box_xyxy = horizontal_flip(pixels, box_xyxy)
    return (rand_augment(pixels, generator) if augmentation == "published" else pixels), box_xyxy
