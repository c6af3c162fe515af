"""A file or object that is read a block at a time, and in which a change is an error."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from asap.errors import FetchFailed, StorageError
from asap.storage.failures import failure_code
from asap.storage.fetch import BeyondEnd, ByteRange, FetchSettings, fetch
from asap.storage.files import file_info
from asap.storage.location import Location

_FIRST_BLOCK, _BLOCK = 2**16, 2**22
"""Bytes of the file that are fetched at a time: few after a jump, and more and more of what is read on."""


class FetchedFile(io.RawIOBase):
    """A file or object that `fetch` reads, a block at a time. A change meanwhile is an error."""

    def __init__(self, uri: str, settings: FetchSettings, listed: str | None) -> None:
        """Find the file. Raises `FetchFailed` if it is not there, or has another version than `listed`."""
        self._location, self._settings, self._listed = Location(uri), settings, listed
        try:
            info = file_info(self._location)
        except StorageError as error:
            cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
            code, retryable = failure_code(cause)
            raise FetchFailed(code, str(error), retryable=retryable) from error
        if info is None:
            raise FetchFailed("not_found", f"{uri} does not exist", retryable=False)
        self._size, self._stamp, self.version = info.size, info.stamp, info.revision
        self._position = self._start = 0
        self._block = b""
        self._ahead = _FIRST_BLOCK
        if listed and listed != self.version:
            if self._location.is_s3:  # a row of results may name the id of a version, which a read returns
                self.read(1)
                self.seek(0)
            if listed != self.version:
                raise self._changed()

    def has_changed(self) -> bool:
        """Return True if the file is no longer the one that was opened, or cannot be found."""
        try:
            info = file_info(self._location)
        except (StorageError, OSError):
            return True
        return info is None or (info.size, info.stamp) != (self._size, self._stamp)

    def _changed(self) -> FetchFailed:
        if self._listed:
            detail = f"the table {self._location} changed since it was listed. Scan it anew as another job."
            return FetchFailed("storage_error", detail, retryable=False)
        detail = f"{self._location} changed while it was read. Leave it as it is, and scan again."
        return FetchFailed("storage_error", detail, retryable=True)

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the offset of the next read."""
        return self._position

    def size(self) -> int:
        """Return the size of the file in bytes."""
        return self._size

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Set the offset of the next read, and return it."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer as far as the file goes."""
        view = memoryview(buffer).cast("B")
        done = 0
        while done < len(view) and self._position < self._size:
            within = self._position - self._start
            if not 0 <= within < len(self._block):
                self._fetch_block()
                within = 0
            piece = self._block[within : within + len(view) - done]
            view[done : done + len(piece)] = piece
            done += len(piece)
            self._position += len(piece)
        return done

    def _fetch_block(self) -> None:
        reads_on = self._position == self._start + len(self._block)
        self._ahead = min(4 * self._ahead, _BLOCK) if reads_on else _FIRST_BLOCK
        length = min(self._ahead, self._size - self._position)
        part = ByteRange(self._position, length)
        try:
            fetched = fetch(self._location.uri, length, self._settings, part)
        except BeyondEnd as error:
            raise self._changed() from error
        if self._location.is_s3:
            is_same = fetched.version is None or not self._stamp or self._is_known(fetched.version)
        else:
            status = Path(self._location.uri).stat()
            is_same = (status.st_size, str(status.st_mtime_ns)) == (self._size, self._stamp)
        if not is_same or len(fetched.data) != length:
            raise self._changed()
        self._start, self._block = self._position, fetched.data

    def _is_known(self, version: str) -> bool:
        """Return True for the version that the first block had: an ETag, or the id of a version."""
        if version != self._stamp and self.version == self._stamp and not self._block:
            self.version = version  # of a bucket that keeps versions
        return version in (self._stamp, self.version)
