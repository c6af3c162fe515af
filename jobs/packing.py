"""Workers placed on machines: each needs a machine of its own size, and a part of a GPU needs a GPU of its own size.

Sums do not show this. Two machines with half a GPU each have one GPU together, and hold no worker that needs one.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple, Self

Resources = Mapping[str, float]
"""Amounts by Ray's name of the resource, such as CPU and GPU."""

KINDS = ("CPU", "GPU")
DIGITS = 6
"""Digits of an amount. Ray itself counts ten-thousandths."""
ROUNDING = 1e-6


class Left(NamedTuple):
    """The rest of a machine beside the workers on it.

    In their order, machines with GPUs come last, and larger ones after smaller ones.
    """

    gpus: tuple[float, ...]
    """The rest of each GPU, the least first. A GPU of which nothing is left is not among them."""
    cpus: float

    @classmethod
    def of(cls, machine: Resources) -> Self:
        """Return what is left on a machine on which nothing is placed."""
        gpus = machine.get("GPU", 0.0)
        part = round(gpus % 1, DIGITS)
        return cls((part,) * bool(part) + (1.0,) * int(gpus), machine.get("CPU", 0.0))

    def holds(self, worker: Resources) -> float:
        """Return how many of equal workers there is room for; infinity for workers that need nothing."""
        cpus, gpus = worker.get("CPU", 0.0), worker.get("GPU", 0.0)
        by_cpus = self.cpus / cpus + ROUNDING if cpus else math.inf
        if not gpus:
            by_gpus = math.inf
        elif gpus < 1:  # on one GPU
            by_gpus = sum(int(gpu / gpus + ROUNDING) for gpu in self.gpus)
        else:  # several GPUs, all of them whole
            by_gpus = self.gpus.count(1.0) / gpus + ROUNDING
        fewest = min(by_cpus, by_gpus)
        return fewest if math.isinf(fewest) else int(fewest)

    def without(self, worker: Resources, count: int = 1) -> Left:
        """Return what is left beside equal workers. Without room for all of them, nothing goes below 0."""
        gpus = list(self.gpus)
        for _ in range(count):
            gpus = _take(gpus, worker.get("GPU", 0.0))
        cpus = round(max(0.0, self.cpus - count * worker.get("CPU", 0.0)), DIGITS)
        return Left(tuple(sorted(gpu for gpu in gpus if gpu > ROUNDING)), cpus)


def _take(gpus: list[float], amount: float) -> list[float]:
    """Return what is left of GPUs, the least first, if so much of them is taken."""
    if 0 < amount < 1:
        # The fullest GPU that has room: whole ones stay whole as long as they can.
        number = next((number for number, gpu in enumerate(gpus) if gpu + ROUNDING >= amount), None)
        if number is not None:
            return sorted([*gpus[:number], *gpus[number + 1 :], round(gpus[number] - amount, DIGITS)])
    return gpus[: max(0, len(gpus) - math.ceil(amount - ROUNDING))] if amount else gpus


class Packing:
    """Machines on which workers are placed one after the other."""

    def __init__(self, machines: Iterable[Left]) -> None:
        # Many machines are alike, and many workers too: both are counted, so a large cluster costs no more.
        self._left = Counter(machines)

    def copy(self) -> Packing:
        """Return the same machines, for an attempt."""
        return Packing(self._left)  # a counter of a counter has the same counts

    def cpus(self) -> float:
        """Return the CPUs that are left on all machines together."""
        return sum(left.cpus * count for left, count in self._left.items())

    def whole_gpus(self) -> int:
        """Return the number of GPUs of which everything is left."""
        return sum(left.gpus.count(1.0) * count for left, count in self._left.items())

    def place(self, worker: Resources, count: int = 1) -> int:
        """Place equal workers, as many of them as there is room for, and return their number."""
        placed = 0
        # The smallest machine that has room comes first, so that large ones are left for large workers.
        for left in sorted(self._left):
            room = left.holds(worker)
            if math.isinf(room):
                return count
            machines, each = self._left[left], int(room)
            filled = min(machines, (count - placed) // each) if each else 0
            self._move(left, left.without(worker, each), filled)
            placed += filled * each
            if each and filled < machines and placed < count:
                self._move(left, left.without(worker, count - placed), 1)
                placed = count
            if placed == count:
                break
        return placed

    def _move(self, before: Left, after: Left, machines: int) -> None:
        self._left[before] -= machines
        self._left[after] += machines
        self._left = +self._left  # without the counts that are 0
