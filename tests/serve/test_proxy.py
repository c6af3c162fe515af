"""Headers that a request loses before Ray's proxy reads it, and headers that its response gets."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from serve.deploy import CONTROLLER
from serve.proxy import HeaderFilter, request_id
from serve.schemas import ErrorResponse

Headers = list[tuple[bytes, bytes]]


async def _receive() -> Message:
    return {"type": "http.request"}


def _pass(headers: Headers, answered: Headers | None = None, kind: str = "http") -> tuple[Headers, Headers]:
    """Return the headers that the application behind the filter gets, and those that the caller gets."""
    got: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        got.append(scope["headers"])
        await send({"type": "http.response.start", "status": 200, "headers": answered or []})

    async def send(message: Message) -> None:
        got.append(message["headers"])

    asyncio.run(HeaderFilter(app)({"type": kind, "path": "/", "headers": headers}, _receive, send))
    return got[0], got[1]


@pytest.mark.parametrize("kind", ["http", "websocket"])
@pytest.mark.parametrize(
    "name",
    [
        b"x-request-timeout-seconds", b"x-request-disconnect-disabled", b"x-session-id", b"x_session_id",
        b"serve_multiplexed_model_id", b"serve-multiplexed-model-id",
    ],
)  # fmt: skip
def test_a_header_that_controls_ray_is_dropped_and_others_pass(name: bytes, kind: str) -> None:
    passed, _ = _pass([(b"accept", b"*/*"), (name, b"\xff")], kind=kind)
    assert [key for key, _ in passed] == [b"accept", b"x-request-id"]


@pytest.mark.parametrize(
    "ids",
    [
        [], [b""], [b"\xff"], [b"a b"], [b"x" * 65], [b"mine-1\n"], [b"mine-1", b"a b"],
        ["ä".encode()],
    ],
)  # fmt: skip
def test_a_missing_or_harmful_id_is_replaced(ids: list[bytes]) -> None:
    passed, answered = _pass([(b"x-request-id", value) for value in ids])
    ((_, fresh),) = passed
    assert fresh not in ids
    assert request_id(passed) == fresh.decode()  # the API keeps it
    assert answered == [(b"x-request-id", fresh)]


def test_a_harmless_id_of_the_caller_is_kept() -> None:
    assert _pass([(b"x-request-id", b"mine-1")])[0] == [(b"x-request-id", b"mine-1")]


@pytest.mark.parametrize("path", ["/-/routes", "/-/healthz", "/v1/models"])
def test_rays_list_of_applications_is_hidden(path: str) -> None:
    sent: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [(b"x-request-id", b"mine-1")]
    asyncio.run(HeaderFilter(app)({"type": "http", "path": path, "headers": headers}, _receive, send))
    assert sent[0]["status"] == (404 if path == "/-/routes" else 200)
    assert (b"x-request-id", b"mine-1") in sent[0]["headers"]
    if path == "/-/routes":
        error = ErrorResponse.model_validate_json(sent[1]["body"]).error
        assert (error.code, error.request_id) == ("not_found", "mine-1")


def test_a_response_has_one_id_even_if_several_layers_add_one() -> None:
    named = [(b"x-request-id", b"mine-1"), (b"content-type", b"text/plain"), (b"X-Request-ID", b"other")]
    _, answered = _pass([(b"x-request-id", b"mine-1")], named)
    assert sorted(answered) == [(b"content-type", b"text/plain"), (b"x-request-id", b"mine-1")]


def test_ray_finds_the_middleware_that_its_proxies_load() -> None:
    from ray.serve._private.utils import call_function_from_import_path

    path = CONTROLLER["runtime_env"]["env_vars"]["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"]
    assert [middleware.cls for middleware in call_function_from_import_path(path)] == [HeaderFilter]
