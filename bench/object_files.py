"""Compare the file system of pyarrow over boto3's client, which jobs use, with pyarrow's own for S3.

A local S3 server in another process holds Parquet files of about 50 MB in all: one, and many. Each is written
and read by both file systems in turns. The seconds of the clock include the server, those of the CPU only this process.

    python bench/object_files.py [--rounds 7] [--megabytes 50] [--files 1 50] [--json PATH]
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

BUCKET = "measured"
ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}


@contextmanager
def store_running() -> Iterator[str]:
    """Run an S3 server in a process of its own; yield its endpoint."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                if process.poll() is not None:
                    raise RuntimeError("the S3 server did not start") from None
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def make_table(megabytes: int) -> pa.Table:
    """Return a table of numbers that do not compress, and of short texts."""
    generator = np.random.default_rng(0)
    rows = megabytes * 2**20 // 48
    columns = {f"score_{number}": generator.random(rows) for number in range(5)}
    return pa.table(columns | {"text": [f"text {row % 1000}" for row in range(rows)]})


def measure(action: Callable[[], Any]) -> tuple[float, float]:
    """Return the seconds of the clock and of the CPUs that an action takes."""
    wall, cpu = time.perf_counter(), time.process_time()
    action()
    return time.perf_counter() - wall, time.process_time() - cpu


def actions(table: pa.Table, files: int, name: str, system: Any) -> dict[str, Callable[[], None]]:
    """Return the writing and the reading of a table in so many files."""
    rows = -(-len(table) // files)
    parts = [(f"{BUCKET}/{name}/{files}/{part}.parquet", table.slice(part * rows, rows)) for part in range(files)]

    def write() -> None:
        for path, part in parts:
            pq.write_table(part, path, filesystem=system)

    def read() -> None:
        for path, part in parts:
            if len(pq.read_table(path, filesystem=system)) != len(part):
                raise RuntimeError(f"{path} has another number of rows")

    return {"write": write, "read": read}


def main() -> None:
    """Run the measurements and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--megabytes", type=int, default=50)
    parser.add_argument("--files", type=int, nargs="+", default=[1, 50], help="Numbers of files.")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    from asap.storage.location import Location
    from asap.storage.s3 import filesystem

    table = make_table(options.megabytes)
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    print(f"{'':20}{'ours s':>20}{'pyarrow s':>20}{'ratio of pairs':>22}{'CPU s':>8}{'pyarrow':>9}")
    with store_running() as endpoint:
        os.environ |= ENVIRONMENT | {"AWS_ENDPOINT_URL": endpoint}
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        # pyarrow gives up after 3 seconds by itself, which a busy machine exceeds.
        systems = {
            "ours": filesystem(Location(f"s3://{BUCKET}"))[0],
            "pyarrow": pafs.S3FileSystem(endpoint_override=endpoint, request_timeout=300, connect_timeout=60),
        }
        for files in options.files:
            work = {name: actions(table, files, name, system) for name, system in systems.items()}
            for step in ("write", "read"):
                costs = found[f"{step} {files} file(s)"] = {name: [] for name in work}
                for turn in range(options.rounds + 1):
                    for name in sorted(work, reverse=bool(turn % 2)):
                        cost = measure(work[name][step])
                        if turn:  # the first one opens connections
                            costs[name].append(cost)
                print_costs(f"{step} {files} file(s)", costs)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2))


def print_costs(step: str, costs: dict[str, list[tuple[float, float]]]) -> None:
    """Print a line: seconds of the clock of both, their ratio in each turn, and the medians of the CPU seconds."""
    ratios = [ours[0] / theirs[0] for ours, theirs in zip(costs["ours"], costs["pyarrow"], strict=True)]
    walls = [spread([wall for wall, _ in costs[name]]) for name in ("ours", "pyarrow")]
    cpus = [statistics.median(cpu for _, cpu in costs[name]) for name in ("ours", "pyarrow")]
    print(f"{step:20}{walls[0]:>20}{walls[1]:>20}{spread(ratios):>22}{cpus[0]:8.2f}{cpus[1]:9.2f}", flush=True)


def spread(values: list[float]) -> str:
    """Return the median with the smallest and the largest value."""
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


if __name__ == "__main__":
    main()
