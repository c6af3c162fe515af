"""The share of a cluster that each job may use."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from jobs.machine_use import Machine, look_at_machines
from jobs.packing import Left, Packing, Resources
from jobs.sharing import NOTHING, Claim, Claims, Share, divide_resources, divisible, held_share, shared
from tests.support.waiting import wait_until

GROWS = {"CPU": math.inf, "GPU": math.inf}
SCAN = Claim({"CPU": 1, "GPU": 0}, {"CPU": math.inf, "GPU": 0})
GPU_SCAN = Claim({"CPU": 0.75, "GPU": 1}, GROWS)


def _shares(machines: Resources | list[Resources], *claims: Claim) -> list[tuple[float, float]]:
    one_or_more = machines if isinstance(machines, list) else [machines]
    return _divided(Packing(map(Left.of, one_or_more)), *claims)


def _divided(machines: Packing, *claims: Claim) -> list[tuple[float, float]]:
    return [(round(share["CPU"], 6), share["GPU"]) for share in divide_resources(machines, claims)]


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


def test_a_job_at_work_whose_needs_do_not_fit_after_a_loss_gets_what_is_left_of_them() -> None:
    four = [{"CPU": 0.5, "GPU": 1}] * 4 + [{"CPU": 0.25}]
    fixed = Claim.of_workers(four, is_at_work=True)
    waits = Claim.of_workers(four, is_at_work=False)
    assert _shares({"CPU": 16, "GPU": 3}, fixed) == [(2.25, 3)]
    assert _shares({"CPU": 16, "GPU": 3}, waits, fixed) == [(0, 0), (2.25, 3)]
    # Those whose needs fit come first.
    assert _shares({"CPU": 16, "GPU": 3}, fixed, GPU_SCAN, waits) == [(2.25, 2), (13.75, 1), (0, 0)]
    assert _shares({"CPU": 1, "GPU": 0}, fixed, SCAN) == [(0, 0), (1, 0)]


def test_a_share_is_promised_only_if_each_worker_finds_a_machine() -> None:
    small = [{"CPU": 2}] * 4
    waits = Claim.of_workers([{"CPU": 4}] * 2, is_at_work=False)
    # In sums there is room, and nobody gives anything up for a job that fits nowhere.
    assert _shares(small, SCAN, waits) == [(8, 0), (0, 0)]
    assert _shares([*small, {"CPU": 8}], SCAN, waits) == [(8, 0), (8, 0)]
    # The scan gets the small machine, so that the large ones hold the workers.
    assert _shares([{"CPU": 4}, {"CPU": 2}, {"CPU": 4}], SCAN, waits) == [(2, 0), (8, 0)]
    # At work, those workers are promised that still fit.
    at_work = Claim.of_workers([{"CPU": 4, "GPU": 1}] * 2, is_at_work=True)
    assert _shares([{"CPU": 2, "GPU": 2}, {"CPU": 5, "GPU": 1}], at_work, SCAN) == [(4, 1), (3, 0)]


def test_halves_of_two_gpus_are_no_gpu() -> None:
    part = Claim.of_workers([{"GPU": 0.6}], is_at_work=True)
    two_gpus = {"CPU": 8, "GPU": 2}
    assert [gpus for _, gpus in _shares(two_gpus, part, part, part)] == [0.6, 0.6, 0]
    whole = Claim.of_workers([{"GPU": 1}], is_at_work=False)
    assert [gpus for _, gpus in _shares(two_gpus, part, part, whole)] == [0.6, 0.6, 0]
    # What grows gets whole GPUs, and the rests of two are none.
    grows = Claim({"GPU": 0.5}, GROWS, is_at_work=True)
    assert [gpus for _, gpus in _shares(two_gpus, part, grows)] == [0.6, 0.5]
    assert [gpus for _, gpus in _shares({"CPU": 8, "GPU": 3}, part, grows)] == [0.6, 1.5]


def test_what_programs_without_a_claim_hold_is_not_divided() -> None:
    replica, own = {"CPU": 1, "GPU": 1}, {"CPU": 0.5, "GPU": 1}
    machines = [
        Machine({"CPU": 8, "GPU": 2}, {"server": [replica], "a": [own]}),
        Machine({"CPU": 8}, {"server": [{"CPU": 2}], "b": [{"CPU": 4}]}),
    ]
    assert _divided(divisible(machines, ["a", "b"]), GPU_SCAN, SCAN) == [(6.5, 1), (6.5, 0)]
    # Another program holds half of each GPU.
    halves = [Machine({"CPU": 8, "GPU": 1}, {"server": [{"GPU": 0.5}]})] * 2
    assert _divided(divisible(halves, ["a"]), GPU_SCAN) == [(0, 0)]
    # A machine may be gone, or reduced, while its actors are still listed.
    assert _divided(divisible([Machine({"CPU": 2, "GPU": 1}, {"b": [{"CPU": 4, "GPU": 2}]})], ["a"]), SCAN) == [(0, 0)]


@pytest.mark.parametrize("jobs", [1, 2, 7])
def test_shares_never_exceed_the_machines(jobs: int) -> None:
    shares = _shares({"CPU": 10, "GPU": 5}, *[GPU_SCAN, SCAN] * jobs)
    assert sum(cpus for cpus, _ in shares) <= 10 + 1e-4
    assert sum(gpus for _, gpus in shares) <= 5


def test_a_claim_that_is_not_renewed_expires(monkeypatch: pytest.MonkeyPatch) -> None:
    claims = Claims(lambda: [Machine({"CPU": 4}, {})])
    assert claims.claim("a", SCAN)[1] == 1
    share, jobs = claims.claim("b", SCAN)
    assert (round(share["CPU"], 6), jobs) == (2, 2)
    now = time.monotonic()
    monkeypatch.setattr("time.monotonic", lambda: now + 60)
    assert claims.claim("b", SCAN) == ({"CPU": 4, "GPU": 0}, 1)
    claims.release("b")
    claims.release("never there")


def test_a_share_follows_the_claims_of_other_jobs_and_outlives_the_actor_that_holds_them(ray_here: None) -> None:
    with shared(SCAN) as share:
        assert (share.resources["CPU"], share.jobs) == (2, 1)
        other = ray.get_actor("claims", "asap")
        ray.get(other.claim.remote("another", SCAN))
        wait_until(lambda: (round(share.resources["CPU"], 6), share.jobs) == (1, 2))
        ray.kill(other)
        wait_until(lambda: (share.resources["CPU"], share.jobs) == (2, 1))


def test_a_job_keeps_one_share_whose_claim_each_step_replaces(ray_here: None) -> None:
    assert held_share() is None
    with shared() as share:
        assert (share.resources, held_share()) == ({"CPU": 0, "GPU": 0}, share)
        claims = ray.get_actor("claims", "asap")
        with shared(SCAN) as inner:
            assert (inner, share.resources["CPU"]) == (share, 2)
        # What the step had stays claimed after it.
        assert ray.get(claims.claim.remote("another", SCAN))[0]["CPU"] == pytest.approx(1)
        with shared():
            assert ray.get(claims.claim.remote("another", SCAN))[0]["CPU"] == pytest.approx(1)
        share.replace(NOTHING, is_awaited=False)
        wait_until(lambda: ray.get(claims.claim.remote("another", SCAN)) == ({"CPU": 2, "GPU": 0}, 2))
        share.replace(Claim({"CPU": 2}, {"CPU": 2}))  # it came first, and keeps its place
        assert share.resources["CPU"] == 2
        ray.get(claims.release.remote("another"))
    assert held_share() is None
    # The calls of one process come in their order.
    assert ray.get(claims.claim.remote("another", SCAN))[1] == 1
    ray.get(claims.release.remote("another"))


class _Holder:
    """An actor that holds what it asks for."""

    def is_there(self) -> bool:
        return True


def test_the_actors_and_reservations_of_other_programs_are_no_part_of_a_share(ray_here: None) -> None:
    replica = ray.remote(num_cpus=0.5)(_Holder).remote()
    group = ray.util.placement_group([{"CPU": 0.25}])
    inside = PlacementGroupSchedulingStrategy(group)
    member = ray.remote(num_cpus=0.25, scheduling_strategy=inside)(_Holder).remote()
    ray.get([replica.is_there.remote(), member.is_there.remote(), group.ready()])
    (machine,) = look_at_machines()
    (own,) = machine.held
    assert own == ray.get_runtime_context().get_job_id()
    assert sorted(amount["CPU"] for amount in machine.held[own] if amount.get("CPU")) == [0.25, 0.5]
    assert _divided(divisible([machine], []), SCAN) == [(1.25, 0)]
    assert _divided(divisible([machine], [own]), SCAN) == [(2, 0)]
    ray.util.remove_placement_group(group)
    ray.kill(replica)
    wait_until(lambda: _divided(divisible(look_at_machines(), []), SCAN) == [(2, 0)])


@pytest.mark.parametrize("error", [ray.exceptions.GetTimeoutError("no answer"), ValueError("no actor of this name")])
def test_a_share_without_an_answer_is_what_the_job_needs(
    ray_here: None, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr("jobs.sharing._start_registry", _raises(error))
    with shared(SCAN) as share:
        assert share.resources == {"CPU": 1, "GPU": 0}
        assert share.machines["CPU"] == 2
        monkeypatch.undo()
        wait_until(lambda: share.resources["CPU"] == 2)  # the thread goes on


def _raises(error: Exception) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


class _DeafClaims:
    """A registry that never answers a claim, and notes what it is asked."""

    def __init__(self, calls: list[str], never: Any) -> None:
        self.claim = SimpleNamespace(remote=lambda *_: calls.append("claim") or never)
        self.release = SimpleNamespace(remote=lambda _: calls.append("release"))


@pytest.fixture
def never(ray_here: None) -> Iterator[Any]:
    """The reference of an answer that does not come."""
    reference = ray.remote(num_cpus=1_000)(lambda: None).remote()
    yield reference
    ray.cancel(reference)


def test_the_end_of_a_share_waits_for_no_answer_and_no_claim_follows_its_release(
    never: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    is_late, may_go_on = threading.Event(), threading.Event()

    def start() -> Any:
        if calls:  # in the thread that renews the claim, which the end of the share overtakes
            is_late.set()
            may_go_on.wait()
        return _DeafClaims(calls, never)

    monkeypatch.setattr("jobs.sharing._start_registry", start)
    monkeypatch.setattr("jobs.sharing._ANSWER_S", 0.0)
    monkeypatch.setattr("jobs.sharing._TRIES", 1)
    share = Share(SCAN)
    wait_until(is_late.is_set)
    share.close()
    may_go_on.set()
    share._thread.join()
    assert calls == ["claim", "release"]


def test_a_thread_that_waits_for_an_answer_ends_with_its_share(never: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    share = Share(SCAN)
    share._registry = _DeafClaims(calls, never)
    wait_until(lambda: calls == ["claim"])
    monkeypatch.setattr("jobs.sharing._ANSWER_S", math.inf)
    share.close()
    share._thread.join()
    assert calls == ["claim", "release"]
