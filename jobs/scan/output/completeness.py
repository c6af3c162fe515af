"""Is every manifest row in the results, once? Counted from the files themselves, when a scan starts and when it ends.

The results are the only record of which rows are done. A row is done if it stands in a results file that can be read.
A parquet file ends with its footer, so no part of a file can be read as a whole one. Memory is one byte a row of the
manifest; the files are streamed.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from asap.storage.files import delete_file, delete_folder, list_files, open_seekable, write_bytes
from asap.storage.location import Location
from jobs.scan.input.manifest import write_tables

_READERS = 16
Ids = NDArray[np.int64]


class RowSet:
    """A set of row ids: a growing array of flags for each part of the input."""

    def __init__(self) -> None:
        self._flags: dict[int, NDArray[np.bool_]] = {}

    def add(self, row_ids: Ids) -> NDArray[np.bool_]:
        """Add ids and say for each whether it is new: it came neither before nor earlier in `row_ids`."""
        new = ~self.contains(row_ids)
        first = np.zeros(len(row_ids), bool)
        first[np.unique(row_ids, return_index=True)[1]] = True
        for part, lines, _ in self._by_part(row_ids):
            flags = self._flags.setdefault(part, np.zeros(1024, bool))
            if (top := int(lines.max())) >= len(flags):
                flags = self._flags[part] = np.concatenate([flags, np.zeros(top + 1, bool)])
            flags[lines] = True
        return new & first

    def contains(self, row_ids: Ids) -> NDArray[np.bool_]:
        """For each id whether it is in the set."""
        found = np.zeros(len(row_ids), bool)
        for part, lines, places in self._by_part(row_ids):
            flags = self._flags.get(part, np.zeros(0, bool))
            within = lines < len(flags)
            found[places[within]] = flags[lines[within]]
        return found

    @staticmethod
    def _by_part(row_ids: Ids) -> Iterator[tuple[int, Ids, Ids]]:
        parts, lines = row_ids >> 32, row_ids & 0xFFFFFFFF
        for part in np.unique(parts):
            places = np.flatnonzero(parts == part)
            yield int(part), lines[places], places


def repair_results(results: Location) -> RowSet:
    """Return the rows that the results hold, and leave the results with whole files that hold each row once.

    A file that a kill cut short is deleted: its rows are judged again. Of a row that is there twice, all but the first
    are taken out of their files.
    """
    seen = RowSet()
    for location, row_ids in _row_ids(results):
        if row_ids is None:
            delete_file(location)
            continue
        new = seen.add(row_ids)
        if not new.all():
            _keep(location, new)
    return seen


def _row_ids(folder: Location) -> Iterator[tuple[Location, Ids | None]]:
    files = (info.location for info in list_files(folder) if info.location.name.endswith(".parquet"))
    with ThreadPoolExecutor(_READERS) as readers:
        while some := list(islice(files, _READERS)):
            yield from zip(some, readers.map(_read_row_ids, some), strict=True)


def _read_row_ids(location: Location) -> Ids | None:
    """The ids of a file's rows; None if the file has no footer, which is written last."""
    with open_seekable(location) as file:
        try:
            parquet = pq.ParquetFile(file)
        except pa.ArrowInvalid:
            return None
        ids: Ids = parquet.read(columns=["row_id"])["row_id"].to_numpy()
        return ids


def _keep(location: Location, mask: NDArray[np.bool_]) -> None:
    with open_seekable(location) as file:
        table = pq.read_table(file)
    write_table(table.filter(pa.array(mask)), location)


def missing_rows(manifest: Location, done: RowSet) -> Iterator[pa.Table]:
    """The manifest's rows that are not done, in small tables."""
    for info in list_files(manifest):
        with open_seekable(info.location) as file:
            for batch in pq.ParquetFile(file).iter_batches(2**12):
                table = pa.Table.from_batches([batch])
                missing = ~done.contains(table["row_id"].to_numpy())
                if missing.any():
                    yield table.filter(pa.array(missing))


def write_missing(manifest: Location, done: RowSet, folder: Location) -> int:
    """Write the manifest's rows that are not done as a manifest of their own; return how many there are.

    `folder` is emptied first: what a killed process left there is never read.
    """
    delete_folder(folder)
    return write_tables(missing_rows(manifest, done), folder)


def count_rows(results: Location) -> int:
    """The rows of a results folder, from the footers of its files. A file that was cut short raises `ArrowInvalid`."""
    files = [info.location for info in list_files(results) if info.location.name.endswith(".parquet")]
    with ThreadPoolExecutor(_READERS) as readers:
        return sum(readers.map(_count_file, files))


def _count_file(location: Location) -> int:
    with open_seekable(location) as file:
        return int(pq.read_metadata(file).num_rows)


def write_table(table: pa.Table, location: Location) -> None:
    """Write one small parquet file, seen whole or not at all."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    write_bytes(location, sink.getvalue().to_pybytes())
