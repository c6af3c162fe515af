"""Admission control: how much work a process accepts at once, in total and for each key."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from serve.errors import Overloaded, Refused
from serve.settings import ServeSettings

_LEAST = 2
"""Requests that are always admitted."""
_WINDOW = 16
"""Responses whose median decides. One picture that is slow to decode says nothing about the load."""
_DECREASE = 0.8
KEY_SHARE = 0.5
"""Largest share of each limit that one key may use, if there are several keys."""


class ConcurrencyLimit:
    """A limit that falls while responses take longer than `wait_s`, and rises again while they do not.

    It works like TCP's congestion window: exponential growth first, then additive increase and multiplicative decrease
    (Jacobson, 1988). So the waiting time is bounded for any model and machine. A fixed number of requests would be too
    many for a slow one and too few for a fast one.

    Args:
        first: Limit to start with.
        most: Largest limit.
        wait_s: Target latency in seconds.
        clock: Returns the time in seconds.
    """

    def __init__(self, first: int, most: int, wait_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._wait_s, self._clock = most, wait_s, clock
        self._limit = float(min(first, most))
        self._is_doubling = True
        self._seconds: deque[float] = deque(maxlen=_WINDOW)
        self._next_decrease = 0.0

    @property
    def limit(self) -> int:
        """Requests that may be in flight now."""
        return int(self._limit)

    def record(self, seconds: float) -> None:
        """Adjust the limit by the latency of one response, measured from when its request was complete."""
        self._seconds.append(seconds)
        median = statistics.median(self._seconds)
        if len(self._seconds) == _WINDOW and median > self._wait_s:
            # Requests that were admitted under the old limit still take long. The limit falls again only after them.
            if (now := self._clock()) >= self._next_decrease:
                self._limit = max(float(min(_LEAST, self._most)), self._limit * _DECREASE)
                self._next_decrease = now + median
                self._is_doubling = False
        elif seconds <= self._wait_s:
            # One more for each response doubles the limit in each round; 1/limit for each adds one in each round.
            self._limit = min(float(self._most), self._limit + (1 if self._is_doubling else 1 / self._limit))


@dataclass
class Usage:
    """Work that was admitted and is not finished."""

    requests: int = 0
    """Requests that are being read or processed."""
    working: int = 0
    """Requests whose body is complete."""
    bytes: int = 0
    """Bytes of their bodies that have arrived."""


@dataclass
class Capacity:
    """The limits of this process and its current usage, in total and for each key."""

    settings: ServeSettings
    concurrency: ConcurrencyLimit
    several_keys: Callable[[], bool] = lambda: False
    all: Usage = field(default_factory=Usage)
    by_key: defaultdict[str, Usage] = field(default_factory=lambda: defaultdict(Usage))

    def check(self, usage: Usage, *, requests: int = 0, working: int = 0, more_bytes: int = 0) -> None:
        """Raise `Refused` (429) if the usage would exceed a limit: `all` the limits, a key its share of them.

        Args:
            usage: `all`, or the usage of one key.
            requests: Requests to add.
            working: Complete requests to add.
            more_bytes: Bytes of bodies to add.
        """
        share, settings = 1.0 if usage is self.all else KEY_SHARE, self.settings
        # However small a share is, one request always fits, and so does the largest body.
        if (
            (requests and usage.requests + requests > max(1, share * settings.max_in_flight))
            or (working and usage.working + working > max(1, share * self.concurrency.limit))
            or usage.bytes + more_bytes > max(share * settings.max_bytes_in_flight, settings.max_any_body_bytes)
        ):
            if usage is self.all:
                raise Overloaded
            message = "this key has reached its share of the requests in flight. Try again when one is answered."
            raise Refused(429, "rate_limited", message, retry_after_s=1)
