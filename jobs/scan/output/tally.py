"""Counts over all results of a job, and the few rows that the report shows whole.

The results are read twice. The first pass streams a few narrow columns of every row and counts them. The second reads
the whole rows that the report shows. Memory is bounded by the rows that are shown, not by the corpus.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from asap.job_records.rows import results_file, results_files
from asap.labels import FLAGGED, VERDICTS
from asap.storage.location import Location

BINS = 20
"""Number of bins of a score histogram, from 0 to 1."""

TOP = 60
"""Flagged pairs that the report shows."""
STRANGEST = 12
"""Unfamiliar pairs that the report shows."""
SAMPLED = 12
"""Pairs that were judged and not flagged, of those that the report shows."""

JUDGED = tuple(verdict for verdict in VERDICTS if verdict != "unfamiliar")
"""Verdicts that a score has led to."""

_NARROW = ["row_id", "status", "error_code", "retryable", "verdict", "score", "flagged_types", "familiarity",
           "caption_error.kind", "explanation_error.kind"]  # fmt: skip


def tally_results(folder: Location, top: int, strangest: int = 0) -> Tally:
    """Count every parquet file below a results folder.

    Args:
        folder: The results folder.
        top: Number of flagged rows to keep the addresses of, the highest score first.
        strangest: Number of unfamiliar rows to keep the addresses of, the least familiar first.
    """
    tally = Tally(top, strangest)
    for location in results_files(folder):
        tally.add_file(location)
    return tally


class RowAddress(NamedTuple):
    """The address of a result row."""

    file: Location
    row_group: int
    row_id: int


@dataclass
class Tally:
    """Counts over all result rows, and addresses of the rows that the report shows. Memory is constant."""

    top: int
    """Number of flagged rows to keep the addresses of."""
    strangest: int = 0
    """Number of unfamiliar rows to keep the addresses of."""
    pairs: int = 0
    verdicts: Counter[str] = field(default_factory=Counter)
    types: Counter[str] = field(default_factory=Counter)
    """Pairs by manipulation type, among the flagged pairs only."""
    errors: Counter[str] = field(default_factory=Counter)
    """Rows by error code."""
    retryable: Counter[str] = field(default_factory=Counter)
    """Rows by error code, among the errors that another try may not meet."""
    captions: int = 0
    """Rows with a caption."""
    caption_errors: Counter[str] = field(default_factory=Counter)
    """Rows without a caption, by the kind of its failure."""
    explanations: int = 0
    """Rows with an explanation."""
    explanation_errors: Counter[str] = field(default_factory=Counter)
    """Rows without an explanation, by the kind of its failure."""
    scores: dict[str, NDArray[np.int64]] = field(
        default_factory=lambda: {name: np.zeros(BINS, np.int64) for name in JUDGED}
    )
    """Histogram of the scores of the pairs that were judged, by verdict."""
    best: list[tuple[float, int, RowAddress]] = field(default_factory=list)
    """Score, negative row_id and address of the best flagged rows, the best first."""
    least_familiar: list[tuple[float, int, RowAddress]] = field(default_factory=list)
    """Negative familiarity, negative row_id and address of unfamiliar rows, the least familiar first."""
    sampled: list[tuple[float, int, RowAddress]] = field(default_factory=list)
    """Lot, negative row_id and address of `SAMPLED` rows that were judged and not flagged: a uniform sample of them."""
    examples: dict[str, RowAddress] = field(default_factory=dict)
    """The first row of each error code."""

    @property
    def flagged(self) -> int:
        """Pairs with the verdict manipulated or review."""
        return sum(self.verdicts[name] for name in FLAGGED)

    @property
    def unfamiliar(self) -> int:
        """Pairs that were not judged, because the model has seen nothing like them."""
        return self.verdicts["unfamiliar"]

    def add_file(self, location: Location) -> None:
        """Count one results file, row group by row group."""
        with results_file(location, pre_buffer=True) as file:
            for row_group in range(file.num_row_groups):
                self.add_row_group(file, location, row_group)

    def add_row_group(self, file: pq.ParquetFile, location: Location, row_group: int) -> bool:
        """Count the rows of a row group; return True if one of them failed, is flagged, or is unfamiliar."""
        listed = self.errors.total() + self.flagged + self.unfamiliar
        self.captions += _count_values(file, row_group, "caption")
        self.explanations += _count_values(file, row_group, "explanation")
        for batch in file.iter_batches(2**16, row_groups=[row_group], columns=_NARROW):
            self._add(batch, location, row_group)
        return self.errors.total() + self.flagged + self.unfamiliar > listed

    def _add(self, batch: pa.RecordBatch, file: Location, row_group: int) -> None:
        """Count the rows of a batch, which are all of one row group."""
        self.pairs += len(batch)

        failed = batch.filter(pc.equal(batch["status"], "error"))
        self.errors.update(_counts(failed["error_code"]))
        self.retryable.update(_counts(failed.filter(pc.fill_null(failed["retryable"], False))["error_code"]))
        for code in _counts(failed["error_code"]).keys() - self.examples.keys():
            row_id = failed.filter(pc.equal(failed["error_code"], code))["row_id"][0].as_py()
            self.examples[code] = RowAddress(file, row_group, row_id)

        failures = {"caption_error": self.caption_errors, "explanation_error": self.explanation_errors}
        for name, kinds in failures.items():
            if name in batch.schema.names:  # files of earlier versions lack it
                kinds.update(_counts(pc.struct_field(batch[name], "kind")))

        self.verdicts.update(_counts(batch["verdict"]))
        for name in JUDGED:
            scores = batch.filter(pc.equal(batch["verdict"], name))["score"].drop_null().to_numpy(zero_copy_only=False)
            self.scores[name] += np.histogram(scores, BINS, (0, 1))[0]

        flagged = batch.filter(pc.is_in(batch["verdict"], pa.array(FLAGGED)))
        self.types.update(_counts(pc.list_flatten(flagged["flagged_types"])))
        scores = pc.fill_null(flagged["score"], 0).to_numpy(zero_copy_only=False)
        self.best = _keep_highest(self.best, self.top, scores, flagged["row_id"], file, row_group)

        passed = batch.filter(pc.equal(batch["verdict"], "authentic"))["row_id"]
        self.sampled = _keep_highest(self.sampled, SAMPLED, _lots(passed.to_numpy()), passed, file, row_group)

        unfamiliar = batch.filter(pc.equal(batch["verdict"], "unfamiliar"))
        if len(unfamiliar):  # files of earlier versions have no such rows, and no familiarity
            strange = -unfamiliar["familiarity"].to_numpy(zero_copy_only=False)
            self.least_familiar = _keep_highest(
                self.least_familiar, self.strangest, strange, unfamiliar["row_id"], file, row_group
            )

    def counts(self) -> dict[str, Any]:
        """Return everything that was counted, as JSON has it."""
        counters = {name: dict(getattr(self, name)) for name in _COUNTERS}
        numbers = {name: getattr(self, name) for name in _NUMBERS}
        rows = {name: [(value, row, *_fields(address)) for value, row, address in getattr(self, name)]
                for name in ("best", "least_familiar", "sampled")}  # fmt: skip
        examples = {code: _fields(address) for code, address in self.examples.items()}
        scores = {name: histogram.tolist() for name, histogram in self.scores.items()}
        return counters | numbers | rows | {"examples": examples, "scores": scores}

    def add_counts(self, counts: dict[str, Any]) -> None:
        """Add what another tally counted in later files, as `counts` returns it."""
        for name in _COUNTERS:
            getattr(self, name).update(counts[name])
        for name in _NUMBERS:
            setattr(self, name, getattr(self, name) + counts[name])
        for name, histogram in counts["scores"].items():
            self.scores[name] += histogram
        for name, number in (("best", self.top), ("least_familiar", self.strangest), ("sampled", SAMPLED)):
            new = [(value, row, _address(*fields)) for value, row, *fields in counts[name]]
            setattr(self, name, heapq.nlargest(number, getattr(self, name) + new))
        self.examples = {code: _address(*fields) for code, fields in counts["examples"].items()} | self.examples

    def shown_rows(self) -> set[RowAddress]:
        """Return the addresses of the rows that the report shows whole."""
        return {address for _, _, address in self.best + self.least_familiar + self.sampled} | set(
            self.examples.values()
        )


_COUNTERS = ("verdicts", "types", "errors", "retryable", "caption_errors", "explanation_errors")
_NUMBERS = ("pairs", "captions", "explanations")


def _fields(address: RowAddress) -> tuple[str, int, int]:
    return address.file.uri, address.row_group, address.row_id


def _address(file: str, row_group: int, row_id: int) -> RowAddress:
    return RowAddress(Location(file), row_group, row_id)


def _lots(row_ids: NDArray[np.int64]) -> NDArray[np.float32]:
    """Draw a lot between 0 and 1 for each row, always the same one: the last steps of splitmix64 on its id."""
    with np.errstate(over="ignore"):
        mixed = row_ids.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((mixed >> np.uint64(40)) / 2**24).astype(np.float32)


def _keep_highest(
    kept: list[tuple[float, int, RowAddress]],
    number: int,
    values: NDArray[np.float32],
    row_ids: pa.Array,
    file: Location,
    row_group: int,
) -> list[tuple[float, int, RowAddress]]:
    """Return the `number` rows with the highest values among those kept and new ones, the lower row_id first."""
    ids = row_ids.to_numpy()
    first = np.lexsort((ids, -values))[:number]
    new = [(float(values[i]), -int(ids[i]), RowAddress(file, row_group, int(ids[i]))) for i in first]
    return heapq.nlargest(number, kept + new)


def _count_values(file: pq.ParquetFile, row_group: int, column: str) -> int:
    """Return the number of values of a column that are not null, from the footer: the column itself may be wide."""
    metadata = file.metadata.row_group(row_group)
    for leaf in range(metadata.num_columns):
        chunk = metadata.column(leaf)
        if chunk.path_in_schema == column and chunk.statistics is not None:
            return int(chunk.num_values - chunk.statistics.null_count)
    return 0


def _counts(column: pa.Array) -> dict[str, int]:
    return {entry["values"]: entry["counts"] for entry in pc.value_counts(column.drop_null()).to_pylist()}


def read_rows(addresses: Iterable[RowAddress]) -> dict[int, dict[str, Any]]:
    """Read whole rows, by row_id. Few rows of a row group are in memory at a time, because texts may be long."""
    groups: dict[tuple[Location, int], list[int]] = defaultdict(list)
    for address in sorted(addresses):
        groups[address.file, address.row_group].append(address.row_id)
    rows: dict[int, dict[str, Any]] = {}
    # Each file is opened once a row group, and no group without a wanted row is read.
    for (location, row_group), row_ids in groups.items():
        with results_file(location, buffer_size=2**20) as file:
            for batch in file.iter_batches(256, row_groups=[row_group]):
                wanted = np.isin(batch["row_id"].to_numpy(), row_ids)
                if wanted.any():
                    rows |= {row["row_id"]: row for row in batch.filter(pa.array(wanted)).to_pylist()}
    return rows
