"""A plan of a job, made without Ray: its pairs, and the time, tokens and cost of a pilot of a few of them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from statistics import median
from typing import Any

from asap.storage.picture_address import PictureAddress
from jobs.annotate.plan import plan_annotation
from jobs.annotate.requests import preparation_of, requests_of
from jobs.annotate.settings import AnnotateSettings
from jobs.descriptions.engine import Failure, Outcome, Request
from jobs.descriptions.loading import is_small, load_engine
from jobs.descriptions.settings import DescriptionSettings
from jobs.errors import JobError
from jobs.scan.input.manifest import ManifestRow, SeenIds, storable, to_table
from jobs.scan.pilot import interval
from jobs.scan.stages.captioners import check_captioner
from jobs.scan.stages.prepare import prepare_batch

_CHUNKS = 3
"""Parts of a pilot that are timed apart, so that their times show how much they vary."""
_ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class Pilot:
    """The work of one engine on a few pairs, and what follows for all of them."""

    requests: int
    failed: int
    input_tokens: tuple[float, float, float]
    """Tokens of a request: mean, and the ends of its interval."""
    output_tokens: tuple[float, float, float]
    hours: tuple[float, float, float]
    """Hours of one process: by the median part of the pilot, by its fastest, and by its slowest."""
    cost: tuple[float, float, float] | None
    """Cost of all requests; None for an engine without prices."""
    wrote: str
    """The first description."""


@dataclass
class Preview:
    """The plan that `asap annotate --plan` shows."""

    source: dict[str, Any]
    rows: int = 0
    distinct: dict[str, int] = field(default_factory=dict)
    """Pictures and texts that differ, by what is written of them. Pictures of the same bytes at several addresses are
    known only once they are read."""
    missing: dict[str, int] = field(default_factory=dict)
    """Rows without a picture or without a text, by what cannot be written."""
    pilots: dict[str, Pilot] = field(default_factory=dict)
    untried: list[str] = field(default_factory=list)
    """Kinds that vLLM writes, whose stages need Ray and a GPU, so that a plan has no pilot of them."""


def preview(settings: AnnotateSettings) -> Preview:
    """Plan a job. Nothing is written, but the engines describe a few pairs, which may cost money.

    Raises the errors of `plan_annotation`, and `JobError` if no pair of a pilot can be described.
    """
    plan = plan_annotation(settings)
    found = Preview(plan.source.describe())
    first = _count(found, plan.source.rows(), settings)
    for kind, engine in settings.engines.items():
        if engine.engine == "vllm":
            found.untried.append(kind)
        elif engine.engine != "precomputed" and first:
            check_captioner(engine)  # the pilot needs the model on this machine, whatever the job has
            device = None if settings.device == "auto" else settings.device
            batch = prepare_batch(to_table(first), preparation_of(settings))
            with _threads_of(engine):
                found.pilots[kind] = run_pilot(engine, requests_of(kind, batch), found.distinct[kind], device)
    return found


@contextmanager
def _threads_of(settings: DescriptionSettings) -> Iterator[None]:
    """Give a model as many threads as a process of the job has on CPUs: one for a small model, else all."""
    if not is_small(settings):
        yield
        return
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _count(found: Preview, rows: Iterable[ManifestRow], settings: AnnotateSettings) -> list[ManifestRow]:
    """Count the rows of the input, and return the first ones, on which the engines are tried."""
    kinds = tuple(settings.engines)
    seen = {kind: SeenIds() for kind in kinds}
    found.distinct, found.missing = dict.fromkeys(kinds, 0), dict.fromkeys(kinds, 0)
    first: list[ManifestRow] = []
    stream = iter(rows)
    while chunk := list(islice(stream, _ROWS_AT_ONCE)):
        found.rows += len(chunk)
        first += [row for row in chunk if row.row_error is None][: settings.pilot_rows - len(first)]
        for kind in kinds:
            keys = [key for row in chunk if (key := _key(kind, row)) is not None]
            found.missing[kind] += len(chunk) - len(keys)
            if keys:
                found.distinct[kind] += int((~seen[kind].repeated(keys)).sum())
    return first


def _key(kind: str, row: ManifestRow) -> str | None:
    """Return what a description of the row is of; None if there is nothing to describe."""
    if row.row_error is not None:
        return None
    if kind == "caption":
        return None if row.image_uri is None else storable(str(PictureAddress.of_row(vars(row))))
    if row.text_uri is not None:
        return storable(row.text_uri)
    return storable(row.text) if row.text and row.text.strip() else None


def run_pilot(
    settings: DescriptionSettings, requests: Sequence[Request], total: int, device: str | None = None
) -> Pilot:
    """Have an engine describe some requests in a few parts, after one to warm up.

    Args:
        settings: Settings of the engine.
        requests: The requests, in the order of the input.
        total: Requests of the whole job.
        device: Device of a model in this process. None: CUDA if there is any, else the CPU.
    """
    if not requests:
        what = "picture that can be read" if settings.kind == "caption" else "text"
        raise JobError(f"the pilot has no {what} to describe. Raise pilot_rows, or look at the input.")
    engine = load_engine(settings, device)
    try:
        outcomes = engine.describe(requests[:1])
        if settings.engine == "openai":
            parallel = settings.endpoint.concurrency if settings.endpoint else 1
        else:
            parallel = settings.batch_size
        size = max(1, min(parallel, -(-len(requests) // _CHUNKS)))
        seconds = []
        for start in range(0, len(requests), size):
            part = requests[start : start + size]
            started = time.monotonic()
            outcomes += engine.describe(part)
            seconds.append((time.monotonic() - started) / len(part))
    finally:
        engine.close()
    if all(isinstance(outcome, Failure) for outcome in outcomes):
        raise JobError(f"no {settings.kind} was written in a pilot of {len(requests)}: {outcomes[0]}.")
    return _pilot(settings, outcomes[1:], seconds, total, parallel / size if settings.engine == "openai" else 1)


def _pilot(
    settings: DescriptionSettings, outcomes: Sequence[Outcome], seconds: Sequence[float], total: int, faster: float
) -> Pilot:
    """Return the figures of a pilot.

    `faster` is how many times as many requests an endpoint has under way in the job. The slow end of the interval of
    hours takes it that these are no help.
    """
    read = interval([outcome.usage.input_tokens for outcome in outcomes])
    written = interval([outcome.usage.output_tokens for outcome in outcomes])
    speeds = median(seconds) / faster, min(seconds) / faster, max(seconds)
    prices = [settings.cost(1, 0), settings.cost(0, 1)]
    cost = [total * (one * prices[0] + other * prices[1]) for one, other in zip(read, written, strict=True)]
    return Pilot(
        requests=len(outcomes),
        failed=sum(isinstance(outcome, Failure) for outcome in outcomes),
        input_tokens=read,
        output_tokens=written,
        hours=(total * speeds[0] / 3600, total * speeds[1] / 3600, total * speeds[2] / 3600),
        cost=(cost[0], cost[1], cost[2]) if any(prices) else None,
        wrote=next(outcome.text for outcome in outcomes if not isinstance(outcome, Failure)),
    )
