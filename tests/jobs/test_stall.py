"""Stalls: when a sentence about one comes, and what it says."""

import re

import pytest

from jobs.stall import StallWatch
from tests.support.waiting import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_stall_is_named_with_its_time_stage_and_cause_until_work_goes_on(clock: Clock) -> None:
    stalls = StallWatch("pair", 60, lambda: "0 CPUs are free", clock.monotonic)
    stalls.look(0, "starting")
    assert stalls.look(64, "detecting") is None
    clock.sleep(59)
    assert (stalls.look(64, "detecting"), stalls.since) == (None, None)
    clock.sleep(1)
    sentence = stalls.look(64, "detecting")
    assert sentence is not None
    assert re.fullmatch(
        r"no pair has finished for 60 s, since \d\d:\d\d:\d\d UTC, while detecting: 0 CPUs are free", sentence
    )
    assert stalls.since is not None
    clock.sleep(1)
    assert stalls.look(128, "detecting") is None
    assert stalls.since is None


def test_the_sentence_of_a_stall_is_renewed_after_twice_the_time(clock: Clock) -> None:
    asked: list[float] = []

    def find_cause() -> str:
        asked.append(clock.now)
        return "nothing is free"

    stalls = StallWatch("pair", 60, find_cause, clock.monotonic)
    stalls.look(0, "starting")
    stalls.look(1, "detecting")
    said = set()
    for _ in range(500):
        clock.sleep(1)
        said.add(stalls.look(1, "detecting"))
    assert asked == [60, 120, 240, 480]
    assert len(said) == 5  # four sentences, and none before the first


def test_before_any_work_has_finished_a_wait_is_named_early_and_a_slow_start_is_not(clock: Clock) -> None:
    causes = {"waits": "2 Detector actors have not started", "loads": ""}
    waits, loads = (StallWatch("pair", 60, lambda cause=cause: cause, clock.monotonic) for cause in causes.values())
    for stalls in (waits, loads):
        stalls.look(0, "starting the workers")
    clock.sleep(10)
    assert "for 10 s" in (waits.look(0, "starting the workers") or "")
    assert waits.since is None  # it is no stall yet
    assert loads.look(0, "starting the workers") is None
    clock.sleep(50)
    assert "all workers run, so a store" in (loads.look(0, "starting the workers") or "")
    assert waits.look(0, "starting the workers") is not None
    assert waits.since is not None


def test_a_cluster_that_does_not_answer_is_a_cause_too(clock: Clock) -> None:
    def find_cause() -> str:
        raise ConnectionError("no route")

    stalls = StallWatch("pair", 5, find_cause, clock.monotonic)
    stalls.look(0, "detecting")
    clock.sleep(5)
    assert "the cluster does not answer (ConnectionError)" in (stalls.look(0, "detecting") or "")


def test_units_that_may_take_long_are_a_stall_only_with_a_cause(clock: Clock) -> None:
    causes = ["", "0 CPUs are free"]
    stalls = StallWatch("shard", 60, lambda: causes.pop(0), clock.monotonic, is_steady=False)
    stalls.look(0, "starting")
    stalls.look(1, "evaluating")
    clock.sleep(60)
    assert (stalls.look(1, "evaluating"), stalls.since) == (None, None)
    clock.sleep(60)
    assert "for 120 s" in (stalls.look(1, "evaluating") or "")
    assert stalls.since is not None
