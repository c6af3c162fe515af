"""The pictures of a corpus at a model's size: kept small in a cache, or measured and decoded anew each time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from asap.corpus.folder import ImageAddress
from asap.corpus.reader import Record
from asap.errors import FetchFailed, ImageMissing, InputError, StorageError
from asap.preprocessing.images import DEFAULT_LIMITS, ImageSource, PreparedImage, prepare_image
from asap.storage.fetch import FetchSettings, fetch


class PictureInfo(Protocol):
    """What the boxes of a corpus need to know of its pictures."""

    @property
    def sizes(self) -> NDArray[np.int32]:
        """(pictures, 2): width and height of the originals after EXIF rotation, in pixels."""
        ...

    @property
    def index(self) -> Mapping[ImageAddress, int]:
        """Which row holds which picture."""
        ...

    @property
    def broken(self) -> Mapping[ImageAddress, str]:
        """Pictures that cannot be decoded, and why; their sizes are 0."""
        ...

    @property
    def image_size(self) -> int:
        """The side that training sees them at, in pixels."""
        ...


@dataclass(frozen=True)
class PictureSizes:
    """`PictureInfo` for pictures whose pixels are decoded anew each time. The fields are those of `PictureInfo`."""

    sizes: NDArray[np.int32]
    index: Mapping[ImageAddress, int]
    image_size: int
    broken: Mapping[ImageAddress, str] = field(default_factory=dict)


@dataclass(frozen=True)
class PictureCache:
    """The pictures of some records at a model's size: decoded once, read by every epoch and worker.

    A memory-mapped file of uint8, so that workers of one machine share it and memory stays with the page cache.
    """

    pixels: NDArray[np.uint8]
    """(pictures, S, S, 3)."""
    sizes: NDArray[np.int32]
    """(pictures, 2): width and height of the originals after EXIF rotation, in pixels."""
    index: dict[ImageAddress, int]
    """Which row holds which picture."""
    broken: Mapping[ImageAddress, str] = field(default_factory=dict)
    """Pictures that cannot be decoded, and why; their sizes are 0."""

    @property
    def image_size(self) -> int:
        """S."""
        return self.pixels.shape[1]

    @classmethod
    def prepare(
        cls,
        records: Sequence[Record],
        image_size: int,
        folder: Path,
        progress: Callable[[int], None] | None = None,
        read: Callable[[ImageAddress], ImageSource] = lambda place: place,
        *,
        keep_broken: bool = False,
    ) -> Self:
        """Open the cache of these pictures under `folder`, decoding them first unless that was done before.

        `progress` is called with the pictures done so far. `read` opens a picture that is no file of this machine.
        A picture that cannot be decoded raises `InputError`, naming it, or is `broken` if those are kept.
        """
        paths = list(dict.fromkeys(record.image for record in records))
        key = hashlib.sha256("\n".join([str(image_size), *map(str, paths)]).encode()).hexdigest()[:16]
        pixels_file, sizes_file = folder / f"{key}.pixels.npy", folder / f"{key}.sizes.npy"
        broken: dict[ImageAddress, str] = {}
        if not sizes_file.exists():  # written last, so its presence means that all is there
            folder.mkdir(parents=True, exist_ok=True)
            _decode_all(paths, image_size, pixels_file, sizes_file, progress, read, broken if keep_broken else None)
        pixels = np.load(pixels_file, mmap_mode="r", allow_pickle=False)
        sizes = np.load(sizes_file, allow_pickle=False)
        for row in np.flatnonzero(sizes[:, 0] == 0):
            broken.setdefault(paths[row], f"picture {paths[row]} could not be decoded")
        return cls(pixels, sizes, {path: row for row, path in enumerate(paths)}, broken)


def _decode_all(
    paths: list[ImageAddress],
    image_size: int,
    pixels_file: Path,
    sizes_file: Path,
    progress: Callable[[int], None] | None,
    read: Callable[[ImageAddress], ImageSource],
    broken: dict[ImageAddress, str] | None,
) -> None:
    """Write both files; what is `broken` stays black there, where it does not raise."""
    shape = (len(paths), image_size, image_size, 3)
    pixels = np.lib.format.open_memmap(pixels_file, mode="w+", dtype=np.uint8, shape=shape)
    sizes = np.zeros((len(paths), 2), np.int32)

    def decode(path: ImageAddress) -> PreparedImage | InputError:
        try:
            return decode_picture(path, image_size, read)
        except InputError as error:
            return error

    with ThreadPoolExecutor() as pool:  # Pillow decodes without the interpreter's lock
        for row, picture in enumerate(pool.map(decode, paths)):
            if isinstance(picture, PreparedImage):
                pixels[row] = picture.pixels
                sizes[row] = picture.width, picture.height
            elif broken is None:
                raise picture
            else:
                broken[paths[row]] = str(picture)
            if progress and (row % 256 == 255 or row + 1 == len(paths)):
                progress(row + 1)
    pixels.flush()
    partial = sizes_file.with_suffix(".partial.npy")
    np.save(partial, sizes)
    partial.rename(sizes_file)


def decode_picture(
    place: ImageAddress, image_size: int, read: Callable[[ImageAddress], ImageSource] = lambda place: place
) -> PreparedImage:
    """A record's picture at a model's size. Raises `InputError`, naming it; what `read` raises otherwise stays."""
    try:
        return prepare_image(read(place), image_size)
    except InputError as error:
        raise type(error)(f"picture {place}: {error}") from error


def picture_address(text: str) -> ImageAddress:
    """A record's picture from its place in words."""
    return text if "://" in text else Path(text)


def read_picture(place: ImageAddress) -> bytes | Path:
    """What decoding a record's picture begins with: its bytes from a bucket, or its path.

    Raises `ImageMissing` or `ImageTooLarge` for the one object, `StorageError` for a store that does not give it.
    """
    if isinstance(place, Path):
        return place
    try:
        return fetch(place, DEFAULT_LIMITS.max_bytes, FetchSettings()).data
    except FetchFailed as error:
        if error.code == "not_found":
            raise ImageMissing("the object does not exist") from error
        raise StorageError(f"picture {place} cannot be read, after {error.attempt} tries: {error.detail}") from error
