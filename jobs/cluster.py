"""The Ray that jobs run on: one started on this machine, or a running cluster at an address.

Ray waits silently and forever for machines that nobody will add. So a job's needs are compared with the machines that
are alive before the job begins. If they do not fit, a Ray on this machine refuses at once, and so does a cluster that
could never hold them, as its configuration shows (`node_types`). Any other cluster is given some time to add machines.
If they fit but other jobs hold the resources, a job waits for some time, and says for what.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from asap.errors import AsapError, ConfigError
from jobs.errors import JobError
from jobs.lost_machines import LostMachines, close_connections
from jobs.node_types import HEAD, most_workers, node_types
from jobs.packing import Resources
from jobs.ray_end import end_ray
from jobs.ray_start import start_ray
from jobs.sharing import Claim, held_share, shared
from jobs.stops import handlers_kept, stop_held

_FIRST_NOTE_S = 2.0
"""Seconds of a wait that are not worth a note."""
_MINUTES_FROM_S = 60
_LOGS_LOST_BATCHES = "ray.data._internal.execution.streaming_executor_state"
_NOT_STARTED = ("DEPENDENCIES_UNREADY", "PENDING_CREATION", "RESTARTING")
"""States of an actor whose process does not run."""
_RAYS_OWN = ("TrainController", "PlacementGroupCleaner", "SynchronizationActor", "DatasetManager")
"""Actors by which Ray Train runs the workers. Like those whose names begin with _, they say nothing to a person."""


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
    with handlers_kept(), stop_held():  # Ray replaces the handlers, and catches what they raise
        start_ray(address, options)
    try:
        silence_ray_data()
        yield
    finally:
        end_ray()


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
    logging.getLogger(_LOGS_LOST_BATCHES).addFilter(_keep_no_frames)


def _keep_no_frames(record: logging.LogRecord) -> bool:
    """Turn the traceback of a record into text.

    The frames hold the actor of a batch that is lost. A program that keeps records, as pytest does, would keep the
    actor and its CPUs, and the next pass over the rows would wait for them for ever.
    """
    if record.exc_info:
        record.exc_text, record.exc_info = logging.Formatter().formatException(record.exc_info), None
    return True


def machines_alive() -> list[Resources]:
    """Return the total resources of each live machine of the running Ray, whether in use or not."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def off_idle_head() -> dict[str, Any]:
    """Return the options that keep tasks and actors of 0 CPUs off a head without CPUs; none if the head has CPUs.

    Ray places what asks for nothing on any machine. A head without CPUs is to schedule, and nothing else.
    """
    import ray

    for node in ray.nodes():
        if node["Alive"] and HEAD in node["Resources"] and not node["Resources"].get("CPU"):
            return {"label_selector": {"ray.io/node-id": f"!{node['NodeID']}"}}
    return {}


def choose_gpus(device: str, on_note: Callable[[str], None], *, is_cluster: bool) -> bool:
    """Return True if models run on GPUs: as `device` says, or, if that is `auto`, if some machine has a GPU.

    On a cluster, where GPUs may come with the work, `on_note` receives the reason if `auto` means CPUs.
    """
    if device != "auto":
        return device == "cuda"
    if any(machine.get("GPU", 0) for machine in machines_alive()):
        return True
    if is_cluster:
        types = _gpu_machine_types()
        come = f" The cluster can add machines with GPUs ({', '.join(types)})." if types else ""
        on_note(f"running on CPUs, since no machine has a GPU now.{come} --device cuda waits for GPUs.")
    return False


def _gpu_machine_types() -> list[str]:
    """Return the names of the types of machines with GPUs that the autoscaler may start, as far as they are known.

    KubeRay reports them to Ray. An autoscaler of Ray's own is asked on the head.
    """
    import ray._private.state

    config = ray._private.state.state.get_cluster_config()
    if config is not None:
        groups = [(group.name, group.resources, group.max_count) for group in config.node_group_configs]
    else:
        groups = [(kind.name, kind.resources, kind.most) for kind in node_types() or ()]
    return sorted(name for name, resources, most in groups if most and resources.get("GPU", 0))


def count_fitting(machines: Sequence[Resources], needs: Resources) -> int:
    """Count the workers with these needs that fit on the machines together, each worker on one machine."""
    return sum(min(int(machine.get(kind, 0) // amount) for kind, amount in needs.items()) for machine in machines)


def task_result(reference: Any, died: Callable[[str], JobError]) -> Any:
    """Return the result of a task. An `AsapError` that the task raised is raised as it is.

    Args:
        reference: The reference of the result.
        died: Makes the error of a task whose process died each time, from Ray's reason.
    """
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, AsapError):
            raise error.cause from None
        raise
    except ray.exceptions.RayError as error:
        raise died(str(error).partition("\n")[0].rstrip(".")) from error


def most_cpus(machines: Sequence[Resources], workers: int, needs: Resources) -> int:
    """Return the most CPUs that each of the workers can have beside its other needs; 0 if not even one."""
    largest = max((int(machine.get("CPU", 0)) for machine in machines), default=0)
    fits = (cpus for cpus in range(largest, 0, -1) if count_fitting(machines, {**needs, "CPU": cpus}) >= workers)
    return next(fits, 0)


def wait_for_resources(
    needs: Resources,
    workers: int,
    wait_s: float,
    on_note: Callable[[str], None],
    advice: str,
    *,
    waits_for_people: bool = False,
) -> list[Resources]:
    """Return the machines once there are enough for the workers, whether the machines are free or busy.

    Raises `ConfigError` with the request, the machines that exist, and the advice, if the workers never fit. No time is
    spent on machines that the cluster cannot add.

    Args:
        needs: Resources of one worker.
        workers: Number of workers that must fit.
        wait_s: Seconds that a cluster has to add machines, which are requested from its autoscaler. 0: no wait.
        on_note: Receives a sentence if there is a wait.
        advice: The sentence that ends the error message.
        waits_for_people: True to wait for machines that somebody has to start.
    """
    machines = machines_alive()
    if count_fitting(machines, needs) >= workers:
        return machines
    request = _request(needs, workers)
    if wait_s:
        check_possible(needs, workers, advice, waits_for_people=waits_for_people)
        on_note(f"waiting up to {_minutes(wait_s)} for machines to hold {request}: there are {_describe(machines)}")
        if _reserve([needs] * workers, wait_s):
            return machines_alive()
    raise ConfigError(
        f"not enough resources: {request} do not fit into the cluster, which has {_describe(machines_alive())}. "
        f"{advice}"
    )


def check_possible(needs: Resources, workers: int, advice: str, *, waits_for_people: bool = False) -> None:
    """Raise `ConfigError` if the cluster can never hold the workers. The arguments are as in `wait_for_resources`.

    A cluster with an autoscaler holds what it has and what its node types could bring. Without one, somebody has to
    start machines: then a request is refused that no machine holds, unless machines for work are still to come.
    """
    machines = machines_alive()
    if count_fitting(machines, needs) >= workers or (types := node_types()) is None:
        return
    request = _request(needs, workers)
    if types and count_fitting(machines, needs) + most_workers(types, needs) < workers:
        could = ", ".join(
            f"{kind.most} x {kind.name} ({_amounts({key: kind.resources.get(key, 0) for key in ('CPU', 'GPU')})})"
            for kind in types
        )
        together = types[0].most_together
        if together is not None and together < sum(kind.most for kind in types):
            could += f", and {together} of them together"
        raise ConfigError(
            f"the cluster can never hold {request}: it has {_describe(machines)}, and can add at most {could}. {advice}"
        )
    works = any(machine.get("CPU") or machine.get("GPU") for machine in machines)
    if not types and not waits_for_people and works and not count_fitting(machines, needs):
        raise ConfigError(
            f"no machine of the cluster holds {_request(needs, 1)}, and it has no autoscaler that adds machines: it "
            f"has {_describe(machines)}. {advice} Or start such a machine, and have it awaited with --set "
            "wait_for_machines_s=SECONDS."
        )


def could_grow(needs: Resources) -> bool:
    """Return True if an autoscaler could start machines for workers with these needs, as far as is known."""
    types = node_types()
    return types is None or most_workers(types, needs) > 0


def wait_until_free(
    needs: Resources,
    workers: int,
    wait_s: float,
    on_note: Callable[[str], None],
    advice: str = "",
    beside: Resources | None = None,
    others: Sequence[Resources] = (),
) -> None:
    """Wait until busy machines have room for workers that fit on them (see `wait_for_resources`).

    What is awaited is claimed, so that jobs that grow with the machines make room: at once if the job holds a share of
    a cluster, where the claim stays, and otherwise once there is a wait.

    Raises `JobError` with the request, what exists, what is free, and what to do, if there is no room in time.

    Args:
        needs: Resources of one worker.
        workers: Number of workers that must have room.
        wait_s: Seconds to wait.
        on_note: Receives a sentence if there is a wait, and again whenever other amounts are free.
        advice: A way to need less, as the sentence that ends the error message.
        beside: Resources that tasks beside the workers need, on any machine.
        others: Resources of further workers, each of them on one machine.
    """
    bundles = [needs] * workers + ([beside] if beside else []) + list(others)
    request = ", ".join([_request(needs, workers), *(_request(each, 1) for each in others)])
    request += f", and {_amounts(beside)} for tasks" if beside else ""

    said = ""
    wanted = Claim.of_workers(bundles, is_at_work=False)

    def report() -> None:
        nonlocal said
        if not said:
            claim.enter_context(shared(wanted))
        note = f"waiting up to {_minutes(wait_s)} for other jobs to free {request}: {_describe_free()} of "
        note += _describe(machines_alive())
        if note != said:
            on_note(note)
        said = note

    if share := held_share():
        share.replace(wanted)
    with ExitStack() as claim:
        has_room = _reserve(bundles, wait_s, report)
    if not has_room:
        ways = " ".join(filter(None, [
            "Wait for the other jobs of this Ray to end, or stop one.",
            "Raise --set wait_for_machines_s=SECONDS to wait longer.", advice,
        ]))  # fmt: skip
        raise JobError(
            f"the machines are busy: {request} had no room within {_minutes(wait_s)}; {_describe_free()} of "
            f"{_describe(machines_alive())}. {ways}"
        )


def _reserve(bundles: Sequence[Resources], wait_s: float, on_wait: Callable[[], None] = lambda: None) -> bool:
    """Reserve all of it for a moment, which makes an autoscaler start machines; True if it succeeds in time.

    `on_wait` is called once a second after the first seconds of a wait.
    """
    from ray.util import placement_group, remove_placement_group

    group = placement_group([dict(bundle) for bundle in bundles])
    started = time.monotonic()
    try:
        # A reservation of what is free takes milliseconds. Ray counts a wait in whole seconds.
        while not group.wait(1):
            waited_s = time.monotonic() - started
            if waited_s >= wait_s:
                return False
            if waited_s >= _FIRST_NOTE_S:
                on_wait()
        return True
    finally:
        remove_placement_group(group)


def kill_actors(class_name: str) -> None:
    """Kill the actors of this job that are of a class. A Ray that does not answer has none that could be killed."""
    import ray
    from ray._private.state import actors
    from ray._private.worker import global_worker

    try:
        job = ray.JobID.from_hex(ray.get_runtime_context().get_job_id())
        for actor in actors(job_id=job).values():
            if actor["ActorClassName"].endswith(class_name) and actor["State"] != "DEAD":
                # Ray gives out no handle of an actor without a name.
                global_worker.core_worker.kill_actor(ray.ActorID.from_hex(actor["ActorID"]), True)
    except Exception as error:  # Ray has many classes for it
        logging.getLogger("asap").debug("actors of class %s were not killed: %s", class_name, error)


def stall_inspector() -> Callable[[], str]:
    """Return a function that looks into a stall of the work that begins now.

    It closes the connections to machines that are lost from now on, and describes what the running Ray cannot give, as
    `describe_waits` does. Ray does the tasks of a lost machine again once the connections to it have ended
    (`jobs.lost_machines`).
    """
    import ray

    lost = LostMachines(ray.nodes())
    head, _, _ = ray.get_runtime_context().gcs_address.rpartition(":")
    spared = {head.strip("[]"), ray.util.get_node_ip_address()}

    def look_into_stall() -> str:
        if addresses := lost.addresses(ray.nodes(), spared):
            close_connections(addresses)
        return describe_waits()

    return look_into_stall


def describe_waits() -> str:
    """Describe what the running Ray cannot give at the moment.

    The result names this job's actors that have not started, the resources that tasks and actors of any job wait for,
    and lost machines, such as `2 Detector actors have not started; 2 x (0.8 CPUs) are waited for; 0 CPUs are free of
    1 x (8 CPUs, 0 GPUs)`. It is empty if nothing waits and no machine is lost.
    """
    import ray
    from ray._private.state import actors
    from ray.autoscaler.v2.sdk import get_cluster_status

    job = ray.get_runtime_context().get_job_id()
    states = actors(job_id=ray.JobID.from_hex(job)).values()
    # Ray Data names its actors by their place in the pipeline, such as `MapWorker(MapBatches(Detector))`.
    names = (re.findall(r"\w+", actor["ActorClassName"])[-1] for actor in states if actor["State"] in _NOT_STARTED)
    waiting = Counter(name for name in names if not name.startswith("_") and name not in _RAYS_OWN)
    lost = [node["NodeManagerHostname"] for node in ray.nodes() if not node["Alive"]]
    clauses = [
        f"{count} {name} actor{'s have' if count > 1 else ' has'} not started" for name, count in waiting.items()
    ]
    demands = get_cluster_status(ray.get_runtime_context().gcs_address).resource_demands
    requests: Counter[str] = Counter()
    for demand in [*demands.ray_task_actor_demand, *demands.placement_group_demand]:
        for each in demand.bundles_by_count:
            requests[_amounts({kind: each.bundle[kind] for kind in ("CPU", "GPU") if kind in each.bundle})] += (
                each.count
            )
    if requests:
        amounts = ", ".join(f"{count} x ({amount})" for amount, count in requests.most_common())
        clauses.append(f"{amounts} {'are' if requests.total() > 1 else 'is'} waited for")
    if clauses:
        clauses.append(f"{_describe_free()} of {_describe(machines_alive())}")
    if lost:
        clauses.append(f"lost machine{'s' if len(lost) > 1 else ''}: {', '.join(lost)}")
    return "; ".join(clauses)


def _describe_free() -> str:
    """Describe what is free now on all machines together: `0.5 CPUs, 0 GPUs are free`."""
    import ray

    free, all_of_it = ray.available_resources(), ray.cluster_resources()
    kinds = [kind for kind in ("CPU", "GPU") if kind == "CPU" or kind in all_of_it]
    amounts = _amounts({kind: round(free.get(kind, 0), 2) for kind in kinds})
    return f"{amounts} {'is' if amounts == '1 CPU' else 'are'} free"


def _request(needs: Resources, workers: int) -> str:
    """Describe workers and what they need: `2 workers with 4 CPUs, 1 GPU each`."""
    return f"{workers} worker{'s' if workers > 1 else ''} with {_amounts(needs)}{' each' if workers > 1 else ''}"


def _minutes(seconds: float) -> str:
    return f"{f'{seconds / 60:,.1f}'.removesuffix('.0')} min" if seconds >= _MINUTES_FROM_S else f"{seconds:g} s"


def _describe(machines: Sequence[Resources]) -> str:
    """Describe machines by their resources: `2 x (8 CPUs, 1 GPU), 1 x (16 CPUs, 0 GPUs)`."""
    kinds = Counter(_amounts({kind: machine.get(kind, 0) for kind in ("CPU", "GPU")}) for machine in machines)
    return ", ".join(f"{count} x ({amounts})" for amounts, count in kinds.most_common()) or "no machine"


def _amounts(resources: Resources) -> str:
    return ", ".join(f"{amount:g} {kind}{'' if amount == 1 else 's'}" for kind, amount in resources.items())
