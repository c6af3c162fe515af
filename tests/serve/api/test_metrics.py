"""What /metrics tells where the API has several processes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from ray.exceptions import RayActorError
from ray.serve.exceptions import DeploymentUnavailableError

from serve.api.metrics import Metrics, MetricsByReplica, exposition
from serve.app import _told


def _counted(replica: str, requests: int) -> Metrics:
    figures = Metrics(replica)
    figures.requests.labels("/v1/detect", 200).inc(requests)
    figures.seconds.labels("/v1/detect").observe(0.1)
    return figures


def test_every_process_is_told_of_by_its_name_and_each_family_once() -> None:
    text = exposition(_counted("b", 3).own() | _counted("a", 2).own()).decode()
    assert text.count("# TYPE asap_requests_total counter") == text.count("# TYPE asap_request_seconds histogram") == 1
    families = {family.name: family for family in text_string_to_metric_families(text)}
    told = {
        (sample.labels["replica"], sample.labels["route"], sample.labels["status"]): sample.value
        for sample in families["asap_requests"].samples
        if sample.name == "asap_requests_total"
    }
    assert told == {("a", "/v1/detect", "200"): 2, ("b", "/v1/detect", "200"): 3}
    buckets = [sample for sample in families["asap_request_seconds"].samples if sample.labels.get("le") == "+Inf"]
    assert [(sample.labels["replica"], sample.value) for sample in buckets] == [("a", 1), ("b", 1)]


class Handle:
    """The processes of the API, as their handle knows them."""

    def __init__(self, answers: list[Any] | Exception) -> None:
        self._answers = answers

    def broadcast(self, method: str) -> Handle:
        assert method == "figures"
        return self

    async def results_async(self, *, timeout_s: float, return_exceptions: bool) -> list[Any]:
        if isinstance(self._answers, Exception):
            raise self._answers
        return self._answers


@pytest.mark.parametrize(
    ("answers", "known"),
    [
        ([_counted("a", 5).own(), _counted("b", 3).own()], {"a", "b"}),
        ([RayActorError(), _counted("b", 3).own()], {"a", "b"}),
        (TimeoutError(), {"a"}),
        (DeploymentUnavailableError(None), {"a"}),  # type: ignore[arg-type]
    ],
    ids=["all", "one died", "one is stuck", "an update"],
)
def test_a_process_that_does_not_answer_is_left_out_and_the_one_that_is_asked_never_is(
    answers: list[MetricsByReplica] | Exception, known: set[str]
) -> None:
    figures = Metrics("a", lambda: _told(Handle(answers)))
    assert set(asyncio.run(figures.everyones())) == known
