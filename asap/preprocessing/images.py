"""From untrusted bytes to the square of pixels that the model sees.

Everything is checked before it is paid for: bytes before reading, format before a decoder is chosen, pixels
before decoding. Whatever a hostile file makes Pillow raise comes out as an `InputError`.
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
"""What undoes each value of EXIF's Orientation tag."""
_ORIENTATION_TAG = 0x0112
_TILE_WIDTH_TAG, _TILE_LENGTH_TAG = 322, 323
_START_OF_SCAN = b"\xff\xda"
_MAX_SCANS = 100
"""Of a JPEG; progressive encoders write some ten."""
_PILLOW_MAX_PIXELS = 2 * 89_478_485
"""Above this many pixels Pillow itself refuses (`Image.MAX_IMAGE_PIXELS`, doubled)."""


@dataclass(frozen=True, kw_only=True)
class ImageLimits:
    """What one image may cost: decoding takes 3 to 9 bytes of memory a pixel."""

    max_bytes: int = 32 * 2**20
    max_pixels: int = 64_000_000

    def __post_init__(self) -> None:
        if self.max_bytes < 1:
            raise ConfigError(f"max_bytes {self.max_bytes} is not at least 1")
        if not 1 <= self.max_pixels <= _PILLOW_MAX_PIXELS:
            raise ConfigError(f"max_pixels {self.max_pixels} is not between 1 and Pillow's own {_PILLOW_MAX_PIXELS}")


DEFAULT_LIMITS = ImageLimits()


@dataclass(frozen=True, eq=False, kw_only=True)
class DecodedImage:
    """A decoded RGB image, turned as EXIF says."""

    image: Image.Image
    """May be smaller than the original where `decode_image` was told a `min_side`."""
    width: int
    """Of the original after EXIF rotation, in pixels; so is `height`."""
    height: int
    sha256: str | None
    """Hex digest of the encoded bytes; None for a PIL image, which has none."""
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True, eq=False, kw_only=True)
class PreparedImage:
    """An image at the model's size, and what it was before. The fields are those of `DecodedImage`."""

    pixels: Pixels
    """(S, S, 3) uint8 RGB."""
    width: int
    height: int
    sha256: str | None
    warnings: list[str] = field(default_factory=list)


def prepare_image(source: ImageSource, image_size: int, limits: ImageLimits = DEFAULT_LIMITS) -> PreparedImage:
    """Decode and resize straight to a square of `image_size` pixels: bicubic, no crop, as published.

    Large JPEGs are decoded at a half, quarter or eighth if both sides stay at least four times `image_size`:
    half the time and a fraction of the memory, at 0.3 levels of 255 in the mean and 4 at most (measured on
    noise of a photograph's spectrum). Raises any `InputError` about an image.
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

    The first frame of an animation; EXIF orientation applied; transparency laid over white, the colour of the
    page it would be seen on; 16-bit grey scaled to 8, not clipped. `min_side` lets a JPEG be decoded at a
    fraction of its size as long as both sides keep that many pixels.

    Raises: `ImageMissing`, `EmptyFile`, `ImageTooLarge`, `UnsupportedFormat`, `DecodeFailed`.
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
        raise UnsupportedFormat(f"the image is a {type(source).__name__}; give bytes, a path or a PIL image")
    if not data:
        raise EmptyFile("the image has no bytes")
    _check_bytes(len(data), limits)
    return data


def _read_file(source: str | Path, limits: ImageLimits) -> bytes:
    path = Path(source)
    try:
        if not path.is_file():  # a device or a pipe could be read for ever
            raise ImageMissing(f"no file at the image path {str(source)!r}")
        _check_bytes(path.stat().st_size, limits)
        with path.open("rb") as file:
            return file.read(limits.max_bytes + 1)
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise ImageMissing(f"the image file {str(source)!r} cannot be read: {error}") from error


def _check_bytes(count: int, limits: ImageLimits) -> None:
    if count > limits.max_bytes:
        raise ImageTooLarge(
            f"the image has {count} bytes, the limit is {limits.max_bytes}; raise max_bytes or shrink it"
        )


def _check_pixels(width: int, height: int, limits: ImageLimits) -> None:
    if width * height > limits.max_pixels:
        raise ImageTooLarge(
            f"the image has {width} x {height} = {width * height} pixels, the limit is {limits.max_pixels}; "
            "raise max_pixels or shrink it"
        )
    if not width * height:
        raise DecodeFailed(f"the image is {width} x {height}: it has no pixels")


def _sniff(data: bytes) -> str:
    """The name of the one decoder that may look at the bytes."""
    head = data[:1024]
    for name, signature in _SIGNATURES.items():
        if re.match(signature, head, re.DOTALL):
            return name
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    foreign = [name for name, sign in _FOREIGN.items() if re.match(sign, start, re.DOTALL | re.IGNORECASE)]
    what = f"are {foreign[0]}" if foreign else f"start with {head[:16]!r}"
    raise UnsupportedFormat(f"the bytes {what}; {', '.join(_SIGNATURES)} are read")


def _check_scans(data: bytes) -> None:
    """Refuse a JPEG of more scans than any encoder writes: each is decoded over the whole picture, however short."""
    if data.count(_START_OF_SCAN) <= _MAX_SCANS:  # what is no marker is counted too, so most need no second look
        return
    at, scans = 2, 0
    while (at := data.find(b"\xff", at)) >= 0 and at + 4 <= len(data):
        marker = data[at + 1]
        if marker == 0xD9:  # the end: whatever follows is not decoded
            return
        if marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD8:  # without a length, or a byte of the scan's data
            at += 1 if marker == 0xFF else 2
            continue
        scans += marker == 0xDA
        if scans > _MAX_SCANS:
            raise DecodeFailed(f"the JPEG has more than {_MAX_SCANS} scans, which is no picture's need; export it anew")
        at += 2 + int.from_bytes(data[at + 2 : at + 4])


@contextmanager
def _typed_errors(what: str) -> Iterator[None]:
    """Let only `InputError` out, and none of Pillow's warnings."""
    with warnings.catch_warnings():
        # Not thread-safe, so the filter is one that does no harm if another thread keeps it.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        try:
            yield
        except InputError:
            raise
        except Image.DecompressionBombError as error:
            raise ImageTooLarge(f"the {what} image was not decoded: {error}; shrink it") from error
        except Exception as error:
            raise DecodeFailed(
                f"the {what} image is truncated or corrupt, {type(error).__name__}: {error}; export it anew"
            ) from error


def _decode(image: Image.Image, limits: ImageLimits, sha256: str | None, min_side: int | None) -> DecodedImage:
    width, height = image.size
    _check_pixels(width, height, limits)
    if image.format == "TIFF":
        _check_tile(image, limits)
    if min_side:
        image.draft(None, (min_side, min_side))  # does nothing but to a JPEG that is large enough
    image.load()
    notes: list[str] = []
    orientation = _orientation(image, notes)
    rgb = _to_rgb(image, notes)
    if (turn := _TURNS.get(orientation)) is not None:  # the first of them equals 0
        rgb = rgb.transpose(turn)
    if orientation >= 5:
        width, height = height, width
    _note_frames(image, notes)
    return DecodedImage(image=rgb, width=width, height=height, sha256=sha256, warnings=notes)


def _check_tile(image: Image.Image, limits: ImageLimits) -> None:
    """A TIFF is decoded by whole tiles, however small the picture in them is."""
    tags = getattr(image, "tag_v2", {})
    if _TILE_WIDTH_TAG in tags and _TILE_LENGTH_TAG in tags:
        _check_pixels(tags[_TILE_WIDTH_TAG], tags[_TILE_LENGTH_TAG], limits)


def _orientation(image: Image.Image, notes: list[str]) -> int:
    """EXIF's Orientation, 1 where there is none; TIFF has been turned by `load` already."""
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # the picture is whole, only what is said about it is not
        notes.append("the EXIF data is corrupt; the image is taken as stored, without rotation")
        return 1
    return value if value in _TURNS else 1


def _note_frames(image: Image.Image, notes: list[str]) -> None:
    """Say that frames were left out. JPEG's further pictures (MPO) are previews and depth maps, not frames."""
    with suppress(Exception):  # a broken second frame takes nothing from the first
        if image.format != "MPO" and getattr(image, "is_animated", False):
            notes.append("the image has several frames; only the first was analysed")


def _to_rgb(image: Image.Image, notes: list[str]) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _grey_to_8_bit(image, notes).convert("RGB")
    if image.has_transparency_data:
        return _over_white(image.convert("RGBA"), notes)
    return image if image.mode == "RGB" else image.convert("RGB")


def _over_white(image: Image.Image, notes: list[str]) -> Image.Image:
    alpha = image.getchannel("A")
    if alpha.getextrema() == (255, 255):
        return image.convert("RGB")
    notes.append("the image has transparency; it was laid over white")
    page = Image.new("RGB", image.size, "white")
    page.paste(image, mask=alpha)
    return page


def _grey_to_8_bit(image: Image.Image, notes: list[str]) -> Image.Image:
    """16-bit grey by its full range; 32-bit and float, which declare none, by the range of their values."""
    values = np.asarray(image)
    if image.mode.startswith("I;16"):
        low, high = 0.0, 65535.0
    else:
        values = np.nan_to_num(values, posinf=0, neginf=0)
        low, high = _value_range(values, image.mode)
        notes.append(f"the image has grey values without a declared range; {low:g} to {high:g} became 0 to 255")
    flat, grey = values.ravel(), np.empty(values.size, np.uint8)
    for start in range(0, flat.size, 2**20):  # np.interp works in float64: not for the whole picture at once
        part = slice(start, start + 2**20)
        grey[part] = np.rint(np.interp(flat[part], (low, high), (0, 255)))
    return Image.fromarray(grey.reshape(values.shape))


def _value_range(values: NDArray[np.generic], mode: str) -> tuple[float, float]:
    """The usual range that holds the values (0 to 1 for floats, 8 bit, 16 bit), else from lowest to highest."""
    low, high = float(values.min()), float(values.max())
    usual = (1.0, 255.0, 65535.0) if mode == "F" else (255.0, 65535.0)
    if low >= 0:
        return 0.0, next((top for top in usual if high <= top), high)
    return low, max(high, low + 1)


def normalise(pixels: Pixels | torch.Tensor) -> torch.Tensor:
    """uint8 RGB (B, S, S, 3) to the model's input, float32 (B, 3, S, S), on the device it came on."""
    import torch  # seconds to load, which the processes that only decode need not spend

    tensor = torch.as_tensor(pixels)
    mean = torch.tensor(CLIP_MEAN, device=tensor.device).view(1, 3, 1, 1)
    std = torch.tensor(CLIP_STD, device=tensor.device).view(1, 3, 1, 1)
    scaled = tensor.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format).div_(255)
    return scaled.sub_(mean).div_(std)
