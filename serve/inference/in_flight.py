"""Going down without harm: what is under way is finished, and nothing new is begun."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from serve.errors import NotReady


class InFlight:
    """What this process was asked to judge and has not answered yet."""

    def __init__(self) -> None:
        self.requests = 0
        self.closed = False

    def check(self) -> None:
        """Raise `NotReady` where nothing new is begun."""
        if self.closed:
            raise NotReady("the server is going down")

    @contextmanager
    def one(self) -> Iterator[None]:
        """Count a request for the time of the block. Raises as `check` does; what is in its block already goes on."""
        self.check()
        self.requests += 1
        try:
            yield
        finally:
            self.requests -= 1

    def close(self) -> None:
        """Begin nothing new from now on."""
        self.closed = True
