"""Tests that are coroutines."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any

_WITHIN_S = 60.0


def played(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """A test, run in an event loop of its own; what it leaves in there is cancelled."""

    @functools.wraps(test)
    def run(**fixtures: Any) -> None:
        asyncio.run(asyncio.wait_for(test(**fixtures), _WITHIN_S))

    return run
