"""Measure what a pair costs a detector if most pairs are in a reuse store, beside judging it.

A detector that judges every pair and one with a store of nine tenths of the pairs take the same prepared batches in
turn, in one process. CPU time is that of all threads of the process, and of the process of the memory that detectors
share. Fetching and decoding are the same for both, and not counted.

    python bench/reuse.py [--model demo] [--pairs 1024] [--share 0.9] [--entries 1000000] [--json PATH]
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.fs as pafs
import ray
from scan import draw_corpus

from asap.preprocessing.images import ImageLimits
from asap.storage.fetch import FetchSettings
from asap.storage.location import Location
from jobs.cluster import ray_running
from jobs.scan.input.manifest import to_table
from jobs.scan.input.sources import find_source
from jobs.scan.stages.detect import Detection, Detector
from jobs.scan.stages.pair_store import folder_of, read_index, write_pairs
from jobs.scan.stages.pair_values import VALUE_SCHEMA, pair_keys, values_of
from jobs.scan.stages.prepare import Preparation, prepare_batch
from jobs.scan.stages.reuse import Reuse, start_memory

BATCH = 64


def timed(detector: Detector, batch: pa.Table) -> tuple[float, pa.Table]:
    """Return the CPU seconds of a batch, and its rows."""
    started = time.process_time()
    rows = detector(batch)
    return time.process_time() - started, rows


def measure_detectors(model: str, batches: list[pa.Table], share: float, folder: Path) -> dict[str, float]:
    """Return the CPU time of a pair with and without a store that has a share of the pairs of each batch."""
    memory = start_memory(2**28)
    detection = Detection(model, device="cpu", threads=1, batch_size=BATCH)
    plain, first = Detector(detection), Detector(detection, reuse=Reuse(memory))
    before = first._before
    if before is None:
        raise SystemExit("the detector has no memory")
    context = before._context
    ids = context.model_id, context.familiarity_id
    store = folder_of(Location(str(folder / "store")), *ids)
    judged = [plain(batch) for batch in batches]
    for rows in judged:
        known = rows.slice(0, round(share * len(rows)))
        write_pairs(store, [key for key in pair_keys(known, context) if key], values_of(known), ids)
    index = ray.put(read_index(store, ids, print))
    reusing = Detector(detection, reuse=Reuse(memory, index, pafs.LocalFileSystem()))
    alone = Detector(detection, reuse=Reuse(start_memory(2**28)))
    process = psutil.Process(ray.get(memory.__ray_call__.remote(lambda self: os.getpid())))
    spent = {"judged": 0.0, "reused": 0.0, "alone": 0.0}
    start = sum(process.cpu_times()[:2])
    differ = 0.0
    for batch in batches:
        seconds, rows = timed(plain, batch)
        spent["judged"] += seconds
        seconds, others = timed(reusing, batch)
        spent["reused"] += seconds
        spent["alone"] += timed(alone, batch)[0]
        scores = np.array(rows["score"].to_pylist()) - np.array(others["score"].to_pylist())
        differ = max(differ, float(np.abs(scores).max()))
    ray.get(memory.contexts.remote())
    pairs = sum(map(len, batches))
    judged_ms, reused_ms, alone_ms = (1000 * spent[name] / pairs for name in ("judged", "reused", "alone"))
    return {
        "judged_cpu_ms": judged_ms,
        "with_memory_alone_cpu_ms": alone_ms,
        "with_store_cpu_ms": reused_ms,
        "memory_cpu_ms": 1000 * (sum(process.cpu_times()[:2]) - start) / pairs,
        "reused_pair_cpu_ms": (reused_ms - (1 - share) * judged_ms) / share,
        "largest_difference_of_scores": differ,
    }


def measure_index(entries: int, folder: Path) -> dict[str, float]:
    """Return what an index of so many pairs takes: memory of a pair, and CPU time to read it."""
    values = pa.Table.from_pylist([{"score": 0.5}], VALUE_SCHEMA).take(pa.array(np.zeros(2**16, np.int64)))
    model, store = ("made@1", None), Location(str(folder / "index"))
    for _ in range(-(-entries // 2**16)):
        write_pairs(store, [os.urandom(32) for _ in range(2**16)], values, model)
    process = psutil.Process()
    before, started = process.memory_info().rss, time.process_time()
    index = read_index(store, model, print)
    seconds, held = time.process_time() - started, process.memory_info().rss - before
    number = len(index.hashes)
    return {
        "index_entries": number,
        "index_bytes": (index.hashes.nbytes + index.positions.nbytes) / number,
        "index_resident_bytes": held / number,
        "index_cpu_us": 1e6 * seconds / number,
    }


def main() -> None:
    """Measure, print the figures, and write JSON if requested."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="demo", help="A model folder, or 'demo'.")
    parser.add_argument("--pairs", type=int, default=1024, help="Pairs that both detectors take.")
    parser.add_argument("--share", type=float, default=0.9, help="Share of the pairs that are in the store.")
    parser.add_argument("--entries", type=int, default=1_000_000, help="Pairs of the index that is measured.")
    parser.add_argument("--json", type=Path, help="File for the figures.")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, ray_running(num_cpus=1):
        folder = Path(name)
        rows = list(find_source(str(draw_corpus(folder, arguments.pairs)), arguments.pairs).rows())
        size = Detector(Detection(arguments.model, device="cpu")).image_size
        preparation = Preparation(size, ImageLimits(), FetchSettings())
        batches = [
            prepare_batch(to_table(rows[start : start + BATCH]), preparation) for start in range(0, len(rows), BATCH)
        ]
        figures: dict[str, Any] = {"model": arguments.model, "pairs": len(rows), "share": arguments.share}
        figures |= measure_detectors(arguments.model, batches, arguments.share, folder)
        figures |= measure_index(arguments.entries, folder)
    print(json.dumps(figures, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
