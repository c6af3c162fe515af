"""The shards of an evaluation on Ray workers: how many run at once, what each computes, and how they are merged."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any

import numpy as np
import ray
import torch
from scipy.special import expit

from asap.corpus.annotations import BadBox
from asap.corpus.picture_cache import read_picture
from asap.corpus.reader import Record
from asap.errors import CheckpointError
from asap.evaluation.evaluate import evaluate_records
from asap.evaluation.metrics import Evaluation, Predictions
from asap.finding import Finding, Pair
from asap.predictor import Predictor
from asap.preprocessing.text import TextCodec
from asap.weights.model_folder import ModelFolder, load_folder
from jobs.cluster import (
    choose_gpus,
    could_grow,
    count_fitting,
    machines_alive,
    stall_inspector,
    task_result,
    wait_for_resources,
)
from jobs.errors import JobFailed
from jobs.evaluate.page import WorstPair
from jobs.evaluate.plan import EvaluationPlan
from jobs.evaluate.settings import EvaluateSettings
from jobs.packing import Resources
from jobs.sharing import Claim, Share, held_share
from jobs.stall import StallWatch

_POLL_S = 0.5
TRIES = 3
"""Attempts at a shard whose worker dies."""

OnPairs = Callable[[int, int], None]


@dataclass(frozen=True)
class WorkerPool:
    """The workers that evaluate shards in parallel."""

    workers: int
    """Workers at the start."""
    device: str
    threads: int
    options: dict[str, Any]
    """Options of their Ray task."""
    needs: Resources
    """Resources of each worker."""
    follows: bool = False
    """True if their number follows the cluster and the share of the job."""

    @property
    def claim(self) -> Claim:
        """The claim on a cluster: one worker at least and any number at most, or exactly as many as the user gave."""
        if self.follows:
            return Claim(self.needs, {kind: math.inf if amount else 0.0 for kind, amount in self.needs.items()})
        return Claim.of_workers([self.needs] * self.workers, is_at_work=True)


def worker_pool(settings: EvaluateSettings, on_note: Callable[[str], None] = lambda note: None) -> WorkerPool:
    """Size the workers for the running Ray: one GPU each, or an equal part of the CPUs."""
    on_gpus = choose_gpus(settings.device, on_note, is_cluster=settings.address is not None)
    wait_s = settings.wait_for_machines_s if settings.address else 0
    needs = {"CPU": 1, "GPU": 1} if on_gpus else {"CPU": 1}
    advice = "Use --device auto to run on what exists." if on_gpus else "Add a machine with CPUs."
    machines = wait_for_resources(needs, 1, wait_s, on_note, advice, waits_for_people=settings.waits_for_people)
    retries = {"max_retries": TRIES - 1}
    follows = settings.address is not None and settings.workers is None
    if on_gpus:
        workers = settings.workers or count_fitting(machines, needs)
        # Without max_calls=0, Ray ends a process that holds a GPU after one shard, and the loaded model with it.
        options = {"num_cpus": 1, "num_gpus": 1, "max_calls": 0} | retries
        return WorkerPool(workers, "cuda", 1, options, needs, follows)
    cpus_per_machine = [cpus for machine in machines if (cpus := int(machine.get("CPU", 0)))]
    cpus = sum(cpus_per_machine)
    workers = settings.workers or max(1, cpus // 2)
    # A task runs on one machine, so it must fit on the smallest.
    threads = max(1, min(cpus // workers, min(cpus_per_machine)))
    num_cpus = min(threads, cpus / workers)
    return WorkerPool(workers, "cpu", threads, {"num_cpus": num_cpus} | retries, {"CPU": num_cpus}, follows)


def evaluate_shards(
    plan: EvaluationPlan,
    pool: WorkerPool,
    progress: OnPairs,
    on_note: Callable[[str], None] = lambda note: None,
    check: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Evaluate every pair of the plan, shard by shard. If the job holds a share of a cluster, it claims its workers.

    Args:
        plan: The plan.
        pool: The workers.
        progress: Receives the number of evaluated pairs and of all pairs.
        on_note: Receives a sentence about a stall.
        check: Called twice a second; what it raises stops the work.
    """
    size, total = plan.settings.shard_pairs, len(plan.records)
    # A box outside its picture is found only now, as the picture is decoded. The set of pairs is fixed by then, so
    # `skip` keeps the pair without its box, as `boxless` does.
    bad_boxes: BadBox = "refuse" if plan.settings.bad_boxes == "refuse" else "boxless"
    options = plan.model, plan.model_id, pool.device, pool.threads, plan.settings.batch_size
    task = ray.remote(**pool.options)(evaluate_shard)
    waiting = iter(range(0, total, size))
    running: dict[Any, int] = {}
    shards: dict[int, Evaluation] = {}
    stalls = StallWatch("shard", plan.settings.stall_after_s, stall_inspector(), is_steady=False)
    progress(0, total)
    try:
        if share := held_share():
            share.replace(pool.claim)
        can_grow = share is not None and pool.follows and could_grow(pool.needs)
        while len(shards) * size < total:
            # Keep so many shards in flight, even if Ray has room for more. Machines that join get their first ones
            # when the next shard ends.
            places = _count_places(pool, share, can_grow=can_grow)
            for start in islice(waiting, max(0, places - len(running))):
                running[task.remote(*options, plan.records[start : start + size], bad_boxes)] = start
            done = _wait_for_shard(list(running), stalls, len(shards), on_note, check)
            start = running.pop(done)
            shards[start] = task_result(done, _died(f"pairs {start} to {min(start + size, total) - 1}"))
            progress(sum(map(len, shards.values())), total)
    finally:
        for task_left in running:
            ray.cancel(task_left, force=True)
    return merge_shards(shards, total)


def _count_places(pool: WorkerPool, share: Share | None, *, can_grow: bool) -> int:
    """Return the number of shards to keep in flight, at least 1.

    It is that of the workers on one machine, or if the user gave it. Otherwise it is for how many workers there is room
    in the job's share of the cluster. If the share is all of a cluster that can grow, one more shard waits: an
    autoscaler starts machines only for what waits.
    """
    if share is None or not pool.follows:
        return pool.workers
    fit = count_fitting(machines_alive(), pool.needs)
    allowed = min(int(share.resources.get(kind, 0) / amount + 1e-6) for kind, amount in pool.needs.items())
    # Beyond a share that others limit, the shard would take the next place that one of them leaves for a moment.
    waiting = 1 if can_grow and fit <= allowed else 0
    return max(1, min(fit, allowed) + waiting)


def _wait_for_shard(
    running: list[Any],
    stalls: StallWatch,
    finished: int,
    on_note: Callable[[str], None],
    check: Callable[[], None],
) -> Any:
    """Return the first of the tasks that ends. Report it if none does for long. `check` is called meanwhile."""
    said = None
    while True:
        check()
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


def _died(content: str) -> Callable[[str], JobFailed]:
    """Return what makes the error of a worker that died each time, for `task_result`."""
    return lambda reason: JobFailed(f"the worker that evaluated {content} died {TRIES} times: {reason}")


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


def explain_worst(plan: EvaluationPlan, pool: WorkerPool, predictions: Predictions) -> list[WorstPair]:
    """Return the pairs whose score is furthest from the truth, worst first, with the evidence of the model."""
    towards_truth = np.where(predictions.manipulated, predictions.margin, -predictions.margin)
    numbers = np.argsort(towards_truth, kind="stable")[: plan.settings.worst].tolist()
    if not numbers:
        return []
    records = [plan.records[number] for number in numbers]
    task = ray.remote(**pool.options)(explain_pairs)
    reference = task.remote(plan.model, plan.model_id, pool.device, pool.threads, records)
    findings = task_result(reference, _died("the worst pairs"))
    scores = expit(predictions.margin[numbers].astype(np.float64)).tolist()
    return [WorstPair(*columns) for columns in zip(records, findings, scores, strict=True)]
