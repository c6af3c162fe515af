import json
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from asap.errors import StorageError
from asap.job_records.record import read_record
from asap.storage.files import delete_file, delete_folder, is_empty, list_files, write_bytes
from asap.storage.location import Location
from jobs import heartbeat
from jobs.errors import JobDiffers, JobFailed, JobInUse
from jobs.scan.output import job_folder
from jobs.scan.output.job_folder import Job, check_resumable, is_finished, wait_until_free
from jobs.scan.stages.result_rows import SCHEMA_VERSION
from tests.support.faulty_store import Fault, FaultyStore
from tests.support.waiting import HANG_S, Clock, wait_until

IDENTITY = {"settings": {"limit": None, "captions": None}, "model_id": "m@1"}


@pytest.fixture
def folder(tmp_path: Path) -> Location:
    return Location(str(tmp_path / "job"))


def _entries() -> dict[str, Any]:
    return {"identity": IDENTITY}


def test_a_job_records_its_state_and_its_end(folder: Location) -> None:
    with Job(folder, _entries(), heartbeat_s=10) as job:
        record = read_record(folder)
        assert record
        assert (record["state"], record["job_id"], record["runs"]) == ("validating", "job", 1)
        assert datetime.fromisoformat(record["heartbeat"]).tzinfo
        job.update(state="completed")
    record = read_record(folder)
    assert record
    assert (record["state"], record["error"]) == ("completed", None)


@pytest.mark.parametrize(
    ("error", "state", "message"),
    [
        (JobFailed("the disk is full\nand more"), "failed", "the disk is full"),
        (KeyboardInterrupt(), "cancelled", None),
        (ValueError(), "failed", "ValueError"),
    ],
)
def test_a_stopped_job_records_the_reason(
    folder: Location, error: BaseException, state: str, message: str | None
) -> None:
    with pytest.raises(type(error)), Job(folder, _entries(), heartbeat_s=10):
        raise error
    record = read_record(folder)
    assert record
    assert (record["state"], record["error"]) == (state, message)


def test_the_heartbeat_runs_while_the_job_works_and_not_after(folder: Location) -> None:
    with Job(folder, _entries(), heartbeat_s=0.02) as job:
        job.note(counts={"done": 3})
        beats = job.record["beats"]
        wait_until(lambda: (read_record(folder) or {})["beats"] >= beats + 2, every_s=0.01)
        assert (read_record(folder) or {})["counts"] == {"done": 3}
    assert "heartbeat" not in {thread.name for thread in threading.enumerate()}


def test_a_free_folder_has_no_record(folder: Location) -> None:
    assert check_resumable(folder, IDENTITY) is None


def test_the_same_job_can_be_resumed(folder: Location) -> None:
    with Job(folder, _entries(), heartbeat_s=10) as job:
        job.update(manifest={"rows": 5})
    record = check_resumable(folder, json.loads(json.dumps(IDENTITY)))
    assert record
    assert record["manifest"] == {"rows": 5}
    with Job(folder, record | _entries(), heartbeat_s=10) as job:
        assert job.record["runs"] == 2
        assert job.record["manifest"] == {"rows": 5}


def test_another_job_is_refused_with_every_difference(folder: Location) -> None:
    with Job(folder, _entries(), heartbeat_s=10):
        pass
    other = {"settings": {"limit": 10, "captions": {"engine": "precomputed"}}, "model_id": "m@2"}
    with pytest.raises(JobDiffers, match=r"model_id was 'm@1' and is 'm@2'") as caught:
        check_resumable(folder, other)
    assert "settings.limit was None and is 10" in str(caught.value)
    assert "precomputed" in str(caught.value)


def test_a_changed_input_is_reported_in_words_and_not_as_a_fingerprint(folder: Location) -> None:
    entries = _entries()
    entries["identity"] = IDENTITY | {"input": "71962ea7", "settings": {"input": "/a.csv"}}
    with Job(folder, entries, heartbeat_s=10):
        pass
    with pytest.raises(JobDiffers, match=r": the content of the input has changed\. Choose"):
        check_resumable(folder, entries["identity"] | {"input": "f00"})
    with pytest.raises(JobDiffers, match=r": settings\.input was '/a.csv' and is '/b.csv'\. Choose"):
        check_resumable(folder, entries["identity"] | {"input": "f00", "settings": {"input": "/b.csv"}})


def test_a_job_of_an_earlier_version_of_the_columns_is_resumed_and_one_of_a_later_version_is_not(
    folder: Location,
) -> None:
    entries = {"identity": IDENTITY | {"schema_version": SCHEMA_VERSION - 1}}
    with Job(folder, entries, heartbeat_s=10) as job:
        job.update(manifest={"rows": 5})
    record = check_resumable(folder, IDENTITY | {"schema_version": SCHEMA_VERSION})
    assert record
    assert record["manifest"] == {"rows": 5}
    with pytest.raises(JobDiffers, match=rf": schema_version was {SCHEMA_VERSION - 1} and is {SCHEMA_VERSION - 2}\."):
        check_resumable(folder, IDENTITY | {"schema_version": SCHEMA_VERSION - 2})
    with pytest.raises(JobDiffers, match=r": model_id was 'm@1' and is 'm@2'\."):
        check_resumable(folder, IDENTITY | {"schema_version": SCHEMA_VERSION, "model_id": "m@2"})


@pytest.mark.parametrize("engine", ["precomputed", "transformers"])
def test_the_default_prompt_of_an_earlier_version_matters_only_to_an_engine_that_uses_it(
    folder: Location, engine: str
) -> None:
    captions: dict[str, Any] = {"engine": engine, "source": "c.json", "prompt": "Describe this picture."}
    with Job(folder, {"identity": IDENTITY | {"settings": {"captions": captions}}}, heartbeat_s=10):
        pass
    now = IDENTITY | {"settings": {"captions": captions | {"prompt": None, "dtype": None}}}
    if engine == "precomputed":
        assert check_resumable(folder, now)
    else:
        with pytest.raises(JobDiffers, match=r"captions\.prompt was 'Describe this picture\.' and is None"):
            check_resumable(folder, now)


def test_a_job_that_was_begun_before_pairs_could_be_chosen_captions_all_of_them(folder: Location) -> None:
    captions = {"engine": "precomputed", "source": "c.json"}
    with Job(folder, {"identity": IDENTITY | {"settings": {"captions": captions}}}, heartbeat_s=10):
        pass
    assert check_resumable(folder, IDENTITY | {"settings": {"captions": captions, "caption_pairs": "all"}})
    with pytest.raises(JobDiffers, match=r"settings\.caption_pairs was 'all' and is 'flagged'"):
        check_resumable(folder, IDENTITY | {"settings": {"captions": captions, "caption_pairs": "flagged"}})


def test_a_folder_with_other_files_is_refused(folder: Location) -> None:
    write_bytes(folder / "thesis.txt", b"x")
    with pytest.raises(JobDiffers, match="holds files that are not a job's"):
        check_resumable(folder, IDENTITY)


def test_a_broken_record_is_reported(folder: Location) -> None:
    write_bytes(folder / "job.json", b"{")
    with pytest.raises(StorageError, match=r"job\.json is broken"):
        check_resumable(folder, IDENTITY)


def test_a_job_with_a_moving_heartbeat_is_in_use(folder: Location) -> None:
    with Job(folder, _entries(), heartbeat_s=0.05):
        record = read_record(folder)
        assert record
        with pytest.raises(JobInUse, match="is in use"):
            wait_until_free(folder, record, stale_after_s=HANG_S, notify=lambda line: None)


@pytest.mark.parametrize("store", ["local", "s3"])
def test_only_one_of_two_processes_can_begin_a_job(
    folder: Location, store: str, request: pytest.FixtureRequest
) -> None:
    if store == "s3":
        folder = Location(f"s3://{request.getfixturevalue('bucket')}/job")
    first, second = Job(folder, _entries(), heartbeat_s=10), Job(folder, _entries(), heartbeat_s=10)
    with first:
        with pytest.raises(JobInUse, match="another process has begun it"), second:
            pass
        assert (read_record(folder) or {})["run_id"] == first.record["run_id"]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(heartbeat, "time", clock)
    return clock


@pytest.mark.parametrize("state", ["failed", "cancelled", "completed"])
def test_a_job_that_ended_is_free_at_once(folder: Location, clock: Clock, state: str) -> None:
    record = {"state": state, "heartbeat": datetime.now(UTC).isoformat()}
    wait_until_free(folder, record, stale_after_s=30, notify=lambda line: None)
    assert clock.now == 0


def test_a_killed_job_is_free_once_its_heartbeat_has_stood_still(folder: Location, clock: Clock) -> None:
    record = {"state": "running", "run_id": "a", "beats": 3, "heartbeat": datetime.now(UTC).isoformat()}
    write_bytes(folder / "job.json", json.dumps(record).encode())
    notes: list[str] = []
    wait_until_free(folder, record, stale_after_s=12, notify=notes.append)
    assert 12 <= clock.now < 13
    assert "not ended properly" in notes[0]


def test_a_job_that_was_killed_long_ago_is_free_at_once(folder: Location, clock: Clock) -> None:
    record = {"state": "running", "heartbeat": (datetime.now(UTC) - timedelta(days=1)).isoformat()}
    wait_until_free(folder, record, stale_after_s=30, notify=lambda line: None)
    assert clock.now == 0


def test_a_job_that_was_taken_over_stops(folder: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted = threading.Event()
    monkeypatch.setattr(heartbeat._thread, "interrupt_main", interrupted.set)
    with pytest.raises(JobInUse, match="taken over"), Job(folder, _entries(), heartbeat_s=0.02):
        wait_until(lambda: _take_over(folder, {"run_id": "another"}, interrupted), every_s=0.01)
    assert (read_record(folder) or {})["run_id"] == "another"


def _take_over(folder: Location, record: dict[str, Any], interrupted: threading.Event) -> bool:
    if not interrupted.is_set():  # again, since a heartbeat between its read and its write may overwrite the record
        write_bytes(folder / "job.json", json.dumps(record).encode())
    return interrupted.wait(0.05)


def test_a_short_outage_of_the_store_does_not_stop_the_job(folder: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    away = threading.Event()
    real = job_folder.write_bytes

    def write(location: Location, data: bytes) -> None:
        if away.is_set():
            away.clear()
            raise StorageError("away")
        real(location, data)

    monkeypatch.setattr(job_folder, "write_bytes", write)
    with Job(folder, _entries(), heartbeat_s=0.02) as job:
        away.set()
        wait_until(lambda: not away.is_set(), every_s=0.01)
        beats = job.record["beats"]
        wait_until(lambda: job.record["beats"] > beats, every_s=0.01)


def test_a_job_is_finished_once_its_last_file_exists(folder: Location) -> None:
    assert not is_finished(folder)
    write_bytes(folder / "_SUCCESS", b"")
    assert is_finished(folder)


def _run(folder: Location, work: Callable[[Job], object], heartbeat_s: float = 100) -> None:
    with Job(folder, _entries(), heartbeat_s) as job:
        work(job)


def test_a_job_whose_folder_is_deleted_stops_and_does_not_make_it_anew(
    folder: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted = threading.Event()
    monkeypatch.setattr(heartbeat._thread, "interrupt_main", interrupted.set)

    def work(job: Job) -> None:
        job.update(manifest={"rows": 2})
        delete_folder(folder)
        assert interrupted.wait(HANG_S)
        write_bytes(folder / "results/late.parquet", b"of a worker that did not know it yet")
        raise KeyboardInterrupt

    with pytest.raises(JobFailed, match=r"job was deleted while the job ran\. Nothing of it is kept\."):
        _run(folder, work, heartbeat_s=0.02)
    assert is_empty(folder)


def test_the_error_that_a_deleted_folder_causes_is_not_given_as_the_reason(bucket: str) -> None:
    folder = Location(f"s3://{bucket}/job")

    def work(job: Job) -> None:
        delete_folder(folder)
        raise StorageError("a file that the job had written does not exist")

    with pytest.raises(JobFailed, match=r"was deleted while the job ran.*Run the command again to start anew"):
        _run(folder, work)
    assert is_empty(folder)


def test_a_change_of_state_does_not_make_a_deleted_folder_anew(folder: Location) -> None:
    def work(job: Job) -> None:
        delete_folder(folder)
        job.update(state="finalizing")

    with pytest.raises(JobFailed, match="was deleted"):
        _run(folder, work)
    assert is_empty(folder)


def test_a_folder_that_lost_only_its_record_is_kept(folder: Location) -> None:
    def work(job: Job) -> None:
        write_bytes(folder / "manifest/00000.parquet", b"x")
        job.update(manifest={"rows": 2})
        delete_file(folder / "job.json")
        raise KeyboardInterrupt

    with pytest.raises(JobFailed, match=r"job\.json was deleted while the job ran.*Delete .*/job, and run"):
        _run(folder, work)
    assert [info.location.name for info in list_files(folder)] == ["00000.parquet"]


def test_one_look_that_finds_no_record_does_not_stop_the_job(folder: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    real, hiccups = read_record, [False, True]
    looks: list[bool] = []

    def read(folder: Location) -> dict[str, Any] | None:
        looks.append(bool(hiccups and hiccups.pop()))
        return None if looks[-1] else real(folder)

    monkeypatch.setattr(job_folder, "read_record", read)
    with Job(folder, _entries(), heartbeat_s=0.02) as job:
        wait_until(lambda: len(looks) > 3, every_s=0.01)
        job.update(state="completed")
    assert looks[:2] == [True, False]
    assert (real(folder) or {})["state"] == "completed"


def test_the_reason_of_a_stop_is_given_even_if_it_cannot_be_recorded(faulty: FaultyStore, bucket: str) -> None:
    folder = Location(f"s3://{bucket}/job")

    def work(job: Job) -> None:
        faulty.rule = lambda request: Fault(status=403, code="AccessDenied") if request.method == "PUT" else None
        raise StorageError("/a cannot be written: the disk is full")

    with pytest.raises(StorageError, match="the disk is full"):
        _run(folder, work)
    assert (read_record(folder) or {})["state"] == "validating"
