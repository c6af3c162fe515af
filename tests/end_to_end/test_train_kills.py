"""Training runs whose processes are killed: they go on from their last checkpoint."""

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
    """Processes below this one whose title holds `name`; those of others on the machine are left alone."""
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
    """Whether it is there, and not only as what nobody has waited for yet."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


HEARD_OF = "out/ray_train/checkpoint_manager_snapshot.json"
"""Ray Train goes on from what its controller has heard of, a second or so after a checkpoint's folder is there."""


@pytest.mark.chaos
def test_a_killed_worker_goes_on_from_its_last_checkpoint(ray_here: None, corpus: Path, tmp_path: Path) -> None:
    killed: list[int] = []
    heard_of = tmp_path / HEARD_OF

    def kill_once(event: dict[str, Any]) -> None:
        if "validation" in event and not killed and heard_of.exists():
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
    assert len(back) <= 1  # none where the worker died between a checkpoint and the next line
    assert all(place > 200 for place in back)


@pytest.mark.chaos
@pytest.mark.slow
def test_a_killed_driver_goes_on_with_the_same_command(corpus: Path, tmp_path: Path) -> None:
    settings = settings_for(corpus, tmp_path / "out", pairs=1600, checkpoint_pairs=200, validation_pairs=1)
    code = (
        "import sys; from jobs.train.settings import TrainSettings; from jobs.train.run import train; "
        "train(TrainSettings.model_validate_json(sys.argv[1]))"
    )
    command = [sys.executable, "-c", code, settings.model_dump_json()]
    progress = RunFolder(tmp_path / "out").progress

    first = subprocess.Popen(command, start_new_session=True)
    try:
        wait_until(lambda: (tmp_path / HEARD_OF).exists() or first.poll() is not None)
        workers = list(children_called("RayTrainWorker"))
        assert workers
    finally:
        with suppress(ProcessLookupError):
            os.killpg(first.pid, signal.SIGKILL)
        first.wait()
    wait_until(lambda: not any(map(is_running, workers)))  # they notice that their driver is gone
    done = progress.read_text().splitlines()
    assert json.loads(done[-1])["pairs"] < 1600
    subprocess.run(command, check=True, timeout=HANG_S)

    lines = [json.loads(line)["pairs"] for line in progress.read_text().splitlines()]
    assert lines[len(done)] > 25 * 8  # not from the start
    assert lines[-1] == 1600
    assert (tmp_path / "out/model/model.safetensors").exists()
