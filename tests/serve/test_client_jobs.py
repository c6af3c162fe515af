"""Jobs through the client: submitted, watched, cancelled, and their rows read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest

from asap.errors import ConfigError
from serve.api.callers.keys import Keyring, new_key
from serve.client import Client, ServerError
from serve.job_schemas import Job, JobRequest
from tests.support.fake_cluster import FakeCluster
from tests.support.job_folders import failed, scored, seconds_ago
from tests.support.serving import FixedDetector, served

ROWS = [scored(0, 0.9, "manipulated"), scored(1, 0.1, "authentic"), failed(2, "throttled", retryable=True)]


class Office(NamedTuple):
    """A client of a server that takes jobs, and the cluster that runs none of them."""

    client: Client
    cluster: FakeCluster
    options: dict[str, str]


@pytest.fixture
def office(bucket: str) -> Iterator[Office]:
    key, line = new_key("desk", ("jobs",))
    rules = {"inputs": [f"s3://{bucket}/in/"], "outputs": [f"s3://{bucket}/out/"]}
    jobs = {"records": f"s3://{bucket}/records", "keys": {"desk": rules}}
    cluster = FakeCluster()
    with (
        served(FixedDetector(), Keyring.parse([line], "here"), cluster=cluster, jobs=jobs) as url,
        Client(url, key) as client,
    ):
        yield Office(client, cluster, {"input": f"s3://{bucket}/in/a.jsonl", "out": f"s3://{bucket}/out/"})


def test_a_job_is_submitted_once_by_its_name_and_watched_to_its_end(office: Office) -> None:
    job = office.client.submit_job(name="n1", **office.options)
    assert office.client.submit_job(JobRequest(**office.options), name="n1").id == job.id
    assert len(office.cluster.submitted) == 1
    seen: list[str] = []

    def go_on(now: Job) -> None:
        seen.append(now.state)
        if now.state == "submitted":
            office.cluster.begin()
        elif now.state == "running":
            office.cluster.begin(ROWS, state="completed", counts={"done": 3, "total": 3, "errors": 1})

    done = office.client.watch_job(job.id, go_on, every_s=0)
    assert (seen, done.exit_code, done.has_ended) == (["submitted", "running", "completed"], 0, True)
    assert [found.id for found in office.client.jobs()] == [job.id]


def test_rows_come_from_all_pages(office: Office) -> None:
    job = office.client.submit_job(**office.options)
    office.cluster.begin(ROWS, state="completed")
    assert [row["row_id"] for row in office.client.job_results(job.id, limit=1)] == [0, 1, 2]
    assert [row["row_id"] for row in office.client.job_results(job.id, verdict=["manipulated", "review"])] == [0]
    assert [row["error_code"] for row in office.client.job_errors(job.id, limit=1)] == ["throttled"]
    with pytest.raises(ServerError, match="there is no column 'x'"):
        list(office.client.job_results(job.id, columns="x"))


def test_a_job_is_cancelled(office: Office) -> None:
    job = office.client.submit_job(**office.options)
    assert office.client.cancel_job(job.id).state == "cancelled"
    assert office.client.watch_job(job.id).exit_code == 130


def test_a_refusal_that_waiting_does_not_help_is_raised_at_once(office: Office) -> None:
    office.client.submit_job(**office.options)
    with pytest.raises(ServerError, match="its job is under way") as caught:
        office.client.submit_job(**office.options)
    assert (caught.value.status, caught.value.code) == (409, "job_in_use")
    assert len(office.cluster.checked) == 2


def test_a_job_without_a_sign_of_life_is_not_watched_for_ever(office: Office) -> None:
    job = office.client.submit_job(**office.options)
    office.cluster.begin(heartbeat=seconds_ago(3600))
    with pytest.raises(ServerError, match="gives no sign of life"):
        office.client.watch_job(job.id)


def test_options_that_no_job_has_are_refused_before_they_are_sent(office: Office) -> None:
    with pytest.raises(ConfigError, match="the job option notify cannot work: Extra inputs are not permitted"):
        office.client.submit_job(**office.options, notify="x")
    assert office.cluster.checked == []
