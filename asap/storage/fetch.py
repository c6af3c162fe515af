"""One object -> its bytes, or a typed failure. botocore retries requests; a body that breaks off is asked for here."""

from __future__ import annotations

import random
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from asap.errors import FetchFailed, ImageTooLarge
from asap.storage.failures import failure_code
from asap.storage.location import Location
from asap.storage.s3 import s3_client


class FetchSettings(BaseModel):
    """How objects are fetched. Nothing here changes what a result says, but for failures."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    threads: int = Field(default=16, ge=1, le=256)
    """Objects one task fetches at a time."""
    decode_threads: int = Field(default=2, ge=1)
    """Pictures one task decodes at a time: each may take up to 9 bytes of memory a pixel."""
    attempts: int = Field(default=4, ge=1)
    """Tries for one object, with exponential backoff and jitter between them."""
    connect_timeout_s: float = Field(default=5, gt=0)
    read_timeout_s: float = Field(default=30, gt=0)


_FIRST_BACKOFF_S = 0.2
_LONGEST_BACKOFF_S = 20.0


@dataclass(frozen=True)
class Fetched:
    """An object's bytes."""

    data: bytes
    version: str | None
    """Version id or ETag, where the store tells it."""
    attempt: int
    """The try that succeeded, from 1."""


@dataclass(frozen=True)
class ByteRange:
    """A part of an object: a member of a tar, for example."""

    offset: int
    length: int


def fetch(uri: str, max_bytes: int, settings: FetchSettings, part: ByteRange | None = None) -> Fetched:
    """Read a file or object, or a part of it. More than `max_bytes` are not read at all.

    Raises `FetchFailed` (not_found, access_denied, throttled, timeout, storage_error) or `ImageTooLarge`.
    """
    location = Location(uri)
    for attempt in range(1, settings.attempts + 1):
        try:
            if location.is_s3:
                return _read_object(location, max_bytes, settings, part, attempt)
            return Fetched(_read_file(Path(uri), max_bytes, part), None, attempt)
        except (ImageTooLarge, FetchFailed):
            raise
        except Exception as error:  # whatever the network or a disk does, it is one row's trouble
            code, retryable = failure_code(error)
            if not retryable or attempt == settings.attempts:
                raise FetchFailed(code, _detail(error), retryable=retryable, attempt=attempt) from error
        time.sleep(random.uniform(0, min(_LONGEST_BACKOFF_S, _FIRST_BACKOFF_S * 2**attempt)))
    raise AssertionError("the last attempt returns or raises")


def _read_object(
    location: Location, max_bytes: int, settings: FetchSettings, part: ByteRange | None, attempt: int
) -> Fetched:
    response, tries = _request(location, settings, part)
    _check_size(response["ContentLength"], max_bytes)
    with response["Body"] as body:
        data = body.read()
    version = response.get("VersionId") or response["ETag"].strip('"')
    return Fetched(data, version, attempt + tries - 1)


def _request(location: Location, settings: FetchSettings, part: ByteRange | None) -> tuple[dict[str, Any], int]:
    """GetObject's response, and how many tries it took; botocore has retried what is worth it."""
    client = s3_client(
        attempts=settings.attempts,
        connect_timeout_s=settings.connect_timeout_s,
        read_timeout_s=settings.read_timeout_s,
    )
    extra = {"Range": f"bytes={part.offset}-{part.offset + part.length - 1}"} if part else {}
    try:
        response = client.get_object(Bucket=location.bucket, Key=location.key, **extra)
    except Exception as error:
        code, retryable = failure_code(error)
        told = (getattr(error, "response", None) or {}).get("ResponseMetadata", {})
        tries = told.get("RetryAttempts", settings.attempts - 1 if retryable else 0) + 1
        raise FetchFailed(code, _detail(error), retryable=retryable, attempt=tries) from error
    return response, response["ResponseMetadata"].get("RetryAttempts", 0) + 1


def _read_file(path: Path, max_bytes: int, part: ByteRange | None) -> bytes:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # a pipe or a device could be read for ever
        raise FetchFailed("not_found", f"{path} is not a regular file", retryable=False)
    _check_size(part.length if part else status.st_size, max_bytes)
    with path.open("rb") as file:
        if part is None:
            return file.read(max_bytes + 1)
        file.seek(part.offset)
        return file.read(part.length)


def _check_size(size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise ImageTooLarge(f"the image has {size} bytes, the limit is {max_bytes}; it was not read")


def _detail(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]
