"""The machines that a cluster could start, so that a request that none of them holds is refused at once.

Ray gives no program the configuration of its autoscaler. The autoscaler is a process on the head, which names the file
of its configuration on its command line. So a small task on the head reads that file. It returns the resources of the
node types and nothing else, since the file may hold secrets.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HEAD = "node:__internal_head__"
"""The resource by which Ray marks the head."""
_MONITORS = ("autoscaler/_private/monitor.py", "autoscaler/v2/monitor.py")
_ANSWER_S = 60.0


@dataclass(frozen=True)
class NodeType:
    """A kind of machines that an autoscaler starts."""

    name: str
    resources: dict[str, float]
    most: int
    """Machines of this kind that there may be."""
    most_together: int | None = None
    """Machines of all kinds together, without the head, that there may be. None: as many as the kinds allow."""


def node_types() -> list[NodeType] | None:
    """Return the machines that the autoscaler of the running Ray could start; an empty list if there is no autoscaler.

    Return None if nobody knows: the autoscaler runs elsewhere, as on Kubernetes, or does not know what its machines
    have.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    heads = [node["NodeID"] for node in ray.nodes() if node["Alive"] and HEAD in node["Resources"]]
    if not heads:
        return None
    there = NodeAffinitySchedulingStrategy(heads[0], soft=False)
    task = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(read_configuration)
    reading = task.remote(ray.get_runtime_context().gcs_address)
    try:
        return ray.get(reading, timeout=_ANSWER_S)
    except (ray.exceptions.RayError, TimeoutError) as error:
        if isinstance(error, TimeoutError):
            ray.cancel(reading, force=True)
        logging.getLogger("asap").debug("the head did not say what machines there could be: %s", error)
        return None


def read_configuration(gcs_address: str) -> list[NodeType] | None:
    """Return the node types of the autoscaler that runs on this machine; see `node_types`."""
    command = next((words for words in _monitors() if f"--gcs-address={gcs_address}" in words), None)
    if command is None:
        return None
    prefix = "--autoscaling-config="
    file = next((word.removeprefix(prefix) for word in command if word.startswith(prefix)), "")
    return parse_configuration(Path(file).expanduser()) if file else []


def _monitors() -> list[list[str]]:
    """Return the command lines of the autoscalers on this machine; none on a system without /proc."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # processes end at any time
            words = file.read_bytes().decode(errors="replace").split("\0")
            if any(word.endswith(_MONITORS) for word in words):
                found.append(words)
    return found


def parse_configuration(file: Path) -> list[NodeType] | None:
    """Return the node types of a cluster's configuration; None if it does not say what one of them has."""
    import yaml

    config: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    most = int(config.get("max_workers", 2))  # the default of Ray
    types = []
    for name, kind in config["available_node_types"].items():
        is_head = name == config.get("head_node_type")
        count = min(most, int(kind.get("max_workers", 0 if is_head else most)))
        if count and not kind.get("resources"):
            return None
        if count:
            types.append(NodeType(name, {key: float(value) for key, value in kind["resources"].items()}, count, most))
    return types


def most_workers(types: Sequence[NodeType], needs: Mapping[str, float]) -> int:
    """Return how many workers with these needs fit on the machines that could be started, all of them together.

    If there may be fewer machines than the kinds allow, they are those that hold most.
    """
    together = min((kind.most_together for kind in types if kind.most_together is not None), default=None)
    on_each = [
        min(int(kind.resources.get(key, 0) // amount) for key, amount in needs.items())
        for kind in types
        for _ in range(kind.most)
    ]
    return sum(sorted(on_each, reverse=True)[:together])
