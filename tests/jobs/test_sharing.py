"""The share of a cluster that each job may use."""

from __future__ import annotations

import math
import time

import pytest
import ray

from jobs.sharing import Claim, Claims, Resources, Share, divide_resources, shared
from tests.support.waiting import wait_until

GROWS = {"CPU": math.inf, "GPU": math.inf}
SCAN = Claim({"CPU": 1, "GPU": 0}, {"CPU": math.inf, "GPU": 0})
GPU_SCAN = Claim({"CPU": 0.75, "GPU": 1}, GROWS)


def _shares(total: Resources, *claims: Claim) -> list[tuple[float, float]]:
    return [(round(share["CPU"], 6), share["GPU"]) for share in divide_resources(total, claims)]


def test_one_job_has_everything_that_it_can_use() -> None:
    assert _shares({"CPU": 16, "GPU": 2}, GPU_SCAN) == [(16, 2)]
    assert _shares({"CPU": 16, "GPU": 2}, SCAN) == [(16, 0)]


def test_jobs_that_grow_have_equal_shares() -> None:
    assert _shares({"CPU": 16, "GPU": 4}, GPU_SCAN, GPU_SCAN) == [(8, 2), (8, 2)]
    assert _shares({"CPU": 1.5}, *[Claim({"CPU": 0.5}, GROWS)] * 3) == [(0.5, 0)] * 3


def test_an_odd_gpu_goes_whole_to_the_job_that_came_first() -> None:
    assert [gpus for _, gpus in _shares({"CPU": 16, "GPU": 3}, GPU_SCAN, GPU_SCAN)] == [2, 1]


def test_what_a_job_cannot_use_is_divided_among_the_others() -> None:
    endpoint = Claim({"CPU": 0.35}, {"CPU": 2})
    assert _shares({"CPU": 17, "GPU": 2}, endpoint, SCAN, GPU_SCAN) == [(2, 0), (7.5, 0), (7.5, 2)]


def test_a_job_that_needs_more_than_an_equal_share_gets_it_and_no_more() -> None:
    training = Claim({"CPU": 12, "GPU": 3}, {"CPU": 12, "GPU": 3})
    assert _shares({"CPU": 16, "GPU": 4}, GPU_SCAN, training) == [(4, 1), (12, 3)]


def test_a_job_whose_needs_are_not_left_waits_and_takes_nothing_from_the_others() -> None:
    training = Claim({"CPU": 1, "GPU": 2}, {"CPU": 1, "GPU": 2})
    assert _shares({"CPU": 16, "GPU": 2}, GPU_SCAN, training, SCAN) == [(8, 2), (0, 0), (8, 0)]
    assert _shares({"CPU": 16}, GPU_SCAN) == [(0, 0)]


@pytest.mark.parametrize("jobs", [1, 2, 7])
def test_shares_never_exceed_the_machines(jobs: int) -> None:
    shares = _shares({"CPU": 10, "GPU": 5}, *[GPU_SCAN, SCAN] * jobs)
    assert sum(cpus for cpus, _ in shares) <= 10 + 1e-4
    assert sum(gpus for _, gpus in shares) <= 5


def test_a_claim_that_is_not_renewed_expires(monkeypatch: pytest.MonkeyPatch) -> None:
    claims = Claims()
    assert claims.claim("a", SCAN, {"CPU": 4})[1] == 1
    share, jobs = claims.claim("b", SCAN, {"CPU": 4})
    assert (round(share["CPU"], 6), jobs) == (2, 2)
    now = time.monotonic()
    monkeypatch.setattr("time.monotonic", lambda: now + 60)
    assert claims.claim("b", SCAN, {"CPU": 4}) == ({"CPU": 4, "GPU": 0}, 1)
    claims.release("b")
    claims.release("never there")


def test_a_share_follows_the_claims_of_other_jobs_and_outlives_the_actor_that_holds_them(ray_here: None) -> None:
    with shared(SCAN) as share:
        assert (share.resources["CPU"], share.jobs) == (2, 1)
        other = ray.get_actor("claims", "asap")
        ray.get(other.claim.remote("another", SCAN, {"CPU": 2}))
        wait_until(lambda: (round(share.resources["CPU"], 6), share.jobs) == (1, 2))
        ray.kill(other)
        wait_until(lambda: (share.resources["CPU"], share.jobs) == (2, 1))


def test_a_share_without_an_answer_is_the_whole_cluster(ray_here: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ray.exceptions.GetTimeoutError("no answer")

    monkeypatch.setattr("jobs.sharing._start_registry", fail)
    share = Share(SCAN)
    assert share.resources["CPU"] == 2
    share.close()
