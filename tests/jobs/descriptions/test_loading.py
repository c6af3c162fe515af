"""Sources are checked before anything is loaded."""

from __future__ import annotations

import tempfile
from pathlib import Path

import boto3
import pytest

from asap.errors import ConfigError
from jobs.descriptions import loading
from jobs.descriptions.loading import check_source, is_small, load_engine, located
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


def test_the_captioner_that_ships_is_known_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "demo").mkdir()
    monkeypatch.chdir(tmp_path)  # a folder of this name is another captioner, `./demo`
    settings = DescriptionSettings(engine="transformers", source="demo")
    folder = Path(settings.place)
    assert (folder / "README.md").is_file()
    assert check_source(settings) == check_source(DescriptionSettings(engine="transformers", source=str(folder)))
    assert located(settings).source == "demo"  # every machine has it in its own installation
    with pytest.raises(InputNotFound, match="is not a model folder"):
        check_source(DescriptionSettings(engine="transformers", source="./demo"))


def test_vllm_takes_no_model_of_a_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "find_spec", lambda name: name)
    with pytest.raises(InputNotFound, match="'s3://b/m' is neither a folder of this machine nor a name on the hub"):
        check_source(DescriptionSettings(engine="vllm", source="s3://b/m"))


def test_vllm_that_is_not_installed_names_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'asap-ray\[vllm\]'"):
        check_source(DescriptionSettings(engine="vllm", source=str(tmp_path)))


def test_a_folder_that_only_machines_of_a_cluster_have_is_its_path(tmp_path: Path) -> None:
    gone, empty = tmp_path / "gone", tmp_path / "empty"
    empty.mkdir()
    settings = DescriptionSettings(engine="transformers", source=str(gone))
    assert check_source(settings, is_here=False) == str(gone)
    with pytest.raises(InputNotFound, match="it has no config"):
        check_source(settings)
    with pytest.raises(InputNotFound, match="it has no config"):
        check_source(settings.model_copy(update={"source": str(empty)}), is_here=False)


def test_workers_get_the_whole_path_of_what_is_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()

    def source(engine: str, given: str) -> str:
        return located(DescriptionSettings(engine=engine, source=given)).source  # type: ignore[arg-type]

    assert {source("transformers", given) for given in ("model", "./model", "~/model")} == {str(tmp_path / "model")}
    assert source("transformers", "some/name") == "some/name"
    assert source("precomputed", "captions.json") == str(tmp_path / "captions.json")
    assert source("precomputed", "s3://b/captions.json") == "s3://b/captions.json"


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


def test_the_size_of_the_weights_makes_a_model_small(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_blip(tmp_path / "blip")
    upload_folder(tmp_path / "blip", bucket, "blip")
    sources = [str(tmp_path / "blip"), f"s3://{bucket}/blip"]

    def small(source: str, engine: str = "transformers") -> bool:
        return is_small(DescriptionSettings(engine=engine, source=source))  # type: ignore[arg-type]

    assert [small(source) for source in sources] == [True, True]
    assert small("demo")
    assert not small("owner/model"), "nobody knows the size of a model on the hub"
    assert not small(str(tmp_path / "elsewhere"))
    assert not small(str(tmp_path / "blip"), "precomputed")
    monkeypatch.setattr(loading, "_SMALL_BYTES", 1000)
    assert [small(source) for source in sources] == [False, False]


def test_a_folder_of_a_bucket_that_holds_no_model_is_refused(bucket: str) -> None:
    client = boto3.client("s3")
    settings = DescriptionSettings(engine="transformers", source=f"s3://{bucket}/blip")
    client.put_object(Bucket=bucket, Key="blip/pytorch_model.bin", Body=b"pickled")
    with pytest.raises(InputNotFound, match=r"is not a model folder: it has no config\.json"):
        check_source(settings)
    client.put_object(Bucket=bucket, Key="blip/config.json", Body=b"{}")
    with pytest.raises(InputNotFound, match="has no weights in safetensors, and no others are read from a bucket"):
        check_source(settings)
