"""A job of annotations whose driver is killed goes on with every row once, and asks for nothing that is written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.support.endpoint import Handler, completion, endpoint
from tests.support.waiting import HANG_S, wait_until

ROWS, TEXTS = 120, 40
ANNOTATE = """
import json, sys
from jobs.annotate.run import annotate
from jobs.annotate.settings import AnnotateSettings
print(json.dumps(annotate(AnnotateSettings(**json.loads(sys.argv[1])))))
"""


def _start(settings: dict[str, Any]) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", ANNOTATE, json.dumps(settings)], stdout=subprocess.PIPE, text=True)


def _settings(tmp_path: Path, address: str) -> dict[str, Any]:
    lines = [json.dumps({"id": str(row), "image": "0.jpg", "text": f"text {row % TEXTS}"}) for row in range(ROWS)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    way = {"address": address, "key_env": None, "timeout_s": HANG_S, "deadline_s": HANG_S, "concurrency": 2}
    return {
        "input": str(tmp_path / "pairs.jsonl"), "out": str(tmp_path / "out"),
        "explanations": {"engine": "openai", "source": "tiny", "endpoint": way},
        "batch_size": 4, "rows_per_file": 4, "write_every_s": 0.2, "heartbeat_s": 0.5, "stale_after_s": 4,
    }  # fmt: skip


def _rows(folder: Path) -> list[dict[str, Any]]:
    return [row for path in (folder / "annotations").glob("*.parquet") for row in pq.read_table(path).to_pylist()]


@pytest.mark.chaos
def test_a_job_whose_driver_is_killed_asks_for_nothing_that_is_written(
    tmp_path: Path, jpeg: Callable[..., bytes]
) -> None:
    (tmp_path / "0.jpg").write_bytes(jpeg(0))
    asked: Counter[str] = Counter()

    def answer(handler: Handler, body: dict[str, Any]) -> None:
        with handler.server.lock:
            asked[body["messages"][0]["content"].rpartition(': "')[2]] += 1
        handler.send(200, json.dumps(completion("it is so")))

    with endpoint(answer) as (address, _):
        settings, folder = _settings(tmp_path, address), tmp_path / "out"
        first = _start(settings)
        wait_until(lambda: len(list(folder.glob("annotations/*.parquet"))) >= 3, process=first, every_s=0.005)
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
        written = {row["text"] for row in _rows(folder)}
        before = Counter(asked)
        assert not (folder / "_SUCCESS").exists()

        second = _start(settings)
        output, _ = second.communicate(timeout=HANG_S)
    assert second.returncode == 0
    rows = _rows(folder)
    assert Counter(row["row_id"] for row in rows) == Counter(range(ROWS))
    assert all(row["explanation"] == "it is so" for row in rows)
    again = {text for text, count in asked.items() if count > before[text]}
    assert not {f'{text}"' for text in written} & again
    assert json.loads(output)["explanations"]["described"] == ROWS
    assert (folder / "_SUCCESS").exists()
    record = json.loads((folder / "job.json").read_text())
    assert (record["state"], record["runs"]) == ("completed", 2)
