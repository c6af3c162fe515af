"""Records of JSON that are read one at a time: the lines of a file, or the elements of an array.

Each record is an object, or the reason why there is none. A broken line keeps the fields before the place where it is
broken.
"""

from __future__ import annotations

import codecs
import json
import re
import secrets
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

from asap.storage.location import Location
from jobs.errors import InputNotFound
from jobs.scan.input.manifest import RowError
from jobs.scan.input.tables import record_files
from jobs.scan.input.tables.record_files import UNDECODED, Record, RepeatedNames

_CHUNK = 2**16
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


DECODER = json.JSONDecoder(object_pairs_hook=_object)
"""The decoder that marks objects in which a name stands twice."""
_MARK = secrets.token_hex(16)
"""A text that no input has."""
_BETWEEN = f',"{_MARK}",'.encode()
_ANY_INTEGER = json.JSONDecoder(parse_int=str)
"""The decoder that finds the end of a record with an integer of more digits than Python converts."""


def lines(file: BinaryIO, limit: int) -> Iterator[tuple[int, int, bytes | RowError]]:
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


def parse_line(line: bytes) -> Any:
    """Return the value of a line, which may end with a comma; None if it is not JSON."""
    try:
        return DECODER.decode(line.rstrip().removesuffix(b",").decode(errors="surrogateescape"))
    except (ValueError, RecursionError):
        return None


def line_record(line: bytes) -> Record:
    """Return the record of a line."""
    try:
        return checked(DECODER.decode(line.decode()))
    except UnicodeDecodeError as error:
        value = parse_line(line)
        return RowError(f"the line is not UTF-8: {error}", decoded(value) if isinstance(value, dict) else None)
    except (ValueError, RecursionError) as error:
        # Lines of an array without its brackets have commas at their ends.
        if line.rstrip().endswith(b",") and isinstance(value := parse_line(line), dict):
            return value
        return RowError(f"the line is not JSON: {error}", _salvaged(line))


def line_records(lines: Sequence[bytes]) -> list[Record]:
    """Return the records of lines, as `line_record` does one by one: by one call of the parser if all are whole."""
    try:
        # A mark between two lines comes between two records only if each line is one value.
        text = _BETWEEN.join(lines).decode()
        values = DECODER.decode(f"[{text}]")
    except (ValueError, RecursionError):
        return list(map(line_record, lines))
    if len(values) != 2 * len(lines) - 1 or any(value != _MARK for value in values[1::2]):
        return list(map(line_record, lines))
    return [checked(value) for value in values[::2]]


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
            name, end = DECODER.raw_decode(text, start.end())
            if not (colon := _BEFORE_VALUE.match(text, end)):
                break
            value, at = _parse(text, colon.end())
            if not _BEHIND_VALUE.match(text, at):
                break
            if type(value) in (str, int):
                fields.setdefault(name, value)
    except (ValueError, RecursionError):  # the place where it is broken
        pass
    return decoded(fields)


def decoded(record: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a record without those that hold bytes that are not UTF-8."""
    return {name: value for name, value in record.items() if not isinstance(value, str) or not UNDECODED.search(value)}


def checked(value: Any) -> Record:
    """Return a value if it is an object, else the error of a record that is none."""
    return (
        value if isinstance(value, dict) else RowError(f"the record is of type {type(value).__name__}, not an object")
    )


def stream(file: BinaryIO, location: Location, array: bool) -> Iterator[tuple[int, Record]]:
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
        return RowError("the record is not UTF-8", decoded(value) if isinstance(value, dict) else None), end
    return value if isinstance(value, RowError) else checked(value), end


def _parse(buffer: str, at: int) -> tuple[Any, int]:
    """Return the value at a position and where it ends; raise `JSONDecodeError` for broken syntax."""
    try:
        return DECODER.raw_decode(buffer, at)
    except json.JSONDecodeError:
        raise
    except ValueError as error:  # an integer that is too long: the syntax is sound, so only its record is lost
        return RowError(f"the record is not read: {error}"), _ANY_INTEGER.raw_decode(buffer, at)[1]
