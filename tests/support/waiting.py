"""Waiting for a condition, and a simulated clock."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from typing import Any

HANG_S = 900.0
"""Bound in seconds that only notices a hang. Nothing here takes nearly as long, even on a busy machine."""


def wait_until(
    condition: Callable[[], bool], *, process: subprocess.Popen[Any] | None = None, every_s: float = 0.05
) -> None:
    """Wait until a condition is true. After `HANG_S` the wait fails.

    Args:
        condition: Called until it returns true.
        process: The process that makes the condition true. If it ends, the wait fails.
        every_s: Seconds between two calls.
    """
    deadline = time.monotonic() + HANG_S
    while not condition():
        assert process is None or process.poll() is None, f"the process ended too early, with {process.returncode}"
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(every_s)


class Clock:
    """A clock that replaces the module `time`. It moves only when `sleep` is called, which returns at once."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    perf_counter = monotonic

    def sleep(self, seconds: float) -> None:
        self.now += seconds
