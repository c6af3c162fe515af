"""Stalls of a running job: it notices that no work finishes, and names the stage, the time, and what is waited for.

stalls = StallWatch("pair", settings.stall_after_s, stall_inspector())
...
note = stalls.look(done, "detecting")  # twice a second; a sentence during a stall, else None
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime

_EARLY_S = 10.0
"""Seconds without any finished work after which a reason is named, if there is one. A model may take longer to load."""


class StallWatch:
    """Watches the count of finished work, and describes a stall in one sentence.

    The sentence stays the same while the stall lasts, and is renewed after twice the time, so a log gets few of them.
    """

    def __init__(
        self,
        unit: str,
        after_s: float,
        find_cause: Callable[[], str],
        clock: Callable[[], float] = time.monotonic,
        *,
        is_steady: bool = True,
    ) -> None:
        """Start to watch.

        Args:
            unit: The unit of work, in the singular, such as `pair`.
            after_s: Seconds without a finished unit that make a stall.
            find_cause: Returns a clause about what is waited for, or an empty text if nothing is. It may ask a cluster:
                it is called once for each sentence. An error of it counts as a cause.
            clock: Returns the seconds of a steady clock.
            is_steady: False if a unit may take longer without anything being wrong. Then only a cause makes a sentence.
        """
        self._is_steady = is_steady
        self._unit, self._after_s, self._find_cause, self._clock = unit, after_s, find_cause, clock
        self._done: int | None = None
        self._has_finished_some = False
        self._moved_s = 0.0
        self._moved_at = datetime.now(UTC)
        self._next_s = 0.0
        self._sentence: str | None = None
        self.since: datetime | None = None
        """The time at which the last unit finished, if that is a stall; else None."""

    def look(self, done: int, stage: str) -> str | None:
        """Return a sentence if there is a stall, else None.

        Args:
            done: Units that have finished so far.
            stage: The work that is under way, such as `detecting`.
        """
        now_s = self._clock()
        if done != self._done:
            self._has_finished_some = self._done is not None
            self._done, self._moved_s, self._moved_at = done, now_s, datetime.now(UTC)
            self._next_s = self._after_s if self._has_finished_some else min(_EARLY_S, self._after_s)
            self._sentence = self.since = None
            return None
        waited_s = now_s - self._moved_s
        if waited_s >= self._next_s:
            is_stall = waited_s >= self._after_s
            self._next_s = 2 * waited_s if is_stall else self._after_s
            self._sentence = self._describe(waited_s, stage, is_stall=is_stall)
            self.since = self._moved_at if is_stall and self._sentence else None
        return self._sentence

    def _describe(self, waited_s: float, stage: str, *, is_stall: bool) -> str | None:
        """Return the sentence; None if nothing holds the work up, and it may well take that long."""
        try:
            cause = self._find_cause()
        except Exception as error:  # Ray has many classes for a cluster that does not answer
            cause = f"the cluster does not answer ({type(error).__name__})"
        if not cause and not (is_stall and self._is_steady):
            return None
        none = f"no {self._unit} has finished for {waited_s:.0f} s"
        reason = cause or "all workers run, so a store or one of the workers holds it up"
        return f"{none}, since {self._moved_at:%H:%M:%S} UTC, while {stage}: {reason}"
