"""Records of Parquet files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from asap.storage.files import file_info, open_seekable
from asap.storage.location import Location
from jobs.scan.input.columns import unique_names
from jobs.scan.input.inline import Leaf, LeafReader, find_leaves
from jobs.scan.input.record_files import Record, RowError

_ROWS_AT_ONCE = 1024


@dataclass
class ParquetReader:
    """A Parquet file whose schema is known."""

    location: Location
    names: Sequence[str]
    read_names: Sequence[str]
    """Columns that are read, or the paths of parts of them. Bytes are not."""
    rows: int
    leaves: Sequence[Leaf] = ()
    """Columns of bytes, in whose place the records have the addresses of pictures."""
    version: str | None = None
    notes: list[str] = field(default_factory=list)
    twice: Sequence[str] = ()

    def describe(self) -> dict[str, Any]:
        """Return what was understood of the file."""
        return {"rows": self.rows}

    def records(self) -> Iterator[tuple[int, Record]]:
        """Yield the rows, with their numbers."""
        file = pq.ParquetFile(open_seekable(self.location))
        readers = [(leaf, LeafReader(self.location, self.version, leaf)) for leaf in self.leaves]
        number = 0
        for group in range(file.num_row_groups):
            pictures = [(leaf, reader.group(group)) for leaf, reader in readers]
            for record in self._of_group(file, group):
                for leaf, addresses in pictures:
                    address = next(addresses, None)
                    if isinstance(record, dict):
                        # Beside the bytes may be the name of the picture. Without bytes, it is the picture's path.
                        beside = record.get(leaf.name)
                        name = beside.get("path") if isinstance(beside, dict) else None
                        record[leaf.name] = name if address is None else replace(address, name=name)
                yield number, record
                number += 1

    def _of_group(self, file: pq.ParquetFile, group: int) -> Iterator[Record]:
        columns = list(dict.fromkeys(self.read_names))
        if not columns:
            yield from ({} for _ in range(file.metadata.row_group(group).num_rows))
            return
        for batch in file.iter_batches(_ROWS_AT_ONCE, row_groups=[group], columns=columns):
            names = batch.schema.names
            # A name that stands twice cannot say which of two columns is read.
            yield from _rows(batch if len(set(names)) == len(names) else batch.rename_columns(unique_names(names)))


def understand_parquet(location: Location) -> ParquetReader:
    """Return a Parquet file with the names of its columns."""
    file = pq.ParquetFile(open_seekable(location))
    schema = file.schema_arrow
    count = Counter(schema.names)
    leaves = {leaf.name: leaf for leaf in find_leaves(schema) if count[leaf.name] == 1}
    bytes_twice = {leaf.name for leaf in find_leaves(schema)} - leaves.keys()
    read = [
        name for name in schema.names if name not in {*leaves, *bytes_twice} and not name.startswith("__index_level_")
    ]
    read += [leaf.names_path for leaf in leaves.values() if leaf.names_path is not None]
    notes = [
        f"the column {leaf.name!r:.80} holds lists of pictures; the first of each is taken"
        for leaf in leaves.values()
        if leaf.is_list
    ]
    if twice := [name for name in count if count[name] > 1]:
        notes.append(f"several columns are called {', '.join(f'{name!r:.80}' for name in twice)}")
    info = file_info(location)
    version = None if info is None else info.version
    return ParquetReader(
        location, list(schema.names), read, file.metadata.num_rows, list(leaves.values()), version, notes
    )


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
