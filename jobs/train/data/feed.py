"""The order of the records in a run, and the interface through which a worker gets its batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

from asap.model.config import ModelConfig
from asap.training.batch import Batch
from asap.training.dataset import Sample, TrainingSet, collate, epoch_order
from jobs.train.settings import TrainSettings
from jobs.train.stages import augmentation_at, descriptions_at

WHOLE = slice(None)


@dataclass(frozen=True)
class Order:
    """The records of each step of a run, and one worker's part of them. It depends on seed and step alone."""

    pairs: int
    """Pairs in the split."""
    batch_size: int
    """Pairs of a step, over all workers."""
    total_steps: int
    seed: int
    rank: int = 0
    world: int = 1

    @classmethod
    def of(cls, settings: TrainSettings, pairs: int, rank: int = 0, world: int = 1) -> Self:
        """Return the order of a run on a split of so many pairs, for worker `rank` of `world`."""
        return cls(pairs, settings.batch_size, settings.total_steps(pairs), settings.seed, rank, world)

    @property
    def steps_an_epoch(self) -> int:
        """Whole batches in the split. Pairs beyond them are left out of an epoch; the next one has another order."""
        return self.pairs // self.batch_size

    @property
    def pairs_per_worker(self) -> int:
        """Pairs of this worker's part of a step."""
        return self.batch_size // self.world

    def rows_of_step(self, step: int) -> tuple[list[int], int]:
        """Return the record numbers of this worker's part of a step, and the epoch."""
        epoch, position = divmod(step, self.steps_an_epoch)
        first = position * self.batch_size
        batch = epoch_order(self.pairs, self.seed, epoch)[first : first + self.batch_size]
        return batch[self.rank * self.pairs_per_worker : (self.rank + 1) * self.pairs_per_worker].tolist(), epoch


class Feed(Protocol):
    """A source of the batches of one worker."""

    def batch(self, step: int, rows: slice = WHOLE) -> Batch:
        """Return this worker's part of a step, or some rows of it. It is fastest to request steps in order.

        Raises an `AsapError` that names the picture if a picture cannot be read any more.
        """
        ...

    def close(self) -> None:
        """Stop what makes batches ahead. A later request starts it again."""
        ...


def make_batch(
    samples: Sequence[Sample], pairs: TrainingSet, config: ModelConfig, settings: TrainSettings, order: Order, step: int
) -> Batch:
    """Return the batch of the samples of a step, with what the terms of that step read.

    Args:
        samples: The samples.
        pairs: The training pairs that they come from.
        config: The configuration of the model.
        settings: The settings of the run.
        order: The order of the records.
        step: The number of the step.
    """
    descriptions = descriptions_at(settings, config, step, order.total_steps)
    return collate(samples, config, pairs.pad_id, mpp_labels=settings.objective.mpp_labels, descriptions=descriptions)


@dataclass(frozen=True)
class CacheFeed:
    """Batches from a picture cache, made when they are requested."""

    pairs: TrainingSet
    config: ModelConfig
    settings: TrainSettings
    order: Order

    def batch(self, step: int, rows: slice = WHOLE) -> Batch:
        """Return this worker's part of a step, or some rows of it; see `Feed`."""
        numbers, epoch = self.order.rows_of_step(step)
        augmentation, seed = augmentation_at(self.settings, step, self.order.total_steps), self.settings.seed
        samples = [
            self.pairs.sample(number, augmentation=augmentation, seed=seed, epoch=epoch) for number in numbers[rows]
        ]
        return make_batch(samples, self.pairs, self.config, self.settings, self.order, step)

    def close(self) -> None:
        """Do nothing: no batch is made ahead."""
