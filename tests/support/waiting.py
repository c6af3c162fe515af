"""Until something is so, and no longer than a test may take."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from typing import Any

HANG_S = 900.0
"""Bound of a wait, which only notices a hang: far beyond what anything here takes on a machine with other work."""


def wait_until(
    condition: Callable[[], bool],
    seconds: float = HANG_S,
    *,
    process: subprocess.Popen[Any] | None = None,
    every_s: float = 0.05,
) -> None:
    """Fail where it takes so many seconds, or the process that has to bring it about has ended."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process is None or process.poll() is None, "the process ended too early"
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(every_s)


class Clock:
    """A clock in the place of the module `time`: it moves only while somebody sleeps by it, which takes no time."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    perf_counter = monotonic

    def sleep(self, seconds: float) -> None:
        self.now += seconds
