"""Requests that are sent again with the same `Idempotency-Key`, and ids of the pairs of a batch."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fastapi.testclient import TestClient

from asap.finding import Finding
from serve.api.callers.keys import Keyring, new_key
from serve.errors import NotReady
from serve.schemas import BatchResponse
from tests.support.serving import TEXT, FixedDetector, api, encoded
from tests.support.waiting import HANG_S

PICTURE, OTHER = encoded(), encoded(color=(1, 2, 3))
PAIR = {"image": base64.b64encode(PICTURE).decode(), "text": TEXT}


@pytest.fixture
def detector() -> FixedDetector:
    return FixedDetector()


@pytest.fixture
def client(detector: FixedDetector) -> Iterator[TestClient]:
    with api(detector) as client:
        yield client


def _send(client: TestClient, name: str | None = "1", picture: bytes = PICTURE, text: str = TEXT, **more: Any) -> Any:
    headers = more.pop("headers", {}) | ({"Idempotency-Key": name} if name else {})
    query = more.pop("query", "")
    return client.post(f"/v1/detect{query}", files={"image": picture}, data={"text": text}, headers=headers, **more)


def _batch(client: TestClient, items: list[Any], name: str | None = "1") -> Any:
    headers = {"Idempotency-Key": name} if name else {}
    return client.post("/v1/detect/batch", json={"items": items}, headers=headers)


def test_a_request_that_is_sent_again_gets_the_first_response_and_is_judged_once(
    client: TestClient, detector: FixedDetector, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "asap.requests"):
        first, again = _send(client), _send(client)
    assert first.status_code == again.status_code == 200
    assert first.json() == again.json()
    assert (first.headers.get("idempotency-replayed"), again.headers["idempotency-replayed"]) == (None, "true")
    assert again.headers["content-type"] == first.headers["content-type"]
    assert again.headers["x-request-id"] != first.headers["x-request-id"]
    assert len(detector.texts) == 1
    lines = [json.loads(record.message) for record in caplog.records]
    assert [(line["replayed"], len(line["pairs"])) for line in lines] == [(False, 1), (True, 0)]
    as_json = client.post("/v1/detect", json=PAIR, headers={"Idempotency-Key": "1"})
    assert as_json.json() == first.json(), "the same pair in another form of the request is the same pair"
    assert [_send(client, name=None).status_code for _ in range(2)] == [200, 200]
    assert len(detector.texts) == 3


@pytest.mark.parametrize("change", [{"picture": OTHER}, {"text": "A quay"}], ids=["picture", "text"])
def test_another_pair_with_the_same_name_is_refused(client: TestClient, change: dict[str, Any]) -> None:
    assert _send(client).status_code == 200
    answer = _send(client, **change)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (422, "invalid_field", "Idempotency-Key")
    assert _send(client, name="2", **change).status_code == 200


def test_a_name_counts_for_one_route_one_query_and_one_key(detector: FixedDetector) -> None:
    (key, line), (other, other_line) = new_key("desk"), new_key("web")
    with api(detector, Keyring.parse([line, other_line], "here")) as client:
        for holder, query in ((key, ""), (other, ""), (key, "?evidence=image")):
            answer = _send(client, query=query, headers={"authorization": f"Bearer {holder}"})
            assert answer.status_code == 200
            assert "idempotency-replayed" not in answer.headers
    assert len(detector.texts) == 3


def test_a_query_that_says_the_same_in_other_characters_is_the_same_request(
    client: TestClient, detector: FixedDetector
) -> None:
    answers = [_send(client, query=query) for query in ("", "?", "?" + "&" * 2000)]
    answers += [_send(client, name="2", query=query) for query in ("?evidence=image", "?&%65vidence=imag%65")]
    assert [answer.headers.get("idempotency-replayed") for answer in answers] == [None, "true", "true", None, "true"]
    assert len(detector.texts) == 2


def test_a_request_that_is_sent_again_is_charged_for_its_reading_only(detector: FixedDetector) -> None:
    key, line = new_key("desk")
    headers, long_text = {"authorization": f"Bearer {key}"}, " ".join(["river"] * 120)  # three passes
    with api(detector, Keyring.parse([line], "here"), key_rate=1e-6, key_burst=9, max_batch_items=2) as client:
        left = [_send(client, text=long_text, headers=headers).headers["ratelimit-remaining"] for _ in range(3)]
    assert left == ["6", "5", "4"]


@pytest.mark.parametrize("name", ["", "a b", "x" * 256, "ключ".encode(), "a\tb"], ids=str)
def test_a_name_that_is_malformed_is_refused(client: TestClient, name: str | bytes) -> None:
    answer = client.post("/v1/detect", json=PAIR, headers=[("Idempotency-Key", name)])
    assert answer.status_code == 422
    assert answer.json()["error"]["param"] == "Idempotency-Key"
    assert _send(client, name="!" * 255).status_code == 200


def test_two_names_of_one_request_are_refused(client: TestClient) -> None:
    answer = client.post("/v1/detect", json=PAIR, headers=[("Idempotency-Key", "1"), ("Idempotency-Key", "1")])
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "invalid_field")
    assert "given twice" in answer.json()["error"]["message"]


def test_the_same_request_is_not_judged_twice_at_once() -> None:
    class Held(FixedDetector):
        def __init__(self) -> None:
            super().__init__()
            self.entered, self.released = threading.Event(), threading.Event()

        async def detect(self, image: Any, text: str | None) -> Finding:
            self.entered.set()
            await asyncio.to_thread(self.released.wait, HANG_S)
            return await super().detect(image, text)

    detector = Held()
    with api(detector) as client, ThreadPoolExecutor(1) as threads:
        first = threads.submit(_send, client)
        detector.entered.wait(HANG_S)
        again = _send(client)
        detector.released.set()
        assert (again.status_code, again.json()["error"]["code"], again.headers["retry-after"]) == (
            409, "in_progress", "2",
        )  # fmt: skip
        assert first.result(HANG_S).status_code == 200
        assert _send(client).headers["idempotency-replayed"] == "true"


def test_a_failure_is_not_kept() -> None:
    class Starting(FixedDetector):
        async def detect(self, image: Any, text: str | None) -> Finding:
            if len(self.texts) < 2:
                self.texts.append(text)
                raise NotReady("loading")
            return await super().detect(image, text)

    with api(Starting()) as client:
        assert [_send(client).status_code for _ in range(3)] == [503, 503, 200]
    with api(Starting()) as client:
        answers = [_batch(client, [PAIR]) for _ in range(4)]
    assert [answer.json()["items"][0]["status"] for answer in answers] == [503, 503, 200, 200]
    assert ["idempotency-replayed" in answer.headers for answer in answers] == [False, False, False, True]


def test_a_batch_that_is_sent_again_gets_the_first_response_also_for_its_malformed_pairs(
    client: TestClient, detector: FixedDetector
) -> None:
    first, again = (_batch(client, [PAIR, {}]) for _ in range(2))
    assert first.json() == again.json()
    assert [item["status"] for item in again.json()["items"]] == [200, 422]
    assert len(detector.texts) == 1
    assert _batch(client, [PAIR, {"text": "A quay"}]).status_code == 422


def test_each_pair_of_a_batch_has_an_id_and_the_name_that_its_caller_gave_it(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    items = [PAIR, PAIR | {"custom_id": "page-1"}, {"custom_id": "page-2"}, "nothing"]
    with caplog.at_level(logging.INFO, "asap.requests"):
        answer = _batch(client, items, None)
    request_id = answer.headers["x-request-id"]
    got = BatchResponse.model_validate(answer.json()).items
    assert [item.id for item in got] == [f"{request_id}-{position}" for position in range(4)]
    assert [item.custom_id for item in got] == [None, "page-1", "page-2", None]
    assert [item.status for item in got] == [200, 200, 422, 422]
    assert [item.result.id for item in got[:2] if item.result] == [f"{request_id}-0", f"{request_id}-1"]
    assert {item.error.request_id for item in got[2:] if item.error} == {request_id}
    logged = json.loads(caplog.records[-1].message)["pairs"]
    assert sorted(pair["id"] for pair in logged) == [f"{request_id}-0", f"{request_id}-1"]


def test_a_name_that_two_pairs_of_a_batch_have_is_refused_for_the_second(client: TestClient) -> None:
    answer = _batch(client, [PAIR | {"custom_id": "a"}, PAIR | {"custom_id": "a"}, PAIR | {"custom_id": "b"}], None)
    items = answer.json()["items"]
    assert [item["status"] for item in items] == [200, 422, 200]
    assert (items[1]["custom_id"], items[1]["error"]["param"]) == ("a", "custom_id")


@pytest.mark.parametrize("name", ["", "x" * 201, 7, None, "a \ud83d name", ["a"]], ids=str)
def test_a_name_of_a_pair_that_is_malformed_is_not_repeated(client: TestClient, name: Any) -> None:
    content = json.dumps({"items": [PAIR | {"custom_id": name}, PAIR | {"custom_id": "x" * 200}]})
    answer = client.post("/v1/detect/batch", content=content, headers={"content-type": "application/json"})
    first, second = answer.json()["items"]
    assert (first["status"], first["custom_id"]) == (200 if name is None else 422, None)
    assert (second["status"], second["custom_id"]) == (200, "x" * 200)


def test_a_single_pair_takes_no_name(client: TestClient) -> None:
    answer = client.post("/v1/detect", json=PAIR | {"custom_id": "a"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "custom_id")
