"""Failed rows of a job, judged again: an outage costs only its own rows.

The new outcome of a row takes the place of the old one, which moves to `history/`:

1. `choose_rows` copies the rows that are judged again from the manifest to `_retry/manifest`.
2. The pipeline writes their outcomes to `_retry/results`.
3. `publish` replaces each file of results that holds old outcomes, in one write. It writes the old ones to
   `history/RUN/` before. Ray tasks do so for many files.

`results` holds each row once at any moment, and a reader sees its old or its new outcome. The record of the job names
the retry until it is published, and every step can be repeated after a stop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from asap.job_records.rows import results_file, results_files
from asap.storage.files import delete_folder
from asap.storage.location import Location
from jobs.scan.input.manifest import write_tables
from jobs.scan.output.completeness import Ids, RowSet, repair_results, rows_within
from jobs.scan.stages.result_rows import RESULTS, write_table
from jobs.scan.stages.row_shape import RowShape

FOLDER = "_retry"
RETRYABLE = "retryable"
"""Takes the place of error codes: all errors that another try may not meet."""
_COLUMNS = ["row_id", "status", "retryable", "judged_run"]


def failed_rows(
    results: Location, codes: Sequence[str], besides_run: str | None = None, shape: RowShape = RESULTS
) -> RowSet:
    """Return the rows that failed with one of the codes, or that may succeed if `RETRYABLE` is among the codes.

    Args:
        results: The results of a job.
        codes: Error codes, or `RETRYABLE`.
        besides_run: Rows that this run has judged are left out.
        shape: The shape of the rows, which names the columns of their codes.
    """
    chosen = RowSet()
    asked = pa.array(codes, pa.string())
    for location in results_files(results):
        with results_file(location) as file:
            for batch in file.iter_batches(2**16, columns=[*_COLUMNS, *shape.code_columns]):
                rows = pa.Table.from_batches([batch]).filter(pc.equal(batch["status"], "error"))
                wanted = reduce(pc.or_, (pc.is_in(rows[name], asked) for name in shape.code_columns))
                if RETRYABLE in codes:
                    wanted = pc.or_(wanted, pc.fill_null(rows["retryable"], False))
                if besides_run is not None:
                    wanted = pc.and_(wanted, pc.fill_null(pc.not_equal(rows["judged_run"], besides_run), True))
                chosen.add(rows.filter(wanted)["row_id"].to_numpy())
    return chosen


def choose_rows(
    folder: Location, codes: Sequence[str], besides_run: str | None = None, shape: RowShape = RESULTS
) -> int:
    """Write the rows of the job that are judged again to `_retry/manifest`; return how many there are.

    The arguments are as in `failed_rows`. What another retry left in `_retry` is deleted.
    """
    delete_folder(folder / FOLDER)
    chosen = failed_rows(folder / shape.folder, codes, besides_run, shape)
    return write_tables(rows_within(folder / "manifest", chosen), folder / FOLDER / "manifest")


def publish(folder: Location, run: str, shape: RowShape = RESULTS, check: Callable[[], None] = lambda: None) -> None:
    """Put the outcomes of a retry in the place of those that the job's rows hold. Ray must run.

    Args:
        folder: Folder of the job.
        run: Name of the folder in `history` for the old outcomes.
        shape: The shape of the rows.
        check: Called twice a second; what it raises stops the work.
    """
    from jobs.scan.file_tasks import work_on_files

    # The outcomes are put in order once. The tasks get their ids, and read the files of those that they need.
    shared = Outcomes(folder / FOLDER / shape.folder, shape), folder / "history" / run
    work_on_files(publish_file, shared, list(results_files(folder / shape.folder)), check)


def publish_file(shared: tuple[Outcomes, Location], location: Location) -> None:
    """Put the new outcomes of the rows of one file into it.

    Args:
        shared: The new outcomes, and the folder in `history` that the old ones are written to before.
        location: The file.
    """
    outcomes, history = shared
    with results_file(location) as file:
        new = outcomes.of_rows(file.read(columns=["row_id"])["row_id"].to_numpy())
        if new is None:
            return
        former = outcomes.shape.with_all_columns(file.read())
    # A stop may have come after the file was replaced: its rows are new already.
    by_run = dict(zip(new["row_id"].to_pylist(), new["judged_run"].to_pylist(), strict=True))
    found = zip(former["row_id"].to_pylist(), former["judged_run"].to_pylist(), strict=True)
    is_old = pa.array([row_id in by_run and by_run[row_id] != judged for row_id, judged in found], pa.bool_())
    old = former.filter(is_old)
    if old.num_rows:
        write_table(old, history / location.name)
        replacing = new.filter(pc.is_in(new["row_id"], old["row_id"].combine_chunks()))
        if outcomes.shape.kept is not None:
            replacing = outcomes.shape.kept(old, replacing)
        write_table(pa.concat_tables([former.filter(pc.invert(is_old)), replacing]), location)


class Outcomes:
    """The new outcomes, found by the ids of their rows. An id takes twelve bytes of memory."""

    def __init__(self, results: Location, shape: RowShape) -> None:
        repair_results(results, shape)
        self.shape = shape
        self._files = list(results_files(results))
        ids: list[Ids] = []
        for location in self._files:
            with results_file(location) as file:
                ids.append(file.read(columns=["row_id"])["row_id"].to_numpy())
        numbers = np.repeat(np.arange(len(ids), dtype=np.int32), [len(each) for each in ids])
        all_ids = np.concatenate(ids) if ids else np.zeros(0, np.int64)
        order = np.argsort(all_ids)
        self._ids, self._numbers = all_ids[order], numbers[order]

    def of_rows(self, row_ids: Ids) -> pa.Table | None:
        """Return the new outcomes of these rows, or None if there are none. Only their files are read."""
        positions = np.searchsorted(self._ids, row_ids)
        within = positions < len(self._ids)
        positions = positions[within][self._ids[positions[within]] == row_ids[within]]
        if not len(positions):
            return None
        wanted = pa.array(self._ids[positions])
        tables = []
        for number in np.unique(self._numbers[positions]):
            with results_file(self._files[number]) as file:
                table = self.shape.with_all_columns(file.read())
            tables.append(table.filter(pc.is_in(table["row_id"], wanted)))
        return pa.concat_tables(tables)
