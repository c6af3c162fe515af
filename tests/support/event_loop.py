"""Tests that are coroutines, and event loops whose clock is simulated."""

from __future__ import annotations

import asyncio
import functools
import selectors
from collections.abc import Callable, Coroutine
from typing import Any

from tests.support.waiting import HANG_S


def in_event_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test in an event loop of its own. Tasks that it leaves there are cancelled."""

    @functools.wraps(test)
    def run(**fixtures: Any) -> None:
        asyncio.run(asyncio.wait_for(test(**fixtures), HANG_S))

    return run


def advance_clock(seconds: float) -> None:
    """Move the clock of the running loop forward, so that timers are due that many seconds earlier."""
    loop = asyncio.get_running_loop()
    now = loop.time
    loop.time = lambda: now() + seconds  # type: ignore[method-assign]


class SimulatedTimeLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock stands still while there is work, and otherwise jumps to the next timer.

    Do not use it with work in other threads or processes, because it does not wait for them.
    """

    def __init__(self) -> None:
        self.now = 0.0
        super().__init__(_NoWait(self))

    def time(self) -> float:
        """Return the seconds since the loop was created."""
        return self.now


class _NoWait(selectors.DefaultSelector):
    """A selector that moves the clock instead of waiting."""

    def __init__(self, loop: SimulatedTimeLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = super().select(None if timeout is None else 0)
        if timeout and not events:
            self._loop.now += timeout
        return events
