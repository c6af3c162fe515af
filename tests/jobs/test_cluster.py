"""Resources: whether the machines hold the workers of a job."""

import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.util import placement_group_table

from asap.errors import ConfigError
from jobs.cluster import (
    _minutes,
    choose_gpus,
    count_fitting,
    describe_waits,
    most_cpus,
    off_idle_head,
    silence_ray_data,
    stall_inspector,
    wait_for_resources,
    wait_until_free,
)
from jobs.errors import JobError
from jobs.node_types import NodeType
from tests.support.busy import hold_cpus, start_holder, start_task
from tests.support.waiting import HANG_S, wait_until

HEAD = {"CPU": 0}


@pytest.mark.parametrize(
    ("machines", "needs", "held"),
    [
        ([{"CPU": 4}, {"CPU": 4}], {"CPU": 3}, 2),  # two CPUs are left over, one on each machine
        ([HEAD, {"CPU": 8, "GPU": 1}, {"CPU": 16}], {"CPU": 4, "GPU": 1}, 1),
        ([{"CPU": 2, "GPU": 4}], {"CPU": 1, "GPU": 1}, 2),
        ([], {"CPU": 1}, 0),
    ],
)
def test_a_worker_has_all_it_needs_on_one_machine(machines: Any, needs: dict[str, int], held: int) -> None:
    assert count_fitting(machines, needs) == held


@pytest.mark.parametrize(
    ("machines", "workers", "needs", "cpus"),
    [
        ([{"CPU": 8}], 2, {}, 4),
        ([HEAD, {"CPU": 4}, {"CPU": 8}], 1, {}, 8),
        ([{"CPU": 3}] * 3, 4, {}, 1),  # two each are fewer than there are, and only three workers could have them
        ([{"CPU": 8, "GPU": 1}, {"CPU": 64}], 1, {"GPU": 1}, 8),
        ([{"CPU": 2}], 3, {}, 0),
    ],
)
def test_workers_get_as_many_cpus_as_all_of_them_can_have(machines: Any, workers: int, needs: Any, cpus: int) -> None:
    assert most_cpus(machines, workers, needs) == cpus


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(45, "45 s"), (60, "1 min"), (90, "1.5 min"), (900, "15 min"), (6000, "100 min"), (86_400, "1,440 min")],
)
def test_a_wait_is_named_in_seconds_or_minutes(seconds: float, words: str) -> None:
    assert _minutes(seconds) == words


@pytest.fixture
def no_wait(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def machines(*nodes: dict[str, float]) -> None:
        monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": node} for node in nodes])
        monkeypatch.setattr("ray.util.placement_group", lambda *_: pytest.fail("it waited"))

    return machines


def test_a_request_that_does_not_fit_is_refused_with_the_machines_and_a_way_out(no_wait: Any) -> None:
    no_wait(HEAD, {"CPU": 4}, {"CPU": 4})
    with pytest.raises(ConfigError) as caught:
        wait_for_resources({"CPU": 4, "GPU": 1}, 2, 0, pytest.fail, "Take fewer.")
    assert str(caught.value) == (
        "not enough resources: 2 workers with 4 CPUs, 1 GPU each do not fit into the cluster, which has "
        "2 x (4 CPUs, 0 GPUs), 1 x (0 CPUs, 0 GPUs). Take fewer."
    )


def test_a_request_that_fits_does_not_wait(no_wait: Any) -> None:
    no_wait(HEAD, {"CPU": 4})
    assert wait_for_resources({"CPU": 2}, 2, 900, pytest.fail, "") == [HEAD, {"CPU": 4}]


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that sets what Ray says of its machines."""

    def show(*resources: dict[str, float]) -> None:
        names = [{"Alive": True, "Resources": each, "NodeID": f"a{number}"} for number, each in enumerate(resources)]
        monkeypatch.setattr(ray, "nodes", lambda: names)

    monkeypatch.setattr("ray._private.state.state.get_cluster_config", lambda: None)
    return show


def test_what_asks_for_no_cpus_is_kept_off_a_head_without_cpus(nodes: Any) -> None:
    nodes({"CPU": 4}, {"node:__internal_head__": 1})
    assert off_idle_head() == {"label_selector": {"ray.io/node-id": "!a1"}}
    nodes({"CPU": 4, "node:__internal_head__": 1}, {"CPU": 4})
    assert off_idle_head() == {}


@pytest.mark.parametrize(
    ("device", "gpus", "is_cluster", "chosen"),
    [("cpu", 1, True, False), ("cuda", 0, True, True), ("auto", 1, True, True), ("auto", 0, False, False)],
)
def test_a_device_is_chosen_without_a_word(nodes: Any, device: str, gpus: int, is_cluster: bool, chosen: bool) -> None:
    nodes({"CPU": 4, "GPU": gpus})
    assert choose_gpus(device, pytest.fail, is_cluster=is_cluster) == chosen


CPU_TYPE, GPU_TYPE = NodeType("cpu", {"CPU": 16}, 20), NodeType("gpu", {"CPU": 8, "GPU": 1}, 20)


@pytest.mark.parametrize(
    ("types", "come"),
    [(None, ""), ([], ""), ([CPU_TYPE], ""), ([CPU_TYPE, GPU_TYPE], " The cluster can add machines with GPUs (gpu).")],
)
def test_auto_means_cpus_on_a_cluster_without_gpus_and_says_why(
    nodes: Any, monkeypatch: pytest.MonkeyPatch, types: list[NodeType] | None, come: str
) -> None:
    nodes({"CPU": 0}, {"CPU": 16})
    monkeypatch.setattr("jobs.cluster.node_types", lambda: types)
    notes: list[str] = []
    assert not choose_gpus("auto", notes.append, is_cluster=True)
    assert notes == [f"running on CPUs, since no machine has a GPU now.{come} --device cuda waits for GPUs."]


def test_types_of_machines_that_the_cluster_reports_are_named(nodes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes({"CPU": 16})
    groups = [("cpu", {"CPU": 16}, 5), ("l4", {"CPU": 8, "GPU": 1}, -1), ("full", {"GPU": 1}, 0)]
    config = SimpleNamespace(
        node_group_configs=[
            SimpleNamespace(name=name, resources=resources, max_count=most) for name, resources, most in groups
        ]
    )
    monkeypatch.setattr("ray._private.state.state.get_cluster_config", lambda: config)
    notes: list[str] = []
    assert not choose_gpus("auto", notes.append, is_cluster=True)
    assert "can add machines with GPUs (l4)" in notes[0]


def test_machines_are_requested_and_waited_for_once(ray_here: None) -> None:
    notes: list[str] = []
    with pytest.raises(ConfigError, match=r"1 worker with 64 CPUs do not fit .*1 x \(2 CPUs, 0 GPUs\)\. Take fewer\."):
        wait_for_resources({"CPU": 64}, 1, 0.1, notes.append, "Take fewer.")
    assert notes == ["waiting up to 0.1 s for machines to hold 1 worker with 64 CPUs: there are 1 x (2 CPUs, 0 GPUs)"]
    assert all(group["state"] == "REMOVED" for group in placement_group_table().values())


def test_the_log_of_a_lost_batch_keeps_the_traceback_as_text_and_no_frame_with_its_actor() -> None:
    silence_ray_data()
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    logger = logging.getLogger("ray.data._internal.execution.streaming_executor_state")
    logger.addHandler(handler)
    try:
        raise ValueError("the process died")
    except ValueError as error:
        logger.error("a batch is lost", exc_info=error)
    finally:
        logger.removeHandler(handler)
    assert records[0].exc_info is None
    assert "ValueError: the process died" in logging.Formatter().format(records[0])


def test_ray_datas_own_handlers_are_silenced_and_those_of_the_program_are_not() -> None:
    theirs, ours = logging.StreamHandler(), logging.StreamHandler()
    ray_data = logging.getLogger("ray.data")
    for handler in (theirs, ours):
        ray_data.addHandler(handler)
    logging.root.addHandler(ours)
    try:
        silence_ray_data()
        assert (theirs.level, ours.level) == (logging.CRITICAL, logging.NOTSET)
    finally:
        logging.root.removeHandler(ours)
        for handler in (theirs, ours):
            ray_data.removeHandler(handler)


def test_busy_machines_are_refused_with_what_is_free_and_a_way_out(busy: None) -> None:
    with pytest.raises(JobError) as caught:
        wait_until_free({"CPU": 1}, 2, 0, pytest.fail, "Take fewer.", beside={"CPU": 0.5})
    assert str(caught.value) == (
        "the machines are busy: 2 workers with 1 CPU each, and 0.5 CPUs for tasks had no room within 0 s; "
        "0 CPUs are free of 1 x (2 CPUs, 0 GPUs). Wait for the other jobs of this Ray to end, or stop one. "
        "Raise --set wait_for_machines_s=SECONDS to wait longer. Take fewer."
    )
    assert all(group["state"] == "REMOVED" for group in placement_group_table().values())


@pytest.mark.slow
def test_busy_machines_are_waited_for_until_another_job_ends(ray_here: None) -> None:
    holder = hold_cpus()
    notes: list[str] = []

    def end_holder(note: str) -> None:
        notes.append(note)
        ray.kill(holder)

    wait_until_free({"CPU": 2}, 1, HANG_S, end_holder)
    assert notes[0] == (
        "waiting up to 15 min for other jobs to free 1 worker with 2 CPUs: 0 CPUs are free of 1 x (2 CPUs, 0 GPUs)"
    )


def test_a_look_into_a_stall_closes_the_connections_to_machines_that_are_lost(
    ray_here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[set[str]] = []
    own = ray.nodes()
    lost = [{"NodeID": "0", "NodeManagerAddress": "10.77.0.3", "NodeManagerHostname": "worker-0", "Alive": False}]
    renewed = [own[0] | {"NodeID": "1", "NodeManagerHostname": "before", "Alive": False}]
    monkeypatch.setattr("jobs.cluster.close_connections", closed.append)
    look = stall_inspector()
    monkeypatch.setattr("ray.nodes", lambda: own + lost + renewed)
    assert [look() for _ in range(2)] == ["lost machines: worker-0, before"] * 2
    assert closed == [{"10.77.0.3"}]


class _OwnOfRay:
    """An actor with a name such as those of Ray's own."""


def test_what_is_waited_for_is_described_by_actors_and_amounts(busy: None) -> None:
    assert describe_waits() == ""
    waiting = [*(start_holder(0.5) for _ in range(2)), ray.remote(num_cpus=0.5)(_OwnOfRay).remote()]
    task = start_task(1)
    wait_until(lambda: "1 x (1 CPU)" in describe_waits() and "3 x (0.5 CPUs)" in describe_waits())
    described = describe_waits()
    assert described.startswith("2 Holder actors have not started; ")
    assert described.endswith(" are waited for; 0 CPUs are free of 1 x (2 CPUs, 0 GPUs)")
    ray.cancel(task)
    del waiting
