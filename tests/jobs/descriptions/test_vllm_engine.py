"""The stages of vLLM as Ray builds them. vLLM itself needs a GPU and an extra, and is not run here."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from asap.errors import ConfigError
from jobs.descriptions import loading, model_files, vllm_engine
from jobs.descriptions.pinning import content_of
from jobs.descriptions.settings import DescriptionSettings
from jobs.descriptions.vllm_engine import Placement, build, engine_row, facts_there, record_of, written_row
from jobs.descriptions.vllm_rows import ERROR, KNOWN, NOT_ASKED, PICTURE, PROMPT, ROWS

CAPTIONS = DescriptionSettings(engine="vllm", source="m", max_new_tokens=5)


def _folder(tmp_path: Path) -> DescriptionSettings:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "architectures": ["BertModel"]}))
    return CAPTIONS.model_copy(update={"source": str(tmp_path)})


def test_a_request_becomes_a_message_with_its_picture_and_has_no_error() -> None:
    row = engine_row(CAPTIONS, {PICTURE: b"\0\0", PROMPT: "Say it", ROWS: b"r", KNOWN: None})
    image, prompt = row["messages"][0]["content"]
    assert image["image_url"]["url"] == "data:image/jpeg;base64,AAA="
    assert prompt["text"] == "Say it"
    assert row["sampling_params"] == {"temperature": 0.0, "max_tokens": 5}
    assert (row[ERROR], row[PICTURE]) == ("", None)


def test_a_text_to_explain_is_a_message_without_parts() -> None:
    row = engine_row(CAPTIONS, {PICTURE: None, PROMPT: "Why? a {x}"})
    assert row["messages"] == [{"role": "user", "content": "Why? a {x}"}]


def test_a_row_that_asks_nothing_has_an_error_that_makes_the_stages_pass_over_it() -> None:
    row = engine_row(CAPTIONS, {PICTURE: None, PROMPT: None})
    assert row == {"messages": None, "sampling_params": None, ERROR: NOT_ASKED}


def test_only_what_the_job_needs_is_kept_of_a_row_that_was_described() -> None:
    row = {ROWS: b"r", KNOWN: None, "generated_text": "a", "num_input_tokens": 1, "num_generated_tokens": 1, "x": 0}
    assert written_row(row) == {name: value for name, value in row.items() if name != "x"}


@pytest.mark.slow
def test_ray_builds_stages_for_pictures_and_templates_on_parts_of_a_cpu_and_for_the_model_on_whole_gpus(
    ray_here: None, tmp_path: Path
) -> None:
    settings = _folder(tmp_path).model_copy(update={"vllm": _vllm(gpus=2), "dtype": "bfloat16"})
    stages = build(settings, Placement(batch_size=64)).stages
    assert list(stages) == ["PrepareMultimodalStage", "ChatTemplateStage", "vLLMEngineStage"]
    options = {name: stage.get_dataset_map_batches_kwargs(64, "__data") for name, stage in stages.items()}
    assert [options[name].get("num_cpus") for name in list(stages)[:2]] == [0.25, 0.25]
    engine = options["vLLMEngineStage"]
    assert (engine["num_gpus"], engine["max_concurrency"], engine["batch_size"]) == (2, 8, 64)
    given = engine["fn_constructor_kwargs"]
    assert (given["model"], given["should_continue_on_error"]) == (str(tmp_path), True)
    arguments = {name: value for name, value in given["engine_kwargs"].items() if name != "task_type"}
    assert arguments == {
        "seed": 0, "dtype": "bfloat16", "load_format": "safetensors", "trust_remote_code": False, "max_model_len": 4096,
        "limit_mm_per_prompt": {"image": 1}, "tensor_parallel_size": 2, "distributed_executor_backend": "mp",
    }  # fmt: skip

    explainer = settings.model_copy(update={"kind": "explanation", "vllm": None, "dtype": None})
    alone = build(explainer, Placement(batch_size=1, is_one_at_a_time=True)).stages
    assert list(alone) == ["ChatTemplateStage", "vLLMEngineStage"]
    engine = alone["vLLMEngineStage"].get_dataset_map_batches_kwargs(1, "__data")
    assert (engine["num_gpus"], engine["max_concurrency"]) == (1, 1)
    assert "limit_mm_per_prompt" not in engine["fn_constructor_kwargs"]["engine_kwargs"]


def test_a_process_that_dies_is_started_again_in_a_job_and_not_in_a_trial() -> None:
    jobs, trial = Placement(batch_size=64, tries=3), Placement(batch_size=1, restarts=0, is_one_at_a_time=True)
    options = [vllm_engine._options(placement, is_engine=True) for placement in (jobs, trial)]
    assert [(each["max_restarts"], each["max_task_retries"]) for each in options] == [(-1, 2), (0, 0)]


class _Stage:
    """A class of a stage that notes with what it was made."""

    def __init__(self, **kwargs: Any) -> None:
        self.kwargs = kwargs


def test_each_process_loads_the_commit_of_a_model_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_engine, "hub_folder", lambda name, revision: f"/hub/{name}/{revision}")
    settings = CAPTIONS.model_copy(update={"source": "some/name", "revision": "0123abc"})
    stage = vllm_engine._pinned_class(_Stage, settings, None, reads_weights=True)
    assert stage.__name__ == "_Stage"
    made = stage(model="some/name", model_config_kwargs={"model": "some/name", "dtype": "float32"}, data_column="d")
    place = "/hub/some/name/0123abc"
    assert made.kwargs == {
        "model": place, "model_config_kwargs": {"model": place, "dtype": "float32"}, "data_column": "d",
    }  # fmt: skip


def test_vllm_reports_its_use_only_if_the_environment_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stage = vllm_engine._pinned_class(_Stage, _folder(tmp_path), None, reads_weights=True)
    for given, found in ((None, "1"), ("0", "0")):
        # monkeypatch notes that the variable was missing, and removes what the stage sets.
        monkeypatch.setenv("VLLM_NO_USAGE_STATS", given or "")
        if given is None:
            monkeypatch.delenv("VLLM_NO_USAGE_STATS")
        stage()
        assert os.environ["VLLM_NO_USAGE_STATS"] == found


@pytest.mark.parametrize("reads_weights", [True, False])
def test_a_process_refuses_a_folder_that_was_replaced_since_the_job_began(tmp_path: Path, reads_weights: bool) -> None:
    settings = _folder(tmp_path)
    began = content_of(settings)
    stage = vllm_engine._pinned_class(_Stage, settings, began, reads_weights=reads_weights)
    assert stage(model=str(tmp_path)).kwargs == {"model": str(tmp_path)}
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=rf"{tmp_path} has changed, or differs on the machine {socket.gethostname()}"):
        stage(model=str(tmp_path))


def test_only_the_process_that_loads_the_weights_reads_them_for_the_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = _folder(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    began, read = content_of(settings), []
    digest = model_files._sha256
    monkeypatch.setattr(model_files, "_sha256", lambda path: read.append(path.name) or digest(path))
    vllm_engine._pinned_class(_Stage, settings, began, reads_weights=False)()
    assert read == ["config.json"]
    (tmp_path / "model.safetensors").write_bytes(b"changed")
    vllm_engine._pinned_class(_Stage, settings, began, reads_weights=False)()
    with pytest.raises(ConfigError, match="has changed"):
        vllm_engine._pinned_class(_Stage, settings, began, reads_weights=True)()


def test_a_machine_says_what_it_has_or_why_the_engine_cannot_be_used_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = _folder(tmp_path)
    here = {"machine": socket.gethostname()}
    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    missing = "the engine vllm is not installed. Install the extra: pip install 'asap-ray[vllm]'."
    assert facts_there(settings.model_dump()) == here | {"error": missing}
    monkeypatch.setattr(loading, "find_spec", lambda name: name)
    assert facts_there(settings.model_dump()) == here | {"content": content_of(settings)}
    on_hub = CAPTIONS.model_copy(update={"source": "some/name"})
    monkeypatch.setattr(vllm_engine, "find_commit", lambda name, revision: f"{name} at {revision}")
    assert facts_there(on_hub.model_dump()) == here | {"revision": "some/name at main"}


def test_the_record_has_what_decides_the_descriptions() -> None:
    record = record_of(CAPTIONS.model_copy(update={"vllm": _vllm(gpus=2)}))
    assert record["prompt"] == "Give the caption of this picture"
    assert (record["gpus"], record["options"], record["temperature"]) == (2, {"max_model_len": 4096}, 0.0)


def _vllm(**changes: Any) -> Any:
    values = {"engine": "vllm", "source": "m", "vllm": {"options": {"max_model_len": 4096}} | changes}
    return DescriptionSettings(**values).vllm
