"""Ray's Jobs API as the server asks it, with a dashboard that answers as a test says; and the check of a scan."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from asap.submission.entrypoint import ARGUMENTS, REQUESTED_COMMAND
from serve.errors import Refused
from serve.jobs.cluster import RayCluster, SubmissionState, without_paths

ARGUMENTS_SENT = ["scan", "--job=$(touch x)", "--", "s3://b/in.jsonl"]


class Dashboard(ThreadingHTTPServer):
    """A dashboard: `answers` has a status and a text by method and path."""

    answers: dict[str, tuple[int, str]]
    asked: list[tuple[str, str | None, Any]]


class _Handler(BaseHTTPRequestHandler):
    def _answer(self) -> None:
        server: Any = self.server
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        name = f"{self.command} {self.path}"
        server.asked.append((name, self.headers.get("Authorization"), json.loads(body) if body else None))
        status, text = server.answers[name]
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    do_GET = do_POST = _answer

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def dashboard(monkeypatch: pytest.MonkeyPatch) -> Iterator[Dashboard]:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "the token")
    server = Dashboard(("127.0.0.1", 0), _Handler)
    server.answers, server.asked = {}, []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def cluster(dashboard: Dashboard) -> RayCluster:
    return RayCluster(f"http://127.0.0.1:{dashboard.server_address[1]}/")


def test_a_submission_has_the_same_command_line_whatever_was_sent(cluster: RayCluster, dashboard: Dashboard) -> None:
    dashboard.answers["POST /api/jobs/"] = (200, '{"submission_id": "s"}')
    cluster.submit("s", ARGUMENTS_SENT)
    ((_, token, body),) = dashboard.asked
    assert token == "Bearer the token"
    assert (body["entrypoint"], body["submission_id"]) == (REQUESTED_COMMAND, "s")
    assert json.loads(body["runtime_env"]["env_vars"][ARGUMENTS]) == ARGUMENTS_SENT
    assert body["runtime_env"]["env_vars"]["RAY_JOB_STOP_SIGNAL"] == "SIGTERM"


def test_a_submission_that_the_cluster_has_already_is_no_error(cluster: RayCluster, dashboard: Dashboard) -> None:
    dashboard.answers["POST /api/jobs/"] = (500, "Traceback\nValueError: Job with submission_id s already exists")
    cluster.submit("s", ARGUMENTS_SENT)


@pytest.mark.parametrize(
    ("details", "state"),
    [
        ({"status": "PENDING"}, SubmissionState(False)), ({"status": "RUNNING"}, SubmissionState(False)),
        ({"status": "SUCCEEDED", "driver_exit_code": 0}, SubmissionState(True, 0)),
        ({"status": "STOPPED"}, SubmissionState(True, 130)),
        ({"status": "FAILED", "driver_exit_code": 4}, SubmissionState(True, 4, "it is (a path of the server) here.")),
    ],
)  # fmt: skip
def test_the_state_of_a_submission_is_that_of_its_command(
    cluster: RayCluster, dashboard: Dashboard, details: dict[str, Any], state: SubmissionState
) -> None:
    dashboard.answers["GET /api/jobs/s"] = (200, json.dumps(details))
    log = json.dumps({"logs": "asap: first\nsecret=1\nasap: it is /home/ray/x here.\n"})
    dashboard.answers["GET /api/jobs/s/logs"] = (200, log)
    assert cluster.state("s") == state


def test_an_unknown_submission_has_no_state_and_nothing_to_stop(cluster: RayCluster, dashboard: Dashboard) -> None:
    dashboard.answers["GET /api/jobs/s"] = (404, "Job s does not exist")
    dashboard.answers["POST /api/jobs/s/stop"] = (404, "Job s does not exist")
    assert cluster.state("s") is None
    cluster.stop("s")


@pytest.mark.parametrize("answer", [(500, "Traceback\nOSError: /secret"), (200, "no json"), (200, "[]"), (401, "")])
def test_other_answers_are_for_the_log_alone(
    cluster: RayCluster, dashboard: Dashboard, answer: tuple[int, str], caplog: pytest.LogCaptureFixture
) -> None:
    dashboard.answers["GET /api/jobs/s"] = answer
    with pytest.raises(Refused) as caught:
        cluster.state("s")
    assert (caught.value.status, caught.value.code, caught.value.retry_after_s) == (503, "cluster_unavailable", 5)
    assert "secret" not in caught.value.message
    assert f"the dashboard of the cluster answered {answer[0]}" in caplog.text


@pytest.mark.parametrize("call", ["submit", "stop"])
def test_a_submission_or_a_stop_that_fails_is_refused(cluster: RayCluster, dashboard: Dashboard, call: str) -> None:
    dashboard.answers["POST /api/jobs/"] = dashboard.answers["POST /api/jobs/s/stop"] = (500, "no")
    with pytest.raises(Refused, match="takes and shows no jobs now"):
        cluster.submit("s", []) if call == "submit" else cluster.stop("s")


def test_a_dashboard_that_is_away_is_refused(dashboard: Dashboard, caplog: pytest.LogCaptureFixture) -> None:
    away = RayCluster("http://127.0.0.1:9")
    with pytest.raises(Refused, match="takes and shows no jobs now"):
        away.state("s")
    assert "the dashboard of the cluster does not answer: Connection refused" in caplog.text


def test_the_check_has_the_sentence_of_the_command_without_paths() -> None:
    with pytest.raises(Refused) as caught:
        RayCluster().check(["scan", "--out=/nowhere/out", "--", "/nowhere/in.jsonl"])
    assert (caught.value.status, caught.value.code) == (422, "job_refused")
    assert caught.value.message.startswith("asap scan refuses the job with exit code 1: (a path of the server) is not")


def test_a_check_that_breaks_is_an_error_of_the_server(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(Refused) as caught:
        RayCluster().check(["no such command"])
    assert (caught.value.status, caught.value.code) == (500, "internal")
    assert "the check of a job ended with exit code" in caplog.text


@pytest.mark.parametrize(
    ("sentence", "shown"),
    [
        ("s3://b/k and https://h/p stay", "s3://b/k and https://h/p stay"),
        ("a/b and 3/4 stay", "a/b and 3/4 stay"),
        ("/srv/x: full, see '/home/a b'", "(a path of the server): full, see '(a path of the server) b'"),
        ("~/x is there", "(a path of the server) is there"),
    ],
)
def test_paths_are_left_out_of_sentences(sentence: str, shown: str) -> None:
    assert without_paths(sentence) == shown


def test_a_check_beyond_those_that_may_run_is_refused_at_once(
    cluster: RayCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*_: Any, **__: Any) -> Any:
        if len(started) < 2:
            started.append(None)
            return cluster.check(ARGUMENTS_SENT)  # as another request would, while this one is checked
        raise AssertionError("a third check ran")

    started: list[None] = []
    monkeypatch.setattr("serve.jobs.cluster.subprocess.run", run)
    for _ in range(2):  # those that were refused or failed count no more
        started.clear()
        with pytest.raises(Refused) as refused:
            cluster.check(ARGUMENTS_SENT)
        assert (refused.value.status, refused.value.code) == (429, "overloaded")
