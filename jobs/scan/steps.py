"""The steps that every job over a manifest takes, from the look at its input to the file that marks its end."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any

from asap.storage.files import delete_file, delete_folder, is_empty, write_bytes
from asap.storage.location import Location
from jobs.cluster import ray_running
from jobs.errors import JobFailed, JobInUse
from jobs.metrics import targets_announced
from jobs.reach import PathUse, check_cluster, late_machines_asked
from jobs.scan import captioning, retry
from jobs.scan.input.manifest import write_manifest
from jobs.scan.input.sources import Source
from jobs.scan.look import SCAN_S, look_at, notes_of
from jobs.scan.output import parts
from jobs.scan.output.completeness import count_rows
from jobs.scan.output.job_folder import Job, is_same_run
from jobs.scan.passes import ScanProgress, Watch, check_results, run_missing_rows, watched, write_remaining
from jobs.scan.settings import PairsSettings
from jobs.scan.stages.row_shape import RowShape
from jobs.sharing import NOTHING, shared
from jobs.states import job_states

if TYPE_CHECKING:
    from jobs.scan.pipeline import RowPipeline, StageResources


def versions(*more: str) -> dict[str, str]:
    """Return the versions of Python and of the packages that decide results, and of more packages, for `job.json`."""
    found = {"python": platform.python_version()}
    for name in ("asap-ray", "ray", "torch", "pyarrow", "pillow", *more):
        with suppress(importlib.metadata.PackageNotFoundError):  # a checkout that is not installed
            package = importlib.metadata.distribution(name)
            found[package.name] = package.version
    return found


def ask_cluster(
    settings: PairsSettings,
    path_uses: Callable[[], Sequence[PathUse]],
    stages: Callable[[], Sequence[StageResources]],
    watch: Watch,
) -> None:
    """Refuse what the cluster of a job can never do, before any work; see `check_cluster`. Without one, do nothing.

    Args:
        settings: Settings of the job.
        path_uses: Returns the paths of the job.
        stages: Returns the stages on GPUs, which are demanded if the settings demand GPUs.
        watch: Receives what is asked, and a note.
    """
    if settings.address:
        watch(ScanProgress("asking the machines of the cluster what they can read"))
        on_gpus = [stage for stage in stages() if stage.gpus] if settings.device.startswith("cuda") else []
        demands = [({"CPU": stage.cpus, "GPU": stage.gpus}, stage.size or 1) for stage in on_gpus]
        if settings.needs_gpu:
            demands.append(({"GPU": 1}, 1))
        check_cluster(settings, path_uses(), demands, lambda note: watch(ScanProgress(note)))


@contextmanager
def paths_checked(job: Job, settings: PairsSettings, path_uses: Callable[[], Sequence[PathUse]]) -> Iterator[None]:
    """Check that each machine of the cluster can use the paths of a job, also those that come during the block."""
    if settings.address is None:
        yield
        return
    with late_machines_asked(path_uses()) as check, job.also_checked(check):
        yield


def look_at_input(source: Source, settings: PairsSettings, watch: Watch, *, pictures: bool = True) -> dict[str, Any]:
    """Report what is worth knowing of the input of a new job, and return what was understood of it.

    Raises `InputNotFound` if all of a sample would fail, unless the settings allow that.

    Args:
        source: The input.
        settings: Settings of the job.
        watch: Receives the notes.
        pictures: True if the job reads pictures, so that those of the sample are read too.
    """
    look = look_at(source, settings, seconds=SCAN_S, is_quick=True, pictures=pictures)
    for note in notes_of(look.source):
        watch(ScanProgress(note))
    if not settings.allow_unreadable:
        look.check(settings.input)
    return look.source


def run_job(folder: Location, settings: PairsSettings, entries: dict[str, Any], work: Callable[[Job], None]) -> None:
    """Claim a job, do its work, and mark it as finished.

    Raises `JobInUse` if another process has worked on the job since its record was read: what was decided by that
    record may be wrong.

    Args:
        folder: Folder of the job.
        settings: Settings of the job.
        entries: Record of an earlier run with the entries that each start writes; `kind` is among them.
        work: Does the work, and records the state `completed` at its end.
    """
    if entries.get("runs") and not is_same_run(folder, entries):
        raise JobInUse(f"{folder} is in use: another process has gone on with it. Wait for it, and try again.")
    with job_states(settings, entries["kind"], folder.name, folder) as states:
        with Job(folder, entries, settings.heartbeat_s, states.change) as job:
            work(job)
        # Only after the record says `completed`: whoever sees _SUCCESS finds every other file in its final state.
        write_bytes(folder / "_SUCCESS", b"")
        delete_temporary(folder)


def delete_temporary(folder: Location) -> None:
    """Delete what only an unfinished job needs, and `_checkpoint` and `_alone`, which earlier versions left."""
    names = ("_remaining", "_sample", "_checkpoint", "_alone", retry.FOLDER, captioning.FOLDER, parts.FOLDER)
    for name in names:
        delete_folder(folder / name)


def own_cpus() -> int:
    """Return the CPUs of a Ray that this process starts: those that the process may use, and no others."""
    return len(os.sched_getaffinity(0))


@contextmanager
def cluster_for(settings: PairsSettings, *, tries_engines: bool) -> Iterator[None]:
    """Join the cluster of a job that tries engines, and hold one share of it, from the trial to the end of the job.

    Without a trial, `ray_for` joins the cluster, within the record of the job. Without a cluster, start Ray if the
    stages of an engine are tried, else do nothing.
    """
    if settings.address is None and settings.needs_gpu:
        with ray_running(num_cpus=own_cpus()):
            yield
        return
    if settings.address is None or not tries_engines:
        yield
        return
    with ray_running(settings.address), shared():
        yield


@contextmanager
def ray_for(job: Job, settings: PairsSettings) -> Iterator[None]:
    """Have Ray run during the block, hold a share of its cluster, announce its pages of metrics, and record a stop.

    The stop is recorded as soon as it leaves the block: the end of Ray, which follows, takes seconds. After the block
    the job claims nothing of its cluster.
    """
    started = time.monotonic()
    cpus = {} if settings.address else {"num_cpus": own_cpus()}
    share = shared() if settings.address else nullcontext()
    with ray_running(settings.address, **cpus), targets_announced(settings.metrics_targets), share as held:
        note_time(job, "ray_start_s", started)
        try:
            yield
        except KeyboardInterrupt:
            job.cancel()
            raise
        if held:
            held.replace(NOTHING, is_awaited=False)


def note_time(job: Job, name: str, started: float) -> None:
    """Note the seconds of a step that started at this time of the monotonic clock."""
    job.note(timings=job.record.get("timings", {}) | {name: round(time.monotonic() - started, 3)})


def prepare_manifest(job: Job, source: Source, shape: RowShape, watch: Watch) -> int:
    """Write the manifest, unless an earlier run has written all of it; return its number of rows."""
    written = job.record.get("manifest")
    if written:
        check_manifest(job.folder / "manifest", int(written["rows"]))
        return int(written["rows"])
    watch(ScanProgress("writing the manifest"))
    started = time.monotonic()
    # A run that was killed here left a part of a manifest. Results that belong to no manifest are of no use either.
    for name in ("manifest", shape.folder):
        delete_folder(job.folder / name)
    rows = write_manifest(source.tables(), job.folder / "manifest")
    note_time(job, "manifest_s", started)
    check_manifest(job.folder / "manifest", rows)
    job.update(manifest={"rows": rows, "kind": source.kind})
    return rows


def check_manifest(manifest: Location, rows: int) -> None:
    """Raise `JobFailed` unless the manifest holds as many rows as were written: results are compared with it."""
    if (held := count_rows(manifest)) != rows:
        raise JobFailed(
            f"{manifest} holds {held} rows, but {rows} were written: another process wrote or deleted files there. "
            "Choose another folder for the job, or delete this one."
        )


def retry_failed_rows(
    job: Job, pipeline: RowPipeline, codes: Sequence[str], rows: int, watch: Watch, stall_after_s: float
) -> None:
    """Do the work on failed rows again, as the codes ask or as a retry that was stopped had begun; publish them.

    Args:
        job: The job.
        pipeline: The pipeline.
        codes: Error codes, or `retry.RETRYABLE`.
        rows: Rows of the manifest.
        watch: Receives the progress.
        stall_after_s: Seconds without a finished row that make a stall.
    """
    shape, folder = pipeline.shape, job.folder / retry.FOLDER
    if "retry" not in job.record:
        watch(ScanProgress("looking for failed pairs", rows, rows))
        chosen = retry.choose_rows(job.folder, codes, besides_run=job.record["run_id"], shape=shape)
        if not chosen:
            return
        job.update(retry={"run": job.record["run_id"], "errors": list(codes), "rows": chosen})
    delete_file(job.folder / "_SUCCESS")  # nobody may take the job for finished, or give it another policy
    again = job.record["retry"]["rows"]
    missing = again if is_empty(folder / shape.folder) else write_remaining(folder, shape)
    with watched(job, rows - missing, rows, watch, stall_after_s, shape) as counter:
        run_missing_rows(job, pipeline, folder, again, missing, counter)
    watch(ScanProgress("publishing the new outcomes", rows, rows))
    retry.publish(job.folder, job.record["retry"]["run"], shape, job.check)
    check_results(job.folder / shape.folder, rows)
    job.end_retry()
