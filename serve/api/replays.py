"""Responses that are kept for a while, so that a request which is sent again is neither judged nor charged twice.

A caller that loses the response to a request sends it again with the same `Idempotency-Key`. Detection changes nothing,
so nothing is wrong if a response was not kept: the pair is judged once more.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Annotated, NamedTuple, TypeVar

from fastapi import Header, Request, Response

from serve.api.middleware import Trace
from serve.errors import Refused
from serve.schemas import BatchResponse, Detection

KEPT_S = 600
"""Seconds for which a response is kept."""
MOST_BYTES = 32 * 2**20
"""Bytes of all responses that one process keeps, with their names. The oldest are dropped first."""
OVERHEAD_BYTES = 500
"""Bytes that CPython takes for a kept response beside its characters, rounded."""
HEADER = "Idempotency-Key"
_Result = TypeVar("_Result", Detection, BatchResponse)
IdempotencyKey = Annotated[
    str | None,
    Header(
        alias=HEADER,
        min_length=1,
        max_length=255,
        pattern="^[!-~]+$",
        description="A name for this request, such as a random UUID. If it is sent again with the same name within "
        f"{KEPT_S} s, it gets the first response again, and its pairs are neither judged nor charged once more.",
    ),
]
"""The header `Idempotency-Key` of a request."""
Name = tuple[str | None, str, str | None, str]
"""The name of the caller's key, the path, the value of `evidence`, and the `Idempotency-Key`."""


def check_given_once(request: Request) -> None:
    """Raise `Refused` (422) for a request with two names."""
    if len(request.headers.getlist(HEADER)) > 1:
        raise Refused(422, "invalid_field", f"{HEADER}: the header is given twice", param=HEADER)


class _Kept(NamedTuple):
    fingerprint: bytes
    body: bytes
    since: float
    size: int


class Replays:
    """The requests in progress that have an `Idempotency-Key`, and the responses that are kept.

    Args:
        most_bytes: Bytes to keep, of responses and all that belongs to them.
        clock: Returns the time in seconds.
    """

    def __init__(self, most_bytes: int = MOST_BYTES, clock: Callable[[], float] = time.monotonic) -> None:
        self._most_bytes = most_bytes
        self._clock = clock
        self._in_progress: dict[Name, bytes] = {}
        """The hash of each request in progress."""
        self._kept: dict[Name, _Kept] = {}
        """Responses, the oldest first."""
        self._bytes = 0

    async def once(
        self,
        request: Request,
        key: str | None,
        fingerprint: Callable[[], bytes],
        detect: Callable[[], Awaitable[tuple[_Result, bool]]],
    ) -> Response | _Result:
        """Return the response that is kept of a request or, if there is none, detect. Raises as `begin` does.

        Args:
            request: The request.
            key: Its `Idempotency-Key`; None if no response is to be kept.
            fingerprint: Returns the hash of what was sent.
            detect: Returns the response, and True if it would be the same a second time. Then it is kept.
        """
        if key is None:
            return (await detect())[0]
        check_given_once(request)
        trace: Trace = request.state.trace
        # Not the query as it was sent: `?&&&&` says the same as none, at any length.
        name = (trace.key_name, request.url.path, request.query_params.get("evidence"), key)
        kept = self.begin(name, await asyncio.to_thread(fingerprint))
        if kept is not None:
            trace.is_replayed = True
            trace.headers["Idempotency-Replayed"] = "true"
            return Response(kept, media_type="application/json")
        body = None
        try:
            result, is_lasting = await detect()
            body = result.model_dump_json().encode() if is_lasting else None
            return result
        finally:
            self.end(name, body)

    def begin(self, name: Name, fingerprint: bytes) -> bytes | None:
        """Return the response that is kept of a request. If there is none, the request counts as in progress.

        Raises `Refused`: 409 if it is in progress already, 422 if another request had the same `Idempotency-Key`.
        """
        self._drop_old()
        kept = self._kept.get(name)
        former = kept.fingerprint if kept else self._in_progress.get(name)
        if former is None:
            self._in_progress[name] = fingerprint
            return None
        if former != fingerprint:
            message = f"another request had this {HEADER}. Send each request with one of its own."
            raise Refused(422, "invalid_field", message, param=HEADER)
        if kept is None:
            message = f"a request with this {HEADER} is in progress. Send it again in a second."
            raise Refused(409, "in_progress", message, param=HEADER, retry_after_s=1)
        return kept.body

    def end(self, name: Name, body: bytes | None = None) -> None:
        """End a request in progress, and keep its response if there is one to keep."""
        fingerprint = self._in_progress.pop(name)
        if body is not None:
            size = OVERHEAD_BYTES + sum(len(part) for part in (*name, fingerprint, body) if part is not None)
            self._kept[name] = _Kept(fingerprint, body, self._clock(), size)
            self._bytes += size
            self._drop_old()

    def _drop_old(self) -> None:
        while self._kept:
            name, oldest = next(iter(self._kept.items()))
            if self._bytes <= self._most_bytes and self._clock() - oldest.since < KEPT_S:
                return
            del self._kept[name]
            self._bytes -= oldest.size
