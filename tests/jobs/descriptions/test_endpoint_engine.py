"""The endpoint engine against a real server that misbehaves on purpose."""

from __future__ import annotations

import base64
import gzip
import json
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from io import BytesIO
from threading import Barrier
from typing import Any

import pytest
from PIL import Image

from asap.errors import ConfigError
from jobs.descriptions.endpoint_engine import EndpointEngine, retry_after_s
from jobs.descriptions.engine import Failure, Outcome, Reply, Request, Usage, total_usage
from jobs.descriptions.settings import DescriptionSettings
from tests.support.endpoint import (
    Answer,
    Handler,
    completion,
    cut,
    drip,
    endpoint,
    hang,
    hang_up,
    refuse,
    respond,
    write,
)
from tests.support.waiting import HANG_S

KEY = "sk-secret-0123456789"


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_ENDPOINT_KEY", KEY)


def _settings(address: str, kind: str = "caption", prompt: str | None = None, **changes: Any) -> DescriptionSettings:
    way = {"address": address, "key_env": "TEST_ENDPOINT_KEY", "timeout_s": HANG_S, "deadline_s": HANG_S, "retries": 0}
    return DescriptionSettings(
        engine="openai", source="tiny", kind=kind, prompt=prompt, endpoint=way | changes  # type: ignore[arg-type]
    )  # fmt: skip


def _requests(count: int) -> list[Request]:
    return [Request(str(number), f"{number}.jpg", Image.new("RGB", (40 + number, 30))) for number in range(count)]


def _describe(answer: Answer, count: int = 1, **changes: Any) -> list[Outcome]:
    with endpoint(answer) as (address, _):
        engine = EndpointEngine(_settings(address, **changes))
        try:
            return engine.describe(_requests(count))
        finally:
            engine.close()


def _width(body: dict[str, Any]) -> int:
    """Return the width of the picture in a request, which says which request it is."""
    url = body["messages"][0]["content"][0]["image_url"]["url"]
    return Image.open(BytesIO(base64.b64decode(url.partition("base64,")[2]))).width


def _good(handler: Handler, body: dict[str, Any]) -> None:
    handler.send(200, json.dumps(completion(f"a picture of {_width(body)} pixels")))


def test_captions_come_in_the_order_of_the_requests_with_their_tokens() -> None:
    outcomes = _describe(_good, 20)
    assert [outcome.text for outcome in outcomes if isinstance(outcome, Reply)] == [
        f"a picture of {40 + number} pixels" for number in range(20)
    ]
    assert total_usage(outcomes) == Usage(2000, 140)


def test_the_request_holds_model_prompt_limit_key_and_a_shrunk_picture() -> None:
    with endpoint(_good) as (address, seen):
        changed = {"body": {"seed": 7}, "limit_field": "max_completion_tokens", "temperature": None}
        settings = _settings(address, **changed).model_copy(update={"max_side": 32, "max_new_tokens": 11})
        EndpointEngine(settings).describe(_requests(1))
    body = seen.bodies[0]
    assert seen.keys == [f"Bearer {KEY}"]
    assert (body["model"], body["max_completion_tokens"], body["seed"]) == ("tiny", 11, 7)
    assert not {"max_tokens", "temperature"} & set(body)
    assert body["messages"][0]["content"][1] == {"type": "text", "text": "Give the caption of this picture"}
    assert _width(body) == 32


def test_an_explanation_sends_the_text_in_the_published_prompt() -> None:
    with endpoint(lambda handler, body: handler.send(200, json.dumps(completion("it is so")))) as (address, seen):
        engine = EndpointEngine(_settings(address, kind="explanation"))
        found = engine.describe([Request("1", "a.jpg", None, "a {text} of news"), Request("2", "b.jpg", None, "  ")])
    assert isinstance(found[0], Reply)
    assert isinstance(found[1], Failure)
    assert found[1].kind == "no_input"
    content = seen.bodies[0]["messages"][0]["content"]
    assert content.startswith("Refer to the following text to describe the specific information")
    assert content.endswith(': "a {text} of news"')
    assert seen.bodies[0]["max_tokens"] == 160


def test_no_more_requests_than_allowed_are_under_way_and_no_fewer() -> None:
    together = Barrier(4)

    def wait_for_three_others(handler: Handler, body: dict[str, Any]) -> None:
        together.wait(HANG_S)  # broken, with an error for the row, if the engine asks for fewer at a time
        _good(handler, body)

    with endpoint(wait_for_three_others) as (address, seen):
        outcomes = EndpointEngine(_settings(address, concurrency=4)).describe(_requests(20))
    assert all(isinstance(outcome, Reply) for outcome in outcomes)
    assert seen.most_at_a_time == 4


def test_requests_of_two_calls_share_the_bound_and_are_under_way_together() -> None:
    together = Barrier(4)

    def wait_for_three_others(handler: Handler, body: dict[str, Any]) -> None:
        together.wait(HANG_S)
        _good(handler, body)

    with endpoint(wait_for_three_others) as (address, seen), ThreadPoolExecutor(2) as pool:
        engine = EndpointEngine(_settings(address, concurrency=4))
        calls = [pool.submit(engine.describe, _requests(count)) for count in (2, 6)]
        outcomes = [call.result() for call in calls]
        engine.close()
    assert [len(found) for found in outcomes] == [2, 6]
    assert all(isinstance(outcome, Reply) for found in outcomes for outcome in found)
    assert seen.most_at_a_time == 4


def _flood(handler: Handler, body: dict[str, Any]) -> None:
    """Send without an end, in parts whose length nobody has announced."""
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    part = b" " * 2**16
    while True:  # until the engine closes the connection
        handler.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))


def _bomb(handler: Handler, body: dict[str, Any]) -> None:
    """Send a few hundred thousand bytes that become hundreds of millions."""
    data = gzip.compress(b" " * 2**28)
    handler.start(200, len(data), Content_Encoding="gzip")
    handler.wfile.write(data)


def _packed(handler: Handler, body: dict[str, Any]) -> None:
    data = gzip.compress(json.dumps(completion("a packed crowd")).encode())
    handler.start(200, len(data), Content_Encoding="gzip")
    handler.wfile.write(data)


def _error(message: str, code: str | None = None) -> str:
    return json.dumps({"error": {"message": message, "type": "x", "code": code}})


FAULTS: dict[str, tuple[Answer, str, str, bool]] = {
    "hangs": (hang, "timeout", "no answer within 3 s", True),
    "drips": (drip, "timeout", "no answer within 3 s", True),
    "hangs up": (hang_up, "unreachable", "the connection failed", True),
    "is cut": (cut, "unreachable", "the connection failed", True),
    "never ends": (_flood, "bad_answer", "the answer is longer than 4,194,304 bytes", True),
    "a bomb": (_bomb, "bad_answer", "the answer is longer than 65,536 bytes of compressed data", True),
    "HTML": (respond(200, "<html>Log in</html>", "text/html"), "bad_answer", "no JSON: '<html>Log in", True),
    "half a JSON": (respond(200, '{"choices": [{"mess'), "bad_answer", "no JSON", True),
    "deep JSON": (respond(200, "[" * 100_000), "bad_answer", "no JSON", True),
    "a list": (respond(200, "[]"), "bad_answer", "no JSON object", True),
    "no choices": (respond(200, '{"choices": []}'), "bad_answer", "no choices", True),
    "null choices": (respond(200, '{"choices": null}'), "bad_answer", "no choices", True),
    "no message": (respond(200, '{"choices": [{}]}'), "bad_answer", "no message", True),
    "a number": (write(5), "bad_answer", "no message with a text", True),
    "bad usage": (respond(200, '{"choices": [{"message": {"content": ""}}], "usage": 5}'), "empty", "no words", False),
    "nothing": (write(None), "empty", "no words", False),
    "special tokens": (write("<|im_end|></s>"), "special_tokens", "only special tokens", False),
    "a loop": (write("a man in a suit and " * 9), "loop", "repeated itself: a man in a suit and", False),
    "a refusal": (refuse, "refusal", "refused: No such pictures.", False),
    "a refusal in words": (write("I'm sorry, but I can't help with that."), "refusal", "sorry", False),
    "a filter": (
        lambda handler, _: handler.send(200, json.dumps(completion("a", finish_reason="content_filter"))),
        "refusal", "content filter", False,
    ),
    "a filter of requests": (respond(400, _error("Unsafe.", "content_policy_violation")), "refusal", "Unsafe", False),
    "401": (respond(401, _error(f"Incorrect key {KEY}")), "not_allowed", "HTTP 401: Incorrect key ***", False),
    "403": (respond(403, "<html>", "text/html"), "not_allowed", "HTTP 403", False),
    "400": (respond(400, _error("The picture is too large.")), "rejected", "400: The picture is too large.", False),
    "404": (respond(404, '{"detail": "Not Found"}'), "rejected", "HTTP 404", False),
    "a redirect": (respond(302, "", Location="http://127.0.0.1:1/v1"), "rejected", "HTTP 302", False),
    "429": (respond(429, _error("Slow down.")), "throttled", "HTTP 429: Slow down.", True),
    "429 for hours": (respond(429, _error("Slow down."), Retry_After="7200"), "throttled", "Slow down", True),
    "500": (respond(500, "oops " * 1000, "text/plain"), "server_error", "HTTP 500: oops", True),
    "503": (respond(503, ""), "server_error", "HTTP 503", True),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_fails_its_own_request_with_a_kind_and_without_the_key(
    fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    answer, kind, detail, is_retryable = FAULTS[fault]

    def answer_two(handler: Handler, body: dict[str, Any]) -> None:
        (answer if _width(body) == 41 else _good)(handler, body)

    timeout_s = 3 if "no answer" in detail else HANG_S
    first, second, third = _describe(answer_two, 3, timeout_s=timeout_s, deadline_s=HANG_S)
    assert (type(first), type(third)) == (Reply, Reply)
    assert isinstance(second, Failure)
    assert (second.kind, second.is_retryable) == (kind, is_retryable), second
    assert detail in second.detail
    assert len(second.detail) < 320
    assert "\n" not in second.detail
    assert KEY not in second.detail + caplog.text


@pytest.mark.parametrize("before", [20, 62, 70, 85, 100, 110])
@pytest.mark.parametrize("frame", ["{}", '["{}"]', '{{"error": "{}"}}', '{{"choices": [{{"text": "{}"}}]}}'])
def test_no_part_of_a_key_that_an_answer_repeats_is_shown(before: int, frame: str) -> None:
    # The key stands where the answer is cut.
    (outcome,) = _describe(respond(200, frame.format("x" * before + KEY + " is no key")))
    assert isinstance(outcome, Failure)
    assert outcome.kind == "bad_answer"
    assert "sk-" not in outcome.detail
    assert before > 20 or "***" in outcome.detail


def test_an_answer_may_be_compressed() -> None:
    (outcome,) = _describe(_packed)
    assert isinstance(outcome, Reply)
    assert outcome.text == "a packed crowd"


def test_a_description_that_repeats_the_key_is_written_without_it() -> None:
    (outcome,) = _describe(write(f"a sign with {KEY} on it"))
    assert isinstance(outcome, Reply)
    assert outcome.text == "a sign with *** on it"


def test_an_endpoint_that_is_down_fails_every_request() -> None:
    with endpoint(_good) as (address, _):
        pass
    outcomes = EndpointEngine(_settings(address, retries=1)).describe(_requests(3))
    assert [outcome.kind for outcome in outcomes if isinstance(outcome, Failure)] == ["unreachable"] * 3


@pytest.mark.parametrize("fault", ["is cut", "half a JSON", "no choices", "429", "500", "hangs"])
def test_a_fault_that_passes_is_tried_again(fault: str) -> None:
    tries: dict[int, int] = {}

    def answer(handler: Handler, body: dict[str, Any]) -> None:
        tries[_width(body)] = tries.get(_width(body), 0) + 1
        (FAULTS[fault][0] if tries[_width(body)] < 3 else _good)(handler, body)

    timeout_s = 2 if fault == "hangs" else HANG_S
    outcomes = _describe(answer, 2, retries=9, timeout_s=timeout_s)
    assert all(isinstance(outcome, Reply) for outcome in outcomes)
    assert min(tries.values()) == 3


@pytest.mark.parametrize("fault", ["400", "401", "a refusal", "a loop"])
def test_a_fault_that_stays_is_not_tried_again(fault: str) -> None:
    with endpoint(FAULTS[fault][0]) as (address, seen):
        EndpointEngine(_settings(address, retries=3)).describe(_requests(1))
    assert len(seen.bodies) == 1


def test_the_tries_are_bounded() -> None:
    with endpoint(FAULTS["500"][0]) as (address, seen):
        EndpointEngine(_settings(address, retries=2)).describe(_requests(1))
    assert len(seen.bodies) == 3


def test_a_deadline_ends_the_tries() -> None:
    with endpoint(FAULTS["500"][0]) as (address, seen):
        engine = EndpointEngine(_settings(address, retries=1_000_000, deadline_s=1.0))
        (outcome,) = engine.describe(_requests(1))
    assert isinstance(outcome, Failure)
    assert outcome.kind in ("server_error", "timeout")
    assert len(seen.bodies) < 1000


def test_a_storm_of_429_is_waited_out() -> None:
    asked: list[int] = []

    def answer(handler: Handler, body: dict[str, Any]) -> None:
        with handler.server.lock:
            asked.append(_width(body))
            refuses = len(asked) <= 20
        if refuses:
            handler.send(429, _error("Slow down."), Retry_After="0.05")
        else:
            _good(handler, body)

    outcomes = _describe(answer, 12, concurrency=8, retries=20)
    assert all(isinstance(outcome, Reply) for outcome in outcomes)
    assert len(asked) == 32


def test_a_pause_that_the_endpoint_asks_for_is_kept() -> None:
    pause_s, asked = 0.3, []

    def answer(handler: Handler, body: dict[str, Any]) -> None:
        asked.append(time.monotonic())
        if len(asked) == 1:
            handler.send(503, _error("Slow down."), Retry_After=str(pause_s))
        else:
            _good(handler, body)

    assert isinstance(_describe(answer, 1, retries=1)[0], Reply)
    assert asked[1] >= asked[0] + pause_s


def test_a_pause_that_one_request_was_asked_for_holds_all_of_them() -> None:
    asked: list[float] = []

    def answer(handler: Handler, body: dict[str, Any]) -> None:
        asked.append(time.monotonic())
        _good(handler, body)

    with endpoint(answer) as (address, _):
        engine = EndpointEngine(_settings(address))
        engine._held_until = time.monotonic() + 0.3
        outcomes = engine.describe(_requests(3))
    assert all(isinstance(outcome, Reply) for outcome in outcomes)
    assert min(asked) >= engine._held_until


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "3"}, 3),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": "-4"}, 0),
        ({"retry-after": formatdate(0)}, 0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, None),
        ({}, None),
    ],
)
def test_a_pause_is_read_from_the_headers(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_s(headers) == seconds


def test_a_pause_until_a_date_is_read() -> None:
    seconds = retry_after_s({"retry-after": formatdate(time.time() + 1000, usegmt=True)})
    assert seconds is not None
    assert 0 < seconds <= 1000


def test_a_picture_that_cannot_be_sent_fails_alone() -> None:
    with endpoint(_good) as (address, _):
        engine = EndpointEngine(_settings(address))
        broken = Image.open(BytesIO(_jpeg()[:-400]), formats=["JPEG"])
        found = engine.describe([*_requests(1), Request("x", "x.jpg", broken), Request("y", "y.jpg", None)])
    assert isinstance(found[0], Reply)
    assert [outcome.kind for outcome in found[1:] if isinstance(outcome, Failure)] == ["model_error", "no_input"]


def _jpeg() -> bytes:
    buffer = BytesIO()
    Image.effect_noise((64, 64), 90).convert("RGB").save(buffer, "JPEG")
    return buffer.getvalue()


def test_a_long_answer_is_marked_as_cut() -> None:
    (outcome,) = _describe(lambda handler, _: handler.send(200, json.dumps(completion("a m", finish_reason="length"))))
    assert isinstance(outcome, Reply)
    assert outcome.is_cut


def test_an_answer_in_parts_is_joined() -> None:
    (outcome,) = _describe(write([{"type": "text", "text": "a man"}, {"type": "text", "text": "waves"}, 5]))
    assert isinstance(outcome, Reply)
    assert outcome.text == "a man waves"


@pytest.mark.parametrize(
    ("key", "sentence"),
    [
        (None, "TEST_ENDPOINT_KEY is not set"),
        ("  ", "TEST_ENDPOINT_KEY is not set"),
        ("sk-with\nnewline", "characters that no header"),
        ("sk-über", "characters that no header"),
    ],
)
def test_a_key_that_cannot_be_one_is_named_by_its_variable(
    monkeypatch: pytest.MonkeyPatch, key: str | None, sentence: str
) -> None:
    monkeypatch.delenv("TEST_ENDPOINT_KEY") if key is None else monkeypatch.setenv("TEST_ENDPOINT_KEY", key)
    with pytest.raises(ConfigError, match=sentence) as caught:
        EndpointEngine(_settings("http://127.0.0.1:1/v1"))
    assert key is None or not key.strip() or key not in str(caught.value)


def test_an_endpoint_without_a_key_is_asked_without_the_one_in_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with endpoint(_good) as (address, seen):
        EndpointEngine(_settings(address, key_env=None)).describe(_requests(1))
    assert seen.keys == ["Bearer none"]


def test_the_record_says_what_decides_the_captions_and_holds_no_key() -> None:
    record = EndpointEngine(_settings("http://127.0.0.1:1/v1", prompt="Say it.")).record()
    assert (record["model"], record["prompt"], record["max_new_tokens"]) == ("tiny", "Say it.", 40)
    assert KEY not in json.dumps(record)
