"""The record of a scan (`job.json`), its end states, and the files by which others speak with the process of a job."""

from __future__ import annotations

import json
import os
import socket
from datetime import UTC, datetime
from typing import Any

from asap.storage.files import read_json, write_bytes
from asap.storage.location import Location

ENDS = ("completed", "failed", "cancelled", "unfamiliar")
"""States that a job ends in."""
RESULTS_ENTRY = "results"
"""Entry of the record while a policy is published: the folder that holds the rows until `results` does."""
CANCEL = "_cancel"
"""File that asks the process of a job to stop, from any machine. That process deletes it."""
SIGN = "heartbeat.json"
"""File of the last sign of life of a training run. That of a scan is in its record."""


def read_record(folder: Location) -> dict[str, Any] | None:
    """Return the contents of `job.json`, or None if there is no such file."""
    return read_json(folder / "job.json", "Choose another folder for the job, or delete it.")


def results_folder(folder: Location, record: dict[str, Any]) -> Location:
    """Return the folder of a job's rows, all of which are under the policy that its record names."""
    return folder / str(record.get(RESULTS_ENTRY, "results"))


def read_sign(folder: Location) -> dict[str, Any]:
    """Return the last sign of life of a training run; empty if there is none.

    It has `run_id`, `beats` and `heartbeat`, and the work under way as `phase` and `phase_counts`.
    """
    return read_json(folder / SIGN, "Delete it.") or {}


def request_cancel(folder: Location) -> None:
    """Ask the process of a job to stop, by a file that it looks for."""
    request = {"host": socket.gethostname(), "pid": os.getpid(), "at": datetime.now(UTC).isoformat(timespec="seconds")}
    write_bytes(folder / CANCEL, json.dumps(request).encode())
