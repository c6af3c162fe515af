"""`asap results --flat`, and its files in the programs that read them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from asap.storage.location import Location
from jobs.control.flat_rows import flat_columns
from jobs.scan.stages.result_rows import RESULT_SCHEMA, write_table
from tests.support.flat_rows import FLAT, ROWS
from tests.support.job_folders import scored, write_scan


@pytest.fixture
def job(tmp_path: Path) -> Path:
    write_scan(Location(str(tmp_path / "out" / "job")), ROWS)
    return tmp_path / "out" / "job"


def test_the_csv_opens_in_a_spreadsheet_pandas_and_duckdb(run: Any, job: Path, tmp_path: Path) -> None:
    to = tmp_path / "rows.csv"
    assert run("results", job, "--flat", "--to", to)[:2] == (0, f"3 rows: {to}\n")
    assert to.read_bytes().startswith(b"\xef\xbb\xbfrow_id,")
    with to.open(encoding="utf-8-sig", newline="") as file:
        first, _, third = csv.DictReader(file)
    assert {name: first[name] for name in ("text", "words", "score", "box_y1", "metadata", "score_text_attribute")} == {
        "text": FLAT["text"], "words": FLAT["words"], "score": "0.9", "box_y1": "40.25", "metadata": FLAT["metadata"],
        "score_text_attribute": "",
    }  # fmt: skip
    assert third["text"] == "'=1+1"
    frame = pd.read_csv(to)
    assert (frame.columns[0], frame["box_x0"].tolist()[:1], frame["words"][0]) == ("row_id", [1.5], FLAT["words"])
    table = duckdb.read_csv(str(to))
    assert table.columns[0] == "row_id"
    assert table.project("score_face_swap, metadata ->> 'desk'").fetchall()[0] == (0.9, "Zürich")


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet"])
def test_the_other_formats_have_the_same_columns(run: Any, job: Path, tmp_path: Path, kind: str) -> None:
    to = tmp_path / f"rows.{kind}"
    assert run("results", job, "--flat", "--verdict", "manipulated", "--to", to)[0] == 0
    if kind == "parquet":
        (row,) = pq.read_table(to).to_pylist()
    else:
        loaded = json.loads(to.read_bytes())
        (row,) = loaded if kind == "json" else [loaded]
    assert list(row) == list(flat_columns(RESULT_SCHEMA))
    assert {name: row[name] for name in FLAT} == FLAT


def test_columns_are_chosen_by_their_flat_names_and_rows_by_every_filter(run: Any, job: Path) -> None:
    chosen = ("--flat", "--columns", "box_x1,score_text_swap,custom_id", "--format")
    assert json.loads(run("results", job, *chosen, "jsonl", "--type", "face_swap", "--min-score", 0.9)[1]) == {
        "box_x1": 30.0, "score_text_swap": 0.7, "custom_id": "c0",
    }  # fmt: skip
    assert "30" in run("results", job, *chosen, "table")[1]
    assert (
        run("results", job, *chosen, "csv", "--code", "throttled")[1]
        == "\ufeffbox_x1,score_text_swap,custom_id\r\n,,c1\r\n"
    )
    assert json.loads(run("results", job, "--flat", "--json", "--limit", 1)[1])[0]["score_face_swap"] == 0.9


def test_a_name_of_the_other_view_is_refused_with_the_way_to_it(run: Any, job: Path) -> None:
    code, out, err = run("results", job, "--columns", "box_x0")
    assert (code, out) == (1, "")
    assert "there is no column 'box_x0'. Give --flat, which has it, or choose from row_id" in err
    err = run("results", job, "--flat", "--columns", "box_px")[2]
    assert "there is no column 'box_px'. Choose from row_id" in err
    assert "box_x0, box_y0" in err


def test_a_file_of_an_earlier_version_has_empty_cells(run: Any, job: Path) -> None:
    first = pa.Table.from_pylist([scored(9, 0.5, "review")], RESULT_SCHEMA).drop_columns(["given_id", "familiarity"])
    write_table(first, Location(str(job / "results/0.parquet")))
    out = run("results", job, "--flat", "--columns", "row_id,familiarity,given_id", "--id", "c9", "--format", "csv")[1]
    assert out.lstrip("\ufeff").splitlines() == ["row_id,familiarity,given_id", "9,,"]
