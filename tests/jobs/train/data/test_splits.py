"""Splits that are prepared for a run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from asap.errors import CorpusError
from asap.model.config import ModelConfig
from asap.preprocessing.text import train_tokenizer
from jobs.train.data import splits
from jobs.train.data.splits import (
    Split,
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
        settings = TrainSettings(corpus=str(corpus), out=str(folder.path), **changes)
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
