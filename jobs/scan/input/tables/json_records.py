"""Records of JSON files: lines, arrays, and the objects around records that other tools write.

Lines and arrays are read one record at a time (json_stream.py). An object around the records is read into memory whole,
up to a bound (json_shapes.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, BinaryIO

from asap.errors import AsapError
from asap.storage.files import file_info
from asap.storage.location import Location
from jobs.errors import InputNotFound
from jobs.scan.input.manifest import RowError
from jobs.scan.input.tables import record_files
from jobs.scan.input.tables.encoding import find_encoding, open_text
from jobs.scan.input.tables.inline import starts_with_pictures
from jobs.scan.input.tables.json_shapes import find_shape, is_one_record, one_record, roles
from jobs.scan.input.tables.json_stream import DECODER, line_record, line_records, lines, parse_line, stream
from jobs.scan.input.tables.record_files import Record, RepeatedNames
from jobs.scan.input.tables.text_reader import TextReader

MAX_WHOLE_BYTES = 2**29
"""Largest file that is read into memory whole. Python needs about ten times its size."""
_MOST_GROWTH = 32
"""Times its size to which a compressed file may grow. Records with long equal names grow about twenty times."""
_GROWN_BYTES = 2**23
"""Bytes that every compressed file may have, however small it is."""
_LINES_AT_ONCE = 64
_BYTES_AT_ONCE = 2**20
"""Lines, and their bytes, that are parsed by one call."""
_FIRST_LINES = 20
"""Lines that are looked at to find the shape."""


@dataclass
class JsonReader(TextReader):
    """A JSON file whose shape is known."""

    shape: str
    """Words for a person: lines, array, records under 'data', COCO captions, and the like."""
    unpack: Callable[[Any], Iterator[Record]] | None = None
    """Makes records of the whole file. None for lines, arrays and objects in a row."""
    names: Sequence[str] | None = None
    twice: Sequence[str] = ()
    """Names that stand twice in one of the first lines."""

    def describe(self) -> dict[str, Any]:
        """Return what was understood of the file."""
        return super().describe() | {"shape": self.shape}

    def records(self) -> Iterator[tuple[int, Record]]:
        """Yield the records, with their lines, or their numbers if they are no lines."""
        with open_text(self.location, self.encoding) as file:
            if self.unpack is not None:
                yield from enumerate(self.unpack(_load(self.location, file)))
            elif self.shape == "lines":
                yield from self._of_lines(file)
            else:
                yield from stream(file, self.location, array=self.shape == "array")

    def _of_lines(self, file: BinaryIO) -> Iterator[tuple[int, Record]]:
        if not self.holds_pictures:
            yield from _records_of_lines(lines(file, self.limit))
            return
        pictures = self.pictures()
        for number, offset, line in lines(file, self.limit):
            record = line if isinstance(line, RowError) else line_record(line)
            if isinstance(record, dict) and isinstance(line, bytes):
                twice = record.twice if isinstance(record, RepeatedNames) else ()
                record = RepeatedNames(pictures.replace(record, line, len(self.encoding.mark) + offset, is_json=True))
                record.twice = twice
            yield number, record


def _records_of_lines(found: Iterator[tuple[int, int, bytes | RowError]]) -> Iterator[tuple[int, Record]]:
    """Yield the records of lines, which are parsed some at a time."""
    numbers: list[int] = []
    waiting: list[bytes] = []
    size = 0
    try:
        for number, _, line in found:
            if isinstance(line, bytes):
                numbers.append(number)
                waiting.append(line)
                size += len(line)
                if len(waiting) < _LINES_AT_ONCE and size < _BYTES_AT_ONCE:
                    continue
            yield from zip(numbers, line_records(waiting), strict=True)
            numbers, waiting, size = [], [], 0
            if isinstance(line, RowError):
                yield number, line
    except (AsapError, OSError, EOFError):
        yield from zip(numbers, line_records(waiting), strict=True)  # what lies before the break
        raise
    yield from zip(numbers, line_records(waiting), strict=True)


def understand_json(location: Location, kind: str, encoding: str | None = None) -> JsonReader:
    """Return a JSON file with its shape.

    Args:
        location: The file.
        kind: json or jsonl, which names the likely shape.
        encoding: Encoding that a person named. None: found from the bytes.
    """
    found = find_encoding(location, encoding)
    reader = JsonReader(location, found, starts_with_pictures(location, found), "lines")
    _find_reading(reader, kind)
    if reader.holds_pictures and reader.shape != "lines":
        raise InputNotFound(
            f"{location} has its pictures in base64, and is not one object a line, so that they cannot be read one by "
            "one. Write each record on a line of its own, for example with `jq -c '.[]'`."
        )
    return reader


def _find_reading(reader: JsonReader, kind: str) -> None:
    """Find the shape of a JSON file; what is known of the file is kept in its reader."""
    location, found = reader.location, reader.encoding
    with open_text(location, found) as file:
        head: bytes = file.peek(1)  # type: ignore[attr-defined]  # returns all that is buffered, not one byte
        if kind == "json" and head.lstrip().startswith(b"["):
            reader.shape = "array"
            return
        # Lines with pictures are long, so few of them show the shape.
        count = 2 if reader.holds_pictures else _FIRST_LINES
        first = [line for _, _, line in islice(lines(file, reader.limit), count)]
    parsed = [None if isinstance(line, RowError) else parse_line(line) for line in first]
    reader.twice = sorted({name for value in parsed if isinstance(value, RepeatedNames) for name in value.twice})
    objects = sum(isinstance(value, dict) for value in parsed)
    alone = parsed[0] if len(parsed) == 1 else None
    if reader.holds_pictures and isinstance(alone, dict) and roles(alone) == 2 and is_one_record(alone):
        return  # one line, whose picture has an address
    if head.lstrip().startswith(b"["):
        if _first_of_stream(reader, "array") is not None:
            reader.shape = "array"
        return
    if not head.lstrip().startswith(b"{") or 2 * objects >= len(parsed) > 1:
        return
    if isinstance(parsed[0], dict) and len(parsed) > 1:
        return
    # One object: a single line, or printed over many lines.
    if _first_of_stream(reader, "objects in a row", 2) is not None:
        reader.shape = "objects in a row"
        return
    if reader.holds_pictures:
        reader.shape = "one object"  # it is refused, and need not be read whole
        return
    with open_text(location, found) as file:
        # The error of a file of one line is that of its line.
        whole = _load(location, file, broken_is_none=len(parsed) < 2)
    if isinstance(whole, dict):
        reader.shape, reader.unpack = find_shape(location, whole)
        if isinstance(whole, RepeatedNames):
            if reader.unpack is not one_record:
                raise InputNotFound(f"{location} has the name {whole.twice[0]!r:.80} twice in one object. Rename one.")
            reader.twice = whole.twice


def _first_of_stream(reader: JsonReader, shape: str, count: int = 1) -> Record | None:
    """Return the record `count` of a file read in another shape; None if it cannot be read so."""
    with open_text(reader.location, reader.encoding) as file:
        try:
            records = stream(file, reader.location, array=shape == "array")
            return next((record for _, record in islice(records, count - 1, count) if isinstance(record, dict)), None)
        except InputNotFound:
            return None


def _load(location: Location, file: BinaryIO, broken_is_none: bool = False) -> Any:
    """Return the value of a whole file."""
    limit = MAX_WHOLE_BYTES
    name = record_files.record_file(location.name)
    if name is not None and name.packed and (info := file_info(location)) is not None:
        # A small compressed file must not take the memory of the machine.
        limit = min(limit, max(_GROWN_BYTES, _MOST_GROWTH * info.size))
    data = file.read(limit + 1)
    if limit < len(data) <= MAX_WHOLE_BYTES:
        raise InputNotFound(
            f"{location} is one JSON object of more than {_MOST_GROWTH} times its compressed size, which is too much "
            "to be read whole. Decompress it, or write its records as lines, for example with `jq -c '.data[]'`."
        )
    if len(data) > MAX_WHOLE_BYTES:
        raise InputNotFound(
            f"{location} is one JSON object of more than {MAX_WHOLE_BYTES // 2**20} MiB, which is too large to be read "
            "whole. Write its records as lines, for example with `jq -c '.data[]'`."
        )
    try:
        return DECODER.decode(data.decode(errors="surrogateescape"))
    except (ValueError, RecursionError) as error:
        if broken_is_none:
            return None
        raise InputNotFound(f"{location} is no JSON: {error}. Repair the file.") from error
