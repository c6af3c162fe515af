"""The progress of a job, counted by a small Ray actor as batches finish: for people, not for the record.

A batch that is done twice counts twice. The final counts are made from the results.
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
    """Rows that this run of the job has finished so far."""

    rows: int = 0
    errors: int = 0
    flagged: int = 0
    seconds: float = 0.0
    """Seconds from the end of the first batch to the end of the last."""
    rows_timed: int = 0
    """Rows that were finished in these seconds: all but those of the first batch."""

    @property
    def pairs_per_s(self) -> float:
        """The speed once started: the first batch, which waits for the model to load, is left out."""
        return self.rows_timed / self.seconds if self.seconds else 0.0


class Counter:
    """The class of the actor."""

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
        """Return the counts so far."""
        return RowCounts(
            self._rows, self._errors, self._flagged, self._last_s - self._first_s, self._rows - self._first_rows
        )


def start_counter() -> Any:
    """Start a counter, pinned to the driver's node, so losing another node does not lose it."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(Counter).remote()


def count_batch(counter: Any, results: pa.Table) -> None:
    """Report a table of result rows to the counter, without waiting for it."""
    errors = pc.sum(pc.equal(results["status"], "error")).as_py() or 0
    flagged = pc.sum(pc.is_in(results["verdict"], pa.array(["manipulated", "review"]))).as_py() or 0
    counter.add.remote(results.num_rows, errors, flagged)
