"""The requests of a load, sent by Locust in its own process. `bench/load.py` starts it and reads its output.

`Arrivals` sends each request of a list when it is due, whether or not earlier ones were answered. It counts latency
from that moment, so requests that wait behind a stall count too. `Waiting` is a client that sends its next request once
it has its answer.
"""

from __future__ import annotations

import json
import time
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import gevent
from gevent.pool import Group
from geventhttpclient.client import HTTPClientPool
from load import REFUSED, TIMEOUT_S, examples
from locust import FastHttpUser, events, task
from locust.env import Environment
from locust.exception import StopUser

EXAMPLES = examples()
ANSWERS: list[dict[str, Any]] = []


@events.init_command_line_parser.add_listener
def add_options(parser: ArgumentParser) -> None:
    """Add the options of a load."""
    parser.add_argument("--due", help="JSON list of times to send requests, in seconds after the beginning.")
    parser.add_argument("--begin", type=float, help="The beginning, in seconds of the epoch.")
    parser.add_argument("--answers", help="File for a JSON list of the answers.")


@events.quitting.add_listener
def write_answers(environment: Environment) -> None:
    """Write all answers when Locust quits."""
    Path(environment.parsed_options.answers).write_text(json.dumps(ANSWERS))


class Sender(FastHttpUser):
    """A client that sends the page's examples in turn and records the answers."""

    abstract = True
    connection_timeout = network_timeout = TIMEOUT_S

    def on_start(self) -> None:
        """Wait for the beginning, so that all clients start together."""
        wait_s = self.environment.parsed_options.begin - time.time()
        self.begin = time.perf_counter() + wait_s
        self.sent = 0
        gevent.sleep(max(0.0, wait_s))

    def now(self) -> float:
        """Return the seconds since the beginning."""
        return time.perf_counter() - self.begin

    def send(self, due: float) -> int:
        """Send a request that was due at `due` and return its status, 0 without an answer."""
        image, text = EXAMPLES[self.sent % len(EXAMPLES)]
        self.sent += 1
        lag = self.now() - due
        files, data = {"image": ("picture", image)}, {"text": text}
        answer = self.client.post("/v1/detect", data=data, files=files)
        latency, status = self.now() - due, int(answer.status_code or 0)
        reason = ""
        if status == 0:
            reason = type(answer.error).__name__
        elif status != 200:
            try:
                reason = str(answer.json()["error"]["code"])
            except (ValueError, KeyError, TypeError):  # an answer of Ray's proxy, for example
                reason = f"not of the API: {(answer.text or '').partition('(')[0].strip()[:60]}"
        fields = {
            "due_s": due,
            "lag_s": lag,
            "latency_s": latency,
            "status": status,
            "retry_after": "retry-after" in (answer.headers or {}),
            "reason": reason,
        }
        ANSWERS.append(fields)
        return status


class Arrivals(Sender):
    """A client that sends every request when it is due, each in a greenlet, over as many connections as needed."""

    fixed_count = 1
    client_pool = HTTPClientPool(
        concurrency=10_000, connection_timeout=TIMEOUT_S, network_timeout=TIMEOUT_S, insecure=True
    )

    @task
    def offer(self) -> None:
        """Send all requests once; the load ends with the last answer."""
        sending = Group()
        for due in json.loads(Path(self.environment.parsed_options.due).read_text()):
            gevent.sleep(max(0.0, due - self.now()))
            sending.spawn(self.send, due)
        sending.join()
        gevent.spawn(self.environment.runner.quit)  # which stops this greenlet too
        raise StopUser


class Waiting(Sender):
    """A client that waits for each answer."""

    pause_s = 0.0

    def wait_time(self) -> float:
        """Return 0, or after a refusal the shortest time that Retry-After requests."""
        return self.pause_s

    @task
    def detect(self) -> None:
        """Send one request."""
        self.pause_s = 1.0 if self.send(self.now()) in REFUSED else 0.0
