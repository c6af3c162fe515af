"""The addresses of pictures that a manifest names.

A manifest names the pictures to read, so it decides what the job's credentials are used for. Addresses (http://
and the like) are refused. A manifest in S3 may not name local files, because these belong to the workers.
"""

from __future__ import annotations

import posixpath
import re

from asap.storage.location import Location
from jobs.scan.input.manifest import is_storable
from jobs.scan.input.record_files import RowError

_SCHEME = re.compile(r"^(data(?=:)|[a-zA-Z][\w+.-]*(?=://))")


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
    if uri.startswith("s3://"):
        return uri
    scheme = _SCHEME.match(uri)
    if scheme and scheme[1] != "file":
        shown = f"{uri!r:.40}" if scheme[1] == "data" else f"{uri!r:.200}"
        raise RowError(f"the image {shown} is an address; only paths, file:// and s3:// are read")
    if base.is_s3 and (scheme or uri.startswith("/")):
        raise RowError(
            f"the image {uri!r:.200} is a local file, and the manifest lies in S3. Use s3:// or relative paths."
        )
    path = uri.removeprefix("file://")
    if not base.is_s3:
        return posixpath.normpath(posixpath.join(base.uri, path))
    key = posixpath.normpath(posixpath.join(base.key, path))
    if key.startswith(".."):
        raise RowError(f"the image {uri!r:.200} leaves the bucket {base.bucket}")
    return f"s3://{base.bucket}/{key}"
