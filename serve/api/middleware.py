"""What every request passes first: its id, the gate, the limit of its body, the log line, and the last resort."""

from __future__ import annotations

import json
import logging
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.api.body import Body
from serve.api.capacity import Capacity
from serve.api.metrics import Metrics
from serve.errors import Refused
from serve.inference.in_flight import InFlight
from serve.proxy import request_id
from serve.schemas import ErrorBody, ErrorResponse

LOG = logging.getLogger("asap.requests")
_ONE_PAIR = "/v1/detect"
_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = [
    (b"content-security-policy", _PAGE_POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]


@dataclass
class Trace:
    """What the log line tells of one request. Neither key nor text nor picture are in it."""

    id: str
    key_name: str | None = None
    pairs: list[dict[str, Any]] = field(default_factory=list)
    """sha256, verdict and timings of each pair, or its error's code; the redacted address, where there was one."""
    there_at: float | None = None
    """When a pair was there whose time tells how busy the server is, by `time.perf_counter`."""


class RequestMiddleware:
    """ASGI middleware around the whole API."""

    def __init__(self, app: ASGIApp, room: Capacity, in_flight: InFlight, figures: Metrics) -> None:
        self._app = app
        self._room = room
        self._has_in_flight = in_flight
        self._figures = figures
        figures.limit.set(room.admission.limit)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        trace = Trace(request_id(scope["headers"]))
        scope.setdefault("state", {})["trace"] = trace
        start, sent = time.perf_counter(), _Sent(send, trace.id)
        gated = scope["path"].startswith("/v1/")
        body = Body(scope, receive, self._room, lambda: trace.key_name, gated=gated)
        try:
            with self._has_in_flight.one() if gated else nullcontext():
                body.enter()
                self._figures.in_flight.set(self._room.all.requests)
                await self._app(scope, body.receive, sent)
        except ClientDisconnect:  # nobody is there to be answered
            pass
        except Exception as error:
            refused = as_refused(error, trace.id)
            if not sent.begun:
                await error_response(refused, trace.id)(scope, receive, sent)
        finally:
            body.close()
            end = time.perf_counter()
            # What was judged, or not in time. A batch takes as long as it is large, a refusal no time.
            if scope["path"] == _ONE_PAIR and trace.there_at is not None and (sent.status < 400 or sent.status == 504):
                self._room.admission.answered(end - trace.there_at)
                self._figures.limit.set(self._room.admission.limit)
            self._figures.in_flight.set(self._room.all.requests)
            self._finish(scope, trace, sent.status, end - start)

    def _finish(self, scope: Scope, trace: Trace, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "other")
        self._figures.requests.labels(route, status).inc()
        self._figures.seconds.labels(route).observe(seconds)
        for pair in trace.pairs:
            if "verdict" in pair:
                self._figures.pairs.labels(pair["verdict"]).inc()
        if scope["path"].startswith("/v1/"):
            line = {"id": trace.id, "key": trace.key_name, "route": route, "status": status, "pairs": trace.pairs}
            LOG.info(json.dumps(line | {"ms": round(seconds * 1000, 2)}))


class _Sent:
    """Passes an answer on, with the headers that every answer has."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._headers = [*_HEADERS, (b"x-request-id", request_id.encode())]
        self.begun = False
        self.status = 499
        """Until an answer begins: nobody waited for one."""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.begun, self.status = True, message["status"]
            message["headers"] = [*message.get("headers", ()), *self._headers]
        await self._send(message)


def as_refused(error: Exception, request_id: str) -> Refused:
    """A refusal as it is. Of a failure that nobody foresaw the log has all, a caller may know that it happened."""
    if isinstance(error, Refused):
        return error
    LOG.error("request %s failed", request_id, exc_info=error)
    return Refused(500, "internal", "the server failed on this request")


def error_body(error: Refused, request_id: str) -> ErrorBody:
    """An error as the answer tells it."""
    message = error.message.encode("utf-8", "replace").decode()  # half a character of the caller's is not UTF-8
    return ErrorBody(code=error.code, message=message, param=error.param, request_id=request_id)


def error_response(error: Refused, request_id: str) -> JSONResponse:
    """The answer of a refused request."""
    headers = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, round(error.retry_after_s + 0.5)))
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    content = ErrorResponse(error=error_body(error, request_id)).model_dump()
    return JSONResponse(content, error.status, headers)
