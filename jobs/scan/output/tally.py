"""What the results of a job hold in all, and the few rows of them that the report shows whole.

The results are read twice: once a few narrow columns of every row, counted as they stream by, then the whole rows
that are wanted. So memory is bounded by what is kept, not by the corpus.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from asap.errors import StorageError
from asap.labels import VERDICTS
from asap.storage.failures import storage_errors
from asap.storage.files import is_empty, list_files, open_seekable
from asap.storage.location import Location

BINS = 20
"""Of the score histograms, from 0 to 1."""

_NARROW = ["row_id", "status", "error_code", "retryable", "verdict", "score", "flagged_types"]


def tally_results(folder: Location, top: int) -> Tally:
    """Count every parquet file below a results folder, keeping the places of the `top` flagged rows."""
    tally = Tally(top)
    for info in () if is_empty(folder) else list_files(folder):
        if info.location.name.endswith(".parquet"):
            tally.add_file(info.location)
    return tally


@contextmanager
def results_file(location: Location, **options: Any) -> Iterator[pq.ParquetFile]:
    """One file of results, open; what cannot be read is a `StorageError`. `options` are pyarrow's."""
    with storage_errors(location), open_seekable(location) as stream:
        try:
            yield pq.ParquetFile(stream, **options)
        except pa.ArrowInvalid as error:
            raise StorageError(f"{location} is not a Parquet file that can be read: {error}") from error


class Place(NamedTuple):
    """Where a result row is kept."""

    file: Location
    row_group: int
    row_id: int


def _empty_histograms() -> dict[str, NDArray[np.int64]]:
    return {name: np.zeros(BINS, np.int64) for name in VERDICTS}


@dataclass
class Tally:
    """What the page says of all rows, and where the rows are that it shows; grows with neither."""

    top: int
    pairs: int = 0
    verdicts: Counter[str] = field(default_factory=Counter)
    types: Counter[str] = field(default_factory=Counter)
    """Of the flagged pairs alone."""
    errors: Counter[str] = field(default_factory=Counter)
    retryable: Counter[str] = field(default_factory=Counter)
    scores: dict[str, NDArray[np.int64]] = field(default_factory=_empty_histograms)
    """Verdict to a histogram of its scores."""
    best: list[tuple[float, int, Place]] = field(default_factory=list)
    """Score, minus the row_id, place; the best first."""
    examples: dict[str, Place] = field(default_factory=dict)
    """Error code to its first row."""

    @property
    def flagged(self) -> int:
        """Pairs with the verdict manipulated or review."""
        return self.verdicts["manipulated"] + self.verdicts["review"]

    def add_file(self, location: Location) -> None:
        """Count one results file, row group by row group."""
        with results_file(location, pre_buffer=True) as file:
            for row_group in range(file.num_row_groups):
                for batch in file.iter_batches(2**16, row_groups=[row_group], columns=_NARROW):
                    self._add(batch, location, row_group)

    def _add(self, batch: pa.RecordBatch, file: Location, row_group: int) -> None:
        self.pairs += len(batch)
        failed = batch.filter(pc.equal(batch["status"], "error"))
        self.errors.update(_counts(failed["error_code"]))
        self.retryable.update(_counts(failed.filter(pc.fill_null(failed["retryable"], False))["error_code"]))
        for code in _counts(failed["error_code"]).keys() - self.examples.keys():
            row_id = failed.filter(pc.equal(failed["error_code"], code))["row_id"][0].as_py()
            self.examples[code] = Place(file, row_group, row_id)
        self.verdicts.update(_counts(batch["verdict"]))
        for name in VERDICTS:
            scores = batch.filter(pc.equal(batch["verdict"], name))["score"].drop_null().to_numpy(zero_copy_only=False)
            self.scores[name] += np.histogram(scores, BINS, (0, 1))[0]
        flagged = batch.filter(pc.is_in(batch["verdict"], pa.array(VERDICTS[:2])))
        self.types.update(_counts(pc.list_flatten(flagged["flagged_types"])))
        self._keep_best(flagged, file, row_group)

    def _keep_best(self, flagged: pa.RecordBatch, file: Location, row_group: int) -> None:
        scores = pc.fill_null(flagged["score"], 0).to_numpy(zero_copy_only=False)
        row_ids = flagged["row_id"].to_numpy()
        first = np.lexsort((row_ids, -scores))[: self.top]
        new = [(float(scores[i]), -int(row_ids[i]), Place(file, row_group, int(row_ids[i]))) for i in first]
        self.best = heapq.nlargest(self.top, self.best + new)

    def wanted(self) -> set[Place]:
        """The rows that the page shows whole."""
        return {place for _, _, place in self.best} | set(self.examples.values())


def _counts(column: pa.Array) -> dict[str, int]:
    return {entry["values"]: entry["counts"] for entry in pc.value_counts(column.drop_null()).to_pylist()}


def read_rows(wanted: Iterable[Place]) -> dict[int, dict[str, Any]]:
    """The whole rows, by row_id; few rows of a row group in memory at a time, for a text may be long."""
    groups: dict[tuple[Location, int], list[int]] = defaultdict(list)
    for place in sorted(wanted):
        groups[place.file, place.row_group].append(place.row_id)
    rows: dict[int, dict[str, Any]] = {}
    for (location, row_group), row_ids in groups.items():
        with results_file(location, buffer_size=2**20) as file:
            for batch in file.iter_batches(256, row_groups=[row_group]):
                wanted_here = np.isin(batch["row_id"].to_numpy(), row_ids)
                if wanted_here.any():
                    found = batch.filter(pa.array(wanted_here)).to_pylist()
                    rows.update({row["row_id"]: row for row in found})
    return rows
