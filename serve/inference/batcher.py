"""Batching in the API: pairs that arrive together go to a detector in one call.

Ray Serve's own batching happens in the replica, behind the call. Here the call costs more than the detection of one
pair by a small model, so pairs are batched before it.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from itertools import islice
from typing import Generic, NamedTuple, TypeVar

from serve.errors import Overloaded

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
_BATCHES_PER_WORKER = 2
"""Batches sent to each worker at once: the one that it works on, and the next, so that it never waits for work."""
_GONE_AFTER_S = 10.0
"""Workers silent for this many seconds are considered gone.

A batch that is out for this long does not count either, so a worker that hangs does not hold up the others. For an
item that costs more than a batch, the time is longer in proportion.
"""


@dataclass(eq=False)
class QueuedItem(Generic[_Item, _Result]):
    """An item that waits to be sent, or for its result."""

    item: _Item
    cost: int
    result: asyncio.Future[_Result]


class Answer(NamedTuple, Generic[_Result]):
    """A worker's results for one batch."""

    worker: str
    results: list[_Result]
    """One result for each item, in the order of the items."""


class Batcher(Generic[_Item, _Result]):
    """Collects items and sends them in batches, in the order of their arrival. Use it in one event loop.

    A batch holds as many items as wait and cost at most `size` together; an item that costs more goes alone. A batch is
    sent when it is full, or when its first item has waited for `wait_s`. Each worker that answers has at most two
    batches, so items that arrive while all workers are busy make the next batches larger. The number of workers is
    learned from their answers.

    Args:
        send: Sends a batch to some worker and returns its answer.
        size: Cost of a full batch.
        wait_s: Seconds that an item waits for others at most, if a worker is free.
        most_waiting: Items that may wait to be sent.
        clock: Returns the time in seconds.
    """

    def __init__(
        self,
        send: Callable[[list[_Item]], Awaitable[Answer[_Result]]],
        *,
        size: int,
        wait_s: float,
        most_waiting: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._send, self._size, self._wait_s, self._clock = send, size, wait_s, clock
        self._most_waiting = most_waiting
        self._waiting: deque[QueuedItem[_Item, _Result]] = deque()
        self._out_until: dict[asyncio.Task[None], float] = {}
        """Batches that were sent, and the time until which each occupies a worker."""
        self._alive_until: dict[str, float] = {}
        """Workers that have answered, and the time until which each counts as alive."""
        self._timer: asyncio.TimerHandle | None = None

    async def ask(self, item: _Item, cost: int = 1) -> _Result:
        """Return the result of one item, which costs at least 1. If cancelled, a waiting item is removed.

        Raises `Overloaded` if too many items wait, and whatever sending the item's batch raises.
        """
        if len(self._waiting) >= self._most_waiting:
            raise Overloaded
        queued: QueuedItem[_Item, _Result] = QueuedItem(item, cost, asyncio.get_running_loop().create_future())
        self._waiting.append(queued)
        self._send_batches()
        try:
            return await queued.result
        finally:
            if queued.result.cancelled() and queued in self._waiting:
                self._waiting.remove(queued)  # if its batch was sent already, `cancel_unwanted` sees to it

    def _send_batches(self, *, is_due: bool = False) -> None:
        """Send all full batches and, if `is_due`, one that is not full; start the timer for the rest."""
        while self._waiting and (is_due or self._is_full()) and self._has_free_worker():
            self._send_batch()
            is_due = False
        if self._waiting and self._timer is None and self._has_free_worker():
            self._timer = asyncio.get_running_loop().call_later(self._wait_s, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._send_batches(is_due=True)

    def _is_full(self) -> bool:
        # Each item costs at least 1, so the first `size` of them suffice.
        return sum(queued.cost for queued in islice(self._waiting, self._size)) >= self._size

    def _has_free_worker(self) -> bool:
        now = self._clock()
        self._alive_until = {worker: until for worker, until in self._alive_until.items() if until > now}
        # Before the first answer, and after all have fallen silent, one worker is assumed.
        sent = sum(until > now for until in self._out_until.values())
        return sent < _BATCHES_PER_WORKER * max(1, len(self._alive_until))

    def _patience_ends(self, cost: int) -> float:
        """Return when a batch of this cost, sent now, stops counting. So does a worker that just answered."""
        return self._clock() + _GONE_AFTER_S * max(1, cost / self._size)

    def _send_batch(self) -> None:
        batch = [self._waiting.popleft()]
        cost = batch[0].cost
        while self._waiting and cost + self._waiting[0].cost <= self._size:
            batch.append(self._waiting.popleft())
            cost += batch[-1].cost
        task = asyncio.get_running_loop().create_task(self._resolve(batch, cost))
        self._out_until[task] = self._patience_ends(cost)
        task.add_done_callback(self._on_answer)

        def cancel_unwanted(_: asyncio.Future[_Result]) -> None:
            if all(queued.result.cancelled() for queued in batch):
                task.cancel()

        for queued in batch:
            queued.result.add_done_callback(cancel_unwanted)

    def _on_answer(self, task: asyncio.Task[None]) -> None:
        del self._out_until[task]
        self._send_batches(is_due=True)  # the items that wait have waited for this worker, which is long enough

    async def _resolve(self, batch: list[QueuedItem[_Item, _Result]], cost: int) -> None:
        """Send a batch, and give each of its items its result or the error."""
        try:
            answer = await self._send([queued.item for queued in batch])
            self._alive_until[answer.worker] = self._patience_ends(cost)
            for queued, result in zip(batch, answer.results, strict=True):
                if not queued.result.done():
                    queued.result.set_result(result)
        except Exception as error:
            for queued in batch:
                if not queued.result.done():
                    queued.result.set_exception(error)
