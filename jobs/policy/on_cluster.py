"""The scoring of a calibration on one machine of a cluster, while this process waits and shows the progress.

One worker scores all pairs: the scores must be those of one kind of machine and of one arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from asap.corpus.reader import Record
from asap.errors import CheckpointError
from asap.predictor import Precision, Predictor
from asap.weights.model_folder import is_remote, model_id
from jobs.cluster import (
    choose_gpus,
    machines_alive,
    ray_running,
    stall_inspector,
    task_result,
    wait_for_resources,
    wait_until_free,
)
from jobs.errors import JobFailed
from jobs.packing import Resources
from jobs.policy.scores import OnPairs, ScoredSplit, score_split
from jobs.policy.settings import CalibrateSettings
from jobs.reach import PathUse, check_cluster, check_shared, model_use, pictures_use
from jobs.sharing import Claim, shared
from jobs.stall import StallWatch

TRIES = 3
"""Tries of a scoring whose process dies."""
_POLL_S = 0.5
_MOST_CPUS = 8
"""CPUs of a scoring without a GPU, on a machine that has as many. It waits for no whole machine."""


@dataclass(frozen=True)
class ScoringOrder:
    """The part of a calibration that its worker knows. The settings may hold secrets of this machine."""

    model: str
    model_id: str
    """The id that the folder must have there too."""
    device: str
    dtype: Precision
    batch_size: int
    max_failed_share: float
    threads: int
    """Threads of a model on CPUs."""


class PairCounts:
    """The class of the actor that knows how far the worker is."""

    def __init__(self) -> None:
        self._counts = 0, 0

    def note(self, done: int, total: int) -> None:
        """Take the number of scored pairs and of all pairs."""
        self._counts = done, total

    def read(self) -> tuple[int, int]:
        """Return both numbers."""
        return self._counts


def score_on_cluster(
    settings: CalibrateSettings,
    folder: Path,
    records: Sequence[Record],
    progress: OnPairs,
    on_note: Callable[[str], None],
) -> ScoredSplit:
    """Score annotated pairs on a machine of the cluster of the settings, as `score_split` does here.

    Raises what it raises; `PathNotShared` and `ConfigError` for what the cluster can never do; `JobError` if other jobs
    hold its machines for too long.

    Args:
        settings: The settings of the calibration.
        folder: The model folder as this machine has it.
        records: The pairs.
        progress: Receives the number of scored pairs and of all pairs.
        on_note: Receives a sentence about what is waited for.
    """
    is_everywhere = settings.model == "demo" or is_remote(settings.model)
    model = settings.model if is_everywhere else str(folder.resolve())
    uses = _path_uses(settings, model, records)
    check_cluster(settings, uses, [({"GPU": 1}, 1)] if settings.device == "cuda" else [], on_note)
    with ray_running(settings.address), shared() as share:
        needs = _find_worker(settings, on_note)
        check_shared(uses)  # machines may have come meanwhile
        wait_until_free(needs, 1, settings.wait_for_machines_s, on_note)
        share.replace(Claim(needs, needs, is_at_work=True))
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        counts = ray.remote(num_cpus=0, scheduling_strategy=here)(PairCounts).remote()
        task = ray.remote(num_cpus=needs["CPU"], num_gpus=needs.get("GPU", 0), max_retries=TRIES - 1)(_score)
        order = ScoringOrder(
            model,
            model_id(folder),
            "cuda" if "GPU" in needs else "cpu",
            settings.dtype,
            settings.batch_size,
            settings.max_failed_share,
            threads=int(needs["CPU"]),
        )
        scoring = task.remote(order, list(records), counts)
        try:
            _await(scoring, counts, settings.stall_after_s, progress, on_note)
            return task_result(scoring, lambda reason: JobFailed(f"the scoring died {TRIES} times: {reason}"))
        finally:
            ray.cancel(scoring, force=True)


def _path_uses(settings: CalibrateSettings, model: str, records: Sequence[Record]) -> list[PathUse]:
    """Return the paths that the worker uses, and the folder of the policy.

    This process alone writes the policy. But it may run on a head that nobody logs in to, so its disk must be shared.
    """
    target = settings.target.parent
    out = [] if target.is_s3 else [PathUse("--out", str(Path(target.uri).absolute()), writes=True)]
    return [*out, *model_use(model), *pictures_use("CORPUS", (record.image for record in records))]


def _find_worker(settings: CalibrateSettings, on_note: Callable[[str], None]) -> Resources:
    """Return the resources of the worker, after waiting for a machine that has them."""
    on_gpu = choose_gpus(settings.device, on_note, is_cluster=True)
    least = {"CPU": 1.0} | ({"GPU": 1.0} if on_gpu else {})
    advice = "Use --device auto to run on what exists." if on_gpu else "Add a machine with CPUs."
    wait_for_resources(
        least, 1, settings.wait_for_machines_s, on_note, advice, waits_for_people=settings.waits_for_people
    )
    if on_gpu:
        return least
    return {"CPU": float(min(_MOST_CPUS, max(int(machine.get("CPU", 0)) for machine in machines_alive())))}


def _await(scoring: Any, counts: Any, stall_after_s: float, progress: OnPairs, on_note: Callable[[str], None]) -> None:
    """Wait for the end of the scoring; report its progress, and a stall."""
    stalls, said = StallWatch("pair", stall_after_s, stall_inspector()), None
    while not ray.wait([scoring], timeout=_POLL_S)[0]:
        done, total = ray.get(counts.read.remote())
        if total:
            progress(done, total)
        note = stalls.look(done, "scoring")
        if note is not None and note != said:
            on_note(note)
        said = note


def _score(order: ScoringOrder, records: list[Record], counts: Any) -> ScoredSplit:
    """Score the pairs on this machine. It is the work of the task."""
    if order.device == "cpu":
        torch.set_num_threads(order.threads)
    predictor = Predictor.from_folder(order.model, order.device, order.dtype, batch_size=order.batch_size)
    if predictor.model_id != order.model_id:
        raise CheckpointError(
            f"{order.model} has changed, or differs on this machine: it is {predictor.model_id}, and was "
            f"{order.model_id}"
        )
    return score_split(predictor, records, order.max_failed_share, counts.note.remote)
