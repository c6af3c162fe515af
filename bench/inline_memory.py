"""Measure the memory that pictures inside a Parquet table take in a driver and in a worker.

Each table holds pictures of about one megabyte in one row group, written in another way. For each, one process makes
the manifest and another prepares all rows in batches, as a task of a scan does; their peaks of resident memory stand
beside those for the same pictures in files, and beside that of pyarrow, which reads the column in small batches.

    python bench/inline_memory.py [--pictures 1000] [--ways pandas zstd] [--batch-size 64] [--folder PATH] [--json PATH]
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

DRAWN = 20
"""Pictures that are drawn; the others differ from them in their last bytes alone, which compression does not see."""
WAYS: dict[str, dict[str, Any]] = {
    "pyarrow": {},
    "pandas": {},
    "no dictionary": {"use_dictionary": False},
    "uncompressed": {"use_dictionary": False, "compression": "none"},
    "pages of version 2": {"use_dictionary": False, "data_page_version": "2.0"},
    "zstd": {"compression": "zstd"},
    "pages of 1 MB": {"use_content_defined_chunking": True},
    "lz4 (pyarrow reads)": {"use_dictionary": False, "compression": "lz4"},
}


def draw_pictures(number: int) -> list[bytes]:
    """Return JPEGs of noise, of about one megabyte each."""
    generator = np.random.default_rng(0)
    drawn = []
    for _ in range(min(number, DRAWN)):
        buffer = BytesIO()
        Image.fromarray(generator.integers(0, 256, (820, 820, 3), np.uint8)).save(buffer, "JPEG", quality=92)
        drawn.append(buffer.getvalue())
    return [drawn[row % len(drawn)] + random.Random(row).randbytes(16) for row in range(number)]


def write_inputs(folder: Path, number: int, ways: list[str]) -> dict[str, Path]:
    """Write the tables, and a manifest of the same pictures in files; return their paths."""
    pictures = draw_pictures(number)
    inputs = {"files": folder / "files.jsonl"}
    lines = []
    for row, picture in enumerate(pictures):
        (folder / f"{row}.jpg").write_bytes(picture)
        lines.append(json.dumps({"image": f"{row}.jpg", "text": f"text {row}"}))
    inputs["files"].write_text("\n".join(lines))
    column = pa.array([{"bytes": picture, "path": None} for picture in pictures])
    table = pa.table({"image": column, "text": [f"text {row}" for row in range(number)]})
    for name in ways:
        inputs[name] = folder / f"{len(inputs)}.parquet"
        if name == "pandas":
            table.to_pandas().to_parquet(inputs[name])
        else:
            pq.write_table(table, inputs[name], **WAYS[name])
    return inputs


def measure(step: str, path: Path, batch_size: int) -> dict[str, float]:
    """Run a step in a process of its own; return its peak of memory in MiB before and after, and its seconds."""
    command = [sys.executable, __file__, "--step", step, "--path", str(path), "--batch-size", str(batch_size)]
    return dict(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))


def run_step(step: str, path: Path, batch_size: int) -> dict[str, float]:
    """Do a step in this process."""
    from asap.preprocessing.images import ImageLimits
    from asap.storage.fetch import FetchSettings
    from asap.storage.location import Location
    from jobs.scan.input.manifest import write_manifest
    from jobs.scan.input.sources import find_source
    from jobs.scan.stages.prepare import Preparation, prepare_batch

    manifest = path.parent / f"manifest of {path.name}"
    before, started = _peak_mib(), time.perf_counter()
    if step == "manifest":
        write_manifest(find_source(str(path)).tables(), Location(str(manifest)))
    elif step == "prepare":
        preparation = Preparation(256, ImageLimits(), FetchSettings())
        rows = pq.read_table(manifest)
        for start in range(0, len(rows), batch_size):
            prepared = prepare_batch(rows.slice(start, batch_size), preparation)
            if prepared["error_code"].null_count < len(prepared):
                raise RuntimeError("a picture was not prepared")
    else:
        file = pq.ParquetFile(path, pre_buffer=False, buffer_size=2**20)
        for _ in file.iter_batches(8, columns=["image.bytes"], use_threads=False):
            pass
    return {"before": before, "peak": _peak_mib(), "seconds": time.perf_counter() - started}


def _peak_mib() -> float:
    # The peak of `resource` would be that of the process that started this one.
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def main() -> None:
    """Run the measurements and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS), help="Tables to write.")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--folder", type=Path, help="Folder for the inputs; a temporary one by default.")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--step", choices=["manifest", "prepare", "pyarrow"], help=argparse.SUPPRESS)
    parser.add_argument("--path", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        print(json.dumps(run_step(options.step, options.path, options.batch_size)))
        return
    found: dict[str, dict[str, dict[str, float]]] = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        print(f"{'':22}{'manifest':>10}{'prepare':>10}{'pyarrow':>10}  MiB at most;{'prepare':>9} s")
        for name, path in write_inputs(Path(folder), options.pictures, options.ways).items():
            steps = ["manifest", "prepare"] + (["pyarrow"] if path.suffix == ".parquet" else [])
            found[name] = {step: measure(step, path, options.batch_size) for step in steps}
            peaks = [f"{found[name][step]['peak']:10.0f}" if step in found[name] else " " * 10
                     for step in ("manifest", "prepare", "pyarrow")]  # fmt: skip
            print(f"{name:22}{''.join(peaks)}{'':14}{found[name]['prepare']['seconds']:9.1f}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
