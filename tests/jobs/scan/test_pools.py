"""The pools of a pipeline on a cluster: their claim, and the actors that they have too many."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from jobs.scan.pipeline import StageResources
from jobs.scan.pools import claim_of, surplus_actors

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
