"""The end of Ray: what a job has left running is ended first, and signals do no harm.

Ray's own end has two faults. A thread that uses Ray after its core worker is gone ends this process at once, with exit
code 1 and without a word. And the handler of SIGTERM is reset to the default one, which kills, long before
`ray.shutdown` returns.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from jobs.stops import handlers_kept, stop_held

_EXECUTION_END_S = 10.0
"""Seconds that the thread of an execution has to end. It usually takes a tenth of a second."""


def end_ray() -> None:
    """End the Ray of this process. A signal is held back until then; a second one interrupts."""
    import ray
    from ray._private.worker import global_worker

    with handlers_kept() as restore, stop_held():
        _end_executions()
        # A client of a cluster (ray://) has no core worker.
        if worker := getattr(global_worker, "core_worker", None):
            global_worker.core_worker = _EndingWorker(worker, restore)
        ray.shutdown()


def _end_executions() -> None:
    """End the executions of datasets that a stop has left. Their threads use Ray all the time."""
    import ray
    from ray.data._internal.execution.streaming_executor import StreamingExecutor

    for thread in threading.enumerate():
        if isinstance(thread, StreamingExecutor):
            with suppress(ray.exceptions.RayError):  # the cluster may be lost
                thread.shutdown(force=False)
            thread.join(_EXECUTION_END_S)


class _EndingWorker:
    """Ray's core worker, which no thread can use once its end has begun.

    References to objects use it when they are freed, in any thread and at any time. They ignore the `AttributeError`
    that they get from then on.
    """

    def __init__(self, worker: Any, on_end: Callable[[], None]) -> None:
        self._worker, self._on_end = worker, on_end

    def __getattr__(self, name: str) -> Any:
        return getattr(self._worker, name)

    def shutdown_driver(self) -> None:
        """End the worker, which resets the handlers, and call `on_end`. Ray's processes are ended after this."""
        worker, self._worker = self._worker, None
        worker.shutdown_driver()
        self._on_end()
