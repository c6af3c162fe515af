"""The metrics of /metrics: those of every process of the API, whichever process answers the request."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest
from prometheus_client.registry import Collector

MetricsByReplica = dict[str, list[Metric]]
"""Metrics by the process that counted them."""
CollectOthers = Callable[[], Awaitable[MetricsByReplica]]
"""Collects metrics from the other replicas."""


_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15, 20, 30, 45, 60, 90, 120, 180, 300, 600)
"""Upper bounds of the histogram of latencies in seconds, of which those below the deadline are used."""


class Metrics:
    """The metrics of one process of the API, which can collect those of the other processes.

    Args:
        replica: The name of the process.
        others: Collects the metrics of the other processes; None if there are none.
        deadline_s: The longest time that a request may take, which is the last bound of the histogram.
    """

    def __init__(self, replica: str = "only", others: CollectOthers | None = None, deadline_s: float = 30) -> None:
        self._replica = replica
        self._others = others
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "asap_requests", "Requests by route and status", ["route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "asap_request_seconds", "Seconds of one request by route, errors apart", ["route", "outcome"],
            buckets=[*(bound for bound in _BUCKETS_S if bound < deadline_s), deadline_s], registry=self.registry,
        )  # fmt: skip
        self.in_flight = Gauge("asap_requests_in_flight", "Requests being processed", registry=self.registry)
        self.limit = Gauge("asap_requests_limit", "Requests that may be processed at once, now", registry=self.registry)
        self.pairs = Counter("asap_pairs", "Pairs by verdict", ["verdict"], registry=self.registry)
        self.key_requests = Counter(
            "asap_key_requests", "Requests by key and status", ["key", "status"], registry=self.registry
        )
        self.key_pairs = Counter("asap_key_pairs", "Judged pairs by key", ["key"], registry=self.registry)
        self.key_jobs = Counter("asap_key_jobs", "Submitted jobs by key", ["key"], registry=self.registry)
        self.key_reloads = Counter(
            "asap_key_reloads", "Attempts to read the changed file of keys", ["result"], registry=self.registry
        )
        self.audit_lost = Counter(
            "asap_audit_lost_lines", "Lines of requests that could not be written to the audit_file",
            registry=self.registry,
        )  # fmt: skip

    def count_reload(self, is_read: bool) -> None:
        """Count an attempt to read the file of keys anew."""
        self.key_reloads.labels("ok" if is_read else "failed").inc()

    def count_request(self, route: str, status: int, seconds: float) -> None:
        """Count a request by its route and its status, with its latency.

        Errors are apart, because a refusal takes hardly any time.
        """
        self.requests.labels(route, status).inc()
        self.seconds.labels(route, "ok" if status < 400 else "error").observe(seconds)

    def own(self) -> MetricsByReplica:
        """Return the current metrics of this process."""
        return {self._replica: list(self.registry.collect())}

    async def of_all_replicas(self) -> MetricsByReplica:
        """Return the metrics of this process, and of the other processes that answer."""
        others = await self._others() if self._others else {}
        return others | self.own()


def exposition(metrics: MetricsByReplica) -> bytes:
    """Return metrics in Prometheus's text format. The label `replica` of each sample names its process.

    The samples are not summed: a sum would fall when a process ends, which Prometheus takes for a restart of all.
    """
    return generate_latest(_Merged(metrics))


class _Merged(Collector):
    """One metric family of each name, with the samples of all processes."""

    def __init__(self, metrics: MetricsByReplica) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for replica, metrics in sorted(self._metrics.items()):
            for metric in metrics:
                family = families.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
                for sample in metric.samples:
                    family.add_sample(sample.name, sample.labels | {"replica": replica}, sample.value)
        yield from families.values()
