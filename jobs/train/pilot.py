"""A pilot of a run: a few real forward and backward passes on a device, to say how long the run will take."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median_high

import torch

from asap.model.asap import Asap
from asap.model.config import ModelConfig
from asap.model.execution import checkpoint_activations, has_bfloat16
from asap.training.batch import Batch, Tokens
from asap.training.memory import longest_batch
from asap.training.step import TERMS, TrainingStep
from jobs.train.settings import TrainSettings
from jobs.train.stages import Stage

_STEPS = 3
"""Timed passes of each stage, after one to warm up."""
_BUDGET_S = 20.0
"""Seconds after which a stage is timed no further; at least one pass is timed."""
_CPU_FLOPS = 1e12
"""Operations of the largest pass on a CPU. A GPU computes a whole micro batch, which it needs to be fast."""
_TOKENS = 64
"""Tokens of the longest text of a batch: fifty words, the most that the model reads."""
_BESIDE = 0.15
"""Share by which the interval exceeds the fastest and the slowest pass, for all that a pass leaves out."""


@dataclass(frozen=True)
class Pilot:
    """The hours of a run by its pilot."""

    hours: float
    low: float
    high: float
    pairs_per_s: float
    """Pairs of all workers per second in the last stage, which trains all terms."""
    pairs: int
    """Pairs of a pass."""
    passes: int


def run_pilot(
    settings: TrainSettings,
    config: ModelConfig,
    stages: Sequence[Stage],
    device: torch.device,
    flops_a_pair: float,
    micro_batch: int,
) -> Pilot:
    """Time passes of each stage of a run with random weights, on noise; CPUs as if no other process used them.

    Args:
        settings: The settings of the run.
        config: The configuration of the model.
        stages: The stages of the run.
        device: The device to compute on.
        flops_a_pair: Floating-point operations of a pair.
        micro_batch: The pairs of a micro batch.
    """
    pairs = micro_batch
    if device.type == "cpu":
        pairs = max(min(2, micro_batch), min(micro_batch, int(_CPU_FLOPS / flops_a_pair)))
    torch.set_flush_denormal(True)  # as a worker does
    with torch.device(device):
        step = TrainingStep(
            Asap(config),
            weights=settings.objective.weights,
            defects=settings.objective.defects,
            queue_size=settings.queue_size,
            mask_id=0,
        ).train()
        batch = _noise(config, pairs)
    if settings.checkpoint_activations:
        checkpoint_activations(step.student)
    precision = settings.precision
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    in_bfloat16 = has_bfloat16(device) if precision == "auto" else precision == "bfloat16"
    seconds = [_time_stage(step, batch, stage, settings.alpha, in_bfloat16=in_bfloat16) for stage in stages]
    # The passes of a stage stand for all its steps; workers compute side by side.
    steps = [stage.last_step - stage.first_step for stage in stages]
    scale = settings.batch_size / (settings.workers * pairs) / 3600
    hours, low, high = (
        scale * sum(count * choose(times) for count, times in zip(steps, seconds, strict=True))
        for choose in (median_high, min, max)
    )
    return Pilot(
        hours=hours,
        low=low * (1 - _BESIDE),
        high=high * (1 + _BESIDE),
        pairs_per_s=settings.workers * pairs / median_high(seconds[-1]),
        pairs=pairs,
        passes=min(map(len, seconds)),
    )


def _noise(config: ModelConfig, pairs: int) -> Batch:
    """Return a batch with random pictures and words; zeros would be computed at another speed."""
    batch = longest_batch(config, pairs, min(_TOKENS, config.max_tokens))
    text = Tokens(torch.randint_like(batch.text.input_ids, config.vocab_size), batch.text.mask)
    return dataclasses.replace(batch, images=torch.randn_like(batch.images), text=text, caption=text, explanation=text)


def _time_stage(step: TrainingStep, batch: Batch, stage: Stage, alpha: float, *, in_bfloat16: bool) -> list[float]:
    """Return the seconds of each timed pass of a stage."""
    step.criterion.weights = {name: stage.weights.get(name, 0.0) for name in TERMS}
    if stage.image_locked:
        step.lock_image_encoder()
    device, times, began = batch.images.device, [], time.perf_counter()
    # Other processes on the same cores do not change the CPU time, so it tells what idle cores would take.
    clock = time.perf_counter if device.type == "cuda" else lambda: time.process_time() / torch.get_num_threads()
    for number in range(1 + _STEPS):
        started = clock()
        with torch.autocast(device.type, torch.bfloat16, enabled=in_bfloat16):
            terms = step(batch, alpha)
        terms["total"].backward()
        step.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        is_late = time.perf_counter() - began > _BUDGET_S
        if number or is_late:
            times.append(clock() - started)
        if is_late:
            break
    return times
