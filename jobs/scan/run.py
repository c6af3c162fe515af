"""A bulk scan, from an input to a finished job folder.

What can be wrong with the command is found before any work starts, and before Ray does. Then the input becomes a
manifest, the chain judges it, the results are held against the manifest row by row, and what is told of them is
written, `_SUCCESS` last.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from asap.storage.files import delete_folder, is_empty, write_bytes
from asap.storage.location import Location
from jobs.cluster import ray_running
from jobs.errors import JobFailed
from jobs.scan.input.manifest import write_manifest
from jobs.scan.output.completeness import count_rows, missing_rows, repair_results, write_missing, write_table
from jobs.scan.output.job_folder import Job, check_resumable, fail, is_finished, wait_until_free
from jobs.scan.output.summary import read_summary, write_outcome
from jobs.scan.plan import ScanPlan, plan_scan
from jobs.scan.settings import ScanSettings
from jobs.scan.stages.result_rows import failure, result_table

if TYPE_CHECKING:
    from jobs.scan.pipeline import ScanPipeline

_POLL_S = 0.5


@dataclass(frozen=True)
class ScanProgress:
    """Where a scan is. Counts are of rows, `done` with those of earlier runs."""

    stage: str
    """One line for a person: what is being done."""
    done: int = 0
    total: int = 0
    errors: int = 0
    flagged: int = 0
    pairs_per_s: float = 0.0


Watch = Callable[[ScanProgress], None]


def scan(settings: ScanSettings, watch: Watch = lambda progress: None) -> dict[str, Any]:
    """Scan, or go on with the same scan, or find that it is done; return its summary, as in `summary.json`.

    `watch` is told twice a second where the scan is, from another thread. Raises an `AsapError` of one sentence.
    """
    watch(ScanProgress("looking at the input and the model"))
    plan = plan_scan(settings)
    identity = plan.identity()
    record = check_resumable(plan.folder, identity)
    if record and is_finished(plan.folder):
        _clear(plan.folder)
        return read_summary(plan.folder)
    if record:
        wait_until_free(plan.folder, record, settings.stale_after_s, lambda line: watch(ScanProgress(line)))
    with Job(plan.folder, (record or {}) | _first_entries(plan, identity), settings.heartbeat_s) as job:
        _work(job, plan, watch)
    write_bytes(plan.folder / "_SUCCESS", b"")
    _clear(plan.folder)
    return read_summary(plan.folder)


def _clear(folder: Location) -> None:
    """Delete what only an unfinished job needs, and `_checkpoint` and `_alone`, which earlier versions left."""
    for name in ("_remaining", "_checkpoint", "_alone"):
        delete_folder(folder / name)


def _first_entries(plan: ScanPlan, identity: dict[str, Any]) -> dict[str, Any]:
    return {
        "kind": "scan",
        "settings": plan.settings.model_dump(),
        "identity": identity,
        "model_id": plan.model_id,
        "policy_id": plan.policy.policy_id,
        "policy": asdict(plan.policy),
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    names = ("asap-ray", "ray", "torch", "pyarrow", "pillow")
    found = {dist.name: dist.version for dist in map(_distribution, names) if dist}
    return {"python": platform.python_version()} | found


def _distribution(name: str) -> importlib.metadata.Distribution | None:
    try:
        return importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return None


def _work(job: Job, plan: ScanPlan, watch: Watch) -> None:
    rows = _manifest(job, plan, watch)
    job.update(state="running")
    watch(ScanProgress("starting Ray", total=rows))
    started = time.monotonic()
    with ray_running(plan.settings.address, **_local_cpus(plan.settings)):
        from jobs.scan.pipeline import size_pipeline

        _note_time(job, "ray_start_s", started)
        started = time.monotonic()
        pipeline = size_pipeline(
            plan.settings, plan.model, plan.config.image_size, rows, lambda note: watch(ScanProgress(note, total=rows))
        )
        _detect_all_rows(job, plan, pipeline, rows, watch)
    _note_time(job, "judge_s", started)
    job.update(state="finalizing")
    watch(ScanProgress("writing the summary and the report", rows, rows))
    started = time.monotonic()
    _finalize(job, plan)
    _note_time(job, "finalize_s", started)
    job.update(state="completed")


def _local_cpus(settings: ScanSettings) -> dict[str, int]:
    """The CPUs that this process may use, for a Ray of its own. A cluster has what it has."""
    return {} if settings.address else {"num_cpus": len(os.sched_getaffinity(0))}


def _note_time(job: Job, name: str, started: float) -> None:
    job.note(timings=job.record.get("timings", {}) | {name: round(time.monotonic() - started, 3)})


def _manifest(job: Job, plan: ScanPlan, watch: Watch) -> int:
    """The rows of the manifest, which is written if an earlier run has not done so to the end."""
    known = job.record.get("manifest")
    if known:
        check_manifest(plan.folder / "manifest", int(known["rows"]))
        return int(known["rows"])
    watch(ScanProgress("writing the manifest"))
    started = time.monotonic()
    for name in ("manifest", "results"):
        delete_folder(plan.folder / name)
    rows = write_manifest(plan.source.rows(), plan.folder / "manifest")
    _note_time(job, "manifest_s", started)
    check_manifest(plan.folder / "manifest", rows)
    job.update(manifest={"rows": rows, "kind": plan.source.kind})
    return rows


def check_manifest(manifest: Location, rows: int) -> None:
    """Raise `JobFailed` unless the manifest holds as many rows as were written: results are held against it."""
    if (held := count_rows(manifest)) != rows:
        raise JobFailed(
            f"{manifest} holds {held} rows where {rows} were written, so another process wrote or deleted there; "
            "choose another job or delete this one"
        )


def _detect_all_rows(job: Job, plan: ScanPlan, pipeline: ScanPipeline, rows: int, watch: Watch) -> None:
    """Judge until every row of the manifest is in the results, be it as an error."""
    folder = plan.folder
    results, remaining = folder / "results", folder / "_remaining"
    to_judge, missing = folder / "manifest", rows
    if not is_empty(results):
        # A job that is resumed judges a manifest of what is missing, in whole batches as a fresh one does.
        to_judge, missing = remaining, _write_remaining(folder)
    with _watched(job, rows - missing, rows, watch) as counter:
        if missing:
            _run(pipeline, to_judge, missing, results, counter)
        if lost_rows := _write_remaining(folder):
            _run(pipeline.one_row_at_a_time(), remaining, lost_rows, results, counter)
    if lost := _missing(folder):
        _write_lost(plan, pipeline, lost)
    if lost := _missing(folder):
        raise fail(f"{lost.num_rows} rows of the manifest are not in the results")
    check_results(folder / "results", rows)


def check_results(results: Location, rows: int) -> None:
    """Raise `JobFailed` unless the results hold as many rows as the manifest was written with."""
    if (held := count_rows(results)) != rows:
        raise JobFailed(
            f"{results} holds {held} rows and the manifest was written with {rows}, so another process wrote or "
            "deleted in the folder of the job; choose another job or delete this one"
        )


def _run(pipeline: ScanPipeline, manifest: Location, rows: int, results: Location, counter: Any) -> None:
    from jobs.scan.pipeline import run_pipeline

    try:
        run_pipeline(pipeline, manifest, rows, results, counter)
    except Exception as error:  # Ray wraps whatever stopped a worker in several layers
        raise fail(f"the work stopped: {_cause(error)}") from error


def _cause(error: Exception) -> str:
    """What went wrong on the worker: the last line of the first traceback in what Ray tells."""
    told = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).partition("\n\nThe above exception")[0]
    lines = [line.strip() for line in told.splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _write_remaining(folder: Location) -> int:
    """Write the manifest's rows that are not in the results to `_remaining`; return how many there are."""
    return write_missing(folder / "manifest", repair_results(folder / "results"), folder / "_remaining")


def _missing(folder: Location) -> pa.Table | None:
    tables = list(missing_rows(folder / "manifest", repair_results(folder / "results")))
    return pa.concat_tables(tables) if tables else None


def _write_lost(plan: ScanPlan, pipeline: ScanPipeline, lost: pa.Table) -> None:
    """Rows that ended every process that worked on them, alone too: errors like any other."""
    detail = "the process that worked on this pair died each time, with others and alone: its picture or its memory"
    row = failure("model_error", detail) | {"model_id": plan.model_id, "policy_id": plan.policy.policy_id}
    table = result_table(lost, [row] * lost.num_rows)
    write_table(table, plan.folder / "results" / f"lost-{time.time_ns()}.parquet")


@contextmanager
def _watched(job: Job, done: int, rows: int, watch: Watch) -> Iterator[Any]:
    """A counter for the detectors, read twice a second for the job's record and for `watch`."""
    import ray

    from jobs.scan.stages.progress import RowCounts, start_counter

    counter = start_counter()
    ended = threading.Event()

    def look() -> None:
        try:
            progress: RowCounts = ray.get(counter.read.remote())
        except ray.exceptions.RayError:  # counts are for people; what the results say is counted from them
            return
        counts = {"done": min(done + progress.rows, rows), "errors": progress.errors, "flagged": progress.flagged}
        job.note(counts=counts | {"total": rows}, pairs_per_s=round(progress.pairs_per_s, 2))
        stage = "judging" if progress.rows else "starting the workers"
        watch(ScanProgress(stage, total=rows, pairs_per_s=progress.pairs_per_s, **counts))

    def keep_looking() -> None:
        while not ended.wait(_POLL_S):
            look()

    thread = threading.Thread(target=keep_looking, name="progress", daemon=True)
    thread.start()
    try:
        yield counter
        look()
    finally:
        ended.set()
        thread.join()


def _finalize(job: Job, plan: ScanPlan) -> None:
    """Lists, summary and report; the report reads the job's record."""
    from jobs.scan.output.report import write_report

    job.update(counts=write_outcome(plan.folder, job.record))
    write_report(plan.folder)
