"""Settings from the record of a job: those with which the same command would resume it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from asap.errors import ConfigError
from asap.job_records.status import read_status
from asap.storage.files import delete_file, write_bytes
from asap.storage.location import Location
from jobs.annotate.settings import AnnotateSettings
from jobs.control.restart import annotate_settings, needs_no_restart, scan_settings, train_settings
from jobs.scan.settings import ScanSettings
from jobs.train.run import _check_folder, _claim, _with_absolute_paths
from jobs.train.run_folder.folder import RunFolder
from jobs.train.run_folder.record import start_record
from tests.support.job_folders import write_scan
from tests.support.small_run import settings_for


def _write(folder: Location, settings: ScanSettings | AnnotateSettings, **entries: Any) -> None:
    identity = {"settings": settings.identity()}
    record = {"settings": settings.model_dump(), "identity": identity, "state": "cancelled"} | entries
    write_scan(folder, **json.loads(json.dumps(record)))


def test_a_job_of_annotations_resumes_with_its_settings_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    engine = {"engine": "openai", "source": "m", "endpoint": {"address": "http://host/v1", "concurrency": 3}}
    began = AnnotateSettings(input="pairs.jsonl", out="out", explanations=engine)  # type: ignore[arg-type]
    _write(began.job_folder, began, kind="annotate")
    monkeypatch.chdir("/")
    status = read_status(Location(str(tmp_path / "out")))
    settings = annotate_settings(status, {"retry_errors": ("retryable",)})
    assert settings.identity() == began.identity() | {"input": str(tmp_path / "pairs.jsonl")}
    assert settings.job_folder == Location(str(tmp_path / "out"))
    assert (settings.explanations, settings.retry_errors) == (began.explanations, ("retryable",))
    with pytest.raises(ConfigError, match=r"cannot be used to resume it: retry_errors"):
        annotate_settings(status, {"retry_errors": 5})


def test_a_scan_resumes_with_its_settings_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    captions = {"engine": "precomputed", "source": "/captions.json"}
    began = ScanSettings(input="pairs.jsonl", out="out", batch_size=8, captions=captions, fetch={"attempts": 2})  # type: ignore[arg-type]
    _write(began.job_folder, began)
    monkeypatch.chdir("/")
    settings = scan_settings(read_status(Location(str(tmp_path / "out/pairs"))), {})
    assert settings.identity() == began.identity() | {"input": str(tmp_path / "pairs.jsonl")}
    assert settings.job_folder == Location(str(tmp_path / "out/pairs"))
    assert (settings.batch_size, settings.fetch.attempts) == (8, 2)


def test_a_scan_in_a_bucket_resumes_there_with_changes(bucket: str) -> None:
    began = ScanSettings(input=f"s3://{bucket}/pairs.jsonl", out=f"s3://{bucket}/out")
    _write(began.job_folder, began)
    settings = scan_settings(read_status(began.job_folder), {"allow_unfamiliar": True, "address": "auto"})
    assert settings.job_folder == began.job_folder
    assert (settings.allow_unfamiliar, settings.address) == (True, "auto")


def test_a_model_that_is_not_here_is_named_with_the_option_that_helps(tmp_path: Path) -> None:
    folder = Location(str(tmp_path / "job"))
    _write(folder, ScanSettings(input="/a.jsonl", out="/out", model="my-model"))
    with pytest.raises(
        ConfigError, match=r"is recorded as 'my-model', and there is no such folder here\. Give --model"
    ):
        scan_settings(read_status(folder), {})
    assert scan_settings(read_status(folder), {"model": str(tmp_path)}).model == str(tmp_path)


@pytest.mark.parametrize("settings", [{}, {"input": "/a", "out": "/b", "speed": "warp"}])
def test_a_record_that_this_version_cannot_use_says_to_run_the_command(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    folder = Location(str(tmp_path / "job"))
    write_scan(folder, state="failed", settings=settings, identity={})
    with pytest.raises(ConfigError, match=r"cannot be used to resume it: .*Run the command again that started it"):
        scan_settings(read_status(folder), {})


def test_a_finished_job_needs_no_restart_but_one_without_its_last_file_does(tmp_path: Path) -> None:
    folder = Location(str(tmp_path / "job"))
    write_scan(folder)
    assert needs_no_restart(read_status(folder))
    delete_file(folder / "_SUCCESS")
    assert not needs_no_restart(read_status(folder))
    write_scan(folder, state="failed")
    assert not needs_no_restart(read_status(folder))


def test_a_training_run_resumes_with_the_settings_that_its_own_command_would_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("corpus").mkdir()
    typed = settings_for("corpus", "run", workers=2, made_from="drawings")
    began = _with_absolute_paths(typed)
    folder = RunFolder.open(began.out)
    _claim(folder, began, {"train": {"pairs": 60}})
    start_record(folder, typed)
    monkeypatch.chdir("/")
    status = read_status(folder.location)
    settings = train_settings(status, {"address": "auto"})
    _check_folder(folder, settings, settings.model_fields_set)
    assert settings == began.model_copy(update={"address": "auto"})
    write_bytes(folder.location / "model" / "config.json", b"{}")
    assert needs_no_restart(read_status(folder.location))
