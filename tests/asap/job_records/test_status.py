"""The status of jobs: what the record says, and whether somebody still works on it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from asap.errors import StorageError
from asap.job_records.status import find_status, format_duration, list_jobs, read_status
from asap.storage.files import write_bytes
from asap.storage.location import Location
from jobs.errors import JobError
from jobs.scan.output.job_folder import Job
from tests.support.job_folders import seconds_ago, write_scan, write_training


@pytest.fixture(params=["local", "s3"])
def out(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    """Return an empty folder for jobs, on this machine and in a bucket."""
    if request.param == "s3":
        return Location(f"s3://{request.getfixturevalue('bucket')}/out")
    return Location(str(tmp_path))


def test_a_running_scan_has_counts_speed_time_left_and_process(out: Location) -> None:
    write_scan(out / "a", state="running")
    status = read_status(out / "a")
    assert (status.kind, status.state, status.host is not None, status.pid) == ("scan", "running", True, 4711)
    assert status.counts == {"done": 1200, "total": 2400, "errors": 12, "flagged": 30, "unfamiliar": 4}
    assert status.left_s == 60
    assert not status.is_silent
    assert status.sentence() == ""
    assert status.to_json()["heartbeat_age_s"] >= 0


def test_the_record_that_a_job_itself_writes_can_be_read(out: Location) -> None:
    with Job(out / "a", {"kind": "scan"}, heartbeat_s=10):
        status = read_status(out / "a")
        assert (status.state, status.runs, status.is_silent) == ("validating", 1, False)


def test_an_old_heartbeat_is_said_to_be_old_and_how_the_job_goes_on(out: Location) -> None:
    write_scan(out / "a", state="running", heartbeat=seconds_ago(14 * 60 + 10))
    status = read_status(out / "a")
    assert status.is_silent
    assert status.left_s is None
    assert status.sentence() == (
        f"no sign of life for 14 min: the process probably died. `asap resume {out / 'a'}` goes on."
    )


def test_the_clock_of_another_machine_is_given_more_room_and_is_named(out: Location) -> None:
    write_scan(out / "a", state="running", host="elsewhere", heartbeat=seconds_ago(120))
    assert not read_status(out / "a").is_silent
    write_scan(out / "a", state="running", host="elsewhere", heartbeat=seconds_ago(400))
    assert "by this machine's clock; that of elsewhere may differ" in read_status(out / "a").sentence()
    write_scan(out / "a", state="running", host="elsewhere", heartbeat=seconds_ago(-4000))
    assert re.search(r"heartbeat is 1 h \d min ahead: the clocks", read_status(out / "a").sentence())


@pytest.mark.parametrize("state", ["completed", "failed", "cancelled", "unfamiliar"])
def test_a_job_that_ended_is_not_silent_and_says_why_it_ended(tmp_path: Path, state: str) -> None:
    folder = Location(str(tmp_path / "a"))
    write_scan(folder, state=state, error="the disk is full", heartbeat=seconds_ago(9999))
    assert not read_status(folder).is_silent
    assert read_status(folder).sentence() == "the disk is full"


def test_records_of_earlier_versions_name_no_process(tmp_path: Path) -> None:
    folder = Location(str(tmp_path / "a"))
    write_scan(folder, state="running", host=None, pid=None, counts=None, heartbeat=None)
    status = read_status(folder)
    assert (status.process, status.age_s, status.counts) == ("its process", None, {"total": 2400})
    assert not status.is_silent


def test_the_process_that_applies_another_policy_gives_the_signs_of_life(tmp_path: Path) -> None:
    folder = Location(str(tmp_path / "a"))
    write_scan(folder, state="finalizing", heartbeat=seconds_ago(9999), results="_repolicy/results")
    write_scan(folder / "_repolicy", kind="repolicy", state="validating", heartbeat=seconds_ago(1))
    assert read_status(folder).sentence() == "another policy is being applied"
    write_scan(folder / "_repolicy", kind="repolicy", state="validating", heartbeat=seconds_ago(9999))
    assert "Run its `asap repolicy` again." in read_status(folder).sentence()


def test_a_scan_that_captions_its_flagged_pairs_shows_how_many(tmp_path: Path) -> None:
    for state, text in (("running", "captioning: 3 of 12"), ("cancelled", "")):
        folder = Location(str(tmp_path / state))
        write_scan(folder, state=state, captioning={"rows": 12, "done": 3})
        assert read_status(folder).phase_text == text
    write_scan(Location(str(tmp_path / "all")), state="running", captioning=None)
    assert read_status(Location(str(tmp_path / "all"))).phase is None


def test_a_training_run_has_the_counts_and_the_speed_of_its_progress(out: Location) -> None:
    losses = {"pairs": 32, "losses": {"total": 1.5}, "pairs_per_s": 8.0}
    write_training(out / "run", steps=[losses, {"pairs": 32, "validation": {"AUC": 0.7}}])
    status = read_status(out / "run")
    assert (status.kind, status.state, status.runs) == ("train", "running", 1)
    assert status.counts == {"done": 32, "total": 64}
    assert status.left_s == 4
    assert not status.can_be_cancelled
    write_bytes(out / "run" / "model" / "config.json", b"{}")
    assert read_status(out / "run").state == "completed"


DECODING = {"phase": "decoding train pictures", "phase_counts": {"done": 1200, "total": 5000}}


def test_a_training_run_has_the_phase_of_its_last_sign_of_life(out: Location) -> None:
    write_training(out / "run", sign=DECODING)
    status = read_status(out / "run")
    assert status.phase_text == "decoding train pictures: 1,200 of 5,000"
    document = status.to_json()
    assert (document["phase"], document["phase_counts"]) == ("decoding train pictures", {"done": 1200, "total": 5000})
    write_training(out / "run", sign={"phase": "starting Ray on this machine"})
    assert read_status(out / "run").phase_text == "starting Ray on this machine"


@pytest.mark.parametrize("start", [{"run_id": "a later one"}, {"state": "failed"}, {"state": "cancelled"}])
def test_a_phase_that_nobody_works_on_is_not_shown(tmp_path: Path, start: dict[str, str]) -> None:
    write_training(Location(str(tmp_path)), sign=DECODING, **start)
    status = read_status(Location(str(tmp_path)))
    assert (status.phase, status.phase_counts, status.phase_text) == (None, {}, "")


def test_runs_without_a_phase_have_none_and_a_broken_count_is_an_error(tmp_path: Path) -> None:
    folder = Location(str(tmp_path))
    for sign in (None, {}):
        write_training(folder, sign=sign)
        assert read_status(folder).phase_text == ""
    write_training(folder, sign={"phase": "decoding", "phase_counts": {"done": "x"}})
    with pytest.raises(StorageError, match=r"the record of .* is broken"):
        read_status(folder)


def test_a_training_run_without_progress_for_long_probably_died(tmp_path: Path) -> None:
    folder = Location(str(tmp_path))
    write_training(folder, started_s=600)
    assert not read_status(folder).is_silent
    write_training(folder, started_s=3600, steps=[{"pairs": 8, "at": time.time() - 1800}])
    assert "no sign of life for 30 min" in read_status(folder).sentence()
    assert "unless it prepares pictures" in read_status(folder).sentence()


@pytest.mark.parametrize(
    ("name", "content"),
    [("thesis.txt", b"x"), ("job.json", b'{"name": "another program"}'), ("train.json", b'{"lr": 1}')],
)
def test_a_folder_of_something_else_is_not_a_job(out: Location, name: str, content: bytes) -> None:
    write_bytes(out / "a" / name, content)
    assert find_status(out / "a") is None
    with pytest.raises(JobError, match="is not the folder of a job"):
        read_status(out / "a")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("job.json", b"{"),
        ("job.json", b"7"),
        ("job.json", b'{"job_id": "a", "state": "running", "counts": 7}'),
        ("train.json", b"{"),
    ],
)
def test_a_broken_record_is_an_error_alone_and_a_line_in_a_list(out: Location, name: str, content: bytes) -> None:
    write_bytes(out / "a" / name, content)
    with pytest.raises(StorageError, match="broken"):
        read_status(out / "a")
    write_scan(out / "b")
    assert [(job.folder.name, job.state) for job in list_jobs(out)] == [("b", "completed"), ("a", "broken")]
    assert "broken" in list_jobs(out)[1].sentence()


def test_broken_progress_and_a_broken_run_record_are_errors(tmp_path: Path) -> None:
    folder = Location(str(tmp_path))
    write_training(folder)
    write_bytes(folder / "progress.jsonl", b"{\n")
    with pytest.raises(StorageError, match=r"progress\.jsonl is broken"):
        read_status(folder)
    write_bytes(folder / "run.json", b"{")
    with pytest.raises(StorageError, match=r"run\.json is broken"):
        read_status(folder)


def test_a_list_has_the_newest_first_the_folder_itself_and_nothing_deeper(out: Location) -> None:
    write_scan(out, heartbeat=seconds_ago(300))
    write_scan(out / "old", heartbeat=seconds_ago(200))
    write_scan(out / "new", heartbeat=seconds_ago(100))
    write_training(out / "run", started_s=5)
    write_scan(out / "deeper" / "c")
    write_scan(out / "_repolicy", kind="repolicy")
    write_bytes(out / "notes" / "a.txt", b"x")
    assert [job.folder for job in list_jobs(out)] == [out / "run", out / "new", out / "old", out]


def test_a_list_of_a_folder_that_does_not_exist_is_an_error(tmp_path: Path, bucket: str) -> None:
    with pytest.raises(StorageError, match="is not a folder"):
        list_jobs(Location(str(tmp_path / "none")))
    with pytest.raises(StorageError, match="does not exist"):
        list_jobs(Location("s3://no-such-bucket-for-me/out"))
    assert list_jobs(Location(f"s3://{bucket}/none")) == []


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59, "59 s"), (840, "14 min"), (11_100, "3 h 5 min"), (187_200, "2 d 4 h")]
)
def test_durations_have_the_units_that_matter(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_the_verbs_load_neither_torch_nor_ray(tmp_path: Path) -> None:
    write_scan(Location(str(tmp_path / "a")))
    verbs = [["status"], ["watch"], ["cancel"], ["errors"], ["results"], ["report", "--rewrite"], ["delete", "--yes"]]
    commands = [["list", str(tmp_path)], *([verb, str(tmp_path / "a"), *rest] for verb, *rest in verbs)]
    code = (
        "import json, sys\nfrom jobs.cli.app import main\n"
        "for words in json.loads(sys.argv[1]):\n"
        "    sys.argv = ['asap', *words]\n"
        "    try:\n        main()\n    except SystemExit as stop:\n        assert not stop.code, words\n"
        "print(sorted({'torch', 'ray', 'transformers'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, json.dumps(commands)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert output.rstrip().endswith("[]")
    assert not (tmp_path / "a").exists()
