"""The plan of a training run, made before the run: pairs, steps, stages, memory, speed, and what it writes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

from asap.corpus.reader import Record
from asap.corpus.report import CorpusReport
from asap.model.asap import Asap
from asap.model.config import ModelConfig
from asap.training.image_token_cache import token_bytes
from jobs.train.checkpoints import regular_steps
from jobs.train.fit import Fit, all_gpus, count_memory, fit_to_device, takes_all_gpus
from jobs.train.gpus import TrainDevice
from jobs.train.pilot import Pilot, run_pilot
from jobs.train.settings import TrainSettings
from jobs.train.speed import LEAST_MFU, MFU, MOST_MFU, GpuSpeed, Precision, flops_of_pair, gpu_speeds
from jobs.train.stages import Stage, lock_step, plan_stages

CPUS_BESIDE_A_GPU = 2
"""CPUs of a worker with a GPU: one for its steps, and one for the batches that are made ahead."""
_ANY_GPU = TrainDevice("GPU", None, 0, is_gpu=True, has_bfloat16=True, is_here=False)
"""The device for which memory is counted if none is known."""


@dataclass(frozen=True)
class Plan:
    """The plan that `asap train --plan` shows. Memory and sizes are in bytes."""

    pairs: dict[str, dict[str, int]]
    """Number of pairs by split, then by class."""
    described: dict[str, dict[str, int]]
    """Number of pairs by split that have a caption and an explanation of their own; the others have their text."""
    steps: int
    epochs: float
    left_out_an_epoch: int
    """Pairs that do not fill a last batch; which pairs these are changes from epoch to epoch."""
    batch: dict[str, int]
    """Pairs of a step, workers, pairs of a worker, micro batches, pairs of a micro batch."""
    stages: list[Stage]
    rates: dict[str, float]
    """Peak learning rates by the parts of the model."""
    parameters: dict[str, int]
    """Number of parameters by module."""
    memory: dict[str, int]
    """Memory of one worker by purpose, in the precision of the layers on its device."""
    memory_note: str
    """Explanation of how the memory was found."""
    fit: Fit | None
    """The fit to the device; None if no device is known."""
    workers_note: str
    """Reason for the number of workers, if it was not given."""
    cpus: dict[str, float]
    """Cores wanted on the machines, by purpose."""
    hours: str
    """Hours of the run with an interval, and how they were found."""
    flops_a_pair: float
    """Floating-point operations of a pair in a step that trains all terms."""
    precision: Precision
    """The precision of the layers on these GPUs."""
    speeds: list[GpuSpeed]
    """Estimated speed on GPUs by name."""
    checkpoint_bytes: int
    checkpoints_written: int
    """Checkpoints at regular steps and at the end."""
    checkpoint_every_s: float | None
    """Seconds of training after which a checkpoint comes between them; None if only the steps count."""
    checkpoints_kept: int
    cache_bytes: int
    """Size of the pictures that the run folder keeps."""
    init: tuple[str, ...]
    out: str


def make_plan(
    settings: TrainSettings,
    config: ModelConfig,
    records: Mapping[str, Sequence[Record]],
    ingest: Literal["cache", "stream"],
    device: TrainDevice | None = None,
    given: Set[str] = frozenset(),
    reports: Mapping[str, CorpusReport] | None = None,
) -> Plan:
    """Plan a run without Ray. A few passes are computed if the device is one of this machine.

    Args:
        settings: The settings of the run.
        config: The configuration of the model.
        records: The records of each split.
        ingest: The source of the pictures.
        device: The device that the run is fitted to; None if it is not known.
        given: Names of the settings that the user gave.
        reports: The reports on reading each split; None if nobody has them.

    Raises `ConfigError` if the training pairs do not fill one batch, or if a step does not fit into the device.
    """
    schedule = _schedule(settings, len(records["train"]))
    settings, fit, workers_note = _fitted(settings, config, device, given)
    memory = _memory(settings, config, fit, len(records["train"]))
    speed = _estimated_speed(settings, config, schedule.stages, device, ingest)
    counted = fit.device if fit else _ANY_GPU
    return Plan(
        pairs=_pairs_by_class(records), described=_described(reports or {}),
        steps=schedule.steps, epochs=schedule.epochs, left_out_an_epoch=schedule.left_out_an_epoch,
        batch=_batch(settings), stages=schedule.stages,
        rates={"text, fusion, heads": settings.learning_rate, "image side, boxes": settings.image_learning_rate},
        parameters=_parameters(config), memory=memory, memory_note=_memory_note(config, fit),
        fit=fit, workers_note=workers_note, cpus=_cpus(settings, counted, speed.own),
        hours=_hours(settings, schedule.steps, speed.pilot, speed.own, counted),
        flops_a_pair=speed.flops_a_pair, precision=speed.precision, speeds=speed.on_gpus,
        checkpoint_bytes=_checkpoint_bytes(memory), checkpoints_written=schedule.checkpoints_written,
        checkpoint_every_s=schedule.checkpoint_every_s, checkpoints_kept=2,
        cache_bytes=_cache_bytes(records, config) if ingest == "cache" else 0, init=settings.init, out=settings.out,
    )  # fmt: skip


def _pairs_by_class(records: Mapping[str, Sequence[Record]]) -> dict[str, dict[str, int]]:
    counted = {split: Counter(record.fake_cls for record in some) for split, some in records.items()}
    return {split: dict(counts.most_common()) for split, counts in counted.items()}


class _Schedule(NamedTuple):
    """The steps and checkpoints of a run, which no fit to a device changes. The fields mean the same in `Plan`."""

    steps: int
    epochs: float
    left_out_an_epoch: int
    stages: list[Stage]
    checkpoints_written: int
    checkpoint_every_s: float | None


def _schedule(settings: TrainSettings, train_pairs: int) -> _Schedule:
    """Return the schedule. Raises `ConfigError` if the training pairs do not fill one batch."""
    steps_an_epoch = settings.steps_an_epoch(train_pairs)
    steps = settings.total_steps(train_pairs)
    return _Schedule(
        steps=steps,
        epochs=steps / steps_an_epoch,
        left_out_an_epoch=train_pairs % settings.batch_size,
        stages=plan_stages(settings, steps),
        checkpoints_written=-(-steps // regular_steps(settings, steps, steps_an_epoch)),
        checkpoint_every_s=settings.checkpoint_every_s if settings.checkpoint_pairs is None else None,
    )


def _checkpoint_bytes(memory: Mapping[str, int]) -> int:
    """Return the size of a checkpoint: the weights, the twin, the two averages of the optimizer, and the queues."""
    return 2 * memory["weights"] + memory["optimizer (two averages)"] + memory["queues"]


def _described(reports: Mapping[str, CorpusReport]) -> dict[str, dict[str, int]]:
    return {
        split: {
            "caption": report.captions.by_id + report.captions.by_path,
            "explanation": report.explanations.by_id + report.explanations.by_path,
        }
        for split, report in reports.items()
    }


def _fitted(
    settings: TrainSettings, config: ModelConfig, device: TrainDevice | None, given: Set[str]
) -> tuple[TrainSettings, Fit | None, str]:
    """Return the settings as they fit into the device, the fit, and the reason for the number of workers."""
    if device is None:
        return settings, None, ""
    workers_note = ""
    if device.is_gpu and takes_all_gpus(settings, given):
        settings = settings.model_copy(update={"workers": all_gpus(settings, device.count)})
        workers_note = f"one on each of {settings.workers} of {device.count} GPUs"
        if not device.is_here:
            workers_note = "one GPU is assumed: --workers N plans for more"
    fit = fit_to_device(settings, config, device, given)
    return settings.model_copy(update=fit.chosen), fit, workers_note


def _batch(settings: TrainSettings) -> dict[str, int]:
    """Return the parts of a step's batch by name."""
    pairs_per_worker = settings.batch_size // settings.workers
    return {
        "pairs of a step": settings.batch_size,
        "workers": settings.workers,
        "pairs of a worker": pairs_per_worker,
        "micro batches": settings.accumulation,
        "pairs of a micro batch": pairs_per_worker // settings.accumulation,
    }


def _memory(settings: TrainSettings, config: ModelConfig, fit: Fit | None, train_pairs: int) -> dict[str, int]:
    """Return the memory of one worker in bytes, by purpose."""
    if fit:
        memory = fit.memory
    else:
        micro_batch = settings.batch_size // settings.workers // settings.accumulation
        memory = count_memory(settings, config, _ANY_GPU).by_purpose(
            micro_batch, checkpointed=settings.checkpoint_activations, workers=settings.workers
        )
    # Tokens of a locked image encoder are kept only if the run locks it and those of all pairs fit.
    steps, tokens = settings.total_steps(train_pairs), token_bytes(train_pairs, config)
    if lock_step(settings, steps) < steps and tokens <= settings.tokens_gib * 2**30:
        memory = memory | {"kept image tokens": tokens}
    return memory


def _memory_note(config: ModelConfig, fit: Fit | None) -> str:
    return (
        f"activations are counted on shapes, for texts of {config.max_tokens} tokens, the most that a batch may "
        f"have{'' if fit else '; no device is known, so nothing was fitted: give --set gpu=KIND'}"
    )


def _parameters(config: ModelConfig) -> dict[str, int]:
    """Return the number of parameters by module, the largest first."""
    with torch.device("meta"):
        student = Asap(config)
    parameters: Counter[str] = Counter()
    for name, parameter in student.named_parameters():
        parameters[name.partition(".")[0]] += parameter.numel()
    return dict(parameters.most_common())


class _Speed(NamedTuple):
    """The speed of a run: by arithmetic on GPUs by name, and by a pilot on the device of this machine."""

    flops_a_pair: float
    precision: Precision
    on_gpus: list[GpuSpeed]
    own: GpuSpeed | None
    """The estimate for the run's device; None if its kind is not known."""
    pilot: Pilot | None


def _estimated_speed(
    settings: TrainSettings,
    config: ModelConfig,
    stages: Sequence[Stage],
    device: TrainDevice | None,
    ingest: Literal["cache", "stream"],
) -> _Speed:
    """Return the speed of a run with these stages. Passes are computed if the device is one of this machine."""
    flops = flops_of_pair(settings, config)
    precision: Precision = "bfloat16" if settings.precision == "auto" else settings.precision
    on_gpus = gpu_speeds(flops, ingest, settings.decode_tasks, precision)
    own = None
    if device is not None and device.kind:
        on_gpus = [speed for speed in on_gpus if speed.gpu == device.kind]
        own = next(iter(on_gpus), None)
    pilot = None
    if device is not None and device.is_here:
        where = torch.device("cuda" if device.is_gpu else "cpu")
        micro_batch = _batch(settings)["pairs of a micro batch"]
        pilot = run_pilot(settings, config, stages, where, flops, micro_batch)
    return _Speed(flops, precision, on_gpus, own, pilot)


def _cache_bytes(records: Mapping[str, Sequence[Record]], config: ModelConfig) -> int:
    pictures = {record.image for some in records.values() for record in some}
    return len(pictures) * 3 * config.image_size**2


def _cpus(settings: TrainSettings, device: TrainDevice, speed: GpuSpeed | None) -> dict[str, float]:
    """Return the cores that the machines should have, by purpose; empty for a run on CPUs, which takes all."""
    if not device.is_gpu:
        return {}
    decoding = settings.workers * speed.decoding_cores if speed else 0.0
    return {"workers": settings.workers * CPUS_BESIDE_A_GPU} | ({"decoding": decoding} if decoding else {})


def _hours(
    settings: TrainSettings, steps: int, pilot: Pilot | None, speed: GpuSpeed | None, device: TrainDevice
) -> str:
    """Return the hours of the run in a sentence; validation and checkpoints come on top."""
    beside = "validation and checkpoints not included"
    if pilot:
        slow = ""
        if not device.is_gpu and settings.size == "base":
            slow = ". The base size is not sensible on CPUs: use GPUs (--set gpu=KIND plans for them), or preset=tiny"
        how = ", without compilation" if device.is_gpu else " (CPU time, as on idle cores)"
        return (
            f"{_interval(pilot.hours, pilot.low, pilot.high)}, measured: {pilot.passes} or more passes of "
            f"{pilot.pairs} pairs in each stage on this machine's {device.name}{how}, "
            f"{pilot.pairs_per_s:,.1f} pairs/s; {beside}{slow}"
        )
    if speed:
        hours, most, least = (
            steps * settings.batch_size / (pairs_per_s * settings.workers) / 3600
            for pairs_per_s in (speed.pairs_per_s, speed.least_pairs_per_s, speed.most_pairs_per_s)
        )
        return (
            f"{_interval(hours, least, most)}, only estimated: {speed.gpu} at {MFU:.0%} of its peak "
            f"({MOST_MFU:.0%} to {LEAST_MFU:.0%}), an assumption; {beside}"
        )
    return "not known: see the table of speeds, or give --set gpu=KIND"


def _interval(hours: float, low: float, high: float) -> str:
    return f"{shown_hours(hours)} ({shown_hours(low)} to {shown_hours(high)})"


def shown_hours(hours: float) -> str:
    """Format hours: those of a short run are not rounded to 0."""
    return f"{hours:,.1f}" if hours >= 1 else f"{hours:.2g}"
