"""How fast a scan resumes, beside how fast the same scan runs undisturbed: rows per second once started.

Each round runs a scan to its end, then starts a second one, kills its driver at a share of the rows, and gives the
same command again. The model is a tiny one with random weights, so that the figures are those of the chain around it.

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
    """A manifest of so many rows over a few newsroom pictures."""
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
    """A model that costs next to nothing."""
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
    """Scan in a process of its own; send the rows that were done before, and the rows per second."""
    from jobs.scan.run import ScanProgress, scan
    from jobs.scan.settings import ScanSettings

    seen: list[ScanProgress] = []
    summary = scan(ScanSettings(**settings), seen.append)
    if summary["errors"]:
        raise SystemExit(f"The scan has errors: {summary['errors']}.")
    judging = [progress for progress in seen if progress.stage in ("starting the workers", "judging")]
    results.send((judging[0].done, judging[-1].pairs_per_s))


def run_scan(settings: dict[str, Any], stop_at_rows: int | None = None) -> tuple[int, float]:
    """Run a scan to its end, or kill it once so many rows are judged: rows done before, rows per second."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_scan, args=(settings, sender))
    process.start()
    sender.close()
    if stop_at_rows is not None:
        record = Path(settings["out"]) / settings["job"] / "job.json"
        deadline = time.monotonic() + PLAN_S
        while _judged(record) < stop_at_rows:
            if not process.is_alive() or time.monotonic() > deadline:
                raise SystemExit(f"The scan ended or hung before {stop_at_rows} rows. Give more --rows.")
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


def _judged(record: Path) -> int:
    return int(json.loads(record.read_text()).get("counts", {}).get("done", 0)) if record.exists() else 0


def measure(manifest: Path, model: str, out: Path, number: int, given: argparse.Namespace) -> dict[str, Any]:
    """The figures of one round."""
    settings = {
        "input": str(manifest), "out": str(out), "model": model, "device": "cpu", "batch_size": given.batch_size,
        "rows_per_file": 4 * given.batch_size, "heartbeat_s": 0.5, "stale_after_s": 4,
    }  # fmt: skip
    _, fresh = run_scan(settings | {"job": f"fresh-{number}"})
    stopped = settings | {"job": f"stopped-{number}"}
    run_scan(stopped, int(given.stop_at * given.rows))
    before, resumed = run_scan(stopped)
    return {
        "round": number, "rows": given.rows, "batch_size": given.batch_size, "resumed_rows": given.rows - before,
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
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--stop-at", type=float, default=0.5, help="share of the rows that the first run judges")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    given = parser.parse_args()
    figures = []
    with tempfile.TemporaryDirectory() as name:
        manifest = draw_input(Path(name) / "news", given.rows)
        model = random_model(manifest, Path(name))
        for number in range(given.rounds):
            figures.append(measure(manifest, model, Path(name) / "out", number, given))
    show(figures)
    if given.json:
        given.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
