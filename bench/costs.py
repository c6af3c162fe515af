"""The cost of a piece of work in seconds, of the clock and of the CPUs, with all processes that it starts."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
SAMPLE_S = 0.25


@dataclass
class Cost:
    """The seconds of a run, of the clock and of the CPUs."""

    wall_s: float = 0.0
    cpu_s: float = 0.0


def cpu_seconds(root: int) -> dict[int, float]:
    """Return the CPU seconds of a process and of all its descendants, by process id."""
    parents, seconds = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # the process has ended
            continue
        pid = int(path.parent.name)
        parents[pid], seconds[pid] = int(fields[1]), (int(fields[11]) + int(fields[12])) / TICKS_PER_S
    found = {}
    for pid, value in seconds.items():
        ancestor = pid
        while ancestor not in (0, root):
            ancestor = parents.get(ancestor, 0)
        if ancestor == root:
            found[pid] = value
    return found


@contextmanager
def costs() -> Iterator[Cost]:
    """Measure the cost of the block in this process and all its descendants, which Ray's are, four times a second."""
    cost, ended = Cost(), threading.Event()
    before, started = cpu_seconds(os.getpid()), time.perf_counter()
    seconds: dict[int, float] = {}

    def keep_sampling() -> None:
        while not ended.wait(SAMPLE_S):
            seconds.update(cpu_seconds(os.getpid()))

    thread = threading.Thread(target=keep_sampling, daemon=True)
    thread.start()
    try:
        yield cost
    finally:
        ended.set()
        thread.join()
        seconds.update(cpu_seconds(os.getpid()))
        cost.wall_s = time.perf_counter() - started
        cost.cpu_s = sum(spent - before.get(pid, 0.0) for pid, spent in seconds.items())
