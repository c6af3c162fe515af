"""Augmentation in training: changes of the picture, and of its box with it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from asap.preprocessing.changes import blur, brighten, flatten, gray, recompress, shrink
from asap.preprocessing.images import BoxXyxy, Pixels

Augmentation = Literal["none", "flip", "published", "web"]
"""No change, a flip alone, the flip and RandAugment of the published recipe, or the flip and a change of the web."""

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
    # As one value a pixel: numpy would move the three bytes of each one by one, which takes nearly twice as long.
    whole = np.ascontiguousarray(pixels).view(f"V{pixels.shape[-1]}")
    flipped = np.ascontiguousarray(whole[:, ::-1]).view(pixels.dtype)
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


_WEB_CHANGES: tuple[Callable[[Image.Image, np.random.Generator], Image.Image], ...] = (
    lambda picture, generator: blur(picture, radius=generator.uniform(0.4, 2.2)),
    lambda picture, generator: shrink(picture, times=int(generator.integers(2, 5))),
    lambda picture, generator: gray(picture),
    lambda picture, generator: brighten(picture, times=generator.uniform(0.4, 1.6)),
    lambda picture, generator: flatten(picture, times=generator.uniform(0.4, 1.6)),
    lambda picture, generator: recompress(picture, quality=int(generator.integers(10, 76))),
)


def web_change(
    pixels: Pixels, box_xyxy: BoxXyxy | None, generator: np.random.Generator
) -> tuple[Pixels, BoxXyxy | None]:
    """Change a picture as it may be changed on its way through the web, and its box with it.

    Half of the pictures stay as they are. The others get one change, of a random strength: a blur, shrinking, gray,
    brightness, contrast, JPEG or a crop. The label stays true: the changes leave an authentic picture authentic, the
    blur and the shrinking are too weak to hide most manipulations, and a crop keeps the whole box.

    Args:
        pixels: the picture, (H, W, 3) uint8.
        box_xyxy: its box in pixels of the picture, or None.
        generator: the source of randomness.
    """
    if generator.random() < 0.5:
        return pixels, box_xyxy
    chosen = generator.integers(len(_WEB_CHANGES) + 1)
    if chosen == len(_WEB_CHANGES):
        return crop_around(pixels, box_xyxy, generator.uniform(0.02, 0.22, size=4))
    return np.array(_WEB_CHANGES[chosen](Image.fromarray(pixels), generator)), box_xyxy


def crop_around(
    pixels: Pixels, box_xyxy: BoxXyxy | None, shares: Sequence[float] | np.ndarray
) -> tuple[Pixels, BoxXyxy | None]:
    """Cut shares of the sides off a picture, and enlarge the rest to its former size, and its box with it.

    Args:
        pixels: the picture, (H, W, 3) uint8.
        box_xyxy: its box in pixels of the picture, or None. A cut that would go through the box ends at its edge.
        shares: what to cut off at the left, the top, the right and the bottom, each from 0 to less than 0.5 of the
            side.
    """
    height, width = pixels.shape[:2]
    sizes = (width, height, width, height)
    left, top, right, bottom = (share * size for share, size in zip(shares, sizes, strict=True))
    if box_xyxy is not None:
        x0, y0, x1, y1 = box_xyxy
        left, top, right, bottom = min(left, x0), min(top, y0), min(right, width - x1), min(bottom, height - y1)
    window = (left, top, width - right, height - bottom)
    cropped = np.array(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC, box=window))
    if box_xyxy is None:
        return cropped, None
    wider, higher = width / (window[2] - left), height / (window[3] - top)
    return cropped, ((x0 - left) * wider, (y0 - top) * higher, (x1 - left) * wider, (y1 - top) * higher)


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
    """Return the picture and its box as an epoch shows them: flipped with probability 0.5, then changed.

    The result depends on the arguments alone: the same (seed, epoch, row_id) gives the same picture on any worker, in
    any order.

    Args:
        pixels: the picture, (H, W, 3).
        box_xyxy: its box in pixels of the picture, or None.
        seed: the seed of the run, at least 0.
        epoch: the number of the epoch, at least 0.
        row_id: the number of the pair in the training set, at least 0.
        augmentation: the change after the flip is RandAugment(2, 7) for `published`, and `web_change` for `web`. `none`
            returns the arguments unchanged.
        may_flip: False for a pair whose text names a side. The other random draws are the same either way.
    """
    if augmentation == "none":
        return pixels, box_xyxy
    generator = np.random.default_rng((seed, epoch, row_id))
    # The draw comes first: it must happen whether or not the pair may be flipped.
    if generator.random() < 0.5 and may_flip:
        pixels, box_xyxy = horizontal_flip(pixels, box_xyxy)
    if augmentation == "published":
        return rand_augment(pixels, generator), box_xyxy
    if augmentation == "web":
        return web_change(pixels, box_xyxy, generator)
    return pixels, box_xyxy
