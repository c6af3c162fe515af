"""The plan of a training run, made before the run: pairs, steps, stages, memory, speed, and what it writes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from asap.corpus.reader import Record
from asap.errors import ConfigError
from asap.model.asap import Asap
from asap.model.config import ModelConfig
from asap.model.execution import checkpoint_activations
from asap.training.batch import Batch, Tokens
from asap.training.image_token_cache import token_bytes
from asap.training.step import TrainingStep
from jobs.train.checkpoints import regular_steps
from jobs.train.settings import TrainSettings
from jobs.train.speed import GpuSpeed, Precision, flops_of_pair, gpu_speeds
from jobs.train.stages import Stage, lock_step, plan_stages

_COUNTED_PAIRS = 2
"""Pairs of the forward pass whose activations are counted; memory grows linearly with the pairs."""
_ACTIVATIONS = "activations of a micro batch"
_FLOAT = 4
"""Bytes of a number: weights, gradients, optimizer and queues are float32 in any precision."""


@dataclass(frozen=True)
class Plan:
    """The plan that `asap train --plan` shows. Memory and sizes are in bytes."""

    pairs: dict[str, dict[str, int]]
    """Number of pairs by split, then by class."""
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
    """Memory of one worker by purpose."""
    activations_note: str
    """Explanation of how the memory for activations was found."""
    memory_bfloat16: dict[str, int]
    """The same with layers in bfloat16: the activations take half, everything else stays in float32."""
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
    init: tuple[str, ...]
    out: str


def make_plan(
    settings: TrainSettings,
    config: ModelConfig,
    records: Mapping[str, Sequence[Record]],
    ingest: Literal["cache", "stream"],
) -> Plan:
    """Plan a run without Ray. One forward pass of the model is run on the CPU.

    Args:
        settings: The settings of the run.
        config: The configuration of the model.
        records: The records of each split.
        ingest: The source of the pictures.

    Raises `ConfigError` if the training pairs do not fill one batch.
    """
    train_pairs = len(records["train"])
    steps_an_epoch = train_pairs // settings.batch_size
    if not steps_an_epoch:
        raise ConfigError(
            f"{train_pairs} training pairs do not fill one batch of {settings.batch_size}. "
            "Use a larger corpus or a smaller batch_size."
        )
    step = TrainingStep(Asap(config), weights=settings.objective.weights, queue_size=settings.queue_size, mask_id=0)
    if settings.checkpoint_activations:
        checkpoint_activations(step.student)
    pairs_per_worker = settings.batch_size // settings.workers
    micro_batch = pairs_per_worker // settings.accumulation
    steps = settings.total_steps(train_pairs)
    parameters: Counter[str] = Counter()
    for name, parameter in step.student.named_parameters():
        parameters[name.partition(".")[0]] += parameter.numel()
    memory = _memory(step, micro_batch)
    # Tokens of a locked image encoder are kept only if the run locks it and those of all pairs fit.
    tokens = token_bytes(train_pairs, config)
    if lock_step(settings, steps) < steps and tokens <= settings.tokens_gib * 2**30:
        memory["kept image tokens"] = tokens
    flops = flops_of_pair(settings, config)
    precision: Precision = "bfloat16" if settings.precision == "auto" else settings.precision
    return Plan(
        pairs={
            split: dict(Counter(record.fake_cls for record in some).most_common()) for split, some in records.items()
        },
        steps=steps,
        epochs=steps / steps_an_epoch,
        left_out_an_epoch=train_pairs % settings.batch_size,
        batch={
            "pairs of a step": settings.batch_size,
            "workers": settings.workers,
            "pairs of a worker": pairs_per_worker,
            "micro batches": settings.accumulation,
            "pairs of a micro batch": micro_batch,
        },
        stages=plan_stages(settings, steps),
        rates={"text, fusion, heads": settings.learning_rate, "image side, boxes": settings.image_learning_rate},
        parameters=dict(parameters.most_common()),
        memory=memory,
        memory_bfloat16=memory | {_ACTIVATIONS: memory[_ACTIVATIONS] // 2},
        flops_a_pair=flops,
        speeds=gpu_speeds(flops, ingest, settings.decode_tasks, precision),
        precision=precision,
        activations_note=(
            f"counted: the tensors that autograd keeps in a forward pass of {_COUNTED_PAIRS} pairs on a CPU in "
            f"float32, with texts of {config.max_tokens} tokens, scaled to a micro batch; half of that is taken for "
            "bfloat16"
        ),
        # A checkpoint holds the weights, the twin, the two averages of the optimizer, and the queues.
        checkpoint_bytes=2 * memory["weights"] + memory["optimizer (two averages)"] + memory["queues"],
        checkpoints_written=-(-steps // regular_steps(settings, steps, steps_an_epoch)),
        checkpoint_every_s=settings.checkpoint_every_s if settings.checkpoint_pairs is None else None,
        checkpoints_kept=2,
        init=settings.init,
        out=settings.out,
    )


def _memory(step: TrainingStep, micro_batch: int) -> dict[str, int]:
    """Return the memory of one worker in bytes, by purpose."""
    weights = _FLOAT * sum(parameter.numel() for parameter in step.student.parameters())
    return {
        "weights": weights,
        "gradients": weights,
        "optimizer (two averages)": 2 * weights,
        "twin": weights,
        "queues": _FLOAT * sum(value.numel() for value in step.queues.buffers()),
        _ACTIVATIONS: _activation_bytes(step) * micro_batch // _COUNTED_PAIRS,
    }


def _activation_bytes(step: TrainingStep) -> int:
    """Return the bytes that autograd keeps of one forward pass, without the weights."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in step.parameters()}
    kept: dict[int, tuple[torch.Tensor, int]] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            # Holding the tensor keeps its address from being used again.
            kept[storage.data_ptr()] = (tensor, storage.nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        step.train()(_longest_batch(step.student.config), 0.4)
    return sum(size for _, size in kept.values())


def _longest_batch(config: ModelConfig) -> Batch:
    """Return a batch of zeros whose texts have the maximum length."""
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
