"""A job of annotations, from an input to a finished folder.

Errors in the command are found before any work starts, and before Ray does. The input becomes a manifest, the engines
describe its pictures and texts, and the rows are compared with the manifest. The JSON files are written from the rows,
and `_SUCCESS` is written last. The same command resumes a job that was stopped, and describes nothing twice.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from asap.storage.files import is_empty
from jobs.annotate.outputs import read_summary, write_outputs
from jobs.annotate.plan import AnnotatePlan, plan_annotation
from jobs.annotate.rows import ANNOTATIONS
from jobs.annotate.settings import AnnotateSettings
from jobs.descriptions.pinning import CONTENT, pinned
from jobs.scan import retry
from jobs.scan.output.job_folder import Job, check_resumable, is_finished, wait_until_free
from jobs.scan.passes import ScanProgress, Watch, check_results, run_missing_rows, watched, write_remaining
from jobs.scan.steps import (
    ask_cluster,
    cluster_for,
    delete_temporary,
    look_at_input,
    note_time,
    paths_checked,
    prepare_manifest,
    ray_for,
    retry_failed_rows,
    run_job,
    versions,
)

if TYPE_CHECKING:
    from jobs.annotate.pipeline import AnnotatePipeline
    from jobs.scan.pipeline import StageResources

KIND = "annotate"
"""Kind of the job in its record."""


def annotate(settings: AnnotateSettings, watch: Watch = lambda progress: None) -> dict[str, Any]:
    """Run a job, resume it, or find that it is done; return its summary, as in `annotations.json`.

    `watch` receives the progress twice a second, from another thread. Raises an `AsapError` with a message of one line.
    """
    began_s, watch = time.time(), _without_flags(watch)
    watch(ScanProgress("checking the input and the engines"))
    plan = plan_annotation(settings)
    identity = plan.identity()
    record = check_resumable(plan.folder, identity)
    if record and is_finished(plan.folder) and "retry" not in record:
        delete_temporary(plan.folder)
        codes = settings.retry_errors
        if not codes or not retry.failed_rows(plan.folder / ANNOTATIONS.folder, codes, shape=ANNOTATIONS):
            but = f", and no pair failed with {' or '.join(codes)}" if codes else ", so nothing is described again"
            watch(ScanProgress(f"the job is finished{but}"))
            return read_summary(plan.folder)
    if record:
        wait_until_free(plan.folder, record, settings.stale_after_s, lambda line: watch(ScanProgress(line)))
    ask_cluster(settings, plan.path_uses, partial(_stages_on_gpus, settings), watch)
    if record is None:
        understood = look_at_input(plan.source, settings, watch, pictures=settings.thumbnail_side is not None)
    else:
        understood = record["input"]
    tries_engines = any(engine.engine != "precomputed" for engine in settings.engines.values())
    with cluster_for(settings, tries_engines=tries_engines):
        entries = (record or {}) | {
            "kind": KIND,
            "settings": settings.model_dump(),
            "identity": identity,
            "engines": _try_engines(plan, (record or {}).get("engines", {}), watch),
            "versions": versions("transformers", "openai"),
            "input": understood,
            "began_s": round(began_s, 3),
        }
        run_job(plan.folder, settings, entries, lambda job: _work(job, plan, watch))
    return read_summary(plan.folder)


def _without_flags(watch: Watch) -> Watch:
    """Return a receiver that hands progress on without a count of flagged pairs: this job flags none."""
    return lambda progress: watch(replace(progress, flagged=None))


def _try_engines(plan: AnnotatePlan, former: dict[str, dict[str, Any]], watch: Watch) -> dict[str, dict[str, Any]]:
    """Have each engine describe a gray picture or a short text, show what it wrote, and return what decides its work.

    Raises the errors of `try_engine`. `former` is what an earlier run returned, if there is any.
    """
    from jobs.scan.trial import try_engine

    def notify(line: str) -> None:
        watch(ScanProgress(line))

    def find_room(kind: str) -> tuple[StageResources, str]:
        from jobs.annotate.pipeline import find_room

        room = find_room(plan.settings, notify)
        return room.engines[kind], room.device

    records = {}
    for kind, engine in plan.settings.engines.items():
        records[kind] = {"engine": engine.engine, "model": engine.source, "fingerprint": plan.engines[kind]}
        if engine.engine == "precomputed":
            records[kind][CONTENT] = plan.engines[kind]
        else:
            notify(f"trying the engine of {kind}s")
            records[kind] |= try_engine(engine, plan.settings, partial(find_room, kind), notify, former.get(kind))
    return records


def _work(job: Job, plan: AnnotatePlan, watch: Watch) -> None:
    """Do all steps of a claimed job, and record the state and the time of each."""
    settings = plan.settings
    job.note(timings=job.record.get("timings", {}), first_s={})
    rows = prepare_manifest(job, plan.source, ANNOTATIONS, watch)

    job.update(state="running")
    watch(ScanProgress("starting Ray", total=rows))
    with ray_for(job, settings):
        started = time.monotonic()
        _describe_all_rows(job, plan, rows, watch)
        if settings.retry_errors or "retry" in job.record:
            _retry(job, plan, rows, watch)
    note_time(job, "describe_s", started)

    job.update(state="finalizing")
    watch(ScanProgress("writing the JSON files", rows, rows))
    started = time.monotonic()
    write_outputs(plan.folder, job.record, settings.engines)
    summary = read_summary(plan.folder)
    counts = {"pairs": summary["pairs"], "errors": summary["errors"], "done": summary["pairs"], "total": rows}
    job.update(counts=counts)
    note_time(job, "finalize_s", started)
    job.update(state="completed")


def _describe_all_rows(job: Job, plan: AnnotatePlan, rows: int, watch: Watch) -> None:
    """Run the pipeline until every row of the manifest has its annotation, some of them as errors."""
    folder, settings = plan.folder, plan.settings
    missing = rows if is_empty(folder / ANNOTATIONS.folder) else write_remaining(folder, ANNOTATIONS)
    if not missing:
        check_results(folder / ANNOTATIONS.folder, rows)
        return
    pipeline = _sized(job, plan, rows, watch)
    with (
        paths_checked(job, settings, plan.path_uses),  # machines may have come meanwhile
        watched(job, rows - missing, rows, watch, settings.stall_after_s, ANNOTATIONS) as counter,
    ):
        run_missing_rows(job, pipeline, folder, rows, missing, counter)


def _stages_on_gpus(settings: AnnotateSettings) -> tuple[StageResources, ...]:
    """Return the stages as they are on GPUs."""
    from jobs.annotate.pipeline import size_engines

    return size_engines(settings, [], on_gpu=True)[0]


def _retry(job: Job, plan: AnnotatePlan, rows: int, watch: Watch) -> None:
    """Try failed rows again. What is known is read anew, so that a failure of this run is not taken for an answer."""
    settings = plan.settings
    pipeline = _sized(job, plan, rows, watch)
    with paths_checked(job, settings, plan.path_uses):
        retry_failed_rows(job, pipeline, settings.retry_errors, rows, watch, settings.stall_after_s)


def _sized(job: Job, plan: AnnotatePlan, rows: int, watch: Watch) -> AnnotatePipeline:
    """Return a pipeline for the Ray that runs, with the models that the job began with; see `size_annotation`."""
    from jobs.annotate.pipeline import size_annotation

    def note(line: str) -> None:
        watch(ScanProgress(line, total=rows))

    pipeline = size_annotation(plan.settings, plan.source.location, rows, note, job.record["run_id"])
    orders = []
    for order in pipeline.orders:
        engine = job.record["engines"][order.settings.kind]
        orders.append(replace(order, settings=pinned(order.settings, engine), content=engine.get(CONTENT)))
    return replace(pipeline, orders=tuple(orders))
