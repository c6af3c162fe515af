"""The heartbeat of a job: signs of life in its folder, and the requests that its process finds there.

A process that sees the heartbeat of another one move leaves the job alone. Signs are watched, and not compared with a
clock, because the clocks of machines differ.
"""

from __future__ import annotations

import _thread
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from asap.errors import StorageError
from asap.storage.location import Location
from jobs.errors import JobInUse

_HEARD_WITHIN_S = 2.0
"""Seconds in which the work notices that it must stop, before it is interrupted."""
_LONG_DEAD_S = 300
"""Age in seconds beyond which a heartbeat is not watched. It is large, because clocks of machines may differ."""


class Heartbeat:
    """A thread that gives signs of life, and stops the work of the main thread when that is requested."""

    def __init__(self, beat: Callable[[], bool], every_s: float) -> None:
        """Prepare the thread.

        Args:
            beat: Gives a sign of life, and returns True if the work must stop. After a `StorageError` it is called
                again at the next time.
            every_s: Seconds between two signs.
        """
        self._beat, self._every_s = beat, every_s
        self._ended, self._must_stop, self._is_heard = threading.Event(), threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    @property
    def is_beating(self) -> bool:
        """True while signs of life are given."""
        return self._thread.is_alive()

    @property
    def has_ended(self) -> bool:
        """True once it was stopped."""
        return self._ended.is_set()

    def start(self) -> None:
        """Start to give signs of life."""
        self._thread.start()

    def stop(self) -> None:
        """Give no more signs of life. The work is not interrupted any more."""
        self._ended.set()
        self._is_heard.set()
        if self.is_beating:
            self._thread.join()

    def check(self) -> None:
        """Raise `KeyboardInterrupt` if the work must stop."""
        if self._must_stop.is_set():
            self._is_heard.set()
            raise KeyboardInterrupt

    def _run(self) -> None:
        while not self._ended.wait(self._every_s):
            try:
                must_stop = self._beat()
            except StorageError:
                continue  # a short outage must not stop the job; a long one stops its work anyway
            # The signs go on until the work has stopped, or others would take the process for dead.
            if must_stop and not self._must_stop.is_set():
                self._must_stop.set()
                # The work looks for it often. Steps that do not are interrupted, unless SIGINT is ignored.
                if not self._is_heard.wait(_HEARD_WITHIN_S):
                    _thread.interrupt_main()


def wait_until_still(
    folder: Location,
    sign: Mapping[str, Any],
    read: Callable[[], Mapping[str, Any]],
    stale_after_s: float,
    notify: Callable[[str], None],
) -> None:
    """Return once the heartbeat of a job stands still. Raises `JobInUse` if it moves.

    Args:
        folder: Folder of the job.
        sign: The last sign of life: `run_id`, `beats` and the time `heartbeat`. Without a time it is watched too.
        read: Reads the sign anew.
        stale_after_s: Seconds to watch.
        notify: Receives a sentence before the wait.
    """
    if _age_s(sign) > _LONG_DEAD_S:
        return
    notify(
        f"the job was not ended properly; waiting {stale_after_s:.0f} s to see whether another process is still "
        "running it"
    )
    deadline = time.monotonic() + stale_after_s
    while time.monotonic() < deadline:
        time.sleep(min(0.5, stale_after_s / 10))
        now = read()
        if any(now.get(name) != sign.get(name) for name in ("run_id", "beats")):
            raise JobInUse(f"{folder} is in use: another process works on it. Wait for it, or stop it.")


def _age_s(sign: Mapping[str, Any]) -> float:
    """Return the age of a sign of life; 0 if it has no time, so that it is watched."""
    try:
        return (datetime.now(UTC) - datetime.fromisoformat(sign["heartbeat"])).total_seconds()
    except (KeyError, TypeError, ValueError):
        return 0.0
