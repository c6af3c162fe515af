"""Failed rows are judged again, and their new outcomes take the place of the old ones."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from asap.storage.location import Location
from jobs.annotate.rows import ANNOTATIONS
from jobs.scan import retry
from jobs.scan.input.manifest import MANIFEST_SCHEMA, write_tables
from jobs.scan.passes import ScanProgress
from jobs.scan.retry import Outcomes, choose_rows, failed_rows, publish, publish_file
from jobs.scan.run import scan
from jobs.scan.settings import ScanSettings
from jobs.scan.stages.result_rows import CALLER_COLUMNS, RESULT_SCHEMA, RESULTS, failure, result_table, write_table
from tests.support.annotations import annotation, write_annotations

ERRORS = {1: ("timeout", True), 2: ("not_found", False), 5: ("timeout", True), 7: ("decode_failed", False)}


def table_of(*row_ids: int, run: str | None, errors: dict[int, tuple[str, bool]]) -> pa.Table:
    """Return result rows of these ids: those of `errors` failed."""
    callers = pa.Table.from_pylist(
        [{"row_id": row_id, "custom_id": str(row_id)} for row_id in row_ids], MANIFEST_SCHEMA
    )
    rows: list[dict[str, Any]] = []
    for row_id in row_ids:
        if row_id in errors:
            code, retryable = errors[row_id]
            rows.append(failure(code, "why", retryable=retryable) | {"judged_run": run})
        else:
            rows.append({"status": "ok", "verdict": "authentic", "score": 0.25, "judged_run": run})
    return result_table(callers.select(CALLER_COLUMNS), rows)


@pytest.fixture
def job(tmp_path: Path) -> Location:
    """Write a job of ten rows in two files of results, four of which failed."""
    folder = Location(str(tmp_path / "job"))
    manifest = [{"row_id": row_id, "custom_id": str(row_id)} for row_id in range(10)]
    write_tables([pa.Table.from_pylist(manifest, MANIFEST_SCHEMA)], folder / "manifest")
    write_table(table_of(0, 1, 2, 3, 4, run="first", errors=ERRORS), folder / "results" / "a.parquet")
    write_table(table_of(5, 6, 7, 8, 9, run=None, errors=ERRORS), folder / "results" / "b.parquet")
    return folder


def outcomes(folder: Location) -> dict[int, tuple[str | None, str | None]]:
    """Return error code and run of each row; fails if a row is there twice."""
    rows = [row for path in sorted(Path(folder.uri).rglob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    found = {row["row_id"]: (row["error_code"], row["judged_run"]) for row in rows}
    assert len(found) == len(rows)
    return found


@pytest.mark.parametrize(
    ("codes", "besides", "expected"),
    [
        (["retryable"], None, {1, 5}),
        (["not_found"], None, {2}),
        (["not_found", "retryable"], None, {1, 2, 5}),
        (["retryable", "decode_failed"], "first", {5, 7}),
        (["archived"], None, set()),
    ],
)
def test_rows_are_chosen_by_code_or_by_whether_they_may_succeed(
    job: Location, codes: list[str], besides: str | None, expected: set[int]
) -> None:
    chosen = failed_rows(job / "results", codes, besides)
    assert len(chosen) == len(expected)
    assert choose_rows(job, codes, besides) == len(expected)
    files = sorted(Path((job / "_retry" / "manifest").uri).glob("*.parquet"))
    assert {row for file in files for row in pq.read_table(file)["row_id"].to_pylist()} == expected


def test_a_row_of_several_descriptions_is_chosen_by_the_code_of_any_of_them(tmp_path: Path) -> None:
    folder = Location(str(tmp_path / "job"))
    failed_both = {"error_code": "refusal", "caption_error": "refusal", "explanation_error": "loop"}
    failed_second = {"error_code": "timeout", "explanation_error": "timeout", "retryable": True}
    rows = [
        annotation(0, caption="a crowd", explanation="it is so"),
        annotation(1, status="error", retryable=False, **failed_both),
        annotation(2, status="error", caption="a man", **failed_second),
    ]
    write_annotations(folder, rows)
    chosen = {
        code: failed_rows(folder / "annotations", [code], shape=ANNOTATIONS)
        for code in ("refusal", "loop", "timeout", "retryable", "empty")
    }
    by_code = {code: found.contains(np.arange(3)).tolist() for code, found in chosen.items()}
    assert by_code == {
        "refusal": [False, True, False], "loop": [False, True, False], "timeout": [False, False, True],
        "retryable": [False, False, True], "empty": [False] * 3,
    }  # fmt: skip


def test_published_outcomes_replace_the_old_ones_which_move_to_history(ray_here: None, job: Location) -> None:
    write_table(table_of(5, 2, run="second", errors={2: ("timeout", True)}), job / "_retry" / "results" / "x.parquet")
    write_table(table_of(1, run="third", errors={}), job / "_retry" / "results" / "y.parquet")

    publish(job, "second")
    found = outcomes(job / "results")
    assert {row: found[row] for row in (1, 2, 5)} == {
        1: (None, "third"), 2: ("timeout", "second"), 5: (None, "second")
    }  # fmt: skip
    assert found[7] == ("decode_failed", None)
    assert set(found) == set(range(10))
    history = outcomes(job / "history" / "second")
    assert history == {1: ("timeout", "first"), 2: ("not_found", "first"), 5: ("timeout", None)}
    for path in Path(job.uri).rglob("results/*.parquet"):
        assert pq.read_schema(path).equals(RESULT_SCHEMA)

    # Again, as after a stop: nothing changes, and history keeps the old outcomes.
    publish(job, "second")
    assert outcomes(job / "results") == found
    assert outcomes(job / "history" / "second") == history


def test_a_stop_while_outcomes_are_published_loses_none_and_the_next_start_publishes_the_rest(
    ray_here: None, job: Location
) -> None:
    """The first file is replaced, and the stop comes before the second one is."""
    new = table_of(1, 5, run="second", errors={})
    write_table(new, job / "_retry" / "results" / "x.parquet")
    publish_file((Outcomes(job / "_retry" / "results", RESULTS), job / "history" / "second"), job / "results/a.parquet")
    with pytest.raises(KeyboardInterrupt):
        publish(job, "second", check=lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    assert set(outcomes(job / "results")) == set(range(10))

    publish(job, "second")
    found = outcomes(job / "results")
    assert (found[1], found[5]) == ((None, "second"), (None, "second"))
    assert outcomes(job / "history" / "second") == {1: ("timeout", "first"), 5: ("timeout", None)}


def test_files_of_an_earlier_version_get_the_columns_of_this_one(ray_here: None, job: Location) -> None:
    path = Path(job.uri) / "results" / "b.parquet"
    table = pq.read_table(path)
    pq.write_table(table.drop_columns(["judged_run", "familiarity"]), path)
    write_table(table_of(5, run="second", errors={}), job / "_retry" / "results" / "x.parquet")
    publish(job, "second")
    assert pq.read_schema(path).equals(RESULT_SCHEMA)
    assert outcomes(job / "results")[5] == (None, "second")
    assert outcomes(job / "history" / "second") == {5: ("timeout", None)}


@pytest.fixture
def settings(tmp_path: Path, jpeg: Callable[..., bytes], model_folder: Path) -> dict[str, Any]:
    """Return the settings of a scan of eight pairs: one has no picture, and one a broken picture."""
    lines = []
    for number in range(8):
        if number != 3:
            (tmp_path / f"{number}.jpg").write_bytes(jpeg(number) if number != 5 else jpeg(number)[:150])
        text = "Angry workers leave the factory"
        lines.append(json.dumps({"id": f"p{number}", "image": f"{number}.jpg", "text": text}))
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    return {
        "input": str(tmp_path / "pairs.jsonl"), "out": str(tmp_path / "out"), "model": str(model_folder),
        "device": "cpu", "batch_size": 4, "rows_per_file": 4,
    }  # fmt: skip


@pytest.mark.slow
def test_a_finished_scan_judges_its_failed_rows_again_and_its_lists_and_report_follow(
    ray_here: None, settings: dict[str, Any], tmp_path: Path, jpeg: Callable[..., bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    folder = Path(settings["out"]) / "pairs"
    first = scan(ScanSettings(**settings))
    assert first["error_codes"] == {"not_found": 1, "decode_failed": 1}
    before = outcomes(Location(str(folder / "results")))
    (run,) = {judged for _, judged in before.values()}
    assert run == json.loads((folder / "job.json").read_text())["run_id"]

    # Without the option, and with codes that nothing failed with, nothing is done, and that is said.
    said: list[ScanProgress] = []
    scan(ScanSettings(**settings), said.append)
    assert said[-1].stage == "the job is finished, so nothing is scanned again"
    scan(ScanSettings(**settings, retry_errors=("retryable",)), said.append)
    assert said[-1].stage == "the job is finished, and no pair failed with retryable"
    assert json.loads((folder / "job.json").read_text())["runs"] == 1

    # The missing picture is there now. A first try stops while the outcomes are published.
    (tmp_path / "3.jpg").write_bytes(jpeg(3))
    with monkeypatch.context() as patch:
        patch.setattr(retry, "publish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            scan(ScanSettings(**settings, retry_errors=("not_found", "decode_failed")))
    record = json.loads((folder / "job.json").read_text())
    assert (record["state"], record["retry"]["rows"]) == ("cancelled", 2)
    assert not (folder / "_SUCCESS").exists()
    assert outcomes(Location(str(folder / "results"))) == before

    # The same command goes on, also without the option, and judges no row a third time.
    monkeypatch.setattr("jobs.scan.pipeline.run_pipeline", lambda *_: pytest.fail("the rows were scanned again"))
    summary = scan(ScanSettings(**settings))
    after = outcomes(Location(str(folder / "results")))
    assert summary["error_codes"] == {"decode_failed": 1}
    assert {row for row in after if after[row] != before[row]} == {3, 5}
    assert after[3] == (None, record["run_id"])
    assert after[5] == ("decode_failed", record["run_id"])
    assert [json.loads(line)["custom_id"] for line in (folder / "errors.jsonl").read_text().splitlines()] == ["p5"]
    assert outcomes(Location(str(folder / "history" / record["run_id"]))) == {3: before[3], 5: before[5]}
    assert not (folder / "_retry").exists()
    assert (folder / "_SUCCESS").exists()
    record = json.loads((folder / "job.json").read_text())
    assert record["state"] == "completed"
    assert "retry" not in record
    assert [done["rows"] for done in record["retries"]] == [2]
    assert "not_found" not in (folder / "report" / "index.html").read_text()
