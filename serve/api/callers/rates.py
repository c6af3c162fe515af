"""The rate of each key."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from serve.errors import Refused

RATE_HEADERS = ("RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset", "RateLimit-Policy")
"""Headers of a response that say what its key may send."""


@dataclass(frozen=True)
class RateState:
    """Pairs that one key may send now."""

    limit: int
    """Pairs that it may send at once after a pause."""
    remaining: int
    """Pairs that it may send at once now."""
    reset_s: float
    """Seconds until it may send `limit` pairs at once again."""
    window_s: float
    """Seconds in which it may send `limit` pairs, over a long time."""

    def headers(self) -> dict[str, str]:
        """Return the headers of a response that say this."""
        policy = f"{self.limit};w={math.ceil(self.window_s)}"
        values = (str(self.limit), str(self.remaining), str(math.ceil(self.reset_s)), policy)
        return dict(zip(RATE_HEADERS, values, strict=True))


class Rates:
    """A token bucket for each key.

    A request that costs more than a full bucket is accepted when the bucket is full, and leaves a debt that must be
    paid before the next request.

    Args:
        rate: Tokens that a bucket gains in a second.
        burst: Tokens that a full bucket holds.
        clock: Returns the time in seconds.
    """

    def __init__(self, rate: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}
        """Tokens by key, and the time at which the bucket held them."""

    def take(self, name: str, count: int = 1, *, paid: int = 0) -> None:
        """Take tokens from a key's bucket. Raises `Refused` (429) with the seconds until there are enough.

        Args:
            name: The name of the key.
            count: Tokens to take.
            paid: Tokens that were taken for the same request before.
        """
        tokens = self._tokens(name)
        # No bucket holds more than a burst, so a full one must be enough for a request of any cost.
        needed = max(0, min(count, self._burst - paid))
        is_enough = tokens >= needed
        self._buckets[name] = (tokens - count if is_enough else tokens, self._clock())
        if not is_enough:
            message = f"more than {self._rate:g} pairs a second were sent with this key; a long text counts for several"
            raise Refused(429, "rate_limited", message, retry_after_s=(needed - tokens) / self._rate)

    def state(self, name: str) -> RateState:
        """Return what a key may send now."""
        tokens = self._tokens(name)
        missing_s = (self._burst - tokens) / self._rate
        return RateState(self._burst, max(0, math.floor(tokens)), missing_s, self._burst / self._rate)

    def _tokens(self, name: str) -> float:
        now = self._clock()
        tokens, since = self._buckets.get(name, (float(self._burst), now))
        return min(self._burst, tokens + (now - since) * self._rate)
