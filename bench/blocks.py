"""Measure what the rows of a scan cost its driver, by the number of rows in a block.

No picture is read and no model runs, so the driver is the limit. The machine is a raylet of this one, with two GPUs in
Ray's books. The CPU time of the driver is taken while the pipeline runs, over a few rows and over many: the difference
is the cost of the additional rows.

    python bench/blocks.py [--block-rows 64 640] [--rows 2000 52000] [--json PATH]
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from nodes import SleepingDetector, cluster_of, write_input

BATCH = 64


def driver_seconds(address: str, rows: int, folder: Path) -> tuple[float, float]:
    """Scan so many rows; return the seconds of wall time and of the driver's CPU in which the pipeline runs."""
    import jobs.scan.pipeline
    from jobs.scan.run import scan
    from jobs.scan.settings import ScanSettings

    run = jobs.scan.pipeline.run_pipeline
    spent = [0.0, 0.0]

    def timed(*arguments: Any) -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        run(*arguments)
        spent[0] += time.perf_counter() - wall
        spent[1] += time.process_time() - cpu

    settings = ScanSettings(
        input=str(folder / "pairs.jsonl"), out=str(folder / "out"), job=f"{rows}-{time.time_ns()}", limit=rows,
        device="cuda", address=address, batch_size=BATCH, allow_unfamiliar=True,
    )  # fmt: skip
    jobs.scan.pipeline.run_pipeline = timed
    try:
        summary = scan(settings)
    finally:
        jobs.scan.pipeline.run_pipeline = run
    if (summary["pairs"], summary["errors"]) != (rows, 0):
        raise SystemExit(f"the scan is incomplete: {summary['pairs']} pairs, {summary['errors']} with errors")
    return spent[0], spent[1]


def main() -> None:
    """Measure each length of a block, print a line for each, and write JSON if requested."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--block-rows", nargs="+", type=int, default=[64, 640], help="Rows of a block.")
    parser.add_argument("--rows", nargs=2, type=int, default=[2000, 52_000], help="Few and many rows.")
    parser.add_argument("--json", type=Path, help="File for the figures.")
    arguments = parser.parse_args()
    os.environ["ROW_MS"] = "0"  # the machine inherits it

    import jobs.scan.pipeline
    import jobs.scan.stages.read
    from jobs.scan.stages.prepare import Preparation

    def without_pictures(size: int, *more: Any, **named: Any) -> Preparation:
        return Preparation(None, *more, **named)

    jobs.scan.pipeline.Detector = SleepingDetector  # type: ignore[misc]
    jobs.scan.pipeline.Preparation = without_pictures  # type: ignore[assignment, misc]
    jobs.scan.stages.read._LEAST_TASKS = 1  # the blocks of a long manifest
    figures = []
    with tempfile.TemporaryDirectory() as name, cluster_of(1, 4, 2) as address:
        write_input(Path(name), max(arguments.rows))
        for block_rows in arguments.block_rows:
            jobs.scan.pipeline.BLOCK_BYTES = 3 * block_rows  # the bound is in bytes of pixels, of which a row has one
            few, many = (driver_seconds(address, rows, Path(name)) for rows in arguments.rows)
            rows = arguments.rows[1] - arguments.rows[0]
            figure = {"block_rows": block_rows, "rows": rows, "rows_per_s": rows / (many[0] - few[0])}
            figures.append(figure | {"driver_us_per_row": 1e6 * (many[1] - few[1]) / rows})
            print(json.dumps({key: round(value, 1) for key, value in figures[-1].items()}), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
