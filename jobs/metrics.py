"""Metrics of jobs for Prometheus, recorded by the processes that do the work, and where Prometheus finds them.

Each machine of a Ray cluster has a page of metrics, with and without the dashboard. Ray adds the prefix `ray_` to every
name, and sends what a process recorded to the page every ten seconds. The counts of the last seconds of a job are lost
with its Ray, and a batch that is done twice counts twice: metrics show how work goes. The final numbers are in the
job's summary.

A record costs microseconds, and there are a few of them for each batch. Errors of metrics never reach the work.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from asap.storage.files import write_atomically

_LOG = logging.getLogger("asap.metrics")
_OF_PAIRS: dict[str, tuple[str, tuple[str, ...]]] = {
    "rows_total": ("Rows that were finished, by status and error code", ("job", "status", "code")),
    "fetched_bytes_total": ("Bytes of the pictures that were fetched", ("job",)),
    "fetch_retries_total": ("Tries of fetches beyond the first", ("job",)),
    "stage_seconds_total": ("Seconds that the processes of a stage worked", ("job", "stage")),
}
"""Counters of every job over pairs. The kind of the job comes before their names."""
_COUNTERS: dict[str, tuple[str, tuple[str, ...]]] = {
    **{f"asap_{kind}_{name}": about for kind in ("scan", "annotate") for name, about in _OF_PAIRS.items()},
    "asap_scan_caption_tokens_total": ("Tokens that captioners read and wrote", ("job", "direction")),
    "asap_scan_caption_cost_total": ("Cost of captions, by the prices in the settings", ("job",)),
    "asap_scan_explanation_tokens_total": ("Tokens that explainers read and wrote", ("job", "direction")),
    "asap_scan_explanation_cost_total": ("Cost of explanations, by the prices in the settings", ("job",)),
    "asap_scan_detector_seconds_total": ("Seconds of detectors by state: busy, idle or loading", ("job", "state")),
    "asap_annotate_tokens_total": ("Tokens that engines read and wrote, by kind", ("job", "kind", "direction")),
    "asap_annotate_cost_total": ("Cost of descriptions, by the prices in the settings", ("job", "kind")),
    "asap_train_pairs_total": ("Pairs trained on, over all workers", ("job",)),
    "asap_train_steps_total": ("Training steps", ("job",)),
    "asap_train_step_seconds_total": ("Seconds of training steps", ("job",)),
}
_GAUGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "asap_train_loss": ("Loss of the last step, by term", ("job", "term")),
    "asap_train_done_ratio": ("Fraction of the run that is done", ("job",)),
}


def count(name: str, value: float, **tags: str) -> None:
    """Add `value` to a counter. Outside of Ray, and for 0, nothing is recorded."""
    if value > 0:
        _record(name, value, tags)


def show(name: str, value: float, **tags: str) -> None:
    """Set a gauge. Outside of Ray nothing is recorded."""
    _record(name, value, tags)


def _record(name: str, value: float, tags: dict[str, str]) -> None:
    if "ray" not in sys.modules:
        return
    import ray

    try:
        if ray.is_initialized():
            metric = _metric(name)
            (metric.inc if name in _COUNTERS else metric.set)(value, tags)
    except Exception:  # a metric must never end the work that it describes
        _warn_once(name)


@cache
def _metric(name: str) -> Any:
    from ray.util import metrics

    if name in _COUNTERS:
        return metrics.Counter(name, *_COUNTERS[name])
    return metrics.Gauge(name, *_GAUGES[name])


@cache
def _warn_once(name: str) -> None:
    _LOG.warning("the metric %s is not recorded", name, exc_info=True)


@dataclass(frozen=True)
class PairMetrics:
    """The metrics that every job over pairs has. Their names begin with the kind of the job."""

    kind: Literal["scan", "annotate"] = "scan"
    job: str = ""
    """Name of the job."""

    def count_rows(self, results: pa.Table) -> None:
        """Count the rows of a table of results by their status and error code."""
        outcomes = Counter(zip(results["status"].to_pylist(), results["error_code"].to_pylist(), strict=True))
        for (status, code), rows in outcomes.items():
            self._count("rows_total", rows, status=status, code=code or "")

    def count_fetches(self, rows: list[dict[str, Any]]) -> None:
        """Count the bytes and the repeated tries of prepared rows, from their `fetched_bytes` and `attempt`."""
        self._count("fetched_bytes_total", sum(row.get("fetched_bytes", 0) for row in rows))
        self._count("fetch_retries_total", sum(max(0, (row.get("attempt") or 1) - 1) for row in rows))

    @contextmanager
    def stage_timed(self, stage: str) -> Iterator[None]:
        """Add the seconds of the block to those of a stage."""
        started = time.monotonic()
        try:
            yield
        finally:
            self._count("stage_seconds_total", time.monotonic() - started, stage=stage)

    def _count(self, name: str, value: float, **tags: str) -> None:
        count(f"asap_{self.kind}_{name}", value, job=self.job, **tags)


def count_step(job: str, terms: Mapping[str, float], pairs: int, done: float) -> None:
    """Record a training step.

    Args:
        job: Name of the run.
        terms: Loss terms of the step, and its time in `seconds`.
        pairs: Pairs of the step, over all workers.
        done: Fraction of the run that is done.
    """
    count("asap_train_pairs_total", pairs, job=job)
    count("asap_train_steps_total", 1, job=job)
    count("asap_train_step_seconds_total", terms["seconds"], job=job)
    show("asap_train_done_ratio", done, job=job)
    for term, value in terms.items():
        if term != "seconds":
            show("asap_train_loss", value, job=job, term=term)


class DetectorTime:
    """The time of a detector, divided into loading, busy and idle. The busy share is a ratio of their rates."""

    def __init__(self, job: str) -> None:
        self._job = job
        self._since = time.monotonic()
        self._lock, self._batches = threading.Lock(), 0

    def leave(self, state: str) -> None:
        """Add the time since the last call, or since the start, to a state that ends now."""
        now = time.monotonic()
        count("asap_scan_detector_seconds_total", now - self._since, job=self._job, state=state)
        self._since = now

    def enter(self) -> None:
        """Begin a batch: the idle time ends, unless another thread is busy with a batch."""
        with self._lock:
            if not self._batches:
                self.leave("idle")
            self._batches += 1

    def exit(self) -> None:
        """End a batch: the busy time ends, unless another thread is busy with a batch."""
        with self._lock:
            self._batches -= 1
            if not self._batches:
                self.leave("busy")


def metrics_targets() -> list[str]:
    """Return host and port of the metrics page of each live machine of the running Ray."""
    import ray

    found = [(node["NodeManagerAddress"], node["MetricsExportPort"]) for node in ray.nodes() if node["Alive"]]
    return [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in found if port > 0]


@contextmanager
def targets_announced(file: str | None) -> Iterator[None]:
    """Write the targets to a file for Prometheus's `file_sd_configs` during the block; delete it after the block.

    Ray writes such a file only with its dashboard, which a Ray inside a job does not have. A file that cannot be
    written is a warning.
    """
    if file is None:
        yield
        return
    path = Path(file).expanduser()
    try:
        with write_atomically(path) as draft:
            draft.write_text(json.dumps([{"labels": {"job": "asap"}, "targets": metrics_targets()}]) + "\n")
    except OSError as error:
        _LOG.warning("asap: metrics_targets %s cannot be written: %s. The job goes on.", path, error.strerror)
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()
