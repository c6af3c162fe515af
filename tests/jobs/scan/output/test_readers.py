"""Results as other programs read them: pandas, pyarrow and DuckDB, each without an option."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

from asap.storage.location import Location
from jobs.scan.output.completeness import repair_results
from jobs.scan.stages.result_rows import RESULT_SCHEMA, write_table
from tests.support.job_folders import failed, scored, write_results, write_scan

LATER_COLUMNS = {
    2: ["given_id", "text_escapes"],
    3: ["text_read"],
    4: ["familiarity", "familiarity_image", "familiarity_text", "familiarity_id"],
    5: ["judged_run"],
    6: ["image_group", "image_row", "image_column", "image_encoding"],
    7: ["caption_error", "agreement_image_text", "agreement_image_caption", "agreement_text_caption"],
    8: ["explanation_error"],
    9: ["reused"],
}
"""Columns that each version of the schema added."""
EVIDENCE = {
    "types": {"face_swap": 0.75, "face_attribute": 0.25, "text_swap": None, "text_attribute": 0.5},
    "box_px": {"x0": 1.0, "y0": 2.0, "x1": 30.5, "y1": 40.0},
    "words": [{"index": 1, "start": 2, "end": 6, "word": "team", "score": 0.5}],
    "metadata": '{"source": "wire"}', "width": 64, "familiarity": 0.5, "judged_run": "r2", "given_id": "mine",
    "caption_error": {"kind": "refusal", "detail": "no", "retryable": False}, "agreement_image_text": 0.25,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Location:
    """Return a job folder with a file of each version of the schema; the oldest has the first name."""
    folder = Location(str(tmp_path / "job"))
    write_scan(folder)
    for version in range(1, 10):
        rows = [scored(10 * version, 0.75, "manipulated", "face_swap"), failed(10 * version + 1, "x", retryable=True)]
        later = [name for added, names in LATER_COLUMNS.items() if added > version for name in names]
        table = pa.Table.from_pylist([row | {"schema_version": version} for row in rows], RESULT_SCHEMA)
        write_table(table.drop_columns(later), folder / f"results/rows-{version:032x}.parquet")
    write_results(folder, "z", [scored(100, 0.75, "manipulated", "face_swap", **EVIDENCE)])
    (tmp_path / "job/results/.rows-7.parquet.0123456789abcdef").write_bytes(b"PAR1 of a writer")
    return folder


def _with_pandas(results: str) -> list[dict[str, Any]]:
    frame = pd.read_parquet(results, dtype_backend="pyarrow").sort_values("row_id")
    assert str(frame["width"].dtype) == "int32[pyarrow]"  # not a float, for all its nulls
    return [
        {name: None if value is pd.NA else value for name, value in row.items()} for row in frame.to_dict("records")
    ]


def _with_pyarrow(results: str) -> list[dict[str, Any]]:
    return pa.dataset.dataset(results).to_table().sort_by("row_id").to_pylist()


def _with_duckdb(results: str) -> list[dict[str, Any]]:
    return duckdb.sql(f"from '{results}/*.parquet' order by row_id").to_arrow_table().to_pylist()


@pytest.mark.parametrize("read", [_with_pandas, _with_pyarrow, _with_duckdb])
def test_files_of_all_versions_are_read_as_one_table(
    folder: Location, read: Callable[[str], list[dict[str, Any]]]
) -> None:
    results = f"{folder}/results"
    assert "given_id" not in read(results)[0]  # the oldest file decides
    repair_results(folder / "results")
    rows = read(results)
    assert [row["row_id"] for row in rows] == [
        10,
        11,
        20,
        21,
        30,
        31,
        40,
        41,
        50,
        51,
        60,
        61,
        70,
        71,
        80,
        81,
        90,
        91,
        100,
    ]
    assert [row["schema_version"] for row in rows] == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 9, 9]
    assert list(rows[0]) == RESULT_SCHEMA.names
    assert (rows[0]["given_id"], rows[0]["familiarity"], rows[0]["judged_run"]) == (None, None, None)
    assert (rows[1]["error_code"], rows[1]["retryable"], rows[1]["types"]) == ("x", True, None)
    assert {name: rows[-1][name] for name in EVIDENCE} == EVIDENCE


def test_every_file_has_the_same_columns_after_a_repair_and_is_not_written_twice(folder: Location) -> None:
    repair_results(folder / "results")
    files = sorted(Path(f"{folder}/results").glob("*.parquet"))
    assert all(pq.read_schema(file).equals(RESULT_SCHEMA) for file in files)
    written = [file.stat().st_mtime_ns for file in files]
    assert len(repair_results(folder / "results")) == 19
    assert [file.stat().st_mtime_ns for file in files] == written


def test_a_file_with_columns_of_a_later_version_loses_none(folder: Location) -> None:
    later = pa.Table.from_pylist([scored(70, 0.5, "review")], RESULT_SCHEMA).append_column("aura", pa.array(["blue"]))
    write_table(later.drop_columns(["judged_run"]), folder / "results/later.parquet")
    repair_results(folder / "results")
    assert pq.read_schema(f"{folder}/results/later.parquet").names[-1] == "aura"


def test_columns_have_types_that_every_reader_knows() -> None:
    def leaves(kind: pa.DataType) -> list[pa.DataType]:
        if pa.types.is_list(kind):
            return leaves(kind.value_type)
        if pa.types.is_struct(kind):
            return [leaf for field in kind for leaf in leaves(field.type)]
        return [kind]

    # Spark has no unsigned types, and none of the readers has a null type.
    known = {pa.int32(), pa.int64(), pa.float32(), pa.string(), pa.bool_()}
    assert {leaf for field in RESULT_SCHEMA for leaf in leaves(field.type)} <= known
    assert all(name.isidentifier() and name == name.lower() for name in RESULT_SCHEMA.names)
