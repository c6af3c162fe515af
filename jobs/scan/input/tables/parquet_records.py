"""Records of Parquet files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from asap.storage.files import open_seekable
from asap.storage.location import Location
from jobs.scan.input.manifest import RowError
from jobs.scan.input.tables.columns import unique_names
from jobs.scan.input.tables.inline import Leaf, LeafReader, find_leaves
from jobs.scan.input.tables.record_files import Record

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
    pictures: Sequence[Leaf] = ()
    """Columns of bytes, in whose place the records have the addresses of pictures."""
    version: str | None = None
    notes: list[str] = field(default_factory=list)
    twice: Sequence[str] = ()

    def with_pictures_of(self, columns: Sequence[str]) -> ParquetReader:
        """Return the reader that makes the addresses of pictures for these columns alone."""
        chosen = [leaf for leaf in self.pictures if leaf.name in columns]
        unread = [leaf for leaf in self.pictures if leaf.name not in columns]
        notes = [f"the column {leaf.path!r:.80} holds bytes and is not read" for leaf in unread]
        notes += [
            f"{leaf.name!r:.80} holds lists of pictures; the first of each is taken" for leaf in chosen if leaf.is_list
        ]
        return replace(self, pictures=chosen, notes=[*self.notes, *notes])

    def describe(self) -> dict[str, Any]:
        """Return what was understood of the file."""
        return {"rows": self.rows}

    def records(self) -> Iterator[tuple[int, Record]]:
        """Yield the rows, with their numbers."""
        file = pq.ParquetFile(open_seekable(self.location))
        readers = [(leaf, LeafReader(self.location, self.version, leaf)) for leaf in self.pictures]
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
        """Yield the rows of a row group, without their bytes."""
        if not self.leaves:
            yield from ({} for _ in range(file.metadata.row_group(group).num_rows))
            return
        for batch in file.iter_batches(_rows_at_once(file, self.leaves), row_groups=[group], columns=list(self.leaves)):
            names = batch.schema.names
            columns = [
                column.cast(pa.string(), safe=False) if name in self.as_text else column
                for name, column in zip(names, batch.columns, strict=True)
            ]
            # A name cannot stand twice in a record.
            yield from _rows(pa.RecordBatch.from_arrays(columns, unique_names(names)))


def understand_parquet(location: Location, version: str | None = None) -> ParquetReader:
    """Return a Parquet file with the names of its columns.

    Args:
        location: The file.
        version: The version of the file, which the addresses of its pictures name. None: the one that is read first.
    """
    file = pq.ParquetFile(open_seekable(location))
    names = list(file.schema_arrow.names)
    paths = [file.schema.column(number).path for number in range(len(file.schema))]
    binary = [path for number, path in enumerate(paths) if _is_binary(file.schema.column(number))]
    # Some writers do not say that bytes are a text.
    as_text = [path for path in binary if path in names and _holds_text(file, paths.index(path), path)]
    binary = [path for path in binary if path not in as_text]
    leaves = [path for path in paths if path not in binary and not path.startswith("__index_level_")]
    pictures = [leaf for leaf in find_leaves(file.schema_arrow, binary) if names.count(leaf.name) == 1]
    unread = [path for path in binary if path not in {leaf.path for leaf in pictures}]
    notes = [f"the column {path!r:.80} holds bytes and is not read" for path in unread]
    return ParquetReader(location, names, leaves, binary, as_text, file.metadata.num_rows, pictures, version, notes)


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
