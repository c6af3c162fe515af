import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from asap.errors import ConfigError
from asap.finding import NO_EVIDENCE, Finding, Word
from serve.api.callers.keys import Keyring, new_key
from serve.client import Client, ServerError, finding_of
from serve.schemas import BatchItem, BatchResponse, Detection, ModelCard, ModelList, detection
from tests.support.serving import FixedDetector, encoded, served

FINDING = Finding(
    verdict="manipulated", score=0.9, types=dict.fromkeys(("face_swap", "face_attribute"), 0.9)
    | dict.fromkeys(("text_swap", "text_attribute"), 0.1), flagged_types=["face_swap", "face_attribute"],
    box_px=(1.0, 2.0, 3.0, 4.0), words=[Word(0, 0, 1, "A", 0.7)], word_scores=None, width=10, height=20,
    image_sha256="ab", model_id="m@1", policy_id="p", text_read=0.9, familiarity=0.4, familiarity_image=0.3,
    familiarity_text=0.6, familiarity_id="f", limits="m was made from drawings.",
)  # fmt: skip


class _Server(HTTPServer):
    """A server that sends the given answers one after another, and keeps the requests."""

    answers: list[tuple[int, str, dict[str, str]]]
    received: list[tuple[dict[str, str], bytes]]


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.server.received.append((dict(self.headers), body))
        status, content, headers = self.server.answers.pop(0)
        self.send_response(status)
        for name, value in (headers | {"content-length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content.encode())

    do_GET = do_POST

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[_Server]:
    server = _Server(("127.0.0.1", 0), _Handler)
    server.received = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def _url(server: _Server) -> str:
    return f"http://127.0.0.1:{server.server_port}/"


def _error(message: str) -> str:
    return json.dumps({"error": {"code": "c", "message": message, "param": None, "request_id": "r"}})


def test_the_response_of_an_earlier_server_becomes_a_finding() -> None:
    answer = detection("id", FINDING, {}, None).model_dump(mode="json")
    for name in ("text_read", "familiarity", "familiarity_image", "familiarity_text", "familiarity_id", "limits"):
        del answer[name]
    del answer["unfamiliar_parts"], answer["evidence"]["note"]
    finding = finding_of(Detection.model_validate(answer))
    assert (finding.verdict, finding.score, finding.box_px) == ("manipulated", 0.9, (1.0, 2.0, 3.0, 4.0))
    assert (finding.familiarity, finding.familiarity_id, finding.unfamiliar_parts, finding.limits) == (
        None,
        None,
        (),
        "",
    )


def test_the_response_for_an_unfamiliar_pair_becomes_its_finding() -> None:
    strange = replace(
        FINDING, verdict="unfamiliar", familiarity=0.001, unfamiliar_parts=("image", "text"), flagged_types=[],
        box_px=None, words=[],
    )  # fmt: skip
    answer = detection("id", strange, {}, None).model_dump(mode="json")
    assert finding_of(Detection.model_validate(answer)) == strange
    assert answer["evidence"]["note"] == "Not judged: the model has seen nothing like this picture and text."


def test_a_response_says_if_nothing_supports_its_verdict() -> None:
    bare = replace(FINDING, flagged_types=[], box_px=None, words=[])
    assert detection("id", bare, {}, None).evidence.note == NO_EVIDENCE
    assert detection("id", FINDING, {}, None).evidence.note == ""


def test_a_response_becomes_the_finding_that_it_was_made_from(server: _Server) -> None:
    answer = detection("id", FINDING, {}, None).model_dump_json()
    server.answers = [(200, answer, {})]
    assert finding_of(Client(_url(server), "key").detect(b"picture", "A text")) == FINDING
    headers, body = server.received[0]
    assert headers["Authorization"] == "Bearer key"
    assert b"picture" in body
    assert b"A text" in body


def test_a_pair_is_sent_again_to_a_busy_server(server: _Server) -> None:
    answer = detection("id", FINDING, {}, None).model_dump_json()
    server.answers = [(429, "{}", {"Retry-After": "0"}), (503, "{}", {"Retry-After": "0"}), (200, answer, {})]
    assert Client(_url(server)).detect(b"picture", "text").id == "id"
    assert [b"picture" in body for _, body in server.received] == [True] * 3
    (name,) = {headers["Idempotency-Key"] for headers, _ in server.received}
    assert len(name) == 32


def test_a_response_in_progress_is_asked_for_more_often_than_a_request_is_tried(server: _Server) -> None:
    answer = detection("id", FINDING, {}, None).model_dump_json()
    server.answers = [(503, "{}", {"Retry-After": "0"}), *[(409, "{}", {"Retry-After": "0"})] * 8, (200, answer, {})]
    assert Client(_url(server), tries=2).detect(b"picture", "text").id == "id"
    assert len({headers["Idempotency-Key"] for headers, _ in server.received}) == 1


def test_a_response_in_progress_is_given_up_after_the_clients_timeout(
    server: _Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    clock = SimpleNamespace(monotonic=lambda: sum(waits), sleep=waits.append)
    monkeypatch.setattr("serve.client.time", clock)
    server.answers = [(409, _error("in progress"), headers) for headers in ({"Retry-After": "2"}, {}, {})]
    with pytest.raises(ServerError, match="answered 409: in progress"):
        Client(_url(server), timeout_s=3).detect(b"picture", "text")
    assert waits == [2, 1]


def test_a_key_wins_over_a_netrc_and_space_around_it_is_left_out(
    server: _Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    server.answers = [(200, ModelList(models=[]).model_dump_json(), {})]
    Client(_url(server), " key\n").models()
    assert server.received[0][0]["Authorization"] == "Bearer key"


@pytest.mark.parametrize("key", ["key", None])
@pytest.mark.parametrize("status", [301, 307])
def test_a_redirect_is_refused_and_no_password_of_a_netrc_is_sent(
    server: _Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str | None, status: int
) -> None:
    (tmp_path / "netrc").write_text("default login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    server.answers = [(status, "", {"Location": f"{_url(server)}/other"})]
    with pytest.raises(ServerError, match=rf"answered {status}, a redirect to 'http.*/other', which is not followed"):
        Client(_url(server), key).models()
    assert [headers.get("Authorization") for headers, _ in server.received] == ["Bearer key" if key else None]


@pytest.mark.parametrize("key", ["asap_a\nb", "asap_a b", "asap_ключ", " \n"])
def test_a_key_that_no_header_can_carry_is_refused_without_repeating_it(key: str) -> None:
    with pytest.raises(ConfigError, match="the API key is empty, or has a character that no key has") as caught:
        Client("http://127.0.0.1:9", key)
    assert "asap_" not in str(caught.value)


@pytest.mark.parametrize(
    ("answers", "sentence"),
    [
        ([(400, _error("the text is blank"), {})], "answered 400: the text is blank"),
        ([(429, _error("too many"), {"Retry-After": "0"})] * 2, "answered 429: too many"),
        ([(502, "<html>", {})], "answered 502 without the API's JSON: <html>"),
        ([(500, "", {})], "answered 500 without the API's JSON: Internal Server Error"),
        ([(200, "<html>", {})], "answered 200 without JSON; is it asap serve?"),
        ([(404, "[]", {})], "answered 404"),
        ([(200, "[]", {})], "answered 200 with JSON of another form; is it asap serve of this version"),
        ([(200, '{"items": [7]}', {})], "answered 200 with JSON of another form"),
    ],
)
def test_the_error_of_a_server_becomes_one_sentence(server: _Server, answers: Any, sentence: str) -> None:
    server.answers = list(answers)
    with pytest.raises(ServerError, match=sentence):
        Client(_url(server), tries=2).detect(b"picture", "text")


def test_a_missing_server_or_picture_is_reported() -> None:
    with pytest.raises(ServerError, match="does not answer"):
        Client("http://127.0.0.1:9", tries=1).detect(b"picture", "text")
    with pytest.raises(ServerError, match=r"'/nowhere\.jpg' cannot be read: No such file"):
        Client("http://127.0.0.1:9", tries=1).detect("/nowhere.jpg", "text")


def test_an_error_has_the_fields_of_the_servers_error(server: _Server) -> None:
    server.answers = [(400, _error("the text is blank"), {}), (502, "<html>", {})]
    client = Client(_url(server), tries=1)
    with pytest.raises(ServerError) as caught:
        client.detect(b"picture", "text")
    assert (caught.value.status, caught.value.code, caught.value.param, caught.value.request_id) == (
        400,
        "c",
        None,
        "r",
    )
    with pytest.raises(ServerError) as caught:
        client.detect(b"picture", "text")
    assert (caught.value.status, caught.value.code) == (502, None)


def test_a_picture_is_sent_by_its_bytes_its_path_or_its_address(server: _Server, tmp_path: Path) -> None:
    answer = detection("id", FINDING, {}, None).model_dump_json()
    (tmp_path / "a.png").write_bytes(b"picture")
    server.answers = [(200, answer, {})] * 4
    with Client(_url(server)) as client:
        for image in (b"picture", tmp_path / "a.png", str(tmp_path / "a.png"), "s3://pictures/a.png"):
            client.detect(image, "A text", draw=True)
    bodies = [body for _, body in server.received]
    assert [b"picture" in body for body in bodies[:3]] == [True] * 3
    assert json.loads(bodies[3]) == {"uri": "s3://pictures/a.png", "text": "A text"}


def test_a_batch_has_the_callers_own_names_and_codes_of_a_later_version(server: _Server) -> None:
    result = detection("r-0", FINDING, {}, None)
    answer = BatchResponse(items=[BatchItem(id="r-0", custom_id="a", status=200, result=result)]).model_dump(
        mode="json"
    )
    error = {"code": "of_a_later_version", "message": "a problem", "param": None, "request_id": "r"}
    answer["items"].append({"id": "r-1", "custom_id": "b", "status": 400, "error": error, "later": True})
    server.answers = [(200, json.dumps(answer), {})]
    items = Client(_url(server)).detect_batch([(b"picture", "A text"), ("s3://x/a", "B")], ["a", "b"]).items
    assert items[0].result == result
    assert items[1].error is not None
    assert (items[1].error.code, items[1].error.message) == ("input_error", "a problem")
    sent = json.loads(server.received[0][1])["items"]
    assert sent[0] == {"image": "cGljdHVyZQ==", "text": "A text", "custom_id": "a"}
    assert sent[1] == {"uri": "s3://x/a", "text": "B", "custom_id": "b"}


def test_a_batch_needs_a_name_for_each_pair_or_for_none() -> None:
    with pytest.raises(ValueError, match="zip"):
        Client("http://127.0.0.1:9").detect_batch([(b"picture", "A text")], ["a", "b"])


def test_the_models_of_a_server_are_typed(server: _Server) -> None:
    card = ModelCard(model_id="m", policy_id="p", image_size=32, thresholds={"review": 0.5}, calibrated=True)
    server.answers = [(200, ModelList(models=[card]).model_dump_json(), {})]
    assert Client(_url(server)).models().models == [card]


def test_the_client_needs_neither_torch_nor_ray() -> None:
    heavy = "{'torch', 'ray', 'transformers', 'numpy', 'PIL', 'fastapi'}"
    code = f"import sys, serve.client; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_client_and_the_server_understand_each_other() -> None:
    key, line = new_key("desk")
    changes = {"key_rate": 1e-6, "key_burst": 10, "max_batch_items": 4}
    with served(FixedDetector(), Keyring.parse([line], "here"), **changes) as url, Client(url, key) as client:
        assert client.models().models[0].model_id == "m"
        found = client.detect(encoded(), "A text", draw=True)
        assert found.evidence.image is not None
        pairs = [(encoded(), "A text"), (b"x", "B")]
        names = [item.custom_id for item in client.detect_batch(pairs, ["a", "b"]).items]
        limits = client.limits()
        with pytest.raises(ServerError, match="answered 400") as caught:
            client.detect(b"no picture", "A text")
        assert caught.value.code == "unsupported_format"
    assert names == ["a", "b"]
    assert limits.key is not None
    assert limits.key.remaining == 7
