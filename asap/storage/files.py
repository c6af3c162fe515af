"""Local paths and s3:// alike: name a place, read, write, list; writes are seen whole or not at all.

Credentials, region and endpoint are found as every AWS tool finds them (`AWS_PROFILE`, `AWS_ACCESS_KEY_ID`,
`AWS_REGION`, `AWS_ENDPOINT_URL`, an instance's role), on the machine that does the work. Small objects and
listings go through boto3, tables through pyarrow's filesystems.
"""

from __future__ import annotations

import errno
import io
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from asap.errors import StorageError
from asap.storage.failures import failure_code, storage_errors
from asap.storage.location import FileInfo, Location
from asap.storage.s3 import filesystem, s3_client

_DELETE_AT_ONCE = 1000  # S3's limit on the keys of one DeleteObjects

_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}
"""Of a file system that has no hard links, such as a bucket that is mounted as a folder."""


def _local_info(path: Path) -> FileInfo:
    status = path.stat()
    return FileInfo(Location(str(path)), status.st_size, str(status.st_mtime_ns))


def exists(location: Location) -> bool:
    """Whether there is a file or object of this name."""
    if not location.is_s3:
        return Path(location.uri).is_file()
    return bool(location.key) and file_info(location) is not None


def file_info(location: Location) -> FileInfo | None:
    """Size and version of a file, or None where there is no such file."""
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


def open_read(location: Location) -> BinaryIO:
    """A buffered stream of a file's bytes, decompressed if its name ends in .gz, .bz2 or .zst."""
    with storage_errors(location):
        system, path = filesystem(location)
        return cast("BinaryIO", io.BufferedReader(system.open_input_stream(path, compression="detect"), 2**20))


def open_seekable(location: Location) -> Any:
    """A pyarrow file that can be read at any offset."""
    with storage_errors(location):
        system, path = filesystem(location)
        return system.open_input_file(path)


def read_bytes(location: Location) -> bytes:
    """The whole of a small file."""
    with storage_errors(location):
        if not location.is_s3:
            return Path(location.uri).read_bytes()
        body = s3_client().get_object(Bucket=location.bucket, Key=location.key)["Body"]
        return cast("bytes", body.read())


def write_bytes(location: Location, data: bytes) -> None:
    """Write a small file; a reader sees the old one or the new one, never a part."""
    with storage_errors(location):
        if location.is_s3:
            s3_client().put_object(Bucket=location.bucket, Key=location.key, Body=data)
            return
        with _written_beside(Path(location.uri), data) as partial:
            partial.replace(location.uri)


@contextmanager
def _written_beside(path: Path, data: bytes) -> Iterator[Path]:
    """A file of this content in the folder of `path`, under a name of its own; gone after the block, if still there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    partial = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        partial.chmod(0o644)
        yield partial
    finally:
        partial.unlink(missing_ok=True)


def create_bytes(location: Location, data: bytes) -> bool:
    """Write a small file unless there is one of its name; whether it was written. Of several at once, one writes.

    As with `write_bytes`, no reader sees a part.
    """
    from botocore.exceptions import ClientError

    with storage_errors(location):
        if location.is_s3:
            try:
                s3_client().put_object(Bucket=location.bucket, Key=location.key, Body=data, IfNoneMatch="*")
            except ClientError as error:
                if error.response["Error"]["Code"] in ("PreconditionFailed", "ConditionalRequestConflict"):
                    return False
                raise
            return True
        with _written_beside(Path(location.uri), data) as partial:
            try:
                os.link(partial, location.uri)
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                return _claimed(partial, Path(location.uri))
            return True


def _claimed(partial: Path, path: Path) -> bool:
    """As a link would do; an empty file is seen for a moment."""
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        return False
    partial.replace(path)
    return True


@contextmanager
def open_write(location: Location) -> Iterator[BinaryIO]:
    """A stream to write a file of any length, seen when the block ends; on S3 also the part before an error."""
    with storage_errors(location):
        system, path = filesystem(location)
        if location.is_s3:  # a multipart upload: seen when it is completed
            with system.open_output_stream(path) as stream:
                yield stream
            return
        partial = f"{path}.partial"
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with system.open_output_stream(partial) as stream:
            yield stream
        Path(partial).replace(path)


def copy_file(source: Location, target: Location) -> None:
    """Copy a file within one store, seen whole or not at all; the bytes of an object do not leave S3."""
    with storage_errors(target):
        if target.is_s3:
            s3_client().copy({"Bucket": source.bucket, "Key": source.key}, target.bucket, target.key)
            return
        partial = Path(f"{target.uri}.partial")
        partial.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source.uri, partial)
        partial.replace(target.uri)


def target_of_key(folder: Path, source: Location, name: str) -> Path:
    """Return the path in a local folder for the file `name` below `source`.

    A store takes any text as a name; a file system follows `..` out of the folder, and an absolute path too. Raises
    `StorageError` for such a name, and for one that a file system reads as another (`a//b`, `./a`).
    """
    if "\0" in name or not {"", ".", ".."}.isdisjoint(name.split("/")):
        raise StorageError(
            f"object cannot be copied to a local folder, its name is no path below one: {f'{source}/{name}'!r}. "
            "Rename or delete the object."
        )
    return folder / name


def local_targets(source: Location, folder: Path) -> dict[Path, Location]:
    """Map the path that each file below `source` gets in a local folder to the file. Writes nothing.

    Raises `StorageError` if one of them would lie outside the folder.
    """
    prefix = f"{source.uri.rstrip('/')}/"
    files = [info.location for info in list_files(source)]
    return {target_of_key(folder, source, file.uri.removeprefix(prefix)): file for file in files}


def download_folder(source: Location, target: Path) -> int:
    """Copy every file below a folder to this machine, over files of the same names. Returns the number of files.

    Each file is seen whole or not at all. All names are checked before the first file is written: `StorageError` is
    raised for one that leaves `target`.
    """
    targets = local_targets(source, target)
    for path, file in targets.items():
        download_file(file, path)
    return len(targets)


def download_file(source: Location, target: Path) -> None:
    """Copy a file to this machine, seen whole or not at all."""
    if not source.is_s3:
        copy_file(source, Location(str(target)))
        return
    with storage_errors(source):
        target.parent.mkdir(parents=True, exist_ok=True)
        # boto3 writes beside the target and renames, in parts: weights of gigabytes do not pass through memory.
        s3_client().download_file(source.bucket, source.key, str(target))


def list_files(folder: Location) -> Iterator[FileInfo]:
    """Every file below a folder, in an order that keeps names with a common beginning together. Streams.

    Links to folders outside are followed, to each once; those to folders inside and above are not.
    """
    with storage_errors(folder):
        if folder.is_s3:
            yield from _list_s3(folder)
        else:
            yield from _list_local(Path(folder.uri))


def _list_s3(folder: Location) -> Iterator[FileInfo]:
    prefix = f"{folder.key}/" if folder.key else ""
    pages = s3_client().get_paginator("list_objects_v2").paginate(Bucket=folder.bucket, Prefix=prefix)
    for page in pages:
        for entry in page.get("Contents", ()):
            if not entry["Key"].endswith("/"):
                location = Location(f"s3://{folder.bucket}/{entry['Key']}")
                yield FileInfo(location, entry["Size"], entry["ETag"].strip('"'))


def _list_local(folder: Path) -> Iterator[FileInfo]:
    if not folder.exists():  # a prefix without objects is no error either
        return
    root, linked = folder.resolve(), set[Path]()
    for parent, folders, files in os.walk(folder, onerror=_raise, followlinks=True):
        folders[:] = [name for name in sorted(folders) if _is_followed(Path(parent) / name, root, linked)]
        for name in sorted(files):
            path = Path(parent) / name
            if path.is_file():
                yield _local_info(path)


def _is_followed(folder: Path, root: Path, linked: set[Path]) -> bool:
    """Whether the walk goes on into a folder: not by a link to what is in the tree, above it, or linked before."""
    if not folder.is_symlink():
        return True
    target = folder.resolve()
    if target in linked or target.is_relative_to(root) or root.is_relative_to(target):
        return False
    linked.add(target)
    return True


def _raise(error: OSError) -> None:
    raise error


def is_empty(folder: Location) -> bool:
    """Whether there is nothing at or below a folder."""
    return next(list_files(folder), None) is None


def delete_folder(folder: Location) -> None:
    """Delete everything below a folder, and the folder; nothing happens where there is none."""
    with storage_errors(folder):
        if not folder.is_s3:
            shutil.rmtree(folder.uri, ignore_errors=not Path(folder.uri).exists())
            return
        keys = [{"Key": info.location.key} for info in _list_s3(folder)]
        for start in range(0, len(keys), _DELETE_AT_ONCE):
            batch = {"Objects": keys[start : start + _DELETE_AT_ONCE], "Quiet": True}
            s3_client().delete_objects(Bucket=folder.bucket, Delete=batch)


def delete_file(location: Location) -> None:
    """Delete one file; nothing happens where there is none."""
    with storage_errors(location):
        if location.is_s3:
            s3_client().delete_object(Bucket=location.bucket, Key=location.key)
        else:
            Path(location.uri).unlink(missing_ok=True)
