"""Reads the values of one column of pictures in a Parquet file, in their order and with little memory.

pyarrow holds whole pages, compressed and plain. Writers fill a page with up to 1,024 values before they look at its
size, so a row group of 1,000 pictures of 1 MB is one page for most of them. `ColumnReader` reads such pages as a
stream: it holds one value and one block of the file. What it cannot read in this way, it leaves to pyarrow: lists,
rare encodings and compressions.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import cast

import pyarrow as pa
import pyarrow.parquet as pq

from asap.errors import FetchFailed, ImageTooLarge
from asap.storage.fetch import Fetched, FetchSettings
from asap.storage.fetched_file import FetchedFile
from asap.storage.parquet_pages import (
    CODECS,
    DICTIONARY_PAGE,
    PLAIN,
    PLAIN_DICTIONARY,
    RLE,
    RLE_DICTIONARY,
    Body,
    Page,
    read_exactly,
    read_footer,
    read_page,
    unpack_numbers,
)
from asap.storage.snappy import ByteStream

_ARROW_ROWS = 8
"""Values that pyarrow makes at a time."""
_KEPT_BYTES = 2**25
"""Bytes of the values of a dictionary that are kept, because rows may repeat them."""
_SKIPPED_BYTES = 2**16
"""Bytes of a value that is passed over in a compressed page, read at a time."""
_STREAMED_ENCODINGS = {PLAIN, PLAIN_DICTIONARY, RLE, RLE_DICTIONARY}
_MOST_ROWS = 2**24
"""Rows of a row group. Writers make at most about a million."""


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
            raise ValueError(f"it says that it has {self._rows} rows, and no more than {_MOST_ROWS} are read")
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
        return is_simple and self._chunk.codec in CODECS and self._chunk.encodings <= _STREAMED_ENCODINGS

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
            depth, codec = self._leaf.max_definition_level, CODECS[self._chunk.codec]
            pages = (page for page in self._pages() if page.kind != DICTIONARY_PAGE)
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
        codec, depth = CODECS[self._chunk.codec], self._leaf.max_definition_level
        dictionary: _Dictionary | None = None
        row = 0
        for page in self._pages():
            if page.kind == DICTIONARY_PAGE:
                dictionary = _Dictionary(lambda page=page: page.open(codec))  # type: ignore[misc]
                continue
            if row + page.values <= self._wanted:
                row += page.values
                continue
            body = page.open(codec)
            levels = page.levels(body, depth)
            if page.encoding == PLAIN:
                for level in levels:
                    value = None if level < depth else _plain(body, row >= self._wanted, self._max_bytes)
                    if row >= self._wanted:
                        yield value
                    row += 1
                continue
            if dictionary is None or page.encoding not in (PLAIN_DICTIONARY, RLE_DICTIONARY):
                raise ValueError(f"a page has the encoding {page.encoding}")
            present = sum(level == depth for level in levels)
            width = body.read(1) if present else b"\0"
            indexes = iter(unpack_numbers(body.read(page.size), width[0], present))
            for level in levels:
                index = next(indexes) if level == depth else None
                if row >= self._wanted:
                    yield None if index is None else dictionary.get(index, self._max_bytes)
                row += 1

    def _pages(self) -> Iterator[Page]:
        chunk, file = self._chunk, cast("_Table", self._table).file
        offset, values = chunk.start, 0
        while values < chunk.values:
            page = read_page(file, offset)
            if page.values > chunk.values:
                raise ValueError(f"a page says that it has {page.values} of {chunk.values} values")
            yield page
            offset = page.offset + page.size
            values += page.values if page.kind != DICTIONARY_PAGE else 0


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


class _Table:
    """A Parquet file that is open."""

    def __init__(self, uri: str, settings: FetchSettings, listed: str | None) -> None:
        self.file = FetchedFile(uri, settings, listed)
        self.parquet = pq.ParquetFile(pa.PythonFile(self.file, "r"), buffer_size=2**20)
        self.columns = [self.parquet.schema.column(number).path for number in range(len(self.parquet.schema))]
        self.groups = read_footer(self.file)


def _plain(body: ByteStream, is_wanted: bool, max_bytes: int) -> bytes | ImageTooLarge | None:
    """Read the next plain value; None for one that is not wanted, which is passed over."""
    length = int.from_bytes(read_exactly(body, 4), "little")
    if is_wanted and length <= max_bytes:
        return read_exactly(body, length)
    if isinstance(body, Body):
        body.skip(length)
    else:
        for start in range(0, length, _SKIPPED_BYTES):
            read_exactly(body, min(_SKIPPED_BYTES, length - start))
    return _too_large(length, max_bytes) if is_wanted else None


class _Dictionary:
    """The values of a dictionary page. Most rows have the value after that of the row before."""

    def __init__(self, open_body: Callable[[], ByteStream]) -> None:
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
