"""Filters over result rows, as a stream, over files of all versions, also while a job runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from asap.errors import ConfigError, StorageError
from asap.job_records import rows as stored_rows
from asap.job_records.rows import RowFilter, choose_columns
from asap.job_records.status import read_status
from asap.storage.files import write_bytes
from asap.storage.location import Location
from jobs.control.result_query import Results, count_errors
from jobs.errors import JobError
from jobs.scan.stages.result_rows import RESULT_SCHEMA, write_table
from tests.support.annotations import annotation, write_annotations
from tests.support.job_folders import failed, scored, write_results, write_scan, write_training

ROWS = [
    scored(0, 0.9, "manipulated", "face_swap", "text_swap"),
    scored(1, 0.1, "authentic"),
    failed(2, "throttled", retryable=True),
    scored(3, 0.55, "review", "text_swap", given_id="mine"),
    scored(4, 0.99, "unfamiliar"),
    failed(5, "decode_failed", retryable=False),
]


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    """Return the folder of a finished job with two files of results."""
    folder = Location(str(tmp_path / "job"))
    if request.param == "s3":
        folder = Location(f"s3://{request.getfixturevalue('bucket')}/job")
    write_scan(folder, ROWS[:3])
    write_results(folder, "b", ROWS[3:])
    return folder


def _ids(folder: Location, **parts: Any) -> list[int]:
    return [row["row_id"] for row in _rows(folder, ["row_id"], **parts)]


def _rows(folder: Location, columns: list[str], **parts: Any) -> list[dict[str, Any]]:
    tables = Results(read_status(folder)).rows(columns, RowFilter(**parts))
    return [row for table in tables for row in table.to_pylist()]


@pytest.mark.parametrize(
    ("parts", "ids"),
    [
        ({}, [0, 1, 2, 3, 4, 5]),
        ({"verdicts": ("manipulated", "review")}, [0, 3]),
        ({"types": ("face_swap",)}, [0]),
        ({"types": ("face_swap", "text_swap")}, [0, 3]),
        ({"min_score": 0.9}, [0]),
        ({"max_score": 0.55}, [1, 3]),
        ({"min_score": 0.5, "max_score": 0.6}, [3]),
        ({"min_score": 0.5, "verdicts": ("unfamiliar",)}, [4]),
        ({"codes": ("throttled", "timeout")}, [2]),
        ({"ids": ("c1", "mine")}, [1, 3]),
        ({"types": ("text_swap",), "verdicts": ("review",)}, [3]),
        ({"ids": ("nobody",)}, []),
    ],
)
def test_rows_pass_that_meet_every_part_of_the_filter(folder: Location, parts: dict[str, Any], ids: list[int]) -> None:
    assert _ids(folder, **parts) == ids


def test_rows_have_the_columns_that_were_asked_for_in_their_order(folder: Location) -> None:
    (row,) = _rows(folder, ["score", "custom_id"], verdicts=("review",))
    assert list(row.items()) == [("score", pytest.approx(0.55)), ("custom_id", "c3")]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"verdicts": ("fake",)}, "no verdict 'fake'. Choose from manipulated"),
        ({"types": ("face",)}, "no type 'face'. Choose from face_swap"),
        ({"min_score": 0.9, "max_score": 0.1}, "0.9 is above the highest 0.1"),
    ],
)
def test_a_filter_that_no_row_can_pass_is_refused(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RowFilter(**parts)


def test_an_unknown_column_is_refused_with_those_that_exist() -> None:
    with pytest.raises(ConfigError, match=r"no column 'verdct'\. Choose from row_id"):
        choose_columns(["verdct"], RESULT_SCHEMA)
    assert choose_columns([], RESULT_SCHEMA) == RESULT_SCHEMA.names
    assert choose_columns(["score", "score"], RESULT_SCHEMA) == ["score"]


def test_files_of_earlier_versions_lack_columns_and_those_of_later_ones_have_more(tmp_path: Path) -> None:
    folder = Location(str(tmp_path))
    later = pa.Table.from_pylist([scored(0, 0.5, "review")], RESULT_SCHEMA).append_column("aura", pa.array(["blue"]))
    first = pa.Table.from_pylist([scored(1, 0.5, "review")], RESULT_SCHEMA).drop_columns(["given_id", "familiarity"])
    write_scan(folder)
    write_table(later, folder / "results/a.parquet")
    write_table(first, folder / "results/b.parquet")
    results = Results(read_status(folder))
    columns = ["row_id", "given_id", "familiarity", "aura"]
    rows = [row for table in results.rows(columns, RowFilter()) for row in table.to_pylist()]
    assert [(row["row_id"], row["familiarity"], row["aura"]) for row in rows] == [(0, None, "blue"), (1, None, None)]
    assert _ids(folder, ids=("c1",)) == [1]


def test_a_large_file_is_streamed_in_small_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_rows, "_ROWS_AT_ONCE", 3)
    folder = Location(str(tmp_path))
    write_scan(folder, [scored(number, 0.5, "review") for number in range(8)])
    tables = list(Results(read_status(folder)).rows(["row_id"], RowFilter()))
    assert [table.num_rows for table in tables] == [3, 3, 2]


def test_while_a_job_runs_a_file_that_is_not_whole_is_left_out_and_named(folder: Location) -> None:
    write_scan(folder, state="running")
    write_bytes(folder / "results" / "a0.parquet", b"PAR1 and no footer")
    write_bytes(folder / "results" / ".c.parquet", b"a draft")
    results = Results(read_status(folder))
    assert results.schema() == RESULT_SCHEMA
    assert sum(table.num_rows for table in results.rows(["row_id"], RowFilter())) == 6
    assert ["a0.parquet" in reason for reason in results.left_out] == [True]


def test_a_job_without_results_yet_has_no_rows(tmp_path: Path) -> None:
    folder = Location(str(tmp_path))
    write_scan(folder, state="validating")
    assert _ids(folder) == []


def test_a_broken_file_of_a_finished_job_is_an_error(folder: Location) -> None:
    write_bytes(folder / "results" / "0.parquet", b"PAR1 and no footer")
    with pytest.raises(StorageError, match=r"0\.parquet is not a Parquet file"):
        _ids(folder)


def test_the_rows_of_a_scan_under_publication_are_those_that_its_record_names(tmp_path: Path) -> None:
    folder = Location(str(tmp_path))
    write_scan(folder, ROWS, state="finalizing", results="_repolicy/results")
    write_table(pa.Table.from_pylist(ROWS[:1], RESULT_SCHEMA), folder / "_repolicy/results/a.parquet")
    assert _ids(folder) == [0]


def test_a_training_run_has_no_rows(tmp_path: Path) -> None:
    write_training(Location(str(tmp_path)))
    with pytest.raises(JobError, match="is a training run and has no result rows"):
        Results(read_status(Location(str(tmp_path))))


def test_errors_are_counted_by_code_with_the_first_rows(folder: Location) -> None:
    write_results(folder, "c", [failed(6, "throttled", retryable=False), failed(7, "throttled", retryable=True)])
    counts = count_errors(Results(read_status(folder)), (), limit=2)
    assert counts.rows_read == 8
    assert counts.codes == {"throttled": 3, "decode_failed": 1}
    assert counts.failed == 4
    assert counts.retryable == {"throttled": 2}
    assert [(row["row_id"], row["error_detail"]) for row in counts.first] == [
        (2, "throttled at 2"),
        (5, "decode_failed at 5"),
    ]
    counts = count_errors(Results(read_status(folder)), ("throttled",), limit=9)
    assert counts.codes == {"throttled": 3}
    assert [row["row_id"] for row in counts.first] == [2, 6, 7]


def test_a_row_is_found_and_counted_by_each_of_its_codes(tmp_path: Path) -> None:
    folder = Location(str(tmp_path))
    both = {"error_code": "loop", "caption_error": "loop", "explanation_error": "refusal", "retryable": False}
    one = {"error_code": "timeout", "explanation_error": "timeout", "retryable": True}
    same = {"error_code": "timeout", "caption_error": "timeout", "explanation_error": "timeout", "retryable": True}
    rows = [{}, *({"status": "error"} | codes for codes in (both, one, same))]
    write_annotations(folder, [annotation(number, **fields) for number, fields in enumerate(rows)])
    assert _ids(folder, codes=("refusal",)) == [1]
    assert _ids(folder, codes=("refusal", "timeout")) == [1, 2, 3]
    results = Results(read_status(folder))
    counts = count_errors(results, (), limit=9)
    assert (counts.failed, counts.codes) == (3, {"timeout": 2, "loop": 1, "refusal": 1})
    assert counts.retryable == {"timeout": 2}
    counts = count_errors(results, ("refusal",), limit=9)
    assert (counts.failed, counts.codes) == (1, {"refusal": 1})
    assert [(row["row_id"], row["explanation_error"]) for row in counts.first] == [(1, "refusal")]
