"""Reading the results of a scan."""

from __future__ import annotations

from typing import Any

import pyarrow.parquet as pq

from asap.storage.files import list_files, open_seekable
from asap.storage.location import Location


def read_results(folder: Location) -> list[dict[str, Any]]:
    """Return the result rows of a job, by their ids."""
    rows: list[dict[str, Any]] = []
    for info in list_files(folder / "results"):
        with open_seekable(info.location) as file:
            rows += pq.read_table(file).to_pylist()
    return sorted(rows, key=lambda row: row["row_id"])
