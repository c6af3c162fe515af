"""The Ray that jobs run on: one that starts by itself on this machine, or a running cluster by its address.

Ray waits for ever, and says nothing, for machines that nobody will bring, and tells no program whether a cluster grows
by itself. So what a job needs is compared with the machines that are alive before it begins: where it does not fit, a
Ray of this machine is told so at once, and a cluster is given a while to bring what is asked for.
"""

from __future__ import annotations

import logging
import os
import secrets
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from asap.errors import ConfigError
from asap.packages import SETUP_HOOK
from jobs.errors import JobError

Resources = Mapping[str, float]
"""Amounts by the name that Ray gives them, such as CPU and GPU."""


@contextmanager
def ray_running(address: str | None = None, **options: Any) -> Iterator[None]:
    """Ray for the time of the block; one that is running already in this process is used and left running."""
    _set_defaults(local=address is None)
    import ray

    if ray.is_initialized():
        silence_ray_data()
        yield
        return
    _start(address, options)
    try:
        silence_ray_data()
        yield
    finally:
        ray.shutdown()


def _start(address: str | None, options: dict[str, Any]) -> None:
    import ray

    local = {} if address else {"include_dashboard": False}
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR} | local | options
    # Workers import the packages before Ray puts the working folder, and what it may hold, first on their path.
    settings["runtime_env"] = {"worker_process_setup_hook": SETUP_HOOK} | options.get("runtime_env", {})
    for last in (False, False, True):
        try:
            ray.init(address or "local", **settings)
            return
        except ConnectionError as error:
            raise JobError(f"no Ray cluster answers at {address}: {error}") from error
        except Exception as error:  # Ray gives a busy machine half a minute, and names no class for what it raises
            ray.shutdown()
            if last or "timed out during startup" not in str(error):
                raise JobError(
                    f"Ray did not start: {str(error).partition(chr(10))[0]} Let the machine do less, or give --address "
                    "of a cluster that runs; the same command begins anew"
                ) from error


def _set_defaults(local: bool) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if local and not {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        # Ray would write a token for ever into the home folder; one that dies with this process keeps others out too.
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def silence_ray_data() -> None:
    """Let Ray Data work in this process without telling of it."""
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.use_datasource_v2 = False
    logging.getLogger("ray").setLevel(logging.ERROR)
    logging.getLogger("ray.data").setLevel(logging.INFO)  # below, it writes pages of figures every few seconds
    for handler in logging.getLogger("ray.data").handlers:
        # Ray's own; the session's log file still tells everything, and what a program logs by is its own.
        if isinstance(handler, logging.StreamHandler) and handler not in logging.root.handlers:
            handler.setLevel(logging.CRITICAL)


def machines_alive() -> list[Resources]:
    """What each machine of the Ray that runs has in all, whether it is in use or not."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def count_fitting(machines: Sequence[Resources], needs: Resources) -> int:
    """How many workers of these needs the machines hold together, each worker on one machine."""
    return sum(min(int(machine.get(kind, 0) // amount) for kind, amount in needs.items()) for machine in machines)


def most_cpus(machines: Sequence[Resources], workers: int, needs: Resources) -> int:
    """The most CPUs that so many workers can have each, beside what else they need; 0 where not even one."""
    largest = max((int(machine.get("CPU", 0)) for machine in machines), default=0)
    fits = (cpus for cpus in range(largest, 0, -1) if count_fitting(machines, {**needs, "CPU": cpus}) >= workers)
    return next(fits, 0)


def wait_for_resources(
    needs: Resources, workers: int, wait_s: float, tell: Callable[[str], None], way_out: str
) -> list[Resources]:
    """The machines, once they hold so many workers of these needs.

    wait_s: how long a cluster is given to bring machines, for which they are asked; `tell` gets a sentence then.
    Raises `ConfigError`, with what is asked, what there is, and the way out.
    """
    machines = machines_alive()
    if count_fitting(machines, needs) >= workers:
        return machines
    asked = f"{workers} worker{'s' if workers > 1 else ''} with {_amounts(needs)}{' each' if workers > 1 else ''}"
    if wait_s:
        tell(f"waiting up to {wait_s / 60:.2g} min for machines to hold {asked}: there are {_describe(machines)}")
        if _reserve(needs, workers, wait_s):
            return machines_alive()
    raise ConfigError(f"{asked} do not fit into what Ray has, {_describe(machines_alive())}; {way_out}")


def _reserve(needs: Resources, workers: int, wait_s: float) -> bool:
    """Whether a reservation of all of it comes about, which makes an autoscaler start machines; it is not kept."""
    from ray.util import placement_group, remove_placement_group

    asked = placement_group([dict(needs)] * workers)
    try:
        return bool(asked.wait(wait_s))
    finally:
        remove_placement_group(asked)


def _describe(machines: Sequence[Resources]) -> str:
    """Machines by what they have: `2 x (8 CPUs, 1 GPU), 1 x (16 CPUs, 0 GPUs)`."""
    kinds = Counter(_amounts({kind: machine.get(kind, 0) for kind in ("CPU", "GPU")}) for machine in machines)
    return ", ".join(f"{count} x ({amounts})" for amounts, count in kinds.most_common()) or "no machine"


def _amounts(resources: Resources) -> str:
    return ", ".join(f"{amount:g} {kind}{'' if amount == 1 else 's'}" for kind, amount in resources.items())
