"""How many requests may be worked on at once, found out from how long they take."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from serve.errors import Overloaded, Refused
from serve.settings import ServeSettings

_FEWEST = 2
"""That are always let in."""
_LOOKED_AT = 16
"""Answers whose median decides: one picture that takes long to decode says nothing of the load."""
_CUT = 0.8


class ConcurrencyLimit:
    """A limit that falls while answers take longer than `wait_s`, and rises again while they do not.

    As TCP's window: doubling at first, then additive increase and multiplicative decrease (Jacobson, 1988). What waits
    is bounded in time, whatever the model and the machine, where a number alone would be too many for a slow one and
    too few for a fast one.
    """

    def __init__(self, first: int, most: int, wait_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._wait_s, self._clock = most, wait_s, clock
        self._limit = float(min(first, most))
        self._doubling = True
        self._seconds: deque[float] = deque(maxlen=_LOOKED_AT)
        self._next_cut = 0.0

    @property
    def limit(self) -> int:
        """Requests that may be in flight now."""
        return int(self._limit)

    def answered(self, seconds: float) -> None:
        """Take in how long one answer took, from when its request was there."""
        self._seconds.append(seconds)
        usual = statistics.median(self._seconds)
        if len(self._seconds) == _LOOKED_AT and usual > self._wait_s:
            self._cut(usual)
        elif seconds <= self._wait_s:
            self._limit = min(float(self._most), self._limit + (1 if self._doubling else 1 / self._limit))

    def _cut(self, usual: float) -> None:
        """Not again before what was let in until now is through: it takes as long as before."""
        if (now := self._clock()) >= self._next_cut:
            self._limit = max(float(min(_FEWEST, self._most)), self._limit * _CUT)
            self._next_cut = now + usual
            self._doubling = False


KEY_SHARE = 0.5
"""Of what the server takes in hand at once, so much may be one key's, where there are several."""


@dataclass
class Usage:
    """What is in hand of what passes the gate."""

    requests: int = 0
    """Being read or worked on."""
    working: int = 0
    """Read whole."""
    bytes: int = 0
    """Of their bodies, as far as they have come."""


@dataclass
class Capacity:
    """What this process may have in hand, and has: in all, and of each key."""

    settings: ServeSettings
    admission: ConcurrencyLimit
    several_keys: bool = False
    all: Usage = field(default_factory=Usage)
    by_key: defaultdict[str, Usage] = field(default_factory=lambda: defaultdict(Usage))

    def check(self, load: Usage, *, requests: int = 0, working: int = 0, more_bytes: int = 0) -> None:
        """Raise `Overloaded` where so many more are too many."""
        share, settings = 1.0 if load is self.all else KEY_SHARE, self.settings
        if (
            (requests and load.requests + requests > max(1, share * settings.max_in_flight))
            or (working and load.working + working > max(1, share * self.admission.limit))
            or load.bytes + more_bytes > max(share * settings.max_bytes_in_flight, settings.max_any_body_bytes)
        ):
            raise Overloaded if load is self.all else _too_much_for_one()


def _too_much_for_one() -> Refused:
    message = "this key has as much under way as one key may; try again when something of it is answered"
    return Refused(429, "rate_limited", message, retry_after_s=1)
