"""Callers of a server without keys: it answers its own machine, but no proxy and no page of another site on it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from asap.predictor import Predictor
from serve.api.callers.keys import Keyring, new_key
from tests.support.serving import TEXT, LocalDetector, api, encoded

PICTURE = encoded()
FOREIGN = {"origin": "https://evil.example", "sec-fetch-site": "cross-site"}
FORWARDED = {"x-forwarded-for": "203.0.113.9", "via": "1.1 proxy"}
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor.from_folder("demo", "cpu")


@pytest.fixture(scope="module")
def client(predictor: Predictor) -> Iterator[TestClient]:
    with api(LocalDetector(predictor)) as client:
        yield client


def _send(client: TestClient, headers: Any = None) -> Any:
    return client.post("/v1/detect", files={"image": ("a.png", PICTURE)}, data={"text": TEXT}, headers=headers)


def _check_refused(answer: Any, reason: str) -> None:
    assert answer.status_code == 403, answer.text
    error = answer.json()["error"]
    assert (error["code"], error["param"], error["request_id"]) == (
        "keys_required", None, answer.headers["x-request-id"]
    )  # fmt: skip
    assert reason in error["message"]


@pytest.mark.parametrize("value", ["", "127.0.0.1", "203.0.113.9"])
@pytest.mark.parametrize(
    "name",
    [
        "Forwarded", "Via", "X-Real-IP", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto",
        "X-Forwarded-Port", "X-Forwarded-Server", "X-Forwarded-Prefix", "X-Forwarded", "Forwarded-For",
        "X-Original-Forwarded-For", "CF-Connecting-IP", "CF-Connecting-IPv6", "CF-Ray", "CDN-Loop", "True-Client-IP",
        "X-Client-IP", "Client-IP", "X-Cluster-Client-IP", "Fly-Client-IP", "Fastly-Client-IP", "X-Remote-IP",
        "X-Remote-Addr", "X-Originating-IP", "X-Original-Host", "X-Original-URL", "X-Envoy-External-Address",
        "X-Envoy-Internal", "X-Azure-ClientIP", "X-Azure-SocketIP", "X-Appengine-User-IP", "X-ARR-LOG-ID",
        "X-NF-Client-Connection-IP", "X-Vercel-IP-Country", "CloudFront-Viewer-Address", "X-Amz-Cf-Id",
        "DO-Connecting-IP", "WL-Proxy-Client-IP", "X-Sucuri-ClientIP", "Tailscale-User-Login",
    ],
)  # fmt: skip
def test_a_forwarded_request_is_refused_whatever_its_header_says(client: TestClient, name: str, value: str) -> None:
    _check_refused(client.get("/v1/models", headers={name: value}), f"header {name.lower()}")


@pytest.mark.parametrize(("method", "path"), [("GET", "/v1/models"), ("GET", "/metrics"), ("POST", "/v1/detect/batch")])
def test_routes_that_detect_or_show_data_refuse_while_the_probes_answer(
    client: TestClient, method: str, path: str
) -> None:
    for headers in (FORWARDED, FOREIGN, {"host": "evil.example"}):
        _check_refused(client.request(method, path, headers=headers), "without keys")
        assert client.get("/healthz", headers=headers).json() == {"status": "ok"}
        assert client.get("/readyz", headers=headers).json() == {"status": "ok"}


@pytest.mark.parametrize(
    "headers",
    [
        FOREIGN,
        {"origin": "null"},
        {"origin": ""},
        {"origin": "http://127.0.0.1:3000"},
        {"origin": "http://localhost"},
        {"origin": "https://127.0.0.1"},
        {"origin": "http://127.0.0.1.evil.example"},
        {"origin": "http://127.0.0.1", "host": "127.0.0.1:8000"},
        [("origin", "http://127.0.0.1"), ("origin", "https://evil.example")],
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
    ids=str,
)
def test_a_form_that_another_sites_page_posts_is_refused(client: TestClient, headers: Any) -> None:
    _check_refused(_send(client, headers), "another site's page")


@pytest.mark.parametrize(
    "host",
    [
        "evil.example", "evil.example:8000", "evil.example:99999", "127.0.0.1.evil.example", "127.0.0.1@evil.example",
        "evil.example/127.0.0.1", "127.0.0.1:8000:1", "localhost.evil.example", "[::1", "[::2]:8000", "10.0.0.1",
    ],
)  # fmt: skip
def test_a_name_that_another_site_points_at_this_machine_is_refused(client: TestClient, host: str) -> None:
    _check_refused(_send(client, {"host": host, "origin": f"http://{host}"}), "Host")


@pytest.mark.parametrize(
    ("caller", "host"),
    [
        ("127.0.0.1", "127.0.0.1:8000"),
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.1", "localhost:9000"),
        ("::1", "localhost:9000"),
        ("::1", "[::1]:65535"),
    ],
)
def test_the_servers_own_page_is_answered_under_every_local_name(predictor: Predictor, caller: str, host: str) -> None:
    with api(LocalDetector(predictor), caller=caller) as client:
        own = {"host": host, "origin": f"http://{host}", "sec-fetch-site": "same-origin"}
        assert _send(client, own).status_code == 200
        assert client.get("/metrics", headers={"host": host, "sec-fetch-site": "same-origin"}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "LocalHost:8000"},
        {"sec-fetch-site": "none", "sec-fetch-mode": "navigate", "upgrade-insecure-requests": "1"},
        {"x-request-id": "mine-1", "traceparent": f"00-{'1' * 32}-{'2' * 16}-01", "x-zip": "1", "x-amzn-trace-id": "1"},
    ],
    ids=str,
)
def test_a_program_of_this_machine_is_answered(client: TestClient, headers: dict[str, str]) -> None:
    assert client.get("/v1/models", headers=headers).status_code == 200


def test_only_pages_of_cors_origins_are_answered(predictor: Predictor) -> None:
    with api(LocalDetector(predictor), cors_origins=("https://desk.example",)) as client:
        desk = {"origin": "https://desk.example", "sec-fetch-site": "cross-site"}
        assert _send(client, desk).status_code == 200
        _check_refused(_send(client, FOREIGN), "another site's page")
        _check_refused(_send(client, desk | FORWARDED), "header x-forwarded-for")


def test_with_keys_a_proxy_may_stand_in_front(predictor: Predictor) -> None:
    key, line = new_key("desk")
    headers = {"authorization": f"Bearer {key}", "host": "asap.example"} | FORWARDED | FOREIGN
    with api(LocalDetector(predictor), Keyring.parse([line], "here")) as client:
        assert _send(client, headers).status_code == 200


@pytest.mark.parametrize("header", [(b"x-forwarded-for", b""), (b"origin", b"null")])
def test_a_refused_request_is_not_read(client: TestClient, header: tuple[bytes, bytes]) -> None:
    statuses = []

    async def receive() -> Any:
        raise AssertionError("the body was asked for")

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    headers = [(b"host", b"127.0.0.1"), (b"content-type", b"multipart/form-data; boundary=b"), header]
    scope = {
        "type": "http", "method": "POST", "path": "/v1/detect", "query_string": b"", "scheme": "http",
        "http_version": "1.1", "headers": headers, "client": ("127.0.0.1", 5000), "server": ("127.0.0.1", 8000),
    }  # fmt: skip
    asyncio.run(client.app(scope, receive, send))
    assert statuses == [403]
