"""The rows around vLLM. The engine itself needs a GPU and an extra, and is not run here."""

from __future__ import annotations

from typing import Any

import pytest

from asap.errors import ConfigError
from jobs.descriptions import loading
from jobs.descriptions.settings import DescriptionSettings
from jobs.descriptions.vllm_engine import engine_row, outcome_columns, vllm_stages

CAPTIONS = DescriptionSettings(engine="vllm", source="m", max_new_tokens=5)


def test_a_row_becomes_a_message_with_its_picture_and_keeps_its_other_columns() -> None:
    row = engine_row(CAPTIONS, {"picture": "data:image/jpeg;base64,AA", "id": 7, "text": None})
    image, prompt = row["messages"][0]["content"]
    assert image["image_url"]["url"] == "data:image/jpeg;base64,AA"
    assert prompt["text"] == "Give the caption of this picture"
    assert row["sampling_params"] == {"temperature": 0.0, "max_tokens": 5}
    assert row["asked"] == {"id": 7, "text": None}


def test_a_text_to_explain_is_a_message_without_parts() -> None:
    row = engine_row(CAPTIONS.model_copy(update={"kind": "explanation", "prompt": "Why? {text}"}), {"text": "a {x}"})
    assert row["messages"] == [{"role": "user", "content": "Why? a {x}"}]


@pytest.mark.parametrize(
    ("written", "outcome"),
    [
        ({"generated_text": " a man ", "num_input_tokens": 9, "num_generated_tokens": 3}, ("a man", False, None, 9, 3)),
        ({"generated_text": "a man in", "num_generated_tokens": 5}, ("a man in", True, None, 0, 5)),
        ({"generated_text": "", "num_generated_tokens": 1}, (None, False, "empty", 0, 1)),
        ({"__inference_error__": "ValueError: too\nlong"}, (None, False, "model_error", 0, 0)),
        ({"__inference_error__": "OutOfMemoryError: CUDA"}, (None, False, "out_of_memory", 0, 0)),
    ],
)
def test_what_came_out_is_a_description_or_a_failure_of_a_kind(
    written: dict[str, Any], outcome: tuple[Any, ...]
) -> None:
    row = outcome_columns(CAPTIONS, {"asked": {"id": 7}} | written)
    assert tuple(row[name] for name in ("description", "is_cut", "failure", "input_tokens", "output_tokens")) == outcome
    assert row["id"] == 7
    assert (row["failure"] is None) is (row["failure_detail"] is None)


def test_vllm_that_is_not_installed_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'asap-ray\[vllm\]'"):
        vllm_stages(CAPTIONS)
