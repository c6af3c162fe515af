"""Watching a job to its end, and cancelling it: through the folder, with real heartbeats or a simulated clock."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from asap.errors import StorageError
from asap.job_records.record import CANCEL, read_record
from asap.job_records.status import JobStatus, exit_code, find_status, read_status
from asap.storage.files import delete_folder, exists, read_bytes, write_bytes
from asap.storage.location import Location
from jobs.control import follow
from jobs.control.follow import cancel_job, follow_job
from jobs.errors import JobError
from tests.support.job_folders import seconds_ago, write_scan, write_training
from tests.support.waiting import HANG_S, Clock


class Script(Clock):
    """A clock that does the next thing of a list at each sleep."""

    def __init__(self, *steps: Callable[[], Any]) -> None:
        super().__init__()
        self._steps: Iterator[Callable[[], Any]] = iter(steps)

    def sleep(self, seconds: float) -> None:
        super().sleep(seconds)
        next(self._steps, lambda: None)()


@pytest.fixture
def folder(tmp_path: Path) -> Location:
    return Location(str(tmp_path / "job"))


def _play(monkeypatch: pytest.MonkeyPatch, *steps: Callable[[], Any]) -> Script:
    script = Script(*steps)
    monkeypatch.setattr(follow, "time", script)
    return script


def _running(folder: Location, beats: int, done: int, **entries: Any) -> Callable[[], Any]:
    return lambda: write_scan(folder, state="running", beats=beats, counts={"done": done, "total": 100}, **entries)


@pytest.mark.parametrize(("state", "code"), [("completed", 0), ("failed", 1), ("unfamiliar", 4), ("cancelled", 130)])
def test_watching_ends_with_the_job_and_has_its_exit_code(
    folder: Location, monkeypatch: pytest.MonkeyPatch, state: str, code: int
) -> None:
    _running(folder, 1, 10)()
    _play(monkeypatch, lambda: write_scan(folder, state=state, beats=2))
    seen: list[JobStatus] = []
    last = follow_job(folder, seen.append)
    assert [status.state for status in seen] == ["running", state]
    assert exit_code(last) == code


def test_a_scan_whose_pairs_all_failed_has_the_exit_code_of_a_failure(folder: Location) -> None:
    write_scan(folder, counts={"done": 5, "total": 5, "errors": 5})
    assert exit_code(read_status(folder)) == 1


def test_a_scan_with_more_errors_than_allowed_has_an_exit_code_of_its_own(folder: Location) -> None:
    counts = {"done": 10, "total": 10, "errors": 2}
    write_scan(folder, counts=counts, settings={"max_error_rate": 0.1})
    assert exit_code(read_status(folder)) == 3
    write_scan(folder, counts=counts, settings={"max_error_rate": 0.2})
    assert exit_code(read_status(folder)) == 0


def test_watching_says_only_what_is_new(folder: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    _running(folder, 1, 10)()
    _play(
        monkeypatch,
        *(_running(folder, beats, 10) for beats in range(2, 40)),
        *(_running(folder, beats, beats) for beats in range(40, 61)),
        lambda: write_scan(folder, state="finalizing", beats=61, runs=1),
        lambda: write_scan(folder, state="completed", beats=62),
    )
    seen: list[JobStatus] = []
    follow_job(folder, seen.append, every_s=10)
    assert [(status.state, status.counts["done"]) for status in seen] == [
        ("running", 10), ("running", 40), ("running", 50), ("running", 60), ("finalizing", 1200), ("completed", 1200),
    ]  # fmt: skip


def test_watching_says_that_another_process_has_taken_the_job_up(
    folder: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    _running(folder, 1, 10)()
    _play(monkeypatch, _running(folder, 0, 10, runs=2, run_id="r2"), lambda: write_scan(folder, state="completed"))
    seen: list[JobStatus] = []
    follow_job(folder, seen.append)
    assert [status.runs for status in seen] == [1, 2, 1]


def test_watching_gives_up_when_the_heartbeat_stands_still(folder: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    _running(folder, 1, 10)()
    clock = _play(monkeypatch)
    with pytest.raises(JobError, match=r"no sign of life for 1 min: the process probably died\. `asap resume .*` goes"):
        follow_job(folder, lambda status: None)
    assert 60 <= clock.now < 63
    clock.now = 0
    with pytest.raises(JobError, match=r"no sign of life for 6 s"):
        follow_job(folder, lambda status: None, give_up_after_s=5)


def test_watching_a_job_that_died_long_ago_gives_up_at_once(folder: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    write_scan(folder, state="running", heartbeat=seconds_ago(9999))
    clock = _play(monkeypatch)
    with pytest.raises(JobError, match="no sign of life for 2 h"):
        follow_job(folder, lambda status: None)
    assert clock.now == 0


def test_watching_bears_a_store_that_fails_for_a_while_and_gives_up_on_one_that_keeps_failing(
    folder: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = iter([True] * 30 + [False])

    def find(folder: Location) -> JobStatus | None:
        if next(failures, always_fails):
            raise StorageError("the store is away")
        return find_status(folder)

    monkeypatch.setattr(follow, "find_status", find)
    always_fails = False
    _running(folder, 1, 10)()
    _play(monkeypatch, *[lambda: None] * 30, lambda: write_scan(folder, state="completed"))
    assert follow_job(folder, lambda status: None).state == "completed"
    always_fails = True
    _running(folder, 1, 10)()
    clock = _play(monkeypatch)
    with pytest.raises(StorageError, match="the store is away"):
        follow_job(folder, lambda status: None)
    assert clock.now > 60


def test_watching_ends_if_the_folder_is_deleted(folder: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    _running(folder, 1, 10)()
    _play(monkeypatch, lambda: delete_folder(folder))
    with pytest.raises(JobError, match="was deleted while it was watched"):
        follow_job(folder, lambda status: None)
    with pytest.raises(JobError, match="is not the folder of a job"):
        follow_job(folder, lambda status: None)


def test_watching_a_training_run_follows_its_progress(folder: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    write_training(folder, steps=[{"pairs": 8}])
    _play(
        monkeypatch,
        *[lambda: None] * 20,
        lambda: write_training(folder, steps=[{"pairs": 16}]),
        lambda: write_training(folder, steps=[{"pairs": 64}], finished=True),
    )
    seen: list[JobStatus] = []
    assert exit_code(follow_job(folder, seen.append)) == 0
    assert [status.counts["done"] for status in seen] == [8, 16, 64]


def test_watching_a_training_run_tells_its_phases_at_once_and_their_counts_from_time_to_time(
    folder: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decoding(done: int) -> Callable[[], Any]:
        sign = {"beats": done, "phase": "decoding train pictures", "phase_counts": {"done": done, "total": 40}}
        return lambda: write_training(folder, sign=sign)

    write_training(folder, sign={"phase": "starting Ray on this machine"})
    _play(
        monkeypatch,
        *map(decoding, range(1, 21)),
        lambda: write_training(folder, sign={"phase": "training"}),
        lambda: write_training(folder, finished=True),
    )
    seen: list[JobStatus] = []
    follow_job(folder, seen.append, every_s=10)
    assert [status.phase_text for status in seen] == [
        "starting Ray on this machine", "decoding train pictures: 1 of 40", "decoding train pictures: 11 of 40",
        "training", "",
    ]  # fmt: skip


OWNER = """
import sys, time
from asap.storage.location import Location
from jobs.scan.output.job_folder import Job
from jobs.stops import stop_on_signals
stop_on_signals()
with Job(Location(sys.argv[1]), {"kind": "scan"}, heartbeat_s=0.1) as job:
    job.update(state="running")
    print("it runs", flush=True)
    while True:
        time.sleep(0.1)
"""


@pytest.mark.parametrize("store", ["local", "s3"])
def test_a_job_is_cancelled_through_its_folder(
    folder: Location, store: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "_POLL_S", 0.05)
    if store == "s3":
        folder = Location(f"s3://{request.getfixturevalue('bucket')}/job")
    owner = subprocess.Popen([sys.executable, "-c", OWNER, folder.uri], stdout=subprocess.PIPE, text=True)
    assert owner.stdout
    assert owner.stdout.readline() == "it runs\n"
    notes: list[str] = []
    last = cancel_job(folder, wait_s=HANG_S, notify=notes.append)
    owner.communicate(timeout=HANG_S)
    assert last.state == "cancelled"
    assert last.pid == owner.pid
    assert (read_record(folder) or {})["state"] == "cancelled"
    assert not exists(folder / CANCEL), "the request would stop the next run"
    assert notes[0].startswith("waiting up to 15 min until ")


def test_the_request_says_who_asked(folder: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    _running(folder, 1, 10)()
    requests: list[dict[str, Any]] = []

    def answer() -> None:
        requests.append(json.loads(read_bytes(folder / CANCEL)))
        write_scan(folder, state="cancelled")

    _play(monkeypatch, answer)
    cancel_job(folder)
    assert set(requests[0]) == {"host", "pid", "at"}


@pytest.mark.parametrize("state", ["completed", "failed", "cancelled"])
def test_cancelling_a_job_that_ended_changes_nothing(folder: Location, state: str) -> None:
    record = write_scan(folder, state=state)
    assert cancel_job(folder).state == state
    assert read_record(folder) == record
    assert not exists(folder / CANCEL)


def test_cancelling_a_job_that_completes_first_takes_the_request_back(
    folder: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    _running(folder, 1, 10)()
    _play(monkeypatch, lambda: write_scan(folder, state="completed"))
    assert cancel_job(folder).state == "completed"
    assert not exists(folder / CANCEL)


@pytest.mark.parametrize("age_s", [1, 9999])
def test_cancelling_a_dead_job_says_so_and_records_nothing(
    folder: Location, monkeypatch: pytest.MonkeyPatch, age_s: float
) -> None:
    record = write_scan(folder, state="running", heartbeat=seconds_ago(age_s))
    clock = _play(monkeypatch)
    with pytest.raises(JobError, match=r"was not cancelled, because nothing works on it.*`asap resume .*` goes on"):
        cancel_job(folder)
    assert clock.now < 15
    assert read_record(folder) == record
    assert not exists(folder / CANCEL)


def test_a_job_that_is_slow_to_stop_keeps_the_request(folder: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    _running(folder, 1, 10)()
    _play(monkeypatch, *(_running(folder, beats, 10) for beats in range(2, 99)))
    with pytest.raises(JobError, match=r"has not stopped within 20 s\. The request stays, and process 4711 on"):
        cancel_job(folder, wait_s=20)
    assert exists(folder / CANCEL)


def test_a_job_that_is_deleted_while_it_is_cancelled_is_reported(
    folder: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    _running(folder, 1, 10)()
    _play(monkeypatch, lambda: delete_folder(folder))
    with pytest.raises(JobError, match="was deleted while its job was being cancelled"):
        cancel_job(folder)


def test_a_store_that_fails_for_a_moment_does_not_end_a_cancellation(
    folder: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    _running(folder, 1, 10)()
    _play(
        monkeypatch,
        lambda: write_bytes(folder / "job.json", b"{"),
        lambda: write_scan(folder, state="cancelled"),
    )
    assert cancel_job(folder).state == "cancelled"


def test_a_training_run_without_a_heartbeat_is_stopped_at_its_command(folder: Location) -> None:
    write_training(folder, started_s=5)
    with pytest.raises(JobError, match=r"cannot be cancelled through its folder.*Ctrl-C or SIGTERM"):
        cancel_job(folder)
    assert not exists(folder / CANCEL)
