"""Copies of folders of a bucket on this machine, such as models. Each version of a folder is downloaded once.

A copy is named by a fingerprint of its files: their names, sizes and ETags. It appears whole, with every file as long
as the listing says, or not at all. Processes that need the same copy wait for the one that downloads it. A copy that a
process has asked for stays until that process ends. Others are deleted, the oldest first, once there are many or the
disk is full.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import BinaryIO

from asap.errors import StorageError
from asap.storage.failures import storage_errors
from asap.storage.files import list_files, target_of_key
from asap.storage.fingerprint import files_fingerprint
from asap.storage.location import FileInfo, Location
from asap.storage.objects import ObjectStream
from asap.storage.s3 import s3_client

_MOST_FILES = 1000
"""Files of a folder. More are no model, but the folder of many models."""
_UNUSED = 3
"""Copies that are kept although no process uses them."""
_HELD: dict[Path, BinaryIO] = {}
"""Open files with a shared lock, by the copies that this process uses. The locks end with the process."""
_ONE_AT_A_TIME = threading.Lock()
"""The locks of files keep processes apart, and this one the threads of a process."""


def wanted_files(source: Location, is_wanted: Callable[[str], bool]) -> list[FileInfo]:
    """Return the files below a folder of a bucket whose names below it are wanted, in the order of the listing.

    Raises `StorageError` if a name leaves the folder, or if there are too many files.
    """
    prefix = f"{source.uri.rstrip('/')}/"
    found = []
    for number, info in enumerate(list_files(source)):
        if number == _MOST_FILES:
            raise StorageError(
                f"{source} holds more than {_MOST_FILES:,} files, so it is no folder of one model. Name the folder of "
                "the model."
            )
        name = info.location.uri.removeprefix(prefix)
        target_of_key(Path(), source, name)  # raises for a name that would leave the copy
        if is_wanted(name):
            found.append(info)
    return found


def private_folder(name: str) -> Path:
    """Return a folder for copies below the folder for temporary files, which other users cannot read or replace.

    Raises `StorageError` if there is something else in its place, or if it cannot be made.
    """
    with storage_errors("the folder for temporary files"):
        folder = Path(tempfile.gettempdir()) / f"{name}-{os.getuid()}"
    # The copies are read again, and others may write to the folder for temporary files. So they may have put something
    # there first. One look at the folder itself shows all of it, and what is found to be ours only we can replace.
    with storage_errors(folder):
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        found = os.lstat(folder)
    if not stat.S_ISDIR(found.st_mode):
        problem = "is no folder"
    elif found.st_uid != os.getuid():
        problem = "belongs to another user"
    elif found.st_mode & 0o077:
        problem = f"is open to other users (mode {stat.S_IMODE(found.st_mode):o})"
    else:
        return folder
    raise StorageError(f"{folder} {problem}. Remove it, or set TMPDIR to a folder of your own.")


def cached_folder(source: Location, files: list[FileInfo]) -> Path:
    """Return this machine's copy of files below a folder of a bucket, after downloading them if there is none.

    The copy stays until this process ends.

    Args:
        source: The folder.
        files: Its files, as `wanted_files` returned them.

    Raises:
        StorageError: The files cannot be read, or have changed since they were listed; or the disk is too small.
    """
    cache = private_folder("asap-models")
    name = hashlib.sha256(f"{source.uri}\n{files_fingerprint(files)}".encode()).hexdigest()[:24]
    copy = cache / name
    with _ONE_AT_A_TIME, storage_errors(copy), _lock_file(copy, "making").open("ab") as making:
        fcntl.flock(making, fcntl.LOCK_EX)  # waits for a process that downloads the same files
        if not _is_whole(copy, source, files):
            shutil.rmtree(copy, ignore_errors=True)
            _make_room(cache, source, sum(info.size for info in files))
            _download(source, files, copy)
        os.utime(copy)  # its last use
        if copy not in _HELD:
            _HELD[copy] = _lock_file(copy, "used").open("ab")
            fcntl.flock(_HELD[copy], fcntl.LOCK_SH)
    return copy


def _lock_file(copy: Path, kind: str) -> Path:
    """Return the file that is locked while a copy is made, or as long as it is used. It stays when the copy goes."""
    return copy.with_name(f"{copy.name}.{kind}")


def _is_whole(copy: Path, source: Location, files: list[FileInfo]) -> bool:
    """Return True if a copy holds each file at its size. Files that were cut by a power failure are made anew."""
    with suppress(OSError):
        return all(path.stat().st_size == info.size for path, info in _targets(copy, source, files))
    return False


def _targets(copy: Path, source: Location, files: list[FileInfo]) -> Iterator[tuple[Path, FileInfo]]:
    prefix = f"{source.uri.rstrip('/')}/"
    for info in files:
        yield target_of_key(copy, source, info.location.uri.removeprefix(prefix)), info


def _download(source: Location, files: list[FileInfo], copy: Path) -> None:
    """Download the files into a folder beside the copy, which becomes the copy once all of them are there."""
    for left_behind in copy.parent.glob(f"{copy.name}.*/"):  # by processes that were killed
        shutil.rmtree(left_behind)
    draft = Path(tempfile.mkdtemp(prefix=f"{copy.name}.", dir=copy.parent))
    try:
        for path, info in _targets(draft, source, files):
            path.parent.mkdir(parents=True, exist_ok=True)
            # The stream refuses an object that is not the one of the listing, and one that ends too early.
            with (
                storage_errors(info.location),
                closing(ObjectStream(s3_client(), info.location, info)) as stream,
                path.open("xb") as file,
            ):
                shutil.copyfileobj(stream, file, 2**20)
                file.flush()
                os.fsync(file.fileno())
        draft.rename(copy)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _make_room(cache: Path, source: Location, size: int) -> None:
    """Delete copies that no process uses, the oldest first, until few are left and `size` bytes fit on the disk.

    Raises `StorageError` if they do not fit then either.
    """
    copies = sorted((path for path in cache.iterdir() if path.is_dir()), key=_last_use)
    for left, path in zip(range(len(copies), 0, -1), copies, strict=True):
        if left > _UNUSED or shutil.disk_usage(cache).free < size:
            _delete_unused(path)
    free = shutil.disk_usage(cache).free
    if free < size:
        raise StorageError(
            f"{source} has {size / 1e9:.2g} GB, and the disk of {cache} has {free / 1e9:.2g} GB left. Set TMPDIR to a "
            "folder on a larger disk."
        )


def _last_use(path: Path) -> float:
    """Return the time of a copy's last use; 0 if another process has renamed or deleted it meanwhile."""
    with suppress(FileNotFoundError):
        return path.stat().st_mtime
    return 0.0


def _delete_unused(path: Path) -> None:
    """Delete a copy, or what a killed process left of one, unless a process makes or uses it."""
    copy = path.with_name(path.name.partition(".")[0])
    with (
        _lock_file(copy, "making").open("ab") as making,
        _lock_file(copy, "used").open("ab") as used,
        suppress(BlockingIOError),
    ):
        fcntl.flock(making, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(used, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(path, ignore_errors=True)
