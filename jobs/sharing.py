"""The share of a cluster that each of several jobs may use.

Ray gives resources to whoever asks first, and a job that streams asks again in the moment in which something is free.
A second job would wait for the end of the first one. So the jobs of a cluster claim what they need at least and what
they can use at most, and each keeps to the share that follows from all claims. A job that waits for its first workers
claims too, and the others make room for it. It holds one share from its first wait to its end, and replaces the claim
at each step.

What programs hold that claim nothing, such as the replicas of a server, is not divided. Of the rest, a job is promised
what its workers find on single machines.

One small actor beside the driver of one of the jobs holds the claims. If it is lost, the next job that renews its claim
starts another. A claim that is not renewed, because its job was killed, expires.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from jobs.machine_use import Machine, look_at_machines
from jobs.packing import DIGITS, KINDS, ROUNDING, Left, Packing, Resources

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
_LOOK_EVERY_S = 1.0
"""Seconds for which a look at the machines is good. One look serves the claims of all jobs."""


@dataclass(frozen=True)
class Claim:
    """The resources that a job asks for."""

    needs: Resources
    """The least that the job can work with: one worker of each kind, or as many as the user asked for."""
    most: Resources
    """The most that the job can use; infinity for a job that uses whatever is there."""
    is_at_work: bool = False
    """True if the work has begun, so that a part of its needs is of use. A job that waits has no use for a part."""
    workers: tuple[Resources, ...] = ()
    """The parts of `needs`, each of which needs a machine that holds it. Empty: all of it is one such part."""

    @classmethod
    def of_workers(cls, workers: Sequence[Resources], most: Resources | None = None, *, is_at_work: bool) -> Claim:
        """Return the claim of workers, each of which needs a machine that holds it. `most` is by default their sum."""
        needs = {kind: sum(worker.get(kind, 0.0) for worker in workers) for kind in KINDS}
        return cls(needs, needs if most is None else most, is_at_work, tuple(workers))

    def parts(self) -> list[tuple[Resources, int]]:
        """Return the different workers with their numbers, the largest first, which find room with more difficulty."""
        counts = Counter(tuple(worker.get(kind, 0.0) for kind in KINDS) for worker in self.workers or (self.needs,))
        by_gpus = sorted(counts.items(), key=lambda part: part[0][::-1], reverse=True)
        return [(dict(zip(KINDS, amounts, strict=True)), count) for amounts, count in by_gpus]

    def worker_of_a_gpu(self) -> Resources:
        """Return what a further GPU needs on its machine, with the CPUs of the smallest worker that has one."""
        return {"GPU": 1, "CPU": min((worker["CPU"] for worker, _ in self.parts() if worker["GPU"]), default=0.0)}


NOTHING = Claim({}, {})
"""The claim of a job that keeps its place among the others, and needs nothing at the moment."""


def divisible(machines: Sequence[Machine], claimants: Collection[str]) -> Packing:
    """Return what the jobs divide: the machines, less what others hold there.

    Args:
        machines: The machines.
        claimants: The ids of the jobs.
    """
    lefts = []
    for machine in machines:
        left = Left.of(machine.total)
        for holder, amounts in machine.held.items():
            for amount in amounts if holder not in claimants else ():
                left = left.without(amount)
        lefts.append(left)
    return Packing(lefts)


def divide_resources(machines: Packing, claims: Sequence[Claim]) -> list[dict[str, float]]:
    """Return the share of each claim, in their order, which is that of their coming.

    First, each claim gets what it needs, if the machines hold all of that beside what the earlier ones got. A claim
    whose needs do not fit gets those of its workers that still fit, if its job is at work and lost a machine, and
    nothing if its job waits. What remains is divided equally, and nobody gets more than it can use.
    """
    cpus = machines.cpus()
    served: dict[int, Claim] = {}
    for number, claim in enumerate(claims):
        attempt = machines.copy()
        if all(attempt.place(worker, count) == count for worker, count in claim.parts()):
            served[number], machines = claim, attempt
    for number, claim in enumerate(claims):
        if number not in served and claim.is_at_work:
            placed = [(worker, machines.place(worker, count)) for worker, count in claim.parts()]
            needs = {kind: sum(worker[kind] * count for worker, count in placed) for kind in KINDS}
            served[number] = replace(claim, needs=needs)
    joint = list(served.values())
    shares = [dict.fromkeys(KINDS, 0.0) for _ in claims]
    for number, *amounts in zip(served, _level(cpus, joint), _whole_gpus(machines, joint), strict=True):
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
    return [round(share, DIGITS) for share in shares(low)]


def _whole_gpus(machines: Packing, claims: Sequence[Claim]) -> list[float]:
    """Return the GPUs of each claim: those that it needs, and its part of those that are left on the machines.

    They are divided one by one: the claim with the fewest gets the next. A part of a GPU would be of no use to anyone,
    and neither would a GPU of a machine that has no CPUs left for its worker.
    """
    shares = [claim.needs.get("GPU", 0.0) for claim in claims]
    growing = set(range(len(claims)))
    while growing := {
        number for number in growing if shares[number] + 1 <= claims[number].most.get("GPU", 0.0) + ROUNDING
    }:
        fewest = min(sorted(growing), key=shares.__getitem__)
        if machines.place(claims[fewest].worker_of_a_gpu()):
            shares[fewest] += 1
        else:
            growing.remove(fewest)
    return shares


class Claims:
    """The class of the actor that holds the claims of all jobs of a cluster."""

    def __init__(self, look: Callable[[], Sequence[Machine]] = look_at_machines) -> None:
        self._claims: dict[str, Claim] = {}  # by job, in the order of their coming
        self._renewed_s: dict[str, float] = {}
        self._shares: dict[str, dict[str, float]] = {}
        self._look, self._machines, self._looked_s = look, look(), time.monotonic()

    def claim(self, job: str, claim: Claim) -> tuple[dict[str, float], int]:
        """Renew the claim of a job; return its share of the machines, and the number of jobs that share them."""
        now = time.monotonic()
        self._claims[job], self._renewed_s[job] = claim, now
        for other in [name for name, renewed_s in self._renewed_s.items() if now - renewed_s > _EXPIRE_S]:
            self.release(other)
        if now - self._looked_s >= _LOOK_EVERY_S:
            self._machines, self._looked_s = self._look(), now
        shares = divide_resources(divisible(self._machines, self._claims.keys()), list(self._claims.values()))
        self._shares = dict(zip(self._claims, shares, strict=True))
        return self._shares[job], len(self._claims)

    def cpus_of(self, job: str) -> float | None:
        """Return the CPUs of a job's share as of the last claim; None if it claims nothing."""
        share = self._shares.get(job)
        return share["CPU"] if share else None

    def release(self, job: str) -> None:
        """Forget the claim of a job."""
        for entries in (self._claims, self._renewed_s, self._shares):
            entries.pop(job, None)


class Share:
    """The share of this process's job, which a thread renews every second."""

    def __init__(self, claim: Claim) -> None:
        """Claim, and wait for the first answer."""
        import ray

        self.claim, self._job = claim, ray.get_runtime_context().get_job_id()
        self._registry: Any = None
        self._started: list[Any] = []
        """All handles so far: Ray ends an actor once the handle that started it is gone, whatever others there are."""
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
                if (registry := self._registry) is None:
                    registry = _start_registry()
                    self._started.append(registry)
                with self._sending:
                    if self._is_closed.is_set():
                        return
                    answer = registry.claim.remote(self._job, self.claim)
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


def cpus_of_this_job() -> float:
    """Return the CPUs of the share of the job to which this process belongs: its driver, or one of its workers.

    A job that claims nothing, as on a Ray of its own, has those of all machines.
    """
    import ray

    try:
        claims = ray.get_actor(_NAME, _NAMESPACE)
        cpus = ray.get(claims.cpus_of.remote(ray.get_runtime_context().get_job_id()), timeout=_ANSWER_S)
    except (ray.exceptions.RayError, ValueError):  # there is no such actor, or it has just ended
        cpus = None
    return float(ray.cluster_resources().get("CPU", 0.0) if cpus is None else cpus)


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
