"""One worker's part in a training run: its state, its steps, its checkpoints. Knows torch, not Ray."""

from __future__ import annotations

import dataclasses
import math
import time
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from asap.errors import AsapError
from asap.model.asap import Asap
from asap.model.config import ModelConfig
from asap.model.execution import can_compile, checkpoint_activations, compile_encoders, has_bfloat16
from asap.training.batch import Batch
from asap.training.distributed import average_running_statistics, gather
from asap.training.image_token_cache import ImageTokens
from asap.training.micro_batches import separate_gradients, term_shares
from asap.training.optimizer import adamw, warmup_cosine
from asap.training.step import TERMS, TrainingStep, begin_from_start
from jobs.errors import TrainingDiverged
from jobs.train.data.feed import CacheFeed, Feed, Order
from jobs.train.data.splits import Split
from jobs.train.settings import TrainSettings
from jobs.train.stages import stages, word_steps

STATE_FILE = "state.pt"


_EXPLODED = 10.0
"""A loss this many times the mean of the steps before it will not come back by itself."""
_STEPS_COMPARED = 100


def model_config(settings: TrainSettings, vocab_size: int) -> ModelConfig:
    """The configuration that the run trains."""
    return ModelConfig.preset(settings.preset, **({"vocab_size": vocab_size} | dict(settings.objective.model)))


def _in_bfloat16(precision: str, device: torch.device) -> bool:
    if precision == "auto":
        return has_bfloat16(device)
    return precision == "bfloat16"


def _mixed(*numbers: int) -> int:
    """A seed out of several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


class Trainer:
    """The state of a run on one worker of `world`, and the steps that move it on."""

    def __init__(
        self,
        settings: TrainSettings,
        split: Split,
        *,
        rank: int = 0,
        world: int = 1,
        device: torch.device | str = "cpu",
        feed: Feed | None = None,
    ) -> None:
        """`feed`: where batches come from, if not from the split's picture cache."""
        torch.manual_seed(settings.seed)
        self.settings, self.split, self.rank, self.world = settings, split, rank, world
        self.device = torch.device(device)
        self.in_bfloat16 = _in_bfloat16(settings.precision, self.device)
        self.objective = settings.objective
        self.module = TrainingStep(
            Asap(split.config),
            weights=self.objective.weights,
            defects=self.objective.defects,
            queue_size=settings.queue_size,
            momentum=settings.momentum,
            mask_id=split.pairs.codec.tokenizer.mask_token_id,
        ).to(self.device)
        self._set_execution()
        self.step_module: nn.Module = self.module
        self.order = Order.of(settings, len(split.pairs), rank, world)
        self._image_tokens = ImageTokens(len(split.pairs), split.config, settings.tokens_gib * 2**30)
        self.feed: Feed = feed or CacheFeed(split.pairs, split.config, settings, self.order)
        self.total_steps = self.order.total_steps
        if not self.order.steps_an_epoch:
            raise AsapError(f"{len(split.pairs)} training pairs do not fill one batch of {settings.batch_size}")
        self.optimiser = adamw(self.module, settings.learning_rate, settings.image_learning_rate, settings.weight_decay)
        warmup_steps = max(1, settings.warmup_pairs // settings.batch_size)
        self.stages = stages(settings, self.total_steps)
        held_steps = word_steps(settings, self.total_steps)
        self.schedule = warmup_cosine(self.optimiser, warmup_steps, self.total_steps, held_steps=held_steps)
        self.steps_a_checkpoint = max(1, settings.checkpoint_pairs // settings.batch_size)
        self.done = 0
        self._losses: deque[float] = deque(maxlen=_STEPS_COMPARED)
        # Every worker draws its own dropout, from a stream that a checkpoint can carry.
        torch.manual_seed(settings.seed + 1 + rank)

    @property
    def pairs_done(self) -> int:
        """Pairs trained on so far, over all workers."""
        return self.done * self.settings.batch_size

    @property
    def pairs_in_all(self) -> int:
        """Pairs of the whole run, over all workers."""
        return self.total_steps * self.settings.batch_size

    @property
    def _alignment_from(self) -> float:
        """Pairs."""
        return self.settings.alignment_from * self.settings.pairs

    def _set_execution(self) -> None:
        if self.settings.checkpoint_activations:
            checkpoint_activations(self.module.student)
        pays = self.settings.compile == "auto" and self.device.type == "cuda" and can_compile()
        if self.settings.compile == "on" or pays:
            for model in (self.module.student, self.module.twin.model):
                compile_encoders(model)

    def begin_from(self, start: Path) -> None:
        """Take the weights of a warm start, as `jobs.train.start` wrote them; for a run that has no checkpoint yet."""
        begin_from_start(self.module, start)

    def distribute(self, wrapped: nn.Module) -> None:
        """Call the step through `wrapped`, which averages gradients over workers."""
        self.step_module = wrapped

    def random_states(self) -> dict[str, Tensor]:
        """Where each worker's random numbers are, (world, bytes): for every worker to call, and the first to save."""
        states = {"rng": gather(torch.get_rng_state()[None].to(self.device)).cpu()}
        if self.device.type == "cuda":
            states["cuda_rng"] = gather(torch.cuda.get_rng_state(self.device)[None].to(self.device)).cpu()
        return states

    def save(self, folder: Path, random_states: dict[str, Tensor] | None = None) -> None:
        """Write all that the run needs to go on from here, with any number of workers.

        `random_states`: what `random_states` gave; by default this worker's alone.
        """
        state = {
            "done": self.done,
            "module": self.module.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict(),
            **(random_states or self.random_states()),
        }
        torch.save(state, folder / STATE_FILE)

    @staticmethod
    def _read(folder: Path) -> dict[str, Any]:
        state: dict[str, Any] = torch.load(  # noqa: TID251  # our own file
            folder / STATE_FILE, weights_only=True, map_location="cpu"
        )
        return state

    @classmethod
    def twin_weights(cls, folder: Path) -> dict[str, Tensor]:
        """The averaged model's state dict in a checkpoint: an average judges better than the last step."""
        prefix = "twin.module."
        weights = cls._read(folder)["module"]
        return {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}

    def restore(self, folder: Path) -> None:
        """Go back to where `save` was called."""
        state = self._read(folder)
        self.module.load_state_dict(state["module"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.schedule.load_state_dict(state["schedule"])
        self.done = state["done"]
        self._restore_random(state)

    def _restore_random(self, state: dict[str, Any]) -> None:
        """This worker's own stream; one of its own too where there were other workers, or another kind of device."""
        own_kind = "cuda_rng" if self.device.type == "cuda" else "rng"
        if own_kind not in state or len(state[own_kind]) != self.world:
            torch.manual_seed(_mixed(self.settings.seed, self.done, self.world, self.rank))
            return
        # Cloned: torch reads a row of a larger tensor from the wrong place, and the process dies.
        torch.set_rng_state(state["rng"][self.rank].clone())
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_rng"][self.rank].clone(), self.device)

    def steps(self) -> Iterator[dict[str, float]]:
        """Train to the end of the run, one step at a time; yields each step's terms and its time in seconds."""
        self.module.train()
        while self.done < self.total_steps:
            started = time.monotonic()
            terms = self._step()
            self.done += 1
            yield terms | {"seconds": time.monotonic() - started}

    def _step(self) -> dict[str, float]:
        numbers, _ = self._numbers()
        batch = self.feed.batch(self.done)
        self._enter_stage()
        if self.module.image_locked:
            batch = self._with_image_tokens(batch, numbers)
        self.optimiser.zero_grad()
        terms = self._accumulate(batch.to(self.device))
        norm = torch.nn.utils.clip_grad_norm_(self.module.parameters(), self.settings.gradient_norm)
        *values, gradient_norm = torch.stack([*terms.values(), norm]).tolist()  # one wait for the GPU, not ten
        figures = dict(zip(terms, values, strict=True))
        self._check(figures, gradient_norm)
        self.optimiser.step()
        average_running_statistics(self.module.student)
        self.schedule.step()
        return figures

    def _accumulate(self, batch: Batch) -> dict[str, Tensor]:
        """Add up the gradients of the batch, one micro batch at a time; the terms of the whole of it."""
        parts = batch.parts(self.settings.micro_batches(self.world))
        shares = term_shares(parts) if len(parts) > 1 else [None]
        sums: dict[str, Tensor] = {}
        for number, (part, share) in enumerate(zip(parts, shares, strict=True)):
            # Workers average their gradients once, when the last micro batch has added its own.
            with self._apart() if number + 1 < len(parts) else nullcontext():
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.in_bfloat16):
                    terms = self.step_module(part, self._alpha(), share, moves_twin=number == 0)
                terms["total"].backward()
            separate_gradients(self.module.parameters())
            sums = {name: sums.get(name, 0) + term.detach() for name, term in terms.items()}
        return sums

    def _apart(self) -> AbstractContextManager[None]:
        """No averaging over workers during the block."""
        if isinstance(self.step_module, DistributedDataParallel):
            return cast("AbstractContextManager[None]", self.step_module.no_sync())
        return nullcontext()

    def _numbers(self) -> tuple[list[int], int]:
        """The records of this worker's part of the next batch, and the epoch."""
        return self.order.rows_of_step(self.done)

    def _with_image_tokens(self, batch: Batch, numbers: list[int]) -> Batch:
        """The batch with what the locked image encoder makes of its pictures."""

        def encode() -> Tensor:
            with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.in_bfloat16):
                return self.module.student.encode_image(batch.images.to(self.device))

        return dataclasses.replace(batch, image_tokens=self._image_tokens.of(numbers, encode))

    def _enter_stage(self) -> None:
        """Give the criterion the weights of this step's stage, and lock the image encoder where it is to rest."""
        stage = next(stage for stage in self.stages if self.done < stage.last_step)
        weights = {name: stage.weights.get(name, 0.0) for name in TERMS}
        if weights != self.module.criterion.weights:
            self._losses.clear()  # terms that join raise the total, which is then not an explosion
        self.module.criterion.weights = weights
        if stage.image_locked and not self.module.image_locked:
            self.module.lock_image_encoder()

    def _alpha(self) -> float:
        """Ramps up from where the terms of alignment join."""
        ramp = max(0.0, self.pairs_done - self._alignment_from) / self.settings.alpha_ramp_pairs
        return self.settings.alpha * min(1.0, ramp)

    def _check(self, figures: dict[str, float], gradient_norm: float) -> None:
        """Raise `TrainingDiverged` where the step would harm the weights."""
        total, usual = figures["total"], sum(self._losses) / max(1, len(self._losses))
        if not math.isfinite(total):
            fault = f"loss of step {self.done} is not finite"
        elif len(self._losses) == _STEPS_COMPARED and total > _EXPLODED * usual:
            fault = f"loss of step {self.done} is {total:.3g} after a mean of {usual:.3g}"
        elif not math.isfinite(gradient_norm):
            fault = f"gradients of step {self.done} are not finite"
        else:
            self._losses.append(total)
            return
        found = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
        raise TrainingDiverged(
            f"the {fault} ({found}); its pairs are {self._ids()}. The last checkpoint is "
            "kept: look at these pairs, or train with a lower learning_rate"
        )

    def _ids(self) -> list[str]:
        """The pairs of this step, of all workers: the contrast and averaged gradients carry a fault to every one."""
        numbers, _ = dataclasses.replace(self.order, rank=0, world=1).rows_of_step(self.done)
        return [self.split.pairs.records[number].id for number in numbers]
