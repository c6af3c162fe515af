"""Measure what the steps around the pipeline of a scan cost: CPU for a row, and memory, by the number of rows.

No model runs. The input and the results are made up, in files of the sizes that a scan writes: a fifth of the pairs is
flagged, one in fifty has an error. Each step runs in a process of its own, whose CPU time and peak of memory are taken;
what the process holds before the step stands apart.

    python bench/parts.py [--rows 10000 100000] [--steps manifest output ...] [--kind jsonl] [--json PATH]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from inputs import write_csv, write_jsonl, write_parquet

from asap.labels import TYPES

TEXT = "Farm vet Lara Melton looks fearful carrying a bucket after the farm harvest in fearful spirits on Sunday"
_POOL = 1000
"""Different rows, which repeat with ids of their own."""
_WRITERS = {"jsonl": write_jsonl, "csv": write_csv, "parquet": write_parquet}


def write_results(folder: Path, rows: int) -> None:
    """Write made-up results of so many rows into files as long as those of a scan."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    pool = _result_rows(_POOL)
    per_file = min(100_000, max(512, rows // 200))
    folder.mkdir(parents=True)
    for number, start in enumerate(range(0, rows, per_file)):
        ids = np.arange(start, min(start + per_file, rows))
        table = pool.take(pa.array(ids % _POOL))
        table = table.set_column(0, table.schema.field(0), pa.array(ids))
        table = table.set_column(1, table.schema.field(1), pa.array([f"#{row}" for row in ids]))
        pq.write_table(table, folder / f"rows-{number:032x}.parquet")


def _result_rows(rows: int) -> Any:
    from jobs.scan.input.manifest import ManifestRow, to_table
    from jobs.scan.stages.result_rows import failure, result_table

    box = {"x0": 1.5, "y0": 2.5, "x1": 100.25, "y1": 120.125}
    outcomes = []
    for row in range(rows):
        score = (row * 7919 % 1000) / 1000
        word = {"index": 3, "start": 9, "end": 13, "word": "Lara", "score": score}
        scored = {
            "status": "ok", "verdict": "manipulated" if score > 0.8 else "authentic", "score": score,
            "types": dict.fromkeys(TYPES, score), "flagged_types": ["text_swap"] if score > 0.8 else [], "box_px": box,
            "raw_box_px": box, "words": [word] if score > 0.8 else [], "word_scores": [score / 3] * 17, "width": 640,
            "height": 480, "image_sha256": f"{row:064x}", "familiarity": 0.5, "familiarity_image": 0.5,
            "familiarity_text": 0.5, "text_read": 1.0, "agreement_image_text": 0.25,
        }  # fmt: skip
        outcome = scored if row % 50 else failure("image_broken", "the picture is cut short")
        outcomes.append(outcome | {"model_id": "demo@1", "policy_id": "p1", "warnings": []})
    manifest = [
        ManifestRow(row_id=row, image_uri=f"/data/images/{row}.jpg", text=f"{TEXT} {row}", metadata='{"source": "bbc"}')
        for row in range(rows)
    ]
    return result_table(to_table(manifest), outcomes)


def write_manifest_files(folder: Path, rows: int) -> None:
    """Write made-up rows of a manifest."""
    from jobs.scan.input.manifest import ManifestRow, to_table, write_tables

    def tables() -> Any:
        for start in range(0, rows, 4096):
            names = range(start, min(start + 4096, rows))
            yield to_table([ManifestRow(row_id=n, image_uri=f"/data/{n}.jpg", text=f"{TEXT} {n}") for n in names])

    write_tables(tables(), _location(folder))


def _location(path: Path) -> Any:
    from asap.storage.location import Location

    return Location(str(path))


def manifest(folder: Path, kind: str) -> None:
    """Make the manifest of an input."""
    from jobs.scan.input.manifest import write_manifest
    from jobs.scan.input.sources import find_source

    write_manifest(find_source(str(folder / f"rows.{kind}")).tables(), _location(folder / "new"))


def checks(folder: Path, kind: str) -> None:
    """Compare results that are complete with the manifest, as the end of every pass does."""
    from jobs.scan.output.completeness import count_rows, repair_results, write_missing

    del kind
    results = _location(folder / "results")
    write_missing(_location(folder / "manifest"), repair_results(results), _location(folder / "remaining"))
    count_rows(results)


def resume(folder: Path, kind: str) -> None:
    """Compare results of which every other file is missing with the manifest, and write what remains."""
    from jobs.scan.output.completeness import repair_results, write_missing

    del kind
    half = _location(folder / "half")
    write_missing(_location(folder / "manifest"), repair_results(half), _location(folder / "remaining"))


def output(folder: Path, kind: str) -> None:
    """Write the lists, the summary and the report."""
    from jobs.scan.output.report import write_report
    from jobs.scan.output.summary import write_outcome

    del kind
    write_report(_location(folder), tally=write_outcome(_location(folder), {}).tally)


STEPS: dict[str, Callable[[Path, str], None]] = {
    "manifest": manifest, "checks": checks, "resume": resume, "output": output,
}  # fmt: skip


def _measured(step: str, folder: Path, kind: str) -> dict[str, float]:
    """Do a step in this process; return its seconds, and the memory before it and at its peak in MB."""
    import jobs.scan.output.report
    import jobs.scan.output.summary
    import jobs.scan.run  # noqa: F401

    before = _memory_mb("VmRSS")
    wall, cpu = time.perf_counter(), time.process_time()
    STEPS[step](folder, kind)
    seconds = time.process_time() - cpu
    return {
        "cpu_s": seconds,
        "wall_s": time.perf_counter() - wall,
        "before_mb": before,
        "peak_mb": _memory_mb("VmHWM"),
    }


def _memory_mb(name: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024


def prepare(folder: Path, rows: int, kind: str) -> None:
    """Write the input, the manifest and the results of a finished scan of so many rows."""
    _WRITERS[kind](folder, rows)
    write_manifest_files(folder / "manifest", rows)
    write_results(folder / "results", rows)
    half = folder / "half"
    half.mkdir()
    for number, path in enumerate(sorted((folder / "results").iterdir())):
        if number % 2:
            (half / path.name).hardlink_to(path)
    record = {"job_id": "job", "state": "finalizing", "counts": {}, "manifest": {"rows": rows}}
    (folder / "job.json").write_text(json.dumps(record))


def main() -> None:
    """Measure each number of rows, print a line for each step, and write JSON if requested."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", nargs="+", type=int, default=[10_000, 100_000], help="Numbers of rows.")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS), help="Steps to measure.")
    parser.add_argument("--kind", choices=_WRITERS, default="jsonl", help="Kind of the input.")
    parser.add_argument("--json", type=Path, help="File for the figures.")
    arguments = parser.parse_args()
    figures = []
    spawn = multiprocessing.get_context("spawn")
    for rows in arguments.rows:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            with spawn.Pool(1) as pool:
                pool.apply(prepare, (folder, rows, arguments.kind))
            for step in arguments.steps:
                with spawn.Pool(1) as pool:  # another process for each step, which has a peak of its own
                    figure = pool.apply(_measured, (step, folder, arguments.kind))
                figures.append({"step": step, "rows": rows, "us_per_row": 1e6 * figure["cpu_s"] / rows} | figure)
                print(json.dumps({name: round(v, 3) if isinstance(v, float) else v for name, v in figures[-1].items()}))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
