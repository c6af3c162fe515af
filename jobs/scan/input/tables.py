"""Tables: files of records (JSON, JSON lines, CSV, Parquet), read as manifest rows.

A record has `image` or `image_uri`, `text`, and may have `custom_id` or `id`, `image_offset` with `image_length`
(bytes of a larger file), and `metadata`. Without `metadata`, its other fields are the metadata. A record that cannot be
understood becomes a row with a `row_error`; none is left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

from asap.storage.files import exists
from asap.storage.location import Location
from jobs.errors import InputNotFound
from jobs.scan.input.addresses import image_uri, is_relative
from jobs.scan.input.manifest import ManifestRow
from jobs.scan.input.record_files import PAIRS, PICTURES, Needed, Record, RowError, read_records

_MOST_BYTES = 2**63 - 1
"""Largest end of a byte range that the manifest can hold."""
_KNOWN_FIELDS = {"custom_id", "id", "image", "image_uri", "image_offset", "image_length", "text", "metadata"}


@dataclass(frozen=True)
class TableOptions:
    """Everything that a person may say about a table, for tables that would be refused or misread without it."""

    image_column: str | None = None
    """Name of the column of pictures. None: found by its name."""
    text_column: str | None = None
    """Name of the column of texts. None: found by its name."""
    id_column: str | None = None
    """Name of the column of the caller's names for rows. None: found by its name."""
    encoding: str | None = None
    """Encoding of a text file, such as `cp1252`. None: found from its bytes."""
    delimiter: str | None = None
    """Character between two cells of a CSV file. None: found from its first lines."""
    texts: bool = True
    """True if the table needs a column of texts. A captioner makes texts of its own."""


NO_OPTIONS = TableOptions()
"""The options of a person who says nothing."""


@dataclass(frozen=True)
class Table:
    """A file of records that can be read as manifest rows."""

    location: Location
    kind: str
    """json, jsonl, csv or parquet."""
    needed: Needed
    """Columns that the table must have."""

    def rows(self) -> Iterator[ManifestRow]:
        """Return every row of the file, in its order."""
        return _record_rows(self.location, self.kind, self.needed)

    def describe(self) -> dict[str, Any]:
        """Return what was understood of the file, for `asap plan` and `job.json`."""
        return {"file": self.location.uri, "format": self.kind}


def understand_table(location: Location, kind: str, options: TableOptions = NO_OPTIONS) -> Table:
    """Return a file of records as a table, after a look at its beginning.

    Raises `InputNotFound` for a file that cannot be scanned, such as one without a record or a necessary column.

    Args:
        location: The file, which exists.
        kind: json, jsonl, csv or parquet.
        options: What a person said about the table.
    """
    needed = PAIRS if options.texts else PICTURES
    _check_first(location, kind, needed)
    return Table(location, kind, needed)


def _check_first(location: Location, kind: str, needed: Needed) -> None:
    """Raise `InputNotFound` for a file without a record, and for a .json file whose first record is not JSON.

    A .json file may hold one object a line. If its first line is broken, its lines are probably not meant as records.
    """
    found = next(read_records(location, kind, needed), None)
    if found is None:
        raise InputNotFound(f"{location} holds no record: nothing to scan")
    if kind == "json" and isinstance(found[1], RowError):
        raise InputNotFound(f"{location} is neither an array nor lines of JSON objects: {found[1]}")


def _record_rows(location: Location, kind: str, needed: Needed) -> Iterator[ManifestRow]:
    records = read_records(location, kind, needed)
    # The first records show where relative paths start; the others are read as a stream.
    first = list(islice(records, 20))
    base = _image_base(location, [record for _, record in first if isinstance(record, dict)])
    for line, record in chain(first, records):
        yield _to_row(line, record, base)


def _image_base(manifest: Location, records: list[dict[str, Any]]) -> Location:
    """Return the folder that relative image paths start from.

    It is the manifest's folder. DGM4 keeps its manifests in metadata/, with paths from the data set's root or from the
    folder around it, so for a manifest in metadata/ it is the first folder that has the picture of one of the records.
    """
    folder = manifest.parent
    if folder.name != "metadata":
        return folder
    bases = [folder.parent, folder.parent.parent, folder]
    for record in records:
        name = _first_value(record, "image_uri", "image")
        if not isinstance(name, str) or not is_relative(name):
            continue
        for base in bases:
            if exists(base / name):
                return base
    return bases[0]


def _to_row(row_id: int, record: Record, base: Location) -> ManifestRow:
    row = ManifestRow(row_id=row_id)
    try:
        if isinstance(record, RowError):
            raise record
        _fill(row, record, base)
    except RowError as error:
        row.row_error = str(error)
    return row


def _fill(row: ManifestRow, record: dict[str, Any], base: Location) -> None:
    """Copy the fields of a record into a row; raise `RowError` at the first that cannot be understood."""
    # The name comes first, so that the error of another field is reported under the caller's name.
    name = _first_value(record, "custom_id", "id")
    if name is not None:
        row.custom_id = _to_string(name, "custom_id", str, int)
    if not {"image", "image_uri", "text"} & set(record):
        raise RowError(f"the record has neither image nor text; its fields are {sorted(record)}")
    row.metadata = _metadata(record)
    text = record.get("text")
    if text is not None:
        row.text = _text_or_none(_to_string(text, "text", str))
    row.image_offset, row.image_length = _byte_range(record)
    uri = _first_value(record, "image_uri", "image")
    if uri is not None:
        row.image_uri = image_uri(_to_string(uri, "image", str), base)


def _first_value(record: dict[str, Any], *names: str) -> Any:
    """Return the value of the first of these fields that is neither null nor empty; None without one."""
    return next((record[name] for name in names if record.get(name) not in (None, "")), None)


def _to_string(value: Any, name: str, *types: type) -> str:
    """Return a field's value as a string; raise `RowError` if it is of none of the types."""
    if isinstance(value, bool) or not isinstance(value, types):  # a bool is an int to Python
        raise RowError(f"{name} is {value!r:.100}, of type {type(value).__name__}; it must be a string")
    return str(value)


def _text_or_none(text: str) -> str | None:
    """Return the text unchanged; None if it is only white space."""
    return text if text.strip() else None


def _byte_range(record: dict[str, Any]) -> tuple[int | None, int | None]:
    """Return `image_offset` and `image_length`, checked; both are None for a picture that is a whole file."""
    offset, length = record.get("image_offset"), record.get("image_length")
    if offset is None and length is None:
        return None, None
    try:
        offset, length = int(offset), int(length)  # type: ignore[arg-type]  # CSV has them as strings
    except (TypeError, ValueError, OverflowError) as error:
        raise RowError(f"image_offset {offset!r} and image_length {length!r} are not two whole numbers") from error
    if offset < 0 or length < 1 or offset + length > _MOST_BYTES:
        raise RowError(f"image_offset {offset} and image_length {length} are not bytes of a file")
    return offset, length


def _metadata(record: dict[str, Any]) -> str | None:
    """Return the caller's `metadata`; without it, the fields that mean nothing to the scan."""
    value = record.get("metadata")
    if value is None:
        value = {name: field for name, field in record.items() if name not in _KNOWN_FIELDS} or None
    if value is None or isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False, default=str)
    except RecursionError as error:
        raise RowError("the metadata are nested too deep to be passed through") from error
