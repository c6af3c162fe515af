"""A scan whose driver or raylet is killed, or whose store fails often, loses nothing."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from asap.finding import Pair
from asap.storage.files import list_files, read_bytes
from asap.storage.location import Location
from tests.support.familiar import make_familiar
from tests.support.faulty_store import Fault, FaultyStore, Request
from tests.support.waiting import HANG_S, wait_until

ROWS = 300
TEXT = "Angry workers leave the factory"
SCAN = """
import json, sys
from jobs.scan.run import scan
from jobs.scan.settings import ScanSettings
print(json.dumps(scan(ScanSettings(**json.loads(sys.argv[1])))))
"""


@pytest.fixture
def settings(tmp_path: Path, jpeg: Callable[..., bytes], model_folder: Path) -> dict[str, object]:
    """Return the settings of a scan of many pairs in small batches, some of them without their picture."""
    for number in range(20):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(number))
    lines = [json.dumps({"id": str(row), "image": f"{row % 21}.jpg", "text": TEXT}) for row in range(ROWS)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    return {
        "input": str(tmp_path / "pairs.jsonl"), "out": str(tmp_path / "out"), "model": str(model_folder),
        "device": "cpu", "batch_size": 5, "rows_per_file": 5, "heartbeat_s": 0.5, "stale_after_s": 4,
    }  # fmt: skip


def _start(settings: dict[str, object]) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", SCAN, json.dumps(settings)], stdout=subprocess.PIPE, text=True)


def _result_files(folder: Path) -> list[Path]:
    return list((folder / "results").glob("*.parquet"))


@pytest.mark.chaos
@pytest.mark.drill
def test_a_scan_whose_driver_is_killed_during_its_sample_ends_with_every_row_once(
    settings: dict[str, object], tmp_path: Path
) -> None:
    model = Path(shutil.copytree(str(settings["model"]), tmp_path / "model"))
    make_familiar(model, [Pair(tmp_path / f"{number}.jpg", TEXT) for number in range(20)])
    settings |= {"model": str(model)}
    folder = Path(str(settings["out"])) / "pairs"
    first = _start(settings)
    wait_until(lambda: len(_result_files(folder)) >= 5, process=first, every_s=0.005)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    assert "sample" not in json.loads((folder / "job.json").read_text())

    second = _start(settings)
    output, _ = second.communicate(timeout=HANG_S)
    assert second.returncode == 0
    rows = [row for path in _result_files(folder) for row in pq.read_table(path).to_pylist()]
    assert Counter(row["row_id"] for row in rows) == Counter(range(ROWS))
    record = json.loads((folder / "job.json").read_text())
    assert (record["state"], record["runs"]) == ("completed", 2)
    assert record["sample"]["judged"] == 200
    assert json.loads(output)["unfamiliar"] == sum(row["verdict"] == "unfamiliar" for row in rows)
    assert not (folder / "_sample").exists()


@pytest.mark.chaos
def test_a_scan_whose_driver_is_killed_ends_with_every_row_once(settings: dict[str, object]) -> None:
    folder = Path(str(settings["out"])) / "pairs"
    first = _start(settings)
    wait_until(lambda: len(_result_files(folder)) >= 10, process=first, every_s=0.005)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    record = json.loads((folder / "job.json").read_text())
    assert record["state"] == "running"
    assert not (folder / "_SUCCESS").exists()

    second = _start(settings)
    output, _ = second.communicate(timeout=HANG_S)
    assert second.returncode == 0

    rows = [row for path in _result_files(folder) for row in pq.read_table(path).to_pylist()]
    assert Counter(row["row_id"] for row in rows) == Counter(range(ROWS))
    missing = {row["row_id"] for row in rows if row["error_code"] == "not_found"}
    assert missing == {row for row in range(ROWS) if row % 21 == 20}
    summary = json.loads(output)
    assert (summary["pairs"], summary["errors"]) == (ROWS, len(missing))
    assert (folder / "_SUCCESS").exists()
    assert not (folder / "_remaining").exists()
    record = json.loads((folder / "job.json").read_text())
    assert (record["state"], record["runs"]) == ("completed", 2)
    assert len(list((folder / "manifest").iterdir())) == 1


# Drills: they take minutes.


def _scores(rows: list[dict[str, Any]]) -> dict[int, tuple[str | None, float | None]]:
    """Return the error code and the score of each row, which must be there once."""
    assert Counter(row["row_id"] for row in rows) == Counter(range(ROWS))
    return {row["row_id"]: (row["error_code"], row["score"]) for row in rows}


def _rows(folder: Path) -> list[dict[str, Any]]:
    return [row for path in _result_files(folder) for row in pq.read_table(path).to_pylist()]


def _run_to_the_end(settings: dict[str, object]) -> None:
    process = _start(settings)
    process.communicate(timeout=HANG_S)
    assert process.returncode == 0


def _check_same(
    found: dict[int, tuple[str | None, float | None]], undisturbed: dict[int, tuple[str | None, float | None]]
) -> None:
    assert {row: code for row, (code, _) in found.items()} == {row: code for row, (code, _) in undisturbed.items()}
    for row, (_, score) in found.items():
        assert score == pytest.approx(undisturbed[row][1], abs=1e-6)


@pytest.fixture
def undisturbed(settings: dict[str, object]) -> dict[int, tuple[str | None, float | None]]:
    """Return the scores of a scan that nothing disturbs."""
    _run_to_the_end(settings | {"job": "undisturbed"})
    return _scores(_rows(Path(str(settings["out"])) / "undisturbed"))


@pytest.mark.drill
def test_a_scan_whose_driver_is_killed_ten_times_ends_with_every_row_as_undisturbed(
    settings: dict[str, object], undisturbed: dict[int, tuple[str | None, float | None]]
) -> None:
    folder = Path(str(settings["out"])) / "pairs"
    moments, kept = random.Random(15), 0
    for _ in range(10):
        process = _start(settings)
        # Some moments are before the first row, some are while rows are written.
        if moments.random() < 0.4:
            time.sleep(moments.uniform(0, 8))
        else:
            wait_until(lambda kept=kept: len(_result_files(folder)) > kept, process=process, every_s=0.005)
            time.sleep(moments.uniform(0, 0.3))
        process.kill()
        process.wait()
        now = len(_result_files(folder))
        assert now >= kept, "what was written is kept"
        kept = now
    assert not (folder / "_SUCCESS").exists()
    _run_to_the_end(settings)
    _check_same(_scores(_rows(folder)), undisturbed)
    assert json.loads((folder / "job.json").read_text())["state"] == "completed"


def _child(parent: int, words: str) -> int:
    """Return the id of the child process whose command line has these words."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # processes end at any time
            is_child = stat.read_text().rpartition(")")[2].split()[1] == str(parent)
            if is_child and words.encode() in stat.with_name("cmdline").read_bytes():
                return int(stat.parent.name)
    raise AssertionError(f"process {parent} has no child {words}")


@pytest.mark.drill
def test_a_scan_whose_raylet_is_killed_says_so_and_goes_on_with_the_same_command(
    settings: dict[str, object], undisturbed: dict[int, tuple[str | None, float | None]]
) -> None:
    folder = Path(str(settings["out"])) / "pairs"
    process = _start(settings)
    wait_until(lambda: len(_result_files(folder)) >= 5, process=process, every_s=0.005)
    os.kill(_child(process.pid, "/raylet/raylet"), signal.SIGKILL)
    process.communicate(timeout=HANG_S)
    assert process.returncode != 0
    assert not (folder / "_SUCCESS").exists()
    _run_to_the_end(settings)
    _check_same(_scores(_rows(folder)), undisturbed)


@pytest.mark.drill
def test_a_scan_at_a_store_that_fails_a_tenth_of_all_requests_has_every_row_as_undisturbed(
    settings: dict[str, object], undisturbed: dict[int, tuple[str | None, float | None]], faulty: FaultyStore,
    bucket: str, tmp_path: Path,
) -> None:  # fmt: skip
    client = boto3.client("s3")
    for path in [*tmp_path.glob("*.jpg"), tmp_path / "pairs.jsonl"]:
        client.upload_file(str(path), bucket, f"in/{path.name}")
    chances, kinds = random.Random(15), Counter[str]()

    def fail_a_tenth(request: Request) -> Fault | None:
        if chances.random() >= 0.1:
            return None
        kind = chances.choice(["500", "503", "reset", "cut", "500", "503", "reset", "cut", "stall"])
        kinds[kind] += 1
        return {
            "500": Fault(status=500), "503": Fault(status=503, code="SlowDown"), "reset": Fault(reset=True),
            "cut": Fault(keep=100), "stall": Fault(stall=True),
        }[kind]  # fmt: skip

    faulty.rule = fail_a_tenth
    out = f"s3://{bucket}/out"
    # An object of results is written again and again as it grows, so there are many requests.
    changes = {"input": f"s3://{bucket}/in/pairs.jsonl", "out": out, "write_every_s": 1, "rows_per_file": 100}
    _run_to_the_end(settings | changes)
    faulty.rule = lambda request: None
    assert set(kinds) == {"500", "503", "reset", "cut", "stall"}
    found = []
    for info in list_files(Location(f"{out}/pairs/results")):
        found += pq.read_table(pa.BufferReader(read_bytes(info.location))).to_pylist()
    _check_same(_scores(found), undisturbed)
    assert json.loads(read_bytes(Location(f"{out}/pairs/job.json")))["state"] == "completed"
