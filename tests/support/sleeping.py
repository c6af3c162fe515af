"""Scans whose detector has no model: it sleeps, and writes into each row on which machine it ran."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.metrics import DetectorTime, PairMetrics
from jobs.scan.stages.detect import Detection, Detector
from jobs.scan.stages.result_rows import failure, result_table

_SCAN = """
import json, sys
import jobs.scan.pipeline
from jobs.scan.run import scan
from jobs.scan.settings import ScanSettings
from tests.support.sleeping import SleepingDetector

jobs.scan.pipeline.Detector = SleepingDetector
print(json.dumps(scan(ScanSettings(**json.loads(sys.argv[1])))))
"""
SLOW = "slow"
"""Name of the file in the folder of the job: while it exists, a row takes long."""
ROW_S = 0.4


class SleepingDetector(Detector):
    """A detector that loads nothing, and is light, so that many run on few cores."""

    def __init__(self, detection: Detection, progress: Any = None, writers: Any = ()) -> None:
        import ray

        self._metrics, self._time = PairMetrics("scan", detection.job), DetectorTime(detection.job)
        self._run_id, self._progress, self._device_errors = detection.run_id, progress, ()
        self._writer = writers[0] if writers else None
        self._node, self._marker = ray.get_runtime_context().get_node_id(), Path(detection.model).parent / SLOW
        self._note_first("model")

    def _detect(self, batch: pa.Table) -> pa.Table:
        for code in batch["error_code"].to_pylist():
            if code is None and self._marker.exists():
                time.sleep(ROW_S)
        return authentic_rows(batch, self._node)


def authentic_rows(batch: pa.Table, model_id: str) -> pa.Table:
    """Return the result rows of a batch whose pairs are all authentic, as a detector without a model has them."""
    types = dict.fromkeys(("face_swap", "face_attribute", "text_swap", "text_attribute"), 0.0)
    scored = {"status": "ok", "verdict": "authentic", "score": 0.0, "types": types}
    rows = [
        {"model_id": model_id, "policy_id": "none", "warnings": row["warnings"]}
        | (scored if row["error_code"] is None else failure(row["error_code"], row["error_detail"]))
        for row in batch.select(["error_code", "error_detail", "warnings"]).to_pylist()
    ]
    return result_table(batch, rows)


def sleeping_settings(
    folder: Path, jpeg: Callable[..., bytes], model: Path, rows: int, **changes: Any
) -> dict[str, Any]:
    """Write an input of so many rows, and return the settings of a scan in batches of four. It is slow at first."""
    folder.mkdir()
    (folder / SLOW).touch()
    (folder / "0.jpg").write_bytes(jpeg(0))
    lines = [json.dumps({"id": str(row), "image": "0.jpg", "text": "Angry workers leave"}) for row in range(rows)]
    (folder / "pairs.jsonl").write_text("\n".join(lines))
    shutil.copytree(model, folder / "model")  # no link: a scan follows it, and the detector would miss `SLOW`
    return {
        "input": str(folder / "pairs.jsonl"), "out": str(folder / "out"), "model": str(folder / "model"),
        "batch_size": 4, "rows_per_file": 4, "heartbeat_s": 0.5, "stale_after_s": 120, "write_every_s": 0.5,
    } | changes  # fmt: skip


def start_sleeping(settings: dict[str, Any]) -> subprocess.Popen[str]:
    """Start a scan with sleeping detectors in a process of its own."""
    return subprocess.Popen([sys.executable, "-c", _SCAN, json.dumps(settings)], stdout=subprocess.PIPE, text=True)


def rows_by_machine(settings: dict[str, Any]) -> dict[str, int]:
    """Return how many rows each machine has written so far, by the id of its node."""
    counts: dict[str, int] = {}
    for file in (Path(settings["out"]) / "pairs" / "results").glob("*.parquet"):
        try:
            column = pq.read_table(file, columns=["model_id"])["model_id"]
        except (OSError, pa.ArrowInvalid):  # it is being written
            continue
        for node in column.to_pylist():
            counts[node] = counts.get(node, 0) + 1
    return counts


def hurry(settings: dict[str, Any]) -> None:
    """Let all further rows take no time."""
    (Path(settings["model"]).parent / SLOW).unlink()


def end_scan(driver: subprocess.Popen[str]) -> dict[str, Any]:
    """Wait for the end of a scan, and return its summary."""
    out, _ = driver.communicate()
    assert driver.returncode == 0
    summary: dict[str, Any] = json.loads(out.splitlines()[-1])
    return summary
