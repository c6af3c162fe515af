"""Shutdown of a service in this process: no new requests begin, and those in flight are finished."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

from asap.predictor import Predictor
from serve.api.callers.keys import Keyring
from serve.api.routes import create_app
from serve.errors import NotReady
from serve.inference.in_flight import InFlight
from serve.inference.service import Service
from serve.settings import ServeSettings
from tests.support.pictures import draw_jpeg
from tests.support.serving import TEXT, LocalDetector

SETTINGS = ServeSettings(decoders=1)


@pytest.fixture(scope="module")
def backend() -> LocalDetector:
    return LocalDetector(Predictor.from_folder("demo"))


@pytest.fixture
def service(backend: LocalDetector) -> Service:
    return Service(SETTINGS, backend)


@pytest.fixture
def client(service: Service) -> Iterator[TestClient]:
    app = create_app(SETTINGS, service, Keyring())
    with TestClient(app, "http://127.0.0.1", client=("127.0.0.1", 5000)) as client:
        yield client


def test_a_request_is_answered_although_the_server_shuts_down_while_it_is_being_sent(
    client: TestClient, service: Service
) -> None:
    body = json.dumps({"image": base64.b64encode(draw_jpeg(1)).decode(), "text": TEXT}).encode()

    def sent() -> Iterator[bytes]:
        yield body[:100]
        assert service.in_flight.requests == 1
        service.in_flight.close()
        yield body[100:]

    answer = client.post("/v1/detect", content=sent(), headers={"content-type": "application/json"})
    assert answer.status_code == 200, answer.text
    assert service.in_flight.requests == 0


def test_a_new_request_is_refused_with_retry_after_before_its_body_is_read(
    client: TestClient, service: Service
) -> None:
    service.in_flight.close()

    def unwanted() -> Iterator[bytes]:
        raise AssertionError("the body was read")
        yield b""

    refused = client.post("/v1/detect", content=unwanted(), headers={"content-type": "application/json"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "not_ready")
    assert "shutting down" in refused.json()["error"]["message"]
    assert int(refused.headers["retry-after"]) >= 1
    assert client.get("/v1/models").status_code == 503


def test_a_server_that_shuts_down_is_alive_and_shows_metrics_but_is_not_ready(
    client: TestClient, service: Service
) -> None:
    assert client.get("/readyz").status_code == 200
    service.in_flight.close()
    assert client.get("/healthz").status_code == 200
    assert client.get("/metrics").status_code == 200
    ready = client.get("/readyz")
    assert (ready.status_code, ready.json()["error"]["code"]) == (503, "not_ready")


def test_a_failed_request_is_no_longer_in_flight(client: TestClient, service: Service) -> None:
    assert client.post("/v1/detect", files={"image": b"no picture"}, data={"text": TEXT}).status_code == 400
    assert service.in_flight.requests == 0


def test_a_refused_request_is_not_counted() -> None:
    in_flight = InFlight()
    with in_flight.track():
        in_flight.close()
        with pytest.raises(NotReady, match="shutting down"), in_flight.track():
            raise AssertionError("no new request begins")
        assert in_flight.requests == 1
    assert in_flight.requests == 0
