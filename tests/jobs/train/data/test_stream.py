"""Batches streamed by Ray Data, beside those out of the cache."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray
import torch
from PIL import Image

from asap.corpus.folder import LocalFolder
from asap.corpus.picture_cache import PictureCache
from asap.corpus.reader import Record, read_corpus
from asap.errors import CorpusError, StorageError
from asap.model.config import ModelConfig
from asap.preprocessing.text import TextCodec, train_tokenizer
from asap.training.batch import Batch
from asap.training.dataset import TrainingSet
from jobs.errors import JobFailed
from jobs.train.data import stream as ingest
from jobs.train.data.feed import CacheFeed, Order
from jobs.train.data.stream import Decoding, StreamFeed, decode_block, measure_block, measure_pictures, open_feed
from jobs.train.settings import TrainSettings
from tests.support.waiting import HANG_S

SIZE = 32
CONFIG = ModelConfig.tiny(image_size=SIZE, width=48, heads=4)
PAIRS = 30
ONE_TASK = Decoding(1, 0.5)


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    """Pairs with and without a face, some of whose texts name a side."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "metadata").mkdir()
    rows = []
    for number in range(PAIRS):
        noise = np.random.default_rng(number).integers(0, 255, (40 + number, 50, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.png")
        rows.append({
            "id": number, "image": f"{number}.png",
            "text": f"the man {'on the left' if number % 3 else 'behind'} waits {number}",
            "fake_cls": "face_swap" if number % 2 else "orig",
            "fake_image_box": [5, 5.25, 25 + number / 3, 38] if number % 2 else [], "fake_text_pos": [],
        })  # fmt: skip
    (folder / "metadata/train.json").write_text(json.dumps(rows))
    return read_corpus(LocalFolder(folder), "train").records


@pytest.fixture(scope="module")
def codec(records: list[Record]) -> TextCodec:
    return TextCodec(train_tokenizer([record.text for record in records], 200))


@pytest.fixture(scope="module")
def settings() -> TrainSettings:
    return TrainSettings(corpus="corpus", out="out", pairs=96, batch_size=8, augmentation="published", seed=5)


@pytest.fixture(scope="module")
def cached(records: list[Record], codec: TextCodec, tmp_path_factory: pytest.TempPathFactory) -> TrainingSet:
    return TrainingSet(records, PictureCache.prepare(records, SIZE, tmp_path_factory.mktemp("cache")), codec)


@pytest.fixture(scope="module")
def measured(ray_here: None, records: list[Record], codec: TextCodec) -> TrainingSet:
    return TrainingSet(records, measure_pictures(records, SIZE, lambda done: None, ONE_TASK), codec)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks that end within a step, and pipelines that end within an epoch."""
    monkeypatch.setattr(ingest, "_BLOCK", 3)
    monkeypatch.setattr(ingest, "_WINDOW", 40)


def stream(pairs: TrainingSet, settings: TrainSettings, decoding: Decoding = ONE_TASK, **order: int) -> StreamFeed:
    return StreamFeed(pairs, CONFIG, settings, Order.of(settings, len(pairs), **order), decoding)


@pytest.fixture(autouse=True)
def closed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No pipeline outlives its test."""
    opened: list[StreamFeed] = []
    monkeypatch.setattr(StreamFeed, "__post_init__", opened.append, raising=False)
    yield
    for feed in opened:
        feed.close()


def cache(pairs: TrainingSet, settings: TrainSettings, **order: int) -> CacheFeed:
    return CacheFeed(pairs, CONFIG, settings, Order.of(settings, len(pairs), **order))


def assert_same(one: Batch, other: Batch) -> None:
    torch.testing.assert_close(vars(one), vars(other), rtol=0, atol=0)


# Sizes


def test_every_picture_is_measured_as_the_cache_measures_it(
    measured: TrainingSet, cached: TrainingSet, records: list[Record]
) -> None:
    assert measured.pictures.sizes.tolist() == cached.pictures.sizes.tolist()
    assert measured.pictures.index == cached.pictures.index
    assert [measured.view(number) for number in range(PAIRS)] == [cached.view(number) for number in range(PAIRS)]


def test_pictures_that_cannot_be_decoded_are_told_by_name(
    ray_here: None, records: list[Record], tmp_path: Path
) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff broken")
    images = [records[0].image, tmp_path / "broken.jpg", tmp_path / "gone.jpg", records[1].image]
    some = [dataclasses.replace(records[0], image=image) for image in images]
    seen: list[int] = []
    found = measure_pictures(some, SIZE, seen.append, ONE_TASK)
    assert list(found.broken) == images[1:3]
    assert found.broken[images[1]].startswith(f"picture {images[1]}: the JPEG image is truncated or corrupt")
    assert found.sizes.tolist() == [[50, 40], [0, 0], [0, 0], [50, 41]]
    assert seen[-1] == 4


def test_a_store_that_gives_nothing_stops_it(s3: str, ray_here: None, records: list[Record]) -> None:
    away = dataclasses.replace(records[0], image="s3://no-such-bucket-anywhere/a.jpg")
    table = measure_block(pa.table({"image": [away.image]}), SIZE).to_pylist()
    assert table[0]["problem"].startswith(f"picture {away.image}: the object does not exist")

    def refused(place: Any) -> bytes:
        raise StorageError(f"picture {place} cannot be read, after 4 tries: denied")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ingest, "read_picture", refused)
        (row,) = measure_block(pa.table({"image": [away.image]}), SIZE).to_pylist()
        assert row["is_storage"]
        blocks = iter([pa.Table.from_pylist([row])])
        patched.setattr(ingest, "_run", lambda *_: blocks)
        with pytest.raises(StorageError, match=r"a\.jpg cannot be read, after 4 tries: denied"):
            measure_pictures([away], SIZE, lambda done: None)


# Batches


@pytest.mark.parametrize("tasks", [1, 3])
@pytest.mark.parametrize(("augmentation", "lock_image_from"), [("published", 1.0), ("flip", 1.0), ("published", 0.5)])
def test_the_stream_gives_the_batches_of_the_cache_whatever_the_number_of_tasks(
    measured: TrainingSet, cached: TrainingSet, settings: TrainSettings, small_blocks: None, tasks: int,
    augmentation: str, lock_image_from: float,
) -> None:  # fmt: skip
    settings = settings.model_copy(update={"augmentation": augmentation, "lock_image_from": lock_image_from})
    streamed = stream(measured, settings, Decoding(tasks, 0.25))
    kept = cache(cached, settings)
    for step in range(kept.order.total_steps):
        assert_same(streamed.batch(step), kept.batch(step))
    assert streamed._views is None  # the pipeline ended with the run


def test_two_workers_share_the_steps_that_one_takes(
    measured: TrainingSet, cached: TrainingSet, settings: TrainSettings, small_blocks: None
) -> None:
    whole = cache(cached, settings)
    parts = [stream(measured, settings, rank=rank, world=2) for rank in range(2)]
    for step in range(5):
        images = torch.cat([part.batch(step).images for part in parts])
        assert torch.equal(images, whole.batch(step).images)


def test_a_step_may_be_asked_for_in_pieces_or_anew(
    measured: TrainingSet, cached: TrainingSet, settings: TrainSettings
) -> None:
    streamed, kept = stream(measured, settings), cache(cached, settings)
    for step, rows in ((2, slice(0, 5)), (2, slice(5, 8)), (3, slice(0, 8)), (1, slice(3, 8)), (2, slice(0, 2))):
        assert_same(streamed.batch(step, rows), kept.batch(step, rows))


def test_what_was_trained_on_before_a_resume_is_not_decoded_again(
    cached: TrainingSet, settings: TrainSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[int, int]] = []

    def run(tables: list[pa.Table], *_: Any) -> Iterator[pa.Table]:
        given.extend((row["number"], row["epoch"]) for table in tables for row in table.to_pylist())
        return iter(())

    monkeypatch.setattr(ingest, "_run", run)
    feed = stream(cached, settings)
    assert list(feed._stream(10, 3)) == []
    steps = [feed.order.rows_of_step(step) for step in (10, 11)]
    order = [(number, epoch) for numbers, epoch in steps for number in numbers]
    assert given == order[3:]


def test_a_picture_that_is_gone_since_ends_the_run_by_its_name(
    cached: TrainingSet, settings: TrainSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(place: Path) -> Path:
        return place.with_suffix(".gone")

    monkeypatch.setattr(ingest, "read_picture", gone)
    monkeypatch.setattr(ingest, "_run", lambda tables, task, given, _: (task(table, **given) for table in tables))
    with pytest.raises(CorpusError, match=r"picture .*\.png: no file at .*it could be read and decoded before"):
        stream(cached, settings).batch(0)


def test_rows_out_of_order_are_never_trained_on(
    cached: TrainingSet, settings: TrainSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest, "_run", lambda tables, task, given, _: (task(table[1:], **given) for table in tables))
    with pytest.raises(JobFailed, match=r"the ingest gave record \d+ of epoch 0 where \d+ of 0 was due"):
        stream(cached, settings).batch(0)


def test_a_block_is_a_function_of_its_rows(cached: TrainingSet, settings: TrainSettings) -> None:
    feed = stream(cached, settings)
    places = [(number, epoch) for epoch in (0, 4) for number in (7, 3, 9)]
    whole = decode_block(feed._table(places), SIZE, "published", 5)
    parts = [decode_block(feed._table([place]), SIZE, "published", 5) for place in places]
    assert whole.equals(pa.concat_tables(parts).combine_chunks())


# The machines


def test_decoding_takes_what_training_leaves_free(ray_here: None) -> None:
    assert Decoding.beside(1, 1) == Decoding(1, 1.0)
    assert Decoding.beside(1, 0.5) == Decoding(1, 1.0)
    assert Decoding.beside(2, 1) == Decoding(1, 0.0)
    assert Decoding.beside(1, 2, tasks=3) == Decoding(3, 0.0)


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "cpus"), [(2, 1.0), (2, 0.5), (1, 2.0)])
def test_workers_that_hold_the_cpus_are_fed(
    ray_here: None, measured: TrainingSet, cached: TrainingSet, settings: TrainSettings, workers: int, cpus: float
) -> None:
    class Trainer:  # an actor: unlike a task, it keeps its CPUs while it waits
        def digests(self, rank: int) -> list[float]:
            feed = open_feed(settings, measured, CONFIG, Order.of(settings, PAIRS, rank, workers), cpus)
            assert isinstance(feed, StreamFeed)
            return [feed.batch(step).images.double().sum().item() for step in range(feed.order.total_steps)]

    trainers = [ray.remote(num_cpus=cpus)(Trainer).remote() for _ in range(workers)]
    found = ray.get([trainer.digests.remote(rank) for rank, trainer in enumerate(trainers)], timeout=HANG_S)
    for trainer in trainers:
        ray.kill(trainer)
    for rank in range(workers):
        feed = cache(cached, settings, rank=rank, world=workers)
        assert found[rank] == [feed.batch(step).images.double().sum().item() for step in range(feed.order.total_steps)]


def test_pairs_with_a_cache_are_fed_from_it(cached: TrainingSet, settings: TrainSettings) -> None:
    order = Order.of(settings, PAIRS)
    assert open_feed(settings, cached, CONFIG, order, 1) == CacheFeed(cached, CONFIG, settings, order)
