"""Training runs whose processes are killed. They resume from their last checkpoint."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from jobs.train.run import train
from jobs.train.run_folder.folder import RunFolder
from tests.support.small_run import draw_corpus, settings_for
from tests.support.waiting import HANG_S, wait_until


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_corpus(tmp_path_factory)


def children_called(name: str) -> Iterator[int]:
    """Yield descendants of this process with `name` in their title; other processes of the machine are left alone."""
    parents: dict[int, int] = {}
    titles: dict[int, str] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            titles[int(entry.name)] = (entry / "cmdline").read_text()
        except OSError:
            continue
    for process, title in titles.items():
        above = process
        while above in parents and above != os.getpid():
            above = parents[above]
        if above == os.getpid() and name in title:
            yield process


def is_running(process: int) -> bool:
    """True if a process exists and is not a zombie."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


SNAPSHOT = "out/ray_train/checkpoint_manager_snapshot.json"
"""The file from which Ray Train resumes. It is written about a second after the folder of a checkpoint."""


@pytest.mark.chaos
def test_a_killed_worker_resumes_from_its_last_checkpoint(ray_here: None, corpus: Path, tmp_path: Path) -> None:
    killed: list[int] = []
    snapshot = tmp_path / SNAPSHOT

    def kill_once(event: dict[str, Any]) -> None:
        if "validation" in event and not killed and snapshot.exists():
            for process in children_called("RayTrainWorker"):
                os.kill(process, signal.SIGKILL)
                killed.append(event["pairs"])

    settings = settings_for(corpus, tmp_path / "out", pairs=1600, checkpoint_pairs=200, validation_pairs=1)
    folder = train(settings, kill_once)

    pairs = [json.loads(line)["pairs"] for line in RunFolder(tmp_path / "out").progress.read_text().splitlines()]
    assert (folder / "model.safetensors").exists()
    assert len(killed) == 1
    assert pairs[-1] == 1600
    back = [after for before, after in pairwise(pairs) if after < before]
    assert len(back) <= 1  # none if the worker died between a checkpoint and the next line
    assert all(position > 200 for position in back)


@pytest.mark.chaos
@pytest.mark.slow
def test_a_killed_driver_resumes_with_the_same_command(corpus: Path, tmp_path: Path) -> None:
    settings = settings_for(corpus, tmp_path / "out", pairs=1600, checkpoint_pairs=200, validation_pairs=1)
    code = (
        "import sys; from jobs.train.settings import TrainSettings; from jobs.train.run import train; "
        "train(TrainSettings.model_validate_json(sys.argv[1]))"
    )
    command = [sys.executable, "-c", code, settings.model_dump_json()]
    progress = RunFolder(tmp_path / "out").progress

    first = subprocess.Popen(command, start_new_session=True)
    try:
        wait_until(lambda: (tmp_path / SNAPSHOT).exists() or first.poll() is not None)
        workers = list(children_called("RayTrainWorker"))
        assert workers
    finally:
        with suppress(ProcessLookupError):
            os.killpg(first.pid, signal.SIGKILL)
        first.wait()
    wait_until(lambda: not any(map(is_running, workers)))  # workers end when they notice that their driver has died
    done = progress.read_text().splitlines()
    assert json.loads(done[-1])["pairs"] < 1600
    subprocess.run(command, check=True, timeout=HANG_S)

    lines = [json.loads(line)["pairs"] for line in progress.read_text().splitlines()]
    assert lines[len(done)] > 25 * 8  # resumed, and not from the start
    assert lines[-1] == 1600
    assert (tmp_path / "out/model/model.safetensors").exists()
