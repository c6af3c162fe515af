"""The steps that every job over a manifest takes."""

from pathlib import Path

import pytest

from asap.job_records.record import read_record
from asap.storage.location import Location
from jobs.errors import JobInUse
from jobs.scan.output.job_folder import Job
from jobs.scan.settings import ScanSettings
from jobs.scan.steps import run_job


def test_a_job_that_another_process_went_on_with_is_not_claimed_by_its_old_record(tmp_path: Path) -> None:
    folder = Location(str(tmp_path / "job"))
    entries = {"kind": "scan", "identity": {}}
    with Job(folder, entries, heartbeat_s=10) as first:
        first.update(state="cancelled")
    old = read_record(folder)
    assert old
    with Job(folder, old, heartbeat_s=10) as second:  # while this process waited for machines
        second.update(state="cancelled")
    settings = ScanSettings(input="/a.jsonl", out=str(tmp_path))
    with pytest.raises(JobInUse, match="another process has gone on with it"):
        run_job(folder, settings, old | entries, lambda job: pytest.fail("the job was claimed"))
    now = read_record(folder)
    assert now
    assert now["run_id"] == second.record["run_id"]
    run_job(folder, settings, now | entries, lambda job: job.update(state="completed"))
    assert (read_record(folder) or {})["runs"] == 3
