"""Pools that follow a cluster: machines that join and leave during a scan, a head without CPUs, several jobs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster

from tests.support.autoscaling import autoscaling_cluster
from tests.support.sleeping import end_scan, hurry, rows_by_machine, sleeping_settings, start_sleeping
from tests.support.waiting import wait_until

ROWS = 1200
MEMORY = 100 * 2**20


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A cluster of one head without CPUs, to which machines are added."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": MEMORY})
    yield cluster
    cluster.shutdown()


def _machine(cluster: Cluster, cpus: int, gpus: int = 0) -> Any:
    return cluster.add_node(num_cpus=cpus, num_gpus=gpus, object_store_memory=MEMORY)


def _check(settings: dict[str, Any], summary: dict[str, Any], rows: int) -> None:
    assert (summary["pairs"], summary["errors"]) == (rows, 0)
    assert sum(rows_by_machine(settings).values()) == rows


@pytest.mark.chaos
@pytest.mark.drill
def test_a_machine_that_joins_gets_detectors_and_one_that_leaves_loses_no_row(
    cluster: Cluster, tmp_path: Path, jpeg: Callable[..., bytes], model_folder: Path
) -> None:
    settings = sleeping_settings(
        tmp_path / "a", jpeg, model_folder, ROWS, address=cluster.address, device="cpu", wait_for_machines_s=900
    )
    first = _machine(cluster, 1)
    driver = start_sleeping(settings)
    try:
        wait_until(lambda: first.node_id in rows_by_machine(settings), process=driver)
        late = _machine(cluster, 2)
        wait_until(lambda: late.node_id in rows_by_machine(settings), process=driver)
        cluster.remove_node(first, allow_graceful=False)
        before = rows_by_machine(settings)[late.node_id]
        wait_until(lambda: rows_by_machine(settings)[late.node_id] > before + 8, process=driver)
        hurry(settings)
        _check(settings, end_scan(driver), ROWS)
        # No detector ran on the head. What prepares asks for CPUs too.
        assert rows_by_machine(settings).keys() == {first.node_id, late.node_id}
    finally:
        driver.kill()
        driver.wait()


@pytest.mark.drill
@pytest.mark.parametrize("gpus", [0, 2])
def test_a_second_job_gets_its_share_of_machines_that_the_first_one_fills(
    cluster: Cluster, tmp_path: Path, jpeg: Callable[..., bytes], model_folder: Path, gpus: int
) -> None:
    _machine(cluster, 4, gpus)
    common = {"address": cluster.address, "device": "cuda" if gpus else "cpu", "wait_for_machines_s": 900}
    one = sleeping_settings(tmp_path / "a", jpeg, model_folder, ROWS, **common, batch_size=4)
    two = sleeping_settings(tmp_path / "b", jpeg, model_folder, 400, **common, batch_size=4)
    drivers = [start_sleeping(one)]
    try:
        wait_until(lambda: sum(rows_by_machine(one).values()) > 40, process=drivers[0])
        drivers.append(start_sleeping(two))
        wait_until(lambda: sum(rows_by_machine(two).values()) > 40, process=drivers[1])
        before = sum(rows_by_machine(one).values())
        wait_until(lambda: sum(rows_by_machine(one).values()) > before + 40, process=drivers[0])
        assert drivers[1].poll() is None, "both were at work"
        hurry(two)
        _check(two, end_scan(drivers[1]), 400)
        hurry(one)
        _check(one, end_scan(drivers[0]), ROWS)
    finally:
        for driver in drivers:
            driver.kill()
            driver.wait()


@pytest.mark.drill
def test_a_scan_goes_from_no_gpu_machine_to_two_and_the_machines_go_again(
    tmp_path: Path, jpeg: Callable[..., bytes], model_folder: Path
) -> None:
    types = {
        "cpu": {"resources": {"CPU": 1}, "max_workers": 1},
        "gpu": {"resources": {"CPU": 2, "GPU": 1}, "max_workers": 2},
    }
    with autoscaling_cluster(types, idle_s=10) as address:
        settings = sleeping_settings(
            tmp_path / "a", jpeg, model_folder, ROWS, address=address, device="cuda", wait_for_machines_s=900
        )
        driver = start_sleeping(settings)
        try:
            wait_until(lambda: len(rows_by_machine(settings)) == 2, process=driver)
            hurry(settings)
            _check(settings, end_scan(driver), ROWS)
        finally:
            driver.kill()
            driver.wait()
        wait_until(lambda: _alive(address) == 1, every_s=2)  # only the head is left


def _alive(address: str) -> int:
    from ray._raylet import GcsClient

    return sum(node.state == 0 for node in GcsClient(address=address).get_all_node_info().values())
