"""The stage of one engine: an actor that captions pictures or explains texts, each of them once."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray

from asap.preprocessing.words import replace_unreadable
from asap.storage.location import Location
from jobs.annotate.known import AWAITED, CLAIMED, key_of, renewed
from jobs.annotate.requests import SMALL_COLUMNS, missing_input, request_of
from jobs.annotate.rows import DESCRIBED_COLUMNS, KINDS, annotation_table
from jobs.descriptions.engine import NO_USAGE, Engine, Outcome, Reply, Request, Usage
from jobs.descriptions.left_out import LeftOut
from jobs.descriptions.prompts import chat_prompt, fill
from jobs.descriptions.settings import DescriptionSettings
from jobs.descriptions.vllm_rows import Asked, Written, ask
from jobs.metrics import PairMetrics, count
from jobs.scan.stages.captioners import load_captioner

_LOOK_AGAIN_S = 0.2
"""Seconds between two looks for a description that another process writes."""


@dataclass(frozen=True)
class Order:
    """The work of a stage."""

    settings: DescriptionSettings
    input: Location
    """Input of the job, from which paths in a file of descriptions may start."""
    device: str | None = None
    threads: int | None = None
    """Threads of torch on a CPU. None: torch decides."""
    job: str = ""
    """Name of the job, for its metrics."""
    run_id: str | None = None
    """Id of the run of the job, which becomes `judged_run` of the rows."""
    is_last: bool = True
    """True if no other stage follows: the rows are finished then."""
    content: str | None = None
    """Fingerprint of the engine's files, which must be the same on every machine. None: not compared."""
    is_left_out: bool = False
    """True for rows that ended the process of this engine: their descriptions are errors."""

    @property
    def prompt_has_text(self) -> bool:
        """True if a caption depends on the text of its pair."""
        return self.settings.kind == "caption" and "{text}" in (self.settings.prompt or "")

    @property
    def is_lookup(self) -> bool:
        """True if descriptions come from a file: each pair has an entry of its own then."""
        return self.settings.engine == "precomputed"

    @property
    def has_stages(self) -> bool:
        """True if stages of vLLM describe, before the stage of this order gets the rows."""
        return self.settings.engine == "vllm" and not self.is_left_out


def ask_batch(batch: pa.Table, order: Order, known: Any) -> pa.Table:
    """Return prepared rows with their requests for vLLM's stages. Each picture or text that differs is asked for once.

    Args:
        batch: Prepared rows.
        order: The work.
        known: The actor of `known.start_known`. What it knows already is not asked for.
    """
    kind = order.settings.kind
    rows = batch.select(SMALL_COLUMNS).to_pylist()
    places: dict[str, list[int]] = {}
    idle = []
    for position, row in enumerate(rows):
        if missing_input(kind, row) is None:
            places.setdefault(key_of(kind, row, with_text=order.prompt_has_text), []).append(position)
        else:
            idle.append(Asked([position]))
    found = ray.get(known.lookup.remote(list(places)))
    asked = []
    for positions, outcome in zip(places.values(), found, strict=True):
        if outcome is not None:
            asked.append(Asked(positions, known=outcome))
            continue
        request = request_of(rows[positions[0]], None)
        picture = batch["thumbnail"][positions[0]].as_py() if kind == "caption" else None
        asked.append(Asked(positions, fill(chat_prompt(order.settings), request.text), picture))
    return ask(batch, [*asked, *idle])


@dataclass(frozen=True)
class _Described:
    outcome: Outcome
    is_new: bool
    usage: Usage = NO_USAGE


class DescribeStage:
    """The actor that describes prepared rows. It loads its engine once, and never raises for a row.

    An engine that asks an endpoint gets several batches at a time, each in a thread.
    """

    def __init__(self, order: Order, known: Any = None, counter: Any = None, writers: Sequence[Any] = ()) -> None:
        """Load the engine.

        Args:
            order: The work.
            known: The actor of `known.start_known`; None for an engine that looks descriptions up.
            counter: The actor that counts finished rows, for the last stage.
            writers: Actors of `jobs.scan.stages.write`, for the last stage. Empty: the rows are returned.
        """
        self._order, self._known, self._counter = order, known, counter
        self._metrics = PairMetrics("annotate", order.job)
        self._owner = ray.get_runtime_context().get_actor_id() if ray.is_initialized() else "here"
        self._lock, self._under_way = threading.Lock(), set[str]()
        self._writer = random.choice(writers) if writers else None
        self._note_first("worker")
        if order.threads and order.settings.engine == "transformers":
            import torch

            torch.set_num_threads(order.threads)
        self._engine: Engine
        if order.is_left_out:
            self._engine = LeftOut()
        elif order.has_stages:
            self._engine = Written(order.settings)
        else:
            self._engine = load_captioner(order.settings, order.input, order.device, order.content)
        self._note_first("model")

    def _note_first(self, event: str) -> None:
        if self._counter is not None:
            self._counter.note_first.remote(event, time.time())

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Return the rows with the columns of this kind; the last stage hands finished rows to a writer.

        With a writer, a table with the number of rows is returned.
        """
        kind = self._order.settings.kind
        if isinstance(self._engine, Written):
            batch = self._engine.read(batch)
        rows = batch.select(SMALL_COLUMNS).to_pylist()
        columns: list[dict[str, Any]] = [{} for _ in rows]
        requests: dict[int, Request] = {}
        for position, row in enumerate(rows):
            if (code := missing_input(kind, row)) is not None:
                columns[position] = {f"{kind}_error": code}
            else:
                thumbnail = batch["thumbnail"][position].as_py() if kind == "caption" else None
                requests[position] = request_of(row, thumbnail)
        with self._metrics.stage_timed(kind):
            described = self._describe(rows, requests)
        for position, one in described.items():
            columns[position] = self._columns(one)
            rows[position]["warnings"] = _warnings(kind, rows[position]["warnings"], one.outcome)
        self._count(described.values())
        batch = _with_columns(batch, kind, columns, [row["warnings"] for row in rows])
        if self._order.is_last:
            return self._finish(batch)
        return batch.drop_columns("thumbnail")  # the next stage need not receive it

    def _finish(self, batch: pa.Table) -> pa.Table:
        """Make annotations of rows that have all descriptions, and hand them over."""
        table = finished_rows(batch, self._order.input, self._order.run_id)
        if self._writer is not None:
            ray.get(self._writer.add.remote(table))
        if self._counter is not None:
            errors = sum(status == "error" for status in table["status"].to_pylist())
            self._counter.add.remote(table.num_rows, errors, 0, 0)
        self._metrics.count_rows(table)
        return table if self._writer is None else pa.table({"rows": [table.num_rows]})

    def _describe(self, rows: Sequence[Mapping[str, Any]], requests: Mapping[int, Request]) -> dict[int, _Described]:
        """Describe each picture or text that differs once, unless it is known."""
        if self._order.is_lookup:
            found = self._engine.describe(list(requests.values()))
            return {place: _Described(one, False) for place, one in zip(requests, found, strict=True)}
        kind = self._order.settings.kind
        keys = {place: key_of(kind, rows[place], with_text=self._order.prompt_has_text) for place in requests}
        if isinstance(self._engine, Written):
            return self._take(self._engine, keys, requests)
        # The first row of each key stands for all of them.
        first = {key: place for place, key in reversed(keys.items())}
        new: dict[str, Outcome] = {}
        outcomes: dict[str, Outcome] = {}
        while waiting := [key for key in first if key not in outcomes]:
            answers = self._claim(waiting)
            outcomes |= {key: answer for key, answer in answers.items() if not isinstance(answer, str)}
            mine = [key for key, answer in answers.items() if answer == CLAIMED]
            if mine:
                written = self._write({key: requests[first[key]] for key in mine})
                new |= written
                outcomes |= written
            elif any(answer == AWAITED for answer in answers.values()):
                time.sleep(_LOOK_AGAIN_S)
        return {
            place: _Described(outcomes[key], True, outcomes[key].usage)
            if key in new and first[key] == place
            else _Described(outcomes[key], False)
            for place, key in keys.items()
        }

    def _take(
        self, written: Written, keys: Mapping[int, str], requests: Mapping[int, Request]
    ) -> dict[int, _Described]:
        """Return what vLLM's stages have written, and tell the others."""
        found = dict(zip(requests, written.describe(list(requests.values())), strict=True))
        new = {place for place, request in requests.items() if written.is_new(request)}
        if self._known is not None and new:
            ray.get(self._known.tell.remote(self._owner, {keys[place]: found[place] for place in sorted(new)}))
        return {
            place: _Described(outcome, True, outcome.usage) if place in new else _Described(outcome, False)
            for place, outcome in found.items()
        }

    def _claim(self, keys: list[str]) -> dict[str, Outcome | str]:
        if self._known is None:
            return dict.fromkeys(keys, CLAIMED)
        # The claims are those of the process, so that it has them again after a restart. Its other threads wait here.
        with self._lock:
            answers = dict(zip(keys, ray.get(self._known.claim.remote(self._owner, keys)), strict=True))
            for key, answer in answers.items():
                if answer == CLAIMED and key in self._under_way:
                    answers[key] = AWAITED
                elif answer == CLAIMED:
                    self._under_way.add(key)
        return answers

    def _write(self, requests: Mapping[str, Request]) -> dict[str, Outcome]:
        """Have the engine describe these requests, and tell the others."""
        if self._known is None:
            return dict(zip(requests, self._engine.describe(list(requests.values())), strict=True))
        try:
            with renewed(self._known, self._owner):
                written = dict(zip(requests, self._engine.describe(list(requests.values())), strict=True))
            ray.get(self._known.tell.remote(self._owner, written))
        finally:
            with self._lock:
                self._under_way -= requests.keys()
        return written

    def _columns(self, one: _Described) -> dict[str, Any]:
        kind, outcome = self._order.settings.kind, one.outcome
        columns: dict[str, Any] = {
            f"{kind}_is_new": one.is_new,
            f"{kind}_input_tokens": one.usage.input_tokens,
            f"{kind}_output_tokens": one.usage.output_tokens,
        }
        if isinstance(outcome, Reply):
            return columns | {kind: replace_unreadable(outcome.text), f"{kind}_is_cut": outcome.is_cut}
        failed = {f"{kind}_error": outcome.kind, "_detail": outcome.detail, "_retryable": outcome.is_retryable}
        return columns | failed

    def _count(self, described: Any) -> None:
        kind, job, settings = self._order.settings.kind, self._order.job, self._order.settings
        read = sum(one.usage.input_tokens for one in described)
        written = sum(one.usage.output_tokens for one in described)
        count("asap_annotate_tokens_total", read, job=job, kind=kind, direction="input")
        count("asap_annotate_tokens_total", written, job=job, kind=kind, direction="output")
        count("asap_annotate_cost_total", settings.cost(read, written), job=job, kind=kind)


def _warnings(kind: str, warnings: list[str] | None, outcome: Outcome) -> list[str]:
    is_cut = isinstance(outcome, Reply) and outcome.is_cut
    return [*(warnings or []), *([f"the {kind} is cut: its model reached max_new_tokens"] if is_cut else [])]


def _with_columns(
    batch: pa.Table, kind: str, columns: Sequence[Mapping[str, Any]], warnings: list[list[str]]
) -> pa.Table:
    """Return the batch with the columns of a kind, the reasons of its failures, and the warnings."""
    types = DESCRIBED_COLUMNS[kind] | {f"_{kind}_detail": pa.string(), f"_{kind}_retryable": pa.bool_()}
    for name, of in types.items():
        source = name.replace(f"_{kind}", "", 1) if name.startswith("_") else name
        batch = _with_column(batch, name, pa.array([row.get(source) for row in columns], of))
    return _with_column(batch, "warnings", pa.array(warnings, pa.list_(pa.string())))


def _with_column(batch: pa.Table, name: str, values: pa.Array) -> pa.Table:
    position = batch.schema.get_field_index(name)
    return batch.append_column(name, values) if position < 0 else batch.set_column(position, name, values)


def finished_rows(batch: pa.Table, input: Location, run_id: str | None) -> pa.Table:
    """Return annotations of rows that have been through all stages. A row is an error if a description is missing."""
    kinds = [kind for kind in KINDS if kind in batch.column_names and f"{kind}_error" in batch.column_names]
    names = [name for name in batch.column_names if name not in ("thumbnail", "pixels")]
    rows = batch.select(names).to_pylist()
    for row in rows:
        row |= _status(row, kinds) | {"judged_run": run_id, "image_name": name_below(row["image_uri"], input)}
    return annotation_table(batch, rows)


def _status(row: Mapping[str, Any], kinds: Sequence[str]) -> dict[str, Any]:
    """Return status, code, detail and whether another try may succeed; the code is that of the first failure."""
    failed = [kind for kind in kinds if row[f"{kind}_error"] is not None]
    if not failed:
        return {"status": "ok", "error_code": None, "error_detail": None, "retryable": None}
    details, retryable = [], False
    for kind in failed:
        own = row[f"_{kind}_detail"]
        detail = own or row["error_detail"] or f"the pair has no {'picture' if kind == 'caption' else 'text'}"
        details.append(f"{kind}: {detail}")
        retryable = retryable or bool(row[f"_{kind}_retryable"] if own else row["retryable"])
    return {
        "status": "error", "error_code": row[f"{failed[0]}_error"], "error_detail": "; ".join(details),
        "retryable": retryable,
    }  # fmt: skip


def name_below(uri: str | None, input: Location) -> str | None:
    """Return the path of a picture below the input, or below a folder that holds it; None for one elsewhere."""
    for folder in (input, input.parent, input.parent.parent):
        if uri is not None and uri.startswith(f"{folder}/"):
            return uri.removeprefix(f"{folder}/")
    return None
