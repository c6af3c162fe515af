"""Pairs that arrive together, sent to the detectors as one batch: a call for each would cost more than to judge it."""

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
_AHEAD = 2
"""Batches on their way to each worker: one that it works on, and the next, so that it never waits for one."""
_GONE_AFTER_S = 10.0
"""A worker that answered nothing for so long is counted no more; nor is a batch that is out for so long, for one that
hangs must not hold up the others. One item that costs more than a batch may take so many times as long."""


@dataclass(eq=False)
class QueuedItem(Generic[_Item, _Result]):
    item: _Item
    cost: int
    result: asyncio.Future[_Result]


class Answer(NamedTuple, Generic[_Result]):
    """What a worker made of a batch."""

    worker: str
    results: list[_Result]
    """As many as there were items, in their order."""


class Batcher(Generic[_Item, _Result]):
    """Collects items and sends them on in their order, as many at once as there are and cost at most `size` together;
    an item that costs more goes alone. For one event loop.

    A batch goes as soon as it is full, or its first item has waited for `wait_s`, but no more than two for each worker
    that answers: what arrives while all of them work makes the next batches larger. How many workers there are is
    learned from who answers.
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
        self._counted_until: dict[asyncio.Task[None], float] = {}
        self._known_until: dict[str, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    async def ask(self, item: _Item, cost: int = 1) -> _Result:
        """The result of one item, which costs at least 1. Cancelled, it is taken from those that wait.

        Raises `Overloaded` where too many wait, and what sending its batch raises.
        """
        if len(self._waiting) >= self._most_waiting:
            raise Overloaded
        asked: QueuedItem[_Item, _Result] = QueuedItem(item, cost, asyncio.get_running_loop().create_future())
        self._waiting.append(asked)
        self._go_on()
        try:
            return await asked.result
        finally:
            if asked.result.cancelled() and asked in self._waiting:
                self._waiting.remove(asked)

    def _go_on(self, *, due: bool = False) -> None:
        """Send what is full, and once, where it is `due`, what is not; the rest when its time has come."""
        while self._waiting and (due or self._is_full()) and self._has_room():
            self._send_some()
            due = False
        if self._waiting and self._timer is None and self._has_room():
            self._timer = asyncio.get_running_loop().call_later(self._wait_s, self._time_is_up)

    def _time_is_up(self) -> None:
        self._timer = None
        self._go_on(due=True)

    def _is_full(self) -> bool:
        return sum(asked.cost for asked in islice(self._waiting, self._size)) >= self._size

    def _has_room(self) -> bool:
        now = self._clock()
        self._known_until = {worker: until for worker, until in self._known_until.items() if until > now}
        return sum(until > now for until in self._counted_until.values()) < _AHEAD * max(1, len(self._known_until))

    def _patience(self, cost: int) -> float:
        """Until when a batch of that cost counts that goes now, and a worker that has just answered it."""
        return self._clock() + _GONE_AFTER_S * max(1, cost / self._size)

    def _send_some(self) -> None:
        batch = [self._waiting.popleft()]
        cost = batch[0].cost
        while self._waiting and cost + self._waiting[0].cost <= self._size:
            batch.append(self._waiting.popleft())
            cost += batch[-1].cost
        task = asyncio.get_running_loop().create_task(self._judged(batch, cost))
        self._counted_until[task] = self._patience(cost)
        task.add_done_callback(self._came_back)
        for asked in batch:
            asked.result.add_done_callback(lambda _: self._stop_if_unwanted(batch, task))

    def _stop_if_unwanted(self, batch: list[QueuedItem[_Item, _Result]], task: asyncio.Task[None]) -> None:
        if all(asked.result.cancelled() for asked in batch):
            task.cancel()

    def _came_back(self, task: asyncio.Task[None]) -> None:
        del self._counted_until[task]
        self._go_on(due=True)  # what waits has waited long enough: for a worker

    async def _judged(self, batch: list[QueuedItem[_Item, _Result]], cost: int) -> None:
        try:
            answer = await self._send([asked.item for asked in batch])
            self._known_until[answer.worker] = self._patience(cost)
            for asked, result in zip(batch, answer.results, strict=True):
                if not asked.result.done():
                    asked.result.set_result(result)
        except Exception as error:
            for asked in batch:
                if not asked.result.done():
                    asked.result.set_exception(error)
