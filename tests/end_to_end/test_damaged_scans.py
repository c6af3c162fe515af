"""Thirty damaged inputs through real scans: every row of an input is in the results once, with a typed outcome."""

from __future__ import annotations

import random
from pathlib import Path

import pyarrow.dataset as ds
import pytest

from asap.errors import AsapError
from jobs.scan.input.sources import find_source
from jobs.scan.run import scan
from jobs.scan.settings import ScanSettings
from tests.support.damages import FORMATS, damage, write_pictures

CASES = 30
CODES = {
    "row_invalid", "image_missing", "text_missing", "text_unreadable", "not_found", "access_denied", "storage_error",
    "empty_file", "too_large", "unsupported_format", "decode_failed", "image_too_large", "text_invalid",
}  # fmt: skip


@pytest.mark.drill
def test_damaged_inputs_are_scanned_row_by_row_or_refused(ray_here: None, tmp_path: Path, model_folder: Path) -> None:
    draw = random.Random(16)
    write_pictures(tmp_path)
    names = list(FORMATS)
    scanned = number = 0
    while scanned < CASES:
        name = names[number % len(names)]
        (tmp_path / name).write_bytes(damage(name, draw))
        number += 1
        settings = ScanSettings(
            input=str(tmp_path / name), out=str(tmp_path / "out"), job=f"job-{number}", model=str(model_folder),
            device="cpu", allow_unreadable=True,
        )  # fmt: skip
        try:
            rows = list(find_source(settings.input).rows())
            summary = scan(settings)
        except AsapError:  # refused in a sentence; any other exception fails the test
            continue
        results = ds.dataset(Path(summary["folder"]) / "results").to_table().to_pylist()
        assert sorted(row["row_id"] for row in results) == sorted(row.row_id for row in rows)
        assert {row["error_code"] for row in results if row["status"] == "error"} <= CODES
        assert all(row["error_detail"] for row in results if row["status"] == "error")
        scanned += 1
