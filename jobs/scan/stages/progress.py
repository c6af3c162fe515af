"""The progress of a job, counted by a small Ray actor as batches finish: for people, not for the record.

A batch that is done twice counts twice. The final counts are made from the results.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from asap.labels import FLAGGED


@dataclass(frozen=True)
class RowCounts:
    """Rows that this run of the job has finished so far."""

    rows: int = 0
    errors: int = 0
    flagged: int = 0
    unfamiliar: int = 0
    seconds: float = 0.0
    """Seconds from the end of the first batch of a pipeline to the end of its last, over all pipelines."""
    rows_timed: int = 0
    """Rows that were finished in these seconds: all but those of the first batches."""
    slow: int = 0
    """Rows that were left out of their batches because their pictures were slow."""
    first: dict[str, float] = field(default_factory=dict)
    """Times (`time.time`) when a detector first began to load (`worker`), had loaded (`model`) and finished a batch
    (`pairs`)."""

    @property
    def pairs_per_s(self) -> float:
        """The speed once started: the first batches, which wait for the model to load, are left out."""
        return self.rows_timed / self.seconds if self.seconds else 0.0


class Counter:
    """The class of the actor."""

    def __init__(self) -> None:
        self._total = RowCounts()
        self._is_started = False
        self._last_s = 0.0

    def add(self, rows: int, errors: int, flagged: int, unfamiliar: int) -> None:
        """Count one batch."""
        now, total = time.monotonic(), self._total
        if self._is_started:
            seconds, timed = total.seconds + now - self._last_s, total.rows_timed + rows
        else:
            seconds, timed = total.seconds, total.rows_timed
        self._is_started, self._last_s = True, now
        self._total = RowCounts(
            total.rows + rows, total.errors + errors, total.flagged + flagged, total.unfamiliar + unfamiliar,
            seconds, timed, total.slow, total.first,
        )  # fmt: skip
        self.note_first("pairs", time.time())

    def note_first(self, event: str, at: float) -> None:
        """Keep the time of the first event of each name."""
        self._total = replace(self._total, first={event: at} | self._total.first)

    def count_slow(self, rows: int) -> None:
        """Count rows that were left out of a batch."""
        self._total = replace(self._total, slow=self._total.slow + rows)

    def start_pipeline(self) -> None:
        """Leave the time until the next batch out of the speed: another pipeline starts."""
        self._is_started = False

    def read(self) -> RowCounts:
        """Return the counts so far."""
        return self._total


def start_counter() -> Any:
    """Start a counter, pinned to the driver's node, so losing another node does not lose it."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(Counter).remote()


def count_batch(counter: Any, results: pa.Table) -> None:
    """Report a table of result rows to the counter, without waiting for it."""
    errors = pc.sum(pc.equal(results["status"], "error")).as_py() or 0
    flagged = pc.sum(pc.is_in(results["verdict"], pa.array(FLAGGED))).as_py() or 0
    unfamiliar = pc.sum(pc.equal(results["verdict"], "unfamiliar")).as_py() or 0
    counter.add.remote(results.num_rows, errors, flagged, unfamiliar)
