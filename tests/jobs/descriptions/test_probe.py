"""A captioner that does not work is found before any work starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from asap.errors import ConfigError
from jobs.descriptions.probe import probe
from jobs.descriptions.settings import DescriptionSettings
from tests.support.endpoint import Answer, Handler, completion, endpoint
from tests.support.tiny_captioners import WORDS, save_encoder_decoder
from tests.support.waiting import HANG_S

KEY = "sk-secret-0123456789"


def _settings(address: str, **changes: Any) -> DescriptionSettings:
    way = {"address": address, "key_env": "TEST_ENDPOINT_KEY", "timeout_s": HANG_S, "deadline_s": HANG_S, "retries": 0}
    return DescriptionSettings(engine="openai", source="tiny", endpoint=way | changes)  # type: ignore[arg-type]


def _with(status: int, document: Any) -> Answer:
    return lambda handler, _: handler.send(status, json.dumps(document))


def test_an_endpoint_that_works_shows_what_it_wrote_and_what_it_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_ENDPOINT_KEY", KEY)
    with endpoint(_with(200, completion("a gray wall"))) as (address, _):
        settings = _settings(address, input_price=1, output_price=10)
        found = probe(settings)
    assert (found.wrote, found.record["model"]) == ("a gray wall", "tiny")
    assert found.sentence(settings) == (
        "the captioner tiny describes a gray picture (100 tokens in, 7 out, which costs 0.17 for a thousand): "
        "a gray wall"
    )


def test_a_refusal_to_describe_a_gray_picture_shows_that_the_endpoint_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_ENDPOINT_KEY", KEY)
    with endpoint(_with(200, completion("I'm sorry, I can't describe this."))) as (address, _):
        assert probe(_settings(address)).wrote.startswith("the model refused")


def _html(handler: Handler, body: dict[str, Any]) -> None:
    handler.send(200, "<html>", "text/html")


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (_with(401, {"error": {"message": f"bad {KEY}"}}), r"bad \*\*\*. Check the key in .* TEST_ENDPOINT_KEY"),
        (_html, "the answer is no JSON: '<html>'. Check that the address is that of an API"),
        (_with(404, {"error": {"message": "no model tiny"}}), "HTTP 404: no model tiny. Check the name of the model"),
        (_with(200, completion("<|im_end|>")), "wrote only special tokens. Give another prompt"),
    ],
)  # fmt: skip
def test_an_endpoint_that_does_not_work_is_an_error_with_advice_and_without_the_key(
    answer: Answer, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_ENDPOINT_KEY", KEY)
    with (
        endpoint(answer) as (address, _),
        pytest.raises(ConfigError, match=f"the captioner tiny at http://.* does not work: .*{sentence}") as caught,
    ):
        probe(_settings(address))
    assert KEY not in str(caught.value)


def test_an_endpoint_that_is_down_or_wants_a_key_is_an_error() -> None:
    with endpoint(_with(401, {})) as (address, _), pytest.raises(ConfigError, match="name its environment variable in"):
        probe(_settings(address, key_env=None))
    with pytest.raises(ConfigError, match=r"the connection failed: .* Check the address, and that the endpoint runs"):
        probe(_settings(address, key_env=None))


@pytest.mark.slow
def test_a_model_is_tried_in_a_process_of_its_own(tmp_path: Path) -> None:
    settings = DescriptionSettings(engine="transformers", source=save_encoder_decoder(tmp_path), max_new_tokens=4)
    found = probe(settings, "cpu")
    assert set(found.wrote.split()) <= set(WORDS)
    assert (found.record["model_type"], found.record["device"]) == ("vision-encoder-decoder", "cpu")
    assert found.output_tokens <= 4


def test_a_folder_that_is_no_captioner_is_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ConfigError, match=r"type bert\) cannot write captions") as caught:
        probe(DescriptionSettings(engine="transformers", source=str(tmp_path)), "cpu")
    assert "\n" not in str(caught.value)


def test_a_process_that_dies_is_an_error_with_its_last_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho 'Killed: no memory' >&2\nexit 9\n")
    program.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(program))
    with pytest.raises(ConfigError, match=r"its process ended with code 9 .*Killed: no memory"):
        probe(DescriptionSettings(engine="transformers", source=str(tmp_path)))
