"""Measure the cost of resuming a scan, and of judging its failed pairs again, beside that of the whole scan.

Each round runs a scan to its end, in which one pair of a hundred fails because its picture is missing. The pictures
then appear, and `--retry-errors` judges these pairs. A second scan has its driver killed at a share of the rows, and
the same command is run again. Costs are wall and CPU seconds of the whole command, with the start of Ray and of Python.
The speeds are rows per second once started. The model is tiny and has random weights, so that the figures are those of
the pipeline around it.

    python bench/resume.py [--rows 50000] [--batch-size 64] [--stop-at 0.9] [--rounds 1] [--json PATH]
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

from costs import Cost, costs

PICTURES = 50
LATE = 100
"""One row of so many has a picture that is missing at first."""
PLAN_S = 600
"""The longest wait for the first rows of a scan."""


def draw_input(folder: Path, rows: int) -> Path:
    """Write a manifest of `rows` rows over a few newsroom pictures, some of which are missing: those in `late/`."""
    from asap.newsroom import generate
    from jobs.scan.input.sources import find_source

    generate(folder, pairs=PICTURES, seed=77, workers=1, splits=(0.0, 0.0, 1.0))
    drawn = list(find_source(str(folder / "metadata" / "test.json")).rows())
    lines = []
    for number in range(rows):
        row = drawn[number % len(drawn)]
        image = str(folder / "late" / Path(row.image_uri or "").name) if number % LATE == LATE - 1 else row.image_uri
        lines.append(json.dumps({"id": str(number), "image": image, "text": row.text}))
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
    scan(ScanSettings(**settings), seen.append)
    # A resumed scan first reports the rows done before.
    done_before = next(progress.done for progress in seen if progress.done)
    results.send((done_before, max(progress.pairs_per_s for progress in seen)))


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
        "heartbeat_s": 0.5, "stale_after_s": 4, "remember_bytes": 0,  # all rows are judged, though they repeat
    }  # fmt: skip
    whole = settings | {"job": f"whole-{number}"}
    with costs() as fresh:
        _, speed = run_scan(whole)
    # The pictures appear for the retry, and are missing again for the second scan.
    late = manifest.parent / "late"
    late.symlink_to(next(path for path in manifest.parent.rglob("*") if path.suffix == ".jpg").parent)
    with costs() as retry:
        run_scan(whole | {"retry_errors": ("not_found",)})
    errors = json.loads((out / str(whole["job"]) / "summary.json").read_text())["errors"]
    late.unlink()
    if errors:
        raise SystemExit(f"The retry left {errors} errors.")
    stopped = settings | {"job": f"stopped-{number}"}
    run_scan(stopped, int(options.stop_at * options.rows))
    with costs() as resume:
        before, resumed_speed = run_scan(stopped)
    return {
        "round": number, "rows": options.rows, "batch_size": options.batch_size, "resumed_rows": options.rows - before,
        "retried_rows": options.rows // LATE, "rows_per_s": speed, "resumed_rows_per_s": resumed_speed,
        "seconds": {name: vars(cost) for name, cost in (("whole", fresh), ("resume", resume), ("retry", retry))},
        "shares": {"resume": _share(resume, fresh), "retry": _share(retry, fresh)},
    }  # fmt: skip


def _share(part: Cost, whole: Cost) -> dict[str, float]:
    return {"wall": part.wall_s / whole.wall_s, "cpu": part.cpu_s / whole.cpu_s}


def show(figures: list[dict[str, Any]]) -> None:
    """Print the figures as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table("round", "command", "rows", "rows/s", "wall, s", "CPU, s", "of the whole: wall, %", "CPU, %")
    for row in figures:
        rows = {"whole": row["rows"], "resume": row["resumed_rows"], "retry": row["retried_rows"]}
        speeds = {"whole": row["rows_per_s"], "resume": row["resumed_rows_per_s"]}
        for name, cost in row["seconds"].items():
            share = row["shares"].get(name)
            table.add_row(
                str(row["round"]), name, str(rows[name]), f"{speeds[name]:.0f}" if name in speeds else "",
                f"{cost['wall_s']:.1f}", f"{cost['cpu_s']:.1f}",
                *([f"{100 * share['wall']:.1f}", f"{100 * share['cpu']:.1f}"] if share else ["", ""]),
            )  # fmt: skip
    Console(width=140).print(table)


def main() -> None:
    """Run the rounds, print a table, and write JSON if requested."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument(
        "--stop-at", type=float, default=0.9, help="Share of the rows after which the first run is killed."
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
