"""The trial of an engine on the cluster of its job."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray

from asap.errors import ConfigError
from jobs.descriptions.probe import Probe, read_probe
from jobs.descriptions.settings import DescriptionSettings
from jobs.errors import JobDiffers
from jobs.scan.pipeline import StageResources
from jobs.scan.trial import describe_failure_at_vllm, try_engine
from jobs.settings import ClusterSettings
from jobs.sharing import Claim, held_share
from tests.support.busy import hold_cpus
from tests.support.endpoint import completion, endpoint
from tests.support.fake_vllm import SETTINGS as VLLM
from tests.support.fake_vllm import fake_vllm
from tests.support.tiny_captioners import WORDS, save_encoder_decoder
from tests.support.waiting import wait_until

HERE = "which is already joined"
"""The tests' own Ray stands for the cluster: a Ray that runs in this process is used, whatever the address."""


def _try(settings: DescriptionSettings, notify: Callable[[str], None] = pytest.fail, **changes: Any) -> dict[str, Any]:
    job = ClusterSettings(address=HERE, **changes)
    return try_engine(settings, job, _find_room, notify)


def _find_room() -> tuple[StageResources, str]:
    share = held_share()
    assert share is not None
    share.replace(Claim({"CPU": 0.5}, {"CPU": 0.5}))
    return StageResources(0.5), "cpu"


def _model(folder: Path) -> DescriptionSettings:
    return DescriptionSettings(engine="transformers", source=str(folder), max_new_tokens=4)


@pytest.mark.slow
def test_a_model_is_tried_in_a_process_of_the_cluster(ray_here: None, tmp_path: Path) -> None:
    save_encoder_decoder(tmp_path)
    notes: list[str] = []
    record = _try(_model(tmp_path), notes.append)
    assert set(record["wrote"].split()) <= set(WORDS)
    assert (record["device"], record["machine"]) == ("cpu", socket.gethostname())
    assert notes == [f"the captioner {tmp_path} describes a gray picture on {socket.gethostname()}: {record['wrote']}"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("prompt", "sentence"),
    [
        ("bad {text}", r"does not work: ValueError: The prompt is longer than the model can read\. Lower"),
        ("deadly {text}", r"the captioner some/name cannot be used by vLLM: .*/tmp/ray/session_\S+/logs"),
    ],
)
def test_stages_of_vllm_that_describe_nothing_are_an_error_of_the_trial(
    ray_here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prompt: str, sentence: str
) -> None:
    settings = DescriptionSettings(**VLLM, kind="explanation", prompt=prompt)  # type: ignore[arg-type]
    room = StageResources(0.1, 0, 1), "cpu"
    with fake_vllm(monkeypatch, tmp_path), pytest.raises(ConfigError, match=sentence):
        try_engine(settings, ClusterSettings(), lambda: room, lambda _: None)


def test_an_error_of_vllm_names_the_logs_and_what_memory_depends_on() -> None:
    settings = DescriptionSettings(**VLLM)  # type: ignore[arg-type]
    error = RuntimeError("Traceback:\nRuntimeError: Engine core initialization failed. See root cause above.")
    assert describe_failure_at_vllm(settings, error, "session_1") == (
        "the captioner some/name cannot be used by vLLM: RuntimeError: Engine core initialization failed. See root "
        "cause above. The logs of Ray on the machine of the model say why: /tmp/ray/session_1/logs, or below the "
        "--temp-dir that Ray was started with. If the memory of the GPU is too small, lower max_model_len, or change "
        "gpu_memory_utilization, in vllm.options."
    )
    refused = RuntimeError("Traceback:\nasap.errors.ConfigError: the chat template cannot be used. Give another model.")
    assert describe_failure_at_vllm(settings, refused, "session_1") == (
        "the captioner some/name cannot be used by vLLM: asap.errors.ConfigError: the chat template cannot be used. "
        "Give another model."
    )


def test_a_folder_that_the_cluster_lacks_is_an_error_with_the_name_of_the_machine(
    ray_here: None, tmp_path: Path
) -> None:
    with pytest.raises(
        ConfigError, match=r"it has no config\.json\. This is so on .*, a machine of the cluster"
    ) as caught:
        _try(_model(tmp_path / "gone"))
    assert socket.gethostname() in str(caught.value)


def test_a_key_that_the_cluster_lacks_is_an_error(ray_here: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY_OF_THE_DRIVER", "sk-secret")
    way = {"address": "http://127.0.0.1:1/v1", "key_env": "KEY_OF_THE_DRIVER"}
    settings = DescriptionSettings(engine="openai", source="tiny", endpoint=way)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"KEY_OF_THE_DRIVER is not set.* This is so on") as caught:
        _try(settings)
    assert "sk-secret" not in str(caught.value)


def test_a_process_that_dies_there_is_an_error(ray_here: None, tmp_path: Path) -> None:
    died = ray.remote(max_retries=0)(lambda: os._exit(9)).remote()
    with pytest.raises(ConfigError, match="its process on a machine of the cluster ended before it had described"):
        read_probe(_model(tmp_path), died)


def test_a_trial_that_waits_for_machines_says_for_what_and_claims_it(ray_here: None) -> None:
    holder = hold_cpus()
    notes: list[str] = []

    def has_claimed() -> bool:
        try:
            claims = ray.get_actor("claims", "asap")
            _, jobs = ray.get(claims.claim.remote("another", Claim({}, {})))
            ray.get(claims.release.remote("another"))
        except (ValueError, ray.exceptions.RayError):  # the actor of an earlier job is ending
            return False
        return bool(jobs == 2)  # other jobs make room for the trial

    def free_cpus(note: str) -> None:
        notes.append(note)
        if len(notes) == 1:
            wait_until(has_claimed)
            ray.kill(holder)

    with endpoint(lambda handler, _: handler.send(200, json.dumps(completion("gray")))) as (address, _):
        way = {"address": address, "key_env": None}
        settings = DescriptionSettings(engine="openai", source="tiny", endpoint=way)  # type: ignore[arg-type]
        assert _try(settings, free_cpus, stall_after_s=2)["wrote"] == "gray"
    assert "1 x (0.5 CPUs) is waited for" in notes[0]


def test_a_model_that_was_replaced_since_the_job_began_is_refused_before_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record: dict[str, Any] = {"content": "new"}
    monkeypatch.setattr("jobs.scan.trial.probe", lambda *_: Probe("a crowd", 0, 0, record))

    def run(former: dict[str, Any] | None) -> dict[str, Any]:
        return try_engine(_model(tmp_path), ClusterSettings(), pytest.fail, lambda _: None, former)

    with pytest.raises(JobDiffers) as caught:
        run({"content": "old"})
    assert str(caught.value) == (
        f"the captioner {tmp_path} has changed since the job began: the fingerprint of its files is new, and was old. "
        "Restore it, or choose another folder for the job."
    )
    # The same model, a first run, and records of earlier versions.
    for former in ({"content": "new"}, None, {}, {"revision": None}):
        assert run(former)["content"] == "new"


def test_a_model_on_the_hub_is_tried_at_the_commit_that_an_earlier_run_had(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[DescriptionSettings] = []

    def note(settings: DescriptionSettings, _: str | None) -> Probe:
        tried.append(settings)
        return Probe("a crowd", 0, 0, {})

    monkeypatch.setattr("jobs.scan.trial.probe", note)
    settings = DescriptionSettings(engine="transformers", source="some/name")
    try_engine(settings, ClusterSettings(), pytest.fail, lambda _: None, {"revision": "0123abc"})
    assert [each.revision for each in tried] == ["0123abc"]
