"""Pairs that arrive together, sent to the detectors as one batch: a call for each would cost more than to judge it."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from serve.errors import Overloaded

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
_AHEAD = 2
"""Batches on their way to each worker: one that it works on, and the next, so that it never waits for one."""
_GONE_AFTER_S = 10.0
"""A worker that answered nothing for so long is counted no more; nor is a batch that is out for so long, for one that
hangs must not hold up the others."""


@dataclass(eq=False)
class _Asked(Generic[_Item, _Result]):
    item: _Item
    result: asyncio.Future[_Result]


class Answer(NamedTuple, Generic[_Result]):
    """What a worker made of a batch."""

    worker: str
    results: list[_Result]
    """As many as there were items, in their order."""


class Batcher(Generic[_Item, _Result]):
    """Collects items and sends them on, as many at once as there are, up to `size`; for one event loop.

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
        self._waiting: deque[_Asked[_Item, _Result]] = deque()
        self._sent: dict[asyncio.Task[None], float] = {}
        self._seen: dict[str, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    async def ask(self, item: _Item) -> _Result:
        """The result of one item. Cancelled, it is taken from those that wait.

        Raises `Overloaded` where too many wait, and what sending its batch raises.
        """
        if len(self._waiting) >= self._most_waiting:
            raise Overloaded
        asked: _Asked[_Item, _Result] = _Asked(item, asyncio.get_running_loop().create_future())
        self._waiting.append(asked)
        self._go_on()
        try:
            return await asked.result
        finally:
            if asked.result.cancelled() and asked in self._waiting:
                self._waiting.remove(asked)

    def _go_on(self, *, due: bool = False) -> None:
        """Send what is full, and once, where it is `due`, what is not; the rest when its time has come."""
        while self._waiting and (due or len(self._waiting) >= self._size) and self._has_room():
            self._send_some()
            due = False
        if self._waiting and self._timer is None and self._has_room():
            self._timer = asyncio.get_running_loop().call_later(self._wait_s, self._time_is_up)

    def _time_is_up(self) -> None:
        self._timer = None
        self._go_on(due=True)

    def _has_room(self) -> bool:
        lately = self._clock() - _GONE_AFTER_S
        self._seen = {worker: moment for worker, moment in self._seen.items() if moment > lately}
        return sum(moment > lately for moment in self._sent.values()) < _AHEAD * max(1, len(self._seen))

    def _send_some(self) -> None:
        batch = [self._waiting.popleft() for _ in range(min(self._size, len(self._waiting)))]
        task = asyncio.get_running_loop().create_task(self._judged(batch))
        self._sent[task] = self._clock()
        task.add_done_callback(self._came_back)
        for asked in batch:
            asked.result.add_done_callback(lambda _: self._stop_if_unwanted(batch, task))

    def _stop_if_unwanted(self, batch: list[_Asked[_Item, _Result]], task: asyncio.Task[None]) -> None:
        if all(asked.result.cancelled() for asked in batch):
            task.cancel()

    def _came_back(self, task: asyncio.Task[None]) -> None:
        del self._sent[task]
        self._go_on(due=True)  # what waits has waited long enough: for a worker

    async def _judged(self, batch: list[_Asked[_Item, _Result]]) -> None:
        try:
            answer = await self._send([asked.item for asked in batch])
            self._seen[answer.worker] = self._clock()
            for asked, result in zip(batch, answer.results, strict=True):
                if not asked.result.done():
                    asked.result.set_result(result)
        except Exception as error:
            for asked in batch:
                if not asked.result.done():
                    asked.result.set_exception(error)
