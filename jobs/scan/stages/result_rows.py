"""The schema of result rows, declared once, the conversion of findings to tables of it, and small files of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from asap.finding import Finding, box_fields
from asap.labels import TYPES
from asap.storage.files import write_bytes
from asap.storage.location import Location
from jobs.scan.input.manifest import MANIFEST_SCHEMA, storable
from jobs.scan.stages.row_shape import RowShape

SCHEMA_VERSION = 9
"""Version of the schema. It grows when a column is added; columns are only ever added, and may be null.

Version 2 added `given_id` and `text_escapes`, version 3 `text_read`, version 4 `familiarity`,
`familiarity_image`, `familiarity_text` and `familiarity_id`, version 5 `judged_run`, version 6 `image_group`,
`image_row`, `image_column` and `image_encoding`, version 7 `caption_error`, `agreement_image_text`,
`agreement_image_caption` and `agreement_text_caption`, version 8 `explanation_error`, version 9 `reused`.
"""

CALLER_COLUMNS = [name for name in MANIFEST_SCHEMA.names if name not in ("text_uri", "row_error", "warnings")]
"""Columns of the manifest that are passed through unchanged."""

_BOX = pa.struct([(name, pa.float32()) for name in ("x0", "y0", "x1", "y1")])
_WORD = pa.struct(
    [
        ("index", pa.int32()),
        ("start", pa.int32()),
        ("end", pa.int32()),
        ("word", pa.string()),
        ("score", pa.float32()),
    ]
)
CAPTION_ERROR = pa.struct([("kind", pa.string()), ("detail", pa.string()), ("retryable", pa.bool_())])
"""The reason why a pair has no caption, or no explanation."""
RESULT_SCHEMA = pa.schema(
    [MANIFEST_SCHEMA.field(name) for name in CALLER_COLUMNS]
    + [
        pa.field("status", pa.string(), nullable=False),
        ("error_code", pa.string()),
        ("error_detail", pa.string()),
        ("retryable", pa.bool_()),
        ("attempt", pa.int32()),
        ("verdict", pa.string()),
        ("score", pa.float32()),
        ("types", pa.struct([(name, pa.float32()) for name in TYPES])),
        ("flagged_types", pa.list_(pa.string())),
        ("box_px", _BOX),
        ("raw_box_px", _BOX),
        ("words", pa.list_(_WORD)),
        ("word_scores", pa.list_(pa.float32())),
        ("text_read", pa.float32()),
        ("familiarity", pa.float32()),
        ("familiarity_image", pa.float32()),
        ("familiarity_text", pa.float32()),
        ("caption", pa.string()),
        ("caption_error", CAPTION_ERROR),
        ("explanation", pa.string()),
        ("explanation_error", CAPTION_ERROR),
        ("agreement_image_text", pa.float32()),
        ("agreement_image_caption", pa.float32()),
        ("agreement_text_caption", pa.float32()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("image_sha256", pa.string()),
        ("model_id", pa.string()),
        ("policy_id", pa.string()),
        ("familiarity_id", pa.string()),
        ("judged_run", pa.string()),
        ("reused", pa.string()),
        pa.field("schema_version", pa.int32(), nullable=False),
        ("warnings", pa.list_(pa.string())),
    ]
)


_SOURCES = {"job": "the same pair of this job", "store": "the reuse store", "since": "the earlier job"}
"""Values of `reused`, as a person reads them."""


def reused_words(counts: Mapping[str, int]) -> str:
    """Return for a person how many rows took their scores from where."""
    return ", ".join(f"{count:,} from {_SOURCES.get(source, source)}" for source, count in counts.items())


def success(finding: Finding) -> dict[str, Any]:
    """Return the columns of a scored pair."""
    return _common(finding) | {
        "status": "ok",
        "verdict": finding.verdict,
        "score": finding.score,
        "types": finding.types,
        "flagged_types": finding.flagged_types,
        "box_px": box_fields(finding.box_px),
        "raw_box_px": box_fields(finding.raw_box_px),
        "words": None if finding.words is None else [asdict(word) for word in finding.words],
        "word_scores": finding.word_scores,
        "text_read": finding.text_read,
        "familiarity": _rounded_up(finding.familiarity),
        "familiarity_image": _rounded_up(finding.familiarity_image),
        "familiarity_text": _rounded_up(finding.familiarity_text),
        "agreement_image_text": finding.agreement_image_text,
        "agreement_image_caption": finding.agreement_image_caption,
        "agreement_text_caption": finding.agreement_text_caption,
    }


def _rounded_up(familiarity: float | None) -> float | None:
    """Return the next float32 that is not lower.

    A threshold may be the familiarity of a pair, which is then not below it. That must hold for the stored number too.
    """
    if familiarity is None:
        return None
    stored = np.float32(familiarity)
    return float(stored if float(stored) >= familiarity else np.nextafter(stored, np.float32(2)))


def failure(code: str, detail: str, *, retryable: bool = False) -> dict[str, Any]:
    """Return the columns of a pair that could not be scored."""
    return {"status": "error", "error_code": code, "error_detail": detail, "retryable": retryable}


def columns_of(finding: Finding) -> dict[str, Any]:
    """Return the columns of a finding, which has either a verdict or an error."""
    if finding.error is None:
        return success(finding)
    return _common(finding) | failure(finding.error.code, str(finding.error))


def _common(finding: Finding) -> dict[str, Any]:
    return {
        "width": finding.width,
        "height": finding.height,
        "image_sha256": finding.image_sha256,
        "model_id": finding.model_id,
        "policy_id": finding.policy_id,
        "familiarity_id": finding.familiarity_id,
        "warnings": finding.warnings,
    }


def result_table(callers: pa.Table, rows: Sequence[dict[str, Any]]) -> pa.Table:
    """Return a table of `RESULT_SCHEMA`: the caller's columns, and those of the outcome. A missing key is null.

    Args:
        callers: A table that has `CALLER_COLUMNS`.
        rows: The other columns, as a dict for each row of `callers`.
    """
    columns = {name: callers[name] for name in CALLER_COLUMNS}
    for field in RESULT_SCHEMA:
        if field.name in CALLER_COLUMNS:
            continue
        values = [_storable(row.get(field.name)) for row in rows]
        if field.name == "schema_version":
            values = [SCHEMA_VERSION] * len(rows)
        columns[field.name] = pa.array(values, field.type)
    return pa.table(columns).cast(RESULT_SCHEMA)


def lost_results(rows: pa.Table, detail: str, record: dict[str, Any]) -> pa.Table:
    """Return result rows of pairs whose processes died; see `RowShape.lost`."""
    ids = {name: record[name] for name in ("model_id", "policy_id", "familiarity_id")}
    row = failure("model_error", detail) | ids | {"judged_run": record["run_id"]}
    return result_table(rows, [row] * rows.num_rows)


RESULTS = RowShape("results", RESULT_SCHEMA, "detecting", ("errors", "flagged", "unfamiliar"), lost_results)
"""The rows of a scan."""


def _storable(value: Any) -> Any:
    """Escape strings at any depth as stores need it: errors and captions may quote anything."""
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, list) and value and not isinstance(value[0], float):  # long lists of scores need no copy
        return [_storable(item) for item in value]
    if isinstance(value, dict) and ("word" in value or "detail" in value):
        return {name: storable(part) if isinstance(part, str) else part for name, part in value.items()}
    return value


def write_table(table: pa.Table, location: Location) -> None:
    """Write one small parquet file atomically: readers see the whole file or none."""
    write_bytes(location, parquet_bytes(table))


def parquet_bytes(table: pa.Table) -> bytes:
    """Return a table as the bytes of a parquet file."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return bytes(sink.getvalue().to_pybytes())
