"""What changes when an input does, so that a job goes on only with what it began with."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

from asap.storage.failures import storage_errors
from asap.storage.files import file_info, open_read
from asap.storage.location import FileInfo, Location


def file_fingerprint(location: Location) -> str:
    """Of one file: a digest of its bytes, decompressed, or of an object's ETag. Raises `StorageError`."""
    return _digest(_file_parts(location))


def files_fingerprint(files: Iterable[FileInfo]) -> str:
    """Of the files of a listing: a digest of their names, sizes and ages or ETags."""
    return _digest(f"{info.location}\0{info.size}\0{info.stamp}\n".encode(errors="surrogateescape") for info in files)


def _file_parts(location: Location) -> Iterator[bytes]:
    if location.is_s3:
        found = file_info(location)
        yield found.stamp.encode() if found else b""
        return
    with storage_errors(location), open_read(location) as file:
        while data := file.read(2**20):
            yield data


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:16]
