"""Tables of tests: written, read, and refused."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from asap.storage.files import file_info
from asap.storage.location import Location
from jobs.errors import InputNotFound
from jobs.scan.input.manifest import ManifestRow
from jobs.scan.input.tables.columns import NO_OPTIONS, TableOptions
from jobs.scan.input.tables.record_files import record_file
from jobs.scan.input.tables.table import Table, understand_table


def read_table(path: Path, options: TableOptions = NO_OPTIONS) -> Table:
    file, info = record_file(path.name), file_info(Location(str(path)))
    assert file is not None
    assert info is not None
    return understand_table(info, file.kind, options)


def write_table(path: Path, data: Any) -> Path:
    """Write a table of the kind that the name says: records, text or bytes."""
    if isinstance(data, bytes):
        path.write_bytes(data)
    elif isinstance(data, str):
        path.write_bytes(data.encode())
    elif path.suffix == ".parquet":
        pq.write_table(data if isinstance(data, pa.Table) else pa.Table.from_pylist(data), path)
    elif path.suffix == ".csv":
        pd.DataFrame(data).to_csv(path, index=False)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in data))
    else:
        path.write_text(json.dumps(data))
    return path


def pairs_of(path: Path, options: TableOptions = NO_OPTIONS) -> list[tuple[str | None, str | None, str | None]]:
    """Return name, picture and text of each row, the picture relative to the folder of the table."""
    rows = list(read_table(path, options).rows())
    assert [row.row_error for row in rows] == [None] * len(rows)
    return [(row.custom_id, relative_image(row, path), row.text) for row in rows]


def relative_image(row: ManifestRow, path: Path) -> str | None:
    return row.image_uri.removeprefix(f"{path.parent}/") if row.image_uri else None


def refusal_of(path: Path, options: TableOptions = NO_OPTIONS) -> str:
    with pytest.raises(InputNotFound) as caught:
        read_table(path, options)
    return str(caught.value).replace(f"{path.parent}/", "")


FORMATS = ["a.jsonl", "a.csv", "a.parquet", "a.json"]
