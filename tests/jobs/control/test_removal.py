"""Deleting job folders: only those of jobs, only those that nothing works on, and nothing outside of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from asap.errors import StorageError
from asap.job_records.status import read_status
from asap.storage.files import exists, is_empty, list_files, write_bytes
from asap.storage.location import Location
from asap.storage.s3 import s3_client
from jobs.control import removal
from jobs.control.removal import check_deletable, check_idle, count_files, delete_job
from jobs.errors import JobError, JobInUse
from jobs.scan.output.job_folder import Job
from jobs.train.run_folder.folder import RunFolder
from tests.support.job_folders import scored, seconds_ago, write_scan, write_training


@pytest.fixture(params=["local", "s3"])
def out(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    """Return an empty folder for jobs, on this machine and in a bucket."""
    if request.param == "s3":
        return Location(f"s3://{request.getfixturevalue('bucket')}/out")
    return Location(str(tmp_path / "out"))


def test_a_job_is_deleted_with_all_that_is_in_it_and_nothing_else(out: Location) -> None:
    write_scan(out / "a", [scored(0, 0.5, "review")])
    write_scan(out / "ab")
    status = check_deletable(out / "a")
    assert count_files(out / "a") == 3
    delete_job(status)
    assert is_empty(out / "a")
    assert sorted(info.location.name for info in list_files(out)) == ["_SUCCESS", "job.json"]


def test_a_training_run_is_deleted_with_the_copy_of_this_machine(out: Location) -> None:
    write_training(out / "run", finished=True)
    if out.is_s3:
        folder = RunFolder.open(str(out / "run"))
        folder.refresh()
        assert folder.settings.exists()
    delete_job(check_deletable(out / "run"))
    assert is_empty(out)
    assert not RunFolder.open(str(out / "run")).path.exists()


def test_a_folder_that_is_not_of_a_job_is_refused(out: Location) -> None:
    write_bytes(out / "thesis" / "job.json", b'{"name": "mine"}')
    with pytest.raises(JobError, match="is not the folder of a job"):
        check_deletable(out / "thesis")
    assert exists(out / "thesis" / "job.json")


def test_a_folder_that_holds_another_job_is_refused(out: Location) -> None:
    write_scan(out)
    write_scan(out / "inner")
    with pytest.raises(JobError, match=r"holds another job, .*/inner"):
        check_deletable(out)


def test_a_job_that_runs_is_refused(out: Location) -> None:
    with (
        Job(out / "a", {"kind": "scan", "settings": {"stale_after_s": 900}}, heartbeat_s=0.05),
        pytest.raises(JobInUse, match=r"is in use: .* works on it\. `asap cancel .*` stops it"),
    ):
        check_deletable(out / "a")


def test_a_scan_that_is_given_another_policy_is_refused(tmp_path: Path) -> None:
    folder = Location(str(tmp_path / "a"))
    write_scan(folder, state="finalizing", results="_repolicy/results", heartbeat=seconds_ago(9999))
    work = {"kind": "repolicy", "settings": {"stale_after_s": 900}}
    with Job(folder / "_repolicy", work, heartbeat_s=0.05), pytest.raises(JobInUse, match="is in use"):
        check_deletable(folder)


def test_a_job_that_died_is_deleted_once_its_heartbeat_stands_still(out: Location) -> None:
    write_scan(out / "a", state="running", settings={"stale_after_s": 0.2})
    notes: list[str] = []
    delete_job(check_deletable(out / "a", notes.append))
    assert "did not" in notes[0] or "not ended properly" in notes[0]
    assert is_empty(out / "a")


def test_a_training_run_with_a_late_sign_of_life_is_refused(tmp_path: Path) -> None:
    folder = Location(str(tmp_path))
    write_training(folder, started_s=100)
    with pytest.raises(JobInUse, match="its last sign of life is younger than 15 min"):
        check_idle(read_status(folder))
    write_training(folder, started_s=9999)
    check_idle(read_status(folder))


def test_links_are_deleted_and_what_they_lead_to_is_not(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    (kept / "deep").mkdir(parents=True)
    (kept / "deep" / "thesis.txt").write_text("x")
    folder = Location(str(tmp_path / "job"))
    write_scan(folder, [scored(0, 0.5, "review")])
    job = Path(folder.uri)
    for at in (job / "linked", job / "results" / "linked"):
        at.symlink_to(kept)
    (job / "file").symlink_to(kept / "deep" / "thesis.txt")
    assert count_files(folder) == 6
    delete_job(check_deletable(folder))
    assert not job.exists()
    assert (kept / "deep" / "thesis.txt").read_text() == "x"


def test_a_link_to_a_job_is_refused(tmp_path: Path) -> None:
    write_scan(Location(str(tmp_path / "job")))
    (tmp_path / "link").symlink_to(tmp_path / "job")
    with pytest.raises(JobError, match=r"is a link to .*/job\. Delete that folder itself"):
        check_deletable(Location(str(tmp_path / "link")))


def test_a_deletion_that_was_stopped_can_be_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Location(str(tmp_path / "job"))
    write_scan(folder, [scored(0, 0.5, "review")])

    def stop(folder: Location) -> None:
        raise KeyboardInterrupt

    status = read_status(folder)
    with monkeypatch.context() as patched:
        patched.setattr(removal, "delete_folder", stop)
        with pytest.raises(KeyboardInterrupt):
            delete_job(status)
    assert [info.location.name for info in list_files(folder)] == ["job.json"]
    delete_job(check_deletable(folder))
    assert is_empty(folder)


def test_objects_that_a_store_keeps_are_reported(bucket: str) -> None:
    folder = Location(f"s3://{bucket}/job")
    write_scan(folder)
    deny = {
        "Version": "2012-10-17",
        "Statement": [
            {"Effect": "Deny", "Principal": "*", "Action": "s3:DeleteObject", "Resource": f"arn:aws:s3:::{bucket}/*"}
        ],
    }
    s3_client().put_bucket_policy(Bucket=bucket, Policy=json.dumps(deny))
    with pytest.raises(StorageError, match=r"denied|still holds files"):
        delete_job(read_status(folder))
    assert exists(folder / "job.json")
