import dataclasses
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

from asap.corpus.picture_cache import PictureCache, PictureSizes
from asap.corpus.reader import Record
from asap.errors import DecodeFailed
from asap.evaluation.evaluate import evaluate_records, evaluate_split
from asap.evaluation.table import words_sentence
from asap.labels import TYPES
from asap.model.asap import Fused
from asap.preprocessing.text import TextCodec, train_tokenizer
from asap.training.dataset import TrainingSet
from jobs.train.data.splits import Split
from tests.support.tiny import tiny_model

TEXTS = ("the angry man waits", "a calm woman", "people dance in the rain")
NAMES = ("AUC", "mAP", "token_F1", "token_F1_published", "IoU_mean", "IoU_mean_boxed")
CLASSES = ("orig", "face_swap", "text_swap", "face_attribute&text_swap", "orig", "text_attribute", "face_swap")


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    folder = tmp_path_factory.mktemp("pictures")
    tokenizer = train_tokenizer(TEXTS, 100)
    model = tiny_model(vocab_size=len(tokenizer))
    records = [
        Record(
            id=str(number), image=folder / f"{number}.png", text=(text := TEXTS[number % 3]), fake_cls=name,
            fake_image_box=(4, 4, 30, 30) if "face" in name else (), fake_text_pos=(0,) if "text" in name else (),
            caption=text, explanation=text,
        )
        for number, name in enumerate(CLASSES)
    ]  # fmt: skip
    noise = np.random.default_rng(0).integers(0, 255, (len(records), 48, 48, 3), dtype=np.uint8)
    sizes = np.full((len(records), 2), 48, np.int32)
    pictures = PictureCache(noise, sizes, {record.image: row for row, record in enumerate(records)})
    return Split(TrainingSet(records, pictures, TextCodec(tokenizer)), model.config)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_figures_do_not_depend_on_the_batches(split: Split, batch_size: int) -> None:
    model = tiny_model(vocab_size=split.config.vocab_size)
    whole = evaluate_split(model, split.pairs)
    assert whole["pairs"] == len(CLASSES)
    report = evaluate_split(model, split.pairs, batch_size)
    assert {name: report[name] for name in NAMES} == pytest.approx({name: whole[name] for name in NAMES}, abs=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_evaluated_in_eval_mode_and_its_mode_is_restored(split: Split, training: bool) -> None:
    model = tiny_model(vocab_size=split.config.vocab_size)
    calm = evaluate_split(model, split.pairs)
    dropping = tiny_model(vocab_size=split.config.vocab_size, dropout=0.5).train(training)
    before = {name: value.clone() for name, value in dropping.state_dict().items()}

    assert evaluate_split(dropping, split.pairs) == calm

    assert dropping.training is training
    torch.testing.assert_close(dropping.state_dict(), before, rtol=0, atol=0)


def test_a_split_without_boxes_has_all_other_figures(split: Split) -> None:
    records = [record for record in split.pairs.records if "face" not in record.fake_cls]
    tokenizer = train_tokenizer(TEXTS, 100)
    boxless = dataclasses.replace(split, pairs=TrainingSet(records, split.pairs.pictures, TextCodec(tokenizer)))
    report = evaluate_split(tiny_model(vocab_size=split.config.vocab_size), boxless.pairs)
    assert report["IoU_mean_boxed"] is None
    assert report["AUC"] is not None


def with_unknown_words(split: Split, *classes: str) -> TrainingSet:
    """Return the pairs of `split`, those of some classes without word positions."""
    records = [
        dataclasses.replace(record, fake_text_pos=None) if record.fake_cls in classes else record
        for record in split.pairs.records
    ]
    return TrainingSet(records, split.pairs.pictures, split.pairs.codec)


def test_without_word_positions_there_are_no_figures_of_words(split: Split) -> None:
    model = tiny_model(vocab_size=split.config.vocab_size)
    report, whole = evaluate_split(model, with_unknown_words(split, *CLASSES)), evaluate_split(model, split.pairs)
    assert (report["word_labeled_pairs"], whole["word_labeled_pairs"]) == (0, len(CLASSES))
    names = [name for name in report if name.startswith("token_")]
    assert len(names) == 12
    assert {report[name] for name in names} == {None}
    assert whole["token_F1"] is not None
    for name in ("AUC", "mAP", "IoU_mean"):
        assert report[name] == whole[name]
    assert words_sentence(report).startswith("There are no figures of words")
    assert words_sentence(whole) == ""


def test_texts_with_unknown_words_take_no_part_in_the_figures_of_words(split: Split) -> None:
    model = tiny_model(vocab_size=split.config.vocab_size)
    report = evaluate_split(model, with_unknown_words(split, "text_swap"))
    left = [record for record in split.pairs.records if record.fake_cls != "text_swap"]
    expected = evaluate_split(model, TrainingSet(left, split.pairs.pictures, split.pairs.codec))
    names = [name for name in report if name.startswith("token_")]
    assert {name: report[name] for name in names} == {name: expected[name] for name in names}
    assert report["by_class"]["text_swap"]["token_F1"] is None
    assert "over 6 of 7 pairs" in words_sentence(report)


@pytest.fixture
def on_disk(split: Split, tmp_path: Path) -> list[Record]:
    """Write the pictures of `split` to files and return its records with these."""
    records = [dataclasses.replace(record, image=tmp_path / record.image.name) for record in split.pairs.records]
    for pixels, record in zip(split.pairs.pictures.pixels, records, strict=True):
        Image.fromarray(pixels).save(record.image)
    return records


@pytest.mark.parametrize("batch_size", [2, 64])
def test_records_give_the_figures_of_the_prepared_split(split: Split, on_disk: list[Record], batch_size: int) -> None:
    model = tiny_model(vocab_size=split.config.vocab_size)
    found = evaluate_records(model, split.pairs.codec, on_disk, batch_size)
    assert len(found) == len(CLASSES)
    assert found.predictions().types.tolist() == [[float(t in name.split("&")) for t in TYPES] for name in CLASSES]
    report, wanted = found.compute(), evaluate_split(model, split.pairs)
    assert {name: report[name] for name in NAMES} == pytest.approx({name: wanted[name] for name in NAMES}, abs=1e-5)


def test_pictures_that_are_not_cached_are_decoded_by_one_pool_for_all_batches(
    split: Split, on_disk: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = PictureSizes(split.pairs.pictures.sizes, {r.image: n for n, r in enumerate(on_disk)}, 48)
    measured = TrainingSet(on_disk, sizes, split.pairs.codec)
    model = tiny_model(vocab_size=split.config.vocab_size)
    pools = mock.Mock(side_effect=ThreadPoolExecutor)
    monkeypatch.setattr("asap.evaluation.evaluate.ThreadPoolExecutor", pools)
    assert evaluate_split(model, measured, 2) == evaluate_split(model, split.pairs, 2)
    assert pools.call_count == 2  # one for each split


def test_a_picture_that_two_records_share_is_evaluated_with_both(split: Split, on_disk: list[Record]) -> None:
    model = tiny_model(vocab_size=split.config.vocab_size)
    shared = [on_disk[0], dataclasses.replace(on_disk[3], image=on_disk[0].image)]
    assert evaluate_records(model, split.pairs.codec, shared).predictions().has_box.tolist() == [False, True]


def test_a_picture_that_cannot_be_decoded_is_named(split: Split, on_disk: list[Record]) -> None:
    on_disk[4].image.write_bytes(on_disk[4].image.read_bytes()[:200])
    with pytest.raises(DecodeFailed, match=r"4\.png"):
        evaluate_records(tiny_model(vocab_size=split.config.vocab_size), split.pairs.codec, on_disk)


def test_words_are_evaluated_under_the_published_alignment_too(split: Split) -> None:
    model = tiny_model(vocab_size=split.config.vocab_size)
    report = evaluate_split(model, split.pairs)  # without punctuation both alignments are the same
    assert report["token_F1"] is not None
    assert report["token_F1_published"] == report["token_F1"]


def test_elsewhere_evaluates_a_text_beside_the_picture_before_it(split: Split) -> None:
    model = tiny_model(vocab_size=split.config.vocab_size)
    assert evaluate_split(model, split.pairs)["AP_elsewhere"] is None
    fused_images: list[torch.Tensor] = []
    fuse = model.fuse

    def fuse_and_keep(image: torch.Tensor, *rest: torch.Tensor) -> Fused:
        fused_images.append(image)
        return fuse(image, *rest)

    with mock.patch.object(model, "fuse", fuse_and_keep):
        report = evaluate_split(model, split.pairs, elsewhere=True)
    own, other = fused_images
    assert torch.equal(other[1:], own[:-1])
    assert torch.equal(other[0], own[-1])
    assert all(0 < value <= 1 for value in report["AP_elsewhere"])
    # A batch of a single pair has no other picture.
    assert evaluate_split(model, split.pairs, batch_size=1, elsewhere=True)["AP_elsewhere"] is None
