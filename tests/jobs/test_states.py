"""The states of jobs: log lines and notifications."""

import json
import logging
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from asap.errors import ConfigError, StorageError
from jobs.errors import InputUnfamiliar
from jobs.settings import WatchSettings
from jobs.states import job_states, sentence
from tests.support.waiting import wait_until


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    """The file that `_settings` has the documents of notifications appended to, one a line."""
    return tmp_path / "documents.jsonl"


def _settings(documents: Path, **changes: Any) -> WatchSettings:
    code = "import sys; open(sys.argv[1], 'a').write(sys.stdin.read() + '\\n')"
    command = shlex.join([sys.executable, "-c", code, str(documents)])
    return WatchSettings(notify=(command,), notify_for_s=60, **changes)


def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def _run_until(error: BaseException, settings: WatchSettings, record: dict[str, Any]) -> None:
    """Run a job whose record says this, and which then ends with the error."""
    with job_states(settings, "scan", "news", "/out") as states:
        states.change(record)
        raise error


def test_each_change_of_state_is_a_line_and_the_end_is_notified(documents: Path, tmp_path: Path) -> None:
    log = tmp_path / "logs" / "jobs.jsonl"
    with job_states(_settings(documents, log_file=str(log)), "scan", "news", "/out/news") as states:
        states.change({"state": "validating", "run_id": "r1", "counts": {}, "error": None, "settings": {}})
        states.change({"state": "running"})
        states.change({"state": "running", "counts": {"done": 1, "total": 4}})
        states.note(done=2, total=4)
        states.change({"state": "finalizing"})
        states.change({"state": "completed", "counts": {"done": 4, "total": 4, "flagged": 2, "errors": 1}})
        assert not documents.exists()
    lines = _lines(log)
    assert [line["state"] for line in lines] == ["validating", "running", "finalizing", "completed"]
    assert lines[2]["counts"] == {"done": 2, "total": 4}
    assert {line["run_id"] for line in lines} == {"r1"}
    [document] = _lines(documents)
    assert document.keys() == lines[-1].keys()
    assert document | {"time": ""} == lines[-1] | {"time": ""}
    assert (document["kind"], document["job"], document["folder"]) == ("scan", "news", "/out/news")
    assert document["sentence"] == "Scan news is complete. 4 of 4 pairs are done, 2 flagged, 1 error."


@pytest.mark.parametrize(
    ("error", "state", "reason"),
    [
        (StorageError("the disk is full.\nand more"), "failed", "the disk is full."),
        (ValueError(), "failed", "ValueError"),
        (KeyboardInterrupt(), "cancelled", None),
        (InputUnfamiliar("most pairs are unfamiliar."), "unfamiliar", "most pairs are unfamiliar."),
    ],
)
def test_a_job_without_a_record_ends_in_the_state_of_its_error(
    documents: Path, error: BaseException, state: str, reason: str | None
) -> None:
    with pytest.raises(type(error)):
        _run_until(error, _settings(documents), {"state": "running"})
    [document] = _lines(documents)
    assert (document["state"], document["error"]) == (state, reason)


def test_a_job_that_completes_without_a_record_says_so(documents: Path) -> None:
    with job_states(_settings(documents), "evaluate", "out", "/out") as states:
        states.change({"state": "running"})
    assert [document["state"] for document in _lines(documents)] == ["completed"]


def test_an_error_after_the_record_says_completed_is_a_failure(documents: Path) -> None:
    with pytest.raises(StorageError):
        _run_until(StorageError("_SUCCESS cannot be written"), _settings(documents), {"state": "completed"})
    assert [document["state"] for document in _lines(documents)] == ["failed"]


def test_the_state_that_the_record_has_is_not_changed_by_the_error_that_ended_the_job(documents: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        _run_until(KeyboardInterrupt(), _settings(documents), {"state": "failed", "error": "the disk is full"})
    assert [document["state"] for document in _lines(documents)] == ["failed"]


def test_a_job_that_never_began_is_not_notified(documents: Path) -> None:
    with pytest.raises(StorageError), job_states(_settings(documents), "scan", "news", "/out"):
        raise StorageError("the folder is in use")
    assert not documents.exists()


def test_a_stall_is_notified_while_the_job_goes_on(documents: Path) -> None:
    with job_states(_settings(documents), "scan", "news", "/out") as states:
        states.change({"state": "running"})
        states.change({"state": "stalled", "error": "the detectors wait for a GPU since 14:02"})
        wait_until(lambda: len(_lines(documents)) == 1)
        states.change({"state": "running", "error": None})
    stalled, end = _lines(documents)
    assert stalled["sentence"] == "Scan news has stalled: the detectors wait for a GPU since 14:02."
    assert end["state"] == "completed"


def test_lines_go_to_stderr_if_that_is_asked_for(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with job_states(WatchSettings(log_file="-"), "scan", "news", "/out") as states:
        states.change({"state": "running"})
    output = capsys.readouterr()
    assert [json.loads(line)["state"] for line in output.err.splitlines()] == ["running", "completed"]
    assert output.out == ""


def test_a_program_may_handle_the_lines_itself(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "asap.jobs"), job_states(WatchSettings(), "scan", "news", "/out") as states:
        states.change({"state": "running"})
    assert [json.loads(record.getMessage())["state"] for record in caplog.records] == ["running", "completed"]


def test_the_file_may_be_rotated_while_the_job_runs(tmp_path: Path) -> None:
    log = tmp_path / "jobs.jsonl"
    with job_states(WatchSettings(log_file=str(log)), "scan", "news", "/out") as states:
        states.change({"state": "running"})
        log.rename(tmp_path / "jobs.jsonl.1")
    assert [line["state"] for line in _lines(log)] == ["completed"]


def test_a_log_file_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    settings = WatchSettings(log_file=str(tmp_path / "file" / "jobs.jsonl"))
    message = r"log_file .* cannot be written: .*\. Choose another file\."
    with pytest.raises(ConfigError, match=message), job_states(settings, "scan", "news", "/out"):
        pytest.fail("the job began")


def test_a_log_file_that_breaks_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = tmp_path / "jobs.jsonl"
    with job_states(WatchSettings(log_file=str(log)), "scan", "news", "/out") as states:
        log.unlink()
        log.mkdir()
        states.change({"state": "running"})
    assert f"log_file {log} cannot be written: Is a directory" in caplog.text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"state": "failed", "error": "no disk."}, "Scan news failed: no disk. 5 of 9 pairs are done, 3 errors."),
        ({"state": "failed", "error": None, "counts": {}}, "Scan news failed."),
        ({"state": "cancelled"}, "Scan news was stopped. Run the same command again to go on. 5 of 9 pairs are done, "
                                 "3 errors."),
        ({"state": "unfamiliar", "error": "strange"}, "Scan news stopped: strange. 5 of 9 pairs are done, 3 errors."),
        ({"state": "running", "counts": None}, "Scan news is running."),
    ],
)  # fmt: skip
def test_a_state_is_said_in_a_sentence(changes: dict[str, Any], said: str) -> None:
    entries = {"kind": "scan", "job": "news", "error": None, "counts": {"done": 5, "total": 9, "errors": 3}}
    assert sentence(entries | changes) == said


def test_addresses_are_not_in_what_settings_are_recorded_as() -> None:
    settings = WatchSettings(notify=("https://hooks.example/secret",), log_file="-")
    assert settings.model_dump() == {}
    assert "secret" not in settings.model_dump_json()
