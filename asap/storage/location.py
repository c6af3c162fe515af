"""Names of files and folders: local paths and s3:// addresses."""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from asap.errors import StorageError

_SCHEME = re.compile(r"^([a-zA-Z][a-zA-Z0-9+.-]+)://")


@dataclass(frozen=True, order=True)
class Location:
    """The name of a file or folder: an absolute path, or an object or prefix of S3."""

    uri: str
    """An absolute path, or s3://bucket/key, without a slash at its end."""

    @classmethod
    def parse(cls, text: str | Path) -> Self:
        """Parse a location that a person typed: a path, file:// or s3://.

        Raises `StorageError` for any other scheme, and for an s3:// address without a bucket.
        """
        text = str(text)
        scheme = _SCHEME.match(text)
        if scheme is None:
            return cls(str(Path(text).expanduser().absolute()))
        if scheme[1].lower() == "file":
            return cls(str(Path(text[scheme.end() :]).absolute()))
        if scheme[1].lower() != "s3":
            raise StorageError(f"{text!r} has the unknown scheme {scheme[1]}://. Use a local path, file:// or s3://.")
        location = cls("s3://" + text[scheme.end() :].rstrip("/"))
        if not location.bucket:
            raise StorageError(f"{text!r} names no bucket. Write s3://BUCKET/KEY.")
        return location

    @property
    def is_s3(self) -> bool:
        """True if this is an object or prefix of S3."""
        return self.uri.startswith("s3://")

    @property
    def bucket(self) -> str:
        """The bucket of an s3:// location."""
        return self.uri[5:].partition("/")[0]

    @property
    def key(self) -> str:
        """The key of an s3:// location; empty for the bucket itself."""
        return self.uri[5:].partition("/")[2]

    @property
    def name(self) -> str:
        """The last part of the path. For a bucket, its name."""
        return posixpath.basename(self.uri)

    @property
    def parent(self) -> Location:
        """The folder that holds this location. A bucket and the root directory are their own parents."""
        if self.is_s3:
            return Location(f"s3://{self.bucket}/{posixpath.dirname(self.key)}".rstrip("/"))
        return Location(posixpath.dirname(self.uri))

    def __truediv__(self, name: str) -> Location:
        return Location(f"{self.uri.rstrip('/')}/{name}")

    def __str__(self) -> str:
        return self.uri


@dataclass(frozen=True)
class FileInfo:
    """A file in a listing."""

    location: Location
    size: int
    """Bytes."""
    stamp: str
    """A value that changes with the file: an object's ETag, a local file's modification time in nanoseconds."""

    @property
    def version(self) -> str | None:
        """The ETag of an object; None for a local file, which has no version."""
        return self.stamp if self.location.is_s3 else None
