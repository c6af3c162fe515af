"""Records of Parquet files."""

from __future__ import annotations

from collections import Counter
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


@dataclass
class ParquetReader:
    """A Parquet file whose schema is known."""

    location: Location
    names: Sequence[str]
    read_names: Sequence[str]
    """Columns that are read. Columns of bytes are not."""
    rows: int
    notes: list[str] = field(default_factory=list)
    twice: Sequence[str] = ()

    def describe(self) -> dict[str, Any]:
        """Return what was understood of the file."""
        return {"rows": self.rows}

    def records(self) -> Iterator[tuple[int, Record]]:
        """Yield the rows, with their numbers."""
        file = pq.ParquetFile(open_seekable(self.location))
        twice = len(set(self.names)) < len(self.names)  # a name cannot say which of two columns is read
        number = 0
        for batch in file.iter_batches(_ROWS_AT_ONCE, columns=None if twice else list(self.read_names)):
            for record in _rows(batch.rename_columns(unique_names(batch.schema.names)) if twice else batch):
                yield number, record
                number += 1


def understand_parquet(location: Location) -> ParquetReader:
    """Return a Parquet file with the names of its columns."""
    file = pq.ParquetFile(open_seekable(location))
    schema = file.schema_arrow
    binary = [column.name for column in schema if _is_binary(column.type)]
    read = [name for name in schema.names if name not in binary and not name.startswith("__index_level_")]
    notes = [f"the column {name!r:.80} holds bytes and is not read" for name in binary]
    if twice := [name for name, count in Counter(schema.names).items() if count > 1]:
        notes.append(f"several columns are called {', '.join(f'{name!r:.80}' for name in twice)}")
    return ParquetReader(location, list(schema.names), read, file.metadata.num_rows, notes)


def _is_binary(kind: Any) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


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
