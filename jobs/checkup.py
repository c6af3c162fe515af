"""Is every manifest row in the results, once? Counted from the files themselves, at the end of a scan.

Memory is one byte a row of the manifest; the files are streamed.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from jobs.storage import Location, list_files, open_seekable, write_bytes

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


def drop_repeated(results: Location) -> RowSet:
    """The rows that the results hold; of one that they hold twice, all but the first are taken out of their files."""
    seen = RowSet()
    for location, row_ids in _row_ids(results):
        new = seen.add(row_ids)
        if not new.all():
            _keep(location, new)
    return seen


def holds_all(results: Location, manifest: Location) -> bool:
    """Whether every row of the manifest is in the results, whose files are whole; changes nothing."""
    seen = RowSet()
    try:
        for _, row_ids in _row_ids(results):
            seen.add(row_ids)
    except pa.ArrowInvalid:
        return False
    return next(missing_rows(manifest, seen), None) is None


def _row_ids(folder: Location) -> Iterator[tuple[Location, Ids]]:
    files = (info.location for info in list_files(folder) if info.location.name.endswith(".parquet"))
    with ThreadPoolExecutor(_READERS) as readers:
        while some := list(islice(files, _READERS)):
            yield from zip(some, readers.map(_read_row_ids, some), strict=True)


def _read_row_ids(location: Location) -> Ids:
    with open_seekable(location) as file:
        ids: Ids = pq.read_table(file, columns=["row_id"])["row_id"].to_numpy()
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


def count_rows(results: Location, *, skip_cut: bool = False) -> int:
    """The rows of a results folder, from the footers of its files.

    `skip_cut`: a file that a kill cut off counts nothing, since its rows are pending and are judged again; else it
    raises `ArrowInvalid`.
    """
    files = [info.location for info in list_files(results) if info.location.name.endswith(".parquet")]
    with ThreadPoolExecutor(_READERS) as readers:
        return sum(readers.map(partial(_count_file, skip_cut=skip_cut), files))


def _count_file(location: Location, skip_cut: bool) -> int:
    with open_seekable(location) as file:
        try:
            return int(pq.read_metadata(file).num_rows)
        except pa.ArrowInvalid:
            if skip_cut:
                return 0
            raise


def write_table(table: pa.Table, location: Location) -> None:
    """Write one small parquet file, seen whole or not at all."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    write_bytes(location, sink.getvalue().to_pybytes())
