"""The devices that a run is fitted to: kinds of GPUs by name, and what is there."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

GPU_MEMORY_GB: Mapping[str, int] = {
    "H200": 141, "H100": 80, "A100": 80, "A100-40GB": 40, "A10": 24, "L4": 24, "RTX-4090": 24,
}  # fmt: skip
"""Memory of GPUs in 10^9 bytes, by kind, from the data sheets of NVIDIA."""
_LOOK_S = 120
"""Seconds that a process has to look at the GPUs, here or on each machine of a cluster; it imports torch."""


@dataclass(frozen=True)
class TrainDevice:
    """The device that one worker computes on."""

    name: str
    kind: str | None
    """The kind in `GPU_MEMORY_GB`; None for a CPU, and for a GPU of another kind."""
    memory_bytes: int
    is_gpu: bool
    has_bfloat16: bool
    count: int = 1
    """Number of these devices; 1 for the CPUs of a machine."""
    is_here: bool = True
    """False for a GPU that is only named in the settings."""


def gpu_called(kind: str) -> TrainDevice:
    """Return the GPU of a kind of `GPU_MEMORY_GB`."""
    return TrainDevice(kind, kind, GPU_MEMORY_GB[kind] * 10**9, is_gpu=True, has_bfloat16=True, is_here=False)


def cpu_here() -> TrainDevice:
    """Return the CPUs of this machine, with the memory that its container or the machine has."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and (text := limit.read_text().strip()).isdecimal():
        memory = min(memory, int(text))
    return TrainDevice("CPU", None, memory, is_gpu=False, has_bfloat16=False)


def gpu_here() -> TrainDevice | None:
    """Return the smallest GPU of this machine; None if there is none.

    A process of its own looks, since a look takes hundreds of MiB of each GPU until the process ends.
    """
    import torch  # takes seconds to import, and the settings need this module

    if not torch.cuda.device_count():
        return None
    code = f"import json; from {__name__} import look_at_gpus; print(json.dumps(look_at_gpus()))"
    command = [sys.executable, "-c", code]
    looked = subprocess.run(command, capture_output=True, text=True, timeout=_LOOK_S, check=True)  # noqa: S603  # ours
    return smallest(json.loads(looked.stdout.splitlines()[-1]))


def look_at_gpus() -> list[tuple[str, int, bool]]:
    """Return name, bytes and support of bfloat16 of each GPU that this process can use."""
    import torch

    from asap.model.execution import has_bfloat16

    return [
        (properties.name, properties.total_memory, has_bfloat16(torch.device("cuda", index)))
        for index in range(torch.cuda.device_count())
        for properties in [torch.cuda.get_device_properties(index)]
    ]


def smallest(seen: list[tuple[str, int, bool]]) -> TrainDevice | None:
    """Return the GPU with the least memory among those that `look_at_gpus` saw; all of them are counted."""
    if not seen:
        return None
    name, memory, has_bf16 = min(seen, key=lambda one: one[1])
    return TrainDevice(name, _kind_of(name, memory), memory, is_gpu=True, has_bfloat16=has_bf16, count=len(seen))


def gpus_of_cluster(within_s: float = _LOOK_S) -> TrainDevice | None:
    """Return the smallest GPU of the running Ray, after a task on each machine with GPUs looked at one of them.

    A machine whose GPUs are busy, or that is lost, does not answer, and is left out. None: no machine answered.

    Args:
        within_s: Seconds that the machines have to answer.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU")]
    look = ray.remote(num_cpus=0, num_gpus=1)(look_at_gpus)
    looks = [
        look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote()
        for node in nodes
    ]
    answered, silent = ray.wait(looks, num_returns=len(looks), timeout=within_s) if looks else ([], [])
    for one in silent:
        ray.cancel(one, force=True)
    seen: list[tuple[str, int, bool]] = []
    for one in answered:
        try:
            seen += ray.get(one)
        except ray.exceptions.RayTaskError:
            raise  # the look itself failed
        except ray.exceptions.RayError as error:
            logging.getLogger("asap").debug("a machine did not say what GPUs it has: %s", error)
    gpu = smallest(seen)
    total = sum(int(node["Resources"]["GPU"]) for node in nodes)
    return None if gpu is None else dataclasses.replace(gpu, count=total)


def _kind_of(name: str, memory: int) -> str | None:
    """Return the kind of a GPU by the name that its driver has for it."""
    words = re.split(r"[\s-]+", name.upper())
    kinds = [kind for kind in GPU_MEMORY_GB if _is_part(kind.upper().split("-"), words)]
    # `A100` and `A100-40GB` differ by their memory.
    return min(kinds, key=lambda kind: abs(GPU_MEMORY_GB[kind] * 10**9 - memory), default=None)


def _is_part(kind: list[str], words: list[str]) -> bool:
    return all(part in words or part.endswith("GB") for part in kind)
