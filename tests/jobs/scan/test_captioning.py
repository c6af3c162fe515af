"""Rows that are captioned after they were judged."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from asap.errors import StorageError
from asap.storage.location import Location
from jobs.scan.captioning import FOLDER, captioned, choose_rows, publish, rows_to_caption
from jobs.scan.input.manifest import MANIFEST_SCHEMA, write_tables
from jobs.scan.stages.result_rows import RESULT_SCHEMA, write_table
from tests.support.job_folders import failed, scored, write_results

PASSING = {"kind": "throttled", "detail": "HTTP 429", "retryable": True}
FINAL = {"kind": "refusal", "detail": "it may not", "retryable": False}
ROWS = [
    scored(0, 0.9, "manipulated", image_sha256="aa", warnings=["cut"], agreement_image_text=0.5, judged_run="r1"),
    scored(1, 0.6, "review", image_sha256="bb", judged_run="r1"),
    scored(2, 0.1, "authentic", image_sha256="cc", judged_run="r1"),
    scored(3, 0.9, "unfamiliar", image_sha256="dd", judged_run="r1"),
    failed(4, "text_missing", retryable=False),
    failed(5, "text_unreadable", retryable=False),
    failed(6, "decode_failed", retryable=False),
    scored(7, 0.9, "manipulated", caption="a team", judged_run="r1"),
    scored(8, 0.9, "manipulated", caption_error=PASSING, judged_run="r1"),
    scored(9, 0.2, "authentic", caption_error=FINAL, judged_run="r2"),
    failed(10, "text_unreadable", retryable=False) | {"caption": "in a tongue that the model does not read"},
    failed(11, "caption_failed", retryable=True) | {"caption_error": PASSING},
]


@pytest.fixture
def job(tmp_path: Path) -> Location:
    """Write a job with the rows in two files of results."""
    folder = Location(str(tmp_path / "job"))
    manifest = [{"row_id": row["row_id"], "custom_id": row["custom_id"]} for row in ROWS]
    write_tables([pa.Table.from_pylist(manifest, MANIFEST_SCHEMA)], folder / "manifest")
    write_results(folder, "a", ROWS[:6])
    write_results(folder, "b", ROWS[6:])
    return folder


def _rows(folder: Location) -> dict[int, dict[str, Any]]:
    """Return the rows of a folder by id; fails if a row is there twice."""
    rows = [row for path in sorted(Path(folder.uri).glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    found = {row["row_id"]: row for row in rows}
    assert len(found) == len(rows)
    return found


@pytest.mark.parametrize(
    ("late", "codes", "besides", "expected"),
    [
        (True, (), None, [0, 1, 4, 5]),
        (False, (), None, []),
        (False, ("retryable",), None, [8]),
        (False, ("caption_failed", "timeout"), None, [8, 9]),
        (False, ("caption_failed",), "r1", [9]),
        (True, ("retryable",), "r1", [0, 1, 4, 5]),
        (False, ("timeout",), None, []),
    ],
)
def test_rows_are_chosen_by_verdict_by_a_missing_text_or_by_the_failure_of_their_caption(
    job: Location, late: bool, codes: Sequence[str], besides: str | None, expected: list[int]
) -> None:
    chosen = rows_to_caption(job / "results", late=late, codes=codes, besides_run=besides)
    assert len(chosen) == len(expected)
    assert choose_rows(job, late=late, codes=codes, besides_run=besides) == len(expected)
    found = _rows(job / FOLDER / "manifest") if expected else {}
    assert sorted(found) == expected


def test_files_of_an_earlier_version_have_rows_that_need_a_caption(job: Location) -> None:
    path = Path(job.uri) / "results/a.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["caption_error", "judged_run"]), path)
    assert len(rows_to_caption(job / "results", late=True, codes=("retryable",), besides_run="r1")) == 4


def test_published_captions_change_no_verdict_and_can_be_published_twice(ray_here: None, job: Location) -> None:
    agreements = {"agreement_image_text": 0.51, "agreement_image_caption": 0.25, "agreement_text_caption": 0.125}
    outcomes = [
        scored(0, 0.1, "authentic", image_sha256="aa", caption="a crowd", warnings=["cut", "long"], **agreements),
        scored(4, 0.7, "review", image_sha256="ee", caption="a child", warnings=[]),
        failed(5, "caption_failed", retryable=False) | {"caption_error": FINAL},
        scored(8, 0.2, "authentic", caption="a man"),
    ]
    write_table(pa.Table.from_pylist(outcomes, RESULT_SCHEMA), job / FOLDER / "results" / "x.parquet")
    before = _rows(job / "results")
    publish(job)
    after = _rows(job / "results")
    assert set(after) == set(before)
    assert {row_id for row_id in after if after[row_id] != before[row_id]} == {0, 4, 5, 8}
    changes = {"caption": "a crowd", "warnings": ["cut", "long"]} | agreements | {"agreement_image_text": 0.5}
    assert after[0] == before[0] | changes
    assert (after[4]["status"], after[4]["verdict"], after[4]["caption"]) == ("ok", "review", "a child")
    assert (after[5]["error_code"], after[5]["caption_error"]) == ("caption_failed", FINAL)
    assert (after[8]["verdict"], after[8]["caption"], after[8]["caption_error"]) == ("manipulated", "a man", None)
    publish(job)
    assert _rows(job / "results") == after


def test_a_stop_while_captions_are_published_loses_no_row_and_the_next_start_publishes_the_rest(
    ray_here: None, job: Location
) -> None:
    for number in range(12, 30):  # a file each, so that many are left when the stop comes
        write_results(job, f"c{number}", [scored(number, 0.9, "manipulated", judged_run="r1")])
    captions = [scored(number, 0.9, "manipulated", caption=f"caption {number}") for number in (0, *range(12, 30))]
    write_table(pa.Table.from_pylist(captions, RESULT_SCHEMA), job / FOLDER / "results" / "x.parquet")
    before = _rows(job / "results")
    with pytest.raises(KeyboardInterrupt):
        publish(job, lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    stopped = _rows(job / "results")
    assert set(stopped) == set(before)
    assert any(row["caption"] is None for row in stopped.values() if row["row_id"] >= 12)
    publish(job)
    after = _rows(job / "results")
    assert [after[number]["caption"] for number in (0, *range(12, 30))] == [row["caption"] for row in captions]
    assert {number for number in after if after[number] != before[number]} == {0, *range(12, 30)}


def test_a_file_of_results_that_cannot_be_read_stops_publishing_with_its_name(ray_here: None, job: Location) -> None:
    write_table(pa.Table.from_pylist([scored(0, 0.9, "review")], RESULT_SCHEMA), job / FOLDER / "results" / "x.parquet")
    (Path(job.uri) / "results/broken.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(StorageError, match=r"results/broken\.parquet"):
        publish(job)


@pytest.mark.parametrize(
    ("new", "error"),
    [
        ({"caption_error": FINAL}, FINAL),
        (
            failed(0, "not_found", retryable=False),
            {"kind": "not_found", "detail": "not_found at 0", "retryable": False},
        ),
        (failed(0, "timeout", retryable=True), {"kind": "timeout", "detail": "timeout at 0", "retryable": True}),
        ({"caption": "a crowd", "image_sha256": "other"}, "picture_changed"),
    ],
)
def test_a_caption_that_fails_is_a_typed_field_of_the_row_and_no_error(new: dict[str, Any], error: Any) -> None:
    nulls = dict.fromkeys(RESULT_SCHEMA.names)
    former = nulls | ROWS[0]
    row = captioned(former, nulls | {"row_id": 0, "status": "ok"} | new)
    found = row["caption_error"]
    assert (found if isinstance(error, dict) else found["kind"]) == error
    assert row | {"caption_error": None} == former


BOTH = ("caption", "explanation")
EXPLAINED = [
    scored(20, 0.9, "manipulated", text="a", caption="c", explanation="because"),
    scored(21, 0.9, "manipulated", text="a", caption="c"),
    scored(22, 0.9, "manipulated", text=None, caption="c"),
    scored(23, 0.9, "review", text="  ", caption="c"),
    scored(24, 0.1, "authentic", text="a"),
    scored(25, 0.9, "review", text="a", caption="c", explanation_error=PASSING, judged_run="r1"),
    scored(26, 0.1, "authentic", text="a", caption="c", explanation_error=FINAL, judged_run="r1"),
    failed(27, "text_missing", retryable=False),
]


@pytest.mark.parametrize(
    ("late", "codes", "kinds", "expected"),
    [
        (True, (), BOTH, [21, 27]),
        (True, (), ("explanation",), [21]),
        (True, (), ("caption",), [27]),
        (False, ("retryable",), BOTH, [25]),
        (False, ("explanation_failed",), BOTH, [25, 26]),
        (False, ("caption_failed",), BOTH, []),
        (False, ("explanation_failed",), ("caption",), []),
    ],
)
def test_rows_with_a_text_are_chosen_for_an_explanation(
    tmp_path: Path, late: bool, codes: Sequence[str], kinds: Sequence[str], expected: list[int]
) -> None:
    folder = Location(str(tmp_path / "job"))
    manifest = [{"row_id": row["row_id"], "custom_id": row["custom_id"]} for row in EXPLAINED]
    write_tables([pa.Table.from_pylist(manifest, MANIFEST_SCHEMA)], folder / "manifest")
    write_results(folder, "a", EXPLAINED)
    assert choose_rows(folder, late=late, codes=codes, kinds=kinds) == len(expected)
    assert sorted(_rows(folder / FOLDER / "manifest") if expected else {}) == expected


def test_a_row_gets_what_it_lacks_and_keeps_what_it_has() -> None:
    nulls = dict.fromkeys(RESULT_SCHEMA.names)
    former = nulls | scored(0, 0.9, "review", text="a", image_sha256="aa", caption="mine", explanation_error=PASSING)
    new = nulls | scored(0, 0.1, "authentic", text="a", image_sha256="aa", caption_error=FINAL, explanation="because",
                         warnings=["the explanation is cut"])  # fmt: skip
    changes = {"explanation": "because", "explanation_error": None, "warnings": ["the explanation is cut"]}
    assert captioned(former, new, BOTH) == former | changes
    assert captioned(former, new, ("caption",)) == former


@pytest.mark.parametrize(
    ("new", "kind"),
    [
        ({"explanation_error": FINAL}, "refusal"),
        (failed(0, "timeout", retryable=True), "timeout"),
        ({"text": "another", "explanation": "because"}, "text_changed"),
        ({"text": None}, "text_changed"),
    ],
)
def test_an_explanation_that_fails_is_a_typed_field_of_the_row(new: dict[str, Any], kind: str) -> None:
    nulls = dict.fromkeys(RESULT_SCHEMA.names)
    former = nulls | scored(0, 0.9, "review", text="a", image_sha256="aa")
    row = captioned(former, nulls | {"row_id": 0, "status": "ok", "text": "a"} | new, ("explanation",))
    assert row["explanation_error"]["kind"] == kind
    assert row | {"explanation_error": None} == former


def test_a_text_of_another_picture_is_explained_all_the_same_and_one_that_is_missing_is_not() -> None:
    nulls = dict.fromkeys(RESULT_SCHEMA.names)
    former = nulls | scored(0, 0.9, "review", text="a", image_sha256="aa")
    new = nulls | scored(0, 0.9, "review", text="a", image_sha256="bb", caption="c", explanation="because")
    row = captioned(former, new, BOTH)
    assert (row["explanation"], row["explanation_error"]) == ("because", None)
    assert (row["caption"], row["caption_error"]["kind"]) == (None, "picture_changed")
    textless = nulls | scored(0, 0.9, "review", text=None, caption="c")
    assert captioned(textless, new | {"text": None, "explanation": None}, BOTH) == textless
