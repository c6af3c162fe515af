"""Rows of annotations as a job writes them, made without running one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from asap.storage.files import write_bytes
from asap.storage.location import Location
from jobs.annotate.rows import annotation_table
from jobs.scan.input.manifest import ManifestRow, to_table
from jobs.scan.stages.result_rows import CALLER_COLUMNS, write_table


def annotation(row_id: int, *, custom_id: str | None = None, given_id: str | None = None, image: str = "/in/a.jpg",
               text: str | None = "a text", **fields: Any) -> pa.Table:  # fmt: skip
    """Return one row: of a caller, and with the fields of its outcome."""
    row = ManifestRow(row_id=row_id, custom_id=custom_id, given_id=given_id, image_uri=image, text=text)
    callers = to_table([row]).select(CALLER_COLUMNS)
    return annotation_table(callers, [{"status": "ok", "image_name": image.removeprefix("/in/")} | fields])


def write_annotations(folder: Location, rows: Sequence[pa.Table], *, is_done: bool = True) -> None:
    """Write rows as the file of a job in this folder, with as much beside it as readers need."""
    write_table(pa.concat_tables(rows), folder / "annotations" / "a.parquet")
    write_bytes(folder / "job.json", json.dumps({"kind": "annotate", "job_id": folder.name, "state": "x"}).encode())
    if is_done:
        write_bytes(folder / "annotations.json", b"{}")
