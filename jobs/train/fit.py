"""The fit of a run to its device: micro batches and activation checkpointing with which a step fits into the memory.

The batch of a step, the losses, the queues and the precision stay as the settings have them. What was set is kept: a
setting that cannot fit is refused, with what would fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any

from asap.errors import ConfigError
from asap.model.config import ModelConfig
from asap.training.memory import StepMemory, step_memory
from jobs.train.defaults import published_defaults
from jobs.train.gpus import TrainDevice, cpu_here, gpu_called
from jobs.train.settings import TrainSettings

_FEWEST_PAIRS = 16
"""Pairs of the smallest micro batch that is preferred to activation checkpointing: fewer use a GPU badly."""
_PUBLISHED_GPUS = 8
_FRAGMENTED = 0.1
"""Share of a GPU's memory that is left to fragments and to tensors that a step does not keep: an assumption."""
_WORKSPACE = 2**30
"""Bytes that are left to the CUDA context and the workspaces of its libraries: an assumption."""
_CPU_SHARE = 0.7
"""Share of a machine's memory that its workers may take: Ray, the system and the pictures need the rest."""
_GIB = 2**30


@dataclass(frozen=True)
class Fit:
    """A step that fits into its device."""

    device: TrainDevice
    usable_bytes: int
    """Memory of the device without the allowance."""
    workers: int
    accumulation: int
    micro_batch: int
    checkpoint_activations: bool
    memory: dict[str, int]
    """Memory of one worker in bytes, by purpose."""
    notes: tuple[str, ...]
    """A sentence for each choice and its reason."""

    @property
    def chosen(self) -> dict[str, Any]:
        """The settings that were chosen, by name."""
        names = ("workers", "accumulation", "checkpoint_activations")
        return {name: getattr(self, name) for name in names}


def choices_of(settings: TrainSettings) -> dict[str, Any]:
    """Return the choices of a run that it keeps when it is resumed, on any number of workers."""
    micro_batch = settings.batch_size // settings.workers // settings.accumulation
    return {"micro_batch": micro_batch, "checkpoint_activations": settings.checkpoint_activations}


def fit_to_device(
    settings: TrainSettings,
    config: ModelConfig,
    device: TrainDevice,
    given: Set[str],
    begun: Mapping[str, Any] | None = None,
) -> Fit:
    """Choose the micro batch and activation checkpointing of a run.

    Args:
        settings: The settings of the run, with its number of workers.
        config: The configuration of the model.
        device: The device of each worker.
        given: Names of the settings that the user gave.
        begun: The choices that the run began with (`choices_of`), if it is resumed.

    Raises `ConfigError` if nothing fits that keeps the given settings.
    """
    memory = count_memory(settings, config, device)
    usable = usable_bytes(settings, device)
    per_worker = settings.batch_size // settings.workers

    def needed(pairs: int, checkpointed: bool) -> int:
        return memory.needed(pairs, checkpointed=checkpointed, workers=settings.workers)

    # The candidates, the best first: the largest micro batch, without checkpointing if it is not too small.
    most = _largest_micro_batch(settings, begun)
    sizes = [size for size in range(most, 0, -1) if per_worker % size == 0]
    if "accumulation" in given:
        sizes = [per_worker // settings.accumulation]
    ways = [settings.checkpoint_activations] if "checkpoint_activations" in given else [False, True]
    fitting = [(size, way) for way in ways for size in sizes if needed(size, way) <= usable]
    if not fitting:
        raise ConfigError(_refusal(settings, config, device, given, memory, (sizes[-1], ways[-1])))
    size, checkpointed = _best(fitting, sizes[0], begun)

    chosen = settings.model_copy(update={"accumulation": per_worker // size, "checkpoint_activations": checkpointed})
    notes = [
        f"{device.name}: a step may use {_gib(usable)} of {_gib(_device_bytes(settings, device))}; it needs "
        f"{_gib(needed(size, checkpointed))} with micro batches of {size} pairs"
        f"{' and activation checkpointing' if checkpointed else ', without activation checkpointing'}"
    ]
    if chosen.accumulation > 1 and "accumulation" not in given:
        why = f"{_pairs(sizes[0])} need {_gib(needed(sizes[0], False))}"
        if size == sizes[0]:
            why = "as before" if begun else "a GPU of the published run had as many"
        notes.append(
            f"a worker computes its {per_worker} pairs in {chosen.accumulation} micro batches ({why}); the batch of a "
            f"step stays {settings.batch_size}, and each contrast sees the queue and {_pairs(size * settings.workers)} "
            "of its step"
        )
    if checkpointed and "checkpoint_activations" not in given:
        notes.append(f"activation checkpointing takes about a third more time; without it, {size} pairs do not fit")
    if device.is_gpu and device.has_bfloat16 and settings.precision in ("tf32", "float32"):
        notes.append(f"precision={settings.precision} is kept; --set precision=bfloat16 needs less memory and time")
    notes += _changes_of_begun(chosen, size, begun, given)
    return Fit(
        device=device,
        usable_bytes=usable,
        workers=settings.workers,
        accumulation=chosen.accumulation,
        micro_batch=size,
        checkpoint_activations=checkpointed,
        memory=memory.by_purpose(size, checkpointed=checkpointed, workers=settings.workers),
        notes=tuple(notes),
    )


def count_memory(settings: TrainSettings, config: ModelConfig, device: TrainDevice, precision: str = "") -> StepMemory:
    """Count the memory of a step on a device, in the precision of the settings or in another one."""
    objective, precision = settings.objective, precision or settings.precision
    return step_memory(
        config,
        objective.weights,
        objective.defects,
        settings.queue_size,
        bfloat16=precision == "bfloat16" or (precision == "auto" and device.has_bfloat16),
        fused_attention=device.is_gpu,
    )


def usable_bytes(settings: TrainSettings, device: TrainDevice) -> int:
    """Return the memory that a step may use, without the allowance for what is not counted."""
    memory = _device_bytes(settings, device)
    return max(0, int(memory * (1 - _FRAGMENTED)) - _WORKSPACE) if device.is_gpu else memory


def _device_bytes(settings: TrainSettings, device: TrainDevice) -> int:
    if settings.device_gib is not None:
        return int(settings.device_gib * _GIB)
    return device.memory_bytes if device.is_gpu else int(_CPU_SHARE * device.memory_bytes / settings.workers)


def device_before_ray(settings: TrainSettings, gpus_here: int | None) -> TrainDevice | None:
    """Return the device of a run's workers as far as its settings and this machine name it; None if only Ray can tell.

    Args:
        settings: The settings of the run.
        gpus_here: GPUs of the machine that the run is on; None for a run on a cluster.
    """
    takes_gpus = gpus_here is None or gpus_here >= (settings.min_workers or settings.workers)
    if settings.device == "cpu" or (settings.device == "auto" and not takes_gpus):
        return cpu_to_fit(settings)
    if settings.gpu:
        return gpu_called(settings.gpu)
    if settings.device_gib and (settings.device == "cuda" or gpus_here is not None):
        name = f"a GPU of {settings.device_gib:g} GiB"
        return TrainDevice(name, None, int(settings.device_gib * _GIB), is_gpu=True, has_bfloat16=True, is_here=False)
    return None


def cpu_to_fit(settings: TrainSettings) -> TrainDevice | None:
    """Return the CPUs that a run on CPUs is fitted to: its model is large, or its memory is given. Else it fits."""
    return cpu_here() if settings.device_gib or (settings.size == "base" and not settings.address) else None


def takes_all_gpus(settings: TrainSettings, given: Set[str]) -> bool:
    """Return True if the run takes every GPU: the published batch is that of eight, and no number was given."""
    return settings.preset == "published" and not {"workers", "min_workers"} & given and settings.device != "cpu"


def all_gpus(settings: TrainSettings, gpus: int) -> int:
    """Return the largest number of workers, one on each GPU, among which the batch can be divided."""
    return max((count for count in range(1, gpus + 1) if settings.batch_size % count == 0), default=1)


def kept_choices(settings: TrainSettings, given: Set[str], begun: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings with which a resumed run keeps its choices, if the user gave no others."""
    choices: dict[str, Any] = {}
    if "accumulation" not in given:
        per_worker = settings.batch_size // settings.workers
        most = min(begun["micro_batch"], per_worker)
        choices["accumulation"] = next(per_worker // size for size in range(most, 0, -1) if per_worker % size == 0)
    if "checkpoint_activations" not in given:
        choices["checkpoint_activations"] = begun["checkpoint_activations"]
    return choices


def _largest_micro_batch(settings: TrainSettings, begun: Mapping[str, Any] | None) -> int:
    """Return the most pairs of a micro batch.

    Those with which the run began; else the published ones of a GPU, so that the contrast sees as many pairs beside
    the queue as the published one did; else all of a worker.
    """
    per_worker = settings.batch_size // settings.workers
    if begun:
        return min(per_worker, int(begun["micro_batch"]))
    if settings.preset == "published":
        return min(per_worker, published_defaults({"recipe": settings.recipe})["batch_size"] // _PUBLISHED_GPUS)
    return per_worker


def _best(fitting: list[tuple[int, bool]], largest: int, begun: Mapping[str, Any] | None) -> tuple[int, bool]:
    """Return the best of the micro batches that fit; those without checkpointing come first, the largest first."""
    checkpointed = next((one for one in fitting if one[1]), None)
    plain = next((one for one in fitting if not one[1]), None)
    if begun:
        # What the run learns depends on its micro batch, and not on checkpointing.
        keeps = (begun["micro_batch"], begun["checkpoint_activations"])
        return keeps if keeps in fitting else max(fitting, key=lambda one: (one[0], not one[1]))
    if plain is not None and (plain[0] >= min(_FEWEST_PAIRS, largest) or checkpointed is None):
        return plain
    return checkpointed or fitting[0]


def _changes_of_begun(chosen: TrainSettings, size: int, begun: Mapping[str, Any] | None, given: Set[str]) -> list[str]:
    """Return a sentence for each choice that a resumed run could not keep."""
    notes = []
    if begun and size != begun["micro_batch"] and "accumulation" not in given:
        notes.append(
            f"the run began with micro batches of {_pairs(begun['micro_batch'])} and goes on with {_pairs(size)}: each "
            "contrast sees another number of pairs of its step"
        )
    if begun and chosen.checkpoint_activations != begun["checkpoint_activations"]:
        goes_on = "with" if chosen.checkpoint_activations else "without"
        notes.append(f"the run goes on {goes_on} activation checkpointing, which changes its time and not its results")
    return notes


def _refusal(
    settings: TrainSettings,
    config: ModelConfig,
    device: TrainDevice,
    given: Set[str],
    memory: StepMemory,
    least: tuple[int, bool],
) -> str:
    """Say what does not fit, and what would.

    Args:
        settings: The settings of the run.
        config: The configuration of the model.
        device: The device of each worker.
        given: Names of the settings that the user gave.
        memory: The memory of a step.
        least: The micro batch and the checkpointing that need least among those that keep the given settings.
    """
    usable, workers = usable_bytes(settings, device), settings.workers
    per_worker = settings.batch_size // workers
    size, checkpointed = least
    bytes_needed = memory.needed(size, checkpointed=checkpointed, workers=workers)
    kept = [
        f"{name}={str(getattr(settings, name)).lower()}"
        for name in ("accumulation", "checkpoint_activations")
        if name in given
    ]
    given_part = f" ({', '.join(kept)})" if kept else ""
    # Try what the given settings rule out: smaller micro batches, then checkpointing too, then another precision.
    smaller = [pairs for pairs in range(size, 0, -1) if per_worker % pairs == 0]
    ways = ((pairs, way) for way in dict.fromkeys((checkpointed, True)) for pairs in smaller)
    fitting = (way for way in ways if memory.needed(way[0], checkpointed=way[1], workers=workers) <= usable)
    advice = "Use a GPU with more memory, or a smaller queue_size or preset."
    if found := next(fitting, None):
        changes = [f"accumulation={per_worker // found[0]}"] if found[0] != size else []
        changes += ["checkpoint_activations=true"] if found[1] != checkpointed else []
        advice = f"Set {' and '.join(changes)}, or leave these settings out."
    elif settings.precision != "bfloat16" and device.has_bfloat16:
        half = count_memory(settings, config, device, "bfloat16")
        if half.needed(size, checkpointed=checkpointed, workers=workers) <= usable:
            advice = "Set precision=bfloat16."
    return (
        f"the run does not fit into {device.name}: a step of {_pairs(size)}"
        f"{' with activation checkpointing' if checkpointed else ''}{given_part} needs "
        f"{_gib(bytes_needed)} of the {_gib(usable)} that it may use. {advice}"
    )


def _pairs(count: int) -> str:
    return f"{count} pair{'' if count == 1 else 's'}"


def _gib(size: float) -> str:
    return f"{size / _GIB:.1f} GiB"
