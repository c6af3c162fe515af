"""What a training run will do, told before it does it: pairs, steps, stages, memory, and where it writes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from asap.corpus.reader import Record
from asap.errors import ConfigError
from asap.model.asap import Asap
from asap.model.config import ModelConfig
from asap.model.execution import checkpoint_activations
from asap.training.batch import Batch, Tokens
from asap.training.image_token_cache import token_bytes
from asap.training.step import TrainingStep
from jobs.train.settings import TrainSettings
from jobs.train.stages import Stage, lock_step, stages

_COUNTED_PAIRS = 2
"""Pairs of the forward pass whose activations are counted; memory grows with the pairs."""
_FLOAT = 4
"""Bytes: weights, gradients, optimiser and queues are in float32 in any precision."""


@dataclass(frozen=True)
class Plan:
    """What `asap train --plan` shows. Memory and sizes in bytes."""

    pairs: dict[str, dict[str, int]]
    """By split, then by class."""
    steps: int
    epochs: float
    left_out_an_epoch: int
    """Pairs that do not fill a last batch; which ones changes from epoch to epoch."""
    batch: dict[str, int]
    """Pairs of a step, workers, pairs of a worker, micro batches, pairs of a micro batch."""
    stages: list[Stage]
    rates: dict[str, float]
    parameters: dict[str, int]
    """By module."""
    memory: dict[str, int]
    """Of one worker, by what it is for."""
    activations_told: str
    """How the entry for activations came about."""
    checkpoint_bytes: int
    checkpoints_written: int
    checkpoints_kept: int
    init: tuple[str, ...]
    out: str


def make_plan(settings: TrainSettings, config: ModelConfig, records: Mapping[str, Sequence[Record]]) -> Plan:
    """Plan a run on these records, by split. Runs one forward pass of the model on the CPU, without Ray.

    Raises `ConfigError` where the training pairs do not fill a batch.
    """
    steps_an_epoch = len(records["train"]) // settings.batch_size
    if not steps_an_epoch:
        raise ConfigError(f"{len(records['train'])} training pairs do not fill one batch of {settings.batch_size}")
    step = TrainingStep(Asap(config), weights=settings.objective.weights, queue_size=settings.queue_size, mask_id=0)
    if settings.checkpoint_activations:
        checkpoint_activations(step.student)
    share = settings.batch_size // settings.workers
    micro = share // settings.accumulation
    weights, queues = _numbers(step.student), sum(value.numel() for value in step.queues.buffers())
    steps = max(1, settings.pairs // settings.batch_size)
    each = max(1, settings.checkpoint_pairs // settings.batch_size)
    return Plan(
        pairs={
            split: dict(Counter(record.fake_cls for record in some).most_common()) for split, some in records.items()
        },
        steps=steps,
        epochs=steps / steps_an_epoch,
        left_out_an_epoch=len(records["train"]) % settings.batch_size,
        batch={
            "pairs of a step": settings.batch_size,
            "workers": settings.workers,
            "pairs of a worker": share,
            "micro batches": settings.accumulation,
            "pairs of a micro batch": micro,
        },
        stages=stages(settings, steps),
        rates={"text, fusion, heads": settings.learning_rate, "image side, boxes": settings.image_learning_rate},
        parameters=_by_module(step.student),
        memory={
            "weights": _FLOAT * weights,
            "gradients": _FLOAT * weights,
            "optimiser (two averages)": 2 * _FLOAT * weights,
            "twin": _FLOAT * weights,
            "queues": _FLOAT * queues,
            "activations of a micro batch": _activation_bytes(step) * micro // _COUNTED_PAIRS,
            **_kept_tokens(settings, config, len(records["train"]), steps),
        },
        activations_told=(
            f"counted: what autograd keeps of a forward pass of {_COUNTED_PAIRS} pairs on a CPU in float32, texts at "
            f"{config.max_tokens} tokens, times the pairs of a micro batch; bfloat16 needs about half"
        ),
        checkpoint_bytes=_FLOAT * (4 * weights + queues),
        checkpoints_written=-(-steps // each),
        checkpoints_kept=2,
        init=settings.init,
        out=settings.out,
    )


def _kept_tokens(settings: TrainSettings, config: ModelConfig, pairs: int, steps: int) -> dict[str, int]:
    """Of a run whose image encoder is to rest, where they fit."""
    taken = token_bytes(pairs, config)
    rests = lock_step(settings, steps) < steps
    return {"kept image tokens": taken} if rests and taken <= settings.tokens_gib * 2**30 else {}


def _numbers(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _by_module(model: Asap) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        counts[name.partition(".")[0]] += parameter.numel()
    return dict(counts.most_common())


def _activation_bytes(step: TrainingStep) -> int:
    """What autograd keeps of one forward pass, beside the weights."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in step.parameters()}
    kept: dict[int, tuple[torch.Tensor, int]] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (tensor, storage.nbytes())  # held, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        step.train()(_batch(step.student.config), 0.4)
    return sum(size for _, size in kept.values())


def _batch(config: ModelConfig) -> Batch:
    """Pairs of zeros, with texts as long as they can be."""
    pairs, patches = _COUNTED_PAIRS, config.patches_per_side**2
    ids = torch.ones(pairs, config.max_tokens, dtype=torch.long)
    text = Tokens(ids, torch.ones_like(ids))
    return Batch(
        images=torch.zeros(pairs, 3, config.image_size, config.image_size),
        text=text,
        caption=text,
        explanation=text,
        manipulated=torch.zeros(pairs, dtype=torch.bool),
        types=torch.zeros(pairs, 4),
        box_cxcywh=torch.full((pairs, 4), 0.5),
        has_box=torch.ones(pairs, dtype=torch.bool),
        token_labels=torch.zeros_like(ids[:, 1:]),
        patch_mask=torch.zeros(pairs, patches),
        patch_labels=torch.zeros(pairs, patches),
    )
