"""Until something is so, and no longer than a test may take."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from typing import Any


def wait_until(
    condition: Callable[[], bool],
    seconds: float,
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
