"""Names of files and folders: a local path or an s3:// address."""

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
    """A file or folder (an object or prefix): `uri` is an absolute path, or s3://bucket/key; no slash at its end."""

    uri: str

    @classmethod
    def parse(cls, text: str | Path) -> Self:
        """From what a person types: a path, file:// or s3://. Raises `StorageError` for any other scheme."""
        text = str(text)
        scheme = _SCHEME.match(text)
        if scheme is None:
            return cls(str(Path(text).expanduser().absolute()))
        if scheme[1].lower() == "file":
            return cls(str(Path(text[scheme.end() :]).absolute()))
        if scheme[1].lower() != "s3":
            raise StorageError(f"{text!r} has the scheme {scheme[1]}://; local paths, file:// and s3:// are known")
        location = cls("s3://" + text[scheme.end() :].rstrip("/"))
        if not location.bucket:
            raise StorageError(f"{text!r} names no bucket; write s3://BUCKET/KEY")
        return location

    @property
    def is_s3(self) -> bool:
        """Whether this is an object or prefix of S3."""
        return self.uri.startswith("s3://")

    @property
    def bucket(self) -> str:
        """Of an s3:// location."""
        return self.uri[5:].partition("/")[0]

    @property
    def key(self) -> str:
        """Of an s3:// location; empty for the bucket itself."""
        return self.uri[5:].partition("/")[2]

    @property
    def name(self) -> str:
        """The last part of the path; the bucket's for a bucket."""
        return posixpath.basename(self.uri)

    @property
    def parent(self) -> Location:
        """The folder; a bucket and the root are their own."""
        if self.is_s3:
            return Location(f"s3://{self.bucket}/{posixpath.dirname(self.key)}".rstrip("/"))
        return Location(posixpath.dirname(self.uri))

    def __truediv__(self, name: str) -> Location:
        return Location(f"{self.uri.rstrip('/')}/{name}")

    def __str__(self) -> str:
        return self.uri


@dataclass(frozen=True)
class FileInfo:
    """One file of a listing."""

    location: Location
    size: int
    stamp: str
    """What changes when the file does: an object's ETag, a local file's time of change in nanoseconds."""

    @property
    def version(self) -> str | None:
        """The ETag; None for a local file, whose store tells none."""
        return self.stamp if self.location.is_s3 else None
