"""The audit log: what each line has, and the file that processes share."""

from __future__ import annotations

import io
import json
import logging
import stat
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from asap.errors import ConfigError
from serve.api.audit import LINE_START, LOG, check_audit_file, start_logs, write_request


@pytest.fixture
def log() -> Iterator[logging.Logger]:
    """The log of this process as a new process has it, without handlers."""
    loggers = (LOG, logging.getLogger("asap"))
    former = [(logger, logger.handlers[:], logger.propagate, logger.level) for logger in loggers]
    for logger in loggers:
        logger.handlers.clear()
    yield LOG
    for logger, handlers, propagate, level in former:
        for handler in logger.handlers:
            handler.close()
        logger.handlers[:], logger.propagate = handlers, propagate
        logger.setLevel(level)


@pytest.mark.usefixtures("log")
def test_a_file_gets_one_object_of_json_a_line_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    file.write_text("a line of another process\n")
    start_logs(str(file))
    start_logs(str(file))  # a second application in the process adds no second line
    before = datetime.now(UTC)
    write_request({"id": "mine-1", "method": "\x1b[31mGET\n"})
    write_request({"id": "é" * 20_000})
    first, *entries = file.read_bytes().splitlines()
    assert first == b"a line of another process"
    (line, long) = (json.loads(entry) for entry in entries)
    assert (line["id"], line["method"], long["id"]) == ("mine-1", "\x1b[31mGET\n", "é" * 20_000)
    assert b"\x1b" not in file.read_bytes()
    assert line["time"].endswith("Z")
    written = datetime.fromisoformat(line["time"])
    assert 0 <= (written - before).total_seconds() + 0.001 < 900


@pytest.mark.usefixtures("log")
def test_a_file_that_was_moved_away_is_made_anew_and_only_its_group_may_read_it(tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    start_logs(str(file))
    write_request({"id": "1"})
    file.rename(tmp_path / "audit.jsonl.1")
    write_request({"id": "2"})
    assert json.loads(file.read_text())["id"] == "2"
    assert json.loads((tmp_path / "audit.jsonl.1").read_text())["id"] == "1"
    assert stat.S_IMODE(file.stat().st_mode) & 0o007 == 0


def test_each_line_is_written_at_once_so_that_processes_can_share_the_file(tmp_path: Path, log: logging.Logger) -> None:
    class Counted(io.FileIO):
        def write(self, data: Any) -> int:
            writes.append(bytes(data))
            return len(writes[-1])

    start_logs(str(tmp_path / "audit.jsonl"))
    handler: Any = log.handlers[0]
    assert isinstance(handler.stream.buffer, io.FileIO)
    assert handler.stream.write_through
    writes: list[bytes] = []
    handler.stream = io.TextIOWrapper(Counted(tmp_path / "audit.jsonl", "a"), "utf-8", write_through=True)  # type: ignore[arg-type]
    write_request({"id": "x" * 100_000})
    assert [write.endswith(b"\n") for write in writes] == [True]


@pytest.mark.usefixtures("log")
def test_a_file_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    for check in (check_audit_file, start_logs):
        with pytest.raises(ConfigError, match=r"audit_file '.*/none/a' cannot be written: No such file or directory"):
            check(str(tmp_path / "none/a"))
    with pytest.raises(ConfigError, match="Is a directory"):
        check_audit_file(str(tmp_path))


def test_lines_are_lost_and_counted_while_the_file_cannot_be_opened_anew(
    log: logging.Logger, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lost = []
    folder, away = tmp_path / "logs", tmp_path / "away"
    folder.mkdir()
    start_logs(str(folder / "audit.jsonl"), lambda: lost.append(1))
    write_request({"id": "1"})
    folder.rename(away)
    write_request({"id": "2"})
    write_request({"id": "3"})
    (line,) = capsys.readouterr().err.splitlines()
    fields = json.loads(line)
    assert fields["level"] == "error"
    assert "audit.jsonl' cannot be written: No such file or directory. Lines are lost until" in fields["message"]
    assert "traceback" not in fields
    folder.mkdir()
    for id_ in "45":
        write_request({"id": id_})
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["message"].endswith("audit.jsonl' is written again. Lines lost: 2.")
    assert [json.loads(line)["id"] for line in (folder / "audit.jsonl").read_text().splitlines()] == ["4", "5"]
    assert len(lost) == 2


def test_a_line_that_a_full_disk_refuses_is_lost_and_counted(
    log: logging.Logger, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lost = []
    start_logs(str(tmp_path / "audit.jsonl"), lambda: lost.append(1))
    handler: Any = log.handlers[0]
    handler.stream = io.TextIOWrapper(io.FileIO("/dev/full", "a"), "utf-8", write_through=True)  # type: ignore[arg-type]
    write_request({"id": "1"})
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot be written: No space left on device" in json.loads(line)["message"]
    assert len(lost) == 1


def test_without_a_file_lines_go_to_stderr(log: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    start_logs(None)
    write_request({"id": "mine-1"})
    assert json.loads(capsys.readouterr().err)["id"] == "mine-1"


def test_a_failure_is_one_line_with_its_traceback_and_not_in_the_file_of_requests(
    log: logging.Logger, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start_logs(str(tmp_path / "audit.jsonl"))
    try:
        raise ValueError("two\nlines")
    except ValueError:
        logging.getLogger("asap.server").exception("request %s failed", "mine-1")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(LINE_START)
    fields = json.loads(line)
    assert (fields["level"], fields["message"]) == ("error", "request mine-1 failed")
    assert fields["traceback"].endswith("ValueError: two\nlines")
    assert (tmp_path / "audit.jsonl").read_text() == ""
