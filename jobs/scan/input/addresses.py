"""The addresses of pictures that a manifest names.

A manifest names the pictures to read, so it decides what the job's credentials are used for. Addresses (http://
and the like) are refused. A manifest in S3 may not name local files, because these belong to the workers.

A path is taken as it is written: `~`, variables and %XX stand for themselves. An address file:/// is decoded, as its
standard says. Keys of S3 are not normalised, since a//b and a/b are two objects.
"""

from __future__ import annotations

import posixpath
import re

from asap.storage.location import (
    Location,
    file_uri_path,
    is_file_uri,
    is_windows_path,
    read_schemes,
    s3_uri,
    without_query,
)
from jobs.scan.input.manifest import RowError, is_storable

_SCHEME = re.compile(r"^(data(?=:)|file(?=:/)|[a-zA-Z][\w+.-]*(?=://))", re.IGNORECASE)


def is_relative(name: str) -> bool:
    """Return True for a path that starts from a folder, and not from the root or a scheme."""
    return not name.startswith("/") and not _SCHEME.match(name)


def image_uri(uri: str, base: Location) -> str:
    """Return the absolute path or s3:// address of an image named in a manifest.

    `base` is the folder that relative paths start from. Raises `RowError` for what a manifest may not name: addresses
    of the network, and local files if the manifest lies in S3.
    """
    if not is_storable(uri):
        raise RowError(f"the image {uri!r:.200} has a NUL or a lone surrogate, which no path has")
    if is_windows_path(uri):
        raise RowError(
            f"the image {uri!r:.200} is a path of Windows. Write the path that the workers have, or one that starts "
            "from the manifest's folder, with slashes: images/a.jpg."
        )
    if (object_uri := s3_uri(uri)) is not None:
        location = Location(object_uri)
        if not location.bucket or not location.key:
            missing = "object" if location.bucket else "bucket"
            raise RowError(f"the image {uri!r:.200} names no {missing}. Write s3://BUCKET/KEY.")
        return object_uri
    path = _path(uri)
    if not base.is_s3:
        return posixpath.normpath(posixpath.join(base.uri, path))
    if path.startswith("/"):
        raise RowError(
            f"the image {uri!r:.200} is a local file, and the manifest lies in S3. Use s3:// or relative paths."
        )
    address = base / path
    if posixpath.normpath(address.key).startswith(".."):
        raise RowError(f"the image {uri!r:.200} leaves the bucket {base.bucket}")
    return address.uri


def _path(uri: str) -> str:
    """Return the path that an image is, or the one of a file:// address. Raises `RowError` for any other address."""
    if is_file_uri(uri):
        try:
            path = file_uri_path(uri)
        except ValueError as error:
            raise RowError(f"the image {error}") from error
        if not is_storable(path):
            raise RowError(f"the image {uri!r:.200} has escapes that are not UTF-8, or a NUL, which no path has")
        return path
    if scheme := _SCHEME.match(uri):
        shown = f"{uri!r:.40}…" if scheme[0].lower() == "data" else f"{without_query(uri)!r:.200}"
        raise RowError(f"the image {shown} is an address of {scheme[0]}:. {read_schemes(scheme[0])}")
    return uri
