"""The schema of result rows, declared once, the conversion of findings to tables of it, and small files of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from asap.columns import Scores
from asap.errors import InputError
from asap.finding import Word
from asap.labels import TYPES, VERDICTS
from asap.policy import Policy
from asap.storage.files import write_bytes
from asap.storage.location import Location
from jobs.scan.input.manifest import MANIFEST_SCHEMA, storable
from jobs.scan.stages.row_shape import RowShape

SCHEMA_VERSION = 8
"""Version of the schema. It grows when a column is added; columns are only ever added, and may be null.

Version 2 added `given_id` and `text_escapes`, version 3 `text_read`, version 4 `familiarity`,
`familiarity_image`, `familiarity_text` and `familiarity_id`, version 5 `judged_run`, version 6 `image_group`,
`image_row`, `image_column` and `image_encoding`, version 7 `caption_error`, `agreement_image_text`,
`agreement_image_caption` and `agreement_text_caption`, version 8 `explanation_error`.
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
        pa.field("schema_version", pa.int32(), nullable=False),
        ("warnings", pa.list_(pa.string())),
    ]
)


_PREPARED_COLUMNS = ("attempt", "width", "height", "image_sha256", "caption", "caption_error", "explanation",
                     "explanation_error")  # fmt: skip
"""Columns that the stages before the detector have filled in."""


def scored_table(
    prepared: pa.Table,
    scores: Scores,
    policy: Policy,
    scored: NDArray[np.int64],
    errors: Mapping[int, InputError],
    warnings: Mapping[int, Sequence[str]],
    ids: Mapping[str, str | None],
) -> pa.Table:
    """Return a table of `RESULT_SCHEMA` of rows that the detector is done with.

    Args:
        prepared: The rows; those that failed in an earlier stage have an `error_code`.
        scores: The scores of the pairs that the model could be asked about.
        policy: The policy that judges them.
        scored: For each of these pairs, the position of its row.
        errors: The errors that the detector found, by the positions of their rows.
        warnings: Warnings about texts, by the positions of their rows.
        ids: The columns that are the same in all rows.
    """
    rows = prepared.num_rows
    errors = dict(errors) | {int(scored[number]): error for number, error in scores.errors.items()}
    # Rows without scores take a null from each column of scores.
    number_of_row = np.full(rows, -1)
    number_of_row[scored] = np.arange(len(scored))
    number_of_row[list(errors)] = -1
    takes = pa.array(number_of_row, pa.int64(), mask=number_of_row < 0)
    columns: dict[str, Any] = {name: prepared[name] for name in (*CALLER_COLUMNS, *_PREPARED_COLUMNS)}
    columns |= {name: column.take(takes) for name, column in _score_columns(scores, policy).items()}
    columns |= {name: pa.array([value] * rows, pa.string()) for name, value in ids.items()}
    columns["schema_version"] = pa.array([SCHEMA_VERSION] * rows, pa.int32())
    codes, details, retryable = (prepared[name].to_pylist() for name in ("error_code", "error_detail", "retryable"))
    for row, error in errors.items():
        codes[row], details[row], retryable[row] = error.code, storable(str(error)), False
    columns["status"] = pa.array(["ok" if code is None else "error" for code in codes], pa.string())
    columns |= {"error_code": codes, "error_detail": details, "retryable": pa.array(retryable, pa.bool_())}
    columns["warnings"] = _with_warnings(prepared["warnings"], warnings)
    return pa.table({name: columns[name] for name in RESULT_SCHEMA.names}).cast(RESULT_SCHEMA)


def _with_warnings(column: pa.ChunkedArray, added: Mapping[int, Sequence[str]]) -> pa.ChunkedArray | pa.Array:
    """Return the warnings of rows with others added, as stores need them."""
    has_escapes = pc.any(pc.match_substring(pc.list_flatten(column), "\0")).as_py()
    if not added and not has_escapes:
        return column
    lists = column.to_pylist()
    return pa.array(
        [[storable(warning) for warning in [*one, *added.get(row, ())]] for row, one in enumerate(lists)],
        pa.list_(pa.string()),
    )


def _score_columns(scores: Scores, policy: Policy) -> dict[str, pa.Array]:
    """Return the columns of the scores of pairs, and of what a policy makes of them."""
    verdicts, captioned = scores.judge(policy), scores.captioned_R
    boxes = [pa.array(corner, pa.float32()) for corner in scores.box_R4.astype(np.float32).T]
    types = [pa.array(column, pa.float32(), from_pandas=True) for column in scores.types_R4.T]
    flagged_types = pa.array(TYPES).take(pa.array(np.nonzero(verdicts.flagged_R4)[1]))
    familiarity = [_nullable(column) for column in _rounded_up(scores.familiarity_R3).T]
    agreement = [_nullable(column) for column in scores.agreement_R3.T]
    return {
        "verdict": pa.array(VERDICTS).take(pa.array(verdicts.codes_R)),
        "score": pa.array(scores.score_R),
        "types": pa.StructArray.from_arrays(types, TYPES),
        "flagged_types": pa.ListArray.from_arrays(_offsets(verdicts.flagged_R4.sum(1)), flagged_types),
        "box_px": pa.StructArray.from_arrays(boxes, fields=list(_BOX), mask=pa.array(~verdicts.has_box_R)),
        "raw_box_px": pa.StructArray.from_arrays(boxes, fields=list(_BOX)),
        "words": _words_column(scores.flagged_words(verdicts), captioned),
        "word_scores": pa.ListArray.from_arrays(
            pa.array(scores.word_starts, pa.int32()), pa.array(scores.words_W), mask=pa.array(captioned)
        ),
        "text_read": _nullable(scores.shares_read),
        **dict(zip(("familiarity", "familiarity_image", "familiarity_text"), familiarity, strict=True)),
        **dict(
            zip(("agreement_image_text", "agreement_image_caption", "agreement_text_caption"), agreement, strict=True)
        ),
    }


def _words_column(flagged: Mapping[int, Sequence[Word]], captioned: NDArray[np.bool_]) -> pa.Array:
    """Return the flagged words of pairs; null where a caption replaced a missing text."""
    words = [word for row in sorted(flagged) for word in flagged[row]]
    fields = [[getattr(word, field.name) for word in words] for field in _WORD]
    fields[_WORD.get_field_index("word")] = [storable(word.word) for word in words]
    columns = [pa.array(values, field.type) for values, field in zip(fields, _WORD, strict=True)]
    counts = np.array([len(flagged.get(row, ())) for row in range(len(captioned))], np.int64)
    structs = pa.StructArray.from_arrays(columns, fields=list(_WORD))
    return pa.ListArray.from_arrays(_offsets(counts), structs, mask=pa.array(captioned))


def _offsets(lengths: NDArray[np.integer]) -> pa.Array:
    return pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())


def _nullable(values: NDArray[np.floating]) -> pa.Array:
    """Return numbers as float32, with null for NaN."""
    return pa.array(values.astype(np.float32), from_pandas=True)


def _rounded_up(familiarity: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the next float32 that are not lower.

    A threshold may be the familiarity of a pair, which is then not below it. That must hold for the stored number too.
    """
    stored = familiarity.astype(np.float32)
    return np.where(stored.astype(np.float64) < familiarity, np.nextafter(stored, np.float32(2)), stored)


def failure(code: str, detail: str, *, retryable: bool = False) -> dict[str, Any]:
    """Return the columns of a pair that could not be scored."""
    return {"status": "error", "error_code": code, "error_detail": detail, "retryable": retryable}


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
