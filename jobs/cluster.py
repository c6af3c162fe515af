"""The Ray that jobs run on: one started on this machine, or a running cluster at an address.

Ray waits silently and forever for machines that nobody will add, and no program can ask it whether a cluster grows by
itself. So a job's needs are compared with the machines that are alive before the job begins. If they do not fit, a Ray
on this machine refuses at once, and a cluster is given some time to add machines.
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
from jobs.stops import handlers_kept

Resources = Mapping[str, float]
"""Amounts by Ray's name of the resource, such as CPU and GPU."""


@contextmanager
def ray_running(address: str | None = None, **options: Any) -> Iterator[None]:
    """Run Ray for the duration of the block; if Ray already runs in this process, use it and leave it running.

    Args:
        address: A running cluster; None starts Ray on this machine.
        options: Further arguments of `ray.init`.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address is None and not {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        # Ray would leave a token in the home folder for good. A temporary token protects equally well.
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    import ray  # after the environment is set

    if ray.is_initialized():
        silence_ray_data()
        yield
        return
    with handlers_kept():  # Ray replaces them
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
    # Workers import the packages before Ray puts the working folder first on their path, whatever that folder holds.
    settings["runtime_env"] = {"worker_process_setup_hook": SETUP_HOOK} | options.get("runtime_env", {})
    # Ray gives a busy machine half a minute to start, so a timeout is retried twice.
    for last in (False, False, True):
        try:
            ray.init(address or "local", **settings)
            return
        except ConnectionError as error:
            raise JobError(f"no Ray cluster answers at {address}: {error}") from error
        except Exception as error:  # Ray has no class for this error
            ray.shutdown()
            if last or "timed out during startup" not in str(error):
                raise JobError(
                    f"Ray did not start: {str(error).partition(chr(10))[0]} Reduce the load of this machine, or give "
                    "--address of a running cluster. Then run the same command again."
                ) from error


def silence_ray_data() -> None:
    """Stop Ray Data from printing its progress and its execution plans in this process."""
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.use_datasource_v2 = False
    logging.getLogger("ray").setLevel(logging.ERROR)
    logging.getLogger("ray.data").setLevel(logging.INFO)  # at DEBUG it writes pages of statistics every few seconds
    for handler in logging.getLogger("ray.data").handlers:
        # Only Ray's own handlers are silenced, not those of the program. The log file of the session still has all.
        if isinstance(handler, logging.StreamHandler) and handler not in logging.root.handlers:
            handler.setLevel(logging.CRITICAL)


def machines_alive() -> list[Resources]:
    """Return the total resources of each live machine of the running Ray, whether in use or not."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def count_fitting(machines: Sequence[Resources], needs: Resources) -> int:
    """Count the workers with these needs that fit on the machines together, each worker on one machine."""
    return sum(min(int(machine.get(kind, 0) // amount) for kind, amount in needs.items()) for machine in machines)


def most_cpus(machines: Sequence[Resources], workers: int, needs: Resources) -> int:
    """Return the most CPUs that each of the workers can have beside its other needs; 0 if not even one."""
    largest = max((int(machine.get("CPU", 0)) for machine in machines), default=0)
    fits = (cpus for cpus in range(largest, 0, -1) if count_fitting(machines, {**needs, "CPU": cpus}) >= workers)
    return next(fits, 0)


def wait_for_resources(
    needs: Resources, workers: int, wait_s: float, on_note: Callable[[str], None], advice: str
) -> list[Resources]:
    """Return the machines once the workers fit on them.

    Raises `ConfigError` with the request, the machines that exist, and the advice, if the workers never fit.

    Args:
        needs: Resources of one worker.
        workers: Number of workers that must fit.
        wait_s: Seconds that a cluster has to add machines, which are requested from its autoscaler. 0: no wait.
        on_note: Receives a sentence if there is a wait.
        advice: The sentence that ends the error message.
    """
    machines = machines_alive()
    if count_fitting(machines, needs) >= workers:
        return machines
    request = f"{workers} worker{'s' if workers > 1 else ''} with {_amounts(needs)}{' each' if workers > 1 else ''}"
    if wait_s:
        on_note(f"waiting up to {wait_s / 60:.2g} min for machines to hold {request}: there are {_describe(machines)}")
        if _reserve(needs, workers, wait_s):
            return machines_alive()
    raise ConfigError(
        f"not enough resources: {request} do not fit into the cluster, which has {_describe(machines_alive())}. "
        f"{advice}"
    )


def _reserve(needs: Resources, workers: int, wait_s: float) -> bool:
    """Reserve all of it for a moment, which makes an autoscaler start machines; True if it succeeds in time."""
    from ray.util import placement_group, remove_placement_group

    group = placement_group([dict(needs)] * workers)
    try:
        return bool(group.wait(wait_s))
    finally:
        remove_placement_group(group)


def _describe(machines: Sequence[Resources]) -> str:
    """Describe machines by their resources: `2 x (8 CPUs, 1 GPU), 1 x (16 CPUs, 0 GPUs)`."""
    kinds = Counter(_amounts({kind: machine.get(kind, 0) for kind in ("CPU", "GPU")}) for machine in machines)
    return ", ".join(f"{count} x ({amounts})" for amounts, count in kinds.most_common()) or "no machine"


def _amounts(resources: Resources) -> str:
    return ", ".join(f"{amount:g} {kind}{'' if amount == 1 else 's'}" for kind, amount in resources.items())
