"""Rows as JSON, JSON lines, CSV and Parquet; cells that are no formulas; text that cannot command a terminal."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from asap.errors import ConfigError
from jobs.control.row_formats import cell_text, choose_format, csv_cell, write_rows

SCHEMA = pa.schema([("id", pa.string()), ("score", pa.float64()), ("types", pa.list_(pa.string()))])
ROWS: list[dict[str, Any]] = [
    {"id": 'a,"b"\nc', "score": 0.5, "types": ["face_swap"]},
    {"id": '=HYPERLINK("http://evil.test")', "score": -1.0, "types": None},
    {"id": None, "score": None, "types": []},
]
TABLES = [pa.Table.from_pylist(ROWS[:1], SCHEMA), pa.Table.from_pylist(ROWS[1:], SCHEMA)]


def _written(kind: str, tables: list[pa.Table] = TABLES) -> bytes:
    stream = io.BytesIO()
    assert write_rows(kind, stream, SCHEMA, tables) == sum(table.num_rows for table in tables)
    assert not stream.closed
    return stream.getvalue()


def test_json_lines_and_json_hold_every_row_as_it_is() -> None:
    assert [json.loads(line) for line in _written("jsonl").splitlines()] == ROWS
    assert json.loads(_written("json")) == ROWS


def test_parquet_holds_every_row_as_it_is() -> None:
    assert pq.read_table(io.BytesIO(_written("parquet"))).to_pylist() == ROWS


def test_a_csv_has_json_for_lists_nothing_for_null_and_no_formula() -> None:
    rows = list(csv.reader(io.StringIO(_written("csv").decode(), newline="")))
    assert rows == [
        ["id", "score", "types"],
        ['a,"b"\nc', "0.5", '["face_swap"]'],
        ['\'=HYPERLINK("http://evil.test")', "-1.0", ""],
        ["", "", "[]"],
    ]


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv", "parquet"])
def test_no_rows_are_a_file_too(kind: str) -> None:
    written = _written(kind, [])
    if kind == "parquet":
        assert pq.read_schema(io.BytesIO(written)) == SCHEMA
    else:
        assert written.split() == {"json": [b"[]"], "jsonl": [], "csv": [b"id,score,types"]}[kind]


@pytest.mark.parametrize("beginning", ["=", "+", "-", "@", "\t", "\r", "\n", "＝"])
def test_a_text_that_begins_like_a_formula_gets_an_apostrophe(beginning: str) -> None:
    assert csv_cell(f"{beginning}1+1") == f"'{beginning}1+1"


@pytest.mark.parametrize(
    ("value", "cell"), [("a=b", "a=b"), (-3, "-3"), (True, "true"), ({"x": "=1"}, '{"x": "=1"}'), ("é", "é")]
)
def test_other_cells_stay_as_they_are(value: Any, cell: str) -> None:
    assert csv_cell(value) == cell


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        ((None, None, True, False), "table"),
        ((None, None, False, False), "jsonl"),
        ((None, None, True, True), "json"),
        (("csv", None, True, False), "csv"),
        ((None, "s3://b/a.parquet", True, True), "parquet"),
        (("csv", "a.txt", False, False), "csv"),
    ],
)
def test_the_format_follows_the_option_the_suffix_or_the_terminal(
    arguments: tuple[str | None, str | None, bool, bool], kind: str
) -> None:
    given, to, in_terminal, as_json = arguments
    assert choose_format(given, to, in_terminal=in_terminal, as_json=as_json) == kind


@pytest.mark.parametrize(
    ("given", "to", "as_json", "message"),
    [
        ("xlsx", None, False, "no format 'xlsx'"),
        (None, "a.txt", False, "format of a.txt is not known"),
        ("table", "a.csv", False, "format of a.csv is not known"),
        ("parquet", None, False, "cannot be printed"),
        ("csv", None, True, "contradict"),
    ],
)
def test_a_format_that_does_not_fit_is_refused(given: str | None, to: str | None, as_json: bool, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        choose_format(given, to, in_terminal=True, as_json=as_json)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("\x1b[31mred", "\\x1b[31mr…"),
        ("red\x9b", "red\\x9b"),
        ("two\nlines", "two lines"),
        ("x" * 30, "x" * 9 + "…"),
        (0.123456, "0.1235"),
        (["face_swap"], "face_swap"),
        ({"x0": 1}, '{"x0": 1}'),
        (None, ""),
    ],
)
def test_a_value_in_the_terminal_is_short_and_commands_nothing(value: Any, text: str) -> None:
    assert cell_text(value, 10) == text
