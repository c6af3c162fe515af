"""The pictures of a corpus at a model's size: decoded once into a cache, or measured and decoded anew each time."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from asap.corpus.folder import ImageAddress
from asap.corpus.reader import Record
from asap.errors import FetchFailed, ImageMissing, InputError, StorageError
from asap.preprocessing.images import DEFAULT_LIMITS, ImageSource, PreparedImage, prepare_image
from asap.storage.failures import storage_errors
from asap.storage.fetch import FetchSettings, fetch
from asap.storage.files import write_atomically


class PictureInfo(Protocol):
    """The properties of a corpus's pictures that its boxes depend on."""

    @property
    def sizes(self) -> NDArray[np.int32]:
        """(pictures, 2): width and height of the originals after EXIF rotation, in pixels."""
        ...

    @property
    def index(self) -> Mapping[ImageAddress, int]:
        """The row of each picture."""
        ...

    @property
    def broken(self) -> Mapping[ImageAddress, str]:
        """The error of each picture that cannot be decoded; its size is 0 x 0."""
        ...

    @property
    def image_size(self) -> int:
        """The side of the pictures in training, in pixels."""
        ...


@dataclass(frozen=True)
class PictureSizes:
    """The `PictureInfo` of pictures that are decoded anew each time. The fields are described there."""

    sizes: NDArray[np.int32]
    index: Mapping[ImageAddress, int]
    image_size: int
    broken: Mapping[ImageAddress, str] = field(default_factory=dict)


@dataclass(frozen=True)
class PictureCache:
    """The pictures of some records at a model's size, decoded once for all epochs and workers.

    The pixels are a memory-mapped file: workers of one machine share it, and the page cache holds it in memory.
    """

    pixels: NDArray[np.uint8]
    """(pictures, S, S, 3), RGB; S is the side in pixels."""
    sizes: NDArray[np.int32]
    """(pictures, 2): width and height of the originals after EXIF rotation, in pixels."""
    index: dict[ImageAddress, int]
    """The row of each picture."""
    broken: Mapping[ImageAddress, str] = field(default_factory=dict)
    """The error of each picture that cannot be decoded; its size is 0 x 0."""

    @property
    def image_size(self) -> int:
        """The side S of the pictures, in pixels."""
        return self.pixels.shape[1]

    @classmethod
    def prepare(
        cls,
        records: Sequence[Record],
        image_size: int,
        folder: Path,
        progress: Callable[[int], None] | None = None,
        read: Callable[[ImageAddress], ImageSource] = lambda address: address,
        *,
        keep_broken: bool = False,
    ) -> Self:
        """Open the cache of the records' pictures, after decoding them unless that was done before.

        Args:
            records: the records whose pictures are needed.
            image_size: the side S, in pixels.
            folder: the folder of the cache.
            progress: is called with the number of pictures decoded so far.
            read: opens a picture that is not a file of this machine.
            keep_broken: list a picture that cannot be decoded in `broken`.

        Raises:
            InputError: for a picture that cannot be decoded, unless `keep_broken`. The message names it.
            StorageError: if the disk has no room for the pictures.
        """
        paths, pixels_file, sizes_file = cls._files(records, image_size, folder)
        broken: dict[ImageAddress, str] = {}
        if not sizes_file.exists():  # it is written last, so its presence means that both files are complete
            folder.mkdir(parents=True, exist_ok=True)
            _decode_all(paths, image_size, pixels_file, sizes_file, progress, read, broken if keep_broken else None)
        pixels = np.load(pixels_file, mmap_mode="r", allow_pickle=False)
        sizes = np.load(sizes_file, allow_pickle=False)
        for row in np.flatnonzero(sizes[:, 0] == 0):
            broken.setdefault(paths[row], f"picture {paths[row]} could not be decoded")
        return cls(pixels, sizes, {path: row for row, path in enumerate(paths)}, broken)

    @classmethod
    def is_made(cls, records: Sequence[Record], image_size: int, folder: Path) -> bool:
        """Return True if the folder has the cache of the records' pictures, so that `prepare` decodes nothing."""
        return cls._files(records, image_size, folder)[2].exists()

    @staticmethod
    def _files(records: Sequence[Record], image_size: int, folder: Path) -> tuple[list[ImageAddress], Path, Path]:
        """Return the pictures of the records, and the files of their pixels and of their sizes."""
        paths = list(dict.fromkeys(record.image for record in records))
        key = hashlib.sha256("\n".join([str(image_size), *map(str, paths)]).encode()).hexdigest()[:16]
        return paths, folder / f"{key}.pixels.npy", folder / f"{key}.sizes.npy"


def _decode_all(
    paths: list[ImageAddress],
    image_size: int,
    pixels_file: Path,
    sizes_file: Path,
    progress: Callable[[int], None] | None,
    read: Callable[[ImageAddress], ImageSource],
    broken: dict[ImageAddress, str] | None,
) -> None:
    """Write the pixels, then the sizes.

    A picture that cannot be decoded is entered in `broken` and stays black; its error is raised if `broken` is None.
    """
    pixels = _create(pixels_file, (len(paths), image_size, image_size, 3))
    sizes = np.zeros((len(paths), 2), np.int32)

    def decode(path: ImageAddress) -> PreparedImage | InputError:
        try:
            return decode_picture(path, image_size, read)
        except InputError as error:
            return error

    # Threads are enough, because Pillow decodes without the interpreter's lock.
    pool = ThreadPoolExecutor()
    try:
        for row, picture in enumerate(pool.map(decode, paths)):
            if isinstance(picture, PreparedImage):
                pixels[row] = picture.pixels
                sizes[row] = picture.width, picture.height
            elif broken is None:
                raise picture
            else:
                broken[paths[row]] = str(picture)
            if progress and (row % 32 == 31 or row + 1 == len(paths)):
                progress(row + 1)
    finally:
        pool.shutdown(cancel_futures=True)  # a stop does not wait for the pictures that are left
    pixels.flush()
    with write_atomically(sizes_file) as draft, draft.open("wb") as file:
        np.save(file, sizes)


def _create(file: Path, shape: tuple[int, ...]) -> np.memmap[Any, np.dtype[np.uint8]]:
    """Create a file of zeros in memory. Raises `StorageError` if the disk has no room for it."""
    with storage_errors(str(file)):
        try:
            pixels = np.lib.format.open_memmap(file, mode="w+", dtype=np.uint8, shape=shape)
            # A new file has holes in place of its bytes. Filling one on a full disk would kill the process (SIGBUS).
            with file.open("r+b") as opened:
                os.posix_fallocate(opened.fileno(), 0, file.stat().st_size)
        except OSError:
            file.unlink(missing_ok=True)
            raise
    return pixels


def decode_picture(
    address: ImageAddress, image_size: int, read: Callable[[ImageAddress], ImageSource] = lambda address: address
) -> PreparedImage:
    """Decode a record's picture at a model's size.

    Raises `InputError` with the picture's address in the message. Other errors of `read` pass unchanged.
    """
    try:
        return prepare_image(read(address), image_size)
    except InputError as error:
        raise type(error)(f"picture {address}: {error}") from error


def picture_address(text: str) -> ImageAddress:
    """Convert the text of a picture's address back to the address."""
    return text if "://" in text else Path(text)


def read_picture(address: ImageAddress) -> bytes | Path:
    """Return the source to decode a picture from: the bytes of an object, or a path as it is.

    Raises `ImageMissing` or `ImageTooLarge` if the fault is the object's, `StorageError` if it is the store's.
    """
    if isinstance(address, Path):
        return address
    try:
        return fetch(address, DEFAULT_LIMITS.max_bytes, FetchSettings()).data
    except FetchFailed as error:
        if error.code == "not_found":
            raise ImageMissing("the object does not exist") from error
        raise StorageError(f"picture {address} cannot be read, after {error.attempt} tries: {error.detail}") from error
