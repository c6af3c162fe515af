"""Evaluation of a model on a labeled corpus by Ray workers: metrics, charts, and a page with the worst pairs.

A shard is a range of record numbers, and its `Evaluation` depends on those records alone. The driver keeps one
evaluation per shard and merges them in order, so a worker that dies costs time, but no pair is lost or counted twice.
Predictions are merged, not metrics: a mean of AUCs is not the AUC. Workers read the model, and the pictures of a corpus
that is not in a bucket, from a disk that they share. Everything that can be checked early is checked before Ray starts.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import version
from itertools import islice
from typing import Any

import numpy as np
import ray
import torch
from scipy.special import expit

from asap.corpus.annotations import BadBox
from asap.corpus.folder import full_address
from asap.corpus.picture_cache import read_picture
from asap.corpus.reader import Record
from asap.errors import AsapError, CheckpointError, ConfigError
from asap.evaluation.evaluate import evaluate_records
from asap.evaluation.intervals import bootstrap_intervals
from asap.evaluation.metrics import Evaluation, Predictions, coverage_metrics
from asap.evaluation.reliability import reliability
from asap.finding import Finding, Pair
from asap.limits import limits_sentences
from asap.policy import Policy
from asap.predictor import Predictor
from asap.preprocessing.text import TextCodec
from asap.storage.files import delete_file, list_files, read_bytes, write_bytes
from asap.storage.location import Location
from asap.weights.model_folder import ModelFolder, load_folder, resolve_folder
from jobs.cluster import (
    count_fitting,
    describe_waits,
    machines_alive,
    ray_running,
    wait_for_resources,
    wait_until_free,
)
from jobs.corpus import read_corpus
from jobs.errors import JobDiffers, JobFailed
from jobs.evaluate.charts import draw_figures
from jobs.evaluate.page import WorstPair, evaluation_page
from jobs.evaluate.settings import EvaluateSettings
from jobs.evaluate.verdicts import first_sentence, verdict_shares
from jobs.stall import StallWatch
from jobs.states import job_states

METRICS, PAGE = "metrics.json", "index.html"
OUTPUTS = (METRICS, PAGE, "roc.svg", "precision_recall.svg", "iou.svg", "reliability.svg")
"""Files that an evaluation writes into its folder."""
_POLL_S = 0.5
TRIES = 3
"""Attempts at a shard whose worker dies."""

Report = dict[str, Any]
OnPairs = Callable[[int, int], None]


def evaluate(
    settings: EvaluateSettings,
    progress: OnPairs = lambda done, total: None,
    on_note: Callable[[str], None] = lambda note: None,
) -> Report:
    """Evaluate a model on a split, write the results to `settings.out`, and return the report (`metrics.json`).

    Raises `CorpusError`, `AnnotationError`, `InputError` for a picture that cannot be used, `CheckpointError`,
    `ConfigError`, `JobDiffers` if the folder holds another evaluation, `JobFailed`.

    Args:
        settings: The model, the corpus and how to run.
        progress: Receives the number of evaluated pairs and of all pairs.
        on_note: Receives a sentence if the machines are not those that were requested.
    """
    out = Location.parse(settings.out)
    with job_states(settings, "evaluate", out.name, out) as states:

        def report(done: int, total: int) -> None:
            states.note(done=done, total=total)
            progress(done, total)

        states.change({"state": "validating"})
        plan = plan_evaluation(settings)
        states.change({"state": "running"})
        with ray_running(settings.address):
            pool = _worker_pool(settings, on_note)
            needs = {"CPU": pool.options["num_cpus"]} | ({"GPU": 1} if pool.device == "cuda" else {})
            wait_until_free(
                needs, 1, settings.wait_for_machines_s, on_note, "Or give more --workers, which need less each."
            )
            evaluation = _evaluate(plan, pool, report, on_note)
            predictions = evaluation.predictions()
            worst = _explain_worst(plan, pool, predictions)
        states.change({"state": "finalizing"})
        return _write(plan, evaluation, predictions, worst)


@dataclass(frozen=True)
class EvaluationPlan:
    """An evaluation that is checked and can start."""

    settings: EvaluateSettings
    records: list[Record]
    in_split: int
    """Number of records in the split, before `limit`."""
    read: list[str]
    """Findings of reading the corpus, one sentence each."""
    model: str
    """Absolute path of the model folder, or `demo`, which every worker finds in its own installation."""
    model_id: str
    out: Location
    policy: Policy
    """The policy of the model folder."""
    limits: str
    """The limits of the model, in plain words."""

    def about(self) -> Report:
        """Return the fields that identify the evaluation, for `metrics.json`."""
        return {
            "model_id": self.model_id,
            "corpus": full_address(self.settings.corpus),
            "split": self.settings.split,
            "limit": self.settings.limit,
        }


def plan_evaluation(settings: EvaluateSettings) -> EvaluationPlan:
    """Check the corpus, the model and the output folder. Raises an `AsapError` of one sentence."""
    path = resolve_folder(settings.model).resolve()
    loaded = load_folder(path)
    corpus = read_corpus(settings, full_address(settings.corpus), settings.split, loaded.config.label_set)
    plan = EvaluationPlan(
        settings=settings,
        records=corpus.records[: settings.limit],
        in_split=len(corpus.records),
        read=corpus.report.lines(),
        model="demo" if settings.model == "demo" else str(path),
        model_id=loaded.model_id,
        out=Location.parse(settings.out),
        policy=loaded.policy,
        limits=limits_sentences(loaded.limits, loaded.model_id),
    )
    _check_out(plan)
    return plan


def _check_out(plan: EvaluationPlan) -> None:
    """Refuse a folder that holds anything else or another evaluation, or that cannot be written to."""
    # A hundred files are enough to find one that is foreign; a bucket may hold millions.
    names = [info.location.uri.removeprefix(f"{plan.out.uri}/") for info in islice(list_files(plan.out), 100)]
    if foreign := [name for name in names if name not in OUTPUTS]:
        raise ConfigError(
            f"{plan.out} holds {foreign[0]!r}, which does not belong to an evaluation. Choose another --out."
        )
    if METRICS in names:
        found, now = json.loads(read_bytes(plan.out / METRICS)).get("about", {}), plan.about()
        differs = [f"{name} {found.get(name)!r} (now {now[name]!r})" for name in now if found.get(name) != now[name]]
        if differs:
            raise JobDiffers(f"{plan.out} holds another evaluation: {', '.join(differs)}. Choose another --out.")
    probe = plan.out / ".probe"
    write_bytes(probe, b"")
    delete_file(probe)


@dataclass(frozen=True)
class WorkerPool:
    """The workers that evaluate shards in parallel."""

    workers: int
    device: str
    threads: int
    options: dict[str, Any]
    """Options of their Ray task."""


def _worker_pool(settings: EvaluateSettings, on_note: Callable[[str], None] = lambda note: None) -> WorkerPool:
    """Size the workers for the running Ray: one GPU each, or an equal part of the CPUs."""
    gpus = count_fitting(machines_alive(), {"CPU": 1, "GPU": 1})
    on_gpus = settings.device == "cuda" or (settings.device == "auto" and gpus > 0)
    if settings.device == "auto" and not on_gpus and settings.address:
        on_note("evaluating on CPUs: no GPU is alive. --device cuda waits for one.")
    wait_s = settings.wait_for_machines_s if settings.address else 0
    needs = {"CPU": 1, "GPU": 1} if on_gpus else {"CPU": 1}
    advice = "Use --device auto to run on what exists." if on_gpus else "Add a machine with CPUs."
    machines = wait_for_resources(needs, 1, wait_s, on_note, advice)
    retries = {"max_retries": TRIES - 1}
    if on_gpus:
        workers = settings.workers or count_fitting(machines, needs)
        # Without max_calls=0, Ray ends a process that holds a GPU after one shard, and the loaded model with it.
        return WorkerPool(workers, "cuda", 1, {"num_cpus": 1, "num_gpus": 1, "max_calls": 0} | retries)
    cpus_per_machine = [cpus for machine in machines if (cpus := int(machine.get("CPU", 0)))]
    cpus = sum(cpus_per_machine)
    workers = settings.workers or max(1, cpus // 2)
    # A task runs on one machine, so it must fit on the smallest.
    threads = max(1, min(cpus // workers, min(cpus_per_machine)))
    return WorkerPool(workers, "cpu", threads, {"num_cpus": min(threads, cpus / workers)} | retries)


def _evaluate(
    plan: EvaluationPlan, pool: WorkerPool, progress: OnPairs, on_note: Callable[[str], None] = lambda note: None
) -> Evaluation:
    """Evaluate every pair of the plan, shard by shard."""
    size, total = plan.settings.shard_pairs, len(plan.records)
    # A box outside its picture is found only now, as the picture is decoded. The set of pairs is fixed by then, so
    # `skip` keeps the pair without its box, as `boxless` does.
    bad_boxes: BadBox = "refuse" if plan.settings.bad_boxes == "refuse" else "boxless"
    options = plan.model, plan.model_id, pool.device, pool.threads, plan.settings.batch_size
    task = ray.remote(**pool.options)(evaluate_shard)
    waiting = iter(range(0, total, size))
    running: dict[Any, int] = {}
    shards: dict[int, Evaluation] = {}
    stalls = StallWatch("shard", plan.settings.stall_after_s, describe_waits, is_steady=False)
    progress(0, total)
    try:
        while len(shards) * size < total:
            # Keep `pool.workers` shards in flight, even if Ray has room for more.
            for start in islice(waiting, pool.workers - len(running)):
                running[task.remote(*options, plan.records[start : start + size], bad_boxes)] = start
            done = _wait_for_shard(list(running), stalls, len(shards), on_note)
            start = running.pop(done)
            shards[start] = _result(done, f"pairs {start} to {min(start + size, total) - 1}")
            progress(sum(map(len, shards.values())), total)
    finally:
        for task_left in running:
            ray.cancel(task_left, force=True)
    return merge_shards(shards, total)


def _wait_for_shard(running: list[Any], stalls: StallWatch, finished: int, on_note: Callable[[str], None]) -> Any:
    """Return the first of the tasks that ends. Report it if none does for long."""
    said = None
    while True:
        done, _ = ray.wait(running, timeout=_POLL_S)
        if done:
            return done[0]
        note = stalls.look(finished, "evaluating")
        if note is not None and note != said:
            on_note(note)
        said = note


def merge_shards(shards: dict[int, Evaluation], pairs: int) -> Evaluation:
    """Merge the evaluations of shards, keyed by the number of their first pair, into that of pairs 0 to `pairs` - 1.

    Raises `JobFailed` if the shards do not follow each other without gap or overlap.
    """
    merged = Evaluation()
    for start in sorted(shards):
        if start != len(merged):
            break
        merged.merge(shards[start])
    if len(merged) != pairs:
        raise JobFailed(
            f"the shards hold {len(merged)} consecutive pairs, and the split has {pairs}. Run the evaluation again."
        )
    return merged


def _result(reference: Any, content: str) -> Any:
    """Return the result of a task. An `AsapError` that the task raised is raised as it is."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, AsapError):
            raise error.cause from None
        raise
    except ray.exceptions.RayError as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise JobFailed(f"the worker that evaluated {content} died {TRIES} times: {reason}") from error


def evaluate_shard(
    model: str,
    model_id: str,
    device: str,
    threads: int,
    batch_size: int,
    records: list[Record],
    bad_boxes: BadBox = "refuse",
) -> Evaluation:
    """Evaluate these records on a worker, in their order.

    Args:
        model: The model folder, or `demo`.
        model_id: The id that the folder must have on this machine too.
        device: `cpu` or `cuda`.
        threads: Threads of torch and of decoding.
        batch_size: Pairs of one forward pass.
        records: The records of the shard.
        bad_boxes: Handling of a box outside its picture.
    """
    loaded = _loaded(model, model_id, device, threads)
    codec = TextCodec(loaded.tokenizer, max_words=loaded.config.max_words, max_tokens=loaded.config.max_tokens)
    return evaluate_records(
        loaded.model,
        codec,
        records,
        batch_size,
        max(2, threads),
        bad_boxes,
        elsewhere=True,
        familiarity=loaded.familiarity,
    )


def explain_pairs(model: str, model_id: str, device: str, threads: int, records: list[Record]) -> list[Finding]:
    """Find the evidence for these records on a worker, in their order. The arguments are as in `evaluate_shard`."""
    predictor = Predictor(_loaded(model, model_id, device, threads), device=device, precision="float32")
    return predictor.predict([Pair(read_picture(record.image), record.text) for record in records])


@lru_cache(maxsize=1)
def _loaded(model: str, model_id: str, device: str, threads: int) -> ModelFolder:
    """Load the model of this process, once for all its shards."""
    torch.set_num_threads(threads)
    loaded = load_folder(model)
    if loaded.model_id != model_id:
        raise CheckpointError(
            f"{model} has changed, or differs on this machine: it is {loaded.model_id}, and was {model_id}"
        )
    loaded.model.to(device)
    return loaded


def _explain_worst(plan: EvaluationPlan, pool: WorkerPool, predictions: Predictions) -> list[WorstPair]:
    """Return the pairs whose score is furthest from the truth, worst first, with the evidence of the model."""
    towards_truth = np.where(predictions.manipulated, predictions.margin, -predictions.margin)
    numbers = np.argsort(towards_truth, kind="stable")[: plan.settings.worst].tolist()
    if not numbers:
        return []
    records = [plan.records[number] for number in numbers]
    task = ray.remote(**pool.options)(explain_pairs)
    reference = task.remote(plan.model, plan.model_id, pool.device, pool.threads, records)
    findings = _result(reference, "the worst pairs")
    scores = expit(predictions.margin[numbers].astype(np.float64)).tolist()
    return [WorstPair(*columns) for columns in zip(records, findings, scores, strict=True)]


def _write(plan: EvaluationPlan, evaluation: Evaluation, predictions: Predictions, worst: list[WorstPair]) -> Report:
    """Write the metrics, the charts and the page, and return the metrics."""
    scores = expit(predictions.margin.astype(np.float64))
    about = plan.about() | {
        "pairs_in_split": plan.in_split,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": version("asap-ray"),
    }
    calibration = reliability(scores, predictions.manipulated).report()
    shares = verdict_shares(predictions, scores, plan.policy)
    report = {
        "about": about,
        "sentence": first_sentence(shares),
        "limits": plan.limits,
        "read": plan.read,
        **evaluation.compute(),
        "intervals": bootstrap_intervals(predictions),
        **coverage_metrics(predictions, plan.policy.unfamiliar),
        "verdicts": shares,
        "calibration": calibration,
    }
    report["worst"] = [{"id": pair.record.id, "fake_cls": pair.record.fake_cls, "score": pair.score} for pair in worst]
    for name in OUTPUTS:
        delete_file(plan.out / name)  # no chart of an earlier evaluation stays behind
    charts = draw_figures(predictions)
    files = {METRICS: json.dumps(report, indent=2, allow_nan=False) + "\n"} | charts
    files[PAGE] = evaluation_page(report, charts, worst)
    for name, text in files.items():
        write_bytes(plan.out / name, text.encode("utf-8", "replace"))
    return report
