"""Another job on the same Ray: an actor that holds CPUs, and tasks and actors that wait for some."""

from __future__ import annotations

from typing import Any

import ray


class Holder:
    """An actor that holds what it was started with."""

    def is_there(self) -> bool:
        return True


def hold_cpus(cpus: float = 2) -> Any:
    """Start a `Holder` of CPUs, wait until it holds them, and return it."""
    holder = start_holder(cpus)
    assert ray.get(holder.is_there.remote())
    return holder


def start_holder(cpus: float) -> Any:
    """Start a `Holder` of CPUs, and return it at once."""
    return ray.remote(num_cpus=cpus)(Holder).remote()


def start_task(cpus: float) -> Any:
    """Start a task that needs CPUs, and return its reference."""
    return ray.remote(num_cpus=cpus)(lambda: None).remote()
