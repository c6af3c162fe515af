"""Counting results: no file and no row group is missed, and only the rows that are shown are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from asap.errors import StorageError
from asap.storage.location import Location
from jobs.scan.output.tally import BINS, JUDGED, read_rows, tally_results
from jobs.scan.stages.result_rows import RESULT_SCHEMA


def scored(row_id: int, score: float, verdict: str, *types: str) -> dict[str, Any]:
    return {"row_id": row_id, "custom_id": f"c{row_id}", "status": "ok", "schema_version": 1,
            "verdict": verdict, "score": score, "flagged_types": list(types), "text": f"text {row_id}"}  # fmt: skip


def strange(row_id: int, familiarity: float) -> dict[str, Any]:
    return scored(row_id, 0.99, "unfamiliar") | {"familiarity": familiarity, "familiarity_image": familiarity}


def failed(row_id: int, code: str, retryable: bool | None) -> dict[str, Any]:
    return {"row_id": row_id, "custom_id": f"c{row_id}", "status": "error", "schema_version": 1,
            "error_code": code, "error_detail": f"{code} of {row_id}", "retryable": retryable}  # fmt: skip


def write(folder: Path, name: str, rows: list[dict[str, Any]], rows_per_group: int = 2) -> None:
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, RESULT_SCHEMA), folder / name, row_group_size=rows_per_group)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    rows = [
        scored(0, 0.9, "manipulated", "face_swap", "text_swap"),
        scored(1, 0.1, "authentic", "text_swap"),
        failed(2, "throttled", True),
        scored(3, 0.55, "review", "face_swap"),
        failed(4, "throttled", False),
    ]
    write(tmp_path, "0.parquet", rows)
    write(tmp_path, "1.parquet", [scored(6, 0.95, "manipulated"), scored(5, 0.95, "manipulated"), failed(7, "x", None)])
    return tmp_path


def test_every_row_of_every_file_and_row_group_is_counted(results):
    tally = tally_results(Location(str(results)), top=10)
    assert tally.pairs == 8
    assert tally.verdicts == {"manipulated": 3, "review": 1, "authentic": 1}
    assert tally.flagged == 4
    assert tally.errors == {"throttled": 2, "x": 1}
    assert tally.retryable == {"throttled": 1}


def test_captions_explanations_and_their_failures_are_counted_by_kind(tmp_path):
    error = {"kind": "refusal", "detail": "it may not", "retryable": False}
    rows = [scored(0, 0.9, "manipulated") | {"caption": "a team"}, scored(1, 0.2, "authentic"),
            scored(2, 0.9, "review") | {"caption_error": error, "explanation": "it is so"},
            failed(3, "x", None) | {"caption": "a crowd", "explanation_error": error}]  # fmt: skip
    write(tmp_path, "0.parquet", rows, rows_per_group=3)
    older = pa.Table.from_pylist([scored(4, 0.9, "review") | {"caption": "a child"}], RESULT_SCHEMA)
    pq.write_table(older.drop_columns(["caption_error", "explanation_error"]), tmp_path / "1.parquet")
    tally = tally_results(Location(str(tmp_path)), top=0)
    assert (tally.captions, tally.caption_errors) == (3, {"refusal": 1})
    assert (tally.explanations, tally.explanation_errors) == (1, {"refusal": 1})


def test_types_are_counted_among_the_flagged_pairs_alone(results):
    assert tally_results(Location(str(results)), top=10).types == {"face_swap": 2, "text_swap": 1}


def test_scores_fall_into_bins_by_verdict_and_1_into_the_last_bin(tmp_path):
    write(tmp_path, "0.parquet", [scored(i, score, "manipulated") for i, score in enumerate((0.0, 0.051, 0.999, 1.0))])
    scores = tally_results(Location(str(tmp_path)), top=1).scores
    assert scores["manipulated"].tolist() == [1, 1, *[0] * (BINS - 3), 2]
    assert scores["authentic"].sum() == 0


def test_the_best_flagged_rows_are_kept_by_score_then_row_id(results):
    tally = tally_results(Location(str(results)), top=3)
    assert [address.row_id for _, _, address in tally.best] == [5, 6, 0]
    assert [address.row_id for _, _, address in tally_results(Location(str(results)), top=99).best] == [5, 6, 0, 3]


def test_unfamiliar_pairs_are_counted_apart_and_their_scores_left_out(tmp_path):
    rows = [strange(0, 0.004), scored(1, 0.9, "manipulated", "face_swap"), scored(2, 0.1, "authentic")]
    write(tmp_path, "0.parquet", rows)
    tally = tally_results(Location(str(tmp_path)), top=10)
    assert (tally.pairs, tally.flagged, tally.unfamiliar) == (3, 1, 1)
    assert tuple(tally.scores) == JUDGED == ("manipulated", "review", "authentic")
    assert sum(int(counts.sum()) for counts in tally.scores.values()) == 2
    assert [address.row_id for _, _, address in tally.best] == [1]


def test_the_least_familiar_rows_are_kept_over_all_files(tmp_path):
    for number in range(3):
        rows = [strange(3 * number + i, 0.004 - (3 * number + i) / 1e4) for i in range(3)]
        write(tmp_path, f"{number}.parquet", [*rows, scored(100 + number, 0.1, "authentic")])
    tally = tally_results(Location(str(tmp_path)), top=0, strangest=4)
    assert [address.row_id for _, _, address in tally.least_familiar] == [8, 7, 6, 5]
    assert read_rows(tally.shown_rows()).keys() == {8, 7, 6, 5, 100, 101, 102}


def test_results_of_a_version_without_familiarity_are_counted(tmp_path):
    names = ("familiarity", "familiarity_image", "familiarity_text", "familiarity_id")
    table = pa.Table.from_pylist([scored(0, 0.9, "manipulated"), scored(1, 0.2, "authentic")], RESULT_SCHEMA)
    pq.write_table(table.drop_columns(list(names)), tmp_path / "0.parquet")
    tally = tally_results(Location(str(tmp_path)), top=1, strangest=1)
    assert (tally.pairs, tally.flagged, tally.unfamiliar, tally.least_familiar) == (2, 1, 0, [])


def test_a_tally_without_shown_rows_keeps_no_flagged_row(results):
    tally = tally_results(Location(str(results)), top=0)
    assert tally.pairs == 8
    assert tally.best == []


def test_the_shown_rows_are_read_whole_and_no_others(results):
    rows = read_rows(tally_results(Location(str(results)), top=2).shown_rows())
    assert {row_id: (row["text"], row["error_detail"]) for row_id, row in rows.items()} == {
        5: ("text 5", None), 6: ("text 6", None), 2: (None, "throttled of 2"), 7: (None, "x of 7"),
        1: ("text 1", None),
    }  # fmt: skip


def test_other_files_in_the_results_folder_are_ignored(results):
    (results / "notes.txt").write_text("not parquet")
    (results / "2.parquet.partial").write_bytes(b"PAR1")
    assert tally_results(Location(str(results)), top=1).pairs == 8


@pytest.mark.parametrize("make", [lambda folder: None, Path.mkdir, lambda folder: write(folder, "0.parquet", [])])
def test_no_results_make_an_empty_tally(tmp_path, make):
    make(tmp_path / "results")
    tally = tally_results(Location(str(tmp_path / "results")), top=5)
    assert (tally.pairs, tally.flagged, tally.best, tally.shown_rows()) == (0, 0, [], set())


def test_a_broken_results_file_is_named(results):
    (results / "2.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(StorageError, match=r"2\.parquet is not a Parquet file that can be read"):
        tally_results(Location(str(results)), top=1)


def test_the_number_of_kept_rows_does_not_grow_with_the_corpus(tmp_path):
    write(tmp_path, "0.parquet", [scored(i, 0.5 + i / 1e5, "manipulated") for i in range(20_000)], rows_per_group=5_000)
    tally = tally_results(Location(str(tmp_path)), top=4)
    assert tally.pairs == 20_000
    assert [address.row_id for _, _, address in tally.best] == [19_999, 19_998, 19_997, 19_996]
    assert len(tally.shown_rows()) == 4
