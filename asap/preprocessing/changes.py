"""Changes of pictures that leave them authentic: what happens to a picture on its way through the web.

A model may flag a picture because it is blurred or dim. Training can show it such pictures
(`asap.training.augmentation`), and `asap.evaluation.own_pairs` shows them to the familiarity of a model, which then
does not judge those that the model flags wrongly.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial

from PIL import Image, ImageEnhance, ImageFilter

Change = Callable[[Image.Image], Image.Image]


def blur(picture: Image.Image, *, radius: float) -> Image.Image:
    """Blur a picture. The radius is in pixels of a picture whose longer side has 256."""
    return picture.filter(ImageFilter.GaussianBlur(radius * max(picture.size) / 256))


def shrink(picture: Image.Image, *, times: int) -> Image.Image:
    """Shrink a picture, and enlarge it to its former size."""
    small = picture.resize((max(1, picture.width // times), max(1, picture.height // times)))
    return small.resize(picture.size)


def brighten(picture: Image.Image, *, times: float) -> Image.Image:
    """Multiply the values of the pixels; a factor below 1 dims the picture."""
    return ImageEnhance.Brightness(picture).enhance(times)


def flatten(picture: Image.Image, *, times: float) -> Image.Image:
    """Multiply the contrast of a picture, around its mean gray."""
    return ImageEnhance.Contrast(picture).enhance(times)


def gray(picture: Image.Image) -> Image.Image:
    """Take the colors out of a picture."""
    return picture.convert("L").convert("RGB")


def crop(picture: Image.Image, *, share: float) -> Image.Image:
    """Cut this share of the side off each of the four sides."""
    width, height = picture.size
    left, top = int(share * width), int(share * height)
    return picture.crop((left, top, max(left + 1, width - left), max(top + 1, height - top)))


def recompress(picture: Image.Image, *, quality: int) -> Image.Image:
    """Encode a picture as JPEG with this quality, 1 to 95, and decode it."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    with Image.open(file) as decoded:
        return decoded.convert("RGB")


CHANGES: dict[str, Change] = {
    "blurred by 1 px": partial(blur, radius=1),
    "blurred by 2 px": partial(blur, radius=2),
    "blurred by 4 px": partial(blur, radius=4),
    "shrunk 8 times": partial(shrink, times=8),
    "gray": gray,
    "half as bright": partial(brighten, times=0.5),
    "0.7 times as bright": partial(brighten, times=0.7),
    "1.25 times as bright": partial(brighten, times=1.25),
    "1.5 times as bright": partial(brighten, times=1.5),
    "half the contrast": partial(flatten, times=0.5),
    "cropped by a fifth": partial(crop, share=0.2),
}
"""The changes that a familiarity learns from."""
