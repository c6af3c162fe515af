"""Records of Parquet files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from asap.storage.files import open_seekable
from asap.storage.location import Location
from jobs.scan.input.columns import unique_names
from jobs.scan.input.record_files import Record, RowError

_ROWS_AT_ONCE = 1024
_BATCH_BYTES = 2**26
_MOST_TEXT = 2**11
"""Bytes that a text has in the mean, where bytes are taken for texts."""
_LARGEST_CHUNK = 2**26


@dataclass
class ParquetReader:
    """A Parquet file whose schema is known."""

    location: Location
    names: Sequence[str]
    leaves: Sequence[str]
    """Paths of the values that are read, such as image.path. Bytes are not."""
    binary: Sequence[str]
    """Paths of the values that are bytes, such as image.bytes."""
    as_text: Sequence[str]
    """Columns that are texts, although the schema calls them bytes."""
    rows: int
    notes: list[str] = field(default_factory=list)
    twice: Sequence[str] = ()

    def describe(self) -> dict[str, Any]:
        """Return what was understood of the file."""
        return {"rows": self.rows}

    def records(self) -> Iterator[tuple[int, Record]]:
        """Yield the rows, with their numbers."""
        file = pq.ParquetFile(open_seekable(self.location))
        number = 0
        for batch in file.iter_batches(_rows_at_once(file, self.leaves), columns=list(self.leaves)):
            names = batch.schema.names
            columns = [
                column.cast(pa.string(), safe=False) if name in self.as_text else column
                for name, column in zip(names, batch.columns, strict=True)
            ]
            # A name cannot stand twice in a record.
            for record in _rows(pa.RecordBatch.from_arrays(columns, unique_names(names))):
                yield number, record
                number += 1


def understand_parquet(location: Location) -> ParquetReader:
    """Return a Parquet file with the names of its columns."""
    file = pq.ParquetFile(open_seekable(location))
    names = list(file.schema_arrow.names)
    paths = [file.schema.column(number).path for number in range(len(file.schema))]
    binary = [path for number, path in enumerate(paths) if _is_binary(file.schema.column(number))]
    # Some writers do not say that bytes are a text.
    as_text = [path for path in binary if path in names and _holds_text(file, paths.index(path), path)]
    binary = [path for path in binary if path not in as_text]
    leaves = [path for path in paths if path not in binary and not path.startswith("__index_level_")]
    notes = [f"the column {path!r:.80} holds bytes and is not read" for path in binary]
    return ParquetReader(location, names, leaves, binary, as_text, file.metadata.num_rows, notes)


def _rows_at_once(file: Any, leaves: Sequence[str]) -> int:
    """Return how many rows are held in memory at a time: fewer of long ones, such as pictures in texts."""
    groups = [file.metadata.row_group(number) for number in range(min(file.metadata.num_row_groups, 4))]
    rows = sum(group.num_rows for group in groups)
    chunks = [group.column(number) for group in groups for number in range(group.num_columns)]
    size = sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema in leaves)
    return max(1, min(_ROWS_AT_ONCE, _BATCH_BYTES * rows // max(size, 1)))


def _is_binary(column: Any) -> bool:
    """Return True for bytes without a meaning, such as a picture."""
    return column.physical_type in ("BYTE_ARRAY", "FIXED_LEN_BYTE_ARRAY") and column.logical_type.type == "NONE"


def _holds_text(file: Any, number: int, path: str) -> bool:
    """Return True for a column of short bytes that are UTF-8 in the first rows."""
    if not file.metadata.num_row_groups:
        return False
    chunk = file.metadata.row_group(0).column(number)
    if chunk.total_uncompressed_size > min(_MOST_TEXT * max(chunk.num_values, 1), _LARGEST_CHUNK):
        return False
    values = next(file.iter_batches(_ROWS_AT_ONCE, columns=[path]))[0]
    try:
        values.cast(pa.string())
    except pa.ArrowInvalid:
        return False
    return bool(values.null_count < len(values))


def _rows(batch: pa.RecordBatch) -> Sequence[Record]:
    """Return the rows of a batch; a row with a value that Python does not have, such as the year 10000, is an error."""
    try:
        return cast("list[Record]", batch.to_pylist())
    except (ValueError, OverflowError) as error:
        if len(batch) > 1:
            # The error names no row, so the rows are converted one by one.
            return [record for row in range(len(batch)) for record in _rows(batch.slice(row, 1))]
        return [RowError(f"the row is not read: {error}", _readable(batch))]


def _readable(batch: pa.RecordBatch) -> dict[str, Any]:
    """Return the values of one row that Python has."""
    read = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            read[name] = column[0].as_py()
        except (ValueError, OverflowError):
            continue
    return read
