"""The check of a scan whose arguments strangers chose, and the command that runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from asap.storage.location import Location
from asap.submission.entrypoint import ARGUMENTS, REQUESTED_COMMAND
from jobs.cli.requested import check
from tests.support.job_folders import write_scan
from tests.support.serving import encoded
from tests.support.waiting import HANG_S

REQUESTED = [sys.executable, "-P", "-m", "jobs.cli.requested"]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    (tmp_path / "a.png").write_bytes(encoded())
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps({"image": "a.png", "text": "A smiling minister opens the bridge"}))
    return pairs


def _arguments(pairs: Path, *more: str) -> list[str]:
    return ["scan", f"--out={pairs.parent / 'out'}", "--device=cpu", *more, "--", str(pairs)]


def test_a_scan_that_would_start_has_its_folder_and_writes_nothing(pairs: Path) -> None:
    assert check(_arguments(pairs)) == {"folder": str(pairs.parent / "out/pairs"), "state": "new"}
    assert not (pairs.parent / "out").exists()


@pytest.mark.parametrize(
    ("more", "sentence", "code"),
    [
        (["--limit=x"], "Invalid value for '--limit'", 2), (["--model=/nowhere"], "/nowhere", 1),
        (["--text-column=nowhere"], "nowhere", 1), (["--caption-engine=transformers"], "--captioner is missing", 1),
        (["--batch-size=0"], "batch_size", 1),
    ],
)  # fmt: skip
def test_a_scan_that_would_be_refused_has_the_sentence_and_the_exit_code(
    pairs: Path, more: list[str], sentence: str, code: int
) -> None:
    found = check(_arguments(pairs, *more))
    assert sentence in found["error"]
    assert found["exit_code"] == code


def test_a_folder_of_another_job_is_refused_as_by_the_command(pairs: Path) -> None:
    write_scan(Location(str(pairs.parent / "out/pairs")), state="cancelled", identity={"settings": {"limit": 3}})
    assert "belongs to another job" in check(_arguments(pairs))["error"]


@pytest.mark.parametrize("mode", ["check", "run"])
def test_as_a_program_it_ends_as_the_command_does(pairs: Path, mode: str) -> None:
    arguments = json.dumps(_arguments(pairs.parent / "none.jsonl"))
    sent: dict[str, Any] = {"input": arguments} if mode == "check" else {"env": os.environ | {ARGUMENTS: arguments}}
    command = [*REQUESTED, "check"] if mode == "check" else REQUESTED
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S, **sent)
    if mode == "check":
        assert json.loads(done.stdout)["exit_code"] == 1
    else:
        assert done.returncode == 1
        assert "asap: " in done.stderr
        assert "none.jsonl is not there" in done.stderr.replace("\n", " ")


def test_the_command_line_of_a_requested_job_has_no_place_for_what_a_caller_sent() -> None:
    assert REQUESTED_COMMAND.endswith('exec "$python" -P -m jobs.cli.requested')
