"""Jobs that are stopped: the stop is recorded, what was judged is kept, and the same command goes on."""

import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from asap.storage.location import Location
from jobs.control.follow import cancel_job
from tests.support.small_run import draw_corpus, settings_for
from tests.support.waiting import HANG_S, wait_until

ROWS = 1200  # so many that three stops come before the end on a fast machine
STOP_AGAIN = """
import os
import jobs.stops
from ray._private.node import Node

def stop_again(*arguments, **options):
    os.kill(os.getpid(), signal.SIGTERM)
    end_processes(*arguments, **options)

end_processes, Node.kill_all_processes = Node.kill_all_processes, stop_again
jobs.stops._DEAF_S = 0
"""
"""Sends a second signal while Ray ends, after it has reset the handlers."""


def record_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "job.json").read_text()))


def rows_of(folder: Path) -> Counter[int]:
    return Counter(
        row for path in (folder / "results").glob("*.parquet") for row in pq.read_table(path)["row_id"].to_pylist()
    )


def start(*words: object, change: str = "") -> subprocess.Popen[str]:
    code = (
        "import signal\n"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
        f"{change}\n"
        "from jobs.cli.app import main\n"
        "main()\n"
    )
    command = [sys.executable, "-c", code, *map(str, words)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.mark.chaos
def test_a_scan_that_is_stopped_by_a_signal_or_the_cancel_file_keeps_all_that_it_judged(
    tmp_path: Path, jpeg: Callable[..., bytes], model_folder: Path
) -> None:
    for number in range(20):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(number))
    text = "Angry workers leave the factory"
    lines = [json.dumps({"id": str(row), "image": f"{row % 20}.jpg", "text": text}) for row in range(ROWS)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    scan = ("scan", tmp_path / "pairs.jsonl", "--out", tmp_path / "out", "--model", model_folder, "--device", "cpu",
            "--batch-size", 2)  # fmt: skip
    folder = tmp_path / "out" / "pairs"
    stops: list[tuple[Callable[[int], object], str]] = [
        (lambda pid: os.kill(pid, signal.SIGTERM), STOP_AGAIN),
        (lambda pid: (folder / "_cancel").write_text("{}"), ""),
        (lambda pid: os.kill(pid, signal.SIGHUP), ""),
    ]
    kept = 0
    for runs, (stop, change) in enumerate(stops, start=1):
        process = start(*scan, change=change)

        def has_judged(runs: int = runs, kept: int = kept) -> bool:
            record = record_of(folder) if (folder / "job.json").exists() else {}
            return record.get("runs") == runs and record.get("counts", {}).get("done", 0) > kept

        wait_until(has_judged, process=process)
        judged = record_of(folder)["counts"]["done"]
        stop(process.pid)
        wait_until(lambda: record_of(folder)["state"] == "cancelled")
        _, complaint = process.communicate(timeout=HANG_S)
        assert process.returncode == 130, complaint
        assert "asap: stopped. Finished pairs are kept. Run the same command again to resume." in complaint
        assert "Traceback" not in complaint
        assert not (folder / "_cancel").exists()
        record = record_of(folder)
        assert (record["state"], record["runs"], record["pid"]) == ("cancelled", runs, process.pid)
        # The rows that were counted before the stop are in files, although no file is full.
        assert sum(rows_of(folder).values()) >= judged
        kept = sum(rows_of(folder).values())
    assert kept < ROWS

    last = start(*scan)
    _, complaint = last.communicate(timeout=HANG_S)
    assert last.returncode == 0, complaint
    assert rows_of(folder) == Counter(range(ROWS))
    assert record_of(folder)["state"] == "completed"
    again = start(*scan)
    printed, complaint = again.communicate(timeout=HANG_S)
    assert again.returncode == 0, complaint
    assert "the job is finished, so nothing is scanned again" in printed


@pytest.mark.chaos
def test_a_training_run_that_is_stopped_says_so_and_goes_on(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    corpus = draw_corpus(tmp_path_factory)
    settings = settings_for(corpus, tmp_path / "run", pairs=1600, checkpoint_pairs=200, device="cpu")
    changes = settings.model_dump(exclude_unset=True, exclude={"corpus", "out", "name"})
    words = [word for name, value in changes.items() for word in ("--set", f"{name}={json.dumps(value)}")]
    train = ("train", corpus, "--out", tmp_path / "run", *words)
    run = tmp_path / "run"

    def last_start() -> dict[str, Any]:
        return dict(json.loads((run / "run.json").read_text())["starts"][-1])

    def size() -> int:
        return (run / "progress.jsonl").stat().st_size if (run / "progress.jsonl").exists() else 0

    stops: list[tuple[Callable[[int], object], str]] = [
        (lambda pid: os.kill(pid, signal.SIGTERM), STOP_AGAIN),
        (lambda pid: os.kill(pid, signal.SIGINT), ""),
        (lambda pid: cancel_job(Location(str(run))), ""),
    ]
    for stop, change in stops:
        process = start(*train, change=change)
        length = size()
        wait_until(lambda length=length: size() > length, process=process)
        stop(process.pid)
        wait_until(lambda: last_start()["state"] == "cancelled")
        _, complaint = process.communicate(timeout=HANG_S)
        assert process.returncode == 130, complaint
        assert re.search(
            r"asap: stopped\. .* kept\. Run the same command again, or `asap resume .*`, to go on\.", complaint
        )
        assert "Traceback" not in complaint
        assert last_start()["pid"] == process.pid
    done = start(*train)
    _, complaint = done.communicate(timeout=HANG_S)
    assert done.returncode == 0, complaint
    assert last_start()["state"] == "completed"
    assert (run / "model" / "model.safetensors").exists()
