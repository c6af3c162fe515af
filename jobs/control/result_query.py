"""The results of a scan or of a job of annotations, and its failed rows, counted by error code."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow.compute as pc

from asap.job_records.record import results_folder
from asap.job_records.rows import ERROR_COLUMNS, RowFilter, StoredRows
from asap.job_records.status import ANNOTATE, TRAIN, JobStatus
from jobs.annotate.rows import ANNOTATIONS
from jobs.errors import JobError
from jobs.scan.stages.result_rows import RESULTS


class Results(StoredRows):
    """The results of a job, as they are now."""

    def __init__(self, status: JobStatus) -> None:
        """Find the files. Raises `JobError` for a job that has no results."""
        if status.kind == TRAIN:
            raise JobError(
                f"{status.folder} is a training run and has no result rows. Its metrics are in progress.jsonl and in "
                "the card of its model, model/README.md."
            )
        self._is_scan = status.kind != ANNOTATE
        shape = RESULTS if self._is_scan else ANNOTATIONS
        folder = results_folder(status.folder, status.record) if self._is_scan else status.folder / ANNOTATIONS.folder
        super().__init__(folder, shape.schema, shape.code_columns, is_complete=status.state == "completed")

    @property
    def table_columns(self) -> tuple[str, ...]:
        """Names of the columns that a table shows if nobody chooses others."""
        if self._is_scan:
            return ("custom_id", "verdict", "score", "flagged_types", "error_code", "text")
        return ("custom_id", "caption", "explanation", "error_code", "text")


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
