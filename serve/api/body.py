"""Reading a request's body within limits, and counting it in the capacity of the process."""

from __future__ import annotations

from collections.abc import Callable

from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope

from serve.api.capacity import Capacity, Usage
from serve.errors import Refused
from serve.job_schemas import MAX_JOB_BYTES
from serve.settings import ServeSettings


class Body:
    """A request's body while it arrives.

    A body larger than its route's limit is rejected; Content-Length is not trusted. On a gated route it is also
    rejected when capacity is exhausted: before its first byte, so that nobody sends in vain, and once more when it is
    complete, because work begins only then. A slow sender occupies a request and the bytes that have arrived, but
    none of the requests being worked on, and no more than a key's share.

    Args:
        scope: The ASGI scope of the request.
        receive: Its ASGI `receive`.
        capacity: The limits and the usage of this process.
        key_name: Returns the name of the caller's key once it is known, and None until then.
        gated: True if the request counts in the capacity.
    """

    def __init__(
        self, scope: Scope, receive: Receive, capacity: Capacity, key_name: Callable[[], str | None], *, gated: bool
    ) -> None:
        settings = capacity.settings
        self._receive, self._capacity, self._key_name, self._gated = receive, capacity, key_name, gated
        self._most = _most_bytes(scope["path"], settings)
        declared = dict(scope["headers"]).get(b"content-length", b"")
        # Longer numbers are not parsed: int() takes quadratic time.
        self._declared = int(declared) if declared.isdigit() and len(declared) < 20 else 0
        self._received = self._counted = 0
        self._usages: list[Usage] = []
        self._is_decided = False
        """True once it is settled if the key counts. Keys that come or go later must not change that, or `close` would
        release from a key what was never counted for it."""
        self.is_complete = False
        """True once all of the body has arrived and work on it may begin. Always False on a route that is not gated."""

    def enter(self) -> None:
        """Count the request. Raises `Overloaded` if no other request may begin.

        A body that is too large for ever is refused first: its sender would wait in vain for capacity.
        """
        if self._declared > self._most:
            raise _too_large(self._most)
        if self._gated:
            self._enter(self._capacity.all)

    async def receive(self) -> Message:
        """Return the next message, as ASGI's `receive`. Raises `Refused`."""
        if not self._is_decided:
            self._is_decided = True
            # The application identifies the caller before it asks for the body, so the key is known here.
            name = self._key_name()
            if self._usages and name is not None and self._capacity.several_keys():
                self._enter(self._capacity.by_key[name])
        try:
            message = await self._receive()
        except Exception as error:
            # Ray raises its own errors here once the caller is gone, when it cancels the call that fetches the body.
            raise ClientDisconnect from error
        self._count(len(message.get("body", b"")))
        is_last = message["type"] == "http.request" and not message.get("more_body", False)
        if is_last and self._usages and not self.is_complete:
            self._begin_work()
        return message

    def close(self) -> None:
        """Release what the request occupied."""
        for usage in self._usages:
            usage.requests -= 1
            usage.working -= self.is_complete
            usage.bytes -= self._counted

    def _enter(self, usage: Usage) -> None:
        self._capacity.check(usage, requests=1, working=1, more_bytes=self._declared)
        usage.requests += 1
        self._usages.append(usage)

    def _count(self, size: int) -> None:
        self._received += size
        if self._received > self._most:
            raise _too_large(self._most)
        # All are checked before the first is changed, so that `close` releases the same from each.
        for usage in self._usages:
            self._capacity.check(usage, more_bytes=size)
        for usage in self._usages:
            usage.bytes += size
        self._counted = self._received

    def _begin_work(self) -> None:
        for usage in self._usages:
            self._capacity.check(usage, working=1)
        for usage in self._usages:
            usage.working += 1
        self.is_complete = True


def _too_large(most: int) -> Refused:
    return Refused(413, "too_large", f"the body has more than {most} bytes, which is the limit")


def _most_bytes(path: str, settings: ServeSettings) -> int:
    """Return the bytes that a body of a route may have."""
    if path.startswith("/v1/jobs"):
        return MAX_JOB_BYTES
    return settings.max_batch_bytes if path.endswith("/batch") else settings.max_body_bytes
