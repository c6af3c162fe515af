"""How far a job is, counted by a small Ray actor as batches are judged: for people, not for the record.

A batch that is done twice counts twice; what the results say in the end is counted from the results.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


@dataclass(frozen=True)
class RowCounts:
    """Rows so far, in this run of the job."""

    rows: int = 0
    errors: int = 0
    flagged: int = 0
    seconds: float = 0.0
    """From the first batch that was done to the last; `rows_timed` were done in between."""
    rows_timed: int = 0

    @property
    def pairs_per_s(self) -> float:
        """The speed once started."""
        return self.rows_timed / self.seconds if self.seconds else 0.0


class Counter:
    """The actor's class."""

    def __init__(self) -> None:
        self._rows = self._errors = self._flagged = self._first_rows = 0
        self._first_s = self._last_s = 0.0

    def add(self, rows: int, errors: int, flagged: int) -> None:
        """Count one batch."""
        self._last_s = time.monotonic()
        if not self._rows:
            self._first_s, self._first_rows = self._last_s, rows
        self._rows, self._errors, self._flagged = self._rows + rows, self._errors + errors, self._flagged + flagged

    def read(self) -> RowCounts:
        """The counts so far."""
        return RowCounts(
            self._rows, self._errors, self._flagged, self._last_s - self._first_s, self._rows - self._first_rows
        )


def start_counter() -> Any:
    """A counter that the job's actors can report to, on the machine of the driver: no other's loss is its end."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(Counter).remote()


def count_batch(counter: Any, results: pa.Table) -> None:
    """Report a table of result rows; does not wait."""
    errors = pc.sum(pc.equal(results["status"], "error")).as_py() or 0
    flagged = pc.sum(pc.is_in(results["verdict"], pa.array(["manipulated", "review"]))).as_py() or 0
    counter.add.remote(results.num_rows, errors, flagged)
