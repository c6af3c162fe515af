"""The machines that a cluster could start, and requests that none of them could hold."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

from asap.errors import ConfigError
from jobs import cluster
from jobs.cluster import check_possible
from jobs.node_types import NodeType, most_workers, node_types, parse_configuration, read_configuration

CPUS, GPUS = NodeType("cpu", {"CPU": 16}, 4), NodeType("gpu", {"CPU": 8, "GPU": 2}, 3)
CONFIG: dict[str, Any] = {
    "max_workers": 3,
    "head_node_type": "head",
    "available_node_types": {
        "head": {"resources": {"CPU": 0}},
        "cpu": {"resources": {"CPU": 16}, "max_workers": 10},
        "gpu": {"resources": {"CPU": 8, "GPU": 2}},
        "none": {"resources": {"CPU": 1}, "max_workers": 0},
    },
    "auth": {"ssh_user": "me"},
}


def _parsed(tmp_path: Path, config: dict[str, Any]) -> list[NodeType] | None:
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(config))
    return parse_configuration(tmp_path / "cluster.yaml")


def test_the_node_types_of_a_configuration_are_bounded_by_its_machines(tmp_path: Path) -> None:
    assert _parsed(tmp_path, CONFIG) == [
        NodeType("cpu", {"CPU": 16}, 3, most_together=3),
        NodeType("gpu", {"CPU": 8, "GPU": 2}, 3, most_together=3),
    ]


def test_a_type_of_unknown_resources_leaves_everything_possible(tmp_path: Path) -> None:
    types = CONFIG["available_node_types"] | {"large": {"resources": {}}}
    assert _parsed(tmp_path, CONFIG | {"available_node_types": types}) is None


def test_an_autoscaler_that_runs_elsewhere_is_unknown() -> None:
    assert read_configuration("127.0.0.1:1") is None


@contextmanager
def autoscaler(gcs_address: str, file: Path | None) -> Iterator[None]:
    """Run a process whose command line is that of an autoscaler, for the duration of the block."""
    words = ["/ray/autoscaler/_private/monitor.py", f"--gcs-address={gcs_address}"]
    options = [f"--autoscaling-config={file}"] if file else []
    code = "import sys; print('runs', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, *words, *options]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"runs\n"
        yield  # the end of the block closes the input of the process, so that it ends


def test_the_file_on_the_command_line_of_the_autoscaler_of_this_ray_is_read(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(CONFIG))
    with autoscaler("10.0.0.9:6379", tmp_path / "others.yaml"), autoscaler("10.0.0.1:6379", tmp_path / "mine.yaml"):
        types = read_configuration("10.0.0.1:6379")
    assert types is not None
    assert [kind.name for kind in types] == ["cpu", "gpu"]


def test_an_autoscaler_without_a_configuration_adds_no_machines() -> None:
    with autoscaler("10.0.0.1:6379", None):
        assert read_configuration("10.0.0.1:6379") == []


def test_a_head_that_cannot_read_its_file_or_is_silent_leaves_everything_possible(
    ray_here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, cancelled = tmp_path / "cluster.yaml", []
    cancel = ray.cancel
    monkeypatch.setattr(ray, "cancel", lambda *task, **how: [cancelled.append(how), cancel(*task, **how)])
    with autoscaler(ray.get_runtime_context().gcs_address, file):
        assert node_types() is None  # there is no such file
        assert not cancelled
        file.write_text(yaml.safe_dump(CONFIG))
        assert node_types() == _parsed(tmp_path, CONFIG)
        monkeypatch.setattr("jobs.node_types._ANSWER_S", 0.0)
        assert node_types() is None
    assert cancelled == [{"force": True}]


def test_a_ray_of_this_machine_does_not_say_what_could_come(ray_here: None) -> None:
    assert node_types() is None


@pytest.mark.parametrize(("needs", "count"), [({"CPU": 8}, 11), ({"CPU": 4, "GPU": 1}, 6), ({"CPU": 32}, 0)])
def test_workers_fit_on_what_could_be_started(needs: dict[str, float], count: int) -> None:
    assert most_workers([CPUS, GPUS], needs) == count


@pytest.mark.parametrize(
    ("needs", "together", "count"),
    [({"CPU": 8}, 5, 9), ({"CPU": 8}, 4, 8), ({"CPU": 4, "GPU": 1}, 2, 4), ({"CPU": 8}, 9, 11), ({"CPU": 8}, 0, 0)],
)
def test_the_machines_that_may_run_together_bound_the_workers(
    needs: dict[str, float], together: int, count: int
) -> None:
    assert most_workers([replace(kind, most_together=together) for kind in (CPUS, GPUS)], needs) == count


@pytest.fixture
def alive(monkeypatch: pytest.MonkeyPatch) -> Any:
    def set_up(types: list[NodeType] | None, *machines: dict[str, float]) -> None:
        monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": machine} for machine in machines])
        monkeypatch.setattr(cluster, "node_types", lambda: types)

    return set_up


def test_a_request_beyond_all_node_types_is_refused_with_what_there_could_be(alive: Any) -> None:
    alive([CPUS, GPUS], {"CPU": 0})
    with pytest.raises(ConfigError) as caught:
        check_possible({"CPU": 4, "GPU": 1}, 7, "Give fewer.")
    assert str(caught.value) == (
        "the cluster can never hold 7 workers with 4 CPUs, 1 GPU each: it has 1 x (0 CPUs, 0 GPUs), and can add at "
        "most 4 x cpu (16 CPUs, 0 GPUs), 3 x gpu (8 CPUs, 2 GPUs). Give fewer."
    )
    check_possible({"CPU": 4, "GPU": 1}, 6, "Give fewer.")
    alive([replace(kind, most_together=2) for kind in (CPUS, GPUS)], {"CPU": 0})
    check_possible({"CPU": 4, "GPU": 1}, 4, "Give fewer.")
    with pytest.raises(ConfigError, match=r"3 x gpu \(8 CPUs, 2 GPUs\), and 2 of them together\. Give fewer\."):
        check_possible({"CPU": 4, "GPU": 1}, 5, "Give fewer.")


def test_a_request_that_no_machine_holds_is_refused_where_nothing_adds_machines(alive: Any) -> None:
    alive([], {"CPU": 0}, {"CPU": 4})
    with pytest.raises(ConfigError) as caught:
        check_possible({"GPU": 1}, 1, "Ask for less.")
    assert str(caught.value) == (
        "no machine of the cluster holds 1 worker with 1 GPU, and it has no autoscaler that adds machines: it has "
        "1 x (0 CPUs, 0 GPUs), 1 x (4 CPUs, 0 GPUs). Ask for less. Or start such a machine, and have it awaited with "
        "--set wait_for_machines_s=SECONDS."
    )


@pytest.mark.parametrize(
    ("types", "machines", "waits"),
    [
        ([], [{"CPU": 0}], False),  # the machines for work are still to come
        ([], [{"CPU": 4}], True),
        (None, [{"CPU": 4}], False),
    ],
)
def test_what_may_still_come_is_not_refused(alive: Any, types: Any, machines: Any, waits: bool) -> None:
    alive(types, *machines)
    check_possible({"GPU": 1}, 1, "", waits_for_people=waits)
