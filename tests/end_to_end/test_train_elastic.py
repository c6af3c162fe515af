"""Training on a cluster that loses a machine and gets another one."""

import json
import subprocess
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster

from jobs.train.run_folder.folder import RunFolder
from tests.support.small_run import draw_corpus, settings_for
from tests.support.waiting import wait_until

CODE = (
    "import sys; from jobs.train.settings import TrainSettings; from jobs.train.run import train; "
    "train(TrainSettings.model_validate_json(sys.argv[1]))"
)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A cluster of one head without CPUs, to which machines are added."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 100 * 2**20})
    yield cluster
    cluster.shutdown()


def add_machine(cluster: Cluster) -> Any:
    return cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20)


def worker_counts(folder: RunFolder) -> list[int]:
    """Return the numbers of workers that trained, in order."""
    lines = folder.progress.read_text().splitlines() if folder.progress.exists() else []
    return [workers for workers, _ in groupby(json.loads(line)["workers"] for line in lines)]


@pytest.mark.chaos
@pytest.mark.drill
def test_a_run_continues_with_fewer_workers_and_grows_back(
    cluster: Cluster, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    corpus = draw_corpus(tmp_path_factory)
    _, lost = add_machine(cluster), add_machine(cluster)
    settings = settings_for(
        corpus, tmp_path / "out", pairs=40_000, checkpoint_pairs=400, validation_pairs=1, workers=2, min_workers=1,
        regrow_every_s=5, address=cluster.address,
    )  # fmt: skip
    folder = RunFolder(tmp_path / "out")
    driver = subprocess.Popen([sys.executable, "-c", CODE, settings.model_dump_json()])
    try:
        wait_until((tmp_path / "out/ray_train/checkpoint_manager_snapshot.json").exists, process=driver)
        cluster.remove_node(lost, allow_graceful=False)
        wait_until(lambda: worker_counts(folder) == [2, 1], process=driver)
        add_machine(cluster)
        wait_until(lambda: worker_counts(folder) == [2, 1, 2], process=driver)
    finally:
        driver.kill()
        driver.wait()
