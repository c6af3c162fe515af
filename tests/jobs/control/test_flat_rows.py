"""The flat view of result rows: one simple value a column, as a spreadsheet and simple programs read it."""

import pyarrow as pa

from asap.labels import TYPES
from jobs.control.flat_rows import flat_columns, flat_schema, flatten
from jobs.scan.stages.result_rows import RESULT_SCHEMA
from tests.support.flat_rows import FLAT, ROWS


def test_every_column_has_one_simple_type_and_every_stored_column_is_there() -> None:
    columns = flat_columns(RESULT_SCHEMA)
    assert not any(pa.types.is_nested(column.type) for column in columns.values())
    assert set(RESULT_SCHEMA.names) - {column.source for column in columns.values()} == {"word_scores", "text_escapes"}
    assert {f"score_{name}" for name in TYPES} <= set(columns)
    assert list(columns)[:2] + list(columns)[-1:] == ["row_id", "custom_id", "metadata"]


def test_boxes_types_and_lists_become_single_values() -> None:
    columns = flat_columns(RESULT_SCHEMA)
    rows = pa.Table.from_pylist(ROWS, RESULT_SCHEMA)
    flat = flatten(pa.concat_tables([rows.slice(0, 1), rows.slice(1)]), list(columns), columns)
    assert flat.schema == flat_schema(columns)
    first, second, third = flat.to_pylist()
    assert {name: first[name] for name in FLAT} == FLAT
    assert {name for name, value in second.items() if value is not None} == {
        "row_id", "custom_id", "status", "error_code", "error_detail", "retryable", "attempt", "schema_version",
    }  # fmt: skip
    assert (third["score"], third["flagged_types"], third["score_face_swap"]) == (None, "", None)  # NaN is no number


def test_columns_of_a_later_version_are_there_too() -> None:
    tilt, ids = pa.struct([("x", pa.float32())]), pa.list_(pa.int64())
    further = [pa.field("aura", pa.string()), pa.field("tilt", tilt), pa.field("ids", ids)]
    columns = flat_columns(pa.schema([*RESULT_SCHEMA, *further]))
    rows = pa.table({"aura": ["blue"], "tilt": [{"x": 0.5}], "ids": [[1, 2]]})
    names = ["aura", "tilt_x", "ids"]
    assert flatten(rows, names, columns).to_pylist() == [{"aura": "blue", "tilt_x": 0.5, "ids": "1; 2"}]
