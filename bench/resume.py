"""Measure how fast a scan resumes and how fast the same scan runs uninterrupted, in rows per second once started.

Each round runs a scan to its end. It then starts a second scan, kills its driver at a share of the rows, and runs the
same command again. The model is tiny and has random weights, so that the figures are those of the pipeline around it.

    python bench/resume.py [--rows 8192] [--batch-size 64] [--stop-at 0.5] [--rounds 1] [--json PATH]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

PICTURES = 50
PLAN_S = 600
"""The longest wait for the first rows of a scan."""


def draw_input(folder: Path, rows: int) -> Path:
    """Write a manifest of `rows` rows over a few newsroom pictures."""
    from asap.newsroom import generate
    from jobs.scan.input.sources import find_source

    generate(folder, pairs=PICTURES, seed=77, workers=1, splits=(0.0, 0.0, 1.0))
    drawn = list(find_source(str(folder / "metadata" / "test.json")).rows())
    lines = [
        json.dumps({"id": str(number), "image": row.image_uri, "text": row.text})
        for number, row in zip(range(rows), drawn * (rows // len(drawn) + 1), strict=False)
    ]
    path = folder / "rows.jsonl"
    path.write_text("\n".join(lines))
    return path


def random_model(manifest: Path, folder: Path) -> str:
    """Save a tiny model with random weights, whose cost is negligible."""
    from asap.model.asap import Asap
    from asap.model.config import ModelConfig
    from asap.preprocessing.text import train_tokenizer
    from asap.weights.model_folder import save
    from jobs.scan.input.sources import find_source

    tokenizer = train_tokenizer([row.text or "" for row in find_source(str(manifest), PICTURES).rows()], 500)
    config = ModelConfig.tiny(
        width=48, image_layers=1, text_layers=1, fusion_layers=1, image_size=32, image_mlp_width=96,
        text_mlp_width=96, vocab_size=len(tokenizer), embed_dim=16,
    )  # fmt: skip
    return str(save(Asap(config), folder / "model", tokenizer=tokenizer))


def _scan(settings: dict[str, Any], results: Connection) -> None:
    """Scan in this process; send the rows that were done before, and the rows per second."""
    from jobs.scan.passes import ScanProgress
    from jobs.scan.run import scan
    from jobs.scan.settings import ScanSettings

    seen: list[ScanProgress] = []
    summary = scan(ScanSettings(**settings), seen.append)
    if summary["errors"]:
        raise SystemExit(f"The scan has errors: {summary['errors']}.")
    # A resumed scan first reports the rows done before; the rate is the last that it reports.
    done_before = next(progress.done for progress in seen if progress.done)
    results.send((done_before, [progress.pairs_per_s for progress in seen if progress.pairs_per_s][-1]))


def run_scan(settings: dict[str, Any], stop_at_rows: int | None = None) -> tuple[int, float]:
    """Run a scan to its end, or kill it after `stop_at_rows` rows.

    Returns the rows done before and the rows per second, which are 0 for a scan that is killed.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_scan, args=(settings, sender))
    process.start()
    sender.close()
    if stop_at_rows is not None:
        record = Path(settings["out"]) / settings["job"] / "job.json"
        deadline = time.monotonic() + PLAN_S
        while _rows_done(record) < stop_at_rows:
            if not process.is_alive() or time.monotonic() > deadline:
                raise SystemExit(f"The scan ended or hung before {stop_at_rows} rows. Pass more --rows.")
            time.sleep(0.05)
        process.kill()
        process.join()
        return 0, 0.0
    try:
        before, rate = receiver.recv()
    except EOFError as error:
        raise SystemExit("The scan failed; its message is above.") from error
    process.join()
    return before, rate


def _rows_done(record: Path) -> int:
    """Read the number of finished rows from the record of a job; 0 if there is no record yet."""
    return int(json.loads(record.read_text()).get("counts", {}).get("done", 0)) if record.exists() else 0


def measure(manifest: Path, model: str, out: Path, number: int, options: argparse.Namespace) -> dict[str, Any]:
    """Run one round and return its figures."""
    settings = {
        "input": str(manifest), "out": str(out), "model": model, "device": "cpu", "batch_size": options.batch_size,
        "rows_per_file": 4 * options.batch_size, "heartbeat_s": 0.5, "stale_after_s": 4,
    }  # fmt: skip
    _, fresh = run_scan(settings | {"job": f"fresh-{number}"})
    stopped = settings | {"job": f"stopped-{number}"}
    run_scan(stopped, int(options.stop_at * options.rows))
    before, resumed = run_scan(stopped)
    return {
        "round": number, "rows": options.rows, "batch_size": options.batch_size, "resumed_rows": options.rows - before,
        "fresh_rows_per_s": fresh, "resumed_rows_per_s": resumed, "resumed_over_fresh": resumed / fresh,
    }  # fmt: skip


def show(figures: list[dict[str, Any]]) -> None:
    """Print the figures as a table."""
    from rich.console import Console
    from rich.table import Table

    columns = {
        "round": "round", "rows": "rows", "batch_size": "batch size", "resumed_rows": "rows of the resume",
        "fresh_rows_per_s": "fresh, rows/s", "resumed_rows_per_s": "resumed, rows/s",
        "resumed_over_fresh": "resumed / fresh",
    }  # fmt: skip
    table = Table(*columns.values())
    for row in figures:
        table.add_row(*(f"{row[name]:.3g}" if isinstance(row[name], float) else str(row[name]) for name in columns))
    Console(width=140).print(table)


def main() -> None:
    """Run the rounds, print a table, and write JSON if requested."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument(
        "--stop-at", type=float, default=0.5, help="Share of the rows after which the first run is killed."
    )
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", type=Path, help="File for the figures.")
    options = parser.parse_args()
    figures = []
    with tempfile.TemporaryDirectory() as name:
        manifest = draw_input(Path(name) / "news", options.rows)
        model = random_model(manifest, Path(name))
        for number in range(options.rounds):
            figures.append(measure(manifest, model, Path(name) / "out", number, options))
    show(figures)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
