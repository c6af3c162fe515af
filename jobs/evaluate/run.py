"""A model judged on a labelled corpus by Ray workers: figures, pictures, and a page with the worst pairs.

A shard is a range of record numbers, and its `Evaluation` a function of them alone. The driver keeps one for each
range and merges them in order, so that a worker that dies costs time, and neither loses a pair nor counts one twice.
Predictions are merged, not figures: a mean of AUCs is not the AUC. Workers read the model, and the pictures of a
corpus that is not in a bucket, from a disk that they share. Everything that can be known before is checked before Ray
starts.
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
from asap.evaluation.metrics import Evaluation, Predictions
from asap.evaluation.reliability import reliability
from asap.finding import Finding, Pair
from asap.predictor import Predictor
from asap.preprocessing.text import TextCodec
from asap.storage.files import delete_file, list_files, read_bytes, write_bytes
from asap.storage.location import Location
from asap.weights.model_folder import ModelFolder, load_folder, resolve_folder
from jobs.cluster import count_fitting, machines_alive, ray_running, wait_for_resources
from jobs.corpus import read_corpus
from jobs.errors import JobDiffers, JobFailed
from jobs.evaluate.charts import draw_figures
from jobs.evaluate.page import WorstPair, evaluation_page
from jobs.evaluate.settings import EvaluateSettings

METRICS, PAGE = "metrics.json", "index.html"
OUTPUTS = (METRICS, PAGE, "roc.svg", "precision_recall.svg", "iou.svg", "reliability.svg")
"""What an evaluation leaves in its folder."""
TRIES = 3
"""Of a shard whose worker dies."""

Report = dict[str, Any]
OnPairs = Callable[[int, int], None]


def evaluate(
    settings: EvaluateSettings,
    progress: OnPairs = lambda done, total: None,
    tell: Callable[[str], None] = lambda note: None,
) -> Report:
    """Judge a split, write the figures to `settings.out`, and return them.

    `progress` gets pairs judged and pairs in all, `tell` a sentence where the machines are not what was asked for.
    Raises `CorpusError`, `AnnotationError`, `InputError` for a picture that cannot be used, `CheckpointError`,
    `ConfigError`, `JobDiffers` where the folder holds another evaluation, `JobFailed`.
    """
    plan = plan_evaluation(settings)
    with ray_running(settings.address):
        pool = _worker_pool(settings, tell)
        predictions = _evaluate(plan, pool, progress)
        worst = _explain(plan, pool, predictions.predictions())
    return _write(plan, predictions, worst)


@dataclass(frozen=True)
class EvaluationPlan:
    """An evaluation that can start."""

    settings: EvaluateSettings
    records: list[Record]
    in_split: int
    """Records of the split, of which `limit` may leave some out."""
    read: list[str]
    """What reading the corpus found, a sentence each."""
    model: str
    """The model's absolute folder, or `demo`, which is in the same place for all."""
    model_id: str
    out: Location

    def about(self) -> Report:
        """What the figures are of."""
        return {
            "model_id": self.model_id,
            "corpus": full_address(self.settings.corpus),
            "split": self.settings.split,
            "limit": self.settings.limit,
        }


def plan_evaluation(settings: EvaluateSettings) -> EvaluationPlan:
    """Look at corpus, model and output. Raises an `AsapError` of one sentence."""
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
    )
    _check_out(plan)
    return plan


def _check_out(plan: EvaluationPlan) -> None:
    """Refuse a folder that holds something else, or another evaluation, or that cannot be written."""
    names = [info.location.uri.removeprefix(f"{plan.out.uri}/") for info in islice(list_files(plan.out), 100)]
    if foreign := [name for name in names if name not in OUTPUTS]:
        raise ConfigError(f"{plan.out} holds {foreign[0]!r}, which is no part of an evaluation; choose another --out")
    if METRICS in names:
        found, now = json.loads(read_bytes(plan.out / METRICS)).get("about", {}), plan.about()
        differs = [f"{name} {found.get(name)!r} (now {now[name]!r})" for name in now if found.get(name) != now[name]]
        if differs:
            raise JobDiffers(f"{plan.out} holds another evaluation: {', '.join(differs)}; choose another --out")
    probe = plan.out / ".probe"
    write_bytes(probe, b"")
    delete_file(probe)


@dataclass(frozen=True)
class WorkerPool:
    """How the shards are worked on."""

    workers: int
    device: str
    threads: int
    options: dict[str, Any]
    """Of a Ray task."""


def _worker_pool(settings: EvaluateSettings, tell: Callable[[str], None] = lambda note: None) -> WorkerPool:
    """Workers for the Ray that runs: a GPU each, or the CPUs shared out. `tell`: see `evaluate`."""
    gpus = count_fitting(machines_alive(), {"CPU": 1, "GPU": 1})
    on_gpus = settings.device == "cuda" or (settings.device == "auto" and gpus > 0)
    if settings.device == "auto" and not on_gpus and settings.address:
        tell("judging on CPUs: no GPU is alive; --device cuda waits for one")
    wait_s = settings.wait_for_machines_s if settings.address else 0
    needs = {"CPU": 1, "GPU": 1} if on_gpus else {"CPU": 1}
    way_out = "--device auto takes what there is" if on_gpus else "let a machine with CPUs join"
    machines = wait_for_resources(needs, 1, wait_s, tell, way_out)
    again = {"max_retries": TRIES - 1}
    if on_gpus:
        workers = settings.workers or count_fitting(machines, needs)
        # Ray would end a process that holds a GPU after one shard, and the model with it.
        return WorkerPool(workers, "cuda", 1, {"num_cpus": 1, "num_gpus": 1, "max_calls": 0} | again)
    of_nodes = [cpus for machine in machines if (cpus := int(machine.get("CPU", 0)))]
    cpus, of_a_node = sum(of_nodes), min(of_nodes)
    workers = settings.workers or max(1, cpus // 2)
    threads = max(1, min(cpus // workers, of_a_node))
    return WorkerPool(workers, "cpu", threads, {"num_cpus": min(threads, cpus / workers)} | again)


def _evaluate(plan: EvaluationPlan, pool: WorkerPool, progress: OnPairs) -> Evaluation:
    """Every pair of the plan, shard by shard."""
    size, total = plan.settings.shard_pairs, len(plan.records)
    task = ray.remote(**pool.options)(evaluate_shard)
    waiting = iter(range(0, total, size))
    running: dict[Any, int] = {}
    shards: dict[int, Evaluation] = {}
    progress(0, total)
    try:
        while len(shards) * size < total:
            for start in islice(waiting, pool.workers - len(running)):
                given = plan.model, plan.model_id, pool.device, pool.threads, plan.settings.batch_size
                running[task.remote(*given, plan.records[start : start + size], _boxes_outside(plan))] = start
            (done,), _ = ray.wait(list(running))
            start = running.pop(done)
            shards[start] = _result(done, f"pairs {start} to {min(start + size, total) - 1}")
            progress(sum(map(len, shards.values())), total)
    finally:
        for task_left in running:
            ray.cancel(task_left, force=True)
    return merge_shards(shards, total)


def _boxes_outside(plan: EvaluationPlan) -> BadBox:
    """What becomes of a box outside its picture, known only now: its pair is judged all the same, or all stops."""
    return "refuse" if plan.settings.bad_boxes == "refuse" else "boxless"


def merge_shards(shards: dict[int, Evaluation], pairs: int) -> Evaluation:
    """The evaluation of pairs 0 to `pairs` - 1, in their order, from those of ranges by the number of their first.

    Raises `JobFailed` where the ranges do not follow each other, so that no figure is of other pairs than it says.
    """
    whole = Evaluation()
    for start in sorted(shards):
        if start != len(whole):
            break
        whole.merge(shards[start])
    if len(whole) != pairs:
        raise JobFailed(f"the shards hold {len(whole)} pairs in a row, and the split has {pairs}; evaluate it again")
    return whole


def _result(reference: Any, what: str) -> Any:
    """What a task returned; what it raised on purpose as it is."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, AsapError):
            raise error.cause from None
        raise
    except ray.exceptions.RayError as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise JobFailed(f"the worker that judged {what} died {TRIES} times: {reason}") from error


def evaluate_shard(
    model: str,
    model_id: str,
    device: str,
    threads: int,
    batch_size: int,
    records: list[Record],
    bad_boxes: BadBox = "refuse",
) -> Evaluation:
    """A worker's part: the evaluation of these records, in their order. `bad_boxes`: see `_boxes_outside`."""
    loaded = _loaded(model, model_id, device, threads)
    codec = TextCodec(loaded.tokenizer, max_words=loaded.config.max_words, max_tokens=loaded.config.max_tokens)
    return evaluate_records(loaded.model, codec, records, batch_size, max(2, threads), bad_boxes, elsewhere=True)


def explain_pairs(model: str, model_id: str, device: str, threads: int, records: list[Record]) -> list[Finding]:
    """A worker's part: the evidence for these records, in their order."""
    predictor = Predictor(_loaded(model, model_id, device, threads), device=device, precision="float32")
    return predictor.predict([Pair(read_picture(record.image), record.text) for record in records])


@lru_cache(maxsize=1)
def _loaded(model: str, model_id: str, device: str, threads: int) -> ModelFolder:
    """The model of this process, loaded once for all its shards."""
    torch.set_num_threads(threads)
    loaded = load_folder(model)
    if loaded.model_id != model_id:
        raise CheckpointError(f"{model} is {loaded.model_id} on this machine or by now, and was {model_id}")
    loaded.model.to(device)
    return loaded


def _explain(plan: EvaluationPlan, pool: WorkerPool, predictions: Predictions) -> list[WorstPair]:
    """The pairs whose score is furthest from the truth, the furthest first, with what the model saw in them."""
    towards_truth = np.where(predictions.manipulated, predictions.margin, -predictions.margin)
    numbers = np.argsort(towards_truth, kind="stable")[: plan.settings.worst].tolist()
    if not numbers:
        return []
    records = [plan.records[number] for number in numbers]
    task = ray.remote(**pool.options)(explain_pairs)
    reference = task.remote(plan.model, plan.model_id, pool.device, pool.threads, records)
    findings = _result(reference, "the worst pairs")
    scores = expit(predictions.margin[numbers].astype(np.float64)).tolist()
    return [WorstPair(*of_a_pair) for of_a_pair in zip(records, findings, scores, strict=True)]


def _write(plan: EvaluationPlan, evaluation: Evaluation, worst: list[WorstPair]) -> Report:
    """The figures, and then the pictures and the page of them."""
    predictions = evaluation.predictions()
    scores = expit(predictions.margin.astype(np.float64))
    about = plan.about() | {
        "pairs_in_split": plan.in_split,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": version("asap-ray"),
    }
    calibration = reliability(scores, predictions.manipulated).report()
    report = {"about": about, "read": plan.read, **evaluation.compute(), "calibration": calibration}
    report["worst"] = [{"id": pair.record.id, "fake_cls": pair.record.fake_cls, "score": pair.score} for pair in worst]
    for name in OUTPUTS:  # of an earlier evaluation
        delete_file(plan.out / name)
    figures = {METRICS: json.dumps(report, indent=2, allow_nan=False) + "\n"}
    pictures = draw_figures(predictions)
    for name, text in (figures | pictures | {PAGE: evaluation_page(report, pictures, worst)}).items():
        write_bytes(plan.out / name, text.encode("utf-8", "replace"))
    return report
