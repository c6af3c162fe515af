"""The log of a run, which the first worker writes and the driver follows."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import pytest

from asap.storage.location import Location
from jobs.train.run_folder import log as log_module
from jobs.train.run_folder.folder import RunFolder
from jobs.train.run_folder.log import RunLog, follow_progress
from tests.support.waiting import wait_until


class Steps:
    """The attributes of a trainer that the log reads, in a run of a hundred steps of eight pairs."""

    total_steps, pairs_in_all, world = 100, 800, 1
    settings = SimpleNamespace(batch_size=8)
    schedule = SimpleNamespace(get_last_lr=lambda: [1e-3])

    def __init__(self) -> None:
        self.done = 0
        self.run_stage = {"number": 1, "of": 2, "ends": 400}

    @property
    def pairs_done(self) -> int:
        return self.done * 8


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path)


@pytest.fixture
def steps() -> Steps:
    return Steps()


def record(log: RunLog, steps: Any, count: int, **terms: float) -> None:
    for _ in range(count):
        steps.done += 1
        log.record_steps(steps, [{"total": 1.0, "seconds": 0.5} | terms])


def lines_of(folder: RunFolder) -> list[dict[str, Any]]:
    return [json.loads(line) for line in folder.progress.read_text().splitlines()]


def test_there_is_a_line_after_the_first_step_and_then_every_25_and_at_the_end(folder: RunFolder, steps: Any) -> None:
    record(RunLog(folder, steps), steps, 100)
    assert [line["pairs"] for line in lines_of(folder)] == [8, 200, 400, 600, 800]
    assert lines_of(folder)[0]["run_stage"] == {"number": 1, "of": 2, "ends": 400}
    assert lines_of(folder)[0]["pairs_per_s"] == 16


def test_slow_steps_have_a_line_whenever_some_seconds_have_passed(
    folder: RunFolder, steps: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 0.0
    monkeypatch.setattr(log_module.time, "monotonic", lambda: now_s)
    log = RunLog(folder, steps)
    for now_s in (1.0, 5.0, 12.0, 14.0, 23.0):  # noqa: B007  # the clock reads it
        record(log, steps, 1)
    assert [line["pairs"] for line in lines_of(folder)] == [8, 24, 40]


def test_a_term_that_no_pair_has_is_left_out_of_the_means(folder: RunFolder, steps: Any) -> None:
    log = RunLog(folder, steps)
    record(log, steps, 1, tmg=0.0, giou=0.5)
    record(log, steps, 12, tmg=0.0, giou=0.0)
    record(log, steps, 12, tmg=0.0, giou=1.0)
    assert [line["losses"] for line in lines_of(folder)] == [{"total": 1.0, "giou": 0.5}, {"total": 1.0, "giou": 1.0}]


def test_work_beside_the_steps_is_reported_unless_it_is_over(
    folder: RunFolder, steps: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_module, "_POLL_LOCAL_S", 0.01)
    log = RunLog(folder, steps)
    log.note_phase("work of an earlier start")
    events: list[dict[str, Any]] = []
    with follow_progress(folder, events.append):
        log.note_phase("waiting for the first step")
        wait_until(lambda: bool(events))
        record(log, steps, 1)
        wait_until(lambda: len(events) > 1)
        log.note_phase("evaluating")
        wait_until(lambda: len(events) > 2)
    assert events[0] == {"phase": "waiting for the first step"}
    assert events[1]["pairs"] == 8
    assert events[2] == {"phase": "evaluating"}

    # Work that has ended before anybody looked is no news.
    events.clear()
    monkeypatch.setattr(log_module, "_POLL_LOCAL_S", 60.0)
    with follow_progress(folder, events.append):
        log.note_phase("evaluating again")
        log.record_validation(steps, {"AUC": 0.5})
    assert [list(event)[-1] for event in events] == ["validation"]


def test_the_work_of_a_run_at_s3_is_uploaded_at_once(tmp_path: Path, bucket: str, steps: Any) -> None:
    log = RunLog(RunFolder(tmp_path, Location(f"s3://{bucket}/run")), steps)
    log.note_phase("evaluating")
    body = boto3.client("s3").get_object(Bucket=bucket, Key="run/phase.json")["Body"].read()
    assert json.loads(body)["phase"] == "evaluating"
