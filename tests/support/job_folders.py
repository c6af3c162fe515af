"""Job folders as a scan and a training run leave them, made without running one."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa

from asap.storage.files import write_bytes
from asap.storage.location import Location
from jobs.scan.stages.result_rows import RESULT_SCHEMA, SCHEMA_VERSION, write_table

HERE = socket.gethostname()


def seconds_ago(seconds: float) -> str:
    """Return a time of a record."""
    return (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat(timespec="seconds")


def write_scan(folder: Location, rows: Sequence[dict[str, Any]] = (), **entries: Any) -> dict[str, Any]:
    """Write a scan's folder with these result rows in one file and entries of its record; return the record."""
    record: dict[str, Any] = {
        "record_version": 1, "kind": "scan", "job_id": folder.name, "run_id": "r1", "runs": 1, "beats": 7,
        "state": "completed", "error": None, "host": HERE, "pid": 4711, "heartbeat": seconds_ago(1),
        "manifest": {"rows": 2400}, "pairs_per_s": 20.0, "settings": {"stale_after_s": 12},
        "counts": {"done": 1200, "total": 2400, "errors": 12, "flagged": 30, "unfamiliar": 4},
    }  # fmt: skip
    record |= entries
    write_bytes(folder / "job.json", json.dumps(record).encode())
    if rows:
        write_results(folder, "a", rows)
    if record["state"] == "completed":
        write_bytes(folder / "_SUCCESS", b"")
    return record


def write_results(folder: Location, name: str, rows: Sequence[dict[str, Any]]) -> None:
    """Write a file of result rows. Columns that a row lacks are null."""
    write_table(pa.Table.from_pylist(list(rows), RESULT_SCHEMA), folder / "results" / f"{name}.parquet")


def scored(row_id: int, score: float, verdict: str, *types: str, **columns: Any) -> dict[str, Any]:
    """Return the row of a pair that was scored."""
    return {
        "row_id": row_id, "custom_id": f"c{row_id}", "status": "ok", "schema_version": SCHEMA_VERSION, "text": "A team",
        "verdict": verdict, "score": score, "flagged_types": list(types),
    } | columns  # fmt: skip


def failed(row_id: int, code: str, *, retryable: bool) -> dict[str, Any]:
    """Return the row of a pair that failed."""
    return {
        "row_id": row_id, "custom_id": f"c{row_id}", "status": "error", "schema_version": SCHEMA_VERSION,
        "error_code": code, "error_detail": f"{code} at {row_id}", "retryable": retryable, "attempt": 3,
    }  # fmt: skip


def write_training(
    folder: Location,
    *,
    started_s: float = 60,
    steps: Sequence[dict[str, Any]] = (),
    finished: bool = False,
    sign: Mapping[str, Any] | None = None,
    **start: Any,
) -> None:
    """Write the folder of a training run, with these lines of progress.

    Args:
        folder: The folder.
        started_s: Seconds since the start.
        steps: The lines of progress, less their time and total.
        finished: True for a run with a model.
        sign: Entries of the last sign of life; None for a run of an earlier version.
        start: Entries of the record of the start.
    """
    write_bytes(folder / "train.json", json.dumps({"corpus": "/corpus", "recipe": "asap-ray", "pairs": 64}).encode())
    start = {"started": seconds_ago(started_s), "run_id": "r1"} | start
    record = {"name": "small", "settings": {"pairs": 64}, "starts": [start]}
    write_bytes(folder / "run.json", json.dumps(record).encode())
    lines = [{"at": time.time(), "of": 64} | step for step in steps]
    write_bytes(folder / "progress.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())
    if sign is not None:
        sign = {"run_id": "r1", "beats": 7, "heartbeat": seconds_ago(1)} | dict(sign)
        write_bytes(folder / "heartbeat.json", json.dumps(sign).encode())
    if finished:
        write_bytes(folder / "model" / "config.json", b"{}")
