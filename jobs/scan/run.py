"""A bulk scan, from an input to a finished job folder.

Errors in the command are found before any work starts, and before Ray does. The input then becomes a manifest, the
pipeline turns its rows into results, and the results are compared with the manifest row by row. The lists, the summary
and the report are written from the results, and `_SUCCESS` is written last.

A sample of a large input is scanned before the rest. If most of it is unfamiliar to the model, the job stops there.
Failed rows can be judged again, also those of a finished job.
"""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from asap.limits import limits_sentences
from asap.storage.files import delete_file, delete_folder, is_empty
from jobs.descriptions.pinning import CONTENT, pinned
from jobs.errors import InputUnfamiliar
from jobs.scan import captioning, retry
from jobs.scan.input.manifest import write_tables
from jobs.scan.output.completeness import repair_results
from jobs.scan.output.job_folder import Job, check_resumable, is_finished, wait_until_free
from jobs.scan.output.summary import read_summary, write_outcome
from jobs.scan.passes import (
    ScanProgress,
    Watch,
    check_results,
    run_missing_rows,
    run_once,
    watched,
    write_remaining,
)
from jobs.scan.plan import ScanPlan, plan_scan
from jobs.scan.sample import SAMPLE, Sample, take_sample
from jobs.scan.settings import ScanSettings
from jobs.scan.stages.result_rows import RESULTS
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
from jobs.sharing import NOTHING, held_share

if TYPE_CHECKING:
    from jobs.scan.pipeline import ScanPipeline, StageResources


def scan(settings: ScanSettings, watch: Watch = lambda progress: None) -> dict[str, Any]:
    """Run a scan, resume it, or find that it is done; return its summary, as in `summary.json`.

    `watch` receives the progress twice a second, from another thread. Raises an `AsapError` with a message of one line;
    `InputUnfamiliar` if most of a sample is unfamiliar and the settings do not allow that.
    """
    began_s = time.time()
    watch(ScanProgress("checking the input and the model"))
    plan = plan_scan(settings)
    identity = plan.identity()
    record = check_resumable(plan.folder, identity)
    if record and is_finished(plan.folder) and "retry" not in record and not record.get("captioning"):
        delete_temporary(plan.folder)
        codes = settings.retry_errors
        if not codes:
            watch(ScanProgress("the job is finished, so nothing is scanned again"))
            return read_summary(plan.folder)
        results = plan.folder / "results"
        undescribed = captioning.rows_to_caption(results, late=False, codes=codes, kinds=tuple(settings.describers))
        if not retry.failed_rows(results, codes) and not undescribed:
            watch(ScanProgress(f"the job is finished, and no pair failed with {' or '.join(codes)}"))
            return read_summary(plan.folder)
    if record and record.get("state") == "unfamiliar" and not settings.allow_unfamiliar:
        raise InputUnfamiliar(_read_sample(record).sentence(plan.model_id, plan.limits))
    if record:
        wait_until_free(plan.folder, record, settings.stale_after_s, lambda line: watch(ScanProgress(line)))
    ask_cluster(settings, plan.path_uses, partial(_stages_on_gpus, settings), watch)
    if record is None:
        understood = look_at_input(plan.source, settings, watch)
    else:
        understood = record.get("input") or plan.source.describe()
    tries_engines = any(engine.engine != "precomputed" for engine in settings.describers.values())
    with cluster_for(settings, tries_engines=tries_engines):
        entries = (record or {}) | _first_entries(plan, identity) | _try_engines(plan, record, watch)
        entries |= {"input": understood, "began_s": round(began_s, 3)}
        run_job(plan.folder, settings, entries, lambda job: _work(job, plan, watch))
    return read_summary(plan.folder)


_ENTRIES = {"caption": "captioner", "explanation": "explainer"}
"""Entries in `job.json` of the engines, by what they write."""


def _try_engines(plan: ScanPlan, record: dict[str, Any] | None, watch: Watch) -> dict[str, Any]:
    """Have each engine describe a gray picture or a short text and show what it wrote; return entries of `job.json`.

    Raises the errors of `try_engine`. `record` is that of an earlier run, if there is any.
    """
    settings, entries = plan.settings, {}
    fingerprints = {"caption": plan.captioner, "explanation": plan.explainer}

    def notify(line: str) -> None:
        watch(ScanProgress(line))

    def find_room(kind: str) -> tuple[StageResources, str]:
        from jobs.scan.pipeline import find_room

        room = find_room(settings, settings.describers, notify)
        return room.shares.describe[kind], room.device

    for kind, engine in settings.describers.items():
        entry = _ENTRIES[kind]
        if engine.engine == "precomputed":
            entries[entry] = {"engine": engine.engine, "file": engine.source, CONTENT: fingerprints[kind]}
            continue
        from jobs.scan.trial import try_engine

        notify(f"trying the {entry} on a {'gray picture' if kind == 'caption' else 'short text'}")
        former = (record or {}).get(entry)
        entries[entry] = try_engine(engine, settings, partial(find_room, kind), notify, former)
    return entries


def _stages_on_gpus(settings: ScanSettings) -> tuple[StageResources, ...]:
    """Return the stages of the first pass as they are on GPUs."""
    from jobs.scan.pipeline import size_stages

    shares = size_stages(settings, {} if settings.captions_late else settings.describers, [], on_gpu=True)
    return (*shares.describe.values(), shares.detect)


def _first_entries(plan: ScanPlan, identity: dict[str, Any]) -> dict[str, Any]:
    """Return what each start of the job writes into `job.json`."""
    return {
        "kind": "scan",
        "settings": plan.settings.model_dump(),
        "identity": identity,
        "model_id": plan.model_id,
        "policy_id": plan.policy.policy_id,
        "policy": asdict(plan.policy),
        "familiarity_id": plan.familiarity_id,
        "limits": limits_sentences(plan.limits, plan.model_id),
        "versions": versions(),
    }


def _work(job: Job, plan: ScanPlan, watch: Watch) -> None:
    """Do all steps of a claimed job, and record the state and the time of each."""
    plan_s = round(time.time() - job.record["began_s"], 3)
    job.note(timings=job.record.get("timings", {}) | {"plan_s": plan_s}, first_s={})
    rows = prepare_manifest(job, plan.source, RESULTS, watch)
    _check_sample(job, plan)  # an earlier run with `allow_unfamiliar` may have gone on after its sample

    job.update(state="running")
    watch(ScanProgress("starting Ray", total=rows))
    with ray_for(job, plan.settings):
        started = time.monotonic()
        pipeline = _size_pipeline(job, plan, rows, watch, with_captions=not plan.settings.captions_late)
        with paths_checked(job, plan.settings, plan.path_uses):
            _detect_all_rows(job, plan, pipeline, rows, watch)
            if plan.settings.retry_errors or "retry" in job.record:
                retry_failed_rows(job, pipeline, plan.settings.retry_errors, rows, watch, plan.settings.stall_after_s)
            note_time(job, "judge_s", started)
            if plan.settings.captions_late or plan.settings.retry_errors or job.record.get("captioning"):
                started = time.monotonic()
                _caption_rows(job, plan, rows, watch)
                note_time(job, "caption_s", started)
        if share := held_share():  # the models are done, and other jobs may have their machines
            share.replace(NOTHING, is_awaited=False)
        # Within the block: tasks write the lists of a large job.
        job.update(state="finalizing")
        watch(ScanProgress("writing the summary and the report", rows, rows))
        _write_output(job)
    job.update(state="completed")


def _size_pipeline(job: Job, plan: ScanPlan, rows: int, watch: Watch, *, with_captions: bool) -> ScanPipeline:
    """Return a pipeline for the Ray that runs, with the models that the job began with; see `size_pipeline`."""
    from jobs.scan.pipeline import size_pipeline

    pipeline = size_pipeline(
        plan.settings,
        plan.model,
        plan.config.image_size,
        rows,
        lambda note: watch(ScanProgress(note, total=rows)),
        run_id=job.record["run_id"],
        with_captions=with_captions,
    )
    ids = plan.model_id, plan.policy.policy_id, plan.familiarity_id
    pipeline = replace(
        pipeline,
        detection=replace(pipeline.detection, ids=ids),
        preparation=replace(pipeline.preparation, reader=plan.reader),
    )
    describers = []
    for describer in pipeline.describers:
        began = job.record[_ENTRIES[describer.settings.kind]]
        describers.append(replace(describer, settings=pinned(describer.settings, began), content=began.get(CONTENT)))
    return replace(pipeline, describers=tuple(describers))


def _write_output(job: Job) -> None:
    """Write the lists, the summary and the report from the results that exist."""
    from jobs.scan.output.report import write_report

    started = time.monotonic()
    counts, tally = write_outcome(job.folder, job.record, job.check)
    job.update(counts=counts | {"total": job.record["manifest"]["rows"]})
    write_report(job.folder, tally=tally)  # after the update: it shows the job's record
    note_time(job, "finalize_s", started)


def _detect_all_rows(job: Job, plan: ScanPlan, pipeline: ScanPipeline, rows: int, watch: Watch) -> None:
    """Run the pipeline until every row of the manifest is in the results, some of them as errors.

    Raises `InputUnfamiliar` if a sample is scanned first, and most of it is unfamiliar.
    """
    missing = rows if is_empty(plan.folder / "results") else write_remaining(plan.folder)
    with watched(job, rows - missing, rows, watch, plan.settings.stall_after_s) as counter:
        if missing and _needs_sample(job, plan, rows):
            _scan_sample(job, plan, pipeline, rows, counter)
            missing = write_remaining(plan.folder)
        run_missing_rows(job, pipeline, plan.folder, rows, missing, counter)


def _caption_rows(job: Job, plan: ScanPlan, rows: int, watch: Watch) -> None:
    """Caption and explain rows that were judged, or that wait for a caption in place of their text, and publish that.

    These are flagged rows if the settings say so, and captions and explanations that failed if the settings retry them.
    """
    kinds = tuple(plan.settings.describers)
    folder = plan.folder / captioning.FOLDER
    if not job.record.get("captioning"):
        chosen = captioning.choose_rows(
            plan.folder,
            late=plan.settings.captions_late,
            codes=plan.settings.retry_errors,
            besides_run=job.record["run_id"],
            kinds=kinds,
        )
        if not chosen:
            return
        job.update(captioning={"rows": chosen})
    delete_file(plan.folder / "_SUCCESS")
    again = job.record["captioning"]["rows"]
    missing = again if is_empty(folder / "results") else write_remaining(folder)
    pipeline = _size_pipeline(job, plan, again, watch, with_captions=True)
    with watched(job, again - missing, again, watch, plan.settings.stall_after_s, is_captioning=True) as counter:
        run_missing_rows(job, pipeline, folder, again, missing, counter)
    watch(ScanProgress(f"publishing the {' and '.join(f'{kind}s' for kind in kinds)}", again, again))
    captioning.publish(plan.folder, job.check, kinds)
    check_results(plan.folder / "results", rows)
    job.update(captioning=None)


def _needs_sample(job: Job, plan: ScanPlan, rows: int) -> bool:
    """Return True if a sample decides about the rest: of a large input, by a model and a policy that know strangeness.

    A sample that an earlier run has taken is not taken again.
    """
    knows_strangeness = plan.familiarity_id is not None and plan.policy.unfamiliar > 0
    is_wanted = knows_strangeness and rows > SAMPLE and not plan.settings.allow_unfamiliar
    return is_wanted and "sample" not in job.record


def _scan_sample(job: Job, plan: ScanPlan, pipeline: ScanPipeline, rows: int, counter: Any) -> None:
    """Scan a sample of the manifest into the results. Raises `InputUnfamiliar` if most of it is unfamiliar."""
    results, folder = plan.folder / "results", plan.folder / "_sample"

    def scan_rows(table: pa.Table) -> None:
        new = table.filter(pa.array(~repair_results(results).contains(table["row_id"].to_numpy())))
        delete_folder(folder)
        if new.num_rows:
            # In their order, since pictures of one table are read from its beginning to its end.
            write_tables([new.sort_by("row_id")], folder)
            run_once(job, pipeline, folder, results, counter)
            counter.start_pipeline.remote()

    sample = take_sample(plan.folder / "manifest", rows, results, scan_rows)
    job.update(sample=asdict(sample))
    _check_sample(job, plan)


def _check_sample(job: Job, plan: ScanPlan) -> None:
    """Stop the job if its sample is mostly unfamiliar: write what exists, and raise `InputUnfamiliar`."""
    sample = _read_sample(job.record)
    if plan.settings.allow_unfamiliar or not sample.is_mostly_unfamiliar:
        return
    repair_results(plan.folder / "results")
    reason = sample.sentence(plan.model_id, plan.limits)
    job.update(state="finalizing", error=reason)  # the report shows the reason
    _write_output(job)
    # A retry and captions that were stopped stay: the job goes on with them if it may.
    for name in ("_remaining", "_sample"):
        delete_folder(plan.folder / name)
    raise InputUnfamiliar(reason)


def _read_sample(record: dict[str, Any]) -> Sample:
    """Return the sample that a job has taken, as its record says; an empty one if it has taken none."""
    return Sample(**record.get("sample", {"judged": 0, "unfamiliar": 0}))
