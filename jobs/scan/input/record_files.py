"""Records of JSON, JSON lines, CSV and Parquet files, one at a time: memory is bounded by one record.

Each record comes with its line, from 0: the line in a text file, else the position among the records. A record that
cannot be read is replaced by a `RowError`. A file that cannot be read any further raises `InputNotFound`.

In CSV, a quote that is not closed takes the following lines into its record; each of them is a `RowError` too. If
another stray quote closes it, and the record has as many cells as the header, it looks like a text of several lines and
is read as one.
"""

from __future__ import annotations

import codecs
import csv
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple, cast

import pyarrow as pa
import pyarrow.parquet as pq

from asap.storage.failures import storage_errors
from asap.storage.files import open_read, open_seekable
from asap.storage.location import Location
from jobs.errors import InputNotFound

MAX_RECORD_BYTES = 2**20
_CHUNK = 2**16
_FILE = re.compile(
    r"(?P<stem>.+)\.(?P<kind>json|jsonl|ndjson|csv|parquet)(?P<packed>\.gz|\.bz2|\.zst)?", re.IGNORECASE | re.DOTALL
)
_SPACE = re.compile(r"[\s,]*")
_UNDECODED = re.compile("[\udc80-\udcff]")
"""Characters that `surrogateescape` makes of bytes that are not UTF-8; they mark the record that holds such bytes."""
_DECODER = json.JSONDecoder()
_ANY_INTEGER = json.JSONDecoder(parse_int=str)
"""The decoder that finds the end of a record with an integer of more digits than Python converts."""


class RowError(Exception):
    """The reason why one record cannot be understood."""


Record = dict[str, Any] | RowError

Needed = Sequence[Sequence[str]]
"""Groups of columns. A table must have at least one column of each group."""
PICTURES: Needed = (("image", "image_uri"),)
PAIRS: Needed = (*PICTURES, ("text",))


class RecordFile(NamedTuple):
    """The parts of the name of a file of records."""

    stem: str
    kind: str
    """json, jsonl, csv or parquet."""
    packed: str
    """The suffix of the compression, or an empty string."""


def record_file(name: str) -> RecordFile | None:
    """Return the parts of the name of a file that `read_records` reads; None for a file of another kind."""
    match = _FILE.fullmatch(name)
    if match is None:
        return None
    kind = match["kind"].lower()
    return RecordFile(match["stem"], "jsonl" if kind == "ndjson" else kind, match["packed"] or "")


def read_records(location: Location, kind: str, needed: Needed = PAIRS) -> Iterator[tuple[int, Record]]:
    """Yield the records of a file, with their lines.

    Args:
        location: The file, which may be compressed.
        kind: json, jsonl, csv or parquet, as in `RecordFile`.
        needed: Columns that a table must have.
    """
    try:
        with storage_errors(location):
            yield from _parquet(location, needed) if kind == "parquet" else _text_records(location, kind, needed)
    except pa.ArrowException as error:
        raise InputNotFound(f"{location} cannot be read as {kind}: {error}") from error


def _text_records(location: Location, kind: str, needed: Needed) -> Iterator[tuple[int, Record]]:
    with open_read(location) as file:
        if kind == "csv":
            yield from _csv(file, location, needed)
        elif kind == "json" and _starts_an_array(file):
            yield from _json_array(file, location)
        else:
            for number, line in _lines(file):
                yield number, line if isinstance(line, RowError) else _json_record(line)


def _starts_an_array(file: BinaryIO) -> bool:
    head: bytes = file.peek(1)  # type: ignore[attr-defined]  # returns all that is buffered, not one byte
    return head.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes | RowError]]:
    """Yield the lines that are not blank; a line that is too long is an error, and is not held in memory."""
    number = 0
    while line := file.readline(MAX_RECORD_BYTES + 1):
        if len(line) > MAX_RECORD_BYTES and not line.endswith(b"\n"):
            yield number, RowError(f"the line is longer than {MAX_RECORD_BYTES} bytes")
            while (rest := file.readline(MAX_RECORD_BYTES)) and not rest.endswith(b"\n"):
                pass
        elif line.strip():
            yield number, line
        number += 1


def _json_record(line: bytes) -> Record:
    try:
        return _checked(json.loads(line.removeprefix(codecs.BOM_UTF8).decode()))
    except UnicodeDecodeError as error:
        return RowError(f"the line is not UTF-8: {error}")
    except (ValueError, RecursionError) as error:
        return RowError(f"the line is not JSON: {error}")


def _checked(value: Any) -> Record:
    return (
        value if isinstance(value, dict) else RowError(f"the record is of type {type(value).__name__}, not an object")
    )


def _json_array(file: BinaryIO, location: Location) -> Iterator[tuple[int, Record]]:
    """Yield the elements of one array, parsed as they come; nothing after broken syntax can be understood."""
    reader = codecs.getreader("utf-8-sig")(file, "surrogateescape")
    buffer, at, number = "", 0, 0
    try:
        while not buffer:
            buffer = reader.read(_CHUNK).lstrip()
        at = 1  # after the bracket
        while True:
            space = _SPACE.match(buffer, at)
            at = space.end() if space else at
            if buffer.startswith("]", at):
                _check_end(buffer[at + 1 :], reader)
                return
            record, end = _element(buffer, at)
            if record is None:
                # The record goes on beyond the buffer. Drop what is read, append a chunk, and try again.
                more = reader.read(_CHUNK)
                if not more or len(buffer) - at > MAX_RECORD_BYTES:
                    raise ValueError(f"record {number} does not end, or is longer than {MAX_RECORD_BYTES} characters")
                buffer, at = buffer[at:] + more, 0
            else:
                yield number, record
                at, number = end, number + 1
    except (ValueError, RecursionError) as error:
        raise InputNotFound(f"{location} is broken after {number} records: {error}. Repair the file.") from error


def _check_end(rest: str, reader: codecs.StreamReader) -> None:
    """Raise `ValueError` if anything but white space follows the array."""
    while not rest.strip():
        rest = reader.read(_CHUNK)
        if not rest:
            return
    raise ValueError(f"{rest.strip()[:20]!r} follows the end of the array")


def _element(buffer: str, at: int) -> tuple[Record | None, int]:
    """Return a record and where it ends; None for the record if the buffer may stop within it."""
    try:
        value, end = _parse(buffer, at)
    except json.JSONDecodeError:
        return None, at
    if not isinstance(value, dict | RowError) and end == len(buffer):
        return None, at  # a number that is cut in two parses as a shorter number
    if _UNDECODED.search(buffer, at, end):
        return RowError("the record is not UTF-8"), end
    return value if isinstance(value, RowError) else _checked(value), end


def _parse(buffer: str, at: int) -> tuple[Any, int]:
    """Return the value at a position and where it ends; raise `JSONDecodeError` for broken syntax."""
    try:
        return _DECODER.raw_decode(buffer, at)
    except json.JSONDecodeError:
        raise
    except ValueError as error:  # an integer that is too long: the syntax is sound, so only its record is lost
        return RowError(f"the record is not read: {error}"), _ANY_INTEGER.raw_decode(buffer, at)[1]


def _csv(file: BinaryIO, location: Location, needed: Needed) -> Iterator[tuple[int, Record]]:
    reader = csv.reader(_csv_lines(file), strict=True)  # strict: a stray quote is an error, not a part of the text
    try:
        header = next(reader, [])
    except csv.Error as error:
        raise InputNotFound(f"the header of {location} is not CSV with lines that end in \\n: {error}") from error
    _check_columns(header, location, needed)
    while True:
        first = reader.line_num
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield from _broken_lines(first, reader.line_num, f"the line is not CSV: {error}")
            continue
        if cells and len(cells) != len(header):
            problem = f"the line has {len(cells)} cells, the header {len(header)}"
            yield from _broken_lines(first, reader.line_num, problem)
        elif cells:
            if any(map(_UNDECODED.search, cells)):
                yield first, RowError("the line is not UTF-8")
            else:
                yield first, {name: cell or None for name, cell in zip(header, cells, strict=True)}


def _broken_lines(first: int, end: int, problem: str) -> Iterator[tuple[int, RowError]]:
    """Yield an error for each line of a record whose quotes may be misplaced."""
    yield first, RowError(problem)
    for line in range(first + 1, end):
        yield line, RowError(f"the line was read as a part of line {first}, whose quotes are wrong: {problem}")


def _csv_lines(file: BinaryIO) -> Iterator[str]:
    """Decode the lines without failing: a line that is not UTF-8 is the error of its own record only."""
    first = True
    while line := file.readline(MAX_RECORD_BYTES):
        yield (line.removeprefix(codecs.BOM_UTF8) if first else line).decode(errors="surrogateescape")
        first = False


def _parquet(location: Location, needed: Needed) -> Iterator[tuple[int, Record]]:
    file = pq.ParquetFile(open_seekable(location))
    _check_columns(file.schema_arrow.names, location, needed)
    number = 0
    for batch in file.iter_batches(batch_size=1024):
        for record in _parquet_records(batch):
            yield number, record
            number += 1


def _parquet_records(batch: pa.RecordBatch) -> Sequence[Record]:
    """Return the rows of a batch; a row with a value that Python does not have, such as the year 10000, is an error."""
    try:
        return cast("list[Record]", batch.to_pylist())
    except (ValueError, OverflowError) as error:
        if len(batch) == 1:
            return [RowError(f"the row is not read: {error}")]
        # The error names no row, so the rows are converted one by one.
        return [record for row in range(len(batch)) for record in _parquet_records(batch.slice(row, 1))]


def _check_columns(names: list[str], location: Location, needed: Needed) -> None:
    """Raise `InputNotFound` if a table has no column of one of the groups."""
    if missing := [" or ".join(map(repr, group)) for group in needed if not set(group) & set(names)]:
        found = f"has the columns {', '.join(map(repr, names))}" if names else "is empty"
        raise InputNotFound(f"{location} {found}; it needs a column {', and a column '.join(missing)}")
