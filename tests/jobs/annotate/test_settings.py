"""Settings of a job of annotations that cannot work are refused."""

from __future__ import annotations

import re
from typing import Any

import pytest
from pydantic import ValidationError

from jobs.annotate.settings import AnnotateSettings

MODEL = {"engine": "transformers", "source": "m"}


def _settings(**changes: Any) -> AnnotateSettings:
    return AnnotateSettings(**({"input": "/in", "out": "/out/a"} | changes))


def test_the_engines_come_in_the_order_of_their_work_and_explanations_get_their_own_defaults() -> None:
    settings = _settings(explanations=MODEL, captions=MODEL)
    assert list(settings.engines) == ["caption", "explanation"]
    assert [engine.kind for engine in settings.engines.values()] == ["caption", "explanation"]
    assert [engine.max_new_tokens for engine in settings.engines.values()] == [40, 160]
    assert settings.job_folder.uri == "/out/a"


def test_pictures_are_read_only_for_a_captioner_that_looks_at_them() -> None:
    looked_up = {"engine": "precomputed", "source": "c.json"}
    assert _settings(captions=MODEL).thumbnail_side == 512
    assert _settings(captions=looked_up, explanations=MODEL).thumbnail_side is None
    assert _settings(explanations=MODEL).thumbnail_side is None


def test_texts_are_needed_only_for_explanations() -> None:
    assert not _settings(captions=MODEL).table_options.texts
    assert _settings(captions=MODEL, explanations=MODEL).table_options.texts


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({}, "neither captions nor explanations are asked for. Give --caption-engine"),
        ({"captions": MODEL | {"kind": "explanation"}}, "captions cannot be made by an engine of the kind"),
        ({"explanations": MODEL | {"kind": "caption"}}, "explanations cannot be made by an engine of the kind"),
        (
            {"explanations": MODEL | {"engine": "vllm"}, "device": "cpu"},
            "device is 'cpu', and the engine vllm runs on GPUs only. Give --device auto or cuda",
        ),
        ({"captions": MODEL, "stale_after_s": 3}, "less than two heartbeats"),
        ({"captions": MODEL, "annotator_gpus": 0}, "annotator_gpus"),
        ({"captions": MODEL, "annotator_gpus": 1.5}, "less than or equal to 1"),
        ({"captions": MODEL, "annotator_cpus": 0}, "annotator_cpus"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(sentence)):
        _settings(**changes)


def test_the_way_an_endpoint_is_asked_decides_no_rows() -> None:
    def identity(**way: Any) -> dict[str, Any]:
        engine = {"engine": "openai", "source": "m", "endpoint": {"address": "http://host/v1"} | way}
        return _settings(captions=engine).identity()

    assert identity() == identity(concurrency=3, input_price=7)
    assert identity() != identity(address="http://other/v1")
    assert identity()["explanations"] is None
