"""No process of a job describes with another model than the one that the job began with."""

from __future__ import annotations

import json
import os
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest

from asap.errors import ConfigError
from asap.storage.location import Location
from jobs.annotate.stage import DescribeStage, Order
from jobs.descriptions.pinning import content_of, pinned
from jobs.descriptions.probe import probe
from jobs.descriptions.settings import DescriptionSettings
from jobs.scan.stages.captioners import check_captioner
from jobs.scan.stages.describe import DescriptionStage
from tests.support.tiny_captioners import change_weights, save_encoder_decoder
from tests.support.uploads import upload_folder

INPUT = Location("/in")
ON_HUB = DescriptionSettings(engine="transformers", source="some/name", max_new_tokens=4)


def _model(source: Path | str, **changes: Any) -> DescriptionSettings:
    return DescriptionSettings(engine="transformers", source=str(source), max_new_tokens=4, **changes)


def test_copies_of_a_folder_have_one_fingerprint_and_other_weights_of_the_same_size_another(tmp_path: Path) -> None:
    save_encoder_decoder(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    for path in (tmp_path / "two").iterdir():
        os.utime(path, (1, 1))
    one, two = _model(tmp_path / "one"), _model(tmp_path / "two")
    assert content_of(one) == content_of(two)
    change_weights(tmp_path / "two")
    assert content_of(one) != content_of(two)


def test_only_files_that_a_model_is_read_from_decide_its_fingerprint(tmp_path: Path) -> None:
    save_encoder_decoder(tmp_path)
    settings = _model(tmp_path)
    began = content_of(settings)
    (tmp_path / "README.md").write_text("about the model")
    (tmp_path / "checkpoint-7").mkdir()
    (tmp_path / "checkpoint-7" / "model.safetensors").write_bytes(b"of a training that goes on")
    assert content_of(settings) == began
    found = {began}
    for name in ("pytorch_model.bin", "chat_template.jinja", "additional_chat_templates/tools.jinja"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"content")
        found.add(content_of(settings))
    assert len(found) == 4


def test_a_model_of_a_bucket_has_another_fingerprint_once_it_is_replaced(bucket: str, tmp_path: Path) -> None:
    save_encoder_decoder(tmp_path)
    settings = _model(upload_folder(tmp_path, bucket, "captioner"))
    began = content_of(settings)
    upload_folder(tmp_path, bucket, "captioner")
    assert content_of(settings) == began
    change_weights(tmp_path)
    upload_folder(tmp_path, bucket, "captioner")
    assert content_of(settings) != began


def test_models_on_the_hub_and_of_endpoints_have_no_files_here() -> None:
    endpoint = {"address": "https://host/v1"}
    assert content_of(DescriptionSettings(engine="openai", source="tiny", endpoint=endpoint)) is None  # type: ignore[arg-type]
    assert content_of(ON_HUB) is None


def test_only_a_model_on_the_hub_is_pinned_by_its_commit(tmp_path: Path) -> None:
    record = {"revision": "0123abc"}
    assert pinned(ON_HUB, record).revision == "0123abc"
    assert pinned(ON_HUB, None) == pinned(ON_HUB, {}) == ON_HUB
    folder, remote = _model(tmp_path), _model("s3://bucket/captioner")
    assert (pinned(folder, record), pinned(remote, record)) == (folder, remote)


@pytest.mark.slow
def test_the_trial_records_the_files_and_the_commit_and_a_pinned_name_stays_at_its_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub is the copy of it on this machine, whose main branch moves on."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    repository = tmp_path / "models--some--name"
    (repository / "refs").mkdir(parents=True)
    commits = ["1" * 40, "2" * 40]
    for commit in commits:
        save_encoder_decoder(repository / "snapshots" / commit)
        (repository / "refs" / "main").write_text(commit)
        assert probe(ON_HUB, "cpu").record["revision"] == commit
    stays = pinned(ON_HUB, {"revision": commits[0]})
    assert probe(stays, "cpu").record["revision"] == commits[0]

    folder = _model(repository / "snapshots" / commits[0])
    assert probe(folder, "cpu").record["content"] == content_of(folder)


def test_a_stage_refuses_a_model_that_was_replaced_since_the_job_began(tmp_path: Path) -> None:
    save_encoder_decoder(tmp_path)
    settings = _model(tmp_path)
    began = content_of(settings)
    DescriptionStage(settings, INPUT, "cpu", content=began)
    DescribeStage(Order(settings, INPUT, "cpu", content=began))

    change_weights(tmp_path)
    found = content_of(settings)
    sentence = (
        f"the captioner {tmp_path} has changed, or differs on the machine {socket.gethostname()}: the fingerprint of "
        f"its files is {found}, and was {began}. Restore it, or choose another folder for the job."
    )
    with pytest.raises(ConfigError) as caught:
        DescriptionStage(settings, INPUT, "cpu", content=began)
    assert str(caught.value) == sentence
    with pytest.raises(ConfigError) as caught:
        DescribeStage(Order(settings, INPUT, "cpu", content=began))
    assert str(caught.value) == sentence
    # Rows that ended its process are written without it.
    DescriptionStage(settings, INPUT, is_left_out=True, content=began)


def test_a_stage_refuses_a_file_of_captions_that_was_replaced_since_the_job_began(tmp_path: Path) -> None:
    file = tmp_path / "captions.json"
    file.write_text(json.dumps({"p": "a man smiles"}))
    settings = DescriptionSettings(engine="precomputed", source=str(file))
    began = check_captioner(settings)
    DescriptionStage(settings, INPUT, content=began)
    file.write_text(json.dumps({"p": "a man frowns"}))
    with pytest.raises(ConfigError, match=r"captions\.json has changed, or differs on the machine"):
        DescriptionStage(settings, INPUT, content=began)
