"""Reads one file or object into memory, or raises a typed error.

botocore retries a request that fails; this module repeats one whose body breaks off. A file that is not found is looked
for once more, under the other ways to write its name.
"""

from __future__ import annotations

import stat
import time
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, field_validator

from asap.errors import FetchFailed, ImageTooLarge, StorageError
from asap.storage.encoding import decode_bytes, is_gzip
from asap.storage.failures import advice, backoff_s, failure_code
from asap.storage.files import exists
from asap.storage.location import Location
from asap.storage.names import other_forms
from asap.storage.objects import address
from asap.storage.prefixes import is_below, prefix_problem
from asap.storage.s3 import s3_client

_LONGEST_NAME = 120
"""Most characters of a name in a warning."""


class FetchSettings(BaseModel):
    """Parallelism, retries and timeouts of fetching. They change no result, except which fetches fail."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    threads: int = Field(default=16, ge=1, le=256)
    """Objects that one task fetches at a time."""
    decode_threads: int = Field(default=2, ge=1)
    """Pictures that one task decodes at a time. Each may take up to 9 bytes of memory per pixel."""
    attempts: int = Field(default=4, ge=1)
    """Tries for one object, with exponential backoff and jitter between them."""
    connect_timeout_s: float = Field(default=5, gt=0)
    """Seconds to wait for a connection."""
    read_timeout_s: float = Field(default=30, gt=0)
    """Seconds to wait for a response, or for more of its body."""
    only_below: tuple[str, ...] | None = None
    """Prefixes of S3 below which everything lies that is fetched. Anything else fails as `access_denied`, so that a
    manifest cannot name what its owner may not read. None: there is no such limit."""

    @field_validator("only_below")
    @classmethod
    def _check_prefixes(cls, prefixes: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for prefix in prefixes or ():
            if problem := prefix_problem(prefix):
                raise ValueError(f"only_below {prefix!r} {problem}")
        return prefixes

    def allows(self, uri: str) -> bool:
        """Return True if an address may be read."""
        return self.only_below is None or is_below(uri, self.only_below)


@dataclass(frozen=True)
class Fetched:
    """The bytes of a file or object."""

    data: bytes
    version: str | None
    """Version id or ETag of an object; None for a local file."""
    attempt: int
    """The try that succeeded, counted from 1."""
    warnings: tuple[str, ...] = ()
    """Says under which name the file was found, if it is not the one that was given."""


@dataclass(frozen=True)
class ByteRange:
    """A range within a file or object: a member of a tar, for example."""

    offset: int
    """Bytes before the range."""
    length: int
    """Bytes in the range."""


class BeyondEnd(FetchFailed):
    """A range that begins beyond the end of its file. Without this error, it would read as an empty picture."""

    def __init__(self, uri: str, byte_range: ByteRange, size: object, attempt: int) -> None:
        start = f"the range of {byte_range.length} bytes from {byte_range.offset}"
        detail = f"{start} begins beyond the end of {uri}, which has {size} bytes. Correct the range or the file."
        super().__init__("not_found", detail, retryable=False, attempt=attempt)


def fetch(uri: str, max_bytes: int, settings: FetchSettings, byte_range: ByteRange | None = None) -> Fetched:
    """Read a file or object, or a range of it.

    Args:
        uri: a local path or an s3:// address.
        max_bytes: the limit; nothing is read of a larger file, object or range.
        settings: tries and timeouts.
        byte_range: the range to read; None reads everything.

    Raises:
        FetchFailed: with the code not_found, access_denied, throttled, timeout or storage_error.
        ImageTooLarge: for more than `max_bytes`.
    """
    if not settings.allows(uri):
        detail = (
            f"{_short(uri)} is not below {' or '.join(settings.only_below or ())}, which is all that this job may read"
        )
        raise FetchFailed("access_denied", detail, retryable=False)
    try:
        return _fetch(uri, max_bytes, settings, byte_range)
    except FetchFailed as error:
        if isinstance(error, BeyondEnd) or error.code != "not_found" or not (found := _found_forms(uri, settings)):
            raise
        if len(found) > 1:
            names = " and ".join(repr(Location(other).name) for other in found)
            detail = f"{error.detail}. There are {names}; give one of these names."
            raise FetchFailed("not_found", detail, retryable=False, attempt=error.attempt) from error
    fetched = _fetch(found[0], max_bytes, settings, byte_range)
    # Composed and decomposed letters look the same, so the names are shown in ASCII.
    read = f"read {_short(found[0])!a}; there is no {_short(uri)!a}"
    return replace(fetched, warnings=(read,))


def _found_forms(uri: str, settings: FetchSettings) -> list[str]:
    """Return the other ways to write a name under which there is a file."""
    found = []
    for other in other_forms(uri):
        try:
            if settings.allows(other) and exists(Location(other)):
                found.append(other)
        except (StorageError, OSError, ValueError):  # the name that was given is the one to report
            continue
    return found


def _short(uri: str) -> str:
    return uri if len(uri) <= _LONGEST_NAME else f"…{uri[-_LONGEST_NAME:]}"


def _fetch(uri: str, max_bytes: int, settings: FetchSettings, byte_range: ByteRange | None) -> Fetched:
    location = Location(uri)
    for attempt in range(1, settings.attempts + 1):
        try:
            if location.is_s3:
                return _read_object(location, max_bytes, settings, byte_range, attempt)
            return Fetched(_read_file(Path(uri), max_bytes, byte_range), None, attempt)
        except (ImageTooLarge, FetchFailed):  # final: botocore has already retried what may succeed
            raise
        except Exception as error:  # any failure of a network or disk concerns one row only, so it ends no job
            code, retryable = failure_code(error)
            if not retryable or attempt == settings.attempts:
                raise FetchFailed(code, _detail(error), retryable=retryable, attempt=attempt) from error
        time.sleep(backoff_s(attempt))
    raise AssertionError("the last attempt returns or raises")


def _read_object(
    location: Location, max_bytes: int, settings: FetchSettings, byte_range: ByteRange | None, attempt: int
) -> Fetched:
    client = s3_client(
        attempts=settings.attempts,
        connect_timeout_s=settings.connect_timeout_s,
        read_timeout_s=settings.read_timeout_s,
    )
    extra = {}
    if byte_range:
        extra = {"Range": f"bytes={byte_range.offset}-{byte_range.offset + byte_range.length - 1}"}
    # Opening the response is retried by botocore, so a failure here is final. It still counts each of those tries.
    # botocore does not retry expired credentials; `fetch` does, because they may be renewed meanwhile.
    try:
        response = client.get_object(**address(location), **extra)
    except Exception as error:
        code, retryable = failure_code(error)
        if code == "access_denied" and retryable:
            raise
        failed = getattr(error, "response", None) or {}
        tries = failed.get("ResponseMetadata", {}).get("RetryAttempts", settings.attempts - 1 if retryable else 0) + 1
        if byte_range and failed.get("Error", {}).get("Code") == "InvalidRange":
            size = failed["Error"].get("ActualObjectSize", "fewer")
            raise BeyondEnd(location.uri, byte_range, size, tries) from error
        raise FetchFailed(code, _detail(error), retryable=retryable, attempt=tries) from error

    # The length is checked before the body is read. A body that breaks off raises here, and `fetch` tries again.
    # A store that knows no ranges sends everything, of which no more than the range's end is read.
    skip = byte_range.offset if byte_range and "ContentRange" not in response else 0
    size = response.get("ContentLength", max_bytes + 1 + skip) - skip  # a store may not say it
    if byte_range:
        if skip and size <= 0:
            raise BeyondEnd(location.uri, byte_range, size + skip, attempt)
        size = min(size, byte_range.length)
    if "ContentLength" in response or byte_range:
        _check_size(size, max_bytes)
    with response["Body"] as body:
        while skip and (data := body.read(min(skip, 2**20))):
            skip -= len(data)
        data = body.read(size) if byte_range or "ContentLength" not in response else body.read()
    _check_size(len(data), max_bytes)
    if not byte_range and is_gzip(encoding := response.get("ContentEncoding", "")):
        try:
            data = decode_bytes(data, encoding, max_bytes)
        except ValueError as error:
            raise FetchFailed("storage_error", str(error), retryable=False, attempt=attempt) from error
        if len(data) > max_bytes:
            raise ImageTooLarge(f"the image has more than {max_bytes} bytes, the limit, when it is decompressed")
    version = response.get("VersionId") or response.get("ETag", "").strip('"') or None
    return Fetched(data, version, attempt + response["ResponseMetadata"].get("RetryAttempts", 0))


def _read_file(path: Path, max_bytes: int, byte_range: ByteRange | None) -> bytes:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # reading a pipe or a device could take for ever
        raise FetchFailed("not_found", f"{path} is not a regular file", retryable=False)
    _check_size(byte_range.length if byte_range else status.st_size, max_bytes)
    if byte_range and byte_range.length and byte_range.offset >= status.st_size:
        raise BeyondEnd(str(path), byte_range, status.st_size, 1)
    with path.open("rb") as file:
        if byte_range is None:
            return file.read(max_bytes + 1)  # bounded, because the file may have grown since it was measured
        file.seek(byte_range.offset)
        return file.read(byte_range.length)


def _check_size(size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise ImageTooLarge(f"the image has {size} bytes, the limit is {max_bytes}; it was not read")


def _detail(error: Exception) -> str:
    detail = f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]
    return f"{detail.rstrip('.')}. {hint}" if (hint := advice(error)) else detail
