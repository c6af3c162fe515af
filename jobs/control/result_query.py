"""Rows of a job's results that pass a filter, as a stream of small tables, also while the job runs.

Only the columns that are asked for are read. Files of any version of the schema can be read: a column that a file
lacks is null there. Each file is whole or is left out, and memory is bounded by one small table.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from asap.errors import ConfigError, StorageError
from asap.labels import TYPES, VERDICTS
from asap.storage.location import Location
from jobs.annotate.rows import ANNOTATIONS
from jobs.control.status import ANNOTATE, TRAIN, JobStatus
from jobs.errors import JobError
from jobs.scan.output.job_folder import results_folder
from jobs.scan.output.tally import results_file, results_files
from jobs.scan.stages.result_rows import RESULTS

ERROR_COLUMNS = ("row_id", "custom_id", "image_uri", "error_code", "retryable", "attempt", "error_detail")
"""Columns of a failed row that say what failed."""
_ROWS_AT_ONCE = 2**12


@dataclass(frozen=True)
class RowFilter:
    """A condition on result rows. Each part that is given must hold; of several values, one must."""

    verdicts: tuple[str, ...] = ()
    types: tuple[str, ...] = ()
    """Types that the pair is flagged for."""
    min_score: float | None = None
    max_score: float | None = None
    codes: tuple[str, ...] = ()
    """Error codes. A row has one for each description that it lacks."""
    ids: tuple[str, ...] = ()
    """Values of `custom_id` or `given_id`."""

    def __post_init__(self) -> None:
        _check_names("verdict", self.verdicts, VERDICTS)
        _check_names("type", self.types, TYPES)
        if self.min_score is not None and self.max_score is not None and self.min_score > self.max_score:
            raise ConfigError(f"the lowest score {self.min_score:g} is above the highest {self.max_score:g}.")

    def columns(self, code_columns: Sequence[str]) -> list[str]:
        """Return the columns that the condition reads, `code_columns` among them if it is about codes."""
        wanted = {
            "verdict": self.verdicts or self._has_score,
            "score": self._has_score,
            "flagged_types": self.types,
            **dict.fromkeys(code_columns, self.codes),
            "custom_id": self.ids,
            "given_id": self.ids,
        }
        return [name for name, is_read in wanted.items() if is_read]

    @property
    def _has_score(self) -> bool:
        return self.min_score is not None or self.max_score is not None

    def apply(self, rows: pa.Table, code_columns: Sequence[str]) -> pa.Table:
        """Return the rows that pass; `code_columns` are the columns with their error codes."""
        if self.verdicts:
            rows = rows.filter(pc.is_in(rows["verdict"], pa.array(self.verdicts, pa.string())))
        elif self._has_score:
            # The score of an unfamiliar pair means nothing, so a bound on scores does not find it.
            rows = rows.filter(pc.not_equal(rows["verdict"], "unfamiliar"))
        # Scores are stored as float32, so the bound 0.9 must mean the float32 of that name.
        if self.min_score is not None:
            rows = rows.filter(pc.greater_equal(rows["score"], pa.scalar(self.min_score, pa.float32())))
        if self.max_score is not None:
            rows = rows.filter(pc.less_equal(rows["score"], pa.scalar(self.max_score, pa.float32())))
        if self.types:
            wanted = set(self.types)
            hits = [not wanted.isdisjoint(types or ()) for types in rows["flagged_types"].to_pylist()]
            rows = rows.filter(pa.array(hits, pa.bool_()))
        if self.codes:
            codes = pa.array(self.codes, pa.string())
            rows = rows.filter(reduce(pc.or_, (pc.is_in(rows[name], codes) for name in code_columns)))
        if self.ids:
            ids = pa.array(self.ids, pa.string())
            rows = rows.filter(pc.or_(pc.is_in(rows["custom_id"], ids), pc.is_in(rows["given_id"], ids)))
        return rows


def _check_names(kind: str, names: Sequence[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            raise ConfigError(f"there is no {kind} {name!r}. Choose from {', '.join(known)}.")


class Results:
    """The results of a scan, as they are now.

    While the job runs, files appear and are replaced. A file that is gone or not whole is then left out and counted.
    """

    def __init__(self, status: JobStatus) -> None:
        """Find the files. Raises `JobError` for a job that has no results."""
        if status.kind == TRAIN:
            raise JobError(
                f"{status.folder} is a training run and has no result rows. Its metrics are in progress.jsonl and in "
                "the card of its model, model/README.md."
            )
        is_scan = status.kind != ANNOTATE
        self._shape = RESULTS if is_scan else ANNOTATIONS
        self._folder = results_folder(status.folder, status.record) if is_scan else status.folder / ANNOTATIONS.folder
        self._is_complete = status.state == "completed"
        self.left_out: list[str] = []
        """Why each file was left out that was."""

    @property
    def code_columns(self) -> tuple[str, ...]:
        """Names of the columns with the error codes of a row."""
        return self._shape.code_columns

    @property
    def table_columns(self) -> tuple[str, ...]:
        """Names of the columns that a table shows if nobody chooses others."""
        if self._shape is RESULTS:
            return ("custom_id", "verdict", "score", "flagged_types", "error_code", "text")
        return ("custom_id", "caption", "explanation", "error_code", "text")

    def schema(self) -> pa.Schema:
        """Return the columns: those of this version, and further ones of the first file that is whole."""
        for location in results_files(self._folder):
            try:
                with results_file(location) as file:
                    known = self._shape.schema
                    further = [column for column in file.schema_arrow if column.name not in known.names]
                    return pa.schema([*known, *further])
            except StorageError:
                if self._is_complete:
                    raise
        return self._shape.schema

    def rows(self, columns: Sequence[str], where: RowFilter, schema: pa.Schema | None = None) -> Iterator[pa.Table]:
        """Yield tables of the rows that pass, with these columns, in the order of the files.

        Args:
            columns: Names of the columns.
            where: The condition.
            schema: What `schema` returned; None to ask it.
        """
        schema = self.schema() if schema is None else schema
        # A job of annotations has no verdicts to filter by.
        read = choose_columns([*columns, *where.columns(self.code_columns)], schema)
        for location in results_files(self._folder):
            for table in self._tables(location, read, schema):
                found = where.apply(table, self.code_columns).select(list(columns))
                if found.num_rows:
                    yield found

    def _tables(self, location: Location, columns: list[str], schema: pa.Schema) -> Iterator[pa.Table]:
        """Yield the rows of a file with all of `columns`; nothing for a file that has to be left out."""
        try:
            with results_file(location) as file:
                present = [name for name in columns if name in file.schema_arrow.names]
                for batch in file.iter_batches(_ROWS_AT_ONCE, columns=present):
                    arrays = [
                        batch[name] if name in present else pa.nulls(len(batch), schema.field(name).type)
                        for name in columns
                    ]
                    yield pa.table(arrays, names=columns).cast(nullable_schema(columns, schema))
        except StorageError as error:
            if self._is_complete:
                raise
            self.left_out.append(str(error))


def nullable_schema(columns: Sequence[str], schema: pa.Schema) -> pa.Schema:
    """Return these columns of a schema, each of which may be null, because older files lack some."""
    return pa.schema([pa.field(name, schema.field(name).type) for name in columns])


def choose_columns(names: Sequence[str], schema: pa.Schema, flat: Collection[str] = ()) -> list[str]:
    """Return the names, or all names of the schema if none are given. Raises `ConfigError` for an unknown one.

    `flat` are the names of the flat view, if it was not asked for.
    """
    for name in names:
        if name not in schema.names:
            way_out = "Give --flat, which has it, or choose" if name in flat else "Choose"
            raise ConfigError(f"there is no column {name!r}. {way_out} from {', '.join(schema.names)}.")
    return list(dict.fromkeys(names)) or list(schema.names)


@dataclass
class ErrorCounts:
    """Failed rows, counted by code, and the first of them."""

    rows_read: int = 0
    failed: int = 0
    """Rows that have one of the codes that were asked for."""
    codes: Counter[str] = field(default_factory=Counter)
    """Rows by code. A row that lacks two descriptions may have two codes."""
    retryable: Counter[str] = field(default_factory=Counter)
    """Rows by code, among those that may succeed when they are tried again."""
    first: list[dict[str, Any]] = field(default_factory=list)
    """The first rows that have one of the codes that were asked for, with `ERROR_COLUMNS` and further codes."""


def count_errors(results: Results, codes: Sequence[str], limit: int) -> ErrorCounts:
    """Count the failed rows of a job by code, and keep the first ones.

    Args:
        results: The results of the job.
        codes: Codes of the rows to count and to keep; empty for all.
        limit: Number of rows to keep.
    """
    counts = ErrorCounts()
    columns = list(dict.fromkeys([*ERROR_COLUMNS, *results.code_columns]))
    for table in results.rows(["status", *columns], RowFilter(), results.schema()):
        counts.rows_read += table.num_rows
        failed = table.filter(pc.equal(table["status"], "error"))
        failed = RowFilter(codes=tuple(codes)).apply(failed, results.code_columns).drop_columns(["status"])
        counts.failed += failed.num_rows
        for row in failed.select(["retryable", *results.code_columns]).to_pylist():
            has = {row[name] for name in results.code_columns} - {None} or {"unknown"}
            counted = has.intersection(codes) if codes else has
            counts.codes.update(counted)
            if row["retryable"]:
                counts.retryable.update(counted)
        if (room := limit - len(counts.first)) > 0:
            counts.first += failed.slice(0, room).to_pylist()
    return counts
