"""Measure how many pairs a core decodes, resizes and augments, and how many cores keep a GPU busy.

One process on one core does the work of a decode task of the stream, and the work of a training worker on its output:
`stream` decodes each picture for each epoch, `cache` reads it from the memory-mapped file, and `batch` makes a batch of
ready pictures (the training worker does this in either case). The overhead of Ray Data is not included. The variants
take turns, so that other load on the machine affects all of them. CPU time is reliable on a shared machine too.

    python bench/ingest.py [--pictures 128] [--rounds 3] [--image-size 256] [--json PATH]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from asap.corpus.folder import LocalFolder
from asap.corpus.picture_cache import PictureCache
from asap.corpus.reader import Record, read_corpus
from asap.model.config import ModelConfig
from asap.newsroom import generate
from asap.preprocessing.text import TextCodec, train_tokenizer
from asap.training.dataset import TrainingSet, collate
from jobs.train.data.stream import decode_block

BLOCK = 64
GPU_PAIRS_PER_S = 1000


def newsroom_records(folder: Path, pictures: int) -> list[Record]:
    """Draw a newsroom corpus of at least `pictures` pairs and return its records."""
    generate(folder, pairs=pictures, seed=77, workers=1, splits=(1.0, 0.0, 0.0))
    return read_corpus(LocalFolder(folder), "train").records


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


def rows_of(records: list[Record]) -> list[pa.Table]:
    """Return the blocks that decode tasks would receive."""
    count = len(records)
    table = pa.table({
        "number": range(count), "epoch": [0] * count, "image": [str(record.image) for record in records],
        "box": pa.array([(40.0, 40.0, 90.0, 90.0)] * count, pa.list_(pa.float64())), "may_flip": [True] * count,
    })  # fmt: skip
    return [table.slice(start, BLOCK) for start in range(0, count, BLOCK)]


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Return the seconds of the clock and of the CPU that `work` takes."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def variants(records: list[Record], codec: TextCodec, image_size: int, folder: Path) -> dict[str, Callable[[], object]]:
    """Return the variants to measure by name. Each one processes all pictures once."""
    tables, numbers = rows_of(records), range(len(records))
    pairs = TrainingSet(records, PictureCache.prepare(records, image_size, folder), codec, bad_boxes="boxless")
    config = ModelConfig.base(image_size=image_size)
    samples = [pairs.sample(number) for number in numbers]

    def stream(kind: Any) -> Callable[[], object]:
        return lambda: [decode_block(table, image_size, kind, 0) for table in tables]

    def cache(kind: Any) -> Callable[[], object]:
        return lambda: [pairs.sample(number, augmentation=kind) for number in numbers]

    def batch() -> object:
        return [collate(samples[start : start + BLOCK], config, pairs.pad_id) for start in numbers[::BLOCK]]

    augmented = {f"{name}, {kind}": work(kind) for name, work in (("stream", stream), ("cache", cache))
                 for kind in ("flip", "published")}  # fmt: skip
    return augmented | {"batch": batch}


def measure(corpus: str, named: dict[str, Callable[[], object]], pictures: int, rounds: int) -> list[dict[str, Any]]:
    """Measure the variants in turns and return their figures."""
    costs: dict[str, list[tuple[float, float]]] = {name: [] for name in named}
    for _ in range(rounds):
        for name, work in named.items():
            costs[name].append(timed(work))
    figures = []
    for name, rounds_of_variant in costs.items():
        wall_ms, cpu_ms = (
            1000 * statistics.median(values) / pictures for values in zip(*rounds_of_variant, strict=True)
        )
        figures.append({
            "pictures": corpus, "way": name, "cpu_ms_per_pair": cpu_ms, "wall_ms_per_pair": wall_ms,
            "pairs_per_s_and_core": 1000 / cpu_ms, "cores_a_gpu": GPU_PAIRS_PER_S * cpu_ms / 1000,
        })  # fmt: skip
    return figures


def show(figures: list[dict[str, Any]]) -> None:
    """Print the figures as a table."""
    from rich.console import Console
    from rich.table import Table

    columns = {
        "pictures": "pictures", "way": "variant",
        "cpu_ms_per_pair": "CPU ms a pair", "wall_ms_per_pair": "wall ms a pair",
        "pairs_per_s_and_core": "pairs/s a core", "cores_a_gpu": f"cores for {GPU_PAIRS_PER_S} pairs/s",
    }  # fmt: skip
    table = Table(*columns.values())
    for row in figures:
        table.add_row(*(value if isinstance(value := row[name], str) else f"{value:.3g}" for name in columns))
    Console(width=140).print(table)


def main() -> None:
    """Measure, print a table, and write JSON if requested."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=128, help="Pictures of each kind.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--json", type=Path, help="File for the figures.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    figures = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        drawn = newsroom_records(folder / "news", options.pictures)[: options.pictures]
        codec = TextCodec(train_tokenizer([record.text for record in drawn], 1000))
        corpora = {"newsroom": drawn}
        for width, height in ((1024, 768), (2048, 1536)):
            paths = photographs(folder / f"{width}", len(drawn), (width, height))
            corpora[f"JPEG {width} x {height}"] = [
                Record(str(number), path, drawn[number].text, "orig", (), (), drawn[number].text, drawn[number].text)
                for number, path in enumerate(paths)
            ]
        for corpus, records in corpora.items():
            named = variants(records, codec, options.image_size, folder / "cache")
            figures += measure(corpus, named, len(records), options.rounds)
    show(figures)
    if options.json:
        settings = {name: value for name, value in vars(options).items() if name != "json"}
        options.json.write_text(json.dumps({"settings": settings, "figures": figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
