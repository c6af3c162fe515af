"""Tests that are coroutines."""

from __future__ import annotations

import asyncio
import functools
import selectors
from collections.abc import Callable, Coroutine
from typing import Any

from tests.support.waiting import HANG_S


def played(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """A test, run in an event loop of its own; what it leaves in there is cancelled."""

    @functools.wraps(test)
    def run(**fixtures: Any) -> None:
        asyncio.run(asyncio.wait_for(test(**fixtures), HANG_S))

    return run


def let_pass(seconds: float) -> None:
    """Move the running loop's clock on; what waits for a time then comes as if so many seconds had passed."""
    loop = asyncio.get_running_loop()
    now = loop.time
    loop.time = lambda: now() + seconds  # type: ignore[method-assign]


class PlayedTime(asyncio.SelectorEventLoop):
    """An event loop whose clock stands still while there is work and jumps to what is due next where there is none.

    Not for work in other threads or processes, for which nothing here waits.
    """

    def __init__(self) -> None:
        self.now = 0.0
        super().__init__(_NoWait(self))

    def time(self) -> float:
        """Seconds since the loop was made."""
        return self.now


class _NoWait(selectors.DefaultSelector):
    """Moves the clock on instead of waiting."""

    def __init__(self, loop: PlayedTime) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = super().select(None if timeout is None else 0)
        if timeout and not events:
            self._loop.now += timeout
        return events
