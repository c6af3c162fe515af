"""Scans whose stores and disks fail, with real Ray, and S3 over HTTP."""

import json
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from asap.errors import AsapError, StorageError
from asap.job_records.record import read_record
from asap.storage.fetch import FetchSettings
from asap.storage.files import delete_folder, exists, is_empty
from jobs.errors import JobFailed
from jobs.scan.passes import ScanProgress
from jobs.scan.pipeline import ScanPipeline
from jobs.scan.run import scan
from jobs.scan.settings import ScanSettings
from tests.support.faulty_store import Fault, FaultyStore, Request
from tests.support.results import read_results
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

WRITES = ("PUT", "POST")


@pytest.fixture
def settings(corpus: Path, model_folder: Path) -> ScanSettings:
    """Return the settings of a scan of four pairs in two batches."""
    return ScanSettings(
        input=str(corpus / "a.jsonl"), out=str(corpus / "out"), model=str(model_folder), device="cpu", batch_size=2,
        rows_per_file=2, fetch=FetchSettings(attempts=2),
    )  # fmt: skip


def test_pictures_that_are_too_slow_for_their_batches_are_scanned_together_at_the_end(
    ray_here: None, settings: ScanSettings, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient = ScanPipeline.patient
    batches: list[int] = []

    def note(pipeline: ScanPipeline) -> ScanPipeline:
        batches.append(pipeline.batch_size)
        return patient(pipeline)

    monkeypatch.setattr(ScanPipeline, "patient", note)
    # To decode such a picture takes a hundred thousand times as long as a batch waits for it.
    for picture in (corpus / "images").iterdir():
        picture.unlink()
        Image.new("RGB", (6000, 6000), "white").save(picture, "PNG")
    summary = scan(settings.model_copy(update={"slow_picture_s": 1e-6}))
    assert (summary["pairs"], summary["errors"]) == (4, 0)
    assert [row["row_id"] for row in read_results(settings.job_folder)] == [0, 1, 2, 3]
    assert batches == [2]  # in batches, not one row at a time


def test_a_scan_whose_folder_is_deleted_stops_at_once_and_can_be_run_again(
    ray_here: None, settings: ScanSettings
) -> None:
    deleted = threading.Event()

    def is_gone() -> bool:
        try:
            delete_folder(settings.job_folder)
        except StorageError:  # a heartbeat wrote into the folder meanwhile
            return False
        return True

    def watch(progress: ScanProgress) -> None:
        if progress.stage == "starting the workers" and not deleted.is_set():
            deleted.set()
            wait_until(is_gone)

    hasty = settings.model_copy(update={"heartbeat_s": 0.1})
    with pytest.raises(JobFailed, match=r"out/a was deleted while the job ran\. Nothing of it is kept\. Run the comm"):
        scan(hasty, watch)
    assert deleted.is_set()
    assert is_empty(settings.job_folder)
    assert scan(hasty)["pairs"] == 4


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a disk of 100 KiB and return its folder."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("this machine lets nobody mount a disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_full_while_the_manifest_is_written_is_named_with_that_file(
    settings: ScanSettings, small_disk: Path, corpus: Path
) -> None:
    lines = [json.dumps({"id": row, "image": "images/0.jpg", "text": f"{row * 7**80:x}"}) for row in range(4000)]
    (corpus / "a.jsonl").write_text("\n".join(lines))
    full = settings.model_copy(update={"out": str(small_disk)})
    with pytest.raises(
        StorageError, match=rf"^{small_disk}/a/manifest/00000\.parquet cannot be written: the disk is f"
    ):
        scan(full)


def test_a_bucket_that_takes_no_results_fails_the_job_which_goes_on_later(
    ray_here: None, faulty: FaultyStore, bucket: str, settings: ScanSettings
) -> None:
    out = f"s3://{bucket}/out"
    there = settings.model_copy(update={"out": out, "write_patience_s": 0.5})
    denied: set[str] = set()

    def deny(request: Request) -> Fault | None:
        if not request.path.endswith(".parquet") or "/results/" not in request.path or request.method not in WRITES:
            return None
        denied.add(request.path)
        return Fault(status=403, code="AccessDenied")

    faulty.rule = deny
    with pytest.raises(AsapError) as caught:
        scan(there)
    assert "out/a/results" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "died" not in str(caught.value)
    assert (read_record(there.job_folder) or {})["state"] == "failed"
    assert denied
    faulty.rule = lambda request: None
    assert scan(there)["errors"] == 0
    assert Counter(row["row_id"] for row in read_results(there.job_folder)) == Counter(range(4))


def test_a_bucket_that_takes_nothing_at_the_very_end_is_named_with_the_file_and_no_row_is_scanned_again(
    ray_here: None, faulty: FaultyStore, bucket: str, settings: ScanSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = settings.model_copy(update={"out": f"s3://{bucket}/out"})
    for name in ("flagged.jsonl", "summary.json", "report/index.html", "_SUCCESS"):
        faulty.rule = lambda request, name=name: (
            Fault(status=403, code="AccessDenied") if request.path.endswith(name) and request.method in WRITES else None
        )
        with pytest.raises(StorageError, match=rf"^(access to )?s3://{bucket}/out/a/{name} ") as caught:
            scan(there)
        assert "denied" in str(caught.value).lower()
        state = (read_record(there.job_folder) or {})["state"]
        assert state == ("completed" if name == "_SUCCESS" else "failed")
        monkeypatch.setattr("jobs.scan.pipeline.run_pipeline", lambda *_: pytest.fail("the rows were scanned again"))
    faulty.rule = lambda request: None
    assert scan(there)["errors"] == 0
    assert exists(there.job_folder / "_SUCCESS")
