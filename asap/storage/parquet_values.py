"""Reads the values of one column of pictures in a Parquet file, in their order and with little memory.

pyarrow holds whole pages, compressed and plain. Writers fill a page with up to 1,024 values before they look at its
size, so a row group of 1,000 pictures of 1 MB is one page for most of them. `ColumnReader` reads such pages as a
stream: it holds one value and one block of the file. What it cannot read in this way, it leaves to pyarrow: lists,
rare encodings and compressions.
"""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from asap.errors import FetchFailed, ImageTooLarge, StorageError
from asap.storage.failures import failure_code
from asap.storage.fetch import BeyondEnd, ByteRange, Fetched, FetchSettings, fetch
from asap.storage.files import file_info
from asap.storage.location import Location

_FIRST_BLOCK, _BLOCK = 2**16, 2**22
"""Bytes of the file that are fetched at a time: few after a jump, and more and more of what is read on."""
_ARROW_ROWS = 8
"""Values that pyarrow makes at a time."""
_KEPT_BYTES = 2**25
"""Bytes of the values of a dictionary that are kept, because rows may repeat them."""
_WINDOW = 2**16
"""Distance that snappy looks back: it compresses blocks of this size, each for itself."""
_STREAMED = {0: None, 1: "snappy", 2: "gzip", 4: "brotli", 6: "zstd"}
"""Compressions that can be undone as a stream, by their numbers in Parquet."""
_PLAIN, _PLAIN_DICTIONARY, _RLE, _RLE_DICTIONARY = 0, 2, 3, 8
_ENCODINGS = {_PLAIN, _PLAIN_DICTIONARY, _RLE, _RLE_DICTIONARY}
_DATA_PAGE, _DICTIONARY_PAGE, _DATA_PAGE_V2 = 0, 2, 3
_MOST_ROWS = 2**24
"""Rows of a row group. Writers make at most about a million."""
_MOST_HEADER = 2**24
"""Bytes of a string in the header of a page, which may hold the smallest and the largest value."""


class _Broken(ValueError):
    """The reason why the bytes of a column are not what Parquet says they are."""


class ColumnReader:
    """The values of one column in one row group. Reading on is cheap; reading back starts again."""

    def __init__(self, uri: str, group: int, column: str, settings: FetchSettings, version: str | None = None) -> None:
        """Remember the address. The first read opens the file.

        Args:
            uri: Path or s3:// address of the Parquet file.
            group: Number of the row group.
            column: Path of the leaf, such as `image.bytes`.
            settings: Tries and timeouts.
            version: The version of the file when it was listed. Another one is not read. None: any version is read.
        """
        self.address = (uri, group, column)
        self.version = version
        self.failure: FetchFailed | None = None
        """The reason why the file could not be read, for every later row too."""
        self._settings = settings
        self._table: _Table | None = None
        self._max_bytes = self._wanted = self._next = 0
        self._values: Iterator[bytes | ImageTooLarge | None] = iter(())

    def beside(self, group: int, column: str) -> ColumnReader:
        """Return the reader of another row group or column, which need not open the file again."""
        reader = ColumnReader(self.address[0], group, column, self._settings, self.version)
        if self.failure is None and self._table is not None:
            with reader._typed_errors():
                reader._open(self._table)
        return reader

    def _open(self, table: _Table | None = None) -> _Table:
        """Look the column up in the footer of the file."""
        uri, group, column = self.address
        table = table or _Table(uri, self._settings, self.version)
        if not 0 <= group < len(table.groups) or column not in table.columns:
            detail = f"{uri} has no row group {group} with a column {column}. It was another file when it was listed."
            raise FetchFailed("not_found", detail, retryable=False)
        number = table.columns.index(column)
        self._leaf = table.parquet.schema.column(number)
        self._chunk = table.groups[group].columns[number]
        self._rows = table.groups[group].rows
        # A damaged number must not decide how much memory is taken.
        if min(self._rows, self._chunk.values) < 0 or max(self._rows, self._chunk.values) > _MOST_ROWS:
            raise _Broken(f"it says that it has {self._rows} rows, and no more than {_MOST_ROWS} are read")
        self._table = table
        self._restart()
        return table

    @property
    def revision(self) -> str | None:
        """The version of the file that is open; None if none is."""
        return None if self._table is None else self._table.file.version

    def has_changed(self) -> bool:
        """Return True if the file that is open has changed since it was opened."""
        return self._table is not None and self._table.file.has_changed()

    @property
    def _is_streamed(self) -> bool:
        is_simple = self._leaf.physical_type == "BYTE_ARRAY" and self._leaf.max_repetition_level == 0
        return is_simple and self._chunk.codec in _STREAMED and self._chunk.encodings <= _ENCODINGS

    def _restart(self) -> None:
        self._values, self._next = self._streamed() if self._is_streamed else self._from_arrow(), 0

    def presence(self) -> list[bool]:
        """Return for each row whether it has a value; True where pyarrow would have to read the values to know.

        Only what stands before the values of each page is read, and nothing if the footer says enough.

        Raises:
            FetchFailed: if the file cannot be read.
        """
        with self._typed_errors():
            self._table or self._open()
            nulls = self._chunk.nulls
            if self._leaf.max_repetition_level == 0 and nulls in (0, self._rows):
                return [nulls == 0] * self._rows
            if not self._is_streamed:
                return [True] * self._rows
            depth, codec = self._leaf.max_definition_level, _STREAMED[self._chunk.codec]
            pages = (page for page in self._pages() if page.kind != _DICTIONARY_PAGE)
            return [level == depth for page in pages for level in page.levels(page.open(codec), depth)]

    def read(self, row: int, max_bytes: int) -> Fetched:
        """Return the value of a row of the row group.

        Args:
            row: Position in the row group.
            max_bytes: The limit; no larger value is held.

        Raises:
            FetchFailed: with the code image_missing for a row without a value, else those of `fetch`. After a failure
                to read the file, every later row fails in the same way.
            ImageTooLarge: for more than `max_bytes`.
        """
        uri, group, column = self.address
        if self.failure is not None:
            raise self.failure
        with self._typed_errors():
            table = self._table or self._open()
        if not 0 <= row < self._rows:
            detail = f"{uri} has no row {row} in row group {group}, which has {self._rows} rows"
            raise FetchFailed("not_found", detail, retryable=False)
        if row < self._next:
            self._restart()
        self._wanted, self._max_bytes = row, max_bytes
        with self._typed_errors():
            value = next(self._values, None)
            self._next = row + 1
        if value is None:
            detail = f"the pair has no image: {column} of row {row} in row group {group} is null"
            raise FetchFailed("image_missing", detail, retryable=False)
        if isinstance(value, ImageTooLarge):
            raise value
        return Fetched(value, table.file.version, 1)

    @contextmanager
    def _typed_errors(self) -> Iterator[None]:
        """Turn the errors of reading a table into `FetchFailed`, and keep it for the rows that follow."""
        uri, group, column = self.address
        try:
            yield
        except FetchFailed as failure:
            self.failure = failure
            raise
        except (pa.ArrowException, ValueError, IndexError, OSError, EOFError, OverflowError, MemoryError) as error:
            reason = " ".join(str(error).split())[:300] or "a damaged number asks for more memory than there is"
            detail = f"{column} in row group {group} of {uri} cannot be read: {reason}"
            self.failure = FetchFailed("storage_error", detail, retryable=False)
            raise self.failure from error

    def _from_arrow(self) -> Iterator[bytes | ImageTooLarge | None]:
        """Yield the values from the wanted row on, as pyarrow reads them: with the pages in memory."""
        rows = 0
        batches = cast("_Table", self._table).parquet.iter_batches(
            _ARROW_ROWS, row_groups=[self.address[1]], columns=[self.address[2]], use_threads=False
        )
        for batch in batches:
            for value in batch.column(0):
                if rows >= self._wanted:
                    yield _within(_first_leaf(value), self._max_bytes)
                rows += 1

    def _streamed(self) -> Iterator[bytes | ImageTooLarge | None]:
        """Yield the values from the wanted row on; whole pages before it are passed over."""
        codec, depth = _STREAMED[self._chunk.codec], self._leaf.max_definition_level
        dictionary: _Dictionary | None = None
        row = 0
        for page in self._pages():
            if page.kind == _DICTIONARY_PAGE:
                dictionary = _Dictionary(lambda page=page: page.open(codec))  # type: ignore[misc]
                continue
            if row + page.values <= self._wanted:
                row += page.values
                continue
            body = page.open(codec)
            levels = page.levels(body, depth)
            if page.encoding == _PLAIN:
                for level in levels:
                    value = None if level < depth else _plain(body, row >= self._wanted, self._max_bytes)
                    if row >= self._wanted:
                        yield value
                    row += 1
                continue
            if dictionary is None or page.encoding not in (_PLAIN_DICTIONARY, _RLE_DICTIONARY):
                raise _Broken(f"a page has the encoding {page.encoding}")
            present = sum(level == depth for level in levels)
            width = body.read(1) if present else b"\0"
            indexes = iter(_unpack(body.read(page.size), width[0], present))
            for level in levels:
                index = next(indexes) if level == depth else None
                if row >= self._wanted:
                    yield None if index is None else dictionary.get(index, self._max_bytes)
                row += 1

    def _pages(self) -> Iterator[_Page]:
        chunk, file = self._chunk, cast("_Table", self._table).file
        offset, values = chunk.start, 0
        while values < chunk.values:
            page = _read_page(file, offset)
            if page.values > chunk.values:
                raise _Broken(f"a page says that it has {page.values} of {chunk.values} values")
            yield page
            offset = page.offset + page.size
            values += page.values if page.kind != _DICTIONARY_PAGE else 0


def _first_leaf(value: pa.Scalar) -> bytes | None:
    """Return the bytes of a value, of the first value of a list, or of the one field that was read of a struct."""
    while isinstance(value, pa.ListScalar | pa.LargeListScalar | pa.StructScalar) and value.is_valid:
        if isinstance(value, pa.StructScalar):
            value = value[0]
        elif not len(value):
            return None
        else:
            value = value[0]
    plain: bytes | None = value.as_py() if value.is_valid else None
    return plain


def _within(value: bytes | None, max_bytes: int) -> bytes | ImageTooLarge | None:
    return _too_large(len(value), max_bytes) if value is not None and len(value) > max_bytes else value


def _too_large(size: int, max_bytes: int) -> ImageTooLarge:
    return ImageTooLarge(f"the image has {size} bytes, the limit is {max_bytes}; it was not read")


class _FetchedFile(io.RawIOBase):
    """A file or object that `fetch` reads, a block at a time. A change meanwhile is an error."""

    def __init__(self, uri: str, settings: FetchSettings, listed: str | None) -> None:
        """Find the file. Raises `FetchFailed` if it is not there, or has another version than `listed`."""
        self._location, self._settings, self._listed = Location(uri), settings, listed
        info = None
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
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def size(self) -> int:
        return self._size

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
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


@dataclass(frozen=True)
class _Chunk:
    """A column in a row group, as the footer of the file describes it."""

    codec: int
    encodings: frozenset[int]
    start: int
    values: int
    nulls: int | None


@dataclass(frozen=True)
class _Group:
    """A row group, as the footer of the file describes it."""

    rows: int
    columns: list[_Chunk]


class _Table:
    """A Parquet file that is open."""

    def __init__(self, uri: str, settings: FetchSettings, listed: str | None) -> None:
        self.file = _FetchedFile(uri, settings, listed)
        self.parquet = pq.ParquetFile(pa.PythonFile(self.file, "r"), buffer_size=2**20)
        self.columns = [self.parquet.schema.column(number).path for number in range(len(self.parquet.schema))]
        self.groups = _read_footer(self.file)


def _read_footer(file: _FetchedFile) -> list[_Group]:
    """Return the row groups of a Parquet file. pyarrow would end the process at some damages of their descriptions."""
    file.seek(file.size() - 8)
    size = int.from_bytes(_exactly(file, 4), "little")
    file.seek(max(0, file.size() - 8 - size))
    try:
        # The numbers are those of the fields in the definition of the format.
        groups = _Thrift(io.BytesIO(_exactly(file, size))).struct()[4]
        return [_Group(int(group[3]), [_describe(column[3]) for column in group[1]]) for group in groups]
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise _Broken("its footer is damaged") from error


def _describe(column: dict[int, Any]) -> _Chunk:
    starts = [int(column[9]), *map(int, filter(None, [column.get(11)]))]
    nulls = column.get(12, {}).get(3)
    encodings = frozenset(map(int, column[2]))
    return _Chunk(int(column[4]), encodings, min(starts), int(column[5]), None if nulls is None else int(nulls))


class _Stream(Protocol):
    def read(self, size: int, /) -> bytes: ...


class _Body(io.RawIOBase):
    """The stored bytes of a page."""

    def __init__(self, file: _FetchedFile, offset: int, size: int) -> None:
        self._file, self._offset, self._end = file, offset, offset + size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")[: self._end - self._offset]
        self._file.seek(self._offset)
        count = self._file.readinto(view)
        self._offset += count
        return count

    def skip(self, size: int) -> None:
        """Pass over bytes without reading them."""
        self._offset = min(self._offset + size, self._end)


@dataclass(frozen=True)
class _Page:
    """A page, as its header describes it."""

    file: _FetchedFile
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

    def open(self, codec: str | None) -> _Stream:
        """Return the plain bytes of the page as a stream, for a page of version 2 with its levels in front."""
        front = self.level_bytes or 0
        body = _Body(self.file, self.offset + front, self.size - front)
        stream: _Stream = body
        if codec == "snappy" and self.is_compressed:
            stream = _Snappy(body)
        elif codec is not None and self.is_compressed:
            stream = pa.CompressedInputStream(pa.PythonFile(body, "r"), codec)
        return stream

    def levels(self, body: _Stream, depth: int) -> list[int]:
        """Return the definition level of each value: `depth` where there is one."""
        if self.level_bytes is not None:
            data = _exactly(_Body(self.file, self.offset, self.level_bytes), self.level_bytes)
        elif depth:
            size = int.from_bytes(_exactly(body, 4), "little")
            if size > self.values + 64:  # one byte a value is more than any encoding takes
                raise _Broken(f"a page of {self.values} values has {size} bytes of levels")
            data = _exactly(body, size)
        else:
            data = b""
        return _unpack(data, depth.bit_length(), self.values) if depth else [0] * self.values


def _exactly(stream: _Stream, size: int) -> bytes:
    """Return so many bytes; raise for a stream that ends before."""
    data = stream.read(size)
    if len(data) == size:
        return bytes(data)
    pieces = [data]
    missing = size - len(data)
    while missing and (piece := stream.read(missing)):
        pieces.append(piece)
        missing -= len(piece)
    if missing:
        raise _Broken("a page ends within a value")
    return b"".join(pieces)


def _plain(body: _Stream, is_wanted: bool, max_bytes: int) -> bytes | ImageTooLarge | None:
    """Read the next plain value; None for one that is not wanted, which is passed over."""
    length = int.from_bytes(_exactly(body, 4), "little")
    if is_wanted and length <= max_bytes:
        return _exactly(body, length)
    if isinstance(body, _Body):
        body.skip(length)
    else:
        for start in range(0, length, _WINDOW):
            _exactly(body, min(_WINDOW, length - start))
    return _too_large(length, max_bytes) if is_wanted else None


class _Dictionary:
    """The values of a dictionary page. Most rows have the value after that of the row before."""

    def __init__(self, open_body: Callable[[], _Stream]) -> None:
        self._open = open_body
        self._body, self._next = open_body(), 0
        self._kept: OrderedDict[int, bytes] = OrderedDict()
        self._kept_bytes = 0

    def get(self, index: int, max_bytes: int) -> bytes | ImageTooLarge:
        """Return a value. One that came long before is looked for from the beginning."""
        if index in self._kept:
            return self._kept[index]
        if index < self._next:
            self._body, self._next = self._open(), 0
        while self._next < index:
            _plain(self._body, False, max_bytes)
            self._next += 1
        value = _plain(self._body, True, max_bytes)
        self._next += 1
        if not isinstance(value, bytes):
            return _too_large(max_bytes, max_bytes) if value is None else value
        self._kept[index] = value
        self._kept_bytes += len(value)
        while self._kept_bytes > _KEPT_BYTES and len(self._kept) > 1:
            self._kept_bytes -= len(self._kept.popitem(last=False)[1])
        return value


class _Snappy:
    """A stream of snappy's block format, undone piece by piece."""

    def __init__(self, source: _Body) -> None:
        self._source = source
        self._input, self._at = b"", 0
        self._output, self._read = bytearray(), 0
        self._literal = 0
        """Bytes of a literal that are still in the source."""
        self._refill()
        _, self._at = _varint(self._input, 0)  # the length of all

    def read(self, size: int, /) -> bytes:
        """Return so many bytes, or fewer at the end."""
        while len(self._output) - self._read < size and self._more():
            pass
        data = bytes(self._output[self._read : self._read + size])
        self._read += len(data)
        if self._read > 16 * _WINDOW:
            del self._output[: self._read - _WINDOW]
            self._read = _WINDOW
        return data

    def _refill(self) -> bool:
        """Read on in the source; return False at its end."""
        block = self._source.read(2**18)
        self._input, self._at = self._input[self._at :] + (block or b""), 0
        return bool(block)

    def _more(self) -> bool:
        """Undo about a window more; return False at the end."""
        output, target = self._output, len(self._output) + _WINDOW
        while len(output) < target:
            if len(self._input) - self._at < 5 and not self._refill() and self._at >= len(self._input):
                if self._literal:
                    raise _Broken("a page ends within a value")
                return False
            data, at = self._input, self._at
            if self._literal:
                piece = data[at : at + self._literal]
                output += piece
                self._at, self._literal = at + len(piece), self._literal - len(piece)
                continue
            tag = data[at]
            kind = tag & 3
            if kind == 0:
                length, at = tag >> 2, at + 1
                if length >= 60:
                    width = length - 59
                    length, at = int.from_bytes(data[at : at + width], "little"), at + width
                self._at, self._literal = at, length + 1
                continue
            if kind == 1:
                length, offset, at = 4 + (tag >> 2 & 7), (tag >> 5) << 8 | data[at + 1], at + 2
            else:
                width = 2 if kind == 2 else 4
                length, offset = 1 + (tag >> 2), int.from_bytes(data[at + 1 : at + 1 + width], "little")
                at += 1 + width
            self._at = at
            start = len(output) - offset
            if offset == 0 or start < 0:
                raise _Broken("its snappy data are damaged")
            if offset >= length:
                output += output[start : start + length]
            else:  # the copy overlaps itself: it repeats
                output += (output[start:] * (length // offset + 1))[:length]
        return True


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7


def _unpack(data: bytes, width: int, count: int) -> list[int]:
    """Return `count` numbers of so many bits, in Parquet's mixture of runs and packed numbers."""
    numbers: list[int] = [0] * count if width == 0 else []
    if width > 32:
        raise _Broken(f"a page has numbers of {width} bits")
    at = 0
    while len(numbers) < count:
        header, at = _varint(data, at)
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


def _read_page(file: _FetchedFile, offset: int) -> _Page:
    """Read the header of a page."""
    file.seek(offset)
    fields = _Thrift(file).struct()
    try:
        kind, size = int(fields[1]), int(fields[3])
        head = fields[{_DATA_PAGE: 5, _DICTIONARY_PAGE: 7, _DATA_PAGE_V2: 8}[kind]]
        is_new = kind == _DATA_PAGE_V2
        values, encoding = int(head[1]), int(head[4 if is_new else 2])
        levels = [int(head[5]), int(head[6])] if is_new else [0]
    except (KeyError, TypeError, AttributeError) as error:
        raise _Broken(f"there is no page at byte {offset}") from error
    if min(size, values, *levels) < 0:
        raise _Broken(f"there is no page at byte {offset}")
    is_compressed = not is_new or head.get(7, True) is not False
    return _Page(file, kind, file.tell(), size, values, encoding, sum(levels) if is_new else None, is_compressed)


class _Thrift:
    """A reader of Thrift's compact protocol, in which footers and the headers of pages are written."""

    def __init__(self, file: _Stream) -> None:
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
            raise _Broken("a header is nested too deep")
        if kind in (1, 2):
            return kind == 1
        if kind == 3:
            return self._byte()
        if kind in (4, 5, 6):
            return self._zigzag()
        if kind == 7:
            return _exactly(self._file, 8)
        if kind == 8:
            if (size := self._varint()) > _MOST_HEADER:
                raise _Broken(f"a header has a string of {size} bytes")
            return _exactly(self._file, size)
        if kind in (9, 10):
            head = self._byte()
            size = head >> 4 if head >> 4 < 15 else self._varint()
            return [self._value(3 if head & 15 in (1, 2) else head & 15, depth + 1) for _ in range(size)]
        if kind == 12:
            return self.struct(depth + 1)
        raise _Broken("a header cannot be read")

    def _byte(self) -> int:
        return _exactly(self._file, 1)[0]

    def _varint(self) -> int:
        value = shift = 0
        while (byte := self._byte()) >= 128:
            value |= (byte & 127) << shift
            shift += 7
            if shift > 63:
                raise _Broken("a header cannot be read")
        return value | byte << shift

    def _zigzag(self) -> int:
        value = self._varint()
        return value >> 1 ^ -(value & 1)
