"""The footer of a Parquet file and the pages of its columns, each page a stream of plain bytes.

Damaged bytes raise `ValueError`, with the reason why they are not what Parquet says they are.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from asap.storage.fetched_file import FetchedFile
from asap.storage.snappy import ByteStream, SnappyStream, read_varint

CODECS = {0: None, 1: "snappy", 2: "gzip", 4: "brotli", 6: "zstd"}
"""Compressions that can be undone as a stream, by their numbers in Parquet."""
PLAIN, PLAIN_DICTIONARY, RLE, RLE_DICTIONARY = 0, 2, 3, 8
"""Numbers of encodings in Parquet."""
_DATA_PAGE, DICTIONARY_PAGE, _DATA_PAGE_V2 = 0, 2, 3
"""Numbers of kinds of pages in Parquet."""
_MOST_HEADER = 2**24
"""Bytes of a string in the header of a page, which may hold the smallest and the largest value."""


@dataclass(frozen=True)
class Chunk:
    """A column in a row group, as the footer of the file describes it."""

    codec: int
    encodings: frozenset[int]
    start: int
    values: int
    nulls: int | None


@dataclass(frozen=True)
class RowGroup:
    """A row group, as the footer of the file describes it."""

    rows: int
    columns: list[Chunk]


def read_footer(file: FetchedFile) -> list[RowGroup]:
    """Return the row groups of a Parquet file. pyarrow would end the process at some damages of their descriptions."""
    file.seek(file.size() - 8)
    size = int.from_bytes(read_exactly(file, 4), "little")
    file.seek(max(0, file.size() - 8 - size))
    try:
        # The numbers are those of the fields in the definition of the format.
        groups = _Thrift(io.BytesIO(read_exactly(file, size))).struct()[4]
        return [RowGroup(int(group[3]), [_describe(column[3]) for column in group[1]]) for group in groups]
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError("its footer is damaged") from error


def _describe(column: dict[int, Any]) -> Chunk:
    starts = [int(column[9]), *map(int, filter(None, [column.get(11)]))]
    nulls = column.get(12, {}).get(3)
    encodings = frozenset(map(int, column[2]))
    return Chunk(int(column[4]), encodings, min(starts), int(column[5]), None if nulls is None else int(nulls))


@dataclass(frozen=True)
class Page:
    """A page, as its header describes it."""

    file: FetchedFile
    kind: int
    offset: int
    """Position of the first byte after the header."""
    size: int
    """Stored bytes."""
    values: int
    encoding: int
    level_bytes: int | None = None
    """Bytes of the levels that are stored in front of the values, uncompressed. None: they are among the values."""
    is_compressed: bool = True

    def open(self, codec: str | None) -> ByteStream:
        """Return the plain bytes of the page as a stream, for a page of version 2 with its levels in front."""
        front = self.level_bytes or 0
        body = Body(self.file, self.offset + front, self.size - front)
        stream: ByteStream = body
        if codec == "snappy" and self.is_compressed:
            stream = SnappyStream(body)
        elif codec is not None and self.is_compressed:
            stream = pa.CompressedInputStream(pa.PythonFile(body, "r"), codec)
        return stream

    def levels(self, body: ByteStream, depth: int) -> list[int]:
        """Return the definition level of each value: `depth` where there is one."""
        if self.level_bytes is not None:
            data = read_exactly(Body(self.file, self.offset, self.level_bytes), self.level_bytes)
        elif depth:
            size = int.from_bytes(read_exactly(body, 4), "little")
            if size > self.values + 64:  # one byte a value is more than any encoding takes
                raise ValueError(f"a page of {self.values} values has {size} bytes of levels")
            data = read_exactly(body, size)
        else:
            data = b""
        return unpack_numbers(data, depth.bit_length(), self.values) if depth else [0] * self.values


class Body(io.RawIOBase):
    """The stored bytes of a page."""

    def __init__(self, file: FetchedFile, offset: int, size: int) -> None:
        self._file, self._offset, self._end = file, offset, offset + size

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read the next bytes into a buffer, and return their number."""
        view = memoryview(buffer).cast("B")[: self._end - self._offset]
        self._file.seek(self._offset)
        count = self._file.readinto(view)
        self._offset += count
        return count

    def skip(self, size: int) -> None:
        """Pass over bytes without reading them."""
        self._offset = min(self._offset + size, self._end)


def read_page(file: FetchedFile, offset: int) -> Page:
    """Read the header of a page."""
    file.seek(offset)
    fields = _Thrift(file).struct()
    try:
        kind, size = int(fields[1]), int(fields[3])
        head = fields[{_DATA_PAGE: 5, DICTIONARY_PAGE: 7, _DATA_PAGE_V2: 8}[kind]]
        is_new = kind == _DATA_PAGE_V2
        values, encoding = int(head[1]), int(head[4 if is_new else 2])
        levels = [int(head[5]), int(head[6])] if is_new else [0]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"there is no page at byte {offset}") from error
    if min(size, values, *levels) < 0:
        raise ValueError(f"there is no page at byte {offset}")
    is_compressed = not is_new or head.get(7, True) is not False
    return Page(file, kind, file.tell(), size, values, encoding, sum(levels) if is_new else None, is_compressed)


def unpack_numbers(data: bytes, width: int, count: int) -> list[int]:
    """Return `count` numbers of so many bits, in Parquet's mixture of runs and packed numbers."""
    numbers: list[int] = [0] * count if width == 0 else []
    if width > 32:
        raise ValueError(f"a page has numbers of {width} bits")
    at = 0
    while len(numbers) < count:
        header, at = read_varint(data, at)
        run = header >> 1
        if header & 1:
            bits = np.unpackbits(np.frombuffer(data[at : at + run * width], np.uint8), bitorder="little")
            rows = bits[: len(bits) // width * width].reshape(-1, width)
            numbers += (rows @ (1 << np.arange(width, dtype=np.int64))).tolist()
            at += run * width
        else:
            size = (width + 7) // 8
            numbers += [int.from_bytes(data[at : at + size], "little")] * min(run, count - len(numbers))
            at += size
    return numbers[:count]


def read_exactly(stream: ByteStream, size: int) -> bytes:
    """Return so many bytes; raise `ValueError` for a stream that ends before."""
    data = stream.read(size)
    if len(data) == size:
        return bytes(data)
    pieces = [data]
    missing = size - len(data)
    while missing and (piece := stream.read(missing)):
        pieces.append(piece)
        missing -= len(piece)
    if missing:
        raise ValueError("a page ends within a value")
    return b"".join(pieces)


class _Thrift:
    """A reader of Thrift's compact protocol, in which footers and the headers of pages are written."""

    def __init__(self, file: ByteStream) -> None:
        self._file = file

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """Return the fields of a struct by their numbers."""
        fields: dict[int, Any] = {}
        number = 0
        while head := self._byte():
            delta, kind = head >> 4, head & 15
            number = number + delta if delta else self._zigzag()
            fields[number] = self._value(kind, depth)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        if depth > 16:
            raise ValueError("a header is nested too deep")
        if kind in (1, 2):
            return kind == 1
        if kind == 3:
            return self._byte()
        if kind in (4, 5, 6):
            return self._zigzag()
        if kind == 7:
            return read_exactly(self._file, 8)
        if kind == 8:
            if (size := self._varint()) > _MOST_HEADER:
                raise ValueError(f"a header has a string of {size} bytes")
            return read_exactly(self._file, size)
        if kind in (9, 10):
            head = self._byte()
            size = head >> 4 if head >> 4 < 15 else self._varint()
            return [self._value(3 if head & 15 in (1, 2) else head & 15, depth + 1) for _ in range(size)]
        if kind == 12:
            return self.struct(depth + 1)
        raise ValueError("a header cannot be read")

    def _byte(self) -> int:
        return read_exactly(self._file, 1)[0]

    def _varint(self) -> int:
        value = shift = 0
        while (byte := self._byte()) >= 128:
            value |= (byte & 127) << shift
            shift += 7
            if shift > 63:
                raise ValueError("a header cannot be read")
        return value | byte << shift

    def _zigzag(self) -> int:
        value = self._varint()
        return value >> 1 ^ -(value & 1)
