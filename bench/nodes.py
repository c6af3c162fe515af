"""Measure how a scan scales with the machines of a cluster, and what a row costs its driver.

Every machine is a raylet of this one, with GPUs that exist only in Ray's books, and a detector on each sleeps. So the
figures show what the pipeline, the driver and the writers allow, as long as the work beside the sleep is small against
the cores that are really there: the share of them that was in use is printed.

Figures are those of a part of the scan, from three tenths of its rows to the last but a twentieth, while all detectors
run: the start of processes, which all share the cores that are really there, is before it. `of_ideal` is the share of
the rate of detectors that do nothing but sleep, `efficiency` that of the rate of a machine of the first line.

    python bench/nodes.py [--nodes 1 2 4] [--gpus 2] [--row-ms 40] [--rows 1024] [--json PATH]
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from costs import cpu_seconds

from jobs.metrics import DetectorTime, PairMetrics
from jobs.scan.stages.detect import Detection, Detector
from jobs.scan.stages.result_rows import result_table

STORE_BYTES = 200 * 2**20
FROM, TO = 0.3, 0.95
"""The part of a scan that is measured, as shares of its rows."""


class SleepingDetector(Detector):
    """A detector that loads no model and sleeps for each row; the milliseconds are the name of its model."""

    def __init__(self, detection: Detection, progress: Any = None, writers: Sequence[Any] = ()) -> None:
        self._metrics, self._time = PairMetrics("scan", detection.job), DetectorTime(detection.job)
        self._run_id, self._progress, self._device_errors = detection.run_id, progress, ()
        self._writer = writers[0] if writers else None
        self._row_s = float(os.environ.get("ROW_MS", "40")) / 1000
        self._note_first("model")

    def _detect(self, batch: pa.Table) -> pa.Table:
        time.sleep(self._row_s * batch.num_rows)
        types = dict.fromkeys(("face_swap", "face_attribute", "text_swap", "text_attribute"), 0.0)
        row = {"status": "ok", "verdict": "authentic", "score": 0.0, "types": types, "warnings": []}
        return result_table(batch, [row | {"model_id": "sleeps", "policy_id": "none"}] * batch.num_rows)


@contextmanager
def cluster_of(nodes: int, cpus: int, gpus: int) -> Iterator[str]:
    """Run a cluster of a head without CPUs and so many machines, and yield its address."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": STORE_BYTES})
    try:
        for _ in range(nodes):
            cluster.add_node(num_cpus=cpus, num_gpus=gpus, object_store_memory=STORE_BYTES)
        yield cluster.address
    finally:
        cluster.shutdown()


@dataclass(frozen=True)
class Moment:
    """The state of a scan at a time."""

    at_s: float
    rows: int
    driver_s: float
    """Seconds of CPU of this process, the driver."""
    all_s: float
    """Seconds of CPU of all processes that live."""


def scan_moments(address: str, rows: int, folder: Path, batch_size: int) -> list[Moment]:
    """Scan so many rows, and return the state twice a second."""
    from jobs.scan.passes import ScanProgress
    from jobs.scan.run import scan
    from jobs.scan.settings import ScanSettings

    settings = ScanSettings(
        input=str(folder / "pairs.jsonl"), out=str(folder / "out"), job=f"{rows}-{time.time_ns()}", limit=rows,
        device="cuda", address=address, batch_size=batch_size, allow_unfamiliar=True,
    )  # fmt: skip
    moments: list[Moment] = []

    def note(progress: ScanProgress) -> None:
        all_s = sum(cpu_seconds(os.getpid()).values())
        moments.append(Moment(time.perf_counter(), progress.done, time.process_time(), all_s))

    summary = scan(settings, note)
    if (summary["pairs"], summary["errors"]) != (rows, 0):
        raise SystemExit(f"the scan is incomplete: {summary['pairs']} pairs, {summary['errors']} with errors")
    return moments


def measure(nodes: int, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measure a number of machines. The rows grow with the machines, so that each run takes about as long."""
    detectors = nodes * arguments.gpus
    rows = arguments.rows * detectors
    with cluster_of(nodes, arguments.cpus, arguments.gpus) as address:
        moments = scan_moments(address, rows, folder, arguments.batch)
    window = [moment for moment in moments if FROM * rows <= moment.rows <= TO * rows]
    first, last = window[0], window[-1]
    wall_s, done = last.at_s - first.at_s, last.rows - first.rows
    return {
        "nodes": nodes,
        "detectors": detectors,
        "rows": done,
        "rows_per_s": done / wall_s,
        "of_ideal": done / wall_s * arguments.row_ms / 1000 / detectors,
        "driver_ms_per_row": 1000 * (last.driver_s - first.driver_s) / done,
        "driver_busy": (last.driver_s - first.driver_s) / wall_s,
        "cores_used": (last.all_s - first.all_s) / (wall_s * len(os.sched_getaffinity(0))),
    }


def write_input(folder: Path, rows: int) -> None:
    """Write a small picture and a table of rows that show it."""
    from PIL import Image

    Image.new("RGB", (64, 64), (120, 90, 60)).save(folder / "a.jpg")
    lines = (json.dumps({"id": row, "image": "a.jpg", "text": "A minister opens the bridge"}) for row in range(rows))
    (folder / "pairs.jsonl").write_text("\n".join(lines))


def main() -> None:
    """Measure each number of machines, print a table, and write JSON if requested."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--nodes", nargs="+", type=int, default=[1, 2, 4], help="Numbers of machines.")
    parser.add_argument("--cpus", type=int, default=4, help="CPUs of a machine in Ray's books.")
    parser.add_argument("--gpus", type=int, default=2, help="GPUs of a machine in Ray's books, a detector each.")
    parser.add_argument("--row-ms", type=float, default=40, help="Milliseconds that a detector sleeps for a row.")
    parser.add_argument("--batch", type=int, default=16, help="Rows of a batch.")
    parser.add_argument("--rows", type=int, default=1024, help="Rows for each detector.")
    parser.add_argument("--json", type=Path, help="File for the figures.")
    arguments = parser.parse_args()
    os.environ["ROW_MS"] = str(arguments.row_ms)  # the machines inherit it

    import jobs.scan.pipeline

    jobs.scan.pipeline.Detector = SleepingDetector  # type: ignore[misc]
    figures = []
    with tempfile.TemporaryDirectory() as name:
        write_input(Path(name), arguments.rows * max(arguments.nodes) * arguments.gpus)
        for nodes in arguments.nodes:
            figures.append(measure(nodes, arguments, Path(name)))
            first = figures[0]
            figures[-1]["efficiency"] = (figures[-1]["rows_per_s"] / nodes) / (first["rows_per_s"] / first["nodes"])
            print(json.dumps(figures[-1]))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
