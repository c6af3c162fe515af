"""Stopping the server: the first signal waits for requests in flight, the second does not."""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import requests
from ray.exceptions import RayActorError
from ray.serve.exceptions import DeploymentUnavailableError

from asap.labels import VERDICTS
from serve.errors import Refused
from serve.settings import ServeSettings
from tests.support.pictures import draw_jpeg
from tests.support.serving import TEXT, free_port
from tests.support.waiting import HANG_S, Clock, wait_until

LONG_TEXT = f"{TEXT} " * 500
"""A text of some seventy passes of the model."""
COMMAND = "from jobs.cli.app import main; main()"


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def errors(tmp_path: Path) -> Path:
    """The file that gets what the server prints to stderr."""
    return tmp_path / "errors"


@pytest.fixture
def server(port: int, errors: Path) -> Iterator[subprocess.Popen[str]]:
    """Run `asap serve` with two processes of the API, and yield its process once it answers."""
    change = {"api_replicas": 2, "max_replicas": 1, "decoders": 1, "detector_cpus": 0.5}
    change |= dict.fromkeys(("deadline_s", "decode_timeout_s", "drain_s"), HANG_S)
    sets = [part for name, value in change.items() for part in ("--set", f"{name}={value}")]
    command = [sys.executable, "-c", COMMAND, "serve", "--port", str(port), *sets]
    with errors.open("w") as file, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=file, text=True) as process:
        assert process.stdout
        assert f"http://127.0.0.1:{port}/" in process.stdout.readline()
        assert "cannot recognize a proxy on this machine that adds no header" in process.stdout.readline()
        yield process
        process.kill()


def _half_sent(port: int) -> tuple[http.client.HTTPConnection, bytes]:
    """Return a request of which only the beginning was sent, and the rest of its body."""
    body = json.dumps({"image": base64.b64encode(draw_jpeg(1)).decode(), "text": TEXT}).encode()
    caller = http.client.HTTPConnection("127.0.0.1", port, timeout=HANG_S)
    caller.putrequest("POST", "/v1/detect")
    caller.putheader("Content-Type", "application/json")
    caller.putheader("Content-Length", str(len(body)))
    caller.endheaders(body[:100])
    return caller, body[100:]


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(6) as threads:
        yield threads


def _detect(url: str, text: str) -> requests.Response:
    pair: dict[str, Any] = {"files": {"image": draw_jpeg(1)}, "data": {"text": text}}
    return requests.post(f"{url}/v1/detect", **pair, timeout=HANG_S)


def _models(url: str) -> requests.Response:
    return requests.get(f"{url}/v1/models", timeout=HANG_S)


def _in_flight(url: str) -> list[float]:
    """Return the requests in flight of each process of the API."""
    metrics = requests.get(f"{url}/metrics", timeout=HANG_S).text
    return [float(value) for value in re.findall(r'^asap_requests_in_flight{replica="\w+"} (.+)$', metrics, re.M)]


@pytest.mark.slow
def test_a_server_that_stops_answers_earlier_requests_and_refuses_new_ones(
    server: subprocess.Popen[str], port: int, threads: ThreadPoolExecutor, errors: Path
) -> None:
    url = f"http://127.0.0.1:{port}"
    caller, rest = _half_sent(port)
    wait_until(lambda: sorted(_in_flight(url)) == [0, 1])  # the idle process answers, and reports both
    long_texts = [threads.submit(_detect, url, LONG_TEXT) for _ in range(6)]
    wait_until(lambda: sum(_in_flight(url)) > 1)
    server.send_signal(signal.SIGTERM)
    assert server.stdout
    assert "stopping: accepted requests are answered" in server.stdout.readline()
    wait_until(lambda: all(_models(url).status_code == 503 for _ in range(30)))  # enough to reach both processes
    refused = _models(url)
    assert refused.json()["error"]["code"] == "not_ready"
    assert int(refused.headers["retry-after"]) >= 1
    assert requests.get(f"{url}/readyz", timeout=HANG_S).status_code == 503
    assert requests.get(f"{url}/healthz", timeout=HANG_S).status_code == 200

    caller.send(rest)
    answer = caller.getresponse()
    assert answer.status == 200
    assert json.loads(answer.read())["verdict"] in VERDICTS
    assert {long_text.result().status_code for long_text in long_texts} <= {200, 503}
    assert 200 in {long_text.result().status_code for long_text in long_texts}
    assert server.wait(HANG_S) == 0
    assert server.stdout.read() == "", "nothing of Ray's is on the screen"
    printed = errors.read_text().splitlines()
    steps = [line.split(" s  ")[1] for line in printed if not line.startswith("{")]
    assert steps == [
        "starting Ray", "starting Ray Serve", "starting the API and 1 detector",
        "the API runs; waiting for 1 detector to load the model demo",
    ]  # fmt: skip
    routes = {json.loads(line)["route"] for line in printed[len(steps) :]}
    assert routes == {"/v1/detect", "/v1/models"}


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("Deploying application asap failed: no room", "Deploying application asap failed: no room"),
        (
            "Deploying application asap failed: The deployment failed to start 3 times in a row:\n"
            'ray::ServeReplica:asap:Detector() (pid=1)\n  File "a.py", line 1, in load\n'
            "asap.errors.CheckpointError: model m is damaged: it has no weights.\n\n",
            "model m is damaged: it has no weights.",
        ),
    ],
    ids=["sentence", "traceback"],
)
def test_a_start_that_fails_has_the_error_without_its_traceback(message: str, reason: str) -> None:
    from serve.run import _reason

    assert _reason(message) == reason


class FailingServe:
    """Ray Serve with an application that cannot start. The messages of its deployments say why, or nothing."""

    def __init__(self, api: str, messages: list[str], entered: threading.Event) -> None:
        self._deployments = {"Api": SimpleNamespace(status=api, message="")}
        for number, message in enumerate(messages):
            self._deployments[f"Detector{number}"] = SimpleNamespace(status="DEPLOY_FAILED", message=message)
        self._entered = entered

    def start(self, **_: Any) -> None:
        pass

    def status(self) -> Any:
        return SimpleNamespace(applications={"asap": SimpleNamespace(deployments=self._deployments)})

    def run(self, *_: Any, **__: Any) -> None:
        self._entered.wait(HANG_S)
        raise RuntimeError("Deploying application asap failed: Failed to update the deployments ['Detector'].")


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        (["failed 3 times\nray::x()\nValueError: first\nasap.errors.CheckpointError: no weights"], "no weights"),
        ([], "Deploying application asap failed: Failed to update the deployments ['Detector']."),
    ],
    ids=["traceback", "nothing"],
)
def test_a_detector_that_cannot_start_is_refused_with_its_own_reason_after_the_steps_of_the_start(
    messages: list[str], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from serve.run import start

    steps: list[str] = []
    api_is_reported = threading.Event()

    def on_step(step: str) -> None:
        steps.append(step)
        if step.startswith("the API runs"):
            api_is_reported.set()

    monkeypatch.setattr("serve.run.serve", FailingServe("HEALTHY", messages, api_is_reported))
    with pytest.raises(Refused, match=re.escape(f"the server did not start: {reason}")):
        start(None, ServeSettings(min_replicas=2), on_step)  # type: ignore[arg-type]
    assert steps == [
        "starting Ray Serve", "starting the API and 2 detectors",
        "the API runs; waiting for 2 detectors to load the model demo",
    ]  # fmt: skip


def test_a_status_without_the_api_or_none_at_all_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from serve.run import start

    api_is_reported = threading.Event()

    class Starting(FailingServe):
        early: ClassVar[list[Any]] = [RayActorError(), SimpleNamespace(applications={}), SimpleNamespace(
            applications={"asap": SimpleNamespace(deployments={})}
        )]  # fmt: skip

        def status(self) -> Any:
            answer = self.early.pop(0) if self.early else super().status()
            if isinstance(answer, Exception):
                raise answer
            return answer

    def on_step(step: str) -> None:
        if step.startswith("the API runs"):
            api_is_reported.set()

    monkeypatch.setattr("serve.run.serve", Starting("HEALTHY", [], api_is_reported))
    with pytest.raises(Refused, match="the server did not start"):
        start(None, ServeSettings(), on_step)  # type: ignore[arg-type]
    assert api_is_reported.is_set()


class Handle:
    """A handle of the API's processes. Each call returns the next of `answers`, or raises it."""

    def __init__(self, *answers: list[Any] | Exception) -> None:
        self._answers = iter(answers)
        self.calls = 0

    def broadcast(self, method: str) -> Handle:
        assert method == "drain"
        self.calls += 1
        return self

    def results(self, *, timeout_s: float, return_exceptions: bool) -> list[Any]:
        answer = next(self._answers, [0])
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.run._POLL_S", 0)
    monkeypatch.setattr("serve.run._PROXY_SENDS_S", 0)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("busy", [[0, 1], [TimeoutError()], TimeoutError()], ids=str)
def test_draining_waits_while_any_process_is_busy_or_does_not_answer(busy: list[Any] | Exception) -> None:
    from serve.run import _drain

    handle = Handle(busy, busy, [0, 0])
    _drain(handle, 300)
    assert handle.calls == 3


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("gone", [[0, RayActorError()], DeploymentUnavailableError(None)], ids=str)  # type: ignore[arg-type]
def test_draining_does_not_wait_for_a_process_that_is_gone(gone: list[Any] | Exception) -> None:
    from serve.run import _drain

    handle = Handle(gone, [1])
    _drain(handle, 300)
    assert handle.calls == 1


def test_draining_waits_no_longer_than_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    from serve.run import _drain

    clock, handle = Clock(), Handle(*[[1]] * 10**4)
    monkeypatch.setattr("serve.run.time", clock)
    monkeypatch.setattr("serve.run._POLL_S", 1)
    _drain(handle, 300)
    assert (handle.calls, clock.now) == (300, 300)


def test_a_second_signal_ends_the_server_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from serve.run import run

    def send_signal(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    former = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    ended: list[str] = []
    monkeypatch.setattr("serve.run.start", lambda *_: Handle(*[[1]] * 10**6))
    monkeypatch.setattr("ray.serve.shutdown", lambda: ended.append("gracefully"))
    try:
        with pytest.raises(KeyboardInterrupt):
            run(None, ServeSettings(drain_s=300), ready=send_signal, stopping=send_signal)  # type: ignore[arg-type]
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
    assert not ended
