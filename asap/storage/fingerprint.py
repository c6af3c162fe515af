"""Fingerprints of input files, so that a job resumes only with the inputs that it began with."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

from asap.storage.failures import storage_errors
from asap.storage.files import open_read
from asap.storage.location import FileInfo, Location


def file_fingerprint(info: FileInfo) -> str:
    """Return a digest of a local file's decompressed bytes, or of an object's ETag. Raises `StorageError`."""
    return _digest([info.stamp.encode()] if info.location.is_s3 else _content(info.location))


def files_fingerprint(files: Iterable[FileInfo]) -> str:
    """Return a digest of the names, sizes, and modification times or ETags of the files of a listing."""
    return _digest(f"{info.location}\0{info.size}\0{info.stamp}\n".encode(errors="surrogateescape") for info in files)


def _content(location: Location) -> Iterator[bytes]:
    with storage_errors(location), open_read(location) as file:
        while data := file.read(2**20):
            yield data


def _digest(chunks: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()[:16]
