"""Pictures inside tables: as bytes in a column of a Parquet file, or as a text in base64 in a file of records.

The driver reads neither. A record holds the address of such a picture in its place.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa

from asap.errors import FetchFailed, StorageError
from asap.preprocessing.formats import STARTS
from asap.storage.fetch import FetchSettings
from asap.storage.files import file_info
from asap.storage.location import Location
from asap.storage.parquet_values import ColumnReader
from asap.storage.picture_address import BASE64
from jobs.scan.input.manifest import ManifestRow
from jobs.scan.input.tables.encoding import Encoding, open_text
from jobs.scan.input.tables.record_files import record_file

LONG_RECORD_BYTES = 2**26
"""Largest record of a file with pictures in base64. One at a time is in memory."""
_HEAD_BYTES = 2**18
_LEAST_LENGTH = 64
_BEGINNINGS = "|".join(starts.base64 for starts in STARTS.values())
"""Beginnings of pictures in base64."""
_DATA_URI = re.compile(r"\s*data:[^,]{0,200};base64,", re.IGNORECASE)
_PICTURE = re.compile(rf"\s*(?:{_BEGINNINGS})")
# Possessive, since the classes overlap in white space, and a text from outside must not cost the square of its length.
_ALPHABET = re.compile(r"[A-Za-z0-9+/_\-\s]++=*+\s*+")
_HEAD_PICTURE = re.compile(
    rb"(?:^|[\",;\t|])\s{0,20}(?:data:[^,\s]{0,200};base64,|%s)" % _BEGINNINGS.replace("[/_]", r"(?:\\?/|_)").encode(),
    re.MULTILINE,
)
"""A picture in base64 within a record. The white space is bounded, so that blank lines cost little."""
_JSON_STRING = re.compile(rb'"([^"\\]*(?:\\.[^"\\]*)*)"', re.DOTALL)


@dataclass(frozen=True)
class InlinePicture:
    """The address of a picture that is in the table itself, in the place of the picture."""

    location: Location
    version: str | None = None
    group: int | None = None
    row: int | None = None
    column: str | None = None
    offset: int | None = None
    length: int | None = None
    encoding: str | None = None
    name: str | None = None
    """Name of the picture, which stands beside it."""
    problem: str | None = None
    """Why the picture has no address. None if it has one."""

    def fill(self, row: ManifestRow) -> None:
        """Copy the address into a row."""
        row.image_uri, row.image_version = self.location.uri, self.version
        row.image_group, row.image_row, row.image_column = self.group, self.row, self.column
        row.image_offset, row.image_length, row.image_encoding = self.offset, self.length, self.encoding

    def __str__(self) -> str:
        return "a picture in the table"


@dataclass(frozen=True)
class Leaf:
    """A column of bytes in a Parquet file, which may hold pictures."""

    name: str
    """Name of the column."""
    path: str
    """Path of the bytes in the file."""
    is_list: bool = False
    """True if the rows hold lists, of which the first picture is taken."""


def find_leaves(schema: pa.Schema, binary: Sequence[str]) -> list[Leaf]:
    """Return the columns that may hold pictures: of bytes, of structs with `bytes`, and of lists of such.

    Args:
        schema: The schema of a Parquet file.
        binary: Paths of the values that are bytes.
    """
    leaves = []
    for field in schema:
        kind = field.type
        if is_list := pa.types.is_list(kind) or pa.types.is_large_list(kind):
            kind = kind.value_type
        paths = [path for path in binary if path == field.name or path.startswith(f"{field.name}.")]
        if pa.types.is_struct(kind):
            paths = [path for path in paths if path.endswith(".bytes")]
        elif pa.types.is_nested(kind):
            continue
        if len(paths) == 1:
            leaves.append(Leaf(field.name, paths[0], is_list))
    return leaves


class LeafReader:
    """Makes the addresses of the pictures in a column of bytes."""

    def __init__(self, location: Location, version: str | None, leaf: Leaf) -> None:
        self._location, self._version, self._leaf = location, version, leaf
        self._reader: ColumnReader | None = None

    def group(self, number: int) -> Iterator[InlinePicture | None]:
        """Yield the address of each row of a row group; None for a row without a picture.

        Raises `StorageError` for a file that cannot be read.
        """
        if self._reader is None:
            self._reader = ColumnReader(self._location.uri, number, self._leaf.path, FetchSettings())
        else:
            self._reader = self._reader.beside(number, self._leaf.path)
        try:
            presence = self._reader.presence()
        except FetchFailed as error:
            raise StorageError(error.detail) from error
        version = self._version or self._reader.revision  # a picture of another version is another row's
        for row, is_there in enumerate(presence):
            address = InlinePicture(self._location, version, number, row, self._leaf.path)
            yield address if is_there else None


def looks_like_base64(value: str) -> bool:
    """Return True for a text that is a picture in base64, or a data: URI of one."""
    if len(value) < _LEAST_LENGTH:
        return False
    if _DATA_URI.match(value):
        return True
    return _PICTURE.match(value) is not None and _ALPHABET.fullmatch(value) is not None


def starts_with_pictures(location: Location, encoding: Encoding) -> bool:
    """Return True if the beginning of a text file looks like records with pictures in base64."""
    with open_text(location, encoding) as file:
        return _HEAD_PICTURE.search(file.read(_HEAD_BYTES)) is not None


def problem_of_text(location: Location, encoding: str) -> str | None:
    """Return why the pictures in base64 of a text file have no address; None if they have."""
    file = record_file(location.name)
    if file is not None and file.packed:
        return f"its pictures are in base64, and the file is compressed ({file.packed}). Decompress it."
    if encoding not in ("utf-8", "ascii"):
        return f"its pictures are in base64, and its encoding is {encoding}. Write it as UTF-8."
    return None


class TextPictures:
    """Finds the pictures in base64 within the records of a text file, and puts their addresses in their place."""

    def __init__(self, location: Location, problem: str | None = None) -> None:
        """Remember the file.

        Args:
            location: The file.
            problem: Why no byte range of it is a picture. None if there are such ranges.
        """
        self._location, self._problem = location, problem

    @cached_property
    def _version(self) -> str | None:
        """The version of the file: a picture of another version is another row's."""
        info = file_info(self._location)
        return info.revision if info else None

    def replace(self, record: Mapping[str, Any], raw: bytes, offset: int, *, is_json: bool) -> dict[str, Any]:
        """Return a record with addresses in the place of its pictures.

        Args:
            record: The record.
            raw: The bytes of its lines.
            offset: Position of these bytes in the file.
            is_json: True for JSON, in which texts have quotes and escapes.
        """

        spans = _JsonSpans(raw) if is_json else _PlainSpans(raw)

        def put(value: Any) -> Any:
            if isinstance(value, str):
                return self._address(value, spans, offset) if looks_like_base64(value) else value
            if isinstance(value, dict):
                return {name: put(field) for name, field in value.items()}
            return [put(field) for field in value] if isinstance(value, list) else value

        return {name: put(value) for name, value in record.items()}

    def _address(self, value: str, spans: _JsonSpans | _PlainSpans, offset: int) -> InlinePicture:
        if self._problem is not None:
            return InlinePicture(self._location, problem=self._problem)
        found = spans.find(value)
        if found is None:
            return InlinePicture(self._location, problem="the picture in base64 is not found in its line")
        start, end = found
        return InlinePicture(self._location, self._version, offset=offset + start, length=end - start, encoding=BASE64)


class _PlainSpans:
    """The places of texts in the line of a CSV file, which are looked for in their order."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._at = 0

    def find(self, value: str) -> tuple[int, int] | None:
        """Return where the bytes of a text begin and end; None for a text that is not there."""
        text = value.encode("utf-8", "surrogateescape")
        start = self._raw.find(text, self._at)
        if start < 0:
            return None
        self._at = start + len(text)
        return start, self._at


class _JsonSpans:
    """The places of the strings in a JSON text, between the quotes."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw

    @cached_property
    def _spans(self) -> dict[str, tuple[int, int]]:
        # The strings are decoded once for all pictures of a record, which may be many.
        spans: dict[str, tuple[int, int]] = {}
        for match in _JSON_STRING.finditer(self._raw):
            start, end = match.span(1)
            if end - start < _LEAST_LENGTH:
                continue
            try:
                value = json.loads(match[0].decode()) if b"\\" in match[1] else match[1].decode()
            except ValueError:
                continue
            spans.setdefault(value, (start, end))
        return spans

    def find(self, value: str) -> tuple[int, int] | None:
        """Return where the bytes of a string begin and end; None for a string that is not there."""
        return self._spans.get(value)
