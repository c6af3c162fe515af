"""A request's body on its way in: how much of it may come, and when its work begins."""

from __future__ import annotations

import time
from dataclasses import dataclass

from starlette.types import Message, Receive, Scope

from serve.admission import Admission
from serve.errors import Overloaded, Refused
from serve.settings import ServeSettings


@dataclass
class Load:
    """What this process has in hand of what passes the gate."""

    requests: int = 0
    """Being read or worked on."""
    working: int = 0
    """Read whole."""
    bytes: int = 0
    """Of their bodies."""


class Body:
    """A request's body on its way in.

    Refused as too large where its route takes less, whatever is told of its length. Where it has to pass the gate, it
    is refused too while there is no room: at its first byte, so that nobody sends for nothing, and when it is there,
    for only then does the work begin. Time that a caller takes to send counts for no limit of others.
    """

    def __init__(
        self, scope: Scope, receive: Receive, settings: ServeSettings, load: Load, gate: Admission | None
    ) -> None:
        self._receive, self._settings, self._load, self._gate = receive, settings, load, gate
        self._most = settings.max_batch_bytes if scope["path"].endswith("/batch") else settings.max_body_bytes
        declared = dict(scope["headers"]).get(b"content-length", b"")
        self._declared = int(declared) if declared.isdigit() and len(declared) < 20 else 0
        self._got = self._held = 0
        self._entered = False
        self.read_at: float | None = None
        """When it was there, by `time.perf_counter`."""

    def enter(self) -> None:
        """Raise `Overloaded` where no other request may begin."""
        if self._gate is None:
            return
        if self._load.requests >= self._settings.max_in_flight or self._load.working >= self._gate.limit:
            raise Overloaded
        self._load.requests += 1
        self._entered = True

    async def receive(self) -> Message:
        """ASGI's `receive`. Raises `Refused`."""
        self._hold(max(self._declared, self._got))
        message = await self._receive()
        self._got += len(message.get("body", b""))
        self._hold(self._got)
        there = message["type"] == "http.request" and not message.get("more_body", False)
        if there and self._entered and self.read_at is None:
            self._begin()
        return message

    def _hold(self, size: int) -> None:
        if size > self._most:
            raise _too_large(self._most)
        if not self._entered or (more := size - self._held) <= 0:
            return
        if self._load.bytes + more > self._settings.max_bytes_in_flight:
            raise Overloaded
        self._load.bytes += more
        self._held = size

    def _begin(self) -> None:
        if self._gate is not None and self._load.working >= self._gate.limit:
            raise Overloaded
        self._load.working += 1
        self.read_at = time.perf_counter()

    def close(self) -> None:
        """Give back what it held."""
        self._load.requests -= self._entered
        self._load.working -= self.read_at is not None
        self._load.bytes -= self._held


def _too_large(most: int) -> Refused:
    return Refused(413, "too_large", f"the body has more than {most} bytes, which is the limit here")
