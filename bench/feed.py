"""Measure what the host spends on each pair of a training step, beside a model that does nothing.

Three variants make the same batches of a worker with one GPU, from the picture cache and from the stream:

- `former`: pictures are normalized to float32 on the host, texts are lists that are padded one by one, and a batch is
  made when the step wants it.
- `in series`: pictures stay uint8, texts are padded in one go, and a batch is made when the step wants it.
- `ahead`: the same, made by a thread while the step runs (`jobs.train.data.prefetch`).

A sleep stands in for the step of a GPU that trains on 1,000 pairs per second, so the time that the worker's thread
waits for a batch is the time that this GPU would be idle. `process` is the CPU time of all threads together. Blocks of
the stream are decoded before the clock starts, because other processes decode them; `decode` measures that work. The
overhead of Ray Data, pinned memory and copies to a GPU are not included. The variants take turns, so that other load on
the machine affects all of them. CPU time is reliable on a shared machine too.

The published augmentation is used, and texts have about the lengths of DGM4 with generated captions and explanations.

    python bench/feed.py [--pictures 256] [--batch 128] [--steps 6] [--rounds 5] [--image-size 256] [--json PATH]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch.nn.utils.rnn import pad_sequence

from asap.corpus.folder import LocalFolder
from asap.corpus.picture_cache import PictureCache, PictureInfo
from asap.corpus.reader import Record, read_corpus
from asap.labels import IMAGE_TYPES
from asap.model.config import ModelConfig
from asap.newsroom import generate
from asap.preprocessing.images import BoxXyxy, Pixels, normalize
from asap.preprocessing.text import TextCodec, train_tokenizer
from asap.training.batch import Batch, Tokens
from asap.training.dataset import TrainingSet
from asap.training.targets import box_targets, patch_labels, patch_mask, stack_boxes
from jobs.train.data import feed as feed_module
from jobs.train.data import stream as stream_module
from jobs.train.data.feed import CacheFeed, Feed, Order
from jobs.train.data.prefetch import Prefetched
from jobs.train.data.stream import Decoding, StreamFeed, decode_block
from jobs.train.settings import TrainSettings

BLOCK = 64
GPU_PAIRS_PER_S = 1000
SOURCES = ("cache", "stream")
VARIANTS = ("former", "in series", "ahead")
WORDS = {"text": (22, 8), "caption": (40, 10), "explanation": (48, 12)}
"""Mean and standard deviation of the number of words; 50 words are read."""


# The former way


@dataclass(frozen=True)
class FormerSample:
    """A record as the former way kept it."""

    pixels: Pixels
    box_xyxy: BoxXyxy | None
    types: torch.Tensor
    text_ids: list[int]
    token_labels: list[int]
    caption_ids: list[int]
    explanation_ids: list[int]


class FormerSet(TrainingSet):
    """A training set that keeps its texts as lists."""

    def __init__(self, records: Sequence[Record], pictures: PictureInfo, codec: TextCodec) -> None:
        super().__init__(records, pictures, codec)
        samples = [super(FormerSet, self).sample_with(number, np.empty(0), None) for number in range(len(self))]
        self._kept = [
            {
                "types": torch.tensor(sample.types),
                **{name: value.tolist() for name, value in vars(sample).items() if name.endswith(("_ids", "_labels"))},
            }
            for sample in samples
        ]

    def sample_with(self, number: int, pixels: Pixels, box_xyxy: BoxXyxy | None) -> Any:
        """Return the sample of record `number` with this picture."""
        return FormerSample(pixels, box_xyxy, **self._kept[number])


def former_batch(
    samples: Sequence[Any], pairs: TrainingSet, config: ModelConfig, settings: TrainSettings, order: Order, step: int
) -> Batch:
    """Make a batch in the former way; see `jobs.train.data.feed.make_batch`."""

    def padded(texts: list[list[int]]) -> Tokens:
        ids = torch.full((len(texts), max(map(len, texts))), pairs.pad_id)
        mask = torch.zeros_like(ids)
        for row, tokens in enumerate(texts):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = 1
        return Tokens(ids, mask)

    boxes_B4, has_box_B = stack_boxes([sample.box_xyxy for sample in samples])
    mask_BP = patch_mask(boxes_B4, has_box_B, config.image_size, config.patch_size)
    types_B4 = torch.stack([sample.types for sample in samples])
    unknown_B = types_B4[:, : len(IMAGE_TYPES)].any(dim=1) & ~has_box_B
    labels = [torch.tensor(sample.token_labels, dtype=torch.long) for sample in samples]
    return Batch(
        images=normalize(np.stack([sample.pixels for sample in samples])),
        text=padded([sample.text_ids for sample in samples]),
        caption=padded([sample.caption_ids for sample in samples]),
        explanation=padded([sample.explanation_ids for sample in samples]),
        manipulated=types_B4.any(dim=1),
        types=types_B4,
        box_cxcywh=box_targets(boxes_B4, config.image_size),
        has_box=has_box_B,
        token_labels=pad_sequence(labels, batch_first=True, padding_value=-100),
        patch_mask=mask_BP,
        patch_labels=patch_labels(mask_BP).masked_fill(unknown_B[:, None], -1.0),
    )


def way_of(variant: str) -> AbstractContextManager[Any]:
    """Make batches, for the time of the block, as this variant does."""
    if variant != "former":
        return nullcontext()
    ways = ExitStack()
    for module in (feed_module, stream_module):
        ways.enter_context(mock.patch.object(module, "make_batch", former_batch))
    return ways


# The worker


def newsroom_records(folder: Path, pictures: int) -> list[Record]:
    """Draw a newsroom corpus of `pictures` pairs, and give it texts of the lengths of `WORDS`."""
    generate(folder, pairs=pictures, seed=77, workers=1, splits=(1.0, 0.0, 0.0))
    records = read_corpus(LocalFolder(folder), "train").records[:pictures]
    words = sorted({word for record in records for word in record.text.split()})
    generator = np.random.default_rng(0)

    def text(mean: int, deviation: int) -> str:
        return " ".join(generator.choice(words, max(3, int(generator.normal(mean, deviation)))))

    return [
        dataclasses.replace(
            record,
            fake_text_pos=(1,) if record.fake_text_pos else (),
            **{name: text(*of) for name, of in WORDS.items()},
        )
        for record in records
    ]


class DecodedBlocks:
    """The blocks of a stream, each decoded when it is first wanted; they stand in for the tasks of Ray Data."""

    def __init__(self) -> None:
        self._blocks: dict[tuple[tuple[int, int], int], pa.Table] = {}

    def __call__(
        self, tables: list[pa.Table], task: Callable[..., pa.Table], arguments: dict[str, Any], _: Decoding
    ) -> Iterator[pa.Table]:
        """Yield the blocks of these tables."""
        for table in tables:
            first = table.slice(0, 1).to_pylist()[0]
            key = (first["number"], first["epoch"]), len(table)
            if key not in self._blocks:
                self._blocks[key] = task(table, **arguments)
            yield self._blocks[key]


def worker_figures(records: list[Record], codec: TextCodec, options: argparse.Namespace, folder: Path) -> Iterator[Any]:
    """Yield the figures of the worker for each source and variant."""
    config = ModelConfig.base(image_size=options.image_size)
    settings = TrainSettings(
        corpus="", out="", recipe="asap", words_until=0, alignment_from=0, augmentation="published",
        batch_size=options.batch, pairs=options.batch * options.steps,
    )  # fmt: skip
    pictures = PictureCache.prepare(records, options.image_size, folder)
    sets = {variant: (FormerSet if variant == "former" else TrainingSet)(records, pictures, codec)
            for variant in VARIANTS}  # fmt: skip

    def open_feed(source: str, variant: str) -> Feed:
        order = Order.of(settings, len(records))
        common = sets[variant], config, settings, order
        feed: Feed = CacheFeed(*common) if source == "cache" else StreamFeed(*common, Decoding(1))
        return Prefetched(feed, order.total_steps) if variant == "ahead" else feed

    runs: dict[tuple[str, str], list[dict[str, float]]] = {
        (source, variant): [] for source in SOURCES for variant in VARIANTS
    }
    with mock.patch.object(stream_module, "_map_blocks", DecodedBlocks()):
        for number in range(options.rounds + 1):
            for (source, variant), found in runs.items():
                with way_of(variant):
                    figures = train_nothing(open_feed(source, variant), options.steps, options.batch)
                if number:  # the first round decodes the blocks
                    found.append(figures)
    for source in SOURCES:
        for variant in VARIANTS:
            # Ratios are taken round by round, so that other load on the machine affects both sides.
            rounds = [
                one | {f"{name}_share": one[name] / former[name] for name in ("thread_ms", "wait_ms", "process_ms")}
                for one, former in zip(runs[source, variant], runs[source, "former"], strict=True)
            ]
            figures = {name: spread([one[name] for one in rounds]) for name in rounds[0]}
            yield {"source": source, "variant": variant, **figures}


def train_nothing(feed: Feed, steps: int, pairs: int) -> dict[str, float]:
    """Take the batches of all steps, and return milliseconds a pair: CPU of the thread, its waits, CPU of all threads.

    The first batch is not counted, which nothing can make ahead.
    """
    feed.batch(0)
    waited, thread, process = 0.0, time.thread_time(), time.process_time()
    for step in range(1, steps):
        time.sleep(pairs / GPU_PAIRS_PER_S)
        asked = time.perf_counter()
        feed.batch(step)
        waited += time.perf_counter() - asked
    thread, process = time.thread_time() - thread, time.process_time() - process
    feed.close()
    each = 1000 / ((steps - 1) * pairs)
    return {
        "thread_ms": thread * each, "wait_ms": waited * each, "process_ms": process * each,
        "pairs_per_s_and_core": 1000 / (process * each),
    }  # fmt: skip


# The tasks that decode


def photographs(folder: Path, pictures: int, size: tuple[int, int]) -> list[Path]:
    """Write JPEGs of noise whose spectrum is similar to that of a photograph."""
    folder.mkdir()
    paths = []
    for number in range(pictures):
        generator = np.random.default_rng(number)
        layers = [
            np.asarray(Image.fromarray(generator.integers(0, 256, (side * 3, side * 4, 3), np.uint8)).resize(size))
            for side in (2, 8, 32, 128)
        ]
        mean = np.average(layers, axis=0, weights=(8, 4, 2, 1))
        paths.append(folder / f"{number}.jpg")
        Image.fromarray(mean.astype(np.uint8)).save(paths[-1], quality=90)
    return paths


def decode_figures(images: dict[str, list[Path]], image_size: int, rounds: int) -> Iterator[dict[str, Any]]:
    """Yield the figures of a task that decodes and augments, for each kind of picture."""
    costs: dict[str, list[float]] = {kind: [] for kind in images}
    for _ in range(rounds):
        for kind, paths in images.items():
            count = len(paths)
            table = pa.table({
                "number": range(count), "epoch": [0] * count, "image": list(map(str, paths)),
                "box": pa.array([(40.0, 40.0, 90.0, 90.0)] * count, pa.list_(pa.float64())), "may_flip": [True] * count,
            })  # fmt: skip
            cpu = time.process_time()
            for start in range(0, count, BLOCK):
                decode_block(table.slice(start, BLOCK), image_size, "published", 0)
            costs[kind].append(1000 * (time.process_time() - cpu) / count)
    for kind, found in costs.items():
        rates = spread([1000 / cost for cost in found])
        yield {"source": "decode", "variant": kind, "process_ms": spread(found), "pairs_per_s_and_core": rates}


def spread(values: list[float]) -> dict[str, float]:
    """Return median, lowest and highest value."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def show(figures: list[dict[str, Any]]) -> None:
    """Print the figures as a table: the median, lowest and highest of the rounds."""
    from rich.console import Console
    from rich.table import Table

    columns = {
        "source": "source", "variant": "variant", "thread_ms": "thread, CPU ms a pair",
        "wait_ms": f"thread, wait ms a pair beside {GPU_PAIRS_PER_S} pairs/s", "process_ms": "process, CPU ms a pair",
        "process_ms_share": "of the former", "pairs_per_s_and_core": "pairs/s a core",
    }  # fmt: skip
    table = Table(*columns.values())

    def cell(value: Any) -> str:
        if isinstance(value, dict):
            return f"{value['median']:.3g} ({value['low']:.3g} to {value['high']:.3g})"
        return str(value)

    for row in figures:
        table.add_row(*(cell(row.get(name, "")) for name in columns))
    Console(width=170).print(table)


def main() -> None:
    """Measure, print a table, and write JSON if requested."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=256, help="Pairs of the corpus; at least one batch.")
    parser.add_argument("--batch", type=int, default=128, help="Pairs of a step.")
    parser.add_argument("--steps", type=int, default=6, help="Steps in a round; the first is not counted.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--json", type=Path, help="File for the figures.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        records = newsroom_records(folder / "news", options.pictures)
        codec = TextCodec(train_tokenizer([record.text for record in records], 1000))
        images = {"newsroom": [Path(str(record.image)) for record in records[:BLOCK]]}
        for width, height in ((1024, 768), (2048, 1536)):
            images[f"JPEG {width} x {height}"] = photographs(folder / f"{width}", BLOCK, (width, height))
        figures = [
            *worker_figures(records, codec, options, folder / "cache"),
            *decode_figures(images, options.image_size, options.rounds),
        ]
    show(figures)
    if options.json:
        settings = {name: value for name, value in vars(options).items() if name != "json"}
        options.json.write_text(json.dumps({"settings": settings, "figures": figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
