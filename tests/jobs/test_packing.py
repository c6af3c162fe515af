"""Workers placed on machines."""

from __future__ import annotations

import pytest

from jobs.packing import Left, Packing, Resources


@pytest.mark.parametrize(
    ("machines", "worker", "count"),
    [
        ([{"CPU": 4}, {"CPU": 3}], {"CPU": 2}, 3),
        ([{"CPU": 1}] * 8, {"CPU": 2}, 0),
        ([{"CPU": 0.9}] * 2, {"CPU": 0.3}, 6),
        ([{"CPU": 8, "GPU": 2}], {"CPU": 1, "GPU": 0.4}, 4),  # two on each GPU
        ([{"CPU": 3, "GPU": 2}], {"CPU": 1, "GPU": 0.4}, 3),
        ([{"CPU": 8, "GPU": 1}] * 2, {"GPU": 2}, 0),
        ([{"CPU": 8, "GPU": 5}], {"GPU": 2}, 2),
        ([{"CPU": 8, "GPU": 1.5}], {"GPU": 0.5}, 3),
        ([{"CPU": 8}], {"GPU": 1}, 0),
        ([{"CPU": 8}], {"CPU": 0}, 1000),
        ([], {"CPU": 1}, 0),
    ],
)
def test_as_many_workers_are_placed_as_single_machines_hold(
    machines: list[Resources], worker: Resources, count: int
) -> None:
    assert Packing(map(Left.of, machines)).place(worker, 1000) == count


def test_what_is_left_is_what_was_not_taken() -> None:
    packing = Packing(map(Left.of, [{"CPU": 8, "GPU": 2}] * 3))
    assert packing.place({"CPU": 1, "GPU": 0.5}, 3) == 3
    assert (packing.cpus(), packing.whole_gpus()) == (21, 4)
    attempt = packing.copy()
    assert attempt.place({"GPU": 1}, 5) == 4
    # The half of a GPU was left, and the attempt changed nothing.
    assert (attempt.place({"GPU": 0.5}), attempt.whole_gpus(), packing.whole_gpus()) == (1, 0, 4)


def test_small_workers_take_small_machines_and_those_without_gpus() -> None:
    packing = Packing(map(Left.of, [{"CPU": 8, "GPU": 1}, {"CPU": 2}, {"CPU": 4}]))
    assert packing.place({"CPU": 2}, 3) == 3
    assert packing.place({"CPU": 8, "GPU": 1}) == 1
    assert packing.cpus() == 0


def test_a_large_cluster_is_counted_by_kinds_of_machines() -> None:
    packing = Packing(map(Left.of, [{"CPU": 96, "GPU": 8}] * 10_000))
    assert packing.place({"CPU": 1, "GPU": 1}, 79_999) == 79_999
    assert len(packing._left) == 2
