import dataclasses
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from asap import dataset
from asap.config import ModelConfig
from asap.corpus_report import CorpusReport
from asap.dataset import PictureCache, TrainingSet, collate, epoch_order, read_split
from asap.errors import AnnotationError, DecodeFailed, EmptyFile, ImageMissing, TextInvalid
from asap.images import prepare_image
from asap.text import TextCodec, train_tokenizer

SIZE = 32
CONFIG = ModelConfig.tiny(image_size=SIZE, width=48, heads=4)
ROWS: list[dict[str, Any]] = [
    {"id": 1, "image": "images/a.png", "text": "a calm man waits", "fake_cls": "orig", "fake_image_box": [],
     "fake_text_pos": []},
    {"id": 2, "image": "images/b.png", "text": "an angry woman leaves the house",
     "fake_cls": "face_swap&text_attribute", "fake_image_box": [10, 10, 30, 40], "fake_text_pos": [1]},
    {"id": "three", "image": "images/a.png", "text": "people dance", "fake_cls": "text_swap", "fake_image_box": [],
     "fake_text_pos": [0, 1]},
]  # fmt: skip

CORNER = [2.5, 3.125, 15, 18.75]
"""Of the 40 x 50 picture: 2, 2, 12, 12 of the square, in the upper left of its four patches."""


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    (folder / "images").mkdir(parents=True)
    (folder / "metadata").mkdir()
    for name, size in (("a", (80, 60)), ("b", (40, 50))):
        noise = np.random.default_rng(ord(name)).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"images/{name}.png")
    write(folder, ROWS)
    (folder / "captions.json").write_text(json.dumps({"1": "a man in a coat", "three": "two people"}))
    (folder / "explanations.json").write_text(json.dumps({"2": "a woman goes away"}))
    return folder


def write(corpus: Path, rows: Any) -> None:
    (corpus / "metadata" / "train.json").write_text(json.dumps(rows))


@pytest.fixture
def codec() -> TextCodec:
    texts = [str(row["text"]) for row in ROWS] + ["a man in a coat", "two people", "a woman goes away"]
    return TextCodec(train_tokenizer(texts, 200), max_words=20, max_tokens=24)


@pytest.fixture
def open_set(corpus: Path, codec: TextCodec, tmp_path: Path) -> Callable[[], TrainingSet]:
    """Reads what the corpus holds when it is called."""

    def opened() -> TrainingSet:
        records = read_split(corpus, "train")
        return TrainingSet(records, PictureCache.prepare(records, SIZE, tmp_path / "cache"), codec)

    return opened


# Pictures


def test_a_picture_is_decoded_once_for_all_that_show_it(corpus: Path, tmp_path: Path) -> None:
    cache = PictureCache.prepare(read_split(corpus, "train"), SIZE, tmp_path / "cache")
    assert cache.pixels.shape == (2, SIZE, SIZE, 3)
    assert cache.sizes.tolist() == [[80, 60], [40, 50]]
    for path, row in cache.index.items():
        assert np.array_equal(cache.pixels[row], prepare_image(path, SIZE).pixels)


def test_the_cache_is_a_file_that_workers_share_and_cannot_write(corpus: Path, tmp_path: Path) -> None:
    cache = PictureCache.prepare(read_split(corpus, "train"), SIZE, tmp_path / "cache")
    assert isinstance(cache.pixels, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        cache.pixels[0] = 0


def test_a_cache_that_is_there_is_used_again(corpus: Path, tmp_path: Path) -> None:
    records = read_split(corpus, "train")
    first, seen = PictureCache.prepare(records, SIZE, tmp_path / "cache"), list[int]()
    for path in first.index:
        path.unlink()
    again = PictureCache.prepare(records, SIZE, tmp_path / "cache", seen.append)
    assert seen == []
    assert np.array_equal(again.pixels, first.pixels)


def test_progress_tells_the_pictures_done(corpus: Path, tmp_path: Path) -> None:
    seen: list[int] = []
    PictureCache.prepare(read_split(corpus, "train"), SIZE, tmp_path / "cache", seen.append)
    assert seen == [2]


def test_another_size_or_other_pictures_have_a_cache_of_their_own(corpus: Path, tmp_path: Path) -> None:
    records = read_split(corpus, "train")
    assert PictureCache.prepare(records, SIZE, tmp_path / "cache").pixels.shape == (2, 32, 32, 3)
    assert PictureCache.prepare(records, 16, tmp_path / "cache").pixels.shape == (2, 16, 16, 3)
    assert PictureCache.prepare(records[1:2], SIZE, tmp_path / "cache").pixels.shape == (1, 32, 32, 3)


def test_a_cache_that_was_interrupted_is_made_again(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records, real = read_split(corpus, "train"), dataset.prepare_image

    def killed(path: Path, image_size: int) -> Any:
        if path.name == "b.png":
            raise KeyboardInterrupt
        return real(path, image_size)

    with monkeypatch.context() as patched:
        patched.setattr(dataset, "prepare_image", killed)
        with pytest.raises(KeyboardInterrupt):
            PictureCache.prepare(records, SIZE, tmp_path / "cache")
    assert any((tmp_path / "cache").iterdir())

    cache = PictureCache.prepare(records, SIZE, tmp_path / "cache")
    assert np.array_equal(cache.pixels[1], prepare_image(corpus / "images/b.png", SIZE).pixels)


@pytest.mark.parametrize(
    ("content", "error"), [(None, ImageMissing), (b"", EmptyFile), (b"\x89PNG\r\n\x1a\nbroken", DecodeFailed)]
)
def test_a_picture_that_cannot_be_read_is_named(
    corpus: Path, tmp_path: Path, content: bytes | None, error: type[Exception]
) -> None:
    path, records = corpus / "images/b.png", read_split(corpus, "train")
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(error, match=re.escape(str(path))):
        PictureCache.prepare(records, SIZE, tmp_path / "cache")


def test_pictures_that_are_no_files_are_read_as_the_caller_says(corpus: Path, tmp_path: Path) -> None:
    records = read_split(corpus, "train")
    elsewhere = [dataclasses.replace(record, image=f"s3://bucket/{Path(record.image).name}") for record in records]
    cache = PictureCache.prepare(
        elsewhere, SIZE, tmp_path / "cache", read=lambda place: (corpus / "images" / Path(place).name).read_bytes()
    )
    assert set(cache.index) == {"s3://bucket/a.png", "s3://bucket/b.png"}
    assert np.array_equal(cache.pixels[1], prepare_image(corpus / "images/b.png", SIZE).pixels)


# Samples


def test_a_sample_is_the_record_at_the_models_size(open_set: Callable[[], TrainingSet], codec: TextCodec) -> None:
    pairs = open_set()
    authentic, manipulated, _ = (pairs.sample(number) for number in range(3))

    assert len(pairs) == 3
    assert (authentic.box_xyxy, set(authentic.token_labels)) == (None, {0})
    assert manipulated.box_xyxy == pytest.approx((10 * 32 / 40, 10 * 32 / 50, 30 * 32 / 40, 40 * 32 / 50))
    assert manipulated.pixels.shape == (SIZE, SIZE, 3)
    labelled = codec.encode_labelled("an angry woman leaves the house", [1])
    assert (manipulated.text_ids, manipulated.token_labels) == (labelled.input_ids, labelled.token_labels)
    assert 0 < sum(manipulated.token_labels) < len(manipulated.token_labels)
    assert manipulated.explanation_ids == codec.encode_labelled("a woman goes away").input_ids
    assert manipulated.caption_ids == manipulated.text_ids


def test_a_flip_moves_the_box_and_the_patch_mask_to_the_other_side(
    corpus: Path, open_set: Callable[[], TrainingSet]
) -> None:
    write(corpus, [ROWS[0], ROWS[1] | {"fake_image_box": CORNER}])
    pairs = open_set()
    plain = pairs.sample(1)
    assert plain.box_xyxy == (2.0, 2.0, 12.0, 12.0)
    epochs = [pairs.sample(1, augmentation="flip", epoch=epoch) for epoch in range(20)]
    flipped = next(sample for sample in epochs if sample.box_xyxy != plain.box_xyxy)

    assert np.array_equal(flipped.pixels, plain.pixels[:, ::-1])
    assert flipped.box_xyxy == (20.0, 2.0, 30.0, 12.0)
    before, after = (collate([sample], CONFIG, pairs.pad_id) for sample in (plain, flipped))
    assert before.patch_mask.tolist() == [[1, 0, 0, 0]]
    assert after.patch_mask.tolist() == [[0, 1, 0, 0]]
    assert before.box_cxcywh[0].tolist() == pytest.approx([7 / 32, 7 / 32, 10 / 32, 10 / 32])
    assert after.box_cxcywh[0].tolist() == pytest.approx([25 / 32, 7 / 32, 10 / 32, 10 / 32])
    assert flipped.token_labels == plain.token_labels


@pytest.mark.parametrize("augmentation", ["flip", "published"])
def test_a_sample_follows_from_seed_epoch_and_record_alone(
    open_set: Callable[[], TrainingSet], augmentation: dataset.Augmentation
) -> None:
    pairs, others = open_set(), open_set()
    places = [(seed, epoch, number) for seed in range(2) for epoch in range(6) for number in range(2)]

    def draw(source: TrainingSet, seed: int, epoch: int, number: int) -> tuple[Any, ...]:
        sample = source.sample(number, augmentation=augmentation, seed=seed, epoch=epoch)
        return sample.pixels.tobytes(), sample.box_xyxy

    forward = [draw(pairs, *place) for place in places]
    backward = [draw(others, *place) for place in reversed(places)]
    assert forward == backward[::-1]
    for number in range(2):
        of_record = [drawn for drawn, place in zip(forward, places, strict=True) if place[2] == number]
        assert len(set(of_record)) > 1


def test_without_augmentation_no_epoch_differs(open_set: Callable[[], TrainingSet]) -> None:
    pairs = open_set()
    assert all(np.array_equal(pairs.sample(1, epoch=epoch).pixels, pairs.sample(1).pixels) for epoch in range(5))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"fake_image_box": [900, 900, 950, 950]}, AnnotationError, r"record 2.*covers nothing of the 40 x 50 picture"),
        ({"text": "...", "fake_text_pos": []}, TextInvalid, r"record 2.*no word is left"),
    ],
)
def test_an_annotation_that_cannot_be_used_is_named_by_its_record(
    corpus: Path, open_set: Callable[[], TrainingSet], change: dict[str, Any], error: type[Exception], message: str
) -> None:
    write(corpus, [ROWS[0], ROWS[1] | change])
    with pytest.raises(error, match=message):
        open_set()


@pytest.fixture
def outside(corpus: Path, codec: TextCodec, tmp_path: Path) -> Callable[..., TrainingSet]:
    """A set whose second record has another box."""

    def opened(box: tuple[float, ...], **given: Any) -> TrainingSet:
        first, second, third = read_split(corpus, "train")
        records = [first, dataclasses.replace(second, fake_image_box=box), third]
        return TrainingSet(records, PictureCache.prepare(records, SIZE, tmp_path / "cache"), codec, **given)

    return opened


def test_a_box_that_reaches_out_of_the_picture_is_clipped_and_reported(outside: Callable[..., TrainingSet]) -> None:
    report = CorpusReport("", "", "")
    assert outside((-8, 25, 20, 90), report=report).sample(1).box_xyxy == (0, 16, 16, 32)
    assert report.clipped_boxes.count == 1
    assert "[-8, 25, 20, 90] in 40 x 50 (id 2)" in str(report)


@pytest.mark.parametrize("box", [(900, 900, 950, 950), ()])
def test_a_pair_may_be_kept_without_its_box(outside: Callable[..., TrainingSet], box: tuple[float, ...]) -> None:
    report = CorpusReport("", "", "", records=3)
    pairs = outside(box, bad_boxes="boxless", report=report)
    for kind in ("published", "authentic", "dense"):
        batch = collate([pairs.sample(number) for number in range(3)], CONFIG, pairs.pad_id, mpp_labels=kind)
        assert batch.manipulated.tolist() == [False, True, True]
        assert batch.has_box.tolist() == [False, False, False]
        assert batch.patch_labels[1].tolist() == [-1] * 4
        assert batch.patch_labels[0].tolist() == [-1 if kind == "published" else 0] * 4
        assert not batch.patch_mask.any()
    assert (report.boxless.count, report.records) == (1 if box else 0, 3)  # an empty one was told of when it was read


def test_a_pair_whose_box_is_outside_may_be_left_out(outside: Callable[..., TrainingSet]) -> None:
    report = CorpusReport("", "", "", records=3)
    pairs = outside((900, 900, 950, 950), bad_boxes="skip", report=report)
    assert [record.id for record in pairs.records] == ["1", "three"]
    assert (len(pairs), report.records, report.skipped.count) == (2, 2, 1)
    assert pairs.sample(1).types.tolist() == [0, 0, 1, 0]
    assert "covers nothing of the 40 x 50 picture" in str(report)


def test_a_record_is_labelled_by_its_label_set(corpus: Path, codec: TextCodec, tmp_path: Path) -> None:
    second = read_split(corpus, "train")[1]
    record = dataclasses.replace(second, fake_cls="swap_manipulation", label_set="samm")
    pairs = TrainingSet([record], PictureCache.prepare([record], SIZE, tmp_path / "cache"), codec)
    assert pairs.sample(0).types.tolist() == [1, 0, 0, 1]
    assert pairs.sample(0).box_xyxy is not None
    with pytest.raises(AnnotationError, match="record 2: fake_cls 'swap_manipulation' is unknown; DGM4 has orig"):
        TrainingSet([dataclasses.replace(record, label_set="dgm4")], pairs.pictures, codec)


# Batches


def test_a_batch_is_padded_and_labelled(open_set: Callable[[], TrainingSet]) -> None:
    pairs = open_set()
    batch = collate([pairs.sample(number) for number in range(3)], CONFIG, pairs.pad_id)

    assert batch.images.shape == (3, 3, SIZE, SIZE)
    assert batch.images.dtype == torch.float32
    assert batch.manipulated.tolist() == [False, True, True]
    assert batch.types.tolist() == [[0, 0, 0, 0], [1, 0, 0, 1], [0, 0, 1, 0]]
    assert batch.has_box.tolist() == [False, True, False]
    assert not batch.box_cxcywh[[0, 2]].any()
    for text in (batch.text, batch.caption, batch.explanation):
        assert text.input_ids.shape == text.mask.shape
        assert (text.input_ids[text.mask == 0] == pairs.pad_id).all()
    assert batch.token_labels.shape == (3, batch.text.mask.shape[1] - 1)
    assert torch.equal(batch.token_labels == -100, batch.text.mask[:, 1:] == 0)
    assert batch.token_labels[2][batch.token_labels[2] >= 0].all()


def test_patches_may_be_labelled_as_published_or_more_densely(
    corpus: Path, open_set: Callable[[], TrainingSet]
) -> None:
    write(corpus, [ROWS[0], ROWS[1] | {"fake_image_box": CORNER}])
    pairs = open_set()
    samples = [pairs.sample(number) for number in range(2)]
    labels = {
        kind: collate(samples, CONFIG, pairs.pad_id, mpp_labels=kind).patch_labels.tolist()
        for kind in ("published", "authentic", "dense")
    }
    assert labels["published"] == [[-1, -1, -1, -1], [1, 0, 0, -1]]
    assert labels["authentic"] == [[0, 0, 0, 0], [1, 0, 0, -1]]
    assert labels["dense"] == [[0, 0, 0, 0], [1, 0, 0, 0]]


def test_a_pair_is_the_same_in_any_batch(open_set: Callable[[], TrainingSet]) -> None:
    pairs = open_set()
    whole = collate([pairs.sample(number) for number in range(3)], CONFIG, pairs.pad_id)
    alone = collate([pairs.sample(1)], CONFIG, pairs.pad_id)
    for field in dataclasses.fields(alone):
        if field.name not in ("text", "caption", "explanation", "token_labels"):
            assert torch.equal(getattr(alone, field.name)[0], getattr(whole, field.name)[1]), field.name


def test_an_epoch_shows_every_pair_once_in_an_order_of_its_own() -> None:
    first, second = epoch_order(50, 1, 0), epoch_order(50, 1, 1)
    assert sorted(first.tolist()) == list(range(50))
    assert first.tolist() != second.tolist()
    assert first.tolist() == epoch_order(50, 1, 0).tolist()
    assert first.tolist() != epoch_order(50, 2, 0).tolist()


def test_the_cache_survives_a_kill_between_its_two_files(corpus: Path, tmp_path: Path) -> None:
    records = read_split(corpus, "train")
    cache = PictureCache.prepare(records, SIZE, tmp_path / "cache")
    pixels = np.array(cache.pixels)
    del cache
    sizes = next((tmp_path / "cache").glob("*.sizes.npy"))
    sizes.unlink()
    next((tmp_path / "cache").glob("*.pixels.npy")).write_bytes(os.urandom(100))
    assert np.array_equal(PictureCache.prepare(records, SIZE, tmp_path / "cache").pixels, pixels)
