"""The comparison of results with the manifest: is every row there, once? It is made when a scan starts and ends.

The results are the only record of which rows are done: a row is done if it is in a results file that can be read.
A parquet file ends with its footer, so no part of a file can be read as a whole one. Memory is a bit for each row of
the parts of the manifest that are done in part; the files are streamed.

Files that a killed writer of a job left are known by their names, and deleted. Other files that cannot be read belong
to somebody else: the job stops and names them.

All files of a folder get the same columns, because pandas, Polars, DuckDB and Spark take those of the first file for
those of all.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from asap.errors import StorageError
from asap.job_records.rows import results_file, results_files
from asap.storage.files import delete_file, delete_folder, list_files, open_seekable
from asap.storage.location import Location
from jobs.scan.input.manifest import write_tables
from jobs.scan.stages.result_rows import RESULTS, write_table
from jobs.scan.stages.row_shape import RowShape

_READERS = 16
_OWN_FILE = re.compile(r"((rows-)?[0-9a-f]{32}|lost-\d+|\d{5})([_-].*)?\.parquet")
"""Names that the writers of a job give: the id of a write and the number of a task, or `lost-` and a time; parts of a
manifest have five digits."""
_OWN_DRAFT = re.compile(r"\..+\.[0-9a-f]{16}")
"""Names of the temporary files of `asap.storage.files`."""
_PAGE = 2**20
"""Ids of a page."""
Ids = NDArray[np.int64]


class RowSet:
    """A set of row ids: a bit for each row of the pages of the input that are in it in part.

    A page that is in the set as a whole takes no memory, and those of a job fill up in about their order.
    """

    def __init__(self) -> None:
        self._pages: dict[int, NDArray[np.uint8]] = {}
        self._counts: dict[int, int] = {}

    def add(self, row_ids: Ids) -> NDArray[np.bool_]:
        """Add ids; return for each whether it is new: neither in the set nor earlier in `row_ids`."""
        new = np.zeros(len(row_ids), bool)
        new[np.unique(row_ids, return_index=True)[1]] = True
        for page, positions in _by_page(row_ids):
            places = row_ids[positions] % _PAGE
            new[positions] &= ~self._held(page, places)
            if self._counts.get(page) == _PAGE:
                continue
            bits = self._pages.setdefault(page, np.zeros(_PAGE // 8, np.uint8))
            np.bitwise_or.at(bits, places >> 3, (1 << (places & 7)).astype(np.uint8))
            self._counts[page] = self._counts.get(page, 0) + int(new[positions].sum())
            if self._counts[page] == _PAGE:
                del self._pages[page]
        return new

    def __len__(self) -> int:
        return sum(self._counts.values())

    def contains(self, row_ids: Ids) -> NDArray[np.bool_]:
        """Return for each id whether it is in the set."""
        found = np.zeros(len(row_ids), bool)
        for page, positions in _by_page(row_ids):
            found[positions] = self._held(page, row_ids[positions] % _PAGE)
        return found

    def _held(self, page: int, places: Ids) -> NDArray[np.bool_]:
        """Return for each place of a page whether it is in the set."""
        if (bits := self._pages.get(page)) is None:
            return np.full(len(places), page in self._counts)
        return (bits[places >> 3] >> (places & 7)) & 1 == 1


def _by_page(row_ids: Ids) -> Iterator[tuple[int, Ids]]:
    """Yield each page that some ids are in, with the positions of these."""
    pages = row_ids // _PAGE
    order = np.argsort(pages, kind="stable")
    numbers, starts = np.unique(pages[order], return_index=True)
    # The first piece is empty: it lies before the first page.
    yield from zip(numbers.tolist(), np.split(order, starts)[1:], strict=True)


def repair_results(results: Location, shape: RowShape = RESULTS) -> RowSet:
    """Repair the results so that all files are whole and each row is there once; return the rows that are there.

    A file that a kill cut short is deleted, and its rows are scanned again; temporary files are deleted too. Copies of
    a row other than the first are removed from their files. A file of an earlier version gets the columns that came
    later, with nulls. Raises `StorageError` for a file that cannot be read and has no name of a job's writer; it is
    left as it is.
    """
    seen = RowSet()
    files = _whole_files(results)
    with ThreadPoolExecutor(_READERS) as readers:
        # Read a few files at a time: the ids of all files together would take eight bytes a row.
        while some := list(islice(files, _READERS)):
            held_by_file = readers.map(lambda location: _read_row_ids(location, shape), some)
            for location, held in zip(some, held_by_file, strict=True):
                if held is None:
                    delete_file(location)
                    continue
                new = seen.add(held.row_ids)
                if new.all() and not held.lacks_columns:
                    continue
                with open_seekable(location) as file:
                    table = pq.read_table(file).filter(pa.array(new))
                write_table(shape.with_all_columns(table) if held.lacks_columns else table, location)
    return seen


def _whole_files(results: Location) -> Iterator[Location]:
    """Yield the parquet files of a folder, and delete the temporary files that killed writers left there."""
    for info in list_files(results):
        if _OWN_DRAFT.fullmatch(info.location.name):
            delete_file(info.location)
        elif info.location.name.endswith(".parquet"):
            yield info.location


class _Held(NamedTuple):
    """The rows of a file of results."""

    row_ids: Ids
    lacks_columns: bool
    """True if the file is of an earlier version, which had fewer columns."""


def _read_row_ids(location: Location, shape: RowShape) -> _Held | None:
    """Return the ids of a file's rows; None for a file of a job without a footer, which is written last.

    Raises `StorageError` for any other file that cannot be read.
    """
    try:
        with results_file(location) as parquet:
            ids: Ids = parquet.read(columns=["row_id"])["row_id"].to_numpy()
            return _Held(ids, _lacks_columns(parquet.schema_arrow, shape.schema))
    except KeyError as error:
        raise StorageError(
            f"{location} has no column row_id, so it is no file of results. Move or delete it."
        ) from error
    except StorageError as error:
        if not isinstance(error.__cause__, pa.ArrowInvalid):
            raise
        if _OWN_FILE.fullmatch(location.name) and not _has_footer(location):
            return None
        raise StorageError(f"{error}. Move or delete it, and run the same command again.") from error


def _lacks_columns(found: pa.Schema, whole: pa.Schema) -> bool:
    """Return True if columns were added since the file was written. A file that is not of a job is left as it is."""
    missing = [field for field in whole if field.name not in found.names]
    return bool(missing) and all(field.nullable for field in missing) and set(found.names) <= set(whole.names)


def _has_footer(location: Location) -> bool:
    with open_seekable(location) as file:
        try:
            pq.read_metadata(file)
        except pa.ArrowInvalid:
            return False
    return True


def rows_within(manifest: Location, wanted: RowSet) -> Iterator[pa.Table]:
    """Yield the manifest's rows that are in the set, in small tables."""
    return _rows_where(manifest, wanted, is_within=True)


def missing_rows(manifest: Location, done: RowSet) -> Iterator[pa.Table]:
    """Yield the manifest's rows that are not done, in small tables."""
    return _rows_where(manifest, done, is_within=False)


def _rows_where(manifest: Location, rows: RowSet, *, is_within: bool) -> Iterator[pa.Table]:
    for info in list_files(manifest):
        with results_file(info.location) as file:
            for batch in file.iter_batches(2**12):
                table = pa.Table.from_batches([batch])
                chosen = rows.contains(table["row_id"].to_numpy()) == is_within
                if chosen.any():
                    yield table.filter(pa.array(chosen))


def write_missing(manifest: Location, done: RowSet, folder: Location) -> int:
    """Write the manifest's rows that are not done as a manifest of their own; return how many there are.

    `folder` is emptied first, so that files of a killed process are never read.
    """
    delete_folder(folder)
    return write_tables(missing_rows(manifest, done), folder)


def count_rows(results: Location) -> int:
    """Count the rows of a folder from the footers of its parquet files.

    Raises `StorageError` for a file that was cut short.
    """
    with ThreadPoolExecutor(_READERS) as readers:
        return sum(readers.map(_count_file, results_files(results)))


def _count_file(location: Location) -> int:
    with results_file(location) as file:
        return int(file.metadata.num_rows)
