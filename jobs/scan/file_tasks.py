"""Work on the files of a folder by Ray tasks, one for each file or part, as many at a time as there are CPUs.

On a cluster, a task asks for a part of a CPU, because it waits for a store, and the job keeps to its share.

A task may run twice: its process may die and be replaced, and a job that was stopped runs all tasks again. So the work
on a file must be one that can be repeated.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any

import ray

from asap.storage.location import Location
from jobs.cluster import task_result
from jobs.errors import JobFailed
from jobs.scan.output.job_folder import fail
from jobs.sharing import Claim, held_share

TRIES = 3
"""Tries of a file whose process dies."""
_CPUS = 0.25
"""CPUs of a task on a cluster."""
_FEW_FILES = 4
"""Files that this process works on itself: the processes of tasks would take longer to start."""
_POLL_S = 0.5
_LONGEST_STOP_S = 2.4
"""Seconds in which the tasks under way are ended when a job is stopped: Ray's Jobs API kills a job after three."""


def work_on_files(
    work: Callable[[Any, Location], object],
    shared: object,
    files: Sequence[Location],
    check: Callable[[], None] = lambda: None,
) -> None:
    """Do the work on every file: on few files in this process, and else as `run_on_files` does, with its arguments."""
    if len(files) > _FEW_FILES:
        run_on_files(work, shared, files, check)
        return
    for location in files:
        check()
        work(shared, location)


def run_on_files(
    work: Callable[[Any, Any], object],
    shared: object,
    files: Iterable[Any],
    check: Callable[[], None] = lambda: None,
) -> None:
    """Do the work on every file. An `AsapError` of a task is raised as it is, and stops the others.

    Raises `JobFailed` if the process of a file dies each time.

    Args:
        work: Gets `shared` and a file, in another process.
        shared: Sent to each machine once.
        files: The files, or what else stands for a part of the work. Its text names it in an error.
        check: Called twice a second; what it raises stops the work.
    """
    share = held_share()
    if share:
        share.replace(Claim({"CPU": _CPUS}, {"CPU": math.inf}, is_at_work=True))
    cpus = _CPUS if share else 1.0
    task = ray.remote(num_cpus=cpus, max_retries=TRIES - 1)(work)
    reference = ray.put(shared)
    waiting = iter(files)
    running: dict[Any, Any] = {}
    try:
        while True:
            resources = share.resources if share else ray.cluster_resources()
            at_once = max(1, int(resources.get("CPU", 1) / cpus + 1e-6))
            running |= {task.remote(reference, file): file for file in islice(waiting, max(0, at_once - len(running)))}
            if not running:
                return
            done, _ = ray.wait(list(running), timeout=_POLL_S)
            for one in done:
                task_result(one, _died(running.pop(one)))
            check()
    finally:
        _end_tasks(list(running))


def _end_tasks(running: list[Any]) -> None:
    """End tasks with their processes: nobody writes a file after a stop. Ray may miss a task that is about to start."""
    deadline = time.monotonic() + _LONGEST_STOP_S
    while running and time.monotonic() < deadline:
        for one in running:
            ray.cancel(one, force=True)
        _, running = ray.wait(running, num_returns=len(running), timeout=_POLL_S)


def _died(file: object) -> Callable[[str], JobFailed]:
    """Return what makes the error of a task whose process died each time, for `task_result`."""
    return lambda reason: fail(f"the process that worked on {file} died {TRIES} times: {reason}")
