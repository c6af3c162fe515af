"""Sources are checked before anything is loaded."""

from __future__ import annotations

import tempfile
from pathlib import Path

import boto3
import pytest

from asap.errors import ConfigError
from jobs.descriptions import loading
from jobs.descriptions.loading import check_source, load_engine
from jobs.descriptions.probe import request_of
from jobs.descriptions.settings import DescriptionSettings
from jobs.errors import InputNotFound
from tests.support.tiny_captioners import save_blip
from tests.support.uploads import upload_folder


def _endpoint(source: str, key_env: str | None = None) -> DescriptionSettings:
    way = {"address": "https://host/v1", "key_env": key_env}
    return DescriptionSettings(engine="openai", source=source, endpoint=way)  # type: ignore[arg-type]


def test_a_model_of_an_endpoint_is_its_name() -> None:
    assert check_source(_endpoint("tiny")) == "tiny"
    with pytest.raises(InputNotFound, match="no model of an endpoint"):
        check_source(_endpoint(" "))


def test_a_missing_key_is_named_before_work_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(ConfigError, match="the environment variable NO_SUCH_KEY is not set"):
        check_source(_endpoint("tiny", "NO_SUCH_KEY"))


def test_another_revision_of_a_model_on_the_hub_has_another_fingerprint() -> None:
    settings = DescriptionSettings(engine="transformers", source="some/name")
    assert check_source(settings) != check_source(settings.model_copy(update={"revision": "v2"}))


def test_vllm_that_is_not_installed_names_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'asap-ray\[vllm\]'"):
        check_source(DescriptionSettings(engine="vllm", source=str(tmp_path)))


@pytest.mark.parametrize("engine", ["vllm", "precomputed"])
def test_an_engine_of_another_form_is_not_loaded(engine: str) -> None:
    with pytest.raises(ConfigError, match=f"the engine {engine} does not describe requests"):
        load_engine(DescriptionSettings(engine=engine, source="x"))  # type: ignore[arg-type]


@pytest.mark.usefixtures("scratch")
def test_a_model_in_a_bucket_has_a_fingerprint_and_describes_as_its_folder_does(bucket: str, tmp_path: Path) -> None:
    save_blip(tmp_path / "blip")
    (tmp_path / "blip" / "pytorch_model.bin").write_bytes(b"pickled")
    address = upload_folder(tmp_path / "blip", bucket, "captioners/blip")
    here, there = (
        DescriptionSettings(engine="transformers", source=source) for source in (str(tmp_path / "blip"), address)
    )
    assert check_source(there) == check_source(there)
    written = [load_engine(settings, "cpu").describe([request_of(settings)]) for settings in (here, there)]
    assert written[0] == written[1]
    assert load_engine(there, "cpu").record()["model"] == address
    assert not [*Path(tempfile.gettempdir()).rglob("pytorch_model.bin")]

    before = check_source(there)
    (tmp_path / "blip" / "config.json").write_text((tmp_path / "blip" / "config.json").read_text() + " ")
    upload_folder(tmp_path / "blip", bucket, "captioners/blip")
    assert check_source(there) != before


def test_a_folder_of_a_bucket_that_holds_no_model_is_refused(bucket: str) -> None:
    client = boto3.client("s3")
    settings = DescriptionSettings(engine="transformers", source=f"s3://{bucket}/blip")
    client.put_object(Bucket=bucket, Key="blip/pytorch_model.bin", Body=b"pickled")
    with pytest.raises(InputNotFound, match=r"is not a model folder: it has no config\.json"):
        check_source(settings)
    client.put_object(Bucket=bucket, Key="blip/config.json", Body=b"{}")
    with pytest.raises(InputNotFound, match="has no weights in safetensors, and no others are read from a bucket"):
        check_source(settings)
