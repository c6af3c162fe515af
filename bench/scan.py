"""Measure the cost of a scan and compare it with the bare predictor loop (decode and predict) on the same pairs.

A scan is timed twice, over a few pairs and over many. The difference is the cost of the additional pairs once
everything has started. It does not depend on the time of the start, and it includes work that was done ahead. The bare
loop runs before and after, in its own process with as many threads as cores. Wall time is what a person waits. CPU
time, of all processes of the scan together, is reliable on a busy machine too.

    python bench/scan.py [--models demo tiny base] [--pairs 400 2000] [--base-pairs 16 64] [--json PATH]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from costs import Cost, costs


def bare_loop(model: str, manifest: Path, pairs: int, threads: int) -> Cost:
    """Decode and predict batch by batch in a new process; loading and a warm-up are not counted."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return Cost(*pool.apply(_loop, (model, str(manifest), pairs, threads)))


def _loop(model: str, manifest: str, pairs: int, threads: int) -> tuple[float, float]:
    import torch

    from asap.finding import Pair
    from asap.predictor import Predictor
    from jobs.scan.input.sources import find_source

    torch.set_num_threads(threads)
    predictor = Predictor.from_folder(model, device="cpu")
    loaded = [Pair(row.image_uri, row.text) for row in find_source(manifest, pairs).rows()]
    predictor.predict(loaded[:8])
    wall, cpu = time.perf_counter(), time.process_time()
    predictor.predict(loaded)
    return time.perf_counter() - wall, time.process_time() - cpu


def scan_cost(model: str, manifest: Path, pairs: int, out: Path) -> Cost:
    """Measure a whole scan of the first `pairs` pairs, from the command to the report."""
    from jobs.scan.run import scan
    from jobs.scan.settings import ScanSettings

    settings = ScanSettings(
        input=str(manifest), out=str(out), job=f"{Path(model).name}-{pairs}-{time.time_ns()}", model=model, limit=pairs,
        device="cpu",
    )  # fmt: skip
    with costs() as cost:
        summary = scan(settings)
    if (summary["pairs"], summary["errors"]) != (pairs, 0):
        raise SystemExit(f"the scan is incomplete: {summary['pairs']} pairs, {summary['errors']} with errors")
    return cost


def measure(name: str, model: str, manifest: Path, few: int, many: int, out: Path) -> dict[str, Any]:
    """Measure one model and return its figures."""
    threads = len(os.sched_getaffinity(0))
    before = bare_loop(model, manifest, many, threads)
    small, large = (scan_cost(model, manifest, pairs, out) for pairs in (few, many))
    after = bare_loop(model, manifest, many, threads)
    bare_wall_s, bare_cpu_s = (before.wall_s + after.wall_s) / 2, (before.cpu_s + after.cpu_s) / 2
    rate = (many - few) / (large.wall_s - small.wall_s)
    cpu_ms = 1000 * (large.cpu_s - small.cpu_s) / (many - few)
    return {
        "model": name,
        "pairs": many,
        "threads": threads,
        "bare_pairs_per_s": many / bare_wall_s,
        "scan_pairs_per_s": rate,
        "scan_over_bare": rate * bare_wall_s / many,
        "with_start_pairs_per_s": many / large.wall_s,
        "start_s": small.wall_s - few / rate,
        "bare_cpu_ms_per_pair": 1000 * bare_cpu_s / many,
        "scan_cpu_ms_per_pair": cpu_ms,
        "bare_cpu_over_scan_cpu": 1000 * bare_cpu_s / many / cpu_ms,
        "bare_wall_s": [before.wall_s, after.wall_s],
        "scan_wall_s": [small.wall_s, large.wall_s],
    }


def draw_corpus(folder: Path, pairs: int) -> Path:
    """Draw newsroom pairs, unless they exist already, and return their manifest."""
    from asap.newsroom import generate

    if not (folder / "newsroom.json").exists():
        generate(folder, pairs=pairs, seed=77, splits=(0.0, 0.0, 1.0))
    return folder / "metadata" / "test.json"


def random_model(preset: str, manifest: Path, folder: Path) -> str:
    """Save a model of a preset's shape with random weights."""
    from asap.model.asap import Asap
    from asap.model.config import ModelConfig
    from asap.preprocessing.text import train_tokenizer
    from asap.weights.model_folder import save
    from jobs.scan.input.sources import find_source

    tokenizer = train_tokenizer([row.text or "" for row in find_source(str(manifest)).rows()], 4000)
    config = ModelConfig.preset(preset, vocab_size=len(tokenizer))
    return str(save(Asap(config), folder / preset, tokenizer=tokenizer))


def show(figures: list[dict[str, Any]]) -> None:
    """Print the figures as a table."""
    from rich.console import Console
    from rich.table import Table

    columns = {
        "model": "model", "bare_pairs_per_s": "bare, pairs/s", "scan_pairs_per_s": "scan, pairs/s",
        "scan_over_bare": "scan / bare", "with_start_pairs_per_s": "with start, pairs/s", "start_s": "start, s",
        "bare_cpu_ms_per_pair": "bare, CPU ms", "scan_cpu_ms_per_pair": "scan, CPU ms",
        "bare_cpu_over_scan_cpu": "bare / scan, CPU",
    }  # fmt: skip
    table = Table(*columns.values())
    for row in figures:
        table.add_row(*(value if isinstance(value := row[name], str) else f"{value:.3g}" for name in columns))
    Console(width=160).print(table)


def main() -> None:
    """Measure each model, print a table, and write JSON if requested."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--models", nargs="+", default=["demo", "base"], help="Models: 'demo', 'tiny', 'base', or a model folder."
    )
    parser.add_argument("--pairs", nargs=2, type=int, default=[400, 2000], help="Few and many pairs, for small models.")
    parser.add_argument("--base-pairs", nargs=2, type=int, default=[16, 64], help="Few and many pairs, for base.")
    parser.add_argument("--corpus", type=Path, help="A manifest; by default newsroom pairs are drawn.")
    parser.add_argument("--json", type=Path, help="File for the figures.")
    arguments = parser.parse_args()
    figures = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        manifest = arguments.corpus or draw_corpus(folder / "news", arguments.pairs[1])
        for model in arguments.models:
            is_preset = model in ("tiny", "base")
            source = random_model(model, manifest, folder) if is_preset else model
            few, many = arguments.base_pairs if model == "base" else arguments.pairs
            figures.append(measure(model, source, manifest, few, many, folder / "out"))
            show(figures)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
