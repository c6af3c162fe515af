"""A scan whose driver is killed loses nothing."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from asap.finding import Pair
from tests.support.familiar import make_familiar
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
