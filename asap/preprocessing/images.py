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
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import AvifImagePlugin, Image, ImageChops, ImageFile, UnidentifiedImageError

from asap.errors import (
    ConfigError,
    DecodeFailed,
    EmptyFile,
    ImageMissing,
    ImageTooLarge,
    InputError,
    UnsupportedFormat,
    stable_message,
)
from asap.preprocessing.formats import sniff
from asap.preprocessing.headers import check_scans, iso_media_sizes, jpeg2000_sizes
from asap.preprocessing.mending import (
    LEAST_SHARE,
    Mended,
    find_missing_end,
    has_all_frequencies,
    lacks_end,
    mend,
    png_size,
)

if TYPE_CHECKING:
    import torch

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

ImageSource = bytes | str | Path | Image.Image | None
Pixels = NDArray[np.uint8]
BoxXyxy = tuple[float, float, float, float]

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
_NEW_SUBFILE_TAG, _SUB_IFDS_TAG, _DNG_VERSION_TAG = 254, 330, 50706
_CONTAINED = ("AVIF", "HEIF", "JPEG2000")
"""Formats whose decoder believes the bit stream, while Pillow believes the container around it."""
_LEAST_SIDE = 32
"""A side of fewer pixels is warned of: all of the image would be two of the 16 x 16 patches that the model sees."""
_MOST_ELONGATED = 8
"""A side this many times the other is warned of: the square that the model sees then has 2 patches for 16."""
_END_OF_JPEG = b"\xff\xd9"
_OTHER_PIXELS = bytes.fromhex("a53c965a") * 64
"""Data of a scan that a JPEG is unlikely to go on with."""
_GRAY = 128
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
    is_as_stored: bool = False
    """True if these are the pixels of a JPEG as it is stored: nothing was rotated, converted or mended."""


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
    sha256 = hashlib.sha256(data).hexdigest()
    name, stray = sniff(data)
    if stray:
        data = data[stray:]
    decoded = _decode_or_mend(name, data, limits, sha256, min_side)
    if stray:
        decoded.warnings.insert(0, f"stray bytes before the picture were skipped: {stray}")
    return decoded


def _decode_or_mend(name: str, data: bytes, limits: ImageLimits, sha256: str, min_side: int | None) -> DecodedImage:
    """Decode a file; if that fails, leave out what is damaged beside the pixels and accept a cut end."""
    if name == "JPEG":
        check_scans(data)
    try:
        if lacks_end(name, data):
            raise DecodeFailed(f"the {name} image is cut off and filled up with zeros. Copy or download it again.")
        with _typed_errors(name), _open(name, data, limits) as image:
            decoded = _decode(image, limits, sha256, min_side)
    except DecodeFailed as error:
        if name == "JPEG":
            return _decode_cut_jpeg(data, limits, sha256, min_side, error)
        if name == "PNG" and (size := png_size(data)):
            _check_pixels(*size, limits)
        mended = mend(name, data)
        if mended is None:
            raise
        try:
            return _decode_mended(name, mended, limits, sha256)
        except _CutOff:
            raise
        except DecodeFailed:
            raise error from None  # the message about the file as it was given
    if note := find_missing_end(name, data):
        decoded.warnings.append(note)
    return decoded


class _CutOff(DecodeFailed):
    """A file of which too little is there."""

    @classmethod
    def after(cls, rows: int, height: int, name: str) -> _CutOff:
        """Return the error of a file of the format `name` that has so many of its rows."""
        return cls(
            f"the {name} image is cut off: {rows} of {height} rows are there. "
            f"At least {LEAST_SHARE:.0%} are needed. Copy or download it again."
        )


def _open(name: str, data: bytes, limits: ImageLimits) -> Image.Image:
    """Open a file without decoding, and check the sizes that its bit stream states.

    Pillow itself refuses more pixels than its own limit, which is never below that of `limits`.
    """
    if name in _CONTAINED:
        for width, height in jpeg2000_sizes(data) if name == "JPEG2000" else iso_media_sizes(data):
            _check_pixels(width, height, limits)
    if name == "AVIF":
        AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # many images are decoded at once; threads take memory
    try:
        return Image.open(BytesIO(data), formats=[name])
    except Image.DecompressionBombError as error:
        count = re.search(r"\d+", str(error))  # the first number of Pillow's message is the image's own
        raise ImageTooLarge(
            f"the image has {count[0] if count else f'more than {_PILLOW_MAX_PIXELS}'} pixels; the limit is "
            f"{limits.max_pixels}. Raise max_pixels or shrink the image."
        ) from error


def _decode_cut_jpeg(
    data: bytes, limits: ImageLimits, sha256: str, min_side: int | None, error: DecodeFailed
) -> DecodedImage:
    """Decode a JPEG without an end. Raises the error if it has another damage.

    The file is completed in two ways. Where the two images are equal, the pixels were in the file.
    """
    data = data.rstrip(b"\0").rstrip(b"\xff")
    loaded: list[Image.Image] = []
    for completed in (data + _END_OF_JPEG, data + _OTHER_PIXELS + _END_OF_JPEG):
        try:
            with _typed_errors("JPEG"), _open("JPEG", completed, limits) as image:
                size = image.size
                layers = getattr(image, "layer", [])
                _load(image, limits, min_side)
                loaded.append(image)
        except DecodeFailed:
            raise error from None
    with _typed_errors("JPEG"):
        rows, share = _compare(
            loaded[0], loaded[1], 8 * max((layer[2] for layer in layers), default=1) * loaded[0].height / size[1]
        )
        rows = rows * size[1] // loaded[0].height
        if not has_all_frequencies(data):
            raise DecodeFailed(
                "the JPEG image is cut off: it is progressive, and scans with its details are missing. "
                "Copy or download it again."
            )
        if share < LEAST_SHARE:
            raise _CutOff.after(rows, size[1], "JPEG")
        return _finish(loaded[0], size, sha256, [_cut_off(rows, size[1])])


def _compare(one: Image.Image, other: Image.Image, block: float) -> tuple[int, float]:
    """Return how many rows are equal, from the top, and the share of equal pixels in the order of a file.

    Args:
        one: An image.
        other: Another image of that size.
        block: Height of a row of blocks, the unit in which a JPEG is written.
    """
    width, height = one.size
    difference = ImageChops.difference(one, other)
    box = difference.getbbox()
    if box is None:
        return height, 1.0
    rows = box[1]
    first = difference.crop((0, rows, width, min(height, rows + max(1, int(block) // 2)))).getbbox()
    columns = first[0] if first else 0
    return rows, min(1.0, (rows + block * columns / width) / height)


def _cut_off(rows: int, height: int) -> str:
    if rows >= height:
        return "the image has no end marker; all of its rows are there"
    return f"the image is cut off: {rows} of {height} rows are there; the rest is gray"


def _decode_mended(name: str, mended: Mended, limits: ImageLimits, sha256: str) -> DecodedImage:
    notes, rows = list(mended.warnings), mended.rows
    if rows is not None and rows < LEAST_SHARE * mended.height:
        raise _CutOff.after(rows, mended.height, name)
    with _typed_errors(name), _open(name, mended.data, limits) as image:
        size = image.size
        if name != "PNG" or rows is None:  # a BMP was filled up
            _load(image, limits, None)
        else:
            _check_pixels(*size, limits)
            # Pillow has decoded all rows that there are when it raises the error.
            with suppress(OSError, SyntaxError, ValueError):
                image.load()
            if isinstance(image, ImageFile.ImageFile):
                image.tile = []  # there is no more to decode
            if rows < size[1]:
                image = _to_rgb(image, notes)
                image.paste((_GRAY,) * 3, (0, rows, *size))
        if rows is not None:
            notes.append(_cut_off(rows, size[1]))
        return _finish(image, size, sha256, notes)


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
        raise ImageMissing(f"the image file {str(source)!r} cannot be read: {stable_message(error)}") from error


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
            raise ImageTooLarge(
                f"the {name} image was not decoded: {str(error).rstrip('.')}. Shrink the image."
            ) from error
        except UnidentifiedImageError as error:
            raise DecodeFailed(
                f"the {name} image is truncated or corrupt: its header cannot be read. Re-save the image."
            ) from error
        except Exception as error:
            raise DecodeFailed(
                f"the {name} image is truncated or corrupt: {stable_message(error)}. Re-save the image."
            ) from error


def _decode(image: Image.Image, limits: ImageLimits, sha256: str | None, min_side: int | None) -> DecodedImage:
    size = image.size
    _load(image, limits, min_side)
    if image.format == "HEIF":  # libheif turns and crops while it decodes
        size = image.size
    decoded = _finish(image, size, sha256, [])
    return replace(decoded, is_as_stored=image.format == "JPEG" and decoded.image is image)


def _load(image: Image.Image, limits: ImageLimits, min_side: int | None) -> None:
    """Decode the pixels, after a check of the size, and that of a tile: a TIFF is decoded by whole tiles."""
    _check_pixels(*image.size, limits)
    if image.format == "TIFF":
        tags = getattr(image, "tag_v2", {})
        if _TILE_WIDTH_TAG in tags and _TILE_LENGTH_TAG in tags:
            _check_pixels(tags[_TILE_WIDTH_TAG], tags[_TILE_LENGTH_TAG], limits)
        if _DNG_VERSION_TAG in tags or (tags.get(_NEW_SUBFILE_TAG) == 1 and _SUB_IFDS_TAG in tags):
            raise UnsupportedFormat(
                "the bytes are a camera raw file (such as DNG, NEF or ARW), which is not supported: only its preview "
                "could be read. Develop it to a JPEG."
            )
    if min_side:
        image.draft(None, (min_side, min_side))  # only changes a JPEG that is large enough
    image.load()


def _finish(image: Image.Image, size: tuple[int, int], sha256: str | None, notes: list[str]) -> DecodedImage:
    """Apply color and rotation to decoded pixels. `size` is the size of the original, before rotation."""
    width, height = size
    orientation = _orientation(image, notes)  # a TIFF was rotated by `load` already
    rgb = _to_rgb(image, notes)
    if (turn := _TURNS.get(orientation)) is not None:  # the first of them equals 0
        rgb = rgb.transpose(turn)
    if orientation >= 5:
        width, height = height, width
    # The further images of a JPEG (MPO) are previews and depth maps, not frames.
    with suppress(Exception):  # a broken second frame does not affect the first
        if image.format != "MPO" and getattr(image, "is_animated", False):
            notes.append("the image has several frames; only the first was analyzed")
    if min(size) < _LEAST_SIDE:
        notes.append(
            f"the image is tiny: {width} x {height} pixels; with a side below {_LEAST_SIDE}, a verdict is a guess"
        )
    elif max(size) > _MOST_ELONGATED * min(size):
        notes.append(
            f"the image is very elongated: {width} x {height} pixels; the model sees it squeezed into a square"
        )
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
