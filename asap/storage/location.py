"""Names of files and folders: local paths and s3:// addresses."""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from urllib.parse import unquote

from asap.errors import StorageError

_SCHEME = re.compile(r"^([a-zA-Z][a-zA-Z0-9+.-]+)://")
_S3_SCHEMES = {"s3", "s3a", "s3n"}
"""Schemes of S3; Hadoop calls it s3a and s3n."""
_WINDOWS = re.compile(r"[a-zA-Z]:[\\/]|\\\\")
_ACCESS_POINT = re.compile(r"arn:[^/]*:(accesspoint|outpost)([/:])[^/:]+([/:]accesspoint[/:][^/:]+)?")
"""The beginning of an s3:// address whose bucket is the ARN of an access point, which has a slash in it."""
_VERSION = re.compile(r"\?versionId=([^/?&#]+)$")
_OTHER_STORES = {
    "gs": "Google Cloud Storage is read as s3://BUCKET/KEY with AWS_ENDPOINT_URL=https://storage.googleapis.com and "
    "HMAC keys.",
    "hf": "Download the data set first, with `hf download`, and give its folder.",
    "http": "Download the files first, and give their folder.",
} | dict.fromkeys(
    ("az", "abfs", "abfss", "wasb", "wasbs", "adl"),
    "Azure Blob Storage does not speak S3. Copy the files to a folder or to S3 first.",
)


def read_schemes(scheme: str) -> str:
    """Return what to do about an address of a scheme that is not read, in full sentences."""
    scheme = scheme.lower()
    advice = _OTHER_STORES.get("http" if scheme == "https" else scheme, "Copy the files to a folder or to S3 first.")
    return f"Local paths, file:/// and s3:// are read. {advice}"


def without_query(text: str) -> str:
    """Return an address without its query, for a message. The query may hold a signature or a key."""
    address, mark, _ = text.partition("?")
    return f"{address}?…" if mark and ":/" in address else text


def is_windows_path(text: str) -> bool:
    """Return True for a path with a drive or a share, which no other system has."""
    return _WINDOWS.match(text) is not None


def is_file_uri(text: str) -> bool:
    """Return True for file:///PATH, and for file:/PATH, as Java writes it."""
    return text[:6].lower() == "file:/"


def file_uri_path(uri: str) -> str:
    """Return the path of a file:// address, in which characters may be written as %XX.

    Raises `ValueError` if it names another machine.
    """
    path = uri[5:]
    if path.startswith("//"):
        host, slash, path = path[2:].partition("/")
        if host.lower() not in ("", "localhost") or not slash:
            raise ValueError(f"{uri!r:.200} names the machine {host!r}. Write file:///PATH, or the path alone.")
        path = f"/{path}"
    return unquote(path, errors="surrogateescape")


def s3_uri(text: str) -> str | None:
    """Return the s3:// address that a text is, whatever the case of its scheme; None for anything else."""
    scheme = _SCHEME.match(text)
    if scheme is None or scheme[1].lower() not in _S3_SCHEMES:
        return None
    return f"s3://{text[scheme.end() :]}"


@dataclass(frozen=True, order=True)
class Location:
    """The name of a file or folder: an absolute path, or an object or prefix of S3."""

    uri: str
    """An absolute path, or s3://bucket/key, without a slash at its end."""

    @classmethod
    def parse(cls, text: str | Path) -> Self:
        """Parse a location that a person typed: a path, file:// or s3://.

        Raises `StorageError` for any other scheme, for a path of Windows, and for an s3:// address without a bucket.
        """
        text = str(text)
        if is_windows_path(text):
            raise StorageError(f"{text!r} is a path of Windows. Write the path as this machine has it, with slashes.")
        if is_file_uri(text):
            try:
                return cls(file_uri_path(text).rstrip("/") or "/")
            except ValueError as error:
                raise StorageError(str(error)) from error
        scheme = _SCHEME.match(text)
        if scheme is None:
            return cls(str(Path(text).expanduser().absolute()))
        uri = s3_uri(text)
        if uri is None:
            raise StorageError(
                f"{without_query(text)!r} has the unknown scheme {scheme[1]}://. {read_schemes(scheme[1])}"
            )
        location = cls(uri.rstrip("/"))
        if not location.bucket:
            raise StorageError(f"{text!r} names no bucket. Write s3://BUCKET/KEY.")
        return location

    @property
    def is_s3(self) -> bool:
        """True if this is an object or prefix of S3."""
        return self.uri.startswith("s3://")

    @property
    def bucket(self) -> str:
        """The bucket of an s3:// location, which may be the ARN of an access point."""
        rest = self.uri[5:]
        access_point = _ACCESS_POINT.match(rest)
        return access_point[0] if access_point else rest.partition("/")[0]

    @property
    def key(self) -> str:
        """The key of an s3:// location, without a version; empty for the bucket itself."""
        return _VERSION.sub("", self.uri[5 + len(self.bucket) + 1 :])

    @property
    def version_id(self) -> str | None:
        """The version in an s3:// location that ends in ?versionId=VERSION; None for the latest."""
        version = _VERSION.search(self.uri) if self.is_s3 else None
        return version[1] if version else None

    @property
    def name(self) -> str:
        """The last part of the path, without a version. For a bucket, its name."""
        return posixpath.basename((self.key or self.bucket) if self.is_s3 else self.uri)

    @property
    def parent(self) -> Location:
        """The folder that holds this location. A bucket and the root directory are their own parents."""
        if self.is_s3:
            folder, slash, _ = self.key.rpartition("/")  # unlike `dirname`, it keeps the slashes of a//b apart
            return Location(f"s3://{self.bucket}/{folder}" if slash else f"s3://{self.bucket}")
        return Location(posixpath.dirname(self.uri))

    def __truediv__(self, name: str) -> Location:
        return Location(f"{self.uri if self.is_s3 else self.uri.rstrip('/')}/{name}")

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
    is_archived: bool = False
    """True for an object that must be restored from an archive (Glacier) before it can be read."""

    @property
    def version(self) -> str | None:
        """The ETag of an object; None for a local file, which has no version."""
        return self.stamp if self.location.is_s3 else None

    @property
    def revision(self) -> str:
        """The ETag of an object; the size and modification time of a local file."""
        return self.stamp if self.location.is_s3 else f"{self.size}-{self.stamp}"
