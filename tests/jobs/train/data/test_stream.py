"""Batches that Ray Data streams, compared with those from the cache."""

import dataclasses
import json
import math
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
from jobs.sharing import Claim, cpus_of_this_job, shared
from jobs.train.data import stream as stream_module
from jobs.train.data.feed import CacheFeed, Order
from jobs.train.data.prefetch import Prefetched
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
    monkeypatch.setattr(stream_module, "_BLOCK", 3)
    monkeypatch.setattr(stream_module, "_WINDOW", 40)


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


def test_pictures_that_cannot_be_decoded_are_named(ray_here: None, records: list[Record], tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff broken")
    images = [records[0].image, tmp_path / "broken.jpg", tmp_path / "gone.jpg", records[1].image]
    some = [dataclasses.replace(records[0], image=image) for image in images]
    seen: list[int] = []
    found = measure_pictures(some, SIZE, seen.append, ONE_TASK)
    assert list(found.broken) == images[1:3]
    assert found.broken[images[1]].startswith(f"picture {images[1]}: the JPEG image is truncated or corrupt")
    assert found.sizes.tolist() == [[50, 40], [0, 0], [0, 0], [50, 41]]
    assert seen[-1] == 4


def test_a_store_that_cannot_be_read_stops_the_measuring(s3: str, ray_here: None, records: list[Record]) -> None:
    away = dataclasses.replace(records[0], image="s3://no-such-bucket-anywhere/a.jpg")
    table = measure_block(pa.table({"image": [away.image]}), SIZE).to_pylist()
    assert table[0]["problem"].startswith(f"picture {away.image}: the object does not exist")

    def refused(address: Any) -> bytes:
        raise StorageError(f"picture {address} cannot be read, after 4 tries: denied")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(stream_module, "read_picture", refused)
        (row,) = measure_block(pa.table({"image": [away.image]}), SIZE).to_pylist()
        assert row["is_storage"]
        blocks = iter([pa.Table.from_pylist([row])])
        patched.setattr(stream_module, "_map_blocks", lambda *_: blocks)
        with pytest.raises(StorageError, match=r"a\.jpg cannot be read, after 4 tries: denied"):
            measure_pictures([away], SIZE, lambda done: None, ONE_TASK)


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
    assert streamed._rows is None  # the pipeline ended with the run


def test_a_stream_that_is_read_ahead_gives_the_same_batches(
    measured: TrainingSet, cached: TrainingSet, settings: TrainSettings, small_blocks: None
) -> None:
    streamed, kept = stream(measured, settings), cache(cached, settings)
    prefetched = Prefetched(streamed, kept.order.total_steps)
    for step in (0, 1, 2, 6, 7, 8, 9, 10, 11):  # a jump is a resume at another step
        assert_same(prefetched.batch(step), kept.batch(step))
    assert streamed._rows is None  # the pipeline ended with the run


def test_captions_are_left_out_of_steps_that_do_not_read_them(cached: TrainingSet, settings: TrainSettings) -> None:
    # No term reads them until the alignment joins, at the last tenth of twelve steps.
    feed = cache(cached, settings.model_copy(update={"recipe": "asap"}))
    assert [feed.batch(step).caption.mask.shape[1] > 0 for step in range(12)] == [False] * 11 + [True]
    hammer = dataclasses.replace(CONFIG, variant="hammer")
    feed = CacheFeed(cached, hammer, settings.model_copy(update={"recipe": "hammer"}), feed.order)
    assert not any(feed.batch(step).explanation.mask.shape[1] for step in range(12))


@pytest.mark.slow
def test_two_workers_share_the_steps_that_one_takes(
    measured: TrainingSet, cached: TrainingSet, settings: TrainSettings, small_blocks: None
) -> None:
    whole = cache(cached, settings)
    parts = [stream(measured, settings, rank=rank, world=2) for rank in range(2)]
    for step in range(5):
        images = torch.cat([part.batch(step).images for part in parts])
        assert torch.equal(images, whole.batch(step).images)


def test_a_step_can_be_requested_in_parts_and_again(
    measured: TrainingSet, cached: TrainingSet, settings: TrainSettings
) -> None:
    streamed, kept = stream(measured, settings), cache(cached, settings)
    for step, rows in ((2, slice(0, 5)), (2, slice(5, 8)), (3, slice(0, 8)), (1, slice(3, 8)), (2, slice(0, 2))):
        assert_same(streamed.batch(step, rows), kept.batch(step, rows))


def test_pictures_trained_on_before_a_resume_are_not_decoded_again(
    cached: TrainingSet, settings: TrainSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[tuple[int, int]] = []

    def run(tables: list[pa.Table], *_: Any) -> Iterator[pa.Table]:
        decoded.extend((row["number"], row["epoch"]) for table in tables for row in table.to_pylist())
        return iter(())

    monkeypatch.setattr(stream_module, "_map_blocks", run)
    feed = stream(cached, settings)
    assert list(feed._stream(10, 3)) == []
    steps = [feed.order.rows_of_step(step) for step in (10, 11)]
    order = [(number, epoch) for numbers, epoch in steps for number in numbers]
    assert decoded == order[3:]


def test_a_picture_that_no_longer_exists_is_named_and_ends_the_run(
    cached: TrainingSet, settings: TrainSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(path: Path) -> Path:
        return path.with_suffix(".gone")

    monkeypatch.setattr(stream_module, "read_picture", gone)
    monkeypatch.setattr(
        stream_module, "_map_blocks", lambda tables, task, arguments, _: (task(table, **arguments) for table in tables)
    )
    with pytest.raises(CorpusError, match=r"picture .*\.png: no file at .*It could be read and decoded before"):
        stream(cached, settings).batch(0)


def test_a_store_that_is_away_is_no_fault_of_the_picture_and_sends_the_run_back(
    cached: TrainingSet, settings: TrainSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(path: Path) -> Path:
        raise StorageError(f"picture {path} cannot be read, after 4 tries: timed out")

    monkeypatch.setattr(stream_module, "read_picture", away)
    monkeypatch.setattr(
        stream_module, "_map_blocks", lambda tables, task, arguments, _: (task(table, **arguments) for table in tables)
    )
    # A worker that raises this error counts as lost, so the run is tried again; see `FinalFailures`.
    with pytest.raises(StorageError, match=r"^picture .*\.png cannot be read, after 4 tries: timed out$"):
        stream(cached, settings).batch(0)


def test_rows_out_of_order_are_never_trained_on(
    cached: TrainingSet, settings: TrainSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        stream_module,
        "_map_blocks",
        lambda tables, task, arguments, _: (task(table[1:], **arguments) for table in tables),
    )
    with pytest.raises(
        JobFailed, match=r"the ingest returned record \d+ of epoch 0, but record \d+ of epoch 0 was due"
    ):
        stream(cached, settings).batch(0)


def test_a_block_is_a_function_of_its_rows(cached: TrainingSet, settings: TrainSettings) -> None:
    feed = stream(cached, settings)
    order = [(number, epoch) for epoch in (0, 4) for number in (7, 3, 9)]
    whole = decode_block(feed._table(order), SIZE, "published", 5)
    parts = [decode_block(feed._table([row]), SIZE, "published", 5) for row in order]
    assert whole.equals(pa.concat_tables(parts).combine_chunks())


# The machines


def test_decoding_takes_the_cpus_that_training_leaves_free(ray_here: None) -> None:
    assert Decoding.beside(1, 1) == Decoding(1, 1.0)
    assert Decoding.beside(1, 0.5) == Decoding(1, 1.0)
    assert Decoding.beside(2, 1) == Decoding(1, 0.0)
    assert Decoding.beside(1, 2, tasks=3) == Decoding(3, 0.0)
    assert Decoding.alone() == Decoding(2, 1.0)


def test_decoding_takes_no_cpus_of_other_jobs(ray_here: None) -> None:
    with shared(Claim({"CPU": 0.5}, {"CPU": math.inf})) as share:
        claims = ray.get_actor("claims", "asap")
        ray.get(claims.claim.remote("another", Claim({"CPU": 1}, {"CPU": 1})))
        share.replace(share.claim)
        assert Decoding.alone() == Decoding(1, 1.0)
        assert Decoding.beside(1, 0.5) == Decoding(1, 0.5)
        of_a_worker = ray.remote(num_cpus=0)(cpus_of_this_job).remote()
        assert ray.get(of_a_worker) == pytest.approx(1)
        ray.get(claims.release.remote("another"))


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "cpus"), [(2, 1.0), (2, 0.5), (1, 2.0)])
def test_workers_that_hold_all_cpus_get_their_batches(
    ray_here: None, measured: TrainingSet, cached: TrainingSet, settings: TrainSettings, workers: int, cpus: float
) -> None:
    class Reader:  # an actor keeps its CPUs while it waits, and a task does not
        def digests(self, rank: int) -> list[float]:
            feed = open_feed(settings, measured, CONFIG, Order.of(settings, PAIRS, rank, workers), cpus)
            assert isinstance(feed, StreamFeed)
            return [feed.batch(step).images.double().sum().item() for step in range(feed.order.total_steps)]

    readers = [ray.remote(num_cpus=cpus)(Reader).remote() for _ in range(workers)]
    found = ray.get([reader.digests.remote(rank) for rank, reader in enumerate(readers)], timeout=HANG_S)
    for reader in readers:
        ray.kill(reader)
    for rank in range(workers):
        feed = cache(cached, settings, rank=rank, world=workers)
        assert found[rank] == [feed.batch(step).images.double().sum().item() for step in range(feed.order.total_steps)]


def test_batches_are_made_ahead_of_a_gpu(cached: TrainingSet, settings: TrainSettings) -> None:
    order = Order.of(settings, PAIRS)
    feed, gpu = CacheFeed(cached, CONFIG, settings, order), torch.device("cuda", 1)
    assert open_feed(settings, cached, CONFIG, order, 2, gpu) == Prefetched(feed, order.total_steps, gpu)


def test_pairs_with_a_cache_are_read_from_it(cached: TrainingSet, settings: TrainSettings) -> None:
    order = Order.of(settings, PAIRS)
    assert open_feed(settings, cached, CONFIG, order, 1) == CacheFeed(cached, CONFIG, settings, order)
