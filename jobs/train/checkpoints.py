"""The steps of a run after which a checkpoint is due. It imports torch, not Ray."""

from __future__ import annotations

import time

import torch

from asap.training.distributed import decided_by_first, world_size
from jobs.train.settings import TrainSettings

_FEWEST_PAIRS = 6_400
"""Pairs between the regular checkpoints of a short run: fewer would validate for longer than they train."""
_REGULAR = 20
"""Regular checkpoints of a run: the best of them becomes the model, so there must be some whatever its speed."""
_AGREED_EVERY = 16
"""Steps between two questions to the first worker whether time is up. An answer makes the others wait for the GPU."""


def regular_steps(settings: TrainSettings, total_steps: int, steps_an_epoch: int) -> int:
    """Return the steps between two checkpoints that are due whatever the time."""
    if settings.checkpoint_pairs == "epoch":
        return steps_an_epoch
    if settings.checkpoint_pairs is not None:
        return max(1, settings.checkpoint_pairs // settings.batch_size)
    return max(1, _FEWEST_PAIRS // settings.batch_size, -(-total_steps // _REGULAR))


class CheckpointSchedule:
    """Checkpoints at regular steps, at the end, and by the clock of the first worker.

    A run with `checkpoint_pairs` has no checkpoints by the clock.
    """

    def __init__(self, settings: TrainSettings, total_steps: int, steps_an_epoch: int, device: torch.device) -> None:
        self.regular = regular_steps(settings, total_steps, steps_an_epoch)
        self._every_s = settings.checkpoint_every_s if settings.checkpoint_pairs is None else None
        self._total_steps, self._device = total_steps, device
        self._last_s = time.monotonic()

    def is_due(self, done: int) -> bool:
        """Return True if a checkpoint is due after `done` steps. Every worker must call it after every step."""
        due = done == self._total_steps or done % self.regular == 0
        # The clocks of workers differ, so the first one decides, at steps that all of them know.
        if not due and self._every_s is not None and (world_size() == 1 or done % _AGREED_EVERY == 0):
            due = decided_by_first(time.monotonic() - self._last_s >= self._every_s, self._device)
        if due:
            self._last_s = time.monotonic()
        return due
