import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from asap.finding import NO_EVIDENCE, Finding, Word
from serve.client import Client, ServerError, finding_of, read_image
from serve.schemas import detection

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
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.received.append((dict(self.headers), body))
        status, content, headers = self.server.answers.pop(0)
        self.send_response(status)
        for name, value in (headers | {"content-length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content.encode())

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
    finding = finding_of(answer)
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
    assert finding_of(answer) == strange
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
    assert Client(_url(server)).detect(b"picture", "text")["id"] == "id"
    assert [b"picture" in body for _, body in server.received] == [True] * 3


@pytest.mark.parametrize(
    ("answers", "sentence"),
    [
        ([(400, _error("the text is blank"), {})], "answered 400: the text is blank"),
        ([(429, _error("too many"), {"Retry-After": "0"})] * 2, "answered 429: too many"),
        ([(502, "<html>", {})], "answered 502 without the API's JSON: <html>"),
        ([(500, "", {})], "answered 500 without the API's JSON: Internal Server Error"),
        ([(200, "<html>", {})], "answered 200 without JSON; is it asap serve?"),
        ([(404, "[]", {})], "answered 404"),
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
        read_image("/nowhere.jpg")
