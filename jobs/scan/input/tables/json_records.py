"""Records of JSON files: lines, arrays, and the objects around records that other tools write.

Lines and arrays are read one record at a time. An object around the records is read into memory whole, up to a bound.
"""

from __future__ import annotations

import codecs
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, BinaryIO

from asap.storage.files import file_info
from asap.storage.location import Location
from jobs.errors import InputNotFound
from jobs.scan.input.manifest import RowError
from jobs.scan.input.tables import record_files
from jobs.scan.input.tables.columns import PICTURE_NAME, is_known, is_picture_column, plain, show_names
from jobs.scan.input.tables.encoding import find_encoding, open_text
from jobs.scan.input.tables.inline import starts_with_pictures
from jobs.scan.input.tables.record_files import UNDECODED, Record, RepeatedNames
from jobs.scan.input.tables.text_reader import TextReader

MAX_WHOLE_BYTES = 2**29
"""Largest file that is read into memory whole. Python needs about ten times its size."""
_CHUNK = 2**16
_MOST_GROWTH = 32
"""Times its size to which a compressed file may grow. Records with long equal names grow about twenty times."""
_GROWN_BYTES = 2**23
"""Bytes that every compressed file may have, however small it is."""
_FIRST_LINES = 20
_CONVERSATIONS = {"conversation", "conversations", "messages"}
"""Lists of objects that are the text of one record."""
_SPACE = re.compile(r"[\s,]*")
_BEFORE_NAME = re.compile(r"\s*+[{,]\s*+(?=\")")
_BEFORE_VALUE = re.compile(r"\s*+:\s*+")
_BEHIND_VALUE = re.compile(r"\s*+[,}]")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object, marked if a name stands twice in it."""
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    marked = RepeatedNames(found)
    marked.twice = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
    return marked


_DECODER = json.JSONDecoder(object_pairs_hook=_object)
_ANY_INTEGER = json.JSONDecoder(parse_int=str)
"""The decoder that finds the end of a record with an integer of more digits than Python converts."""


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
                yield from _stream(file, self.location, array=self.shape == "array")

    def _of_lines(self, file: BinaryIO) -> Iterator[tuple[int, Record]]:
        pictures = self.pictures()
        for number, offset, line in _lines(file, self.limit):
            record = line if isinstance(line, RowError) else _line_record(line)
            if self.holds_pictures and isinstance(record, dict) and isinstance(line, bytes):
                twice = record.twice if isinstance(record, RepeatedNames) else ()
                record = RepeatedNames(pictures.replace(record, line, len(self.encoding.mark) + offset, is_json=True))
                record.twice = twice
            yield number, record


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
        first = [line for _, _, line in islice(_lines(file, reader.limit), count)]
    parsed = [None if isinstance(line, RowError) else _parse_line(line) for line in first]
    reader.twice = sorted({name for value in parsed if isinstance(value, RepeatedNames) for name in value.twice})
    objects = sum(isinstance(value, dict) for value in parsed)
    alone = parsed[0] if len(parsed) == 1 else None
    if reader.holds_pictures and isinstance(alone, dict) and _roles(alone) == 2 and _is_one_record(alone):
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
        reader.shape, reader.unpack = _find_shape(location, whole)
        if isinstance(whole, RepeatedNames):
            if reader.unpack is not _one_record:
                raise InputNotFound(f"{location} has the name {whole.twice[0]!r:.80} twice in one object. Rename one.")
            reader.twice = whole.twice


def _first_of_stream(reader: JsonReader, shape: str, count: int = 1) -> Record | None:
    """Return the record `count` of a file read in another shape; None if it cannot be read so."""
    with open_text(reader.location, reader.encoding) as file:
        try:
            records = _stream(file, reader.location, array=shape == "array")
            return next((record for _, record in islice(records, count - 1, count) if isinstance(record, dict)), None)
        except InputNotFound:
            return None


def _lines(file: BinaryIO, limit: int) -> Iterator[tuple[int, int, bytes | RowError]]:
    """Yield the lines that are not blank, with their numbers and the positions of their first bytes.

    A line that is too long is an error, and is not held in memory.
    """
    number = offset = 0
    while line := file.readline(limit + 1):
        size = len(line)
        if size > limit and not line.endswith(b"\n"):
            yield number, offset, RowError(f"the line is longer than {limit} bytes")
            while rest := file.readline(record_files.MAX_RECORD_BYTES):
                size += len(rest)
                if rest.endswith(b"\n"):
                    break
        elif line.strip():
            yield number, offset, line
        number, offset = number + 1, offset + size


def _parse_line(line: bytes) -> Any:
    try:
        return _DECODER.decode(line.rstrip().removesuffix(b",").decode(errors="surrogateescape"))
    except (ValueError, RecursionError):
        return None


def _line_record(line: bytes) -> Record:
    try:
        return _checked(_DECODER.decode(line.decode()))
    except UnicodeDecodeError as error:
        value = _parse_line(line)
        return RowError(f"the line is not UTF-8: {error}", _decoded(value) if isinstance(value, dict) else None)
    except (ValueError, RecursionError) as error:
        # Lines of an array without its brackets have commas at their ends.
        if line.rstrip().endswith(b",") and isinstance(value := _parse_line(line), dict):
            return value
        return RowError(f"the line is not JSON: {error}", _salvaged(line))


def _salvaged(line: bytes) -> dict[str, Any]:
    """Return the strings and whole numbers of a broken line, up to where it is broken.

    Behind that place it is unknown whether a field is one of the record, of an object in it, or a part of a text. Of
    several fields with one name, the first is taken.
    """
    text = line.decode(errors="surrogateescape")[:_CHUNK]
    fields: dict[str, Any] = {}
    at = 0
    try:
        while start := _BEFORE_NAME.match(text, at):
            name, end = _DECODER.raw_decode(text, start.end())
            if not (colon := _BEFORE_VALUE.match(text, end)):
                break
            value, at = _parse(text, colon.end())
            if not _BEHIND_VALUE.match(text, at):
                break
            if type(value) in (str, int):
                fields.setdefault(name, value)
    except (ValueError, RecursionError):  # the place where it is broken
        pass
    return _decoded(fields)


def _decoded(record: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a record without those that hold bytes that are not UTF-8."""
    return {name: value for name, value in record.items() if not isinstance(value, str) or not UNDECODED.search(value)}


def _checked(value: Any) -> Record:
    return (
        value if isinstance(value, dict) else RowError(f"the record is of type {type(value).__name__}, not an object")
    )


def _stream(file: BinaryIO, location: Location, array: bool) -> Iterator[tuple[int, Record]]:
    """Yield the elements of one array, or values in a row, parsed as they come.

    Nothing after broken syntax can be understood.
    """
    reader = codecs.getreader("utf-8")(file, "surrogateescape")
    buffer, at, number = "", 0, 0
    try:
        while array and not buffer:
            more = reader.read(_CHUNK)
            if not more:
                raise ValueError("it is empty")
            buffer = more.lstrip()
            at = 1  # after the bracket
        while True:
            space = _SPACE.match(buffer, at)
            at = space.end() if space else at
            if array and buffer.startswith("]", at):
                _check_end(buffer[at + 1 :], reader)
                return
            record, end = _element(buffer, at)
            if record is None:
                # The record goes on beyond the buffer. Drop what is read, append a chunk, and try again.
                more = reader.read(_CHUNK)
                if not more and not array and at == len(buffer):
                    return
                if not more or len(buffer) - at > record_files.MAX_RECORD_BYTES:
                    limit = record_files.MAX_RECORD_BYTES
                    raise ValueError(f"record {number} does not end, or is longer than {limit} characters")
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
    if UNDECODED.search(buffer, at, end):
        return RowError("the record is not UTF-8", _decoded(value) if isinstance(value, dict) else None), end
    return value if isinstance(value, RowError) else _checked(value), end


def _parse(buffer: str, at: int) -> tuple[Any, int]:
    """Return the value at a position and where it ends; raise `JSONDecodeError` for broken syntax."""
    try:
        return _DECODER.raw_decode(buffer, at)
    except json.JSONDecodeError:
        raise
    except ValueError as error:  # an integer that is too long: the syntax is sound, so only its record is lost
        return RowError(f"the record is not read: {error}"), _ANY_INTEGER.raw_decode(buffer, at)[1]


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
        return _DECODER.decode(data.decode(errors="surrogateescape"))
    except (ValueError, RecursionError) as error:
        if broken_is_none:
            return None
        raise InputNotFound(f"{location} is no JSON: {error}. Repair the file.") from error


def _find_shape(location: Location, whole: dict[str, Any]) -> tuple[str, Callable[[Any], Iterator[Record]]]:
    """Return how records are made of one object, and words for it.

    Raises `InputNotFound` for an object with several lists of records that could be meant.
    """
    if _is_coco(whole):
        return "COCO captions", _coco
    if _roles(whole) == 2 and _is_one_record(whole):
        return "one record", _one_record
    lists = dict(_lists_of_records(whole))
    # A list fits if its records have both a picture and a text.
    fitting = [key for key, value in lists.items() if _roles(_names_of(value)) == 2]
    if not fitting and not _is_one_record(whole):
        fitting = list(lists)
    if len(fitting) > 1:
        raise InputNotFound(
            f"{location} has records under {show_names(fitting)}. Write those that are meant into a file of their own."
        )
    if fitting:
        return f"records under {fitting[0]!r:.80}", lambda value: _checked_all(_at(value, fitting[0]))
    if _is_split(whole):
        return "columns and rows", _split
    if columns := _columns_of(whole):
        _refuse_repeated_keys(location, whole)
        lengths = {name: len(column) for name, column in columns.items()}
        if len(set(lengths.values())) > 1:
            shown = ", ".join(f"{name!r:.80} {length}" for name, length in list(lengths.items())[:10])
            raise InputNotFound(f"{location} has columns of different lengths: {shown}. Make them equally long.")
        return "object of columns", _columns
    # The records may lie in one object of the object.
    objects = [key for key, value in whole.items() if isinstance(value, dict)]
    if len(objects) == 1 and not _is_one_record(whole):
        key = objects[0]
        shape, unpack = _find_shape(location, whole[key])
        if unpack is not _one_record:
            if isinstance(whole[key], RepeatedNames):  # a record would be lost
                _refuse_repeated_keys(location, whole)
            return f"{shape} under {key!r:.80}", lambda value: unpack(value.get(key) or {})
    if len(whole) > 0 and all(isinstance(value, dict | str | list) for value in whole.values()) and _is_keyed(whole):
        return "object of records", _keyed
    return "one record", _one_record


def _roles(names: Mapping[str, Any] | Sequence[str]) -> int:
    """Return 2 for names that hold a picture and a text, 1 for one of them."""
    known = [name for name in names if is_known(name)]
    images = [name for name in known if is_picture_column(name)]
    return bool(images) + (len(known) > len(images))


def _names_of(records: Sequence[dict[str, Any]]) -> list[str]:
    names: dict[str, None] = {}
    for record in records[:_FIRST_LINES]:
        for name, value in record.items():
            names[name] = None
            names |= dict.fromkeys(value) if isinstance(value, dict) else {}
    return list(names)


def _lists_of_records(whole: Mapping[str, Any], prefix: str = "", depth: int = 2) -> Iterator[tuple[str, list[Any]]]:
    """Yield the lists of objects in an object, with the keys that lead to them."""
    for key, value in whole.items():
        if plain(key) in _CONVERSATIONS:
            continue
        if isinstance(value, list) and value and all(isinstance(record, dict) for record in value[:_FIRST_LINES]):
            yield f"{prefix}{key}", value
        elif isinstance(value, dict) and depth > 1:
            yield from _lists_of_records(value, f"{prefix}{key}.", depth - 1)


def _at(whole: Any, path: str) -> list[Any]:
    for key, value in _lists_of_records(whole) if isinstance(whole, dict) else ():
        if key == path:
            return value
    return []


def _checked_all(values: Sequence[Any]) -> Iterator[Record]:
    for value in values:
        record = _checked(value)
        if isinstance(record, dict) and any(
            isinstance(cell, str) and UNDECODED.search(cell) for cell in record.values()
        ):
            yield RowError("the record is not UTF-8", _decoded(record))
        else:
            yield record


def _like(origin: Any, record: dict[str, Any]) -> dict[str, Any]:
    """Return a record that was made of another one, with the mark of that one if a name stands twice in it."""
    if not isinstance(origin, RepeatedNames):
        return record
    marked = RepeatedNames(record)
    marked.twice = [*origin.twice, *(record.twice if isinstance(record, RepeatedNames) else ())]
    return marked


def _refuse_repeated_keys(location: Location, whole: Mapping[str, Any]) -> None:
    """Raise `InputNotFound` if a key stands twice in an object around records: the first record would be lost."""
    for value in (whole, *whole.values()):
        if isinstance(value, RepeatedNames):
            raise InputNotFound(f"{location} has the name {value.twice[0]!r:.80} twice in one object. Rename one.")


def _one_record(whole: Any) -> Iterator[Record]:
    return _checked_all([whole])


def _is_one_record(whole: Mapping[str, Any]) -> bool:
    """Return True if the fields with roles hold single values, and not columns."""
    return any(isinstance(value, str) for name, value in whole.items() if is_known(name))


def _is_coco(whole: Mapping[str, Any]) -> bool:
    images, captions = whole.get("images"), whole.get("annotations")
    return (
        isinstance(images, list)
        and isinstance(captions, list)
        and any(isinstance(image, dict) and "id" in image for image in images[:_FIRST_LINES])
        and any(
            isinstance(one, dict) and "image_id" in one and _roles([name for name in one if name != "image_id"])
            for one in captions[:_FIRST_LINES]
        )
    )


def _coco(whole: Any) -> Iterator[Record]:
    """Yield a record for each caption, with the fields of its picture. The name of the caption is the record's id."""
    pictures: dict[str, dict[str, Any]] = {}
    different: set[str] = set()  # ids that several different pictures have
    for image in whole.get("images") or ():
        if isinstance(image, dict):
            key = json.dumps(image.get("id"), default=str)
            fields = _like(image, {name: value for name, value in image.items() if name != "id"})
            if pictures.setdefault(key, fields) != fields:
                different.add(key)
    for caption in whole.get("annotations") or ():
        if not isinstance(caption, dict):
            yield _checked(caption)
            continue
        key = json.dumps(caption.get("image_id"), default=str)
        if (picture := pictures.get(key)) is None:
            yield RowError(f"the picture with the id {key:.60} is not among the images", caption)
        elif key in different:
            yield RowError(f"several pictures have the id {key:.60}. Give each its own id.", caption)
        else:
            yield from _checked_all([_like(caption, _like(picture, picture | caption))])


def _columns_of(whole: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return the columns of an object of lists, or of objects with the same keys; empty for another object.

    pandas writes `{"image": {"0": …, "1": …}}`.
    """
    lists = {
        name: value for name, value in whole.items() if isinstance(value, list) and plain(name) not in _CONVERSATIONS
    }
    # A list of one picture may belong to one record, which has several texts.
    if _roles(lists) == 2 and any(len(value) > 1 for name, value in lists.items() if is_picture_column(name)):
        return lists
    objects = {name: value for name, value in whole.items() if isinstance(value, dict)}
    # The keys join the cells of a row, whatever their order in a column.
    if (
        _roles(objects) == 2
        and len(objects) == len(whole)
        and len({frozenset(value) for value in objects.values()}) == 1
    ):
        keys = list(next(iter(objects.values())))
        return {name: [value[key] for key in keys] for name, value in objects.items()}
    return {}


def _columns(whole: Any) -> Iterator[Record]:
    columns = _columns_of(whole)
    for cells in zip(*columns.values(), strict=False):
        yield from _checked_all([dict(zip(columns, cells, strict=True))])


def _is_split(whole: Mapping[str, Any]) -> bool:
    """Return True for what pandas writes with `orient="split"`."""
    names, rows = whole.get("columns"), whole.get("data")
    return (
        isinstance(names, list)
        and isinstance(rows, list)
        and all(isinstance(name, str) for name in names)
        and all(isinstance(row, list) for row in rows[:_FIRST_LINES])
    )


def _split(whole: Any) -> Iterator[Record]:
    names = whole["columns"]
    for row in whole["data"]:
        if isinstance(row, list) and len(row) == len(names):
            yield from _checked_all([dict(zip(names, row, strict=True))])
        else:
            yield RowError(f"the record has not as many cells as there are columns, {len(names)}")


def _is_keyed(whole: Mapping[str, Any]) -> bool:
    """Return True for an object of records or of texts, whose keys name the records."""
    values = list(whole.values())[:_FIRST_LINES]
    if all(isinstance(value, dict) for value in values):
        return True
    return all(isinstance(value, str | list) for value in values) and any(map(PICTURE_NAME.fullmatch, whole))


def _keyed(whole: Any) -> Iterator[Record]:
    for key, value in whole.items():
        record = dict(value) if isinstance(value, dict) else {"text": value}
        if PICTURE_NAME.fullmatch(key) and not any(is_picture_column(name) for name in record):
            record = {"image": key} | record
        elif not any(plain(name) in ("id", "customid") for name in record):
            record = {"id": key} | record
        yield from _checked_all([_like(value, record)])
