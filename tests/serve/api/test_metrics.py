"""Metrics of an API that has several processes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from ray.exceptions import RayActorError
from ray.serve.exceptions import DeploymentUnavailableError

from serve.api.metrics import Metrics, MetricsByReplica, exposition
from serve.app import _collect_metrics


def _counted(replica: str, requests: int) -> Metrics:
    metrics = Metrics(replica)
    for _ in range(requests):
        metrics.count_request("/v1/detect", 200, 0.1)
    return metrics


def test_each_sample_names_its_process_and_each_family_appears_once() -> None:
    text = exposition(_counted("b", 3).own() | _counted("a", 2).own()).decode()
    assert text.count("# TYPE asap_requests_total counter") == text.count("# TYPE asap_request_seconds histogram") == 1
    families = {family.name: family for family in text_string_to_metric_families(text)}
    counts = {
        (sample.labels["replica"], sample.labels["route"], sample.labels["status"]): sample.value
        for sample in families["asap_requests"].samples
        if sample.name == "asap_requests_total"
    }
    assert counts == {("a", "/v1/detect", "200"): 2, ("b", "/v1/detect", "200"): 3}
    buckets = [sample for sample in families["asap_request_seconds"].samples if sample.labels.get("le") == "+Inf"]
    assert [(sample.labels["replica"], sample.value) for sample in buckets] == [("a", 2), ("b", 3)]


@pytest.mark.parametrize(("deadline_s", "last"), [(30, [20, 30]), (2, [1, 2]), (3600, [600, 3600])])
def test_latencies_are_counted_up_to_the_deadline_and_errors_apart(deadline_s: float, last: list[float]) -> None:
    metrics = Metrics(deadline_s=deadline_s)
    metrics.count_request("/v1/detect", 200, deadline_s)
    metrics.count_request("/v1/detect", 429, 0.001)
    samples = [sample for family in metrics.own()["only"] for sample in family.samples]
    buckets = {
        float(sample.labels["le"]): sample.value
        for sample in samples
        if sample.name == "asap_request_seconds_bucket" and sample.labels["outcome"] == "ok"
    }
    bounds = sorted(buckets)
    assert bounds[-3:-1] == last
    assert [buckets[bound] for bound in bounds[-3:]] == [0, 1, 1]
    refused = [
        sample.value for sample in samples if sample.name.endswith("_count") and sample.labels.get("outcome") == "error"
    ]
    assert refused == [1]


class Handle:
    """A handle of the API's processes with fixed answers."""

    def __init__(self, answers: list[Any] | Exception) -> None:
        self._answers = answers

    def broadcast(self, method: str) -> Handle:
        assert method == "metrics"
        return self

    async def results_async(self, *, timeout_s: float, return_exceptions: bool) -> list[Any]:
        if isinstance(self._answers, Exception):
            raise self._answers
        return self._answers


@pytest.mark.parametrize(
    ("answers", "replicas"),
    [
        ([_counted("a", 5).own(), _counted("b", 3).own()], {"a", "b"}),
        ([RayActorError(), _counted("b", 3).own()], {"a", "b"}),
        (TimeoutError(), {"a"}),
        (DeploymentUnavailableError(None), {"a"}),  # type: ignore[arg-type]
    ],
    ids=["all", "one died", "one is stuck", "an update"],
)
def test_a_process_that_does_not_answer_is_left_out_but_never_the_one_that_was_called(
    answers: list[MetricsByReplica] | Exception, replicas: set[str]
) -> None:
    metrics = Metrics("a", lambda: _collect_metrics(Handle(answers)))
    assert set(asyncio.run(metrics.of_all_replicas())) == replicas
