"""What a training step reads: which records each worker's part of a step holds, and where its batch comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, Self

from asap.model.config import ModelConfig
from asap.training.batch import Batch
from asap.training.dataset import TrainingSet, collate, epoch_order
from jobs.train.settings import TrainSettings
from jobs.train.stages import augmentation_at

WHOLE = slice(None)


@dataclass(frozen=True)
class Order:
    """Which records each step of a run holds, and one worker's part of them: a function of seed and step alone."""

    pairs: int
    """In the split."""
    batch_size: int
    """Of a step, over all workers."""
    total_steps: int
    seed: int
    rank: int = 0
    world: int = 1

    @classmethod
    def of(cls, settings: TrainSettings, pairs: int, rank: int = 0, world: int = 1) -> Self:
        """That of a run on `pairs` pairs, for worker `rank` of `world`."""
        total_steps = max(1, settings.pairs // settings.batch_size)
        return cls(pairs, settings.batch_size, total_steps, settings.seed, rank, world)

    @property
    def steps_an_epoch(self) -> int:
        """Whole batches; the pairs beyond wait for the next epoch's order."""
        return self.pairs // self.batch_size

    @property
    def pairs_per_worker(self) -> int:
        """Pairs of this worker's part of a step."""
        return self.batch_size // self.world

    def rows_of_step(self, step: int) -> tuple[list[int], int]:
        """The records of this worker's part of a step, and the epoch."""
        epoch, place = divmod(step, self.steps_an_epoch)
        batch = epoch_order(self.pairs, self.seed, epoch)[place * self.batch_size : (place + 1) * self.batch_size]
        return batch[self.rank * self.pairs_per_worker : (self.rank + 1) * self.pairs_per_worker].tolist(), epoch


class Feed(Protocol):
    """Where the batches of one worker come from."""

    def batch(self, step: int, rows: slice = WHOLE) -> Batch:
        """This worker's part of a step, or some rows of it. Quickest asked for in order.

        Raises an `AsapError` for a picture that cannot be had any more, naming it.
        """
        ...


@dataclass(frozen=True)
class CacheFeed:
    """Batches out of a picture cache, made when they are asked for."""

    pairs: TrainingSet
    config: ModelConfig
    settings: TrainSettings
    order: Order

    def batch(self, step: int, rows: slice = WHOLE) -> Batch:
        """See `Feed`."""
        numbers, epoch = self.order.rows_of_step(step)
        augmentation, seed = augmentation_at(self.settings, step, self.order.total_steps), self.settings.seed
        samples = [
            self.pairs.sample(number, augmentation=augmentation, seed=seed, epoch=epoch) for number in numbers[rows]
        ]
        return collate(samples, self.config, self.pairs.pad_id, mpp_labels=self.settings.objective.mpp_labels)
