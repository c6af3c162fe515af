"""The first weights and the tokenizer in the run folder before the workers start."""

import tempfile
from pathlib import Path
from typing import Any

import boto3
import pytest
import torch

from asap.errors import CheckpointError, ConfigError, StorageError
from asap.preprocessing.text import load_tokenizer, train_tokenizer
from asap.weights.model_folder import load, save
from jobs.train.run_folder.folder import RunFolder
from jobs.train.settings import TrainSettings
from jobs.train.start import prepare_start
from jobs.train.trainer import model_config
from tests.support.tiny import tiny_model
from tests.support.uploads import upload_folder

WORDS = ["a man smiles at the crowd", "the minister leaves"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A model folder with a tokenizer of its own."""
    tokenizer = train_tokenizer(WORDS, 100)
    return save(tiny_model(vocab_size=len(tokenizer)), tmp_path / "source", tokenizer=tokenizer)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    (tmp_path / "run").mkdir()
    return RunFolder(tmp_path / "run")


def settings_for(source: Path, *init: str, **changes: Any) -> TrainSettings:
    shape = {name: value for name, value in vars(load(source).config).items() if name != "vocab_size"}
    return TrainSettings(corpus="c", out="o", model=shape, init=init or (str(source),), queue_size=8, **changes)


def prepared(folder: RunFolder, settings: TrainSettings) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    prepare_start(folder, settings, model_config, events.append)
    return events


def test_a_model_folder_brings_its_weights_and_its_tokenizer(folder: RunFolder, source: Path) -> None:
    events = prepared(folder, settings_for(source))
    assert load_tokenizer(folder.tokenizer).get_vocab() == train_tokenizer(WORDS, 100).get_vocab()
    assert [event["start"] for event in events] == [str(source)]
    assert "left fresh: none" in events[0]["report"]
    assert (folder.start.parent / "report.txt").read_text() == f"{source}\n{events[0]['report']}\n\n"
    assert folder.start.exists()


def test_a_tokenizer_made_of_the_corpus_leaves_the_words_fresh(folder: RunFolder, source: Path) -> None:
    events = prepared(folder, settings_for(source, tokenizer="train"))
    assert not folder.tokenizer.exists()
    assert "left fresh: 1 tensors (text_encoder 1)" in events[0]["report"]


def test_a_tokenizer_of_the_settings_wins_and_embeddings_are_taken_if_it_has_the_same_words(
    folder: RunFolder, source: Path, tmp_path: Path
) -> None:
    train_tokenizer(["another text of other words"], 90).save_pretrained(tmp_path / "other")
    assert "text_encoder 1" in prepared(folder, settings_for(source, tokenizer=str(tmp_path / "other")))[0]["report"]
    (tmp_path / "second").mkdir()
    same = RunFolder(tmp_path / "second")
    events = prepared(same, settings_for(source, tokenizer=str(source / "tokenizer")))
    assert "left fresh: none" in events[0]["report"]


def test_a_tokenizer_of_the_settings_can_be_the_name_of_one_to_download(
    folder: RunFolder, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def download(name: str, **_: Any) -> Any:
        asked.append(name)
        return load_tokenizer(source / "tokenizer")

    monkeypatch.setattr("asap.weights.pretrained._downloaded_tokenizer", download)
    events = prepared(folder, settings_for(source, tokenizer="bert-of-a-hub"))
    assert asked == ["bert-of-a-hub"]
    assert "left fresh: none" in events[0]["report"]
    assert folder.tokenizer.exists()


def test_word_embeddings_without_a_tokenizer_are_refused(folder: RunFolder, source: Path, tmp_path: Path) -> None:
    torch.save({"any": torch.zeros(1)}, tmp_path / "some.pth")
    with pytest.raises(
        ConfigError, match=r"some\.pth has word embeddings but no tokenizer .* --set tokenizer=bert-base-uncased"
    ):
        prepared(folder, settings_for(source, str(tmp_path / "some.pth")))


def test_a_run_resumes_without_its_source(folder: RunFolder, source: Path) -> None:
    settings = settings_for(source)
    prepared(folder, settings)
    source.rename(source.with_name("gone"))
    assert prepared(folder, settings) == []


def test_a_run_from_random_weights_prepares_nothing(folder: RunFolder) -> None:
    assert prepared(folder, TrainSettings(corpus="c", out="o")) == []
    assert list(folder.path.iterdir()) == []


def test_a_start_that_does_not_fit_leaves_no_weights(folder: RunFolder, source: Path) -> None:
    wider = TrainSettings(corpus="c", out="o", model={"width": 96, "heads": 4}, init=(str(source),))
    with pytest.raises(CheckpointError, match=r"has text_norm|does not fit"):
        prepared(folder, wider)
    assert not folder.start.exists()


@pytest.mark.usefixtures("scratch")
def test_a_model_folder_at_s3_is_fetched_and_reported_as_it_was_typed(
    folder: RunFolder, source: Path, bucket: str
) -> None:
    uri = upload_folder(source, bucket, "models/one")
    events = prepared(folder, settings_for(source, uri))
    assert [event["start"] for event in events] == [uri]
    assert folder.tokenizer.exists()
    with pytest.raises(StorageError, match=r"init s3://.*/nothing does not exist"):
        prepared(RunFolder(folder.path / "x"), settings_for(source, f"s3://{bucket}/nothing"))


@pytest.mark.parametrize("setting", ["init", "tokenizer"])
@pytest.mark.parametrize(("address", "key"), [("one", "../../../escaped"), ("one/..", "escaped")])
def test_a_source_at_s3_writes_nothing_outside_the_scratch_folder(
    setting: str,
    address: str,
    key: str,
    folder: RunFolder,
    bucket: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scratch = tmp_path / "outer" / "scratch"
    scratch.mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    for name in ("!first", key):
        boto3.client("s3").put_object(Bucket=bucket, Key=f"models/{address}/{name}", Body=b"x")
    before = sorted(tmp_path.rglob("*"))
    uri = f"s3://{bucket}/models/{address}"
    source = {"init": (uri,)} if setting == "init" else {"tokenizer": uri}
    with pytest.raises(StorageError, match=r"its name is no path below one: 's3://.*/models/one/\.\."):
        prepared(folder, TrainSettings(corpus="c", out="o", **source))
    assert sorted(tmp_path.rglob("*")) == before
