"""The passes of the pipeline over the rows of a manifest, until each of them is in the results, and their progress."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from asap.storage.location import Location
from jobs.cluster import stall_inspector
from jobs.descriptions.left_out import DIED
from jobs.errors import JobFailed, PathNotShared
from jobs.scan.input.manifest import complete_manifest
from jobs.scan.output.completeness import count_rows, missing_rows, repair_results, write_missing
from jobs.scan.output.job_folder import Job, fail
from jobs.scan.stages.result_rows import RESULTS, write_table
from jobs.scan.stages.row_shape import RowShape
from jobs.scan.timeline import Timeline
from jobs.stall import StallWatch

if TYPE_CHECKING:
    from jobs.scan.pipeline import RowPipeline

_POLL_S = 0.5
_MANY_BATCHES = 4
"""Batches whose rows are scanned together once more if they are lost. Fewer are scanned row by row at once."""


@dataclass(frozen=True)
class ScanProgress:
    """The progress of a scan. Counts are of rows; `done` includes those of earlier runs."""

    stage: str
    """The current step, as one line for a person."""
    done: int = 0
    total: int = 0
    errors: int = 0
    flagged: int | None = 0
    """None for a job that flags nothing."""
    pairs_per_s: float = 0.0
    unfamiliar: int = 0


Watch = Callable[[ScanProgress], None]


def run_missing_rows(job: Job, pipeline: RowPipeline, folder: Location, rows: int, missing: int, counter: Any) -> None:
    """Run the pipeline until every row of a manifest is in the results, some of them as errors.

    Args:
        job: The job, for its ids.
        pipeline: The pipeline.
        folder: Folder with `manifest`, the rows and, of a resumed job, `_remaining`: that of the job or of a retry.
        rows: Rows of the manifest.
        missing: Rows of the manifest that are not in the results: all of them, or those of `_remaining`.
        counter: The actor that counts finished rows.
    """
    shape = pipeline.shape
    results, remaining = folder / shape.folder, folder / "_remaining"
    if missing:
        # A resumed job reads a manifest of the missing rows, so its batches are as full as those of a fresh job.
        run_once(job, pipeline, folder / "manifest" if missing == rows else remaining, results, counter)
        missing = write_remaining(folder, shape)
    # Again in batches: rows whose pictures were slow, or many, because a writer that dies loses those of seconds.
    if missing and (_has_slow_rows(counter) or missing > _MANY_BATCHES * pipeline.batch_size):
        run_once(job, pipeline.patient(), remaining, results, counter)
        missing = write_remaining(folder, shape)
    # Each process that dies loses its whole batch. Alone, the innocent rows of such a batch succeed. Of the others,
    # those that end an engine of descriptions only succeed without it.
    if missing:
        alone = pipeline.one_row_at_a_time()
        for each in (alone, *alone.without_an_engine()):
            run_once(job, each, remaining, results, counter)
            if not (missing := write_remaining(folder, shape)):
                break
    if missing:
        _write_lost_rows(job, folder, shape)
    check_results(results, rows)


def _write_lost_rows(job: Job, folder: Location, shape: RowShape) -> None:
    """Write the rows that ended every process that worked on them, alone too, as errors like any other."""
    lost = _missing(folder, shape)
    if lost is None:
        return
    detail = f"{DIED}: the cause is its picture, or the memory that it needs"
    write_table(shape.lost(lost, detail, job.record), folder / shape.folder / f"lost-{time.time_ns()}.parquet")
    if lost := _missing(folder, shape):
        raise fail(f"{lost.num_rows} rows of the manifest are not in the results")


def _has_slow_rows(counter: Any) -> bool:
    """Return True if rows were left out because their pictures were slow, or if nobody knows."""
    import ray

    try:
        return bool(ray.get(counter.read.remote()).slow)
    except ray.exceptions.RayError:  # the counter is lost
        return True


def run_once(job: Job, pipeline: RowPipeline, manifest: Location, results: Location, counter: Any) -> None:
    """Run the pipeline once; raise `JobFailed` with the cause, in one line, if it stops."""
    from jobs.scan.pipeline import run_pipeline

    try:
        run_pipeline(pipeline, manifest, results, counter, job.check)
    except PathNotShared:  # a check of the job, and not the work
        raise
    except Exception as error:
        raise fail(f"the work stopped: {cause_of(error)}") from error


def cause_of(error: Exception) -> str:
    """Return what stopped a worker of Ray, in one line."""
    # Ray wraps it in several layers; the cause is the last line of the first traceback.
    message = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).partition("\n\nThe above exception")[0]
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def write_remaining(folder: Location, shape: RowShape = RESULTS) -> int:
    """Write the manifest's rows that are not in the results to `_remaining`; return how many there are."""
    return write_missing(folder / "manifest", repair_results(folder / shape.folder, shape), folder / "_remaining")


def _missing(folder: Location, shape: RowShape) -> pa.Table | None:
    tables = list(missing_rows(folder / "manifest", repair_results(folder / shape.folder, shape)))
    return complete_manifest(pa.concat_tables(tables)) if tables else None


def check_results(results: Location, rows: int) -> None:
    """Raise `JobFailed` unless the results hold as many rows as the manifest was written with."""
    if (held := count_rows(results)) != rows:
        raise JobFailed(
            f"{results} holds {held} rows, but the manifest was written with {rows}: another process wrote or deleted "
            "files in the job folder. Choose another folder for the job, or delete this one."
        )


@contextmanager
def watched(
    job: Job,
    done: int,
    rows: int,
    watch: Watch,
    stall_after_s: float,
    shape: RowShape = RESULTS,
    *,
    is_captioning: bool = False,
) -> Iterator[Any]:
    """Start a counter for the detectors; read it twice a second for the job's record and for `watch`.

    Args:
        job: The job whose record gets the counts.
        done: Rows that earlier runs finished.
        rows: Rows of the manifest.
        watch: Receives the progress.
        stall_after_s: Seconds without a finished row that make a stall, which is announced.
        shape: The shape of the rows.
        is_captioning: True if the rows were judged before. They are not counted in the record a second time.
    """
    import ray

    from jobs.scan.stages.progress import RowCounts, start_counter

    counter = start_counter()
    ended = threading.Event()
    started, timeline = time.monotonic(), Timeline(**(job.record.get("timeline") or {}))
    timeline.begin(done)
    stalls = StallWatch("pair", stall_after_s, stall_inspector())
    stalled = False

    def announce_stall(sentence: str | None) -> None:
        nonlocal stalled
        if stalls.since is not None and not stalled:
            job.announce("stalled", sentence)
        elif stalls.since is None and stalled:
            job.announce("running")
        stalled = stalls.since is not None

    def report_progress(*, is_last: bool = False) -> None:
        try:
            progress: RowCounts = ray.get(counter.read.remote())
        except ray.exceptions.RayError:
            return  # these counts are for people; those of the summary are counted from the results
        counts = {name: getattr(progress, name) for name in shape.counted}
        counts |= {"done": min(done + progress.rows, rows)}
        if is_captioning:
            job.note(captioning=job.record["captioning"] | {"done": counts["done"]})
        else:
            first_s = {event: round(at - job.record["began_s"], 3) for event, at in progress.first.items()}
            timeline.add(time.monotonic() - started, counts["done"], is_last=is_last)
            job.note(counts=counts | {"total": rows}, pairs_per_s=round(progress.pairs_per_s, 2), first_s=first_s)
            job.note(timeline=timeline.to_json())
        work = "captioning" if is_captioning else shape.work
        stage = work if progress.rows else "starting the workers"
        stall = stalls.look(progress.rows, stage)
        announce_stall(stall)
        flagged = None if "flagged" not in counts else counts.pop("flagged")
        speed = progress.pairs_per_s
        watch(ScanProgress(stall or stage, total=rows, flagged=flagged, pairs_per_s=speed, **counts))

    def poll() -> None:
        while not ended.wait(_POLL_S):
            report_progress()

    thread = threading.Thread(target=poll, name="progress", daemon=True)
    thread.start()
    try:
        yield counter
    finally:
        ended.set()
        thread.join()
    report_progress(is_last=True)  # the last batches, which came after the last poll
