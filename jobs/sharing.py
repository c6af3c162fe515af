"""The share of a cluster that each of several jobs may use.

Ray gives resources to whoever asks first, and a job that streams asks again in the moment in which something is free.
A second job would wait for the end of the first one. So the jobs of a cluster claim what they need at least and what
they can use at most, and each keeps to the share that follows from all claims. A job that waits for its first workers
claims too, and the others make room for it. It holds one share from its first wait to its end, and replaces the claim
at each step.

One small actor beside the driver of one of the jobs holds the claims. If it is lost, the next job that renews its claim
starts another. A claim that is not renewed, because its job was killed, expires.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

Resources = Mapping[str, float]
"""Amounts by Ray's name of the resource, such as CPU and GPU."""

KINDS = ("CPU", "GPU")
_NAME, _NAMESPACE = "claims", "asap"
_RENEW_S = 1.0
_EXPIRE_S = 30.0
"""Seconds after which a claim that is not renewed is forgotten."""
_ANSWER_S = 10.0
_LOOK_S = 0.1
"""Seconds between two looks at whether a share was closed: its thread may use Ray no longer than Ray runs."""
_CLOSE_S = 0.2
"""Seconds that the end of a share may wait for its thread. Ray's Jobs API kills a job three seconds after a stop."""
_TRIES = 2
"""Tries of a renewal: the actor may be just ending."""
_HALVINGS = 60
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Claim:
    """The resources that a job asks for."""

    needs: Resources
    """The least that the job can work with: one worker of each kind, or as many as the user asked for."""
    most: Resources
    """The most that the job can use; infinity for a job that uses whatever is there."""
    is_at_work: bool = False
    """True if the work has begun, so that a part of its needs is of use. A job that waits has no use for a part."""


NOTHING = Claim({}, {})
"""The claim of a job that keeps its place among the others, and needs nothing at the moment."""


def divide_resources(total: Resources, claims: Sequence[Claim]) -> list[dict[str, float]]:
    """Return the share of each claim, in their order, which is that of their coming.

    First, each claim gets what it needs, as long as all of that is left. A claim whose needs are not left gets what the
    others left of them, if its job is at work and lost a machine, and nothing if its job waits. What remains is divided
    equally, and nobody gets more than it can use.
    """
    left = {kind: total.get(kind, 0.0) for kind in KINDS}
    served: dict[int, Claim] = {}
    for number, claim in enumerate(claims):
        if all(claim.needs.get(kind, 0.0) <= left[kind] + _ROUNDING for kind in KINDS):
            served[number] = claim
            left = {kind: left[kind] - claim.needs.get(kind, 0.0) for kind in KINDS}
    for number, claim in enumerate(claims):
        if number not in served and claim.is_at_work:
            part = {kind: max(0.0, min(claim.needs.get(kind, 0.0), left[kind])) for kind in KINDS}
            served[number] = replace(claim, needs=part)
            left = {kind: left[kind] - part[kind] for kind in KINDS}
    joint = list(served.values())
    cpus, gpus = _level(total.get("CPU", 0.0), joint), _whole_gpus(total.get("GPU", 0.0), joint)
    shares = [dict.fromkeys(KINDS, 0.0) for _ in claims]
    for number, *amounts in zip(served, cpus, gpus, strict=True):
        shares[number] = dict(zip(KINDS, amounts, strict=True))
    return shares


def _level(total: float, claims: Sequence[Claim]) -> list[float]:
    """Divide CPUs: all claims get the same, unless they need more or can use less."""

    def shares(level: float) -> list[float]:
        return [max(claim.needs.get("CPU", 0.0), min(claim.most.get("CPU", 0.0), level)) for claim in claims]

    if sum(shares(total)) <= total:
        return shares(total)
    low, high = 0.0, total
    for _ in range(_HALVINGS):  # the sum grows with the level
        middle = (low + high) / 2
        low, high = (low, middle) if sum(shares(middle)) > total else (middle, high)
    return shares(low)


def _whole_gpus(total: float, claims: Sequence[Claim]) -> list[float]:
    """Divide GPUs one by one: the claim with the fewest gets the next. A part of a GPU would be of no use to anyone."""
    shares = [claim.needs.get("GPU", 0.0) for claim in claims]
    left = total - sum(shares)
    while left >= 1 - _ROUNDING:
        most = [claim.most.get("GPU", 0.0) + _ROUNDING for claim in claims]
        can_use = [number for number, share in enumerate(shares) if share + 1 <= most[number]]
        if not can_use:
            break
        shares[min(can_use, key=shares.__getitem__)] += 1
        left -= 1
    return shares


class Claims:
    """The class of the actor that holds the claims of all jobs of a cluster."""

    def __init__(self) -> None:
        self._claims: dict[str, Claim] = {}  # by job, in the order of their coming
        self._renewed_s: dict[str, float] = {}

    def claim(self, job: str, claim: Claim, total: Resources) -> tuple[dict[str, float], int]:
        """Renew the claim of a job; return its share of the machines, and the number of jobs that share them."""
        now = time.monotonic()
        self._claims[job], self._renewed_s[job] = claim, now
        for other in [name for name, renewed_s in self._renewed_s.items() if now - renewed_s > _EXPIRE_S]:
            self.release(other)
        shares = divide_resources(total, list(self._claims.values()))
        return shares[list(self._claims).index(job)], len(self._claims)

    def release(self, job: str) -> None:
        """Forget the claim of a job."""
        self._claims.pop(job, None)
        self._renewed_s.pop(job, None)


class Share:
    """The share of this process's job, which a thread renews every second."""

    def __init__(self, claim: Claim) -> None:
        """Claim, and wait for the first answer."""
        import ray

        self.claim, self._job = claim, ray.get_runtime_context().get_job_id()
        self._registry: Any = None
        self._claimed_at: Any = None
        """The actor that got the last claim, and that has to forget it."""
        self.jobs = 1
        """Jobs that share the machines."""
        self.machines: Resources = {}
        """The sum of the machines' resources, of which `resources` are this job's."""
        # Until there is an answer, no more than what the job cannot work without: others may be at work.
        self.resources: Resources = {kind: claim.needs.get(kind, 0.0) for kind in KINDS}
        self._is_closed = threading.Event()
        self._sending = threading.Lock()
        """Held while a call is sent, so that no claim follows the release."""
        self._renew()
        self._thread = threading.Thread(target=self._renew_until_closed, name="share", daemon=True)
        self._thread.start()

    def replace(self, claim: Claim, *, is_awaited: bool = True) -> None:
        """Claim something else from now on, at the same place among the jobs.

        Args:
            claim: The claim of the next step of the job.
            is_awaited: True to wait for the share that follows from it. Otherwise it is claimed within a second.
        """
        self.claim = claim
        if is_awaited:
            self._renew()

    def close(self) -> None:
        """Give the share up. A thread that Ray holds up is left behind: a stop has no time for it."""
        with self._sending:
            self._is_closed.set()
            if self._claimed_at is not None:
                self._claimed_at.release.remote(self._job)
        self._thread.join(_CLOSE_S)

    def _renew_until_closed(self) -> None:
        while not self._is_closed.wait(_RENEW_S):
            self._renew()

    def _renew(self) -> None:
        """Renew the claim. Without an answer, the share stays as it is."""
        import ray

        for _ in range(_TRIES):
            try:
                self.machines = _sum_machines()
                # Two threads may be here, the one that renews and the one that replaced the claim.
                registry = self._registry or _start_registry()
                with self._sending:
                    if self._is_closed.is_set():
                        return
                    answer = registry.claim.remote(self._job, self.claim, self.machines)
                    self._registry = self._claimed_at = registry
                if not self._await(answer):
                    return
                self.resources, self.jobs = ray.get(answer, timeout=0)
                return
            # Ray raises ValueError for a name whose actor is just ending or starting.
            except (ray.exceptions.RayError, ValueError):
                self._registry = None  # it ended with the job that had started it: this one starts another

    def _await(self, answer: Any) -> bool:
        """Wait for an answer, for `_ANSWER_S` at most. Return False if the share was closed meanwhile."""
        import ray

        deadline = time.monotonic() + _ANSWER_S
        while not ray.wait([answer], timeout=_LOOK_S)[0] and time.monotonic() < deadline:
            if self._is_closed.is_set():
                return False
        return True


_held: Share | None = None
"""The share of this process. The claims are kept by jobs of Ray, and a process is one at a time."""


@contextmanager
def shared(claim: Claim | None = None) -> Iterator[Share]:
    """Hold the job's share of the cluster for the duration of the block.

    A block within another one replaces the claim, and its end leaves it so: between two steps of a job nobody may take
    what the next step needs. The share ends with the outermost block.

    Args:
        claim: The claim. None: `NOTHING` in the outermost block, and what is claimed already in another one.
    """
    global _held
    if _held is not None:
        if claim is not None:
            _held.replace(claim)
        yield _held
        return
    _held = share = Share(claim or NOTHING)
    try:
        yield share
    finally:
        _held = None
        share.close()


def held_share() -> Share | None:
    """Return the share that this process holds; None outside every block of `shared`."""
    return _held


def _sum_machines() -> dict[str, float]:
    """Return the sum of the resources of all live machines that have CPUs or GPUs, whether in use or not."""
    import ray

    total = dict.fromkeys((*KINDS, "memory", "object_store_memory"), 0.0)
    for node in ray.nodes():
        resources = node["Resources"]
        if node["Alive"] and any(resources.get(kind, 0) for kind in KINDS):
            for kind in total:
                total[kind] += resources.get(kind, 0.0)
    return total


def _start_registry() -> Any:
    """Return the actor that holds the claims; start it, on the machine of this process, if nobody has."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"name": _NAME, "namespace": _NAMESPACE, "get_if_exists": True, "scheduling_strategy": here}
    return ray.remote(num_cpus=0, max_restarts=-1)(Claims).options(**options).remote()
