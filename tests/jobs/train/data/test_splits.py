"""Splits that are prepared for a run."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
from PIL import Image

from asap.corpus.picture_cache import PictureCache
from asap.errors import CorpusError
from asap.model.config import ModelConfig
from asap.preprocessing.text import train_tokenizer
from asap.storage.location import Location
from jobs.train.data import splits
from jobs.train.data.splits import (
    Split,
    cache_pictures,
    choose_ingest,
    data_of,
    prepare_splits,
    read_splits,
    single_class_notes,
)
from jobs.train.run_folder.folder import RunFolder
from jobs.train.settings import TrainSettings

CONFIG = ModelConfig.tiny(image_size=32, width=48, heads=4)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Four pairs in each split."""
    folder = tmp_path / "corpus"
    (folder / "metadata").mkdir(parents=True)
    for split in ("train", "val", "test"):
        rows = []
        for number in range(4):
            noise = np.random.default_rng(number).integers(0, 255, (40, 50, 3), dtype=np.uint8)
            Image.fromarray(noise).save(folder / f"{split}{number}.png")
            rows.append({"id": number, "image": f"{split}{number}.png", "text": f"a man {number}", "fake_cls": "orig"})
        (folder / f"metadata/{split}.json").write_text(json.dumps(rows))
    return folder


@pytest.fixture
def prepare(corpus: Path, tmp_path: Path) -> Callable[..., tuple[RunFolder, TrainSettings]]:
    folder = RunFolder(tmp_path / "out")
    train_tokenizer(["a man 0 1 2 3"], 100).save_pretrained(folder.tokenizer)

    def prepared(progress: Any = lambda event: None, **changes: Any) -> tuple[RunFolder, TrainSettings]:
        settings = TrainSettings(**{"corpus": str(corpus), "out": str(folder.path)} | changes)
        prepare_splits(folder, settings, read_splits(settings, "dgm4"), CONFIG, progress)
        return folder, settings

    return prepared


def test_a_broken_picture_is_left_out_and_reported_below_the_limit(corpus: Path, prepare: Any) -> None:
    (corpus / "train2.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    events: list[dict[str, Any]] = []
    folder, settings = prepare(events.append, missing_images=0.25)
    pairs = Split.open(settings, folder, "train", CONFIG).pairs
    assert [record.id for record in pairs.records] == ["0", "1", "3"]
    report = json.loads(folder.corpus.read_text())
    assert (report["ingest"], report["train"]["pairs"], report["train"]["records"]) == ("cache", 4, 3)
    assert report["train"]["broken_images"]["count"] == 1
    lines = "\n".join(events[-1]["corpus"])
    assert f"left out because their picture cannot be decoded: picture {corpus}/train2.png" in lines
    assert "explanations: none are given; this is a run without them" in lines


def test_broken_and_missing_pictures_count_together(corpus: Path, prepare: Any) -> None:
    (corpus / "val2.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    (corpus / "val3.png").unlink()
    with pytest.raises(
        CorpusError, match=r"2 of 4 pairs of val .* 50\.00% where missing_images allows 30\.00%: .*val2"
    ):
        prepare(missing_images=0.3)


def test_prepared_splits_are_not_prepared_again(prepare: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = prepare()
    monkeypatch.setattr(splits, "_decode_or_measure", lambda *_: pytest.fail("it was decoded again"))
    prepare()
    assert len(list(folder.path.glob("index/*.parquet"))) == 3


def test_a_test_corpus_is_read_by_its_own_files(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "captions.json").write_text(json.dumps({"0": "a coat"}))
    values = {"corpus": str(corpus), "out": "out", "captions": [str(tmp_path / "captions.json")]}
    assert read_splits(TrainSettings(**values), "dgm4")["test"].records[0].caption == "a coat"
    found = read_splits(TrainSettings(**values, test_corpus=str(corpus)), "dgm4")
    assert found["train"].records[0].caption == "a coat"
    assert found["test"].records[0].caption == "a man 0"


def test_the_settings_may_name_the_files_of_a_split(corpus: Path) -> None:
    settings = TrainSettings(
        corpus=str(corpus), out="out", files={"train": ["metadata/val.json", "metadata/test.json"]}
    )
    assert data_of(read_splits(settings, "dgm4")["train"])["pairs"] == 8


def test_pictures_are_cached_if_they_are_local_and_fit(corpus: Path) -> None:
    def chosen(**changes: Any) -> str:
        settings = TrainSettings(corpus=str(corpus), out="out", **changes)
        return choose_ingest(settings, read_splits(settings, "dgm4"), 1024)

    assert chosen() == "cache"
    assert chosen(cache_gib=0.03) == "stream"  # 12 pictures of 3 MiB
    assert chosen(ingest="stream") == "stream"
    assert chosen(ingest="cache", cache_gib=0) == "cache"


def test_pairs_of_one_class_are_reported_and_so_are_the_first_ones_that_validate(corpus: Path) -> None:
    def notes(**changes: Any) -> list[str]:
        settings = TrainSettings(corpus=str(corpus), out="", **changes)
        return single_class_notes(settings, read_splits(settings, "dgm4"))

    assert notes(validation_pairs=3) == [
        "the training pairs (4) are all authentic: the model learns no difference",
        "the validation pairs (3) are all authentic: no checkpoint has an AUC, so the last one becomes the model",
    ]
    # Metadata that is sorted by class: the first pairs of the validation split are of one class, all of them are not.
    for split in ("train", "val"):
        path = corpus / f"metadata/{split}.json"
        rows = json.loads(path.read_text())
        for row in rows[:2]:
            row |= {"fake_cls": "text_swap", "fake_text_pos": [0]}
        path.write_text(json.dumps(rows))
    (note,) = notes(validation_pairs=2)
    assert note.startswith("the validation pairs (2) are all manipulated: no checkpoint has an AUC")
    assert notes(validation_pairs=None) == notes(validation_pairs=0) == notes() == []


# A run that goes on where its pictures are not decoded yet


@pytest.fixture
def no_validation(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return a function after which pictures of a split must not be decoded to check them."""

    def forbid() -> None:
        monkeypatch.setattr(splits, "_decode_or_measure", lambda *_: pytest.fail("it was decoded again"))

    return forbid


def test_a_run_at_s3_goes_on_on_another_machine_without_decoding_its_pictures_again(
    corpus: Path, tmp_path: Path, bucket: str, no_validation: Callable[[], None]
) -> None:
    (corpus / "train2.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    machines = [RunFolder(tmp_path / name, Location(f"s3://{bucket}/run")) for name in ("first", "second")]
    train_tokenizer(["a man 0 1 2 3"], 100).save_pretrained(machines[0].tokenizer)
    machines[0].push("tokenizer")
    settings = TrainSettings(corpus=str(corpus), out=f"s3://{bucket}/run", missing_images=0.25)
    prepare_splits(machines[0], settings, read_splits(settings, "dgm4"), CONFIG, lambda event: None)
    assert list(machines[0].pictures.iterdir())
    keys = [entry["Key"] for entry in boto3.client("s3").list_objects_v2(Bucket=bucket)["Contents"]]
    assert {f"run/index/{split}.parquet" for split in ("train", "val", "test")} <= set(keys)
    assert not any("pictures" in key for key in keys), "decoded pictures stay on their machine"

    no_validation()
    second = machines[1]
    second.refresh()
    second.pull("index")
    events: list[dict[str, Any]] = []
    prepare_splits(second, settings, read_splits(settings, "dgm4"), CONFIG, events.append)
    assert [list(event) for event in events] == [["corpus", "ingest"]], "no picture was decoded"
    assert "1 pairs were left out because their picture cannot be decoded" in "\n".join(events[0]["corpus"])
    assert not second.pictures.exists()

    cache_pictures(second, CONFIG, events.append)
    assert [event["stage"] for event in events[1:]] == ["decoding train pictures", "decoding val pictures"]
    pairs = Split.open(settings, second, "train", CONFIG).pairs
    assert [record.id for record in pairs.records] == ["0", "1", "3"]
    first = Split.open(settings, machines[0], "train", CONFIG).pairs
    np.testing.assert_array_equal(pairs.sample(2).pixels, first.sample(2).pixels)
    cache_pictures(second, CONFIG, lambda event: pytest.fail("they were decoded twice"))


def test_an_index_serves_a_corpus_that_has_moved(
    corpus: Path, tmp_path: Path, prepare: Any, no_validation: Callable[[], None]
) -> None:
    (corpus / "train2.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    prepare(missing_images=0.25)
    moved = tmp_path / "moved"
    shutil.move(corpus, moved)
    no_validation()
    folder, settings = prepare(missing_images=0.25, corpus=str(moved))
    cache_pictures(folder, CONFIG, lambda event: None)
    pairs = Split.open(settings, folder, "train", CONFIG).pairs
    assert [record.image for record in pairs.records] == [moved / f"train{number}.png" for number in (0, 1, 3)]
    assert pairs.pictures.sizes[pairs.pictures.index[pairs.records[0].image]].tolist() == [50, 40]


def test_a_run_may_go_on_with_another_ingest_without_decoding(prepare: Any, no_validation: Callable[[], None]) -> None:
    folder, _ = prepare()
    shutil.rmtree(folder.pictures)
    no_validation()
    _, settings = prepare(ingest="stream")
    cache_pictures(folder, CONFIG, lambda event: pytest.fail("a stream needs no cache"))
    assert not isinstance(Split.open(settings, folder, "val", CONFIG).pairs.pictures, PictureCache)


def test_a_split_can_be_opened_without_decoding_its_pictures(prepare: Any) -> None:
    folder, settings = prepare()
    assert isinstance(Split.open(settings, folder, "test", CONFIG, may_decode=False).pairs.pictures, PictureCache)
    shutil.rmtree(folder.pictures)
    split = Split.open(settings, folder, "test", CONFIG, may_decode=False)
    assert not isinstance(split.pairs.pictures, PictureCache)
    assert len(split.pairs) == 4
    assert not folder.pictures.exists()


def test_a_picture_that_has_become_unreadable_is_named(corpus: Path, prepare: Any) -> None:
    folder, settings = prepare()
    shutil.rmtree(folder.pictures)
    (corpus / "val1.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    with pytest.raises(CorpusError, match=r"val1\.png.* It could be decoded when this run began\. Restore the picture"):
        Split.open(settings, folder, "val", CONFIG)
