"""Requests in flight: when the server shuts down, they are finished and no new ones begin."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from serve.errors import NotReady


class InFlight:
    """The number of requests that this process has accepted and not answered yet."""

    def __init__(self) -> None:
        self.requests = 0
        self.closed = False

    def check(self) -> None:
        """Raise `NotReady` if no new request may begin."""
        if self.closed:
            raise NotReady("the server is shutting down")

    @contextmanager
    def track(self) -> Iterator[None]:
        """Count a request during the block. Raises as `check` does; requests already inside continue."""
        self.check()
        self.requests += 1
        try:
            yield
        finally:
            self.requests -= 1

    def close(self) -> None:
        """Let no new request begin from now on."""
        self.closed = True
