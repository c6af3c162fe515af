"""Reads, writes, lists, copies, downloads and deletes files, on this machine and in S3 alike.

A reader sees the complete file or no file. Small objects and listings go through boto3; streams and
tables go through the file systems of pyarrow.
"""

from __future__ import annotations

import errno
import io
import itertools
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa

from asap.errors import StorageError
from asap.storage.failures import backoff_s, failure_code, storage_errors
from asap.storage.location import FileInfo, Location
from asap.storage.s3 import filesystem, s3_client

_DELETE_AT_ONCE = 1000
"""Keys in one DeleteObjects request, the limit of S3."""

_SMALL_BYTES = 2**22
"""Objects up to this size are read whole."""
_COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
_BODY_TRIES = 6
"""Tries for the body of a small object."""

_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}
"""Error numbers of a file system without hard links, such as a bucket that is mounted as a folder."""


def exists(location: Location) -> bool:
    """Return True if there is a file or object of this name."""
    if not location.is_s3:
        return Path(location.uri).is_file()
    return bool(location.key) and file_info(location) is not None


def file_info(location: Location) -> FileInfo | None:
    """Return the size and version of a file, or None if it does not exist."""
    if not location.is_s3:
        path = Path(location.uri)
        return _local_info(path) if path.is_file() else None
    from botocore.exceptions import ClientError

    with storage_errors(location):
        try:
            head = s3_client().head_object(Bucket=location.bucket, Key=location.key)
        except ClientError as error:
            if failure_code(error)[0] == "not_found":
                return None
            raise
    return FileInfo(location, head["ContentLength"], head["ETag"].strip('"'))


def _local_info(path: Path) -> FileInfo:
    status = path.stat()
    return FileInfo(Location(str(path)), status.st_size, str(status.st_mtime_ns))


def open_read(location: Location) -> BinaryIO:
    """Open a buffered stream of a file's bytes, decompressed if its name ends in .gz, .bz2 or .zst."""
    with storage_errors(location):
        system, path = filesystem(location)
        if (small := _small_object(location)) is None:
            stream = system.open_input_stream(path, compression="detect")
        else:
            codec = next((name for suffix, name in _COMPRESSIONS.items() if path.endswith(suffix)), None)
            stream = pa.CompressedInputStream(small, codec) if codec else small
        return cast("BinaryIO", io.BufferedReader(stream, 2**20))


def open_seekable(location: Location) -> Any:
    """Open a pyarrow file that can be read at any offset."""
    with storage_errors(location):
        system, path = filesystem(location)
        return _small_object(location) or system.open_input_file(path)


def _small_object(location: Location) -> pa.BufferReader | None:
    """Return the whole of a small object in memory; None for a large one, a local file, or nothing.

    pyarrow cannot try a small range again: the response of an error does not fit into its buffer.
    """
    if not location.is_s3 or (info := file_info(location)) is None or info.size > _SMALL_BYTES:
        return None
    return pa.BufferReader(read_bytes(location))


def read_bytes(location: Location) -> bytes:
    """Read the whole of a small file."""
    with storage_errors(location):
        if not location.is_s3:
            return Path(location.uri).read_bytes()
        for attempt in itertools.count(1):
            response = s3_client().get_object(Bucket=location.bucket, Key=location.key)
            # botocore retries the request, but not a body that breaks off or is shorter than announced.
            try:
                with closing(response["Body"]) as body:
                    return cast("bytes", body.read())
            except Exception:
                if attempt == _BODY_TRIES:
                    raise
            time.sleep(backoff_s(attempt))
    raise AssertionError("the last try returns or raises")


@contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """Yield a temporary file beside `path`, which replaces `path` when the block ends without an error.

    A reader sees the former file or the new one, never a part. An error leaves the former file and no other. Missing
    folders are created. The mode of the new file follows the umask, as that of any new file does.
    """
    with _temporary_file(path) as draft:
        yield draft
        draft.replace(path)


@contextmanager
def _temporary_file(path: Path) -> Iterator[Path]:
    """Yield an empty file in the folder of `path`; delete it after the block if it is still there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own, so that several writers of one path do not write into each other's file. It does not end as
    # `path` does, so that no search for .parquet or .json files finds it.
    # `tempfile` would not follow the umask: its files are their owner's alone.
    draft = path.parent / f".{path.name}.{secrets.token_hex(8)}"
    draft.touch(exist_ok=False)
    try:
        yield draft
    finally:
        draft.unlink(missing_ok=True)


def write_bytes(location: Location, data: bytes) -> None:
    """Write a small file. A reader sees the former file or the new one, never a part."""
    with storage_errors(location):
        if location.is_s3:
            s3_client().put_object(Bucket=location.bucket, Key=location.key, Body=data)
            return
        with write_atomically(Path(location.uri)) as draft:
            draft.write_bytes(data)


def create_bytes(location: Location, data: bytes) -> bool:
    """Write a small file unless one of its name exists. Return True if it was written.

    If several processes do so at once, one of them writes. A reader sees the whole file or none.
    """
    from botocore.exceptions import ClientError

    with storage_errors(location):
        if not location.is_s3:
            return _create_local(Path(location.uri), data)
        try:
            s3_client().put_object(Bucket=location.bucket, Key=location.key, Body=data, IfNoneMatch="*")
        except ClientError as error:
            if error.response["Error"]["Code"] in ("PreconditionFailed", "ConditionalRequestConflict"):
                return False
            raise
        return True


def _create_local(path: Path, data: bytes) -> bool:
    with _temporary_file(path) as draft:
        draft.write_bytes(data)
        # Unlike a rename, a link fails if the name is taken, and it gives the name to a file that is complete.
        try:
            os.link(draft, path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
        else:
            return True
        # Without links an exclusive creation decides who writes. A reader may see the empty file for a moment.
        try:
            path.touch(exist_ok=False)
        except FileExistsError:
            return False
        draft.replace(path)
        return True


class OutputStream(io.RawIOBase):
    """A stream of bytes into one file. Its errors name the file, also where several files are written at once."""

    def __init__(self, location: Location, stream: Any) -> None:
        self._location = location
        self._stream = stream

    def writable(self) -> bool:
        """Return True, for text streams and tables that are written through this one."""
        return True

    def write(self, data: Any) -> int:
        """Write bytes and return their number. Raises `StorageError`."""
        with storage_errors(self._location):
            self._stream.write(data)
        return len(data)


@contextmanager
def open_write(location: Location) -> Iterator[OutputStream]:
    """Open a stream that writes a file of any length, which readers see when the block ends.

    If the block raises, S3 keeps what was written before the error; a local file stays as it was.
    """
    with storage_errors(location):
        system, path = filesystem(location)
        if location.is_s3:  # a multipart upload, which S3 shows once it is completed
            with system.open_output_stream(path) as stream:
                yield OutputStream(location, stream)
            return
        with write_atomically(Path(path)) as draft, system.open_output_stream(str(draft)) as stream:
            yield OutputStream(location, stream)


def copy_file(source: Location, target: Location) -> None:
    """Copy a file within one store. A reader sees it whole or not at all; the bytes of an object do not leave S3."""
    with storage_errors(target):
        if target.is_s3:
            s3_client().copy({"Bucket": source.bucket, "Key": source.key}, target.bucket, target.key)
            return
        with write_atomically(Path(target.uri)) as draft:
            shutil.copyfile(source.uri, draft)


def download_file(source: Location, target: Path) -> None:
    """Copy a file to this machine. A reader sees it whole or not at all."""
    if not source.is_s3:
        copy_file(source, Location(str(target)))
        return
    with storage_errors(source):
        target.parent.mkdir(parents=True, exist_ok=True)
        # boto3 itself writes beside the target and renames. It works in parts, so weights of gigabytes fit in memory.
        s3_client().download_file(source.bucket, source.key, str(target))


def target_of_key(folder: Path, source: Location, name: str) -> Path:
    """Return the path in a local folder for the file `name` below `source`.

    A store accepts any text as a name; a file system follows `..` and absolute paths out of the folder. Raises
    `StorageError` for such a name, and for one that a file system reads as another (`a//b`, `./a`).
    """
    if "\0" in name or not {"", ".", ".."}.isdisjoint(name.split("/")):
        raise StorageError(
            f"object cannot be copied to a local folder, its name is no path below one: {f'{source}/{name}'!r}. "
            "Rename or delete the object."
        )
    return folder / name


def local_targets(source: Location, folder: Path) -> dict[Path, Location]:
    """Map local paths in `folder` to the files below `source`. Nothing is written.

    Raises `StorageError` if one of the paths would lie outside the folder.
    """
    prefix = f"{source.uri.rstrip('/')}/"
    files = [info.location for info in list_files(source)]
    return {target_of_key(folder, source, file.uri.removeprefix(prefix)): file for file in files}


def download_folder(source: Location, target: Path) -> int:
    """Copy every file below a folder to this machine, over files of the same names. Return the number of files.

    A reader sees each file whole or not at all. All names are checked before the first file is written. Raises
    `StorageError` for a name that leaves `target`.
    """
    targets = local_targets(source, target)
    for path, file in targets.items():
        download_file(file, path)
    return len(targets)


def read_json(location: Location, advice: str = "") -> dict[str, Any] | None:
    """Return the object in a JSON file; None if there is no such file.

    Raises `StorageError`, which ends with `advice`, if the file holds something else.
    """
    if not exists(location):
        return None
    try:
        return dict(json.loads(read_bytes(location)))
    except ValueError as error:
        raise StorageError(f"{location} is broken: {error}{f'. {advice}' if advice else ''}") from error


def list_files(folder: Location, *, deep: bool = True) -> Iterator[FileInfo]:
    """Yield every file below a folder, in an order that keeps names with a common beginning together.

    Links to folders outside are followed, each folder once. Links to folders inside and above are not followed. A
    folder that does not exist holds no files. With `deep` false, only the files directly in the folder are listed.
    """
    with storage_errors(folder):
        if folder.is_s3:
            yield from _list_s3(folder, deep=deep)
        else:
            yield from _list_local(Path(folder.uri), deep=deep)


def _list_s3(folder: Location, *, deep: bool = True) -> Iterator[FileInfo]:
    options = {"Bucket": folder.bucket, "Prefix": f"{folder.key}/" if folder.key else ""}
    if not deep:
        options["Delimiter"] = "/"
    for page in s3_client().get_paginator("list_objects_v2").paginate(**options):
        for entry in page.get("Contents", ()):
            if not entry["Key"].endswith("/"):  # such an object stands for a folder
                location = Location(f"s3://{folder.bucket}/{entry['Key']}")
                yield FileInfo(location, entry["Size"], entry["ETag"].strip('"'))


def _list_local(folder: Path, *, deep: bool) -> Iterator[FileInfo]:
    if not folder.exists():  # no error, as S3 has none for a prefix without objects
        return
    root, linked = folder.resolve(), set[Path]()
    waiting = [str(folder)]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            ordered = sorted(entries, key=lambda entry: entry.name)
        for entry in ordered:
            if entry.is_file():
                with suppress(FileNotFoundError):  # it was deleted meanwhile
                    status = entry.stat()
                    yield FileInfo(Location(entry.path), status.st_size, str(status.st_mtime_ns))
        if deep:
            folders = [Path(entry.path) for entry in ordered if entry.is_dir()]
            waiting += [str(path) for path in folders if _is_followed(path, root, linked)][::-1]


def _is_followed(folder: Path, root: Path, linked: set[Path]) -> bool:
    """Return True if the walk enters a folder. It skips links into the tree, above it, or followed before."""
    if not folder.is_symlink():
        return True
    target = folder.resolve()
    if target in linked or target.is_relative_to(root) or root.is_relative_to(target):
        return False
    linked.add(target)
    return True


def list_folders(folder: Location) -> list[Location]:
    """Return the folders directly below a folder, in the order of their names. Nothing deeper is listed.

    A folder that does not exist holds no folders.
    """
    with storage_errors(folder):
        if not folder.is_s3:
            path = Path(folder.uri)
            entries = sorted(path.iterdir()) if path.exists() else []
            return [Location(str(entry)) for entry in entries if entry.is_dir()]
        prefix = f"{folder.key}/" if folder.key else ""
        pages = (
            s3_client().get_paginator("list_objects_v2").paginate(Bucket=folder.bucket, Prefix=prefix, Delimiter="/")
        )
        keys = [entry["Prefix"].rstrip("/") for page in pages for entry in page.get("CommonPrefixes", ())]
        return [Location(f"s3://{folder.bucket}/{key}") for key in keys]


def is_empty(folder: Location) -> bool:
    """Return True if there is no file at or below a folder."""
    return next(list_files(folder), None) is None


def delete_folder(folder: Location) -> None:
    """Delete a folder and everything below it. A folder that does not exist is no error."""
    with storage_errors(folder):
        if not folder.is_s3:
            shutil.rmtree(folder.uri, ignore_errors=not Path(folder.uri).exists())
            return
        keys = [{"Key": info.location.key} for info in _list_s3(folder)]
        for start in range(0, len(keys), _DELETE_AT_ONCE):
            batch = {"Objects": keys[start : start + _DELETE_AT_ONCE], "Quiet": True}
            s3_client().delete_objects(Bucket=folder.bucket, Delete=batch)


def delete_file(location: Location) -> None:
    """Delete one file. A file that does not exist is no error."""
    with storage_errors(location):
        if location.is_s3:
            s3_client().delete_object(Bucket=location.bucket, Key=location.key)
        else:
            Path(location.uri).unlink(missing_ok=True)
