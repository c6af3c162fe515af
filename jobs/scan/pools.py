"""The pools of a pipeline on a cluster: they grow with the machines and with the job's share, and shrink with them.

Ray Data asks its autoscaler of the cluster for the resources that a dataset may use, and makes pools grow up to these.
Here it gets the job's share (`jobs.sharing`) as the answer. It never takes an actor out of a pool that has work for it,
so that is done here: an actor too many gets no further batch, and is released once it has finished those that it has.
No batch is given up.

The classes of Ray that are used here are not public. `pyproject.toml` bounds the version of Ray, and
tests/jobs/scan/test_pools.py fails if another version has changed them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from typing import Any, ClassVar, Protocol

from ray.data import DataContext
from ray.data._internal.actor_autoscaler import ActorPoolScalingRequest
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data._internal.execution.interfaces import ExecutionResources

from jobs.packing import Resources
from jobs.sharing import Claim, Share, shared


class Stage(Protocol):
    """The resources of a stage, such as `StageResources`."""

    @property
    def cpus(self) -> float:
        """CPUs of each task or actor."""

    @property
    def gpus(self) -> float:
        """GPUs of each."""

    @property
    def size(self) -> int | None:
        """Number of tasks or actors at a time. None: as many as the machines hold."""


def claim_of(prepare: Stage, pools: Sequence[Stage]) -> Claim:
    """Return what a pipeline needs, one task and the smallest pool of each stage, and the most that it can use."""
    workers: list[Resources] = []
    most = dict.fromkeys(("CPU", "GPU"), 0.0)
    for stage in (prepare, *pools):
        amounts = {"CPU": stage.cpus, "GPU": stage.gpus}
        workers += [amounts] * (1 if stage is prepare else stage.size or 1)
        for kind, amount in amounts.items():
            most[kind] += amount * (stage.size or math.inf) if amount else 0.0
    return Claim.of_workers(workers, most, is_at_work=True)


@contextmanager
def pools_following(claim: Claim, prepare_cpus: float) -> Iterator[None]:
    """Make the datasets that are executed in the block keep to the job's share of the cluster.

    Args:
        claim: The claim of the job.
        prepare_cpus: CPUs of one task of the first stage, which the actors leave free.
    """
    context = DataContext.get_current()
    former = context.custom_execution_callback_classes
    with shared(claim) as share:
        # Ray constructs the callback without arguments, and sends the context, with the class, to every worker.
        FollowShare.share, FollowShare.prepare_cpus = share, prepare_cpus
        context.custom_execution_callback_classes = [*former, FollowShare]
        try:
            yield
        finally:
            context.custom_execution_callback_classes = former
            FollowShare.share = None


class FollowShare(ExecutionCallback):
    """The callback that Ray Data calls at each step of an execution, in the driver."""

    share: ClassVar[Share | None] = None
    prepare_cpus: ClassVar[float] = 0.0

    def before_execution_starts(self, executor: Any) -> None:
        """Answer Ray Data's question for the resources that the dataset may use."""
        share = self.share
        if share is not None:
            executor._cluster_autoscaler.get_total_resources = lambda: _as_limits(share)

    def on_execution_step(self, executor: Any) -> None:
        """Release actors that are beyond the share, or give them no more batches."""
        share = self.share  # read once: another thread sets it to None when the block ends
        if share is None:
            return
        operators = list(executor._topology)
        pools = [pool for operator in operators for pool in operator.get_autoscaling_actor_pools()]
        surplus = surplus_actors(pools, share.resources, self.prepare_cpus if is_preparing(operators) else 0.0)
        for pool, number in zip(pools, surplus, strict=True):
            if number:
                request = ActorPoolScalingRequest.downscale(delta=-number, force=True, reason="beyond the job's share")
                released = -(pool.scale(request) or 0)
                _hold_back(pool, number - released)


def is_preparing(operators: Sequence[Any]) -> bool:
    """Return True until the operators before the first pool have ended. Then no task of theirs needs a CPU.

    Ray Data lets the actors take these CPUs, which would be made and released in turn, at each step.

    Args:
        operators: The physical operators of Ray Data, in the order in which a row travels.
    """
    before = takewhile(lambda operator: not operator.get_autoscaling_actor_pools(), operators)
    return not all(operator.has_execution_finished() for operator in before)


def surplus_actors(pools: Sequence[Any], share: Resources, prepare_cpus: float) -> list[int]:
    """Return how many actors each pool has beyond the share. No pool goes below its smallest size.

    Args:
        pools: The pools, of Ray Data's `AutoscalingActorPool`.
        share: The share of the job.
        prepare_cpus: CPUs that the actors leave to a task of the first stage; 0 once that has ended.
    """
    sizes = [pool.current_size() for pool in pools]
    usages = [pool.per_actor_resource_usage() for pool in pools]
    for kind, limit in (("gpu", share.get("GPU", 0.0)), ("cpu", share.get("CPU", 0.0) - prepare_cpus)):
        amounts = [getattr(usage, kind) or 0.0 for usage in usages]
        while sum(size * amount for size, amount in zip(sizes, amounts, strict=True)) > limit + 1e-6:
            spare = [sizes[number] - pool.min_size() if amounts[number] else 0 for number, pool in enumerate(pools)]
            if max(spare, default=0) <= 0:
                break
            sizes[spare.index(max(spare))] -= 1
    return [pool.current_size() - size for pool, size in zip(pools, sizes, strict=True)]


def _hold_back(pool: Any, number: int) -> None:
    """Give so many actors no further batch until Ray Data looks at the pool again, which is before the next step.

    First come those whose machine was lost, which wait for room anyway, then the newest.
    """
    if number <= 0:
        return
    states = list(pool._running_actors.items())
    held = [actor for actor, state in states if state.is_restarting]
    held += [actor for actor, state in reversed(states) if not state.is_restarting]
    for actor in held[:number]:
        of_node = pool._alive_node_to_actor_heap.get(pool.get_actor_location(actor), {})
        for selectable in (pool._alive_actors_to_in_flight_tasks_heap, of_node):
            if actor in selectable:
                del selectable[actor]


def _as_limits(share: Share) -> ExecutionResources:
    """Return the share as Ray Data's type. Every job gets an equal part of the object store."""
    return ExecutionResources(
        cpu=share.resources.get("CPU", 0.0),
        gpu=share.resources.get("GPU", 0.0),
        memory=share.machines.get("memory", 0.0),
        object_store_memory=share.machines.get("object_store_memory", 0.0) / share.jobs,
    )
