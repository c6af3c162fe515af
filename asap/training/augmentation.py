"""The augmentation of training: pictures change, and boxes with them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from asap.preprocessing.images import BoxXyxy, Pixels

Augmentation = Literal["none", "flip", "published"]

_SIDE = re.compile(r"\b(left|right)(most|ward|wards|hand)?\b|\((l|r)([ -]+(to )?r)?\)", re.IGNORECASE)


def names_a_side(*texts: str) -> bool:
    """Whether a text says left or right, so that it would be wrong of the mirrored picture.

    Whole words, and the `(L)`, `(R)` and `(L-R)` of news captions: "leftover", "copyright" and "rights" name no side.
    "She left the house" and "all right" are taken for one: a pair that is not mirrored costs a little variety, one
    that is mirrored against its text teaches that text and picture may disagree.
    """
    return any(_SIDE.search(text) for text in texts)


def horizontal_flip(pixels: Pixels, box_xyxy: BoxXyxy | None) -> tuple[Pixels, BoxXyxy | None]:
    """Mirror (H, W, 3) left to right, and the box, in pixels of the same picture, with it."""
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
    """RandAugment as ALBEF's recipe has it, which ASAP follows: (H, W, 3) uint8 in and out; boxes stay where they are.

    `count` operations, drawn with replacement from Identity, AutoContrast, Equalize, Brightness and Sharpness;
    each is applied half of the time. `magnitude`, 0 to 10, gives the enhancement factor 0.1 + 0.18 * magnitude.
    """
    chosen = generator.integers(len(_OPERATIONS), size=count)
    applied = chosen[generator.random(count) < 0.5]
    if not applied.any():  # nothing but Identity
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
    """A picture as an epoch shows it: a flip half of the time, and as published also RandAugment(2, 7).

    A function of its arguments: the same (seed, epoch, row_id), all of them 0 or more, gives the same picture on any
    worker in any order. `may_flip`: False for a pair whose text names a side; the rest of it is drawn alike.
    """
    if augmentation == "none":
        return pixels, box_xyxy
    generator = np.random.default_rng((seed, epoch, row_id))
    if generator.random() < 0.5 and may_flip:
        pixels, box_xyxy = horizontal_flip(pixels, box_xyxy)
    return (rand_augment(pixels, generator) if augmentation == "published" else pixels), box_xyxy
