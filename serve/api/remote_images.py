"""What lies elsewhere: pictures that a request names by an allowed address, and model folders at s3://."""

from __future__ import annotations

import functools
import re
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote, urlsplit, urlunsplit

from asap.errors import CheckpointError, ImageTooLarge
from serve.errors import Refused

_TIMEOUT_S = 10
_PART = 2**16
"""Bytes that are read at once."""
_ODD = re.compile(r"[\x00-\x20\x7f\\]")


def redacted(uri: str) -> str:
    """An address without what may be secret in it: credentials and query, where signatures are."""
    try:
        parts = urlsplit(uri)
    except ValueError:
        return "an address that cannot be read"
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "…" if parts.query else "", ""))


def check_allowed(uri: str, prefixes: Sequence[str]) -> None:
    """Raise `Refused` (403) unless an address begins as one of the prefixes does, and does not climb out of it."""
    try:
        uri.encode()
        parts = urlsplit(uri)
    except ValueError:
        raise Refused(400, "uri_invalid", "the address cannot be read", param="uri") from None
    climbs = ".." in unquote(unquote(parts.path)).replace("\\", "/").split("/")
    if climbs or _ODD.search(uri) or not any(uri.startswith(prefix) for prefix in prefixes):
        message = f"pictures are not fetched from {redacted(uri)}; send the picture itself"
        raise Refused(403, "uri_not_allowed", message, param="uri")


def fetch(uri: str, prefixes: Sequence[str], max_bytes: int, within_s: float) -> bytes:
    """The bytes at an allowed address; no redirect is followed. Raises `Refused` or `ImageTooLarge`."""
    check_allowed(uri, prefixes)
    end = time.monotonic() + within_s
    try:
        data = (_object if uri.startswith("s3://") else _page)(uri, max_bytes + 1, end)
    except _failures() as error:  # whose text may hold the whole address, so it is not told
        what = getattr(error, "code", None) or type(error).__name__
        raise Refused(400, "uri_unreadable", f"{redacted(uri)} cannot be read: {what}", param="uri") from None
    if len(data) > max_bytes:
        raise ImageTooLarge(f"the image has more than {max_bytes} bytes, which is the limit; shrink it")
    return data


def _failures() -> tuple[type[Exception], ...]:
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    return (OSError, ValueError, HTTPException, Boto3Error, BotoCoreError, ClientError)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str) -> None:
        return None  # the answer becomes an HTTPError


def _page(uri: str, most: int, end: float) -> bytes:
    opener = urllib.request.build_opener(_NoRedirects)
    with opener.open(uri, timeout=_TIMEOUT_S) as response:
        return _first(most, response.read1, end)


def _object(uri: str, most: int, end: float) -> bytes:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    with _s3().get_object(Bucket=bucket, Key=key)["Body"] as body:
        return _first(most, body.read, end)


def _first(most: int, read: Callable[[int], bytes], end: float) -> bytes:
    """So many bytes at most. A time limit of each read alone would let a drip last for ever."""
    data = bytearray()
    while len(data) < most and (part := read(min(_PART, most - len(data)))):
        data += part
        if time.monotonic() > end:
            raise TimeoutError
    return bytes(data)


@functools.cache
def _s3() -> Any:
    import boto3
    from botocore.config import Config

    return boto3.client("s3", config=Config(connect_timeout=5, read_timeout=_TIMEOUT_S, retries={"mode": "standard"}))


def local_model(model: str) -> str:
    """A model folder of this machine; one at s3:// is copied to a temporary folder. Raises `CheckpointError`."""
    if not model.startswith("s3://"):
        return model
    bucket, _, prefix = model.removeprefix("s3://").rstrip("/").partition("/")
    below = f"{prefix}/" if prefix else ""
    try:
        pages = _s3().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=below)
        keys = [item["Key"] for page in pages for item in page.get("Contents", ())]
        names = [key.removeprefix(below) for key in keys if not key.endswith("/")]
        if not names:
            raise CheckpointError(f"model folder {model} is empty or does not exist")
        # All are checked before the first is written.
        for name in names:
            _check_name(model, name)
        folder = Path(tempfile.mkdtemp(prefix="asap-model-"))
        for name in names:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            _s3().download_file(bucket, below + name, str(target))
    except _failures() as error:
        raise CheckpointError(f"model folder {model} cannot be read: {error}") from error
    return str(folder)


def _check_name(model: str, name: str) -> None:
    """Raise `CheckpointError` for a name that a file system follows out of a folder, or reads as another name."""
    if "\0" in name or not {"", ".", ".."}.isdisjoint(name.split("/")):
        raise CheckpointError(
            f"model folder {model} cannot be copied, an object's name is no path below a folder: {name!r}. "
            "Rename or delete the object."
        )
