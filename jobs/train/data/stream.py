"""Pictures decoded and augmented by Ray Data, anywhere in the cluster, and streamed to the workers that train.

Each training worker runs pipelines of its own over its own part of the order: a table of row numbers, cut into blocks;
a task for each block, which decodes and augments; and blocks that come back in that order. What a row looks like
follows from seed, epoch and row, and where a pipeline starts from the step, so neither the number of tasks nor a
resume changes a batch, and what was trained on before is never decoded again. Nothing is kept: a pipeline holds the
blocks of its running tasks and a few that are done, whatever the corpus holds.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import pyarrow as pa
import ray

from asap.corpus.folder import ImageAddress
from asap.corpus.picture_cache import PictureCache, PictureSizes, decode_picture, picture_address, read_picture
from asap.corpus.reader import Record
from asap.errors import AsapError, CorpusError, InputError, StorageError
from asap.model.config import ModelConfig
from asap.preprocessing.images import BoxXyxy, Pixels, PreparedImage
from asap.training.augmentation import Augmentation, augment
from asap.training.batch import Batch
from asap.training.dataset import Sample, TrainingSet, collate
from jobs.cluster import silence_ray_data
from jobs.errors import JobFailed
from jobs.train.data.feed import WHOLE, CacheFeed, Feed, Order
from jobs.train.settings import TrainSettings
from jobs.train.stages import augmentation_at, lock_step

_BLOCK = 64
"""Pictures that one task decodes: 12 MiB at 256 px."""
_WINDOW = 65_536
"""Rows of one pipeline. The table of a whole run would grow with the run; a new pipeline costs a third of a second."""
_FETCHED_AT_A_TIME = 16
_BLOCKS_AHEAD = 2
_WHOLE_BLOCKS: dict[str, Any] = {"batch_size": None, "batch_format": "pyarrow", "zero_copy_batch": True}


@dataclass(frozen=True)
class Decoding:
    """What decoding takes of the machines."""

    tasks: int | None
    """At a time, in one pipeline; None: as many as there are CPUs."""
    cpus: float = 1.0
    """That a task claims. 0 where training holds every CPU: a claim would wait for ever, so tasks run beside it."""

    @classmethod
    def beside(cls, workers: int, cpus_per_worker: float, tasks: int | None = None) -> Self:
        """What the workers of a run leave free, shared out among them; or `tasks` for each."""
        free = ray.cluster_resources().get("CPU", 0.0) - workers * cpus_per_worker
        return cls(tasks or max(1, int(free // workers)), max(0.0, min(1.0, free)))


def measure_pictures(
    records: Sequence[Record], image_size: int, progress: Callable[[int], None], decoding: Decoding = Decoding(None)
) -> PictureSizes:
    """Decode every picture once, all over the cluster, and keep its size; what is broken is known before it is needed.

    Costs what one epoch's decoding does. Raises `StorageError` for a store that cannot be read.
    """
    places = list(dict.fromkeys(record.image for record in records))
    sizes = np.zeros((len(places), 2), np.int32)
    broken: dict[ImageAddress, str] = {}
    tables = [pa.table({"image": list(map(str, places[at : at + _BLOCK]))}) for at in range(0, len(places), _BLOCK)]
    done = 0
    for block in _run(tables, measure_block, {"image_size": image_size}, decoding):
        for row in block.to_pylist():
            if row["is_storage"]:
                raise StorageError(row["problem"])
            if row["problem"] is not None:
                broken[places[done]] = row["problem"]
            sizes[done] = row["width"], row["height"]
            done += 1
        progress(done)
    return PictureSizes(sizes, {place: row for row, place in enumerate(places)}, image_size, broken)


def measure_block(rows: pa.Table, image_size: int) -> pa.Table:
    """A task's part: width and height of each `image`, or its `problem`."""
    found: dict[str, list[Any]] = {"width": [], "height": [], "problem": [], "is_storage": []}
    for picture in _decoded(rows["image"].to_pylist(), image_size):
        is_picture = isinstance(picture, PreparedImage)
        found["width"].append(picture.width if isinstance(picture, PreparedImage) else 0)
        found["height"].append(picture.height if isinstance(picture, PreparedImage) else 0)
        found["problem"].append(None if is_picture else str(picture))
        found["is_storage"].append(isinstance(picture, StorageError))
    return pa.table(found).cast(pa.schema([("width", pa.int32()), ("height", pa.int32()), ("problem", pa.string()),
                                           ("is_storage", pa.bool_())]))  # fmt: skip


def decode_block(rows: pa.Table, image_size: int, augmentation: Augmentation, seed: int) -> pa.Table:
    """A task's part: `pixels` and `box` of each row as its epoch shows it, or its `problem`."""
    pixels = np.zeros((rows.num_rows, image_size, image_size, 3), np.uint8)
    boxes: list[BoxXyxy | None] = []
    problems: list[str | None] = []
    given = rows.to_pylist()
    for at, (row, picture) in enumerate(zip(given, _decoded([row["image"] for row in given], image_size), strict=True)):
        box = None if row["box"] is None else tuple(row["box"])
        if isinstance(picture, PreparedImage):
            pixels[at], box = augment(
                picture.pixels, box, seed, row["epoch"], row["number"], augmentation, may_flip=row["may_flip"]
            )
        boxes.append(box)
        problems.append(None if isinstance(picture, PreparedImage) else str(picture))
    squares = pa.FixedSizeBinaryArray.from_buffers(  # the array's own memory, not a copy
        pa.binary(pixels[0].nbytes), len(pixels), [None, pa.py_buffer(pixels)]
    )
    return pa.table({
        "number": rows["number"],
        "epoch": rows["epoch"],
        "pixels": squares,
        "box": pa.array(boxes, pa.list_(pa.float64())),
        "problem": pa.array(problems, pa.string()),
    })  # fmt: skip


def _decoded(images: Sequence[str], image_size: int) -> Iterator[PreparedImage | AsapError]:
    """Pictures in their order, or what is wrong with them; the store's answers are waited for together."""
    places = [picture_address(image) for image in images]
    with ThreadPoolExecutor(_FETCHED_AT_A_TIME) as pool:
        reading = [pool.submit(read_picture, place) for place in places]
        for place, source in zip(places, reading, strict=True):
            try:
                yield decode_picture(place, image_size, lambda _: source.result())  # noqa: B023  # called at once
            except (InputError, StorageError) as error:
                yield error


def _run(
    tables: list[pa.Table], task: Callable[..., pa.Table], arguments: dict[str, Any], decoding: Decoding
) -> Iterator[pa.Table]:
    """What `task` makes of each table, in their order.

    Not `from_arrow`: it asks tasks of a whole CPU each for the tables' schema, and waits for ever where training holds
    every CPU.
    """
    silence_ray_data()
    made = ray.data.from_blocks(tables).map_batches(
        task, fn_kwargs=arguments, num_cpus=decoding.cpus, concurrency=decoding.tasks, **_WHOLE_BLOCKS
    )
    made.context.execution_options.preserve_order = True
    blocks = iter(made.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=_BLOCKS_AHEAD))
    yield from blocks


@dataclass(frozen=True)
class _View:
    """A row as it comes out of a pipeline."""

    number: int
    epoch: int
    pixels: Pixels
    """(S, S, 3), in the memory of its block."""
    box_xyxy: BoxXyxy | None
    problem: str | None


@dataclass
class StreamFeed:
    """Batches out of a pipeline that decodes ahead; see `jobs.train.data.feed.Feed`."""

    pairs: TrainingSet
    config: ModelConfig
    settings: TrainSettings
    order: Order
    decoding: Decoding
    _views: Generator[_View] | None = field(default=None, init=False)
    _next: tuple[int, int] = field(default=(0, 0), init=False)
    """Step, and row of this worker's part of it, that the pipeline gives next."""

    def batch(self, step: int, rows: slice = WHOLE) -> Batch:
        """See `Feed`. Anything but what follows what was asked for last starts a new pipeline there."""
        numbers, epoch = self.order.rows_of_step(step)
        start, stop, _ = rows.indices(len(numbers))
        if self._views is None or self._next != (step, start):
            self.close()
            self._views = self._stream(step, start)
        samples = [self._sample(next(self._views), number, epoch) for number in numbers[start:stop]]
        self._next = (step, stop) if stop < len(numbers) else (step + 1, 0)
        if self._next[0] == self.order.total_steps:
            self.close()
        return collate(samples, self.config, self.pairs.pad_id, mpp_labels=self.settings.objective.mpp_labels)

    def close(self) -> None:
        """Stop the pipeline, as the last batch of the run does; one that outlives its Ray would start another."""
        if self._views is not None:
            self._views.close()
            self._views = None

    def _sample(self, view: _View, number: int, epoch: int) -> Sample:
        if (view.number, view.epoch) != (number, epoch):
            raise JobFailed(
                f"the ingest gave record {view.number} of epoch {view.epoch} where {number} of {epoch} was due"
            )
        if view.problem is not None:
            raise CorpusError(f"{view.problem}; it could be read and decoded before this run began")
        return self.pairs.sample_with(number, view.pixels, view.box_xyxy)

    def _stream(self, step: int, row: int) -> Generator[_View]:
        """The views of this worker from there to the end of the run."""
        window, steps = max(1, _WINDOW // self.order.pairs_per_worker), self.order.total_steps
        locked_from = lock_step(self.settings, steps)
        while step < steps:
            last = min(step + window, locked_from if step < locked_from else steps)
            places = [
                (number, epoch)
                for numbers, epoch in map(self.order.rows_of_step, range(step, last))
                for number in numbers
            ]
            yield from self._window(places[row:], augmentation_at(self.settings, step, steps))
            step, row = last, 0

    def _window(self, places: list[tuple[int, int]], augmentation: Augmentation) -> Generator[_View]:
        tables = [self._table(places[at : at + _BLOCK]) for at in range(0, len(places), _BLOCK)]
        size = self.config.image_size
        arguments = {"image_size": size, "augmentation": augmentation, "seed": self.settings.seed}
        for block in _run(tables, decode_block, arguments, self.decoding):
            squares = block["pixels"].combine_chunks()
            pixels = np.frombuffer(squares.buffers()[1], np.uint8).reshape(-1, size, size, 3)
            told = block.select(["number", "epoch", "box", "problem"]).to_pylist()
            for at, row in enumerate(told, start=squares.offset):
                box = None if row["box"] is None else tuple(row["box"])
                yield _View(row["number"], row["epoch"], pixels[at], box, row["problem"])

    def _table(self, places: list[tuple[int, int]]) -> pa.Table:
        """What a task needs to know of its rows."""
        views = [self.pairs.view(number) for number, _ in places]
        return pa.table({
            "number": pa.array([number for number, _ in places], pa.int64()),
            "epoch": pa.array([epoch for _, epoch in places], pa.int64()),
            "image": pa.array([str(view.image) for view in views], pa.string()),
            "box": pa.array([view.box_xyxy for view in views], pa.list_(pa.float64())),
            "may_flip": pa.array([view.may_flip for view in views], pa.bool_()),
        })  # fmt: skip


def open_feed(
    settings: TrainSettings, pairs: TrainingSet, config: ModelConfig, order: Order, cpus_per_worker: float
) -> Feed:
    """The feed of a worker whose pairs are these: out of the cache where they have one, else streamed."""
    if isinstance(pairs.pictures, PictureCache):
        return CacheFeed(pairs, config, settings, order)
    decoding = Decoding.beside(order.world, cpus_per_worker, settings.decode_tasks)
    return StreamFeed(pairs, config, settings, order, decoding)
