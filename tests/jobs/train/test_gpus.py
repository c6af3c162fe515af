"""The GPUs of a cluster, as a task on each machine sees them. Tasks that are ready or never are stand for them."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from jobs.cluster import describe_waits
from jobs.train.gpus import gpus_of_cluster
from tests.support.waiting import wait_until

GIB = 2**30


@pytest.fixture
def answers(ray_here: None, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that has a machine with two GPUs for each reference, which is what its task returns."""

    def set_answers(*references: Any) -> None:
        node, left = ray.nodes()[0], iter(references)
        nodes = [node | {"Resources": {"CPU": 2, "GPU": 2}} for _ in references]
        task = SimpleNamespace(remote=lambda: next(left))
        monkeypatch.setattr(ray, "nodes", lambda: nodes)
        monkeypatch.setattr(ray, "remote", lambda **_: lambda _: SimpleNamespace(options=lambda **_: task))

    return set_answers


def test_the_smallest_gpu_of_the_machines_that_answer_counts_and_a_busy_machine_is_not_waited_for(
    answers: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    busy = ray.remote(num_cpus=1_000)(lambda: None).remote()
    large, small = ray.put([("NVIDIA H100", 80 * GIB, True)]), ray.put([("NVIDIA L4", 22 * GIB, True)])
    answers(large, busy, small)
    device = gpus_of_cluster(within_s=0.1)
    assert device is not None
    assert (device.kind, device.count) == ("L4", 6)
    monkeypatch.undo()
    wait_until(lambda: describe_waits() == "")  # the look at the busy machine does not wait on


def test_machines_that_do_not_answer_or_are_lost_leave_the_device_unknown(answers: Callable[..., None]) -> None:
    busy = ray.remote(num_cpus=1_000)(lambda: None).remote()
    ray.cancel(busy)  # as a lost machine, it answers with an error of Ray's own
    ray.wait([busy])
    answers(busy)
    assert gpus_of_cluster() is None
    answers()
    assert gpus_of_cluster() is None


def test_a_look_that_fails_is_an_error(answers: Callable[..., None]) -> None:
    def fail() -> None:
        raise RuntimeError("the driver is too old")

    answers(ray.remote(num_cpus=0)(fail).remote())
    with pytest.raises(RuntimeError, match="the driver is too old"):
        gpus_of_cluster()
