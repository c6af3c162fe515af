"""The filter before Ray's proxy, which loads it by `CALLBACK`.

Ray reads from headers how long a request may take, whether it continues without its caller, and which replica gets it.
It also repeats any request id. The filter removes such headers, so that callers cannot control Ray. Ray's proxy answers
`/-/routes` itself, with or without a key, so the filter answers it first: there is no such route.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable

from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

CALLBACK = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serve.proxy:middlewares"}
"""Environment variables of Ray's proxies that make them load the filter."""
_REQUEST_ID = b"x-request-id"
_HARMLESS_ID = re.compile(rb"[\w.-]{1,64}")
_CONTROL_HEADERS = {
    b"x_request_timeout_seconds",
    b"x_request_disconnect_disabled",
    b"x_session_id",
    b"serve_multiplexed_model_id",
}
"""Headers that control Ray, spelled with underscores: Ray accepts some of them with hyphens or with underscores."""
_RAY_ROUTES = "/-/routes"
"""The route by which Ray's proxy lists the applications of the cluster. Load balancers use `/-/healthz`, not this."""
_Headers = Iterable[tuple[bytes, bytes]]


def middlewares() -> list[Middleware]:
    """Return the filter. Ray calls this in each proxy."""
    return [Middleware(HeaderFilter)]


class HeaderFilter:
    """ASGI middleware that drops headers which control Ray, and gives request and response one harmless id.

    It also hides the list of Ray's applications, which Ray's proxy would show to everybody.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        id_header = (_REQUEST_ID, request_id(scope["headers"]).encode())
        allowed = [
            (name, value) for name, value in scope["headers"] if name.replace(b"-", b"_") not in _CONTROL_HEADERS
        ]

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":  # Ray and the API each add the id
                message = {**message, "headers": [*_without_id(message.get("headers", ())), id_header]}
            await send(message)

        app = _not_found if scope["path"] == _RAY_ROUTES else self._app
        await app({**scope, "headers": [*_without_id(allowed), id_header]}, receive, send_with_id)


async def _not_found(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer as the API answers an unknown route."""
    id_ = request_id(scope["headers"])
    message = "there is no such route. /docs lists the routes."
    error = {"code": "not_found", "message": message, "param": None, "request_id": id_}
    await JSONResponse({"error": error}, 404)(scope, receive, send)


def request_id(headers: _Headers) -> str:
    """Return the caller's request id if it has a harmless form, and otherwise a new one."""
    sent = dict(headers).get(_REQUEST_ID, b"")
    return sent.decode() if _HARMLESS_ID.fullmatch(sent) else uuid.uuid4().hex


def _without_id(headers: _Headers) -> _Headers:
    return [(name, value) for name, value in headers if name.lower() != _REQUEST_ID]
