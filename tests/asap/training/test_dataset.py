import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from asap.corpus.picture_cache import PictureCache, PictureSizes
from asap.corpus.reader import read_split
from asap.corpus.report import CorpusReport
from asap.errors import AnnotationError, TextInvalid
from asap.model.config import ModelConfig
from asap.preprocessing.images import normalize
from asap.preprocessing.text import TextCodec, train_tokenizer
from asap.training import dataset
from asap.training.dataset import TrainingSet, collate, epoch_order
from asap.training.losses import IGNORED_TOKEN

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
"""A box of the 40 x 50 picture: 2, 2, 12, 12 of the square, in the upper left of its four patches."""


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
    """Return a function that reads the corpus when it is called."""

    def opened() -> TrainingSet:
        records = read_split(corpus, "train")
        return TrainingSet(records, PictureCache.prepare(records, SIZE, tmp_path / "cache"), codec)

    return opened


# Samples


def test_every_word_of_a_text_with_unknown_words_is_ignored(corpus: Path, open_set: Callable[[], TrainingSet]) -> None:
    write(corpus, [*ROWS[:2], ROWS[2] | {"fake_text_pos": []}])
    pairs = open_set()
    batch = collate([pairs.sample(number) for number in range(3)], CONFIG, pairs.pad_id)
    assert set(batch.token_labels[2].tolist()) == {IGNORED_TOKEN}
    assert 1 in batch.token_labels[1]
    assert (batch.token_labels[1] >= 0).sum() == batch.text.mask[1].sum() - 1
    assert batch.types[2].tolist() == [0, 0, 1, 0]
    assert batch.manipulated[2]


def test_a_sample_is_the_record_at_the_models_size(open_set: Callable[[], TrainingSet], codec: TextCodec) -> None:
    pairs = open_set()
    authentic, manipulated, _ = (pairs.sample(number) for number in range(3))

    assert len(pairs) == 3
    assert (authentic.box_xyxy, set(authentic.token_labels)) == (None, {0})
    assert manipulated.box_xyxy == pytest.approx((10 * 32 / 40, 10 * 32 / 50, 30 * 32 / 40, 40 * 32 / 50))
    assert manipulated.pixels.shape == (SIZE, SIZE, 3)
    labeled = codec.encode_labeled("an angry woman leaves the house", [1])
    assert manipulated.text_ids.tolist() == labeled.input_ids
    assert manipulated.token_labels.tolist() == labeled.token_labels
    assert 0 < sum(manipulated.token_labels) < len(manipulated.token_labels)
    assert manipulated.explanation_ids.tolist() == codec.encode_labeled("a woman goes away").input_ids
    assert manipulated.caption_ids.tolist() == manipulated.text_ids.tolist()


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
    assert flipped.token_labels.tolist() == plain.token_labels.tolist()


@pytest.mark.parametrize("augmentation", ["flip", "published"])
def test_a_sample_depends_on_seed_epoch_and_record_alone(
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


@pytest.mark.parametrize("field", ["text", "caption", "explanation"])
def test_a_pair_whose_texts_name_a_side_is_never_flipped(
    corpus: Path, codec: TextCodec, tmp_path: Path, field: str
) -> None:
    def boxes(changes: dict[str, str]) -> set[Any]:
        records = [dataclasses.replace(read_split(corpus, "train")[1], fake_image_box=(2, 10, 12, 40), **changes)]
        pairs = TrainingSet(records, PictureCache.prepare(records, SIZE, tmp_path / "cache"), codec)
        return {pairs.sample(0, augmentation="published", epoch=epoch).box_xyxy for epoch in range(20)}

    assert len(boxes({field: "an angry woman leftovers"})) == 2
    assert len(boxes({field: "an angry woman left"})) == 1


def test_a_sample_takes_a_picture_that_is_not_cached(open_set: Callable[[], TrainingSet], codec: TextCodec) -> None:
    cached = open_set()
    pictures = PictureSizes(cached.pictures.sizes, cached.pictures.index, SIZE)
    pairs = TrainingSet(cached.records, pictures, codec)
    assert pairs.view(1) == cached.view(1)
    given = pairs.sample_with(1, cached.sample(1).pixels, pairs.view(1).box_xyxy)
    assert given.text_ids.tolist() == cached.sample(1).text_ids.tolist()
    assert given.box_xyxy == cached.sample(1).box_xyxy
    with pytest.raises(TypeError, match="not cached"):
        pairs.sample(1)


def test_pairs_whose_picture_is_broken_are_left_out_and_counted(
    open_set: Callable[[], TrainingSet], codec: TextCodec
) -> None:
    cached, report = open_set(), CorpusReport("", "", "", records=3)
    broken = {cached.records[0].image: "picture a.png: truncated"}
    pairs = TrainingSet(
        cached.records, dataclasses.replace(cached.pictures, broken=broken), codec, bad_boxes="skip", report=report
    )
    assert [record.id for record in pairs.records] == ["2"]
    assert (report.records, report.broken_images.count) == (1, 2)
    assert "2 pairs were left out because their picture cannot be decoded: picture a.png: truncated" in str(report)


def test_epochs_are_the_same_without_augmentation(open_set: Callable[[], TrainingSet]) -> None:
    pairs = open_set()
    assert all(np.array_equal(pairs.sample(1, epoch=epoch).pixels, pairs.sample(1).pixels) for epoch in range(5))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"fake_image_box": [900, 900, 950, 950]}, AnnotationError, r"record 2.*covers nothing of the 40 x 50 picture"),
        ({"text": "...", "fake_text_pos": []}, TextInvalid, r"record 2.*no word is left"),
    ],
)
def test_the_error_of_a_bad_annotation_names_its_record(
    corpus: Path, open_set: Callable[[], TrainingSet], change: dict[str, Any], error: type[Exception], message: str
) -> None:
    write(corpus, [ROWS[0], ROWS[1] | change])
    with pytest.raises(error, match=message):
        open_set()


@pytest.fixture
def outside(corpus: Path, codec: TextCodec, tmp_path: Path) -> Callable[..., TrainingSet]:
    """Return a function that opens a training set with another box in its second record."""

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
def test_a_pair_can_be_kept_without_its_box(outside: Callable[..., TrainingSet], box: tuple[float, ...]) -> None:
    report = CorpusReport("", "", "", records=3)
    pairs = outside(box, bad_boxes="boxless", report=report)
    for kind in ("published", "authentic", "dense"):
        batch = collate([pairs.sample(number) for number in range(3)], CONFIG, pairs.pad_id, mpp_labels=kind)
        assert batch.manipulated.tolist() == [False, True, True]
        assert batch.has_box.tolist() == [False, False, False]
        assert batch.patch_labels[1].tolist() == [-1] * 4
        assert batch.patch_labels[0].tolist() == [-1 if kind == "published" else 0] * 4
        assert not batch.patch_mask.any()
    assert (report.boxless.count, report.records) == (1 if box else 0, 3)  # an empty box is reported when it is read


def test_a_pair_whose_box_is_outside_can_be_left_out(outside: Callable[..., TrainingSet]) -> None:
    report = CorpusReport("", "", "", records=3)
    pairs = outside((900, 900, 950, 950), bad_boxes="skip", report=report)
    assert [record.id for record in pairs.records] == ["1", "three"]
    assert (len(pairs), report.records, report.skipped.count) == (2, 2, 1)
    assert pairs.sample(1).types.tolist() == [0, 0, 1, 0]
    assert "covers nothing of the 40 x 50 picture" in str(report)


def test_a_record_is_labeled_by_its_label_set(corpus: Path, codec: TextCodec, tmp_path: Path) -> None:
    second = read_split(corpus, "train")[1]
    record = dataclasses.replace(second, fake_cls="swap_manipulation", label_set="samm")
    pairs = TrainingSet([record], PictureCache.prepare([record], SIZE, tmp_path / "cache"), codec)
    assert pairs.sample(0).types.tolist() == [1, 0, 0, 1]
    assert pairs.sample(0).box_xyxy is not None
    with pytest.raises(AnnotationError, match="record 2: fake_cls 'swap_manipulation' is unknown; DGM4 has orig"):
        TrainingSet([dataclasses.replace(record, label_set="dgm4")], pairs.pictures, codec)


# Batches


def test_a_batch_is_padded_and_labeled(open_set: Callable[[], TrainingSet]) -> None:
    pairs = open_set()
    batch = collate([pairs.sample(number) for number in range(3)], CONFIG, pairs.pad_id)

    assert (batch.images.shape, batch.images.dtype) == ((3, SIZE, SIZE, 3), torch.uint8)
    assert torch.equal(
        batch.normalized().images, normalize(np.stack([pairs.sample(number).pixels for number in range(3)]))
    )
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


def test_texts_that_a_step_does_not_read_are_not_padded(open_set: Callable[[], TrainingSet]) -> None:
    pairs = open_set()
    samples = [pairs.sample(number) for number in range(3)]
    whole = collate(samples, CONFIG, pairs.pad_id)
    captions = collate(samples, CONFIG, pairs.pad_id, descriptions=("caption",))
    assert [part.shape for part in captions.explanation] == [(3, 0), (3, 0)]
    kept = {name: value for name, value in vars(whole).items() if name != "explanation"}
    torch.testing.assert_close({name: vars(captions)[name] for name in kept}, kept, rtol=0, atol=0)


def test_no_text_is_tokenized_after_construction(
    open_set: Callable[[], TrainingSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = open_set()
    monkeypatch.setattr(TextCodec, "encode_labeled", None)
    assert len(collate([pairs.sample(number) for number in range(3)], CONFIG, pairs.pad_id).images) == 3


def test_patches_can_be_labeled_as_published_or_more_densely(corpus: Path, open_set: Callable[[], TrainingSet]) -> None:
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
        if field.name not in ("text", "caption", "explanation", "token_labels", "image_tokens"):
            assert torch.equal(getattr(alone, field.name)[0], getattr(whole, field.name)[1]), field.name


def test_each_epoch_shows_every_pair_once_in_its_own_order() -> None:
    first, second = epoch_order(50, 1, 0), epoch_order(50, 1, 1)
    assert sorted(first.tolist()) == list(range(50))
    assert first.tolist() != second.tolist()
    assert first.tolist() == epoch_order(50, 1, 0).tolist()
    assert first.tolist() != epoch_order(50, 2, 0).tolist()
