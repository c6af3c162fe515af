"""The trainer: state, steps and checkpoints of one worker. It imports torch, not Ray."""

from __future__ import annotations

import dataclasses
import gc
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR

from asap.model.asap import Asap
from asap.model.config import ModelConfig
from asap.model.execution import can_compile, checkpoint_activations, compile_encoders, has_bfloat16
from asap.model.initial_values import initialize_as_published
from asap.storage.failures import storage_errors
from asap.training.batch import Batch, pad_texts
from asap.training.distributed import average_running_statistics, decided_by_first, gather
from asap.training.image_token_cache import ImageTokens
from asap.training.micro_batches import separate_gradients, term_shares
from asap.training.optimizer import adamw, published_schedule, warmup_cosine
from asap.training.step import TERMS, TrainingStep, begin_from_start
from jobs.errors import TrainingDiverged
from jobs.train.checkpoints import CheckpointSchedule
from jobs.train.data.feed import CacheFeed, Feed, Order
from jobs.train.data.splits import Split
from jobs.train.settings import TrainSettings
from jobs.train.stages import plan_stages, word_steps

STATE_FILE = "state.pt"
"""The file of a checkpoint that holds the whole state of a run."""

_EXPLODED = 10.0
"""A loss this many times the mean of the recent steps does not recover by itself."""
_STEPS_COMPARED = 100
"""Number of recent steps whose mean loss a new loss is compared with."""
_IDS_NAMED = 32
"""Pairs that the error of a diverged step names."""
_BUCKET_TOKENS = 16
"""Texts are padded to a multiple of this length for compiled encoders: eight lengths instead of 128."""
_READ_EVERY_S = 1.0
"""Seconds between reads of the losses from a GPU. Each read waits until the GPU has done all that was sent to it."""

Wrap = Callable[[nn.Module, bool], nn.Module]
"""A function that wraps a module so that gradients are averaged over the workers. The flag says that some parameters
may get no gradient in a step, which costs a search for them in every step."""


def model_config(settings: TrainSettings, vocab_size: int) -> ModelConfig:
    """Return the configuration of the model that the run trains."""
    return ModelConfig.preset(settings.size, **({"vocab_size": vocab_size} | dict(settings.objective.model)))


@dataclass(frozen=True)
class _UnreadLosses:
    """The losses of a step that are still on the device."""

    step: int
    names: tuple[str, ...]
    values: Tensor
    """The terms, the norm of the gradients, and 1 if this step or one before it was withheld from the weights."""


class Trainer:
    """The state of a run on one of `world` workers, and the steps that advance it."""

    def __init__(
        self,
        settings: TrainSettings,
        split: Split,
        *,
        rank: int = 0,
        world: int = 1,
        device: torch.device | str = "cpu",
        feed: Feed | None = None,
        read_every_s: float | None = None,
    ) -> None:
        """Build the model, the optimizer and the schedule of a run at its first step.

        Args:
            settings: The settings of the run.
            split: The training pairs and the configuration of the model.
            rank: The number of this worker, from 0.
            world: The number of workers.
            device: The device that this worker computes on.
            feed: The source of batches; by default the picture cache of the split.
            read_every_s: Seconds between reads of the losses from the device; 0 reads them in each step, before the
                optimizer uses the gradients. By default 0 on a CPU, and a second on a GPU, which a read would stop.

        Raises `ConfigError` if the training pairs do not fill one batch.
        """
        # The order of construction is part of a run's identity: every module draws its weights from this seed.
        torch.manual_seed(settings.seed)
        self.settings, self.split, self.rank, self.world = settings, split, rank, world
        self.device = torch.device(device)
        self.objective = settings.objective
        self._set_precision()
        self.module = self._build_module().to(self.device)
        self._set_execution()
        self.step_module: nn.Module = self.module
        self._wrap: Wrap | None = None
        self._searches_unused = self._is_undecided = False
        self._stage_weights: dict[str, float] | None = None
        # The batches of this worker.
        steps_an_epoch = settings.steps_an_epoch(len(split.pairs))
        self.order = Order.of(settings, len(split.pairs), rank, world)
        self._image_tokens = ImageTokens(len(split.pairs), split.config, settings.tokens_gib * 2**30)
        self.feed: Feed = feed or CacheFeed(split.pairs, split.config, settings, self.order)
        self.total_steps = self.order.total_steps
        # The optimizer, and what changes over the steps: learning rates and loss terms.
        self.optimizer = adamw(
            self.module,
            settings.learning_rate,
            settings.image_learning_rate,
            settings.weight_decay,
            published_groups=settings.optimizer_groups == "published",
        )
        self.stages = plan_stages(settings, self.total_steps)
        self.schedule = self._schedule()
        self.checkpoints = CheckpointSchedule(settings, self.total_steps, steps_an_epoch, self.device)
        self.checkpoint_due = False
        self.done = 0
        # The losses: those that were read and compared, and those that are still on the device.
        on_gpu = self.device.type == "cuda"
        self.read_every_s = (_READ_EVERY_S if on_gpu else 0.0) if read_every_s is None else read_every_s
        self._losses: deque[float] = deque(maxlen=_STEPS_COMPARED)
        self._unread: list[_UnreadLosses] = []
        self._read: list[dict[str, float]] = []
        self._withheld = torch.zeros((), device=self.device)
        self._set_optimizer_execution(self.optimizer.state_dict())
        # Every worker draws its own dropout, from a stream of random numbers that a checkpoint can store.
        torch.manual_seed(settings.seed + 1 + rank)

    def _set_precision(self) -> None:
        """Set the precision of the layers, and of the products of float32 matrices on a GPU."""
        precision = self.settings.precision
        self.in_bfloat16 = has_bfloat16(self.device) if precision == "auto" else precision == "bfloat16"
        if self.device.type == "cuda":
            torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")

    def _build_module(self) -> TrainingStep:
        """Build the student, and the step around it, with new weights."""
        settings, as_published = self.settings, self.settings.initial_values == "published"
        student = Asap(self.split.config)
        if as_published:
            initialize_as_published(student)
        return TrainingStep(
            student,
            weights=self.objective.weights,
            defects=self.objective.defects,
            queue_size=settings.queue_size,
            momentum=settings.momentum,
            mask_id=self.split.pairs.codec.tokenizer.mask_token_id,
            twin_dropout=settings.twin_dropout,
            alike_queues=as_published,
        )

    def _schedule(self) -> LambdaLR:
        """Return the schedule of the learning rates."""
        steps_an_epoch = self.order.steps_an_epoch
        if self.settings.schedule == "published":
            epochs = -(-self.total_steps // steps_an_epoch)
            return published_schedule(self.optimizer, steps_an_epoch, epochs)
        warmup_steps = self.settings.warmup_steps(self.total_steps, steps_an_epoch)
        held_steps = word_steps(self.settings, self.total_steps)
        return warmup_cosine(self.optimizer, warmup_steps, self.total_steps, held_steps=held_steps)

    def _set_execution(self) -> None:
        """Set up activation checkpointing and compilation, which change speed and memory, not results."""
        if self.settings.checkpoint_activations:
            checkpoint_activations(self.module.student)
        pays = self.settings.compile == "auto" and self.device.type == "cuda" and can_compile()
        self.is_compiled = self.settings.compile == "on" or pays
        if self.is_compiled:
            for model in (self.module.student, self.module.twin.model):
                compile_encoders(model)

    @property
    def evaluated_model(self) -> Asap:
        """The model whose weights are evaluated at a checkpoint and exported."""
        return self.module.student if self.settings.weights == "student" else self.module.twin.model

    @property
    def pairs_done(self) -> int:
        """Pairs trained on so far, over all workers."""
        return self.done * self.settings.batch_size

    @property
    def pairs_in_all(self) -> int:
        """Pairs of the whole run, over all workers."""
        return self.total_steps * self.settings.batch_size

    @property
    def run_stage(self) -> dict[str, int]:
        """The stage of the last step: its number from 1, the number of stages, and the pairs at which it ends."""
        number = next(number for number, stage in enumerate(self.stages) if self.done <= stage.last_step)
        ends = self.stages[number].last_step * self.settings.batch_size
        return {"number": number + 1, "of": len(self.stages), "ends": ends}

    def begin_from(self, start: Path) -> None:
        """Load the weights of a warm start that `jobs.train.start` wrote. Only a run without a checkpoint needs it."""
        begin_from_start(self.module, start)

    def distribute(self, wrap: Wrap) -> None:
        """Call the step through a wrapped module, which averages gradients over the workers.

        It is wrapped anew for each stage: see `_wrap_for_stage`.
        """
        self._wrap = wrap
        self._wrap_step(searches_unused=True)

    def _wrap_step(self, *, searches_unused: bool) -> None:
        assert self._wrap is not None  # noqa: S101  # set by `distribute`
        # The former wrapper must be gone before the next one: both would average the same gradients.
        self.step_module = self.module
        gc.collect()
        self.step_module = self._wrap(self.module, searches_unused)
        self._searches_unused = searches_unused

    def _wrap_for_stage(self, *, is_first_step: bool) -> None:
        """Search for parameters without a gradient only in stages that have some.

        A stage that trains words alone leaves out the image side; a full objective leaves out nothing. The first step
        of a stage searches, and the gradients that it left decide about the others. A term that a batch has nothing for
        keeps its graph, so the parameters of a stage do not depend on the batch.
        """
        if self._wrap is None:
            return
        if is_first_step:
            self._is_undecided = True
            if not self._searches_unused:
                self._wrap_step(searches_unused=True)
        elif self._is_undecided:
            self._is_undecided = False
            trained = [parameter for parameter in self.module.parameters() if parameter.requires_grad]
            if decided_by_first(all(parameter.grad is not None for parameter in trained), self.device):
                self._wrap_step(searches_unused=False)

    def steps(self) -> Iterator[list[dict[str, float]]]:
        """Train to the end of the run. Yield, after each step, the losses that were read from the device.

        These are the loss terms of each step since the last read, with its time in `seconds`. On a CPU they are those
        of this step; on a GPU a list is often empty. All are read before a checkpoint is due, and at the end.
        """
        self.module.train()
        try:
            unread_s, read_s = 0.0, time.monotonic()
            while self.done < self.total_steps:
                started = time.monotonic()
                self._step()
                self.done += 1
                self.checkpoint_due = self.checkpoints.is_due(self.done)
                if self.checkpoint_due or time.monotonic() - read_s >= self.read_every_s:
                    self._read_losses()
                unread_s += time.monotonic() - started
                read, self._read = self._read, []
                if read:
                    seconds, unread_s, read_s = unread_s / len(read), 0.0, time.monotonic()
                    read = [terms | {"seconds": seconds} for terms in read]
                yield read
        finally:
            self.feed.close()

    def _step(self) -> None:
        """Train on one batch."""
        records, _ = self.order.rows_of_step(self.done)
        batch = self.feed.batch(self.done)
        if self.is_compiled:
            batch = pad_texts(batch, _BUCKET_TOKENS, self.split.config.max_tokens)
        self._enter_stage()
        if self.module.image_locked:
            batch = self._with_image_tokens(batch, records)
        # Gradients are checked before the optimizer uses them: a step that diverges leaves the weights as they were.
        self.optimizer.zero_grad()
        terms = self._accumulate_gradients(batch.to(self.device, non_blocking=self.device.type == "cuda"))
        largest = math.inf if self.settings.gradient_norm is None else self.settings.gradient_norm
        norm = torch.nn.utils.clip_grad_norm_(self.module.parameters(), largest)
        if self.read_every_s:
            self._withhold_if_diverged(terms["total"], norm)
        values = torch.stack([*terms.values(), norm, self._withheld])
        self._unread.append(_UnreadLosses(self.done, tuple(terms), values))
        if not self.read_every_s:
            self._read_losses()
        self.optimizer.step()
        average_running_statistics(self.module.student)
        self.schedule.step()

    def _withhold_if_diverged(self, total: Tensor, norm: Tensor) -> None:
        """Withhold this step and all after it from the weights if it diverges. The GPU decides, and nobody waits.

        The error is raised when the losses are read. The usual loss is that of the last read.
        """
        usual = sum(self._losses) / len(self._losses) if len(self._losses) == _STEPS_COMPARED else math.inf
        healthy = total.isfinite() & norm.isfinite() & (total <= _EXPLODED * usual)
        self._withheld.copy_(torch.maximum(self._withheld, (~healthy).float()))

    def _read_losses(self) -> None:
        """Read the losses of the steps since the last read. Raises `TrainingDiverged` if one of them diverged."""
        unread, self._unread = self._unread, []
        if not unread:
            return
        values = torch.cat([losses.values for losses in unread]).tolist()  # one wait for the GPU
        for losses in unread:
            terms = dict(zip(losses.names, values, strict=False))
            gradient_norm, withheld = values[len(terms) : len(terms) + 2]
            values = values[len(terms) + 2 :]
            self._check_convergence(losses.step, terms, gradient_norm, withheld=bool(withheld))
            self._read.append(terms)

    def _enter_stage(self) -> None:
        """Set the loss weights of this step's stage, and lock the image encoder if the stage has it locked."""
        stage = next(stage for stage in self.stages if self.done < stage.last_step)
        weights = {name: stage.weights.get(name, 0.0) for name in TERMS}
        locks = stage.image_locked and not self.module.image_locked
        is_first_step = locks or weights != self._stage_weights
        if weights != self.module.criterion.weights:
            self._read_losses()
            self._losses.clear()  # terms that join raise the total, which is not an explosion
        self.module.criterion.weights = self._stage_weights = weights
        if locks:
            self.module.lock_image_encoder()
        self._wrap_for_stage(is_first_step=is_first_step)

    def _with_image_tokens(self, batch: Batch, records: list[int]) -> Batch:
        """Return the batch with the tokens of the locked image encoder, from the cache if they are in it.

        Args:
            batch: The batch of this worker.
            records: The numbers of its records in the split.
        """

        def encode() -> Tensor:
            with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.in_bfloat16):
                return self.module.student.encode_image(batch.to(self.device).normalized().images)

        return dataclasses.replace(batch, image_tokens=self._image_tokens.get_or_encode(records, encode))

    def _accumulate_gradients(self, batch: Batch) -> dict[str, Tensor]:
        """Add up the gradients of the batch, one micro batch at a time. Return the loss terms of the whole batch."""
        parts = batch.parts(self.settings.micro_batches(self.world))
        shares = term_shares(parts, self.objective.defects) if len(parts) > 1 else [None]
        sums: dict[str, Tensor] = {}
        for number, (part, share) in enumerate(zip(parts, shares, strict=True)):
            # Workers average their gradients once, when the last micro batch has added its own.
            module, is_last = self.step_module, number + 1 == len(parts)
            waits = isinstance(module, DistributedDataParallel) and not is_last
            with cast("DistributedDataParallel", module).no_sync() if waits else nullcontext():
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.in_bfloat16):
                    terms = module(part, self._alpha(), share, update_twin=number == 0)
                terms["total"].backward()
            separate_gradients(self.module.parameters())
            sums = {name: sums.get(name, 0) + term.detach() for name, term in terms.items()}
        return sums

    def _alpha(self) -> float:
        """Return the weight of the twin's soft targets. It rises linearly once the alignment terms join."""
        settings, total_pairs = self.settings, self.settings.total_pairs(self.total_steps)
        ramp = max(0.0, self.pairs_done - settings.alignment_from * total_pairs)
        epoch_pairs = self.order.steps_an_epoch * settings.batch_size
        return settings.alpha * min(1.0, ramp / (settings.alpha_ramp_pairs or epoch_pairs))

    def _check_convergence(self, step: int, losses: dict[str, float], gradient_norm: float, *, withheld: bool) -> None:
        """Raise `TrainingDiverged` if a step would damage the weights, or was withheld from them for that reason."""
        total, usual = losses["total"], sum(self._losses) / max(1, len(self._losses))
        if not math.isfinite(total):
            fault = f"loss of step {step} is not finite"
        elif not math.isfinite(gradient_norm):
            fault = f"gradients of step {step} are not finite"
        elif withheld or (len(self._losses) == _STEPS_COMPARED and total > _EXPLODED * usual):
            fault = f"loss of step {step} is {total:.3g} after a mean of {usual:.3g}"
        else:
            self._losses.append(total)
            return
        # Name the pairs of all workers: the contrast and the averaged gradients spread a fault to every worker.
        numbers, _ = dataclasses.replace(self.order, rank=0, world=1).rows_of_step(step)
        ids = ", ".join(self.split.pairs.records[number].id for number in numbers[:_IDS_NAMED])
        more = f" and {len(numbers) - _IDS_NAMED:,} more" if len(numbers) > _IDS_NAMED else ""
        found = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
        raise TrainingDiverged(
            f"the {fault} ({found}); its pairs are {ids}{more}. Checkpoints are kept. Inspect these pairs, or train "
            "with a lower learning_rate into another folder."
        )

    def random_states(self) -> dict[str, Tensor]:
        """Return the state of each worker's random number generators, (world, bytes).

        Every worker must call this, because it gathers over the workers; the first worker saves the result.
        """
        states = {"rng": gather(torch.get_rng_state()[None].to(self.device)).cpu()}
        if self.device.type == "cuda":
            states["cuda_rng"] = gather(torch.cuda.get_rng_state(self.device)[None].to(self.device)).cpu()
        return states

    def snapshot(self, random_states: dict[str, Tensor] | None = None) -> dict[str, Any]:
        """Return a copy, in the memory of this machine, of all that the run needs to resume from here.

        Any number of workers can resume from it. The copy does not change while the training goes on.

        Args:
            random_states: The result of `random_states`; by default the state of this worker alone.
        """
        state = {
            "done": self.done,
            "module": self.module.state_dict(),
            "optimiser": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            **(random_states or self.random_states()),
        }
        copied = _copy_to_host(state)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # the copies run beside the CPU until here
        return cast("dict[str, Any]", copied)

    def save(self, folder: Path, random_states: dict[str, Tensor] | None = None) -> None:
        """Write the `snapshot` to an existing folder."""
        write_state(self.snapshot(random_states), folder)

    def _set_optimizer_execution(self, state: dict[str, Any]) -> None:
        """Load the state of the optimizer, whose fused form can withhold a step on the device, if losses are read late.

        The choice is this worker's: a checkpoint may come from a run on another kind of device.
        """
        for group in state["param_groups"]:
            group |= {"fused": True, "foreach": False} if self.read_every_s else {"fused": None, "foreach": None}
        self.optimizer.load_state_dict(state)
        if self.read_every_s:
            self.optimizer.found_inf = self._withheld  # type: ignore[attr-defined]  # as `torch.amp.GradScaler` does

    def restore(self, folder: Path) -> None:
        """Return to the state in which `save` was called."""
        state = read_state(folder)
        self.module.load_state_dict(state["module"])
        self._set_optimizer_execution(state["optimiser"])
        self.schedule.load_state_dict(state["schedule"])
        self.done = state["done"]
        # Another number of workers, or another kind of device, has no stored stream for each worker: draw new ones.
        own_kind = "cuda_rng" if self.device.type == "cuda" else "rng"
        if own_kind not in state or len(state[own_kind]) != self.world:
            seeds = np.random.SeedSequence((self.settings.seed, self.done, self.world, self.rank))
            torch.manual_seed(int(seeds.generate_state(1)[0]))
            return
        # Cloned: torch reads a row of a larger tensor from the wrong address, and the process dies.
        torch.set_rng_state(state["rng"][self.rank].clone())
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_rng"][self.rank].clone(), self.device)


def _copy_to_host(value: Any) -> Any:
    """Copy a nested state to the memory of this machine, from a GPU to pinned memory without waiting for it."""
    if isinstance(value, Tensor):
        if value.device.type != "cuda":
            return value.detach().clone()
        return torch.empty_like(value, device="cpu", pin_memory=True).copy_(value.detach(), non_blocking=True)
    if isinstance(value, dict):
        return type(value)((key, _copy_to_host(part)) for key, part in value.items())
    return type(value)(map(_copy_to_host, value)) if isinstance(value, list | tuple) else value


def write_state(state: dict[str, Any], folder: Path) -> None:
    """Write a state that `Trainer.snapshot` returned to an existing folder.

    Raises `StorageError`, as for a full disk.
    """
    # Given a path, torch would write in C++, whose error for a full disk does not say so.
    with storage_errors(str(folder / STATE_FILE)), (folder / STATE_FILE).open("wb") as file:
        torch.save(state, file)


def read_state(folder: Path) -> dict[str, Any]:
    """Read the state that `Trainer.save` wrote, as plain tensors on the CPU."""
    state: dict[str, Any] = torch.load(  # noqa: TID251  # our own file
        folder / STATE_FILE, weights_only=True, map_location="cpu"
    )
    return state


def read_weights(folder: Path, which: Literal["average", "student"]) -> dict[str, Tensor]:
    """Read the state dict of the averaged model, or of the student, from a checkpoint."""
    prefix = "twin.module." if which == "average" else "student."
    weights = read_state(folder)["module"]
    return {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
