"""Going down without harm: what is under way is finished, and nothing new is begun."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from starlette.types import ASGIApp, Receive, Scope, Send

from serve.errors import NotReady


class UnderWay:
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


class Counted:
    """ASGI middleware: what is asked under /v1/ is under way until it is answered."""

    def __init__(self, app: ASGIApp, under_way: UnderWay) -> None:
        self._app = app
        self._under_way = under_way

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request. Raises as `UnderWay.check` does, before any of its body is read."""
        if scope["type"] != "http" or not scope["path"].startswith("/v1/"):
            await self._app(scope, receive, send)
            return
        with self._under_way.one():
            await self._app(scope, receive, send)
