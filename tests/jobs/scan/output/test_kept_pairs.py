"""Pairs of results are added to a reuse store once."""

from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import pytest

from asap.job_records.rows import results_file, results_files
from asap.storage.location import Location
from jobs.scan.output.kept_pairs import Adding, add_pairs
from jobs.scan.stages.pair_store import StoreReader, folder_of, read_index
from jobs.scan.stages.pair_values import ReuseContext, pair_keys
from tests.jobs.scan.stages.test_pair_store import LONG, SOUND
from tests.support.job_folders import failed, scored, write_results, write_scan

CONTEXT = ReuseContext("small@1", None, "float32", 0.5, 1)
MODEL = CONTEXT.model_id, CONTEXT.familiarity_id
OLD = CONTEXT._replace(reading=0)


def _row(row_id: int, **columns: Any) -> dict[str, Any]:
    raw = {name: value for name, value in SOUND.items() if name != "text_warnings"} | {"warnings": ["seen", LONG]}
    own = {"image_sha256": f"{row_id:064x}", "judged_run": "r2", "reused": None, "text": "A team"}
    return scored(row_id, 0.75, "review") | raw | own | columns


@pytest.fixture
def job(tmp_path: Path) -> Location:
    folder = Location(str(tmp_path / "job"))
    write_scan(folder)
    write_results(folder, "a", [
        _row(0), _row(1, reused="store"), _row(2, judged_run="r1"), _row(3, judged_run="r0"),
        failed(4, "x", retryable=True), _row(5, caption="a man", agreement_image_caption=0.5),
    ])  # fmt: skip
    write_results(folder, "b", [_row(6, reused="job"), _row(6, reused="since"), _row(7)])
    return folder


def _adding(job: Location, tmp_path: Path, *, late: bool = False) -> Adding:
    folder = folder_of(Location(str(tmp_path / "store")), *MODEL)
    index = read_index(folder, MODEL, lambda note: pytest.fail(note))
    return Adding(folder, {"r1": OLD, "r2": CONTEXT}, index, captions_late=late)


def _scores(job: Location, adding: Adding, context: ReuseContext) -> dict[int, dict[str, Any]]:
    """Return what the store has of the rows of a job, by their ids."""
    found = {}
    reader = StoreReader(read_index(adding.folder, MODEL, pytest.fail), pafs.LocalFileSystem(), has_familiarity=False)
    for location in results_files(job / "results"):
        with results_file(location) as file:
            rows = file.read()
        for row_id, key in zip(rows["row_id"].to_pylist(), pair_keys(rows, context), strict=True):
            if key is not None and (values := reader.find([key])[0].values).num_rows:
                found[row_id] = values.to_pylist()[0]
    return found


def test_rows_that_a_known_run_judged_are_added_once_under_what_decided_them(job: Location, tmp_path: Path) -> None:
    adding = _adding(job, tmp_path)
    add_pairs(adding, job / "results")
    stored = _scores(job, adding, CONTEXT)
    assert set(stored) == {0, 5, 6, 7}
    assert set(_scores(job, adding, OLD)) == {2}
    assert stored[0] == SOUND
    files = sorted(Path(adding.folder.uri).iterdir())
    assert len(files) == 2
    write_results(job, "c", [_row(8), _row(0)])
    again = _adding(job, tmp_path)
    add_pairs(again, job / "results", seconds=60)
    assert len(again.index.hashes) == 5
    assert len(_adding(job, tmp_path).index.hashes) == 6
    assert len(list(Path(adding.folder.uri).iterdir())) == 3


def test_pairs_that_were_captioned_late_are_found_without_their_captions_too(job: Location, tmp_path: Path) -> None:
    adding = _adding(job, tmp_path, late=True)
    add_pairs(adding, job / "results")
    assert len(_adding(job, tmp_path).index.hashes) == 6
    write_results(job, "d", [_row(5)])
    assert _scores(job, adding, CONTEXT)[5]["agreement_image_caption"] is None


def test_a_stopped_job_adds_no_file_after_its_time_and_none_of_unknown_runs(job: Location, tmp_path: Path) -> None:
    adding = _adding(job, tmp_path)
    add_pairs(adding, job / "results", seconds=-1)
    add_pairs(Adding(adding.folder, {}, adding.index, captions_late=False), job / "results")
    assert not Path(adding.folder.uri).exists()
