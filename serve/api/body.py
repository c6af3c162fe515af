"""A request's body on its way in: how much of it may come, and when its work begins."""

from __future__ import annotations

from collections.abc import Callable

from starlette.types import Message, Receive, Scope

from serve.api.capacity import Capacity, Usage
from serve.errors import Refused


class Body:
    """A request's body on its way in.

    Refused as too large where its route takes less, whatever is told of its length. Where it has to pass the gate, it
    is refused too while there is no room: before its first byte, so that nobody sends for nothing, and when it is
    there, for only then does the work begin. Who sends slowly keeps a request's place and what has come of it, but
    none of those that are worked on, and no more than a key's share.
    """

    def __init__(
        self, scope: Scope, receive: Receive, room: Capacity, key_name: Callable[[], str | None], *, gated: bool
    ) -> None:
        settings = room.settings
        self._receive, self._room, self._key_name, self._gated = receive, room, key_name, gated
        self._most = settings.max_batch_bytes if scope["path"].endswith("/batch") else settings.max_body_bytes
        declared = dict(scope["headers"]).get(b"content-length", b"")
        self._declared = int(declared) if declared.isdigit() and len(declared) < 20 else 0
        self._got = self._held = 0
        self._loads: list[Usage] = []
        self._is_there = False

    def enter(self) -> None:
        """Raise `Overloaded` where no other request may begin."""
        if self._gated:
            self._room.check(self._room.all, requests=1, working=1, more_bytes=self._declared)
            self._take(self._room.all)

    async def receive(self) -> Message:
        """ASGI's `receive`. Raises `Refused`."""
        if max(self._declared, self._got) > self._most:
            raise _too_large(self._most)
        self._enter_by_key()
        message = await self._receive()
        self._hold(len(message.get("body", b"")))
        there = message["type"] == "http.request" and not message.get("more_body", False)
        if there and self._loads and not self._is_there:
            self._begin()
        return message

    def _take(self, load: Usage) -> None:
        load.requests += 1
        self._loads.append(load)

    def _enter_by_key(self) -> None:
        """Once it is known whose request it is, which is before its body is asked for."""
        name = self._key_name()
        if len(self._loads) != 1 or name is None or not self._room.several_keys:
            return
        load = self._room.by_key[name]
        self._room.check(load, requests=1, working=1, more_bytes=self._declared)
        self._take(load)

    def _hold(self, size: int) -> None:
        self._got += size
        if self._got > self._most:
            raise _too_large(self._most)
        for load in self._loads:
            self._room.check(load, more_bytes=size)
        for load in self._loads:
            load.bytes += size
        self._held = self._got

    def _begin(self) -> None:
        for load in self._loads:
            self._room.check(load, working=1)
        for load in self._loads:
            load.working += 1
        self._is_there = True

    def close(self) -> None:
        """Give back what it held."""
        for load in self._loads:
            load.requests -= 1
            load.working -= self._is_there
            load.bytes -= self._held


def _too_large(most: int) -> Refused:
    return Refused(413, "too_large", f"the body has more than {most} bytes, which is the limit here")
