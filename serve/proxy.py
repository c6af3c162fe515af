"""What a request passes before Ray's proxy, which Ray is told of by `CALLBACK`: it takes no orders from callers.

Ray reads from headers how long a request may take, whether it goes on without its caller, and which replica gets it,
and it repeats any request id.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

CALLBACK = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serve.proxy:middlewares"}
"""In the environment of Ray's proxies."""
_REQUEST_ID = b"x-request-id"
_GIVEN_ID = re.compile(rb"[\w.-]{1,64}")
_ORDERS = {
    b"x_request_timeout_seconds",
    b"x_request_disconnect_disabled",
    b"x_session_id",
    b"serve_multiplexed_model_id",
}
"""With underscores, for Ray takes some of them with either."""
_Headers = Iterable[tuple[bytes, bytes]]


def middlewares() -> list[Middleware]:
    """Called by Ray, in each proxy."""
    return [Middleware(HeaderFilter)]


class HeaderFilter:
    """ASGI middleware: drops the headers that are orders to Ray, and gives request and answer one harmless id."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        known = (_REQUEST_ID, request_id(scope["headers"]).encode())
        asked = [(name, value) for name, value in scope["headers"] if name.replace(b"-", b"_") not in _ORDERS]

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":  # Ray and the API name the id, each for itself
                message = {**message, "headers": [*_without_id(message.get("headers", ())), known]}
            await send(message)

        await self._app({**scope, "headers": [*_without_id(asked), known]}, receive, answer)


def request_id(headers: _Headers) -> str:
    """The caller's own, if it has one of a harmless form."""
    given = dict(headers).get(_REQUEST_ID, b"")
    return given.decode() if _GIVEN_ID.fullmatch(given) else uuid.uuid4().hex


def _without_id(headers: _Headers) -> _Headers:
    return [(name, value) for name, value in headers if name.lower() != _REQUEST_ID]
