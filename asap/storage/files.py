"""Reads, writes, lists, copies, downloads and deletes files, on this machine and in S3 alike.

A reader sees the complete file or no file. Objects go through the client of boto3, local streams and tables through
pyarrow. Objects with `Content-Encoding: gzip` are decompressed as they are read.
"""

from __future__ import annotations

import errno
import io
import json
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa

from asap.errors import StorageError
from asap.storage.encoding import GZIP_MAGIC, decode_bytes, is_gzip
from asap.storage.failures import backoff_s, storage_errors
from asap.storage.location import FileInfo, Location
from asap.storage.objects import (
    ObjectFile,
    ObjectStream,
    ObjectWriter,
    copy_object,
    delete_objects,
    head,
    is_not_implemented,
    list_objects,
    list_pages,
    list_prefixes,
    object_info,
    read_object,
)
from asap.storage.s3 import s3_client

_SMALL_BYTES = 2**22
"""Objects up to this size are read whole."""
_COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
_MOST_DECODED_BYTES = 2**33
"""Most bytes of a table that is stored with Content-Encoding: it is decompressed to a file of this machine first."""
_MOST_DECODED_SMALL = 2**29
"""Most bytes of a small object that is stored with Content-Encoding."""
_EXISTS = {"PreconditionFailed", "ConditionalRequestConflict", "412", "304"}
"""Answers to a write that is conditional: a file of this name exists. 304 is that of some stores, where S3 has 412."""
_CLAIM_TRIES = 8
_CLAIM_LIFE = timedelta(minutes=1)
"""Age at which the claim of another process is taken for one that was left behind."""

_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}
"""Error numbers of a file system without hard links, such as a bucket that is mounted as a folder."""


def exists(location: Location) -> bool:
    """Return True if there is a file or object of this name."""
    if not location.is_s3:
        return Path(location.uri).is_file()
    return file_info(location) is not None


def file_info(location: Location) -> FileInfo | None:
    """Return the size and version of a file, or None if it does not exist."""
    if not location.is_s3:
        path = Path(location.uri)
        if not path.is_file():
            return None
        status = path.stat()
        return FileInfo(location, status.st_size, str(status.st_mtime_ns))
    if not location.key:  # a bucket
        return None
    with storage_errors(location):
        found = head(s3_client(), location)
    return None if found is None else object_info(location, found)


def open_read(location: Location) -> BinaryIO:
    """Open a buffered stream of a file's bytes, decompressed if its name ends in .gz, .bz2 or .zst."""
    codec = next((name for suffix, name in _COMPRESSIONS.items() if location.name.endswith(suffix)), None)
    with storage_errors(location):
        if not location.is_s3:
            return _buffered(pa.OSFile(location.uri), codec)
        source, encoding = ObjectStream.open(s3_client(), location)
        stream = cast("BinaryIO", io.BufferedReader(source, 2**20))
        if is_gzip(encoding) and _is_compressed(stream):
            stream = _buffered(stream, "gzip")
            if codec == "gzip" and not _is_compressed(stream):  # it was compressed once, and both say so
                codec = None
        return _buffered(stream, codec) if codec else stream


def _buffered(stream: Any, codec: str | None) -> BinaryIO:
    return cast("BinaryIO", io.BufferedReader(pa.CompressedInputStream(stream, codec) if codec else stream, 2**20))


def _is_compressed(stream: BinaryIO) -> bool:
    return cast("io.BufferedReader", stream).peek(len(GZIP_MAGIC)).startswith(GZIP_MAGIC)


def _find(location: Location) -> tuple[FileInfo, str]:
    """Return an object that exists, and its Content-Encoding."""
    if (found := head(s3_client(), location)) is None:
        raise FileNotFoundError(f"{location} does not exist")
    return object_info(location, found), found.get("ContentEncoding", "")


def open_seekable(location: Location) -> Any:
    """Open a pyarrow file that can be read at any offset."""
    with storage_errors(location):
        if not location.is_s3:
            return pa.OSFile(location.uri)
        info, encoding = _find(location)
        if info.size <= _SMALL_BYTES and not is_gzip(encoding):
            return pa.BufferReader(read_bytes(location))  # one request, where each column would be one
        if not is_gzip(encoding):
            return pa.PythonFile(ObjectFile(s3_client(), location, info), mode="r")
        return pa.PythonFile(_decompressed_copy(location, info), mode="r")


def _decompressed_copy(location: Location, info: FileInfo) -> BinaryIO:
    """Return a temporary file with the bytes of an object that is stored with Content-Encoding."""
    stream = cast("BinaryIO", io.BufferedReader(ObjectStream(s3_client(), location, info), 2**20))
    with ExitStack() as stack:
        copy = cast("BinaryIO", stack.enter_context(tempfile.TemporaryFile()))
        source = stack.enter_context(_buffered(stream, "gzip") if _is_compressed(stream) else stream)
        while data := source.read(2**20):
            if copy.tell() + len(data) > _MOST_DECODED_BYTES:
                raise StorageError(
                    f"{location} is stored with Content-Encoding gzip and has more than {_MOST_DECODED_BYTES} bytes. "
                    "Store it without."
                )
            copy.write(data)
        source.close()
        copy.seek(0)
        stack.pop_all()
    return copy


def read_bytes(location: Location) -> bytes:
    """Read the whole of a small file."""
    with storage_errors(location):
        if not location.is_s3:
            return Path(location.uri).read_bytes()
        data, encoding = read_object(s3_client(), location)
        try:
            data = decode_bytes(data, encoding, _MOST_DECODED_SMALL)
        except ValueError as error:
            raise StorageError(f"{location} cannot be read: {error}. Store it anew.") from error
        if len(data) > _MOST_DECODED_SMALL:
            raise StorageError(
                f"{location} is stored with Content-Encoding gzip and has more than {_MOST_DECODED_SMALL} bytes. "
                "Store it without."
            )
        return data


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
    with storage_errors(location):
        if not location.is_s3:
            return _create_local(Path(location.uri), data)
        # Claims lie beside the folder, so that one in which nothing was created stays empty.
        claim = Location(f"{location.parent if location.parent.key else location}.claim-{secrets.token_hex(8)}")
        try:
            # Some stores write whatever the condition is: such a one lets the claim be created twice.
            if _put_if_new(claim, b"1") is None or _put_if_new(claim, b"2"):
                return _create_without_condition(location, data, claim)
        finally:
            delete_file(claim)
        return bool(_put_if_new(location, data))


def _put_if_new(location: Location, data: bytes) -> bool | None:
    """Write an object unless one of its name exists, and return True if it was written.

    Return None if the store knows no such write. A first try may write the object although its answer is lost; then the
    second one finds it there.
    """
    from botocore.exceptions import ClientError

    try:
        s3_client().put_object(Bucket=location.bucket, Key=location.key, Body=data, IfNoneMatch="*")
    except ClientError as error:
        metadata = error.response["ResponseMetadata"]
        codes = {str(metadata["HTTPStatusCode"]), error.response["Error"]["Code"]}
        if is_not_implemented(error):
            return None
        if not codes & _EXISTS:
            raise
        return metadata.get("RetryAttempts", 0) > 0 and read_bytes(location) == data
    return True


def _create_without_condition(location: Location, data: bytes, claim: Location) -> bool:
    """Do as `create_bytes` does, in a store that knows no conditions.

    Each process writes a claim, then looks for others. Of two processes at least the one whose claim is later sees
    both, so never do two of them go on. One that sees another withdraws, and tries again.
    """
    for attempt in range(1, _CLAIM_TRIES + 1):
        write_bytes(claim, b"")
        try:
            if exists(location):
                return False
            if _is_only_claim(claim):
                if exists(location):  # whoever wrote it took its claim away after that
                    return False
                write_bytes(location, data)
                return True
        finally:
            delete_file(claim)
        time.sleep(backoff_s(attempt))
    return False


def _is_only_claim(claim: Location) -> bool:
    """Return True if no other process has a claim there. One of long ago was left behind, and does not count."""
    prefix = claim.key.rpartition("-")[0]
    pages = list_pages(s3_client(), Bucket=claim.bucket, Prefix=prefix)
    made = {entry["Key"]: entry["LastModified"] for page in pages for entry in page.get("Contents", ())}
    # The times are those of the store, whose clock all processes share.
    return claim.key in made and all(made[claim.key] - made[key] > _CLAIM_LIFE for key in made.keys() - {claim.key})


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

    If the block raises, the former file stays as it was.
    """
    with storage_errors(location):
        if not location.is_s3:
            with write_atomically(Path(location.uri)) as draft, pa.OSFile(str(draft), "wb") as stream:
                yield OutputStream(location, stream)
            return
        writer = ObjectWriter(s3_client(), location)
        try:
            yield OutputStream(location, writer)
            writer.close()
        finally:
            writer.abort()


def copy_file(source: Location, target: Location) -> None:
    """Copy a file within one store. A reader sees it whole or not at all; the bytes of an object do not leave S3."""
    with storage_errors(target):
        if target.is_s3:
            copy_object(s3_client(), source, target)
            return
        with write_atomically(Path(target.uri)) as draft:
            shutil.copyfile(source.uri, draft)


def download_file(source: Location, target: Path) -> None:
    """Copy a file to this machine. A reader sees it whole or not at all."""
    if not source.is_s3:
        copy_file(source, Location(str(target)))
        return
    # A transfer of boto3 would ask for ranges, and break a file silently if the store sends the whole for each.
    with (
        storage_errors(source),
        closing(ObjectStream.open(s3_client(), source)[0]) as stream,
        write_atomically(target) as draft,
        draft.open("wb") as file,
    ):
        shutil.copyfileobj(stream, file, 2**20)


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


def _list_s3(folder: Location, *, deep: bool) -> Iterator[FileInfo]:
    return list_objects(s3_client(), folder.bucket, f"{folder.key}/" if folder.key else "", deep=deep)


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
                try:
                    status = entry.stat()
                except FileNotFoundError:  # it was deleted meanwhile
                    continue
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
        keys = list_prefixes(s3_client(), folder.bucket, prefix)
        return [Location(f"s3://{folder.bucket}/{key}") for key in keys]


def check_folder_writable(folder: Location) -> None:
    """Raise `StorageError` for a folder of this machine that cannot be written to or made. Nothing is made.

    Folders in S3 are left to `asap.storage.s3.check_writable`, which has to write.
    """
    if folder.is_s3:
        return
    path = Path(folder.uri)
    try:
        nearest = next(parent for parent in (path, *path.parents) if parent.exists())
    except OSError as error:
        raise StorageError(f"{folder} cannot be written: {error.strerror}. Choose another folder.") from error
    if not nearest.is_dir():
        raise StorageError(f"{folder} cannot be written: {nearest} is a file. Choose another folder.")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise StorageError(f"{folder} cannot be written: {nearest} is not yours to write to. Choose another folder.")


def is_empty(folder: Location) -> bool:
    """Return True if there is no file at or below a folder."""
    return next(list_files(folder), None) is None


def delete_folder(folder: Location) -> None:
    """Delete a folder and everything below it. A folder that does not exist is no error."""
    with storage_errors(folder):
        if not folder.is_s3:
            shutil.rmtree(folder.uri, ignore_errors=not Path(folder.uri).exists())
            return
        delete_objects(s3_client(), folder.bucket, [info.location.key for info in _list_s3(folder, deep=True)])


def delete_file(location: Location) -> None:
    """Delete one file. A file that does not exist is no error."""
    with storage_errors(location):
        if location.is_s3:
            s3_client().delete_object(Bucket=location.bucket, Key=location.key)
        else:
            Path(location.uri).unlink(missing_ok=True)
