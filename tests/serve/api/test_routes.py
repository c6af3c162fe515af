import asyncio
import base64
import gzip
import hashlib
import io
import json
import logging
import os
import pickle
import re
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import replace
from typing import Any

import jsonschema
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image

from asap.errors import ModelError
from asap.familiarity import MIN_PAIRS, Familiarity, PairFeatures
from asap.finding import Finding, Pair
from asap.limits import Limits
from asap.predictor import Predictor
from asap.preprocessing.images import PreparedImage
from asap.weights.model_folder import load_folder
from serve.api.callers.keys import Keyring, new_key
from serve.errors import NotReady, Overloaded, Refused
from serve.schemas import ModelCard
from tests.support.event_loop import SimulatedTimeLoop, advance_clock
from tests.support.pictures import draw_jpeg
from tests.support.serving import TEXT, LocalDetector, api, encoded
from tests.support.waiting import HANG_S, Clock

PICTURE = encoded()
BASE64 = base64.b64encode(PICTURE).decode()
PALE = encoded(kind="BMP", color=(0xBE, 0xEF, 0xFB)) + b"\xff"
"""A picture whose base64 has a plus, a slash and padding."""
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor.from_folder("demo", "cpu")


@pytest.fixture(scope="module")
def client(predictor: Predictor) -> Iterator[TestClient]:
    with api(
        LocalDetector(predictor), max_image_bytes=60_000, max_image_pixels=100_000, max_text_chars=200,
        max_batch_items=6, max_batch_bytes=300_000,
    ) as client:  # fmt: skip
        yield client


def _short(value: Any) -> str | None:
    """Return the length of a long value as its part of a test's name, instead of a whole picture."""
    return str(len(value)) if isinstance(value, bytes | str) and len(value) > 20 else None


def _send(client: TestClient, picture: bytes = PICTURE, text: str = TEXT, query: str = "", **more: Any) -> Any:
    return client.post(f"/v1/detect{query}", files={"image": ("a.png", picture)}, data={"text": text}, **more)


def _check(client: TestClient, name: str, answer: Any) -> None:
    """Check an answer against the OpenAPI document's schema of that name."""
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    text = json.dumps(schemas[name] | {"$defs": schemas}).replace("#/components/schemas/", "#/$defs/")
    jsonschema.validate(answer, json.loads(text))


def _error(client: TestClient, answer: Any, status: int, code: str, param: str | None) -> None:
    assert answer.status_code == status, answer.text
    _check(client, "ErrorResponse", answer.json())
    error = answer.json()["error"]
    assert (error["code"], error["param"], error["request_id"]) == (code, param, answer.headers["x-request-id"])
    assert "Traceback" not in answer.text


def test_a_form_and_json_get_the_same_response_with_the_predictors_score(
    client: TestClient, predictor: Predictor
) -> None:
    form, sent = _send(client), client.post("/v1/detect", json={"image": BASE64, "text": TEXT})
    for answer in (form, sent):
        assert answer.status_code == 200, answer.text
        _check(client, "Detection", answer.json())
        assert answer.headers["x-request-id"] == answer.json()["id"]
    varying = {"id", "timings"}
    first, second = ({k: v for k, v in answer.json().items() if k not in varying} for answer in (form, sent))
    assert first == second
    expected = predictor.predict([Pair(PICTURE, TEXT)])[0]
    assert first["score"] == pytest.approx(expected.score)
    assert first["input"] == {"sha256": expected.image_sha256, "width": 64, "height": 48}
    assert set(form.json()["timings"]) == {"read", "decode", "detect", "total"}


def test_a_data_url_is_accepted(client: TestClient) -> None:
    answer = client.post("/v1/detect", json={"image": f"data:image/png;base64,{BASE64}", "text": TEXT})
    assert answer.status_code == 200


def test_evidence_is_returned_in_pixels_fractions_and_words_and_drawn_on_request() -> None:
    from asap.finding import Word

    class Sure:
        async def about(self) -> ModelCard:
            return ModelCard(model_id="m", policy_id="p", image_size=32, thresholds={}, calibrated=False)

        async def detect(self, image: Any, text: str | None) -> Finding:
            scores: dict[str, float | None] = {"face_swap": 0.9, "face_attribute": 0.1, "text_swap": 0.8}
            return Finding(
                verdict="manipulated", score=0.9, types={**scores, "text_attribute": 0.1},
                flagged_types=["face_swap", "text_swap"], box_px=(16, 12, 32, 24), width=64, height=48,
                words=[Word(1, 2, 9, "smiling", 0.8)], image_sha256=image.sha256, model_id="m", policy_id="p",
            )  # fmt: skip

    with api(Sure()) as client:
        answer = _send(client, query="?evidence=image").json()
        _check(client, "Detection", answer)
        evidence = answer["evidence"]
        assert evidence["box_px"] == {"x0": 16, "y0": 12, "x1": 32, "y1": 24}
        assert evidence["box"] == {"x0": 0.25, "y0": 0.25, "x1": 0.5, "y1": 0.5}
        assert evidence["words"] == [{"index": 1, "start": 2, "end": 9, "word": "smiling", "score": 0.8}]
        assert answer["types"]["text_swap"] == {"score": 0.8, "flagged": True}
        kind, _, data = evidence["image"].partition(",")
        assert kind == "data:image/jpeg;base64"
        assert base64.b64decode(data).startswith(b"\xff\xd8\xff")
        assert _send(client).json()["evidence"]["image"] is None


@pytest.fixture(scope="module")
def predictor_of_drawings() -> Predictor:
    """A predictor that knows its limits, but has seen nothing like the pictures and texts of these tests."""
    folder = load_folder("demo")
    features = Predictor(folder, device="cpu").features([Pair(PICTURE, TEXT)])
    noise = torch.Generator().manual_seed(0)

    def sample() -> PairFeatures:
        return PairFeatures(
            *(part + 1000 + torch.randn(MIN_PAIRS, part.shape[1], generator=noise) for part in features)
        )

    familiarity = Familiarity.fit(sample(), sample(), {"corpus": "noise"})
    limits = Limits(made_from="drawings", not_for="photographs")
    return Predictor(replace(folder, familiarity=familiarity, limits=limits), device="cpu")


def test_an_unfamiliar_pair_has_the_reason_and_the_limits_instead_of_evidence(predictor_of_drawings: Predictor) -> None:
    with api(LocalDetector(predictor_of_drawings)) as client:
        response = _send(client, query="?evidence=image")
        assert response.status_code == 200, response.text
        answer = response.json()
        _check(client, "Detection", answer)
        metrics = client.get("/metrics").text
    assert answer["verdict"] == "unfamiliar"
    assert answer["unfamiliar_parts"] == ["image", "text"]
    assert {answer[name] < 0.005 for name in ("familiarity", "familiarity_image", "familiarity_text")} == {True}
    assert answer["limits"].endswith("Do not use it for photographs.")
    assert not any(scored["flagged"] for scored in answer["types"].values())
    evidence = answer["evidence"]
    assert evidence["note"] == "Not judged: the model has seen nothing like this picture and text."
    assert (evidence["box"], evidence["box_px"], evidence["words"]) == (None, None, [])
    drawn = Image.open(io.BytesIO(base64.b64decode(evidence["image"].partition(",")[2])))
    assert len(drawn.convert("RGB").quantize(4).getcolors()) == 1, "nothing is drawn on the picture of one color"
    assert 'asap_pairs_total{replica="only",verdict="unfamiliar"} 1.0' in metrics


def test_a_model_states_its_limits_and_how_it_knows_its_own_pairs(
    client: TestClient, predictor_of_drawings: Predictor
) -> None:
    with api(LocalDetector(predictor_of_drawings)) as other:
        (model,) = other.get("/v1/models").json()["models"]
    familiarity = predictor_of_drawings.familiarity
    assert familiarity is not None
    assert model["familiarity_id"] == familiarity.familiarity_id
    assert model["limits"] == predictor_of_drawings.limits
    assert model["thresholds"]["unfamiliar"] == 0.005
    fields = client.get("/openapi.json").json()["components"]["schemas"]["ModelCard"]["properties"]
    assert "Null if the model has none: it then judges every pair" in fields["familiarity_id"]["description"]


def test_a_model_without_a_familiarity_file_says_so_and_judges_every_pair(predictor: Predictor) -> None:
    with api(LocalDetector(Predictor(replace(load_folder("demo"), familiarity=None), device="cpu"))) as client:
        (model,) = client.get("/v1/models").json()["models"]
        answer = _send(client).json()
    assert model["familiarity_id"] is None
    assert (answer["familiarity"], answer["familiarity_id"]) == (None, None)
    assert answer["verdict"] != "unfamiliar"


def test_the_reference_explains_the_verdict_unfamiliar(client: TestClient) -> None:
    assert "`unfamiliar` says that the model has seen nothing like the pair, so it was not judged" in (
        client.get("/docs").text
    )


def test_a_card_of_an_earlier_version_is_shown_with_the_defaults_of_newer_fields() -> None:
    card = ModelCard(model_id="m", policy_id="p", image_size=32, thresholds={}, calibrated=False)
    del card.__dict__["limits"], card.__dict__["familiarity_id"]

    class Earlier(_Troubled):
        async def about(self) -> ModelCard:
            again: ModelCard = pickle.loads(pickle.dumps(card))  # noqa: S301 - Ray does so between detectors and the API
            return again

    with api(Earlier(0.0)) as client:
        (model,) = client.get("/v1/models").json()["models"]
        _error(client, _send(client), 500, "model_error", None)
    assert (model["limits"], model["familiarity_id"]) == ("", None)


@pytest.mark.parametrize(
    ("picture", "text", "status", "code", "param"),
    [
        (draw_jpeg(1)[:200], TEXT, 400, "decode_failed", "image"),
        (b"no picture at all", TEXT, 400, "unsupported_format", "image"),
        (b"", TEXT, 400, "empty_file", "image"),
        (PICTURE, "", 400, "text_missing", "text"),
        (PICTURE, "... !", 400, "text_invalid", "text"),
        (PICTURE, "الرئيس يفتتح الجسر", 400, "text_unreadable", "text"),
        (encoded((400, 300)), TEXT, 413, "too_large", "image"),
        (PICTURE + bytes(60_000), TEXT, 413, "too_large", "image"),
        (PICTURE, "word " * 60, 413, "too_large", "text"),
        (PICTURE, "word " * 600, 413, "too_large", "text"),
        (PICTURE + bytes(200_000), TEXT, 413, "too_large", None),
    ],
    ids=_short,
)
def test_an_unreadable_pair_is_refused_with_its_field(
    client: TestClient, picture: bytes, text: str, status: int, code: str, param: str | None
) -> None:
    _error(client, _send(client, picture, text), status, code, param)


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        (b"{broken", 400, "json_invalid", None),
        (b"[" * 100_000, 400, "json_invalid", None),
        (b"\xff\xfe\x00", 400, "json_invalid", None),
        (b"[]", 422, "invalid_field", None),
        (json.dumps({"image": BASE64}), 422, "invalid_field", "text"),
        (json.dumps({"text": TEXT}), 422, "invalid_field", None),
        (json.dumps({"image": BASE64, "text": TEXT, "colour": 1}), 422, "invalid_field", "colour"),
        (json.dumps({"image": BASE64, "text": 7}), 422, "invalid_field", "text"),
        (json.dumps({"image": "né", "text": TEXT}), 400, "base64_invalid", "image"),
        (json.dumps({"image": BASE64, "text": "A \ud83d team"}), 400, "text_invalid", "text"),
        (json.dumps({"uri": "https://example.com/a.jpg", "text": TEXT}), 403, "uri_not_allowed", "uri"),
        (json.dumps({"uri": "file:///etc/passwd", "text": TEXT}), 403, "uri_not_allowed", "uri"),
        (json.dumps({"uri": "https://[", "text": TEXT}), 400, "uri_invalid", "uri"),
        (json.dumps({"uri": "https://x/".ljust(2048, "a"), "text": TEXT}), 403, "uri_not_allowed", "uri"),
        (json.dumps({"uri": "https://x/".ljust(2049, "a"), "text": TEXT}), 422, "invalid_field", "uri"),
        (json.dumps({"uri": "https://x/\ud83d", "text": TEXT}), 422, "invalid_field", "uri"),
        (b"[" + b"[]," * 5000 + b"[]]", 413, "too_large", None),
    ],
    ids=_short,
)  # fmt: skip
def test_invalid_json_is_refused_with_its_field(
    client: TestClient, body: bytes, status: int, code: str, param: str | None
) -> None:
    answer = client.post("/v1/detect", content=body, headers={"content-type": "application/json"})
    if code == "text_invalid" and answer.status_code == 422:
        code, status = "invalid_field", 422
    _error(client, answer, status, code, param)


def test_malformed_requests_get_the_error_envelope(client: TestClient) -> None:
    _error(client, client.post("/v1/detect", content=b"x"), 415, "unsupported_media_type", None)
    _error(client, client.post("/v1/detect/batch", data={"a": "b"}), 415, "unsupported_media_type", None)
    _error(client, _send(client, query="?evidence=video"), 422, "invalid_field", "evidence")


@pytest.mark.parametrize("path", ["/v2/nothing", "/page/nothing.js", "/page", "/v1/detect/", "/v1/models/", "/docs/"])
def test_an_unknown_route_is_not_found_and_leads_to_no_other_host(client: TestClient, path: str) -> None:
    answer = client.get(path, headers={"host": "evil.example"}, follow_redirects=False)
    _error(client, answer, 404, "not_found", None)
    assert "evil.example" not in str(answer.headers)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/detect", {"POST"}),
        ("HEAD", "/v1/detect", {"POST"}),
        ("PUT", "/v1/detect/batch", {"POST"}),
        ("DELETE", "/v1/models", {"GET", "HEAD"}),
        ("POST", "/", {"GET", "HEAD"}),
        ("POST", "/healthz", {"GET", "HEAD"}),
        ("POST", "/metrics", {"GET", "HEAD"}),
        ("POST", "/openapi.json", {"GET", "HEAD"}),
        ("POST", "/page/page.js", {"GET", "HEAD"}),
        ("OPTIONS", "/v1/detect", {"POST"}),
    ],
)
def test_another_method_than_a_route_has_is_refused_with_those_that_it_has(
    client: TestClient, method: str, path: str, allowed: set[str]
) -> None:
    answer = client.request(method, path)
    assert answer.status_code == 405
    assert set(answer.headers["allow"].split(", ")) == allowed
    if method != "HEAD":
        _error(client, answer, 405, "method_not_allowed", None)


@pytest.mark.parametrize(
    "path", ["/", "/docs", "/openapi.json", "/healthz", "/readyz", "/v1/models", "/metrics", "/page/page.js"]
)
def test_head_gets_the_response_to_get_without_its_body(client: TestClient, path: str) -> None:
    head, get = client.head(path), client.get(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == get.headers["content-type"]


def test_the_log_has_the_method_that_was_sent_and_refused_readers_of_the_metrics(
    predictor: Predictor, caplog: pytest.LogCaptureFixture
) -> None:
    keyring = Keyring.parse([new_key("desk")[1]], "here")
    with caplog.at_level(logging.INFO, "asap.requests"), api(LocalDetector(predictor), keyring) as client:
        for path in ("/v1/models", "/metrics", "/healthz"):
            client.head(path)
    lines = [json.loads(record.message) for record in caplog.records if record.name == "asap.requests"]
    assert [(line["method"], line["route"], line["status"], line["key"]) for line in lines] == [
        ("HEAD", "/v1/models", 401, None), ("HEAD", "/metrics", 401, None),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("query", "param", "reason"),
    [
        ("?evidance=image", "evidance", "may not have this field"),
        ("?evidence=image&evidence=image", "evidence", "given twice"),
        ("?evidence=image&Evidence=image", "Evidence", "may not have this field"),
        (f"?{'x' * 500}", "x" * 40, "may not have this field"),
    ],
)
def test_unknown_and_doubled_fields_of_a_query_are_refused_by_their_name(
    client: TestClient, query: str, param: str, reason: str
) -> None:
    for answer in (_send(client, query=query), client.post(f"/v1/detect/batch{query}", json={"items": [{}]})):
        _error(client, answer, 422, "invalid_field", param)
        assert reason in answer.json()["error"]["message"]
    _error(client, client.get("/v1/models?evidence=image"), 422, "invalid_field", "evidence")


@pytest.mark.parametrize(
    "encoded_picture",
    [
        base64.encodebytes(PALE).decode(),
        base64.encodebytes(PALE).decode().replace("\n", "\r\n\t "),
        base64.urlsafe_b64encode(PALE).decode(),
        base64.urlsafe_b64encode(PALE).decode().rstrip("="),
        base64.b64encode(PALE).decode().rstrip("="),
        f"data:image/bmp;base64,{base64.b64encode(PALE).decode()}",
        f"DATA:;BASE64,{base64.urlsafe_b64encode(PALE).decode()}",
    ],
    ids=["lines", "white space", "URL-safe", "URL-safe, not padded", "not padded", "data: URL", "data: URL, URL-safe"],
)
def test_base64_of_every_usual_form_is_decoded(client: TestClient, encoded_picture: str) -> None:
    answer = client.post("/v1/detect", json={"image": encoded_picture, "text": TEXT})
    assert answer.status_code == 200, answer.text
    assert answer.json()["input"]["sha256"] == hashlib.sha256(PALE).hexdigest()


@pytest.mark.parametrize(
    "not_base64", ["n\u00e9", "AAAA=AAA", "A", "AAAA*", "photo,AAAA", "data:image/png,AAAA", "data:image/png;base64"]
)
def test_what_is_not_base64_is_refused(client: TestClient, not_base64: str) -> None:
    answer = client.post("/v1/detect", json={"image": not_base64, "text": TEXT})
    _error(client, answer, 400, "base64_invalid", "image")


@pytest.mark.parametrize("coding", ["gzip", "br", "deflate, gzip", "x" * 500])
@pytest.mark.parametrize("path", ["/v1/detect", "/v1/detect/batch"])
def test_a_compressed_body_is_refused_with_what_is_accepted(client: TestClient, path: str, coding: str) -> None:
    body = gzip.compress(json.dumps({"image": BASE64, "text": TEXT}).encode())
    headers = {"content-type": "application/json", "content-encoding": coding}
    answer = client.post(path, content=body, headers=headers)
    _error(client, answer, 415, "unsupported_media_type", None)
    assert answer.headers["accept-encoding"] == "identity"
    assert f"compressed ({coding[:40]})" in answer.json()["error"]["message"]


def test_a_body_that_says_that_it_is_not_compressed_is_read(client: TestClient) -> None:
    headers = {"content-encoding": "identity"}
    assert client.post("/v1/detect", json={"image": BASE64, "text": TEXT}, headers=headers).status_code == 200


def test_a_key_of_json_that_is_given_twice_is_named_and_affects_no_other_pair(client: TestClient) -> None:
    pair = json.dumps({"image": BASE64, "text": TEXT})
    doubled = f'{pair[:-1]}, "text": "Another text"}}'
    headers = {"content-type": "application/json"}
    answer = client.post("/v1/detect", content=doubled, headers=headers)
    _error(client, answer, 422, "invalid_field", "text")
    assert "given twice" in answer.json()["error"]["message"]
    batch = client.post("/v1/detect/batch", content=f'{{"items": [{pair}, {doubled}]}}', headers=headers)
    assert [item["status"] for item in batch.json()["items"]] == [200, 422]
    twice = client.post("/v1/detect/batch", content=f'{{"items": [{pair}], "items": [{pair}]}}', headers=headers)
    _error(client, twice, 422, "invalid_field", "items")


@pytest.mark.parametrize(
    ("pair", "param"),
    [(r'{"\ud800": 1, "\ud800": 2}', "?"), (r'{"text": "A river", "\ud800": 1}', None)],
    ids=["doubled", "unknown"],
)
def test_a_name_that_is_no_unicode_is_refused_and_affects_no_other_pair(
    client: TestClient, caplog: pytest.LogCaptureFixture, pair: str, param: str | None
) -> None:
    headers = {"content-type": "application/json"}
    _error(client, client.post("/v1/detect", content=pair, headers=headers), 422, "invalid_field", param)
    good = json.dumps({"image": BASE64, "text": TEXT})
    batch = client.post("/v1/detect/batch", content=f'{{"items": [{pair}, {good}]}}', headers=headers)
    assert [item["status"] for item in batch.json()["items"]] == [422, 200]
    assert batch.json()["items"][0]["error"]["param"] == param
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("path", ["/v1/detect", "/v1/detect/batch"])
def test_a_long_unknown_key_of_json_is_not_repeated_whole(client: TestClient, path: str) -> None:
    answer = client.post(path, json={"x" * 50_000: 1, "items": [1], "image": BASE64, "text": TEXT})
    _error(client, answer, 422, "invalid_field", "x" * 40)
    assert len(answer.content) < 500
    item = client.post("/v1/detect/batch", json={"items": [{"image": BASE64, "text": TEXT, "x" * 50_000: 1}]})
    assert item.json()["items"][0]["error"]["param"] == "x" * 40


@pytest.mark.parametrize("hosts", [[], [""], [" "], ["127.0.0.1", "127.0.0.1"], ["127.0.0.1", "evil.example"]], ids=str)
@pytest.mark.parametrize("path", ["/v1/models", "/v1/detect", "/healthz", "/"])
def test_a_request_without_the_name_of_one_host_is_refused(client: TestClient, hosts: list[str], path: str) -> None:
    status, body = _ask(client, path, hosts, "1.1")
    assert (status, json.loads(body)["error"]["code"]) == (400, "bad_request")
    assert b"one Host header" in body


def test_a_probe_of_http_1_0_needs_no_host(client: TestClient) -> None:
    assert _ask(client, "/healthz", [], "1.0") == (200, b'{"status":"ok"}')


def _ask(client: TestClient, path: str, hosts: list[str], version: str) -> tuple[int, bytes]:
    """Return status and body of a GET with any number of Host headers, which no client would send."""
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": "GET", "path": path, "query_string": b"", "scheme": "http", "http_version": version,
        "headers": [(b"host", host.encode()) for host in hosts], "client": ("127.0.0.1", 5000),
        "server": ("127.0.0.1", 8000),
    }  # fmt: skip
    asyncio.run(client.app(scope, receive, send))
    return sent[0]["status"], b"".join(message["body"] for message in sent[1:])


@pytest.mark.parametrize(
    "failure",
    [None, RuntimeError("the call was cancelled"), asyncio.CancelledError()],
    ids=["message", "error", "cancel"],
)
@pytest.mark.parametrize("kind", ["multipart/form-data; boundary=b", "application/json"])
def test_a_caller_that_hangs_up_while_it_sends_is_logged_as_499_without_a_traceback(
    predictor: Predictor, caplog: pytest.LogCaptureFixture, kind: str, failure: BaseException | None
) -> None:
    messages = iter([{"type": "http.request", "body": b"--b\r\n", "more_body": True}])

    async def receive() -> Any:
        for message in messages:
            return message
        if failure is not None:
            raise failure
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        raise AssertionError(f"nobody waits for {message}")

    scope = {
        "type": "http", "method": "POST", "path": "/v1/detect", "query_string": b"", "scheme": "http",
        "http_version": "1.1", "headers": [(b"host", b"127.0.0.1"), (b"content-type", kind.encode())],
        "client": ("127.0.0.1", 5000), "server": ("127.0.0.1", 8000),
    }  # fmt: skip
    with caplog.at_level(logging.INFO, "asap.requests"), api(LocalDetector(predictor)) as client:
        with suppress(asyncio.CancelledError):
            asyncio.run(client.app(scope, receive, send))
        metrics = client.get("/metrics").text
    assert [json.loads(record.message)["status"] for record in caplog.records] == [499]
    assert not any(record.exc_info for record in caplog.records)
    assert 'asap_requests_total{replica="only",route="/v1/detect",status="499"} 1.0' in metrics
    assert 'status="500"' not in metrics


@pytest.mark.parametrize("path", ["/v1/detect", "/v1/detect/batch"])
@pytest.mark.parametrize("has_arrived", [False, True])
def test_a_body_that_arrives_too_late_is_the_senders_fault_and_a_late_answer_is_not(
    path: str, has_arrived: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from serve.api.requests import RequestReader

    sent: list[Any] = []

    async def receive() -> Any:
        if not has_arrived:
            await asyncio.sleep(2 * HANG_S)
        return {"type": "http.request", "body": b"{}", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    async def read_slowly(reader: RequestReader, request: Any) -> Any:
        await request.body()
        await asyncio.sleep(2 * HANG_S)

    scope = {
        "type": "http", "method": "POST", "path": path, "query_string": b"", "scheme": "http", "http_version": "1.1",
        "headers": [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")], "client": ("127.0.0.1", 5000),
        "server": ("127.0.0.1", 8000),
    }  # fmt: skip
    for name in ("read_pair", "read_batch"):
        monkeypatch.setattr(RequestReader, name, read_slowly)
    with api(_Troubled(0.0)) as client, asyncio.Runner(loop_factory=SimulatedTimeLoop) as runner:
        runner.run(client.app(scope, receive, send))
    headers, error = dict(sent[0]["headers"]), json.loads(sent[1]["body"])["error"]
    expected = (504, "deadline", None) if has_arrived else (408, "body_late", b"close")
    assert (sent[0]["status"], error["code"], headers.get(b"connection")) == expected


def test_every_megapixel_limit_that_is_stated_is_the_servers_own(client: TestClient) -> None:
    bomb = bytearray(encoded(kind="BMP"))
    bomb[18:26] = struct.pack("<II", 60_000, 60_000)
    for picture in (encoded((400, 300)), bytes(bomb)):
        answer = _send(client, picture)
        _error(client, answer, 413, "too_large", "image")
        assert "the limit is 100000" in answer.json()["error"]["message"]


@pytest.mark.parametrize("knows_its_pairs", [True, False])
def test_a_verdict_on_a_strip_of_pixels_says_that_it_is_a_guess(knows_its_pairs: bool) -> None:
    folder = load_folder("demo")
    model = folder if knows_its_pairs else replace(folder, familiarity=None)
    with api(LocalDetector(Predictor(model, device="cpu"))) as client:
        answer = _send(client, encoded((8000, 20))).json()
    assert any("8000 x 20 pixels" in warning and "a verdict is a guess" in warning for warning in answer["warnings"])
    has_evidence = any(scored["flagged"] for scored in answer["types"].values()) or answer["evidence"]["words"]
    if knows_its_pairs:
        assert answer["verdict"] == "unfamiliar"
    assert answer["evidence"]["note"] or has_evidence or answer["verdict"] == "authentic"


def test_each_pair_of_a_batch_has_its_own_status(client: TestClient) -> None:
    good, bad = {"image": BASE64, "text": TEXT}, {"image": "AAAA", "text": TEXT}
    nowhere = {"uri": "https://[", "text": TEXT}
    answer = client.post("/v1/detect/batch", json={"items": [good, bad, "nothing", {"text": TEXT}, nowhere, good]})
    assert answer.status_code == 200, answer.text
    _check(client, "BatchResponse", answer.json())
    items = answer.json()["items"]
    assert [item["status"] for item in items] == [200, 400, 422, 422, 400, 200]
    assert items[0]["result"]["score"] == items[5]["result"]["score"]
    assert [item["error"] and item["error"]["code"] for item in items] == [
        None, "unsupported_format", "invalid_field", "invalid_field", "uri_invalid", None,
    ]  # fmt: skip


class _Picky(LocalDetector):
    """A detector that fails on one text, and never finishes another."""

    async def detect(self, image: PreparedImage, text: str | None) -> Finding:
        if text == "fail":
            self.detected += 1
            raise RuntimeError("secret")
        if text == "hang":
            while self.detected < 3:  # the others of its batch
                await asyncio.sleep(0.01)
            advance_clock(HANG_S)
            await asyncio.Event().wait()
        return await super().detect(image, text)


def test_a_pair_that_fails_or_is_late_does_not_affect_others_of_its_batch(
    predictor: Predictor, caplog: pytest.LogCaptureFixture
) -> None:
    items = [{"image": BASE64, "text": text} for text in (TEXT, "fail", "hang", TEXT)]
    with api(_Picky(predictor)) as client:
        answer = client.post("/v1/detect/batch", json={"items": items})
    assert [item["status"] for item in answer.json()["items"]] == [200, 500, 504, 200]
    assert "secret" not in answer.text
    assert "RuntimeError: secret" in caplog.text


def test_a_batch_is_charged_before_it_is_read(predictor: Predictor) -> None:
    key, line = new_key("desk")
    bearer = {"Authorization": f"Bearer {key}"}
    keyring = Keyring.parse([line], "test")
    with api(LocalDetector(predictor), keyring, key_rate=1e-6, key_burst=2, max_batch_items=2) as client:
        broken = {"content": b"{", "headers": bearer | {"content-type": "application/json"}}
        statuses = [client.post("/v1/detect/batch", **broken).status_code for _ in range(3)]
    assert statuses == [400, 400, 429]


class _Replaced(LocalDetector):
    """A detector whose model can be replaced by one of a larger input size."""

    replaced = False

    async def about(self) -> ModelCard:
        model = await super().about()
        if not self.replaced:
            return model
        return model.model_copy(update={"model_id": "next", "image_size": 2 * model.image_size})

    async def detect(self, image: PreparedImage, text: str | None) -> Finding | ModelCard:  # type: ignore[override]
        model = await self.about()
        if image.pixels.shape[0] != model.image_size:
            return model
        half = replace(image, pixels=image.pixels[:: model.image_size // 128, :: model.image_size // 128])
        return replace(await super().detect(half, text), model_id=model.model_id)


def test_the_next_pair_notices_an_update_to_a_model_of_another_size(predictor: Predictor) -> None:
    backend = _Replaced(predictor)
    with api(backend) as client:
        assert _send(client).json()["model_id"] == predictor.model_id
        backend.replaced = True
        assert _send(client).json()["model_id"] == "next"
        assert client.get("/v1/models").json()["models"][0]["image_size"] == 256
        backend.replaced = False
        assert _send(client).json()["model_id"] == predictor.model_id


def test_an_allowed_page_of_another_site_can_read_refusals_too(predictor: Predictor) -> None:
    origin = {"Origin": "https://desk.example"}
    preflight = origin | {"Access-Control-Request-Method": "POST"}
    preflight |= {"Access-Control-Request-Headers": "authorization,content-type,x-request-id"}
    settings = {"max_in_flight": 1, "cors_origins": ("https://desk.example",)}
    backend = _Held()
    with api(backend, **settings) as client, ThreadPoolExecutor(3) as threads:
        answers = backend.answers([threads.submit(_send, client, headers=origin) for _ in range(3)], held=1)
        assert client.options("/v1/detect", headers=preflight).status_code == 200
    assert sorted(answer.status_code for answer in answers) == [429, 429, 500]
    assert {answer.headers["access-control-allow-origin"] for answer in answers} == {"https://desk.example"}


@pytest.mark.parametrize(
    "asked", [{"Origin": "https://evil.example"}, {"Access-Control-Request-Headers": "x-unknown"}], ids=str
)
def test_a_page_that_is_not_allowed_gets_the_error_envelope(predictor: Predictor, asked: dict[str, str]) -> None:
    preflight = {"Origin": "https://desk.example", "Access-Control-Request-Method": "POST"} | asked
    with api(LocalDetector(predictor), cors_origins=("https://desk.example",)) as client:
        answer = client.options("/v1/detect", headers=preflight | {"x-request-id": "mine-1"})
        _error(client, answer, 400, "bad_request", None)
    assert answer.json()["error"]["request_id"] == "mine-1"
    allowed = answer.headers.get("access-control-allow-origin")
    assert allowed == (None if "Origin" in asked else "https://desk.example")


@pytest.mark.parametrize("error", [Overloaded(), NotReady("loading"), Refused(413, "too_large", "long", param="text")])
def test_a_refusal_survives_pickling(error: Refused) -> None:
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - Ray does so for callers of a handle
    assert (type(again), vars(again), str(again)) == (type(error), vars(error), str(error))


def test_json_is_parsed_outside_the_event_loop(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    import serve.api.requests

    loops = []

    def unpack(*arguments: Any, **more: Any) -> bytes:
        loops.append(asyncio._get_running_loop())
        return PICTURE

    monkeypatch.setattr(serve.api.requests.base64, "b64decode", unpack)
    pair = {"image": BASE64, "text": TEXT}
    assert client.post("/v1/detect", json=pair).status_code == 200
    assert client.post("/v1/detect/batch", json={"items": [pair, pair]}).status_code == 200
    assert loops == [None] * 3


def test_a_batch_is_limited_in_pairs_and_bytes(client: TestClient) -> None:
    many = client.post("/v1/detect/batch", json={"items": [{}] * 7})
    _error(client, many, 413, "too_large", "items")
    _error(client, client.post("/v1/detect/batch", json={"items": []}), 422, "invalid_field", "items")
    long = client.post("/v1/detect/batch", json={"items": ["x" * 300_000]})
    _error(client, long, 413, "too_large", None)


def test_the_model_the_state_and_the_metrics_of_the_server_are_shown(client: TestClient, predictor: Predictor) -> None:
    models = client.get("/v1/models").json()
    _check(client, "ModelList", models)
    assert [model["model_id"] for model in models["models"]] == [predictor.model_id]
    assert client.get("/healthz").json() == client.get("/readyz").json() == {"status": "ok"}
    _send(client)
    metrics = client.get("/metrics").text
    assert 'asap_requests_total{replica="only",route="/v1/detect",status="200"}' in metrics
    assert "asap_pairs_total" in metrics


def test_the_reference_and_the_page_load_nothing_from_other_hosts(client: TestClient) -> None:
    for path in ("/", "/docs"):
        answer = client.get(path)
        assert answer.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
        assert not re.search(r"""(src|href)=["']?(http|//)""", answer.text)
    assert "POST /v1/detect/batch" in client.get("/docs").text
    assert "A smiling minister" in client.get("/docs").text
    for example in client.get("/page/examples.json").json():
        answer = _send(client, client.get(f"/page/{example['image']}").content, example["text"])
        assert answer.json()["verdict"] == ("authentic" if example["image"] == "authentic.jpg" else "manipulated")


class _Troubled:
    """A detector that raises an error, or takes some seconds and returns one."""

    def __init__(self, trouble: Exception | float) -> None:
        self.trouble = trouble
        self.cancelled = False

    async def about(self) -> ModelCard:
        if isinstance(self.trouble, NotReady):
            raise self.trouble
        return ModelCard(model_id="m", policy_id="p", image_size=32, thresholds={}, calibrated=False)

    async def detect(self, image: Any, text: str | None) -> Finding:
        if isinstance(self.trouble, Exception):
            raise self.trouble
        try:
            await asyncio.sleep(self.trouble)
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        return Finding(model_id="m", policy_id="p", error=ModelError("CUDA said: secret"))


@pytest.mark.parametrize(
    ("trouble", "status", "code"),
    [
        (Overloaded(), 429, "overloaded"),
        (NotReady("the model is loading"), 503, "not_ready"),
        (RuntimeError("secret"), 500, "internal"),
        (0.0, 500, "model_error"),
    ],
)
def test_errors_behind_the_api_are_reported_without_their_details(
    trouble: Exception | float, status: int, code: str
) -> None:
    with api(_Troubled(trouble)) as client:
        answer = _send(client)
        _error(client, answer, status, code, None)
        assert "secret" not in answer.text
        assert ("retry-after" in answer.headers) == (status in (429, 503))
        assert client.get("/healthz").status_code == 200
        assert client.get("/readyz").status_code == (503 if status == 503 else 200)


class _Late(_Troubled):
    """A detector that is at work when the deadline passes."""

    async def detect(self, image: Any, text: str | None) -> Finding:
        self.trouble = 2 * HANG_S
        asyncio.get_running_loop().call_soon(advance_clock, HANG_S)
        return await super().detect(image, text)


class _Held(_Troubled):
    """A detector that answers only after the requests beyond the limit were refused."""

    def __init__(self) -> None:
        super().__init__(0.0)
        self._go_on = threading.Event()

    async def detect(self, image: Any, text: str | None) -> Finding:
        await asyncio.to_thread(self._go_on.wait, HANG_S)
        return await super().detect(image, text)

    def answers(self, requests: list[Future[Any]], *, held: int) -> list[Any]:
        refused = as_completed(requests, HANG_S)
        try:
            for _ in requests[held:]:
                next(refused)
        finally:
            self._go_on.set()
        return [request.result() for request in requests]


def test_work_is_cancelled_at_the_deadline() -> None:
    backend = _Late(0.0)
    with api(backend) as client:
        _error(client, _send(client), 504, "deadline", None)
    assert backend.cancelled


def test_a_request_beyond_the_limit_in_flight_is_refused_at_once() -> None:
    backend = _Held()
    with api(backend, max_in_flight=2) as client, ThreadPoolExecutor(6) as threads:
        answers = backend.answers([threads.submit(_send, client) for _ in range(6)], held=2)
        metrics = client.get("/metrics").text
    assert sorted(answer.status_code for answer in answers) == [429] * 4 + [500] * 2
    assert 'asap_requests_total{replica="only",route="/v1/detect",status="429"} 4.0' in metrics


def test_a_store_that_hangs_delays_only_the_callers_who_name_it(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrived, requested = threading.Event(), threading.Semaphore(0)

    def hang(*_: Any) -> bytes:
        requested.release()
        arrived.wait(HANG_S)
        return PICTURE

    monkeypatch.setattr("serve.api.routes.fetch_remote_image", hang)
    most = min(32, (os.cpu_count() or 1) + 4)  # threads in the pool that asyncio uses by default
    named = {"uri": "s3://pictures/a.png", "text": TEXT}
    with api(LocalDetector(predictor), batch_size=32) as client, ThreadPoolExecutor(most) as threads:
        waiting = [threads.submit(client.post, "/v1/detect", json=named) for _ in range(most)]
        for _ in waiting:
            requested.acquire()
        assert client.post("/v1/detect", json={"image": BASE64, "text": TEXT}).status_code == 200
        assert not any(wait.done() for wait in waiting)
        arrived.set()
        assert {wait.result().status_code for wait in waiting} == {200}


def test_slow_responses_lower_the_limit(predictor: Predictor) -> None:
    class Slow(LocalDetector):
        async def detect(self, image: PreparedImage, text: str | None) -> Finding:
            await asyncio.sleep(0.05)
            return await super().detect(image, text)

    def limit() -> int:
        return int(re.search(r"asap_requests_limit{.*} (\d+)", client.get("/metrics").text)[1])  # type: ignore[index]

    with api(Slow(predictor), wait_s=0.01) as client:
        assert limit() == 32
        for _ in range(20):
            assert _send(client).status_code == 200
        assert limit() < 32
    with api(LocalDetector(predictor), wait_s=HANG_S / 2) as client:
        for _ in range(5):
            _send(client)
        assert limit() == 37


def test_without_keys_only_this_machine_is_answered(predictor: Predictor) -> None:
    with api(LocalDetector(predictor), caller="10.1.2.3") as client:
        _error(client, _send(client), 403, "keys_required", None)
        assert client.get("/healthz").status_code == 200
    with api(LocalDetector(predictor)) as client:  # a name that an attacker points at this machine
        _error(client, _send(client, headers={"host": "evil.example"}), 403, "keys_required", None)


def test_a_known_key_is_needed_and_the_log_has_its_name_but_neither_key_nor_pair(
    predictor: Predictor, caplog: pytest.LogCaptureFixture
) -> None:
    key, line = new_key("desk")
    headers = {"authorization": f"Bearer {key}", "x-request-id": "mine-1"}
    with api(LocalDetector(predictor), Keyring.parse([line], "here"), caller="10.1.2.3") as client:
        _error(client, _send(client), 401, "unauthorized", None)
        _error(client, _send(client, headers={"authorization": f"Bearer {key}x"}), 401, "unauthorized", None)
        assert client.get("/metrics").status_code == 401
        with caplog.at_level(logging.INFO, "asap.requests"):
            answer = _send(client, headers=headers)
    assert answer.json()["id"] == "mine-1"
    entry = json.loads(caplog.records[-1].message)
    assert (entry["id"], entry["key"], entry["status"]) == ("mine-1", "desk", 200)
    assert entry["pairs"][0]["sha256"] == answer.json()["input"]["sha256"]
    assert entry["pairs"][0]["verdict"] == answer.json()["verdict"]
    assert key not in caplog.text
    assert TEXT not in caplog.text


@pytest.mark.parametrize("batch", [False, True])
def test_a_request_above_the_burst_is_accepted_if_the_bucket_is_full(predictor: Predictor, batch: bool) -> None:
    key, line = new_key("desk")
    pair = {"image": BASE64, "text": " ".join(["river"] * 120)}  # three passes
    path, body = ("/v1/detect/batch", {"items": [pair, pair]}) if batch else ("/v1/detect", pair)
    keyring = Keyring.parse([line], "here")
    with api(LocalDetector(predictor), keyring, key_rate=1e-6, key_burst=2, max_batch_items=2) as client:
        statuses = [
            client.post(path, json=body, headers={"authorization": f"Bearer {key}"}).status_code for _ in range(2)
        ]
    assert statuses == [200, 429]


def test_long_texts_and_slow_stores_do_not_lower_the_limit(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()

    def slowly(*_: Any) -> bytes:
        clock.sleep(0.2)
        return PICTURE

    class Slow(LocalDetector):
        async def detect(self, image: PreparedImage, text: str | None) -> Finding:
            clock.sleep(0.2 if len(text or "") > 1000 else 0)
            return await super().detect(image, text)

    for module in ("routes", "middleware"):
        monkeypatch.setattr(f"serve.api.{module}.time", clock)
    monkeypatch.setattr("serve.api.routes.fetch_remote_image", slowly)
    named = {"uri": "s3://pictures/a.png", "text": TEXT}
    with api(Slow(predictor), batch_size=2, wait_s=0.15) as client:
        for _ in range(20):
            assert _send(client, text=" ".join(["river"] * 240)).status_code == 200
            assert client.post("/v1/detect", json=named).status_code == 200
        assert re.search(r"asap_requests_limit{.*} (\d+)", client.get("/metrics").text)[1] != "2"  # type: ignore[index]


def test_a_long_text_is_charged_for_each_pass(predictor: Predictor) -> None:
    key, line = new_key("desk")
    headers, keyring = {"authorization": f"Bearer {key}"}, Keyring.parse([line], "here")
    with api(LocalDetector(predictor), keyring, key_rate=1e-6, key_burst=4, max_batch_items=3) as client:
        assert _send(client, text=" ".join(["river"] * 120), headers=headers).status_code == 200  # three passes
        assert _send(client, headers=headers).status_code == 200
        _error(client, _send(client, headers=headers), 429, "rate_limited", None)


def test_the_rate_of_a_key_counts_pairs(predictor: Predictor) -> None:
    key, line = new_key("desk")
    headers = {"authorization": f"Bearer {key}"}
    with api(
        LocalDetector(predictor), Keyring.parse([line], "here"), key_rate=1e-4, key_burst=4, max_batch_items=3
    ) as client:
        items = {"items": [{"text": "x"}] * 2}
        assert client.post("/v1/detect/batch", json=items, headers=headers).status_code == 200
        answer = client.post("/v1/detect/batch", json={"items": [{"text": "x"}] * 3}, headers=headers)
        _error(client, answer, 429, "rate_limited", None)
        assert 9_000 <= int(answer.headers["retry-after"]) <= 10_001
        assert _send(client, headers=headers).status_code == 200


def test_pages_of_other_sites_cannot_read_responses_unless_cors_origins_names_them(predictor: Predictor) -> None:
    origin = {"origin": "https://desk.example"}
    with api(LocalDetector(predictor)) as client:
        assert "access-control-allow-origin" not in client.get("/v1/models", headers=origin).headers
    with api(LocalDetector(predictor), cors_origins=("https://desk.example",)) as client:
        answer = client.get("/v1/models", headers=origin)
        assert answer.headers["access-control-allow-origin"] == "https://desk.example"


def test_a_server_that_shuts_down_refuses_new_requests(predictor: Predictor) -> None:
    with api(LocalDetector(predictor)) as client:
        app = client.app
    outside = TestClient(app, "http://127.0.0.1", client=("127.0.0.1", 5000))
    assert _send(outside).status_code == 503
    assert outside.get("/readyz").status_code == 503
