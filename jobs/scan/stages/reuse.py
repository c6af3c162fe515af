"""Pairs that were judged before: a row of the same picture and text takes their raw scores, without the model.

Two pairs are the same if the bytes of their pictures, their texts as the model reads them, and their captions are the
same. The row gets the raw scores of the first one and the verdict that the policy makes of them, and its `reused` says
where they come from.

The detectors of a job share one memory of the pairs that were judged last. Nobody waits for a pair that is being
judged: two detectors that have the same pair at once both judge it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from asap.policy import Policy
from asap.preprocessing.words import split_words
from jobs.scan.input.manifest import readable_text
from jobs.scan.stages.pair_store import StoreReader
from jobs.scan.stages.pair_values import (
    NOTHING,
    RAW_COLUMNS,
    Found,
    ReuseContext,
    pair_keys,
    values_of,
)
from jobs.scan.stages.result_rows import CALLER_COLUMNS, RESULT_SCHEMA, SCHEMA_VERSION
from jobs.scan.stages.verdicts import reapply_policy

_FROM_BATCH = ["attempt", "caption", "caption_error", "explanation", "explanation_error", "width", "height",
               "image_sha256"]  # fmt: skip
"""Columns that a row has before it is judged, beside those of the caller."""
_ANSWER_S = 60.0
"""Seconds to wait for the memory. Without an answer, pairs are judged."""
_KEY_BYTES = 450
"""Memory of a pair beside its values, most of it for Python objects that hold its key. Measured."""


class PairMemory:
    """The pairs that were judged last, found by their keys: the class of the actor. The oldest leave a full memory."""

    def __init__(self, most_bytes: int) -> None:
        """Start empty; `most_bytes` bounds the memory of keys and values, and 0 keeps none."""
        self._most_bytes = most_bytes
        self._positions: dict[bytes, tuple[int, int]] = {}
        """The number of a table and the row in it, for each key."""
        self._tables: dict[int, Found] = {}
        self._bytes = 0
        self._next = 0
        self._contexts: set[ReuseContext] = set()

    def find(self, keys: Sequence[bytes]) -> Found:
        """Return the values of those keys that are known."""
        by_table: dict[int, list[tuple[bytes, int]]] = {}
        for key in keys:
            if (position := self._positions.get(key)) is not None:
                by_table.setdefault(position[0], []).append((key, position[1]))
        if not by_table:
            return NOTHING
        parts = [self._tables[number].values.take([row for _, row in rows]) for number, rows in by_table.items()]
        return Found([key for rows in by_table.values() for key, _ in rows], pa.concat_tables(parts))

    def add(self, context: ReuseContext, keys: Sequence[bytes], values: pa.Table) -> None:
        """Keep pairs that were judged. The context is kept even if there are none."""
        self._contexts.add(context)
        if not keys or not self._most_bytes:
            return
        number, self._next = self._next, self._next + 1
        self._tables[number] = Found(list(keys), values)
        self._positions |= {key: (number, row) for row, key in enumerate(keys)}
        self._bytes += _size(self._tables[number])
        while self._bytes > self._most_bytes and self._tables:
            oldest = next(iter(self._tables))
            found = self._tables.pop(oldest)
            self._bytes -= _size(found)
            for key in found.keys:
                if self._positions.get(key, (None,))[0] == oldest:  # else it was judged again later
                    del self._positions[key]

    def contexts(self) -> set[ReuseContext]:
        """Return the contexts of all detectors that judged. There are several if their devices differ."""
        return self._contexts


def _size(found: Found) -> int:
    return int(found.values.nbytes) + _KEY_BYTES * len(found.keys)


def start_memory(most_bytes: int) -> Any:
    """Start the memory of a job, pinned to the driver's node, so losing another node does not lose it."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(PairMemory).remote(most_bytes)


@dataclass(frozen=True)
class Reuse:
    """The places where detectors find pairs that were judged before."""

    memory: Any
    """The actor of `start_memory`."""
    store: Any = None
    """Reference to the `StoreIndex` of a reuse store. None: there is no store."""
    system: pafs.FileSystem | None = None
    """The driver's file system of the store."""


class _Value(NamedTuple):
    """The values that are kept of a pair."""

    table: pa.Table
    row: int
    source: str
    """The `reused` of rows that take it."""


_FITTED = ["width", "height", "text", "text_escapes", "caption"]
_ROUNDING = 1e-3
"""Share of a side by which the rounding of a box may leave the picture."""


def _misfits(rows: pa.Table, values: pa.Table) -> list[str | None]:
    """Return for each prepared row why values cannot be those of its picture and text; None if they can."""
    boxes, scores = values["raw_box_px"].to_pylist(), values["word_scores"].to_pylist()
    reasons: list[str | None] = []
    for row, box, words in zip(rows.to_pylist(), boxes, scores, strict=True):
        text = None if row["text"] is None else readable_text(row["text"], row["text_escapes"])
        right, bottom = (row[side] * (1 + _ROUNDING) for side in ("width", "height"))
        if max(box["x0"], box["x1"]) > right or max(box["y0"], box["y1"]) > bottom:
            reasons.append("a box leaves its picture")
        elif row["caption"] is None if words is None else text is None or len(words) != len(split_words(text)):
            reasons.append("the scores of words are not those of the text")
        else:
            reasons.append(None)
    return reasons


def _with_notes(batch: pa.Table, notes: dict[int, str]) -> pa.Table:
    """Return prepared rows with a warning more in some of them."""
    warnings = [
        [*(own or ()), notes[row]] if row in notes else own for row, own in enumerate(batch["warnings"].to_pylist())
    ]
    position = batch.schema.get_field_index("warnings")
    return batch.set_column(position, batch.schema.field(position), pa.array(warnings, pa.list_(pa.string())))


class JudgedBefore:
    """The part of a detector that completes rows of pairs that were judged before. Threads may share it."""

    def __init__(self, reuse: Reuse, context: ReuseContext, policy: Policy, run_id: str | None) -> None:
        """Take over the settings.

        Args:
            reuse: Where pairs are found.
            context: All that decides the scores beside the pair.
            policy: The policy of the detector.
            run_id: Id of the run, which becomes `judged_run` of the rows.
        """
        self._memory = reuse.memory
        self._context, self._policy = context, policy
        self._ids = {"model_id": context.model_id, "familiarity_id": context.familiarity_id, "judged_run": run_id}
        self._lost = threading.Event()
        self._store = None
        if reuse.store is not None:
            self._store = StoreReader(ray.get(reuse.store), reuse.system, context.familiarity_id is not None)

    def complete(self, batch: pa.Table, judge: Callable[[pa.Table], pa.Table]) -> pa.Table:
        """Return the result rows of prepared rows, in their order. Those whose pair is new are judged.

        Args:
            batch: The prepared rows.
            judge: Returns the result rows of prepared rows.
        """
        keys = pair_keys(batch, self._context)
        first: dict[bytes, int] = {}
        for row, key in enumerate(keys):
            if key is not None:
                first.setdefault(key, row)
        values, notes = self._known_values(batch, first)
        if notes:
            batch = _with_notes(batch, {first[key]: note for key, note in notes.items()})
        new = [row for row, key in enumerate(keys) if key is None or (first[key] == row and key not in values)]
        if len(new) == len(batch):
            return judge(batch)
        parts, order = [], []
        if new:
            judged = judge(batch.take(new))
            parts, order = [judged], new
            kept = values_of(judged)
            for row, (position, status) in enumerate(zip(new, judged["status"].to_pylist(), strict=True)):
                if status == "ok" and (key := keys[position]) is not None:
                    values[key] = _Value(kept, row, "job")
        rest = sorted(set(range(len(batch))).difference(new))
        # The first row of a pair may have failed; then the others are judged too.
        failed = [row for row in rest if keys[row] not in values]
        if failed:
            parts.append(judge(batch.take(failed)))
        reused = [row for row in rest if keys[row] in values]
        if reused:
            parts.append(self._reused_rows(batch, reused, [values[key] for row in reused if (key := keys[row])]))
        return pa.concat_tables(parts).take(np.argsort([*order, *failed, *reused]))

    def _known_values(self, batch: pa.Table, first: dict[bytes, int]) -> tuple[dict[bytes, _Value], dict[bytes, str]]:
        """Return the values of those pairs that were judged before, and why values in the store are not used.

        Args:
            batch: The prepared rows.
            first: The first row of each pair.
        """
        known = self._find(list(first))
        values = {key: _Value(known.values, row, "job") for row, key in enumerate(known.keys)}
        if self._store is None:
            return values, {}
        found, notes = self._store.find([key for key in first if key not in values])
        if found.keys:
            reasons = _misfits(batch.select(_FITTED).take([first[key] for key in found.keys]), found.values)
            for row, (key, reason) in enumerate(zip(found.keys, reasons, strict=True)):
                if reason is None:
                    values[key] = _Value(found.values, row, "store")
                else:
                    notes[key] = self._store.refuse_key(key, reason)
        return values, notes

    def _find(self, keys: list[bytes]) -> Found:
        """Return the values of those keys that the memory knows; of none if it does not answer."""
        if self._lost.is_set():
            return NOTHING
        try:
            return ray.get(self._memory.find.remote(keys), timeout=_ANSWER_S)
        except ray.exceptions.RayError:  # the machine of the memory is gone, or does not answer
            self._lost.set()
            return NOTHING

    def _reused_rows(self, batch: pa.Table, rows: list[int], values: list[_Value]) -> pa.Table:
        """Return the result rows of prepared rows whose values are known."""
        taken = batch.select([*CALLER_COLUMNS, *_FROM_BATCH, "warnings"]).take(rows)
        known = pa.concat_tables([table.slice(row, 1) for table, row, _ in values]).combine_chunks()
        warnings = [
            [*(own or ()), *(of_text or ())]
            for own, of_text in zip(taken["warnings"].to_pylist(), known["text_warnings"].to_pylist(), strict=True)
        ]
        columns: dict[str, Any] = {name: taken[name] for name in (*CALLER_COLUMNS, *_FROM_BATCH)}
        columns |= {name: known[name] for name in RAW_COLUMNS}
        constants = self._ids | {"status": "ok", "schema_version": SCHEMA_VERSION}
        columns |= {
            name: pa.repeat(pa.scalar(value, RESULT_SCHEMA.field(name).type), len(rows))
            for name, value in constants.items()
        }
        columns["warnings"] = pa.array(warnings, pa.list_(pa.string()))
        columns["reused"] = pa.array([source for _, _, source in values], pa.string())
        for field in RESULT_SCHEMA:
            if field.name not in columns:
                columns[field.name] = pa.nulls(len(rows), field.type)
        return reapply_policy(pa.table({name: columns[name] for name in RESULT_SCHEMA.names}), self._policy)

    def keep(self, results: pa.Table) -> None:
        """Remember the pairs of these rows, which the writer has taken over, without waiting."""
        if self._lost.is_set():
            return
        new = results.filter(pc.and_(pc.equal(results["status"], "ok"), pc.is_null(results["reused"])))
        keys = pair_keys(new, self._context)
        known = [row for row, key in enumerate(keys) if key is not None]
        with suppress(ray.exceptions.RayError):
            self._memory.add.remote(
                self._context, [keys[row] for row in known], values_of(new.take(pa.array(known, pa.int64())))
            )
