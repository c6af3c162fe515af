"""Pictures that Ray Data decodes and augments anywhere in the cluster, and streams to the training workers.

Each training worker runs pipelines of its own over its own part of the order. A pipeline takes a table of row numbers
that is cut into blocks, runs a task for each block that decodes and augments, and returns the blocks in that order.
The picture of a row follows from seed, epoch and row, and the start of a pipeline follows from the step. So neither
the number of tasks nor a resume changes a batch, and pictures trained on before a resume are not decoded again.
Nothing is kept: whatever the size of the corpus, a pipeline holds the blocks of its running tasks and a few that are
done.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import pyarrow as pa
import ray
import torch

from asap.corpus.folder import ImageAddress
from asap.corpus.picture_cache import PictureCache, PictureSizes, decode_picture, picture_address, read_picture
from asap.corpus.reader import Record
from asap.errors import AsapError, CorpusError, InputError, StorageError
from asap.model.config import ModelConfig
from asap.preprocessing.images import BoxXyxy, Pixels, PreparedImage
from asap.training.augmentation import Augmentation, augment
from asap.training.batch import Batch
from asap.training.dataset import Sample, TrainingSet
from jobs.cluster import off_idle_head, silence_ray_data
from jobs.errors import JobFailed
from jobs.sharing import cpus_of_this_job
from jobs.train.data.feed import WHOLE, CacheFeed, Feed, Order, make_batch
from jobs.train.data.prefetch import CPU, Prefetched
from jobs.train.settings import TrainSettings
from jobs.train.stages import augmentation_at, lock_step

_BLOCK = 64
"""Pictures that one task decodes: 12 MiB at 256 px."""
_WINDOW = 65_536
"""Rows of one pipeline. The table of a whole run would grow with the run; a new pipeline costs a third of a second."""
_FETCHED_AT_A_TIME = 16
"""Pictures that one task reads at the same time, because a store answers slowly."""
_BLOCKS_AHEAD = 2
"""Finished blocks that a pipeline fetches before they are requested."""
_WHOLE_BLOCKS: dict[str, Any] = {"batch_size": None, "batch_format": "pyarrow", "zero_copy_batch": True}


@dataclass(frozen=True)
class Decoding:
    """The resources of a pipeline that decodes."""

    tasks: int
    """Number of tasks at the same time in one pipeline."""
    cpus: float = 1.0
    """CPUs that a task reserves. 0 if training holds every CPU: a reservation would then wait for ever."""

    @classmethod
    def beside(cls, workers: int, cpus_per_worker: float, tasks: int | None = None) -> Self:
        """Return the resources of each worker's pipeline.

        They are the CPUs of the job that all workers leave free, divided among the workers.

        Args:
            workers: The number of training workers.
            cpus_per_worker: The CPUs that each of them holds.
            tasks: The number of tasks of each pipeline, if it is not to follow from the free CPUs.
        """
        free = cpus_of_this_job() - workers * cpus_per_worker
        return cls(tasks or max(1, int(free // workers)), max(0.0, min(1.0, free)))

    @classmethod
    def alone(cls) -> Self:
        """Return the resources of a pipeline that runs before there are workers: all CPUs of the job."""
        cpus = cpus_of_this_job()
        return cls(max(1, int(cpus)), min(1.0, cpus))


def measure_pictures(
    records: Sequence[Record], image_size: int, progress: Callable[[int], None], decoding: Decoding
) -> PictureSizes:
    """Decode every picture once, anywhere in the cluster, and keep its size and whether it is broken.

    This costs as much as decoding for one epoch.

    Args:
        records: The records whose pictures are measured.
        image_size: The side at which training sees the pictures, in pixels.
        progress: A function that gets the number of pictures done.
        decoding: The resources of the pipeline.

    Raises `StorageError` if a store cannot be read.
    """
    addresses = list(dict.fromkeys(record.image for record in records))
    sizes = np.zeros((len(addresses), 2), np.int32)
    broken: dict[ImageAddress, str] = {}
    tables = [
        pa.table({"image": list(map(str, addresses[first : first + _BLOCK]))})
        for first in range(0, len(addresses), _BLOCK)
    ]
    done = 0
    for block in _map_blocks(tables, measure_block, {"image_size": image_size}, decoding):
        for row in block.to_pylist():
            if row["is_storage"]:
                raise StorageError(row["problem"])
            if row["problem"] is not None:
                broken[addresses[done]] = row["problem"]
            sizes[done] = row["width"], row["height"]
            done += 1
        progress(done)
    return PictureSizes(sizes, {address: row for row, address in enumerate(addresses)}, image_size, broken)


def measure_block(rows: pa.Table, image_size: int) -> pa.Table:
    """Return width and height of each `image`, or its `problem`. This is the work of one task."""
    found: dict[str, list[Any]] = {"width": [], "height": [], "problem": [], "is_storage": []}
    for picture in _decode_in_order(rows["image"].to_pylist(), image_size):
        is_picture = isinstance(picture, PreparedImage)
        found["width"].append(picture.width if isinstance(picture, PreparedImage) else 0)
        found["height"].append(picture.height if isinstance(picture, PreparedImage) else 0)
        found["problem"].append(None if is_picture else str(picture))
        found["is_storage"].append(isinstance(picture, StorageError))
    return pa.table(found).cast(pa.schema([("width", pa.int32()), ("height", pa.int32()), ("problem", pa.string()),
                                           ("is_storage", pa.bool_())]))  # fmt: skip


def decode_block(rows: pa.Table, image_size: int, augmentation: Augmentation, seed: int) -> pa.Table:
    """Return `pixels` and `box` of each row as its epoch shows it, or its `problem`. This is the work of one task.

    `is_storage` is True for a problem of the store, which may pass, and not of the picture.

    Args:
        rows: The table of `StreamFeed`: number, epoch, image, box and may_flip of each row.
        image_size: The side of the square pictures, in pixels.
        augmentation: The kind of augmentation.
        seed: The seed of the run.
    """
    pixels = np.zeros((rows.num_rows, image_size, image_size, 3), np.uint8)
    boxes: list[BoxXyxy | None] = []
    problems: list[str | None] = []
    is_storage: list[bool] = []
    described = rows.to_pylist()
    pictures = _decode_in_order([row["image"] for row in described], image_size)
    for position, (row, picture) in enumerate(zip(described, pictures, strict=True)):
        box = None if row["box"] is None else tuple(row["box"])
        if isinstance(picture, PreparedImage):
            pixels[position], box = augment(
                picture.pixels, box, seed, row["epoch"], row["number"], augmentation, may_flip=row["may_flip"]
            )
        boxes.append(box)
        problems.append(None if isinstance(picture, PreparedImage) else str(picture))
        is_storage.append(isinstance(picture, StorageError))
    pixel_column = pa.FixedSizeBinaryArray.from_buffers(  # the memory of the array, not a copy
        pa.binary(pixels[0].nbytes), len(pixels), [None, pa.py_buffer(pixels)]
    )
    return pa.table({
        "number": rows["number"],
        "epoch": rows["epoch"],
        "pixels": pixel_column,
        "box": pa.array(boxes, pa.list_(pa.float64())),
        "problem": pa.array(problems, pa.string()),
        "is_storage": pa.array(is_storage, pa.bool_()),
    })  # fmt: skip


def _decode_in_order(images: Sequence[str], image_size: int) -> Iterator[PreparedImage | AsapError]:
    """Yield each picture, or the error that it raises, in order. Threads read several pictures ahead of decoding."""
    addresses = [picture_address(image) for image in images]
    with ThreadPoolExecutor(_FETCHED_AT_A_TIME) as pool:
        reading = [pool.submit(read_picture, address) for address in addresses]
        for address, source in zip(addresses, reading, strict=True):
            try:
                yield decode_picture(address, image_size, lambda _: source.result())  # noqa: B023  # called at once
            except (InputError, StorageError) as error:
                yield error


def _map_blocks(
    tables: list[pa.Table], task: Callable[..., pa.Table], arguments: dict[str, Any], decoding: Decoding
) -> Iterator[pa.Table]:
    """Yield the result of `task` for each table, in order.

    Args:
        tables: One table per block.
        task: A function that maps a table to a table.
        arguments: Keyword arguments of `task`.
        decoding: The resources of the pipeline.
    """
    silence_ray_data()
    off_head = {} if decoding.cpus else off_idle_head()
    # Not `from_arrow`: it finds the schema in tasks that need a whole CPU each, and waits for ever if training holds
    # every CPU.
    results = ray.data.from_blocks(tables).map_batches(
        task, fn_kwargs=arguments, num_cpus=decoding.cpus, concurrency=decoding.tasks, **off_head, **_WHOLE_BLOCKS
    )
    results.context.execution_options.preserve_order = True
    yield from results.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=_BLOCKS_AHEAD)


@dataclass(frozen=True)
class _StreamedRow:
    """A row as it comes out of a pipeline."""

    number: int
    """Number of the record in the split."""
    epoch: int
    pixels: Pixels
    """Array of (S, S, 3), in the memory of its block."""
    box_xyxy: BoxXyxy | None
    problem: str | None
    """Reason why the picture could not be decoded; None if it was."""
    is_storage: bool
    """True if the store could not be read, which may pass."""


@dataclass
class StreamFeed:
    """Batches from a pipeline that decodes ahead; see `jobs.train.data.feed.Feed`."""

    pairs: TrainingSet
    config: ModelConfig
    settings: TrainSettings
    order: Order
    decoding: Decoding
    _rows: Generator[_StreamedRow] | None = field(default=None, init=False)
    _next: tuple[int, int] = field(default=(0, 0), init=False)
    """Step, and row of this worker's part of it, that the pipeline yields next."""

    def batch(self, step: int, rows: slice = WHOLE) -> Batch:
        """Return this worker's part of a step, or some rows of it; see `Feed`.

        A request that does not follow the last one starts a new pipeline at its first row.
        """
        numbers, epoch = self.order.rows_of_step(step)
        start, stop, _ = rows.indices(len(numbers))
        if self._rows is None or self._next != (step, start):
            self.close()
            self._rows = self._stream(step, start)
        samples = [self._sample(next(self._rows), number, epoch) for number in numbers[start:stop]]
        self._next = (step, stop) if stop < len(numbers) else (step + 1, 0)
        if self._next[0] == self.order.total_steps:
            self.close()
        return make_batch(samples, self.pairs, self.config, self.settings, self.order, step)

    def close(self) -> None:
        """Stop the pipeline. The last batch of the run does so too: a pipeline that outlives its Ray starts another."""
        if self._rows is not None:
            self._rows.close()
            self._rows = None

    def _sample(self, row: _StreamedRow, number: int, epoch: int) -> Sample:
        """Return the sample of a row, after checking that it is the record that is due."""
        if (row.number, row.epoch) != (number, epoch):
            raise JobFailed(
                f"the ingest returned record {row.number} of epoch {row.epoch}, but record {number} of epoch {epoch} "
                "was due. Run the same command again to resume from the last checkpoint."
            )
        if row.is_storage:
            raise StorageError(str(row.problem))  # the run goes back to its last checkpoint and tries again
        if row.problem is not None:
            raise CorpusError(f"{row.problem}. It could be read and decoded before this run began.")
        return self.pairs.sample_with(number, row.pixels, row.box_xyxy)

    def _stream(self, step: int, row: int) -> Generator[_StreamedRow]:
        """Yield the rows of this worker from a row of a step to the end of the run."""
        window, steps = max(1, _WINDOW // self.order.pairs_per_worker), self.order.total_steps
        locked_from = lock_step(self.settings, steps)
        while step < steps:
            # A pipeline has one augmentation, so none may cross the step at which the image encoder is locked.
            last = min(step + window, locked_from if step < locked_from else steps)
            order = [
                (number, epoch)
                for numbers, epoch in map(self.order.rows_of_step, range(step, last))
                for number in numbers
            ]
            yield from self._run_pipeline(order[row:], augmentation_at(self.settings, step, steps))
            step, row = last, 0

    def _run_pipeline(self, order: list[tuple[int, int]], augmentation: Augmentation) -> Generator[_StreamedRow]:
        """Yield the rows of one pipeline. `order` holds record number and epoch of each row."""
        tables = [self._table(order[first : first + _BLOCK]) for first in range(0, len(order), _BLOCK)]
        size = self.config.image_size
        arguments = {"image_size": size, "augmentation": augmentation, "seed": self.settings.seed}
        for block in _map_blocks(tables, decode_block, arguments, self.decoding):
            column = block["pixels"].combine_chunks()
            # A view of the block's memory. The buffer may begin before the block, hence the offset below.
            pixels = np.frombuffer(column.buffers()[1], np.uint8).reshape(-1, size, size, 3)
            rows = block.select(["number", "epoch", "box", "problem", "is_storage"]).to_pylist()
            for position, row in enumerate(rows, start=column.offset):
                box = None if row["box"] is None else tuple(row["box"])
                yield _StreamedRow(
                    row["number"], row["epoch"], pixels[position], box, row["problem"], row["is_storage"]
                )

    def _table(self, order: list[tuple[int, int]]) -> pa.Table:
        """Return the table that a task needs for rows of these record numbers and epochs; see `decode_block`."""
        views = [self.pairs.view(number) for number, _ in order]
        return pa.table({
            "number": pa.array([number for number, _ in order], pa.int64()),
            "epoch": pa.array([epoch for _, epoch in order], pa.int64()),
            "image": pa.array([str(view.image) for view in views], pa.string()),
            "box": pa.array([view.box_xyxy for view in views], pa.list_(pa.float64())),
            "may_flip": pa.array([view.may_flip for view in views], pa.bool_()),
        })  # fmt: skip


def open_feed(
    settings: TrainSettings,
    pairs: TrainingSet,
    config: ModelConfig,
    order: Order,
    cpus_per_worker: float,
    device: torch.device = CPU,
) -> Feed:
    """Return the feed of a worker: from the cache if its pairs have one, else from a stream; made ahead for a GPU.

    Args:
        settings: The settings of the run.
        pairs: The training pairs.
        config: The configuration of the model.
        order: The order of the records, and this worker's part of it.
        cpus_per_worker: The CPUs that each worker holds.
        device: The device that the worker computes on.
    """
    feed: Feed
    if isinstance(pairs.pictures, PictureCache):
        feed = CacheFeed(pairs, config, settings, order)
    else:
        decoding = Decoding.beside(order.world, cpus_per_worker, settings.decode_tasks)
        feed = StreamFeed(pairs, config, settings, order, decoding)
    # On CPUs the step uses all threads of the worker, so a batch made ahead would take its time from the step: there is
    # nothing to gain but the waits for a store, and the pipeline reads ahead of these anyway.
    return feed if device.type == "cpu" else Prefetched(feed, order.total_steps, device)
