"""Settings that cannot work are refused, and those that decide nothing do not stop a job from resuming."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from jobs.descriptions.settings import DescriptionSettings

ADDRESS = {"address": "https://host/v1"}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"engine": "magic"}, "Input should be 'transformers', 'openai', 'vllm' or 'precomputed'"),
        ({"engine": "openai"}, "the engine openai needs an endpoint"),
        ({"endpoint": ADDRESS}, "the engine transformers has no endpoint"),
        ({"kind": "explanation", "prompt": "Explain."}, r"the prompt has no \{text\}"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"engine": "openai", "endpoint": {"address": "host/v1"}}, "is no http:// or https:// address"),
        ({"engine": "openai", "endpoint": {"address": "http://host:abc/v1"}}, "is no http:// or https:// address"),
        ({"engine": "openai", "endpoint": {"address": "http://host/v\x001"}}, "is no http:// or https:// address"),
        ({"engine": "openai", "endpoint": {"address": "https://me:pass@host/v1"}}, "may hold no secret"),
        ({"engine": "openai", "endpoint": {"address": "https://host/v1?key=abc"}}, "may hold no secret"),
        ({"engine": "openai", "endpoint": ADDRESS | {"key_env": "sk-0123"}}, "Give the name, not the key"),
        ({"engine": "openai", "endpoint": ADDRESS | {"concurrency": 0}}, "concurrency"),
        ({"vllm": {"gpus": 2}}, "the engine transformers takes no settings of vLLM"),
        ({"engine": "vllm", "attention": "eager"}, "the engine vllm chooses its implementation of attention"),
        ({"engine": "vllm", "vllm": {"gpus": 0}}, "gpus"),
        ({"engine": "vllm", "vllm": {"options": {"trust_remote_code": True}}}, "vllm.options has 'trust_remote_code'"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        DescriptionSettings(**({"engine": "transformers", "source": "m"} | changes))


def test_an_explanation_may_be_longer_than_a_caption() -> None:
    limits = [
        DescriptionSettings(engine="transformers", source="m", **changes).max_new_tokens  # type: ignore[arg-type]
        for changes in ({}, {"kind": "explanation"}, {"kind": "explanation", "max_new_tokens": 7})
    ]
    assert limits == [40, 160, 7]


def test_how_an_endpoint_is_asked_does_not_decide_what_is_written_but_where_does() -> None:
    def identity(**endpoint: Any) -> dict[str, Any]:
        return DescriptionSettings(engine="openai", source="m", endpoint=ADDRESS | endpoint).identity()  # type: ignore[arg-type]

    first = identity()
    assert identity(concurrency=3, retries=1, deadline_s=9, key_env=None, input_price=2) == first
    assert identity(address="https://other/v1") != first
    assert identity(temperature=1) != first


def test_the_options_of_vllm_decide_what_is_written_and_its_gpus_do_not() -> None:
    def identity(**vllm: Any) -> dict[str, Any]:
        return DescriptionSettings(engine="vllm", source="m", vllm=vllm).identity()  # type: ignore[arg-type]

    assert identity() == identity(gpus=2)
    assert identity(options={"quantization": "fp8"}) != identity()


@pytest.mark.parametrize(("engine", "gpus"), [({}, 1), ({"vllm": {"gpus": 4}}, 4), ({"engine": "transformers"}, 0)])
def test_only_vllm_needs_whole_gpus_and_gets_batches_to_make_its_own_of(engine: dict[str, Any], gpus: int) -> None:
    settings = DescriptionSettings(**({"engine": "vllm", "source": "m"} | engine))
    assert settings.gpus == gpus
    assert settings.batches_at_a_time(64) == (8 if gpus else 1)


@pytest.mark.parametrize(("concurrency", "batches"), [(1, 2), (64, 2), (65, 3), (4096, 16)])
def test_an_endpoint_gets_batches_enough_for_its_concurrency(concurrency: int, batches: int) -> None:
    way = ADDRESS | {"concurrency": concurrency}
    settings = DescriptionSettings(engine="openai", source="m", endpoint=way)  # type: ignore[arg-type]
    assert settings.batches_at_a_time(64) == batches
    assert DescriptionSettings(engine="transformers", source="m").batches_at_a_time(64) == 1


def test_the_identity_of_a_captioner_names_all_that_earlier_versions_wrote() -> None:
    identity = DescriptionSettings(engine="transformers", source="m").identity()
    assert {name: value for name, value in identity.items() if value is not None} == {
        "engine": "transformers", "source": "m", "max_new_tokens": 40, "batch_size": 16, "max_side": 512,
    }  # fmt: skip
