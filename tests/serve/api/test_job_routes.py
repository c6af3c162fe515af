"""Jobs over HTTP as callers see them, with a cluster that runs none."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pytest
from fastapi.testclient import TestClient

from asap.job_records.record import CANCEL
from asap.job_records.status import read_status
from asap.storage.files import exists, write_bytes
from asap.storage.location import Location
from serve.api.callers.keys import Keyring, new_key
from serve.errors import Refused
from tests.support.fake_cluster import FakeCluster
from tests.support.job_folders import failed, scored, seconds_ago, write_results, write_scan
from tests.support.serving import FixedDetector, api

ROWS = [
    scored(0, 0.9, "manipulated", "face_swap"),
    scored(1, 0.1, "authentic"),
    failed(2, "throttled", retryable=True),
    scored(3, 0.6, "review", "text_swap"),
    failed(4, "decode_failed", retryable=False),
]
FULL_COUNTS = {"done": 5, "total": 5, "errors": 2, "flagged": 1}


class Office(NamedTuple):
    """A server that takes jobs, its bucket, and its keys by name."""

    client: TestClient
    cluster: FakeCluster
    bucket: str
    keys: dict[str, str]

    def call(self, method: str, path: str, key: str = "desk", **sent: Any) -> Any:
        headers = sent.pop("headers", {}) | {"authorization": f"Bearer {self.keys[key]}"}
        return self.client.request(method, path, headers=headers, **sent)

    def submit(self, key: str = "desk", idempotency_key: str | None = None, **changes: Any) -> Any:
        body = {"input": f"s3://{self.bucket}/in/pairs.jsonl", "out": f"s3://{self.bucket}/out/{key}"} | changes
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        headers["content-type"] = "application/json"
        return self.call("POST", "/v1/jobs", key, content=json.dumps(body), headers=headers)


@pytest.fixture
def office(bucket: str) -> Iterator[Office]:
    made = {
        name: new_key(name, scopes)
        for name, scopes in {
            "desk": ("jobs",), "other": ("jobs",), "chief": ("jobs", "all-jobs"), "viewer": ("all-jobs",),
            "sender": ("detect", "metrics"), "guest": ("jobs",),
        }.items()
    }  # fmt: skip
    rules = {"inputs": [f"s3://{bucket}/in/"], "outputs": [f"s3://{bucket}/out/"], "models": ["demo", "s3://m/ok/"]}
    keys = dict.fromkeys(("desk", "other", "chief"), rules) | {"guest": {"inputs": [f"s3://{bucket}/in/"]}}
    cluster = FakeCluster()
    keyring = Keyring.parse([line for _, line in made.values()], "here")
    jobs = {"records": f"s3://{bucket}/records", "keys": keys}
    with api(FixedDetector(), keyring, cluster=cluster, jobs=jobs, key_rate=1000, key_burst=1000) as client:
        yield Office(client, cluster, bucket, {name: key for name, (key, _) in made.items()})


def _error(answer: Any) -> tuple[int, str, str | None]:
    error = answer.json()["error"]
    return answer.status_code, error["code"], error["param"]


def _ids(answer: Any) -> list[int]:
    assert answer.status_code == 200, answer.text
    return [json.loads(line)["row_id"] for line in answer.text.splitlines()]


# Submission.


def test_a_job_is_submitted_as_the_command_with_its_options(office: Office) -> None:
    answer = office.submit(job="may", limit=10, caption_engine="transformers", captioner="demo", allow_unfamiliar=True)
    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert (job["state"], job["key"], job["exit_code"]) == ("submitted", "desk", None)
    assert job["folder"] == f"s3://{office.bucket}/out/desk/may"
    assert job["settings"]["limit"] == 10
    (arguments,) = office.cluster.submitted.values()
    assert office.cluster.checked == [arguments]
    assert arguments[0] == "scan"
    assert arguments[-2:] == ["--", f"s3://{office.bucket}/in/pairs.jsonl"]
    assert {"--job=may", "--limit=10", "--captioner=demo", "--allow-unfamiliar", "--address=10.0.0.1:6379"} <= set(
        arguments
    )
    assert f'--set=fetch={{"only_below": ["s3://{office.bucket}/in/"]}}' in arguments
    assert "--allow-unreadable" not in arguments


def test_a_value_that_looks_like_an_option_stays_a_value(office: Office) -> None:
    assert office.submit(text_column="--set=notify=[]", id_column="$(id)`id`;'\"").status_code == 202
    (arguments,) = office.cluster.submitted.values()
    assert "--text-column=--set=notify=[]" in arguments
    assert "--id-column=$(id)`id`;'\"" in arguments


def test_the_refusal_of_the_command_is_the_refusal_of_the_request(office: Office) -> None:
    office.cluster.refusal = Refused(422, "job_refused", "asap scan refuses the job with exit code 1: no pair.")
    answer = office.submit()
    assert _error(answer) == (422, "job_refused", None)
    assert answer.json()["error"]["message"] == "asap scan refuses the job with exit code 1: no pair."
    assert office.cluster.submitted == {}
    assert office.call("GET", "/v1/jobs").json() == {"jobs": []}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("input", "s3://{bucket}/other/a.jsonl"), ("input", "s3://{bucket}/in/../other/a.jsonl"),
        ("input", "s3://{bucket}/in//a.jsonl"), ("input", "s3://{bucket}/in/./a.jsonl"), ("input", "/etc/passwd"),
        ("input", "file:///etc/passwd"), ("input", "s3://{bucket}/in2/a.jsonl"), ("input", "https://host/in/a.jsonl"),
        ("input", "{bucket}/in/a.jsonl"), ("out", "s3://{bucket}/in/"), ("out", "/srv/out"), ("out", "s3://{bucket}"),
        ("out", "s3://{bucket}/out/../in"), ("out", "s3://{bucket}/records"), ("model", "/etc"), ("model", "s3://m/other"),
        ("model", "s3://m/ok/../other"), ("model", "demo/"), ("captioner", "Salesforce/blip"),
        ("explainer", "/models/large"),
    ],
)  # fmt: skip
def test_what_a_key_may_not_name_is_refused_with_the_field(office: Office, field: str, value: str) -> None:
    engines = {"captioner": "caption_engine", "explainer": "explanation_engine"}
    engine = {engines[field]: "transformers"} if field in engines else {}
    answer = office.submit(**{field: value.format(bucket=office.bucket)}, **engine)
    assert _error(answer) == (403, "job_not_allowed", field)
    assert office.cluster.checked == []


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"job": "../x"}, "job"), ({"job": ""}, "job"), ({"caption_engine": "openai"}, "caption_engine"),
        ({"limit": 0}, "limit"), ({"notify": ["http://host/"]}, "notify"), ({"set": {"a": 1}}, "set"),
        ({"address": "auto"}, "address"), ({"log_file": "/srv/x"}, "log_file"), ({"text_column": "a\nb"}, None),
        ({"input": "s3://b/\ud800"}, "input"), ({"detectors": "many"}, "detectors"),
    ],
)  # fmt: skip
def test_fields_that_a_job_does_not_have_or_allow_are_refused(
    office: Office, change: dict[str, Any], param: str | None
) -> None:
    assert _error(office.submit(**change)) == (422, "invalid_field", param)


def test_a_file_of_captions_may_lie_where_inputs_may(office: Office) -> None:
    precomputed = {"caption_engine": "precomputed", "captioner": f"s3://{office.bucket}/in/captions.jsonl"}
    assert office.submit(**precomputed).status_code == 202
    outside = precomputed | {"captioner": f"s3://{office.bucket}/out/desk/captions.jsonl"}
    assert _error(office.submit(job="b", **outside)) == (403, "job_not_allowed", "captioner")


def test_a_body_that_is_too_large_or_no_json_is_refused(office: Office) -> None:
    assert _error(office.submit(text_column="x" * 2**17))[:2] == (413, "too_large")
    assert _error(office.call("POST", "/v1/jobs", content=b"{", headers={"content-type": "application/json"})) == (
        400, "json_invalid", None,
    )  # fmt: skip
    assert _error(office.call("POST", "/v1/jobs", data={"input": "x"}))[:2] == (415, "unsupported_media_type")


def test_a_key_without_rules_is_told_what_is_missing(office: Office) -> None:
    answer = office.submit("guest")
    assert _error(answer) == (403, "jobs_not_configured", None)
    assert answer.json()["error"]["message"] == (
        "the key guest may submit no jobs: the setting `jobs` names no inputs and outputs for it."
    )


def test_without_the_setting_every_route_says_what_to_configure() -> None:
    id_ = "0" * 24
    with api(FixedDetector()) as client:
        body = {"input": "s3://a/b.jsonl", "out": "s3://a/c"}
        answers = [
            client.post("/v1/jobs", json=body), client.get("/v1/jobs"), client.get(f"/v1/jobs/{id_}"),
            client.post(f"/v1/jobs/{id_}/cancel"), client.get(f"/v1/jobs/{id_}/results"),
            client.get(f"/v1/jobs/{id_}/errors"),
        ]  # fmt: skip
        assert client.get("/v1/limits").json()["jobs"] is None
    for answer in answers:
        assert _error(answer) == (403, "jobs_not_configured", None)
        assert "Its operator allows them with the setting `jobs`" in answer.text


@pytest.mark.parametrize("idempotent", [False, True])
def test_a_cluster_that_is_away_leaves_a_job_that_can_be_sent_again(office: Office, idempotent: bool) -> None:
    name = "n1" if idempotent else None
    office.cluster.is_away = True
    answer = office.submit(idempotency_key=name)
    assert _error(answer)[:2] == (503, "cluster_unavailable")
    assert answer.headers["retry-after"]
    (job,) = office.call("GET", "/v1/jobs").json()["jobs"]
    assert (job["state"], job["exit_code"]) == ("failed", 1)
    office.cluster.is_away = False
    again = office.submit(idempotency_key=name)
    assert (again.status_code, again.json()["state"], again.json()["id"]) == (202, "submitted", job["id"])
    assert len(office.cluster.submitted) == 1


# Repeated requests.


def test_a_request_that_is_sent_again_gets_its_job_and_submits_none(office: Office) -> None:
    first = office.submit(idempotency_key="n1")
    office.cluster.begin()
    second = office.submit(idempotency_key="n1")
    assert (second.status_code, second.headers["idempotency-replayed"]) == (202, "true")
    assert "idempotency-replayed" not in first.headers
    assert (second.json()["id"], second.json()["state"]) == (first.json()["id"], "running")
    assert (len(office.cluster.submitted), len(office.cluster.checked)) == (1, 1)
    assert _error(office.submit(idempotency_key="n1", limit=3)) == (422, "invalid_field", "Idempotency-Key")
    assert office.submit("other", idempotency_key="n1").json()["id"] != first.json()["id"]


def test_a_request_with_two_names_is_refused(office: Office) -> None:
    headers = [("authorization", f"Bearer {office.keys['desk']}"), ("Idempotency-Key", "a"), ("Idempotency-Key", "b")]
    body = {"input": f"s3://{office.bucket}/in/a.jsonl", "out": f"s3://{office.bucket}/out/"}
    answer = office.client.post("/v1/jobs", json=body, headers=headers)
    assert _error(answer) == (422, "invalid_field", "Idempotency-Key")


def test_the_same_request_twice_at_once_submits_one_job(office: Office) -> None:
    office.cluster.may_check.clear()
    with ThreadPoolExecutor(2) as callers:
        answers = [callers.submit(office.submit, idempotency_key="n1") for _ in range(2)]
        while len(office.cluster.checked) < 2:
            pass
        office.cluster.may_check.set()
        statuses = {answer.result().status_code for answer in answers}
    assert statuses == {202}
    assert len(office.cluster.submitted) == 1


def test_the_same_job_again_goes_on_once_it_was_stopped(office: Office) -> None:
    first = office.submit(job="may").json()
    assert _error(office.submit(job="may"))[:2] == (409, "job_in_use")
    office.cluster.begin()
    assert _error(office.submit(job="may"))[:2] == (409, "job_in_use")
    office.cluster.begin(state="cancelled")
    assert office.call("GET", f"/v1/jobs/{first['id']}").json()["exit_code"] == 130
    again = office.submit(job="may", allow_unfamiliar=True)
    assert (again.status_code, again.json()["state"]) == (202, "submitted")
    office.cluster.begin()
    shown = office.call("GET", f"/v1/jobs/{first['id']}").json()
    assert (shown["state"], shown["runs"], len(office.cluster.submitted)) == ("running", 2, 2)


def test_a_job_whose_process_died_goes_on(office: Office) -> None:
    office.submit(job="may")
    office.cluster.begin(heartbeat=seconds_ago(3600))
    shown = office.call("GET", "/v1/jobs").json()["jobs"][0]
    assert (shown["silent"], shown["exit_code"]) == (True, None)
    assert "no sign of life" in shown["note"]
    assert office.submit(job="may").json()["state"] == "submitted"


def test_a_finished_job_is_shown_and_not_submitted_again(office: Office) -> None:
    office.submit(job="may")
    office.cluster.begin(ROWS, state="completed", counts=FULL_COUNTS)
    again = office.submit(job="may")
    assert (again.status_code, again.json()["state"], again.json()["exit_code"]) == (202, "completed", 0)
    assert len(office.cluster.submitted) == 1


def test_a_folder_of_another_job_is_refused(office: Office) -> None:
    office.submit(job="may")
    office.cluster.begin(state="failed")
    assert _error(office.submit(job="may", limit=3)) == (409, "job_exists", "limit")
    taken = office.submit("other", job="may", out=f"s3://{office.bucket}/out/desk")
    assert _error(taken) == (409, "job_exists", "job")
    write_scan(Location(f"s3://{office.bucket}/out/desk/june"), state="cancelled")
    assert _error(office.submit(job="june")) == (409, "job_exists", "job")
    assert office.submit("chief", job="june", out=f"s3://{office.bucket}/out/desk").status_code == 202


def test_a_folder_inside_that_of_another_job_is_refused(office: Office) -> None:
    office.submit(job="may")
    inside = office.submit("other", job="x", out=f"s3://{office.bucket}/out/desk/may/results")
    assert _error(inside) == (409, "job_exists", "out")  # claimed, and not begun yet
    write_scan(Location(f"s3://{office.bucket}/out/desk/june"), state="completed")
    inside = office.submit(job="x", out=f"s3://{office.bucket}/out/desk/june/results/deeper")
    assert _error(inside) == (409, "job_exists", "out")


def test_two_keys_that_ask_for_one_folder_at_once_do_not_share_it(office: Office) -> None:
    place = {"job": "may", "out": f"s3://{office.bucket}/out/both"}
    assert office.submit(**place).status_code == 202
    assert _error(office.submit("other", **place)) == (409, "job_exists", "job")
    assert office.call("GET", "/v1/jobs", "other").json() == {"jobs": []}


def test_a_key_has_a_limited_number_of_jobs_under_way(office: Office) -> None:
    first = office.submit(job="a").json()
    assert office.submit(job="b").status_code == 202
    answer = office.submit(job="c")
    assert _error(answer)[:2] == (429, "too_many_jobs")
    assert int(answer.headers["retry-after"]) >= 1
    assert office.submit("other", job="c").status_code == 202
    office.call("POST", f"/v1/jobs/{first['id']}/cancel")
    assert office.submit(job="c").status_code == 202


# Views.


def test_a_job_has_the_states_and_counts_of_the_command_line(office: Office) -> None:
    id_ = office.submit(job="may").json()["id"]
    folder = office.cluster.begin(
        ROWS, counts={"done": 3, "total": 5, "errors": 1, "flagged": 1, "unfamiliar": 0}, model_id="m@1", policy_id="p"
    )
    job, status = office.call("GET", f"/v1/jobs/{id_}").json(), read_status(folder).to_json()
    for name in ("folder", "state", "counts", "phase", "phase_counts", "pairs_per_s", "left_s", "runs", "silent"):
        assert job[name] == status[name]
    assert (job["model_id"], job["policy_id"]) == ("m@1", "p")
    assert job["files"]["results"] == f"{folder}/results"
    assert not {"host", "pid", "address"} & set(job)


@pytest.mark.parametrize(
    ("entries", "code"),
    [
        ({"state": "completed", "counts": FULL_COUNTS}, 0),
        ({"state": "completed", "counts": FULL_COUNTS, "settings": {"max_error_rate": 0.1}}, 3),
        ({"state": "completed", "counts": FULL_COUNTS | {"errors": 5}}, 1),
        ({"state": "failed", "error": "no disk"}, 1), ({"state": "cancelled"}, 130), ({"state": "unfamiliar"}, 4),
        ({"state": "running"}, None),
    ],
)  # fmt: skip
def test_a_job_has_the_exit_code_of_the_command(office: Office, entries: dict[str, Any], code: int | None) -> None:
    id_ = office.submit().json()["id"]
    office.cluster.begin(**entries)
    job = office.call("GET", f"/v1/jobs/{id_}").json()
    assert (job["state"], job["exit_code"]) == (entries["state"], code)


def test_a_command_that_ended_before_its_folder_says_why(office: Office) -> None:
    id_ = office.submit().json()["id"]
    office.cluster.end(1, "the bucket is away. Try again.")
    job = office.call("GET", f"/v1/jobs/{id_}").json()
    assert (job["state"], job["exit_code"], job["error"]) == ("failed", 1, "the bucket is away. Try again.")
    office.cluster.end(137)
    assert "ended before it said why" in office.call("GET", f"/v1/jobs/{id_}").json()["error"]
    office.cluster.states.clear()
    assert "the cluster does not know the job any more" in office.call("GET", f"/v1/jobs/{id_}").json()["error"]


def test_paths_of_the_server_are_not_shown(office: Office) -> None:
    id_ = office.submit().json()["id"]
    office.cluster.begin(state="failed", error="/home/ray/secret/a.py and s3://b/c/d failed: /tmp/x is full")
    error = office.call("GET", f"/v1/jobs/{id_}").json()["error"]
    assert error == "(a path of the server) and s3://b/c/d failed: (a path of the server) is full"


def test_a_key_sees_its_own_jobs_and_the_scope_all_jobs_sees_each(office: Office) -> None:
    mine, theirs = office.submit(job="a").json()["id"], office.submit("other", job="b").json()["id"]
    write_scan(Location(f"s3://{office.bucket}/out/line"), state="cancelled")
    assert [job["id"] for job in office.call("GET", "/v1/jobs").json()["jobs"]] == [mine]
    for path in (f"/v1/jobs/{theirs}", f"/v1/jobs/{theirs}/results", f"/v1/jobs/{theirs}/errors"):
        assert _error(office.call("GET", path)) == (404, "not_found", None)
    assert _error(office.call("POST", f"/v1/jobs/{theirs}/cancel"))[:2] == (404, "not_found")
    jobs = {job["folder"].rpartition("/")[2]: job for job in office.call("GET", "/v1/jobs", "viewer").json()["jobs"]}
    assert {name: job["key"] for name, job in jobs.items()} == {"a": "desk", "b": "other", "line": None}
    shown = office.call("GET", f"/v1/jobs/{jobs['line']['id']}", "viewer").json()
    assert (shown["state"], shown["settings"]) == ("cancelled", None)
    assert _error(office.submit("viewer"))[:2] == (403, "scope_missing")
    assert office.call("POST", f"/v1/jobs/{theirs}/cancel", "viewer").json()["state"] == "cancelled"


def test_a_list_has_the_newest_jobs_and_survives_a_broken_record(office: Office) -> None:
    first = office.submit(job="a").json()["id"]
    office.cluster.begin(state="cancelled")
    office.submit(job="b")
    write_bytes(Location(f"s3://{office.bucket}/out/desk/a/job.json"), b"{")
    write_bytes(Location(f"s3://{office.bucket}/records/jobs/key-desk/broken.json"), b"{}")
    states = {job["folder"].rpartition("/")[2]: job["state"] for job in office.call("GET", "/v1/jobs").json()["jobs"]}
    assert states == {"a": "broken", "b": "submitted"}
    assert _error(office.call("GET", f"/v1/jobs/{first}"))[:2] == (503, "store_unavailable")
    assert len(office.call("GET", "/v1/jobs?limit=1").json()["jobs"]) == 1


@pytest.mark.parametrize("path", ["/v1/jobs/..%2f..%2frecords", "/v1/jobs/x", "/v1/jobs/" + "0" * 23])
def test_an_id_of_another_form_is_refused(office: Office, path: str) -> None:
    assert office.call("GET", path).status_code in (404, 422)


def test_a_key_without_the_scope_is_refused_on_every_route(office: Office) -> None:
    id_ = "0" * 24
    routes = [("POST", "/v1/jobs"), ("GET", "/v1/jobs"), ("GET", f"/v1/jobs/{id_}"), ("POST", f"/v1/jobs/{id_}/cancel"),
              ("GET", f"/v1/jobs/{id_}/results"), ("GET", f"/v1/jobs/{id_}/errors")]  # fmt: skip
    for method, path in routes:
        assert _error(office.call(method, path, "sender"))[:2] == (403, "scope_missing")
        assert office.client.request(method, path).status_code == 401


def test_limits_show_what_a_key_may_name(office: Office) -> None:
    limits = office.call("GET", "/v1/limits").json()["jobs"]
    assert limits == {
        "inputs": [f"s3://{office.bucket}/in/"], "outputs": [f"s3://{office.bucket}/out/"],
        "models": ["demo", "s3://m/ok/"], "max_under_way": 2, "max_bytes": 65536,
    }  # fmt: skip
    assert office.call("GET", "/v1/limits", "sender").json()["jobs"] is None


# Cancellation.


def test_a_job_that_runs_is_asked_to_stop_as_by_the_command(office: Office) -> None:
    id_ = office.submit().json()["id"]
    folder = office.cluster.begin()
    answer = office.call("POST", f"/v1/jobs/{id_}/cancel")
    assert (answer.status_code, answer.json()["state"]) == (202, "running")
    assert exists(folder / CANCEL)


def test_a_job_that_has_not_begun_is_stopped_through_the_cluster(office: Office) -> None:
    id_ = office.submit().json()["id"]
    answer = office.call("POST", f"/v1/jobs/{id_}/cancel")
    assert (answer.json()["state"], answer.json()["exit_code"]) == ("cancelled", 130)
    assert office.call("POST", f"/v1/jobs/{id_}/cancel").json()["state"] == "cancelled"


def test_a_job_that_has_ended_stays_as_it_is_and_one_that_died_cannot_be_cancelled(office: Office) -> None:
    id_ = office.submit().json()["id"]
    folder = office.cluster.begin(state="completed")
    assert office.call("POST", f"/v1/jobs/{id_}/cancel").json()["state"] == "completed"
    office.cluster.begin(heartbeat=seconds_ago(3600))
    assert _error(office.call("POST", f"/v1/jobs/{id_}/cancel"))[:2] == (409, "job_not_running")
    assert not exists(folder / CANCEL)


# Rows.


@pytest.fixture
def rows_path(office: Office) -> str:
    id_ = office.submit().json()["id"]
    folder = office.cluster.begin(ROWS[:3], state="completed")
    write_results(folder, "b", ROWS[3:])
    return f"/v1/jobs/{id_}"


@pytest.mark.parametrize(
    ("query", "ids"),
    [
        ("", [0, 1, 2, 3, 4]), ("?verdict=manipulated&verdict=review", [0, 3]), ("?type=face_swap", [0]),
        ("?min_score=0.5", [0, 3]), ("?max_score=0.5", [1]), ("?code=throttled", [2]), ("?id=c1&id=c4", [1, 4]),
        ("?min_score=0.95", []),
    ],
)  # fmt: skip
def test_rows_pass_the_filters_of_the_command_line(office: Office, rows_path: str, query: str, ids: list[int]) -> None:
    answer = office.call("GET", f"{rows_path}/results{query}")
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert _ids(answer) == ids
    assert "link" not in answer.headers


def test_failed_rows_say_what_failed(office: Office, rows_path: str) -> None:
    answer = office.call("GET", f"{rows_path}/errors")
    rows = [json.loads(line) for line in answer.text.splitlines()]
    assert [(row["row_id"], row["error_code"], row["retryable"]) for row in rows] == [
        (2, "throttled", True), (4, "decode_failed", False),
    ]  # fmt: skip
    assert "verdict" not in rows[0]
    assert _ids(office.call("GET", f"{rows_path}/errors?code=decode_failed")) == [4]


@pytest.mark.parametrize("path", ["results", "errors"])
def test_pages_lead_to_each_other(office: Office, rows_path: str, path: str) -> None:
    seen, url = [], f"{rows_path}/{path}?limit=2"
    while url:
        answer = office.call("GET", url)
        seen += _ids(answer)
        link = answer.headers.get("link", "")
        assert not link or link.endswith('>; rel="next"')
        url = link.partition(">")[0].removeprefix("<")
    assert seen == ([0, 1, 2, 3, 4] if path == "results" else [2, 4])


def test_columns_can_be_chosen(office: Office, rows_path: str) -> None:
    first = office.call("GET", f"{rows_path}/results?columns=row_id,verdict&limit=1")
    assert json.loads(first.text) == {"row_id": 0, "verdict": "manipulated"}
    answer = office.call("GET", f"{rows_path}/results?columns=row_id,nothing")
    assert _error(answer)[:2] == (422, "invalid_field")
    assert "there is no column 'nothing'" in answer.text


@pytest.mark.parametrize(
    "query",
    ["verdict=wrong", "limit=0", "limit=5001", "min_score=2", "min_score=0.9&max_score=0.1", "after=x", "page=2",
     "limit=1&limit=2"],
)  # fmt: skip
def test_queries_that_cannot_work_are_refused(office: Office, rows_path: str, query: str) -> None:
    assert _error(office.call("GET", f"{rows_path}/results?{query}"))[:2] == (422, "invalid_field")


def test_a_job_that_has_not_begun_has_no_rows(office: Office) -> None:
    id_ = office.submit().json()["id"]
    assert _ids(office.call("GET", f"/v1/jobs/{id_}/results")) == []


# Log and metrics.


def test_the_log_names_the_job_and_the_metrics_count_by_key(office: Office, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "asap.requests"):
        id_ = office.submit(idempotency_key="n1").json()["id"]
        office.submit(idempotency_key="n1")
        office.call("GET", f"/v1/jobs/{id_}")
    lines = [json.loads(record.message) for record in caplog.records]
    assert [(line["route"], line["key"], line["job"], line["status"], line["replayed"]) for line in lines] == [
        ("/v1/jobs", "desk", id_, 202, False), ("/v1/jobs", "desk", id_, 202, True),
        ("/v1/jobs/{id}", "desk", id_, 200, False),
    ]  # fmt: skip
    assert "pairs.jsonl" not in caplog.text
    metrics = office.call("GET", "/metrics", "sender").text
    assert 'asap_key_jobs_total{key="desk",replica="only"} 1.0' in metrics


def test_a_server_without_keys_takes_jobs_of_its_own_machine(bucket: str) -> None:
    rules = {"inputs": [f"s3://{bucket}/in/"], "outputs": [f"s3://{bucket}/out/"]}
    cluster = FakeCluster()
    jobs = {"records": f"s3://{bucket}/records", "keys": {"*": rules}}
    with api(FixedDetector(), cluster=cluster, jobs=jobs) as client:
        body = {"input": f"s3://{bucket}/in/a.jsonl", "out": f"s3://{bucket}/out"}
        job = client.post("/v1/jobs", json=body).json()
        write_scan(Location(f"s3://{bucket}/out/line"), state="cancelled")
        folders = [found["folder"].rpartition("/")[2] for found in client.get("/v1/jobs").json()["jobs"]]
    assert (job["key"], job["state"]) == (None, "submitted")
    assert folders == ["a", "line"]
