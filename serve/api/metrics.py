"""What /metrics tells: of each process of the API, whichever of them is asked."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest
from prometheus_client.registry import Collector

MetricsByReplica = dict[str, list[Metric]]
"""Figures by the process that they are of."""
Ask = Callable[[], Awaitable[MetricsByReplica]]
"""Has other processes tell theirs."""


class Metrics:
    """Of one process of the API, which can ask for those of the others."""

    def __init__(self, replica: str = "only", others: Ask | None = None) -> None:
        self._replica = replica
        self._others = others
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "asap_requests", "Requests by route and status", ["route", "status"], registry=self.registry
        )
        self.seconds = Histogram("asap_request_seconds", "Of one request", ["route"], registry=self.registry)
        self.in_flight = Gauge("asap_requests_in_flight", "Requests being worked on", registry=self.registry)
        self.limit = Gauge("asap_requests_limit", "Requests let in at once, now", registry=self.registry)
        self.pairs = Counter("asap_pairs", "Judged pairs by verdict", ["verdict"], registry=self.registry)

    def own(self) -> MetricsByReplica:
        """Of this process, as they are now."""
        return {self._replica: list(self.registry.collect())}

    async def everyones(self) -> MetricsByReplica:
        """Of this process, and of the others as far as they answer."""
        others = await self._others() if self._others else {}
        return others | self.own()


def exposition(told: MetricsByReplica) -> bytes:
    """Prometheus's text format; each sample says by its label `replica` which process it is of.

    A sum would fall when a process ends, which Prometheus takes for a restart of all.
    """
    return generate_latest(_Together(told))


class _Together(Collector):
    def __init__(self, told: MetricsByReplica) -> None:
        self._told = told

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for replica, metrics in sorted(self._told.items()):
            for one in metrics:
                family = families.setdefault(one.name, Metric(one.name, one.documentation, one.type))
                for sample in one.samples:
                    family.add_sample(sample.name, sample.labels | {"replica": replica}, sample.value)
        yield from families.values()
