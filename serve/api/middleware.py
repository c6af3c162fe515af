"""The middleware around the API: request ids, admission, limits of bodies, the log line, metrics and last errors."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.api.audit import write_request
from serve.api.body import Body
from serve.api.capacity import Capacity
from serve.api.metrics import Metrics
from serve.errors import Refused
from serve.inference.in_flight import InFlight
from serve.proxy import request_id
from serve.schemas import ErrorBody, ErrorResponse

_FAILURES = logging.getLogger("asap.server")
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
"""Headers of every response."""
_CLIENT_CLOSED_REQUEST = 499
"""Status for the log and the metrics if nobody waited for a response. It is never sent."""


@dataclass
class Trace:
    """A request: the fields of its log line, and the headers of its response that routes add.

    They contain neither the key nor the text nor the picture.
    """

    id: str
    key_name: str | None = None
    pairs: list[dict[str, Any]] = field(default_factory=list)
    """SHA-256, verdict and timings of each pair, or its error code; its redacted address, and its id in a batch."""
    job: str | None = None
    """The id of the job that the request is about."""
    is_replayed: bool = False
    """True if the response was kept from a former request with the same `Idempotency-Key`."""
    headers: dict[str, str] = field(default_factory=dict)
    """Headers for the response, whatever it is."""
    is_received: Callable[[], bool] = lambda: False
    """Returns True once the whole body has arrived."""
    received_at: float | None = None
    """Time (`time.perf_counter`) when the pair was complete; None if its latency does not show the server's load."""


class RequestMiddleware:
    """ASGI middleware around the whole API.

    Args:
        app: The application.
        capacity: The limits and the usage of this process.
        in_flight: The requests that a shutdown waits for.
        metrics: The metrics of this process.
        paths: The paths of the routes, for requests that are refused before their route is found.
    """

    def __init__(
        self, app: ASGIApp, capacity: Capacity, in_flight: InFlight, metrics: Metrics, paths: Collection[str] = ()
    ) -> None:
        self._app = app
        self._capacity = capacity
        self._in_flight = in_flight
        self._metrics = metrics
        self._paths = frozenset(paths)
        metrics.limit.set(capacity.concurrency.limit)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        method = scope["method"]
        is_head = method == "HEAD"
        if is_head:  # the same response as to GET, without its body
            scope = {**scope, "method": "GET"}
        trace = Trace(request_id(scope["headers"]))
        scope.setdefault("state", {})["trace"] = trace
        start, response = time.perf_counter(), _Response(send, trace, is_head)
        gated = scope["path"].startswith("/v1/")
        body = Body(scope, receive, self._capacity, lambda: trace.key_name, gated=gated)
        trace.is_received = lambda: body.is_complete
        try:
            _check_host(scope)
            with self._in_flight.track() if gated else nullcontext():
                body.enter()
                self._metrics.in_flight.set(self._capacity.all.requests)
                await self._app(scope, body.receive, response)
        except ClientDisconnect:  # nobody waits for a response
            pass
        except Exception as error:
            refused = as_refused(error, trace.id)
            if not response.has_begun:
                await error_response(refused, trace.id)(scope, receive, response)
        finally:
            body.close()
            end = time.perf_counter()
            # Only detections and missed deadlines show the load: a batch takes longer the larger it is, and a refusal
            # takes no time.
            is_detection = response.status < 400 or response.status == 504
            if scope["path"] == _ONE_PAIR and trace.received_at is not None and is_detection:
                self._capacity.concurrency.record(end - trace.received_at)
                self._metrics.limit.set(self._capacity.concurrency.limit)
            self._metrics.in_flight.set(self._capacity.all.requests)
            self._report({**scope, "method": method}, trace, response.status, end - start)

    def _report(self, scope: Scope, trace: Trace, status: int, seconds: float) -> None:
        """Update the metrics and, for a request of the API or a refused one of /metrics, write the log line."""
        route = getattr(scope.get("route"), "path", scope["path"] if scope["path"] in self._paths else "other")
        self._metrics.count_request(str(route), status, seconds)
        verdicts = [pair["verdict"] for pair in trace.pairs if "verdict" in pair]
        for verdict in verdicts:
            self._metrics.pairs.labels(verdict).inc()
        if trace.key_name is not None:
            self._metrics.key_requests.labels(trace.key_name, status).inc()
            self._metrics.key_pairs.labels(trace.key_name).inc(len(verdicts))
        is_refused_reader = scope["path"] == "/metrics" and status >= 400
        if scope["path"].startswith("/v1/") or trace.key_name is not None or is_refused_reader:
            write_request(
                {
                    "id": trace.id,
                    "client": (scope.get("client") or [None])[0],
                    "key": trace.key_name,
                    "method": scope["method"],
                    "route": route,
                    "status": status,
                    "ms": round(seconds * 1000, 2),
                    "replayed": trace.is_replayed,
                    "pairs": trace.pairs,
                }
                | ({"job": trace.job} if trace.job else {})
            )


class CrossOrigin(CORSMiddleware):
    """Starlette's middleware for pages of other sites, with an error of the API's form for a page that is not allowed.

    It is the outermost middleware, because a page must be able to read refusals too.
    """

    def preflight_response(self, request_headers: Headers) -> Response:
        """Return the response to a browser that asks whether a page may send a request."""
        response = super().preflight_response(request_headers)
        if response.status_code < 400:
            return response
        id_ = request_id(request_headers.raw)
        refused = error_response(Refused(response.status_code, "bad_request", bytes(response.body).decode()), id_)
        kept = {name: value for name, value in response.headers.items() if not name.startswith("content-")}
        refused.headers.update(kept | {"x-request-id": id_})
        return refused


class _Response:
    """Sends a response on, with the headers that every response has, and remembers its status.

    Args:
        send: The ASGI `send` of the request.
        trace: The request.
        is_head: True if the body is left out.
    """

    def __init__(self, send: Send, trace: Trace, is_head: bool) -> None:
        self._send = send
        self._is_head = is_head
        self._trace = trace
        self.has_begun = False
        self.status = _CLIENT_CLOSED_REQUEST

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.has_begun, self.status = True, message["status"]
            own = {"x-request-id": self._trace.id} | self._trace.headers
            encoded = [(name.lower().encode(), value.encode()) for name, value in own.items()]
            message["headers"] = [*message.get("headers", ()), *_HEADERS, *encoded]
        elif self._is_head:
            message = {**message, "body": b""}
        await self._send(message)


def trace_of(request: Request) -> Trace:
    """Return the trace of a request."""
    trace: Trace = request.state.trace
    return trace


def _check_host(scope: Scope) -> None:
    """Raise `Refused` (400) for a request of HTTP/1.1 that does not name one host, as RFC 9112 asks of a server."""
    hosts = [value for name, value in scope["headers"] if name == b"host"]
    if scope.get("http_version") == "1.1" and (len(hosts) != 1 or not hosts[0].strip()):
        raise Refused(400, "bad_request", "the request must have one Host header, with the name of this server")


def as_refused(error: Exception, request_id: str) -> Refused:
    """Return a refusal as it is. Log any other error in full and return a generic 500 for it."""
    if isinstance(error, Refused):
        return error
    _FAILURES.error("request %s failed", request_id, exc_info=error)
    return Refused(500, "internal", "the server failed on this request")


def error_body(error: Refused, request_id: str) -> ErrorBody:
    """Return the body of an error response."""
    param = None if error.param is None else _encodable(error.param)
    return ErrorBody(code=error.code, message=_encodable(error.message), param=param, request_id=request_id)


def _encodable(text: str) -> str:
    """Replace halves of surrogate pairs, which UTF-8 cannot encode. A caller's JSON may have them in its names."""
    return text.encode("utf-8", "replace").decode()


def error_response(error: Refused, request_id: str) -> JSONResponse:
    """Return the response to a refused request."""
    headers = dict(error.headers)
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, round(error.retry_after_s + 0.5)))
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    content = ErrorResponse(error=error_body(error, request_id)).model_dump()
    return JSONResponse(content, error.status, headers)
