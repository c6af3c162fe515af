"""The pools of a pipeline on a cluster: their claim, and the actors that they have too many."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
import ray
from ray.data import ActorPoolStrategy
from ray.data._internal.actor_autoscaler.autoscaling_actor_pool import AutoscalingActorConfig
from ray.data._internal.datasource.range_datasource import RangeDatasource
from ray.data._internal.execution.interfaces import ExecutionResources
from ray.data._internal.execution.operators.actor_pool_map_operator import _ActorState, _NodeAwareActorPool

from jobs.scan.pipeline import StageResources
from jobs.scan.pools import _hold_back, claim_of, is_preparing, pools_following, surplus_actors
from jobs.sharing import Claim
from jobs.stops import in_background
from tests.support.waiting import wait_until

PREPARE = StageResources(0.25)


def test_a_pipeline_needs_one_of_each_and_can_use_everything() -> None:
    claim = claim_of(PREPARE, [StageResources(0.1, 0.5), StageResources(0.5, 0.5)])
    assert (claim.needs, claim.most) == ({"CPU": 0.85, "GPU": 1}, {"CPU": float("inf"), "GPU": float("inf")})


def test_a_pipeline_of_fixed_pools_needs_all_of_them_and_no_gpu_that_it_cannot_use() -> None:
    claim = claim_of(StageResources(0.25, size=4), [StageResources(0.5, size=2)])
    assert (claim.needs, claim.most) == ({"CPU": 1.25, "GPU": 0}, {"CPU": 2, "GPU": 0})


class _Pool(SimpleNamespace):
    def current_size(self) -> int:
        return int(self.size)

    def min_size(self) -> int:
        return int(self.least)

    def per_actor_resource_usage(self) -> Any:
        return SimpleNamespace(cpu=self.cpus, gpu=self.gpus)


def _pool(size: int, cpus: float = 0.5, gpus: float | None = None, least: int = 1) -> _Pool:
    return _Pool(size=size, cpus=cpus, gpus=gpus, least=least)


@pytest.mark.parametrize(
    ("pools", "share", "surplus"),
    [
        ([_pool(4, gpus=1)], {"CPU": 16, "GPU": 4}, [0]),
        ([_pool(4, gpus=1)], {"CPU": 16, "GPU": 2}, [2]),
        ([_pool(4, gpus=1)], {"CPU": 16, "GPU": 0}, [3]),  # one stays
        ([_pool(4, gpus=1, least=4)], {"CPU": 16, "GPU": 2}, [0]),  # the user gave their number
        ([_pool(4, cpus=0.75)], {"CPU": 3}, [1]),  # a task needs a quarter
        ([_pool(3, 0.1, 0.5), _pool(5, 0.5, 0.5)], {"CPU": 16, "GPU": 3}, [0, 2]),  # the larger pool gives first
        ([_pool(1, 0.1), _pool(8, 0.5, 1)], {"CPU": 16, "GPU": 6}, [0, 2]),  # an endpoint holds no GPU
        ([], {"CPU": 1}, []),
    ],
)
def test_actors_beyond_the_share_are_surplus(pools: list[Any], share: dict[str, float], surplus: list[int]) -> None:
    assert surplus_actors(pools, share, 0.25) == surplus


def test_the_first_stage_needs_its_cpu_until_what_comes_before_the_pools_has_ended() -> None:
    def operator(pools: list[Any], *, is_finished: bool) -> Any:
        return SimpleNamespace(get_autoscaling_actor_pools=lambda: pools, has_execution_finished=lambda: is_finished)

    detect = operator([_pool(4)], is_finished=False)
    source, reading, read = (operator([], is_finished=finished) for finished in (True, False, True))
    assert is_preparing([source, reading, detect])
    assert not is_preparing([source, read, detect, reading])
    assert not is_preparing([detect])


def _pool_of_ray(**actors: bool) -> Any:
    """Return a pool of Ray Data with these actors, in their order; True: its machine was lost."""
    config = AutoscalingActorConfig(1, 9, 1, 2, 1, ExecutionResources(cpu=1))
    pool = _NodeAwareActorPool(lambda *_: pytest.fail("it grew"), config)
    for name, is_restarting in actors.items():
        pool._running_actors[name] = _ActorState(1, "node", is_restarting)
        if not is_restarting:
            pool._alive_actors_to_in_flight_tasks_heap[name] = 1
            pool._alive_node_to_actor_heap["node"][name] = 1
    return pool


def test_an_actor_that_is_held_back_gets_no_batch_and_the_newest_is_first() -> None:
    pool = _pool_of_ray(old=False, new=False)
    _hold_back(pool, 1)
    assert pool.select_actors() == "old"
    assert list(pool._alive_node_to_actor_heap["node"]) == ["old"]
    _hold_back(pool, 0)
    assert pool.select_actors() == "old"


def test_an_actor_whose_machine_was_lost_counts_as_held_back() -> None:
    pool = _pool_of_ray(old=True, new=False)
    _hold_back(pool, 1)
    assert pool.select_actors() == "new"


class _Seen:
    def __init__(self) -> None:
        self._processes: list[int] = []

    def add(self, process: int) -> None:
        self._processes.append(process)

    def last(self, number: int) -> list[int]:
        return self._processes[-number:]


class _Sleeper:
    def __init__(self, seen: Any) -> None:
        self._seen = seen

    def __call__(self, batch: pa.Table) -> pa.Table:
        time.sleep(0.02)
        ray.get(self._seen.add.remote(os.getpid()))
        return batch


@pytest.mark.slow
def test_a_busy_pool_shrinks_when_another_job_comes_and_grows_when_it_goes(ray_here: None) -> None:
    seen = ray.remote(num_cpus=0)(_Seen).remote()
    pool = ActorPoolStrategy(min_size=1, max_size=4)

    def processes() -> int:
        return len(set(ray.get(seen.last.remote(30))))

    own = Claim({"CPU": 0.4}, {"CPU": math.inf})
    with pools_following(own, 0.1):
        numbers = RangeDatasource(200_000, column_name="id")
        dataset = ray.data.read_datasource(numbers, num_cpus=0.1, override_num_blocks=5_000).map_batches(
            _Sleeper, fn_constructor_args=[seen], compute=pool, num_cpus=0.3, batch_size=None, batch_format="pyarrow"
        )

        def execute(is_stopped: threading.Event) -> None:
            for _ in dataset.iter_internal_ref_bundles():
                if is_stopped.is_set():
                    return

        with in_background(execute):
            _check_that_it_follows(processes)


def _check_that_it_follows(processes: Callable[[], int]) -> None:
    wait_until(lambda: processes() == 4)
    claims = ray.get_actor("claims", "asap")
    rest = Claim({"CPU": 1.4}, {"CPU": 1.4})

    def is_alone() -> bool:
        ray.get(claims.claim.remote("another", rest))
        return processes() == 1

    wait_until(is_alone)
    ray.get(claims.release.remote("another"))
    wait_until(lambda: processes() > 2)
