"""The address of the picture of a pair, and the bytes at it.

A picture is a file or object, a range of its bytes (a member of a tar, or a text in base64), or a value in a table.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, cast

from asap.errors import DecodeFailed, FetchFailed, ImageTooLarge, StorageError
from asap.storage.fetch import BeyondEnd, ByteRange, Fetched, FetchSettings, fetch
from asap.storage.files import file_info
from asap.storage.location import Location
from asap.storage.parquet_values import ColumnReader

BASE64 = "base64"
"""The `image_encoding` of a byte range that holds a text in base64."""
_HEAD = re.compile(rb"data:[^,]{0,200};base64,", re.IGNORECASE)
_JSON_ESCAPE = re.compile(rb"\\(u[0-9a-fA-F]{4}|.)")
_ESCAPES = {b"n": b"", b"r": b"", b"t": b"", b"/": b"/"}
_URL_SAFE = bytes.maketrans(b"-_", b"+/")


@dataclass(frozen=True)
class PictureAddress:
    """Where the bytes of a picture are."""

    uri: str
    """An absolute path or s3://bucket/key: of the picture, or of the file that holds it."""
    byte_range: ByteRange | None = None
    encoding: str | None = None
    """`base64`: the range holds a text. None: it holds the picture."""
    group: int | None = None
    """Row group of a Parquet file. None for a picture that is not in a table."""
    row: int = 0
    """Position in the row group."""
    column: str = ""
    """Path of the leaf of the picture in the table, such as `image.bytes`."""
    version: str | None = None
    """The version of the table or text file when it was listed. None: any version is read."""

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> PictureAddress:
        """Return the address in a row of a manifest or of results, which has a picture.

        Rows of earlier versions lack some of the columns.
        """
        offset, length = row.get("image_offset"), row.get("image_length")
        return cls(
            row["image_uri"],
            None if offset is None or length is None else ByteRange(offset, length),
            row.get("image_encoding"),
            row.get("image_group"),
            row.get("image_row") or 0,
            row.get("image_column") or "",
            row.get("image_version") if row.get("image_group") is not None or row.get("image_encoding") else None,
        )

    @property
    def table(self) -> tuple[str, int, str] | None:
        """The part of a table that the picture is in: file, row group and column. None for one that is in no table."""
        return None if self.group is None else (self.uri, self.group, self.column)

    def __str__(self) -> str:
        if self.group is not None:
            return f"{self.uri}, row group {self.group}, row {self.row}, {self.column}"
        if self.byte_range is not None:
            return f"{self.uri}, {self.byte_range.length} bytes from {self.byte_range.offset}"
        return self.uri


class PictureReader:
    """Fetches pictures by their addresses. It keeps the table of the last one open, where the next may follow.

    Only one thread at a time may fetch pictures of tables.
    """

    def __init__(self, settings: FetchSettings) -> None:
        self._settings = settings
        self._column: ColumnReader | None = None
        self._must_look = False

    def fetch(self, address: PictureAddress, max_bytes: int) -> Fetched:
        """Return the bytes of a picture.

        Args:
            address: The address.
            max_bytes: The limit; no larger picture is read.

        Raises:
            FetchFailed: with the code of the failure, as `asap.storage.fetch` and `ColumnReader` raise it.
            ImageTooLarge: for more than `max_bytes`.
            DecodeFailed: for a text that is not base64.
        """
        # In base64, four characters are three bytes; escapes and line ends take room too.
        most = 2 * max_bytes + 256 if address.encoding == BASE64 else max_bytes
        if address.table is not None:
            if not self._is_open(address):
                self._column = None  # the memory of the former one is free before the next one takes any
                self._column = ColumnReader(*address.table, self._settings, address.version)
            column = cast("ColumnReader", self._column)
            if column.address != address.table:
                column = self._column = column.beside(*address.table[1:])
            return self._decoded(column.read(address.row, most), address, max_bytes)
        return self._decoded(self._fetch_listed(address, most), address, max_bytes)

    def _fetch_listed(self, address: PictureAddress, most: int) -> Fetched:
        """Return the bytes of a file or of a range. Raises `FetchFailed` if the file changed since it was listed."""
        location, version = Location(address.uri), address.version
        try:
            fetched = fetch(address.uri, most, self._settings, address.byte_range)
            if version is None or fetched.version == version:
                return fetched
            # A local file has a revision, and a store that keeps versions answers a read with the id of one.
            with suppress(StorageError, OSError):
                info = file_info(location)
                if info is not None and info.revision == version:
                    return fetched if location.is_s3 else replace(fetched, version=version)
        except BeyondEnd:
            if version is None:
                raise
        detail = f"the table {location} changed since it was listed. Scan it anew as another job."
        raise FetchFailed("storage_error", detail, retryable=False)

    @staticmethod
    def _decoded(fetched: Fetched, address: PictureAddress, max_bytes: int) -> Fetched:
        if address.encoding != BASE64:
            return fetched
        return replace(fetched, data=decode_base64(fetched.data, max_bytes))

    def _is_open(self, address: PictureAddress) -> bool:
        """Return True if the table of an address is open, and is still the file that was opened."""
        column, must_look, self._must_look = self._column, self._must_look, False
        if column is None or (column.address[0], column.version) != (address.uri, address.version):
            return False
        return not must_look or (column.failure is None and not column.has_changed())

    def look_again(self) -> None:
        """Let the next fetch open the table again if it could not be read, or if it has changed."""
        self._must_look = True

    def with_settings(self, settings: FetchSettings) -> PictureReader:
        """Return this reader, or a new one if its settings are others."""
        return self if settings == self._settings else PictureReader(settings)


def decode_base64(text: bytes, max_bytes: int) -> bytes:
    """Return the bytes that a text in base64 stands for, as it is written in JSON or CSV.

    White space, the escapes of JSON and the head of a data: URI are passed over. The alphabet for URLs and texts
    without padding are read too. Raises `DecodeFailed` for anything else, and `ImageTooLarge`.
    """
    if b"\\" in text:
        text = _JSON_ESCAPE.sub(_unescape, text)
    text = text.strip()
    if head := _HEAD.match(text):
        text = text[head.end() :]
    text = text.translate(_URL_SAFE, b" \t\r\n").rstrip(b"=")
    if len(text) * 3 // 4 > max_bytes:
        raise ImageTooLarge(f"the image has {len(text) * 3 // 4} bytes, the limit is {max_bytes}; it was not decoded")
    try:
        return base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except binascii.Error as error:
        shown = text[:40].decode("ascii", "replace")
        raise DecodeFailed(f"the picture is a text that is not base64: {shown!r}…") from error


def _unescape(match: re.Match[bytes]) -> bytes:
    escaped = match[1]
    if len(escaped) == 5:
        code = int(escaped[1:], 16)
        return bytes([code]) if code < 128 else b"?"
    return _ESCAPES.get(escaped, b"?")
