"""Untrusted bytes to the square of pixels that the model reads.

Every check comes before the work that it limits: bytes before reading, the format before a decoder is chosen, pixels
before decoding. Every error that a hostile file causes in Pillow is raised as an `InputError`.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from asap.errors import (
    ConfigError,
    DecodeFailed,
    EmptyFile,
    ImageMissing,
    ImageTooLarge,
    InputError,
    UnsupportedFormat,
)

if TYPE_CHECKING:
    import torch

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

ImageSource = bytes | str | Path | Image.Image | None
Pixels = NDArray[np.uint8]
BoxXyxy = tuple[float, float, float, float]

_SIGNATURES = {
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "WEBP": rb"RIFF....WEBP",
    "GIF": rb"GIF8[79]a",
    "BMP": rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0",  # 'BM' alone also starts words
    "TIFF": rb"II[*+]\0|MM\0[*+]",
}
_FOREIGN = {
    "SVG": rb"(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?(<!DOCTYPE svg[^>]*>\s*)?<svg\b",
    "HTML": rb"<(!doctype )?html\b",
    "PDF": rb"%PDF",
    "Photoshop": rb"8BPS",
    "AVIF or HEIC": rb"....ftyp(avi|hei|mif|msf)",
}
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The transposition that undoes each value of EXIF's Orientation tag."""
_ORIENTATION_TAG = 0x0112
_TILE_WIDTH_TAG, _TILE_LENGTH_TAG = 322, 323
_START_OF_SCAN = b"\xff\xda"
_MAX_SCANS = 100
"""The most scans that a JPEG may have; progressive encoders write about ten."""
_PILLOW_MAX_PIXELS = 2 * 89_478_485
"""The most pixels that Pillow itself decodes (`Image.MAX_IMAGE_PIXELS`, doubled)."""


@dataclass(frozen=True, kw_only=True)
class ImageLimits:
    """Size limits on one image. Decoding takes 3 to 9 bytes of memory per pixel."""

    max_bytes: int = 32 * 2**20
    max_pixels: int = 64_000_000

    def __post_init__(self) -> None:
        if self.max_bytes < 1:
            raise ConfigError(f"max_bytes {self.max_bytes} is not at least 1")
        if not 1 <= self.max_pixels <= _PILLOW_MAX_PIXELS:
            raise ConfigError(f"max_pixels {self.max_pixels} is not between 1 and Pillow's limit {_PILLOW_MAX_PIXELS}")


DEFAULT_LIMITS = ImageLimits()


@dataclass(frozen=True, eq=False, kw_only=True)
class DecodedImage:
    """A decoded RGB image, rotated as EXIF says."""

    image: Image.Image
    """The pixels; smaller than the original if `decode_image` was called with a `min_side`."""
    width: int
    """Width of the original after EXIF rotation, in pixels."""
    height: int
    """Height of the original after EXIF rotation, in pixels."""
    sha256: str | None
    """Hex digest of the encoded bytes; None for a PIL image, which has none."""
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True, eq=False, kw_only=True)
class PreparedImage:
    """An image at the model's size. The fields other than `pixels` are those of `DecodedImage`."""

    pixels: Pixels
    """RGB, uint8, (S, S, 3)."""
    width: int
    height: int
    sha256: str | None
    warnings: list[str] = field(default_factory=list)


def prepare_image(source: ImageSource, image_size: int, limits: ImageLimits = DEFAULT_LIMITS) -> PreparedImage:
    """Decode and resize to a square of `image_size` pixels: bicubic, without a crop, as published.

    Large JPEGs are decoded at a half, quarter or eighth of their size if both sides stay at least four times
    `image_size`. This takes half the time and a fraction of the memory. It changes pixels by 0.3 levels of 255 on
    average and by 4 at most (measured on noise with a photograph's spectrum). Raises the errors of `decode_image`.
    """
    decoded = decode_image(source, limits, min_side=4 * image_size)
    with _typed_errors("image"):
        square = decoded.image.resize((image_size, image_size), Image.Resampling.BICUBIC)
    return PreparedImage(
        pixels=np.array(square),
        width=decoded.width,
        height=decoded.height,
        sha256=decoded.sha256,
        warnings=decoded.warnings,
    )


def decode_image(
    source: ImageSource, limits: ImageLimits = DEFAULT_LIMITS, *, min_side: int | None = None
) -> DecodedImage:
    """Decode bytes, a file or a PIL image to RGB, guarded by `limits`.

    Only the first frame of an animation is decoded. EXIF orientation is applied. Transparency is blended with white,
    the color of a page. 16-bit gray is scaled to 8 bits, not clipped.

    Args:
        source: encoded bytes, a path, or a PIL image.
        limits: size limits, checked before decoding.
        min_side: if set, a JPEG may be decoded at a fraction of its size while both sides keep this many pixels.

    Raises `ImageMissing`, `EmptyFile`, `ImageTooLarge`, `UnsupportedFormat` or `DecodeFailed`.
    """
    if source is None:
        raise ImageMissing("the pair has no image")
    if isinstance(source, Image.Image):
        with _typed_errors("PIL"):
            return _decode(source, limits, None, None)  # a draft would change the caller's image
    data = _read(source, limits)
    name = _sniff(data)
    if name == "JPEG":
        _check_scans(data)
    with _typed_errors(name), Image.open(BytesIO(data), formats=[name]) as image:
        return _decode(image, limits, hashlib.sha256(data).hexdigest(), min_side)


def _read(source: bytes | str | Path, limits: ImageLimits) -> bytes:
    if isinstance(source, str | Path):
        data = _read_file(source, limits)
    elif isinstance(source, bytes | bytearray | memoryview):
        data = bytes(source)
    else:
        raise UnsupportedFormat(f"the image is a {type(source).__name__}. Pass bytes, a path or a PIL image.")
    if not data:
        raise EmptyFile("the image has no bytes")
    _check_bytes(len(data), limits)
    return data


def _read_file(source: str | Path, limits: ImageLimits) -> bytes:
    path = Path(source)
    try:
        if not path.is_file():  # reading a device or a pipe might never end
            raise ImageMissing(f"no file at the image path {str(source)!r}")
        _check_bytes(path.stat().st_size, limits)
        with path.open("rb") as file:
            return file.read(limits.max_bytes + 1)  # the file may have grown since; one byte more is noticed
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise ImageMissing(f"the image file {str(source)!r} cannot be read: {error}") from error


def _check_bytes(count: int, limits: ImageLimits) -> None:
    if count > limits.max_bytes:
        raise ImageTooLarge(
            f"the image has {count} bytes; the limit is {limits.max_bytes}. Raise max_bytes or shrink the image."
        )


def _check_pixels(width: int, height: int, limits: ImageLimits) -> None:
    if width * height > limits.max_pixels:
        raise ImageTooLarge(
            f"the image has {width} x {height} = {width * height} pixels; the limit is {limits.max_pixels}. "
            "Raise max_pixels or shrink the image."
        )
    if not width * height:
        raise DecodeFailed(f"the image has no pixels: {width} x {height}")


def _sniff(data: bytes) -> str:
    """Return the name of the one decoder that may read the bytes, by their signature."""
    head = data[:1024]
    for name, signature in _SIGNATURES.items():
        if re.match(signature, head, re.DOTALL):
            return name
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    foreign = [name for name, sign in _FOREIGN.items() if re.match(sign, start, re.DOTALL | re.IGNORECASE)]
    found = f"are {foreign[0]}" if foreign else f"start with {head[:16]!r}"
    raise UnsupportedFormat(f"the bytes {found}, which is not supported. Use {', '.join(_SIGNATURES)}.")


def _check_scans(data: bytes) -> None:
    """Refuse a JPEG with more scans than any encoder writes: each one is decoded over the whole image."""
    # A plain count includes bytes that are not markers, so it is never too low. Most files need no second look.
    if data.count(_START_OF_SCAN) <= _MAX_SCANS:
        return
    position, scans = 2, 0
    while (position := data.find(b"\xff", position)) >= 0 and position + 4 <= len(data):
        marker = data[position + 1]
        if marker == 0xD9:  # end of image: the rest is not decoded
            return
        if marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD8:  # a marker without a length, or data of a scan
            position += 1 if marker == 0xFF else 2
            continue
        scans += marker == 0xDA
        if scans > _MAX_SCANS:
            raise DecodeFailed(f"the JPEG image has more than {_MAX_SCANS} scans. Re-save the image.")
        # Skip the segment, so that bytes in a comment do not count as scans.
        position += 2 + int.from_bytes(data[position + 2 : position + 4])


@contextmanager
def _typed_errors(name: str) -> Iterator[None]:
    """Turn every error into an `InputError`, and silence Pillow's warnings. `name` is the format."""
    with warnings.catch_warnings():
        # catch_warnings is not thread-safe. This filter does no harm if another thread keeps it.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        try:
            yield
        except InputError:
            raise
        except Image.DecompressionBombError as error:
            raise ImageTooLarge(f"the {name} image was not decoded: {error}. Shrink the image.") from error
        except Exception as error:
            raise DecodeFailed(
                f"the {name} image is truncated or corrupt: {type(error).__name__}: {error}. Re-save the image."
            ) from error


def _decode(image: Image.Image, limits: ImageLimits, sha256: str | None, min_side: int | None) -> DecodedImage:
    # Before decoding: the size, and that of a tile, because a TIFF is decoded by whole tiles, however small the image.
    width, height = image.size
    _check_pixels(width, height, limits)
    tags = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    if _TILE_WIDTH_TAG in tags and _TILE_LENGTH_TAG in tags:
        _check_pixels(tags[_TILE_WIDTH_TAG], tags[_TILE_LENGTH_TAG], limits)
    if min_side:
        image.draft(None, (min_side, min_side))  # only changes a JPEG that is large enough
    image.load()

    # After decoding: color, then rotation. A TIFF was rotated by `load` already.
    notes: list[str] = []
    orientation = _orientation(image, notes)
    rgb = _to_rgb(image, notes)
    if (turn := _TURNS.get(orientation)) is not None:  # the first of them equals 0
        rgb = rgb.transpose(turn)
    if orientation >= 5:
        width, height = height, width
    # The further images of a JPEG (MPO) are previews and depth maps, not frames.
    with suppress(Exception):  # a broken second frame does not affect the first
        if image.format != "MPO" and getattr(image, "is_animated", False):
            notes.append("the image has several frames; only the first was analyzed")
    return DecodedImage(image=rgb, width=width, height=height, sha256=sha256, warnings=notes)


def _orientation(image: Image.Image, notes: list[str]) -> int:
    """Return EXIF's Orientation, or 1 if there is none."""
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # the image is intact, only its metadata is not
        notes.append("the EXIF data is corrupt; the image is used as stored, without rotation")
        return 1
    return value if value in _TURNS else 1


def _to_rgb(image: Image.Image, notes: list[str]) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _gray_to_8_bit(image, notes).convert("RGB")
    if image.has_transparency_data:
        return _over_white(image.convert("RGBA"), notes)
    return image if image.mode == "RGB" else image.convert("RGB")


def _over_white(image: Image.Image, notes: list[str]) -> Image.Image:
    alpha = image.getchannel("A")
    if alpha.getextrema() == (255, 255):
        return image.convert("RGB")
    notes.append("the image has transparency; it was blended with white")
    page = Image.new("RGB", image.size, "white")
    page.paste(image, mask=alpha)
    return page


def _gray_to_8_bit(image: Image.Image, notes: list[str]) -> Image.Image:
    """Scale 16-bit gray by its full range, and 32-bit and float gray by the range of their values.

    32-bit and float images do not declare a range.
    """
    values = np.asarray(image)
    if image.mode.startswith("I;16"):
        low, high = 0.0, 65535.0
    else:
        values = np.nan_to_num(values, posinf=0, neginf=0)
        low, high = _value_range(values, image.mode)
        notes.append(f"the image has gray values without a declared range; {low:g} to {high:g} became 0 to 255")
    flat, gray = values.ravel(), np.empty(values.size, np.uint8)
    for start in range(0, flat.size, 2**20):  # np.interp works in float64, too large for the whole image at once
        part = slice(start, start + 2**20)
        gray[part] = np.rint(np.interp(flat[part], (low, high), (0, 255)))
    return Image.fromarray(gray.reshape(values.shape))


def _value_range(values: NDArray[np.generic], mode: str) -> tuple[float, float]:
    """Return the smallest usual range that holds the values, else their own range.

    Usual ranges are 0 to 1 (for floats), 8 bits and 16 bits.
    """
    low, high = float(values.min()), float(values.max())
    usual = (1.0, 255.0, 65535.0) if mode == "F" else (255.0, 65535.0)
    if low >= 0:
        return 0.0, next((top for top in usual if high <= top), high)
    return low, max(high, low + 1)


def normalize(pixels: Pixels | torch.Tensor) -> torch.Tensor:
    """Normalize uint8 RGB (B, S, S, 3) to float32 (B, 3, S, S), on the same device."""
    import torch  # takes seconds to import, and processes that only decode do not need it

    tensor = torch.as_tensor(pixels)
    mean = torch.tensor(CLIP_MEAN, device=tensor.device).view(1, 3, 1, 1)
    std = torch.tensor(CLIP_STD, device=tensor.device).view(1, 3, 1, 1)
    scaled = tensor.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format).div_(255)
    return scaled.sub_(mean).div_(std)
