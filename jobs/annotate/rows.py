"""The schema of annotations: one row for each row of the manifest, with a caption, an explanation, or both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from jobs.scan.input.manifest import MANIFEST_SCHEMA, storable
from jobs.scan.stages.result_rows import CALLER_COLUMNS
from jobs.scan.stages.row_shape import RowShape

SCHEMA_VERSION = 1
KINDS = ("caption", "explanation")


def _columns_of(kind: str) -> list[tuple[str, pa.DataType]]:
    return [
        (kind, pa.string()),
        (f"{kind}_error", pa.string()),
        (f"{kind}_is_cut", pa.bool_()),
        (f"{kind}_is_new", pa.bool_()),
        (f"{kind}_input_tokens", pa.int64()),
        (f"{kind}_output_tokens", pa.int64()),
    ]


DESCRIBED_COLUMNS = {kind: dict(_columns_of(kind)) for kind in KINDS}
"""Columns that the stage of each kind adds to a row, and their types. `is_new` is true if an engine was asked for this
row, and false if an earlier row has the same picture or text, or if a file had the description."""
ANNOTATION_SCHEMA = pa.schema(
    [
        *(MANIFEST_SCHEMA.field(name) for name in CALLER_COLUMNS),
        pa.field("image_name", pa.string()),
        pa.field("status", pa.string(), nullable=False),
        pa.field("error_code", pa.string()),
        pa.field("error_detail", pa.string()),
        pa.field("retryable", pa.bool_()),
        pa.field("attempt", pa.int32()),
        *(pa.field(name, kind) for columns in DESCRIBED_COLUMNS.values() for name, kind in columns.items()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("image_sha256", pa.string()),
        pa.field("judged_run", pa.string()),
        pa.field("schema_version", pa.int32(), nullable=False),
        pa.field("warnings", pa.list_(pa.string())),
    ]
)


def annotation_table(callers: pa.Table, rows: Sequence[dict[str, Any]]) -> pa.Table:
    """Return a table of `ANNOTATION_SCHEMA`: the caller's columns, and those of the outcome. A missing key is null.

    Args:
        callers: A table that has `CALLER_COLUMNS`.
        rows: The other columns, as a dict for each row of `callers`.
    """
    columns: dict[str, Any] = {name: callers[name] for name in CALLER_COLUMNS}
    for field in ANNOTATION_SCHEMA:
        if field.name in columns:
            continue
        values = [row.get(field.name) for row in rows]
        if field.name == "schema_version":
            values = [SCHEMA_VERSION] * len(rows)
        elif pa.types.is_string(field.type):
            values = [value if value is None else storable(value) for value in values]
        columns[field.name] = pa.array(values, field.type)
    return pa.table(columns).select(ANNOTATION_SCHEMA.names).cast(ANNOTATION_SCHEMA)


def _lost(rows: pa.Table, detail: str, record: dict[str, Any]) -> pa.Table:
    """Return the rows of pairs whose processes died; see `RowShape.lost`.

    Nothing describes them: they were tried without each model too (`AnnotatePipeline.without_an_engine`).
    """
    row = {"status": "error", "error_code": "process_died", "error_detail": detail, "retryable": False}
    row |= {f"{kind}_error": "process_died" for kind in record["engines"]} | {"judged_run": record["run_id"]}
    return annotation_table(rows, [row] * rows.num_rows)


def with_former_cost(old: pa.Table, new: pa.Table) -> pa.Table:
    """Return rows that were tried again, with the tokens of all tries. A description that was paid for stays new.

    Args:
        old: The rows as they were.
        new: The same rows after another try, which found what was described already, at no cost.
    """
    former = {row["row_id"]: row for row in old.to_pylist()}
    rows = new.to_pylist()
    for row in rows:
        before = former[row["row_id"]]
        for kind in KINDS:
            for name in (f"{kind}_input_tokens", f"{kind}_output_tokens"):
                if before[name] is not None:
                    row[name] = before[name] + (row[name] or 0)
            if row[kind] is not None and before[f"{kind}_is_new"]:
                row[f"{kind}_is_new"] = True
    return pa.Table.from_pylist(rows, new.schema)


_CODE_COLUMNS = ("error_code", *(f"{kind}_error" for kind in KINDS))
ANNOTATIONS = RowShape(
    "annotations", ANNOTATION_SCHEMA, "describing", ("errors",), _lost, _CODE_COLUMNS, with_former_cost
)
"""The rows of a job of annotations."""
