"""Batches that a thread makes ahead, so that a GPU never waits for the host."""

from __future__ import annotations

from collections import deque
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import torch

from asap.training.batch import Batch
from jobs.train.data.feed import WHOLE, Feed

CPU = torch.device("cpu")
_AHEAD = 2
"""Batches that are made while a step runs: one to be ready, and one more for a picture that is slow."""


@dataclass
class Prefetched:
    """The batches of another feed, in order and to the bit the same; see `jobs.train.data.feed.Feed`.

    One thread makes them one after the other, so the other feed needs no locks. For a GPU they lie in pinned memory.
    """

    feed: Feed
    total_steps: int
    device: torch.device = CPU
    _made: deque[tuple[int, Future[Batch]]] = field(default_factory=deque, init=False)
    """The steps whose batches are made or being made."""
    _thread: ThreadPoolExecutor | None = field(default=None, init=False)
    _failed: bool = field(default=False, init=False)

    def batch(self, step: int, rows: slice = WHOLE) -> Batch:
        """Return this worker's part of a step, or some rows of it; see `Feed`.

        A request that does not follow the last one, or is not for a whole step, discards what was made ahead. An error
        of the other feed is raised at the step that it belongs to.
        """
        if rows != WHOLE:
            self._discard()
            return self.feed.batch(step, rows)
        if self._made and self._made[0][0] != step:
            self._discard()
        if self._thread is None:
            self._thread = self._start()
        first = self._made[-1][0] + 1 if self._made else step
        last = max(step, min(step + _AHEAD, self.total_steps - 1))
        self._made.extend((ahead, self._thread.submit(self._make, ahead)) for ahead in range(first, last + 1))
        try:
            batch = self._made.popleft()[1].result()
        except BaseException:
            self._discard()
            raise
        if step + 1 >= self.total_steps:
            self.close()
        return batch

    def close(self) -> None:
        """Wait for the batch that is being made, end the thread, and close the other feed."""
        self._discard()
        self.feed.close()

    def _start(self) -> ThreadPoolExecutor:
        if self.device.type != "cuda":
            return ThreadPoolExecutor(1, "batches")
        # Every thread has a current GPU of its own. Without this, each worker of a machine would take memory of GPU 0.
        return ThreadPoolExecutor(1, "batches", initializer=torch.cuda.set_device, initargs=(self.device,))

    def _make(self, step: int) -> Batch:
        if self._failed:
            raise CancelledError  # nobody gets to see it: the error before it ends the run
        try:
            batch = self.feed.batch(step)
            return batch.pin_memory() if self.device.type == "cuda" else batch
        except BaseException:
            self._failed = True
            raise

    def _discard(self) -> None:
        """End the thread and forget what it made."""
        if self._thread is not None:
            self._thread.shutdown(wait=True, cancel_futures=True)
        self._made.clear()
        self._thread, self._failed = None, False
