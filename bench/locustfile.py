"""The requests of a load, sent by Locust in a process of its own; `bench/load.py` starts it and reads what it writes.

`Arrivals` sends a request at each moment of a list, whatever became of those before, and counts latency from the moment
when a request was due: what waits behind a stall is counted. `Waiting` is a client that sends its next request once it
has its answer.
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
    """What a load is given."""
    parser.add_argument("--due", help="a JSON list of when to send requests, in seconds after the beginning")
    parser.add_argument("--begin", type=float, help="that beginning, in seconds of the epoch")
    parser.add_argument("--answers", help="where a JSON list of what came back goes")


@events.quitting.add_listener
def write_answers(environment: Environment) -> None:
    """Once all have come."""
    Path(environment.parsed_options.answers).write_text(json.dumps(ANSWERS))


class Sender(FastHttpUser):
    """Sends the page's examples in turn, and writes down what came back."""

    abstract = True
    connection_timeout = network_timeout = TIMEOUT_S

    def on_start(self) -> None:
        """Wait for the beginning, when all start together."""
        wait_s = self.environment.parsed_options.begin - time.time()
        self.begin = time.perf_counter() + wait_s
        self.sent = 0
        gevent.sleep(max(0.0, wait_s))

    def now(self) -> float:
        """Seconds since the beginning."""
        return time.perf_counter() - self.begin

    def send(self, due: float) -> int:
        """A request that is due then, whose status is returned: 0 where nothing came back."""
        image, text = EXAMPLES[self.sent % len(EXAMPLES)]
        self.sent += 1
        lag = self.now() - due
        files, data = {"image": ("picture", image)}, {"text": text}
        answer = self.client.post("/v1/detect", data=data, files=files)
        latency, status = self.now() - due, int(answer.status_code or 0)
        told = {
            "due_s": due,
            "lag_s": lag,
            "latency_s": latency,
            "status": status,
            "retry_after": "retry-after" in (answer.headers or {}),
            "told": "" if status == 200 else _code(answer) if status else type(answer.error).__name__,
        }
        ANSWERS.append(told)
        return status


class Arrivals(Sender):
    """All that is due, each request a greenlet, over as many connections as that takes."""

    fixed_count = 1
    client_pool = HTTPClientPool(
        concurrency=10_000, connection_timeout=TIMEOUT_S, network_timeout=TIMEOUT_S, insecure=True
    )

    @task
    def offer(self) -> None:
        """Once, and with the last answer the load ends."""
        sending = Group()
        for due in json.loads(Path(self.environment.parsed_options.due).read_text()):
            gevent.sleep(max(0.0, due - self.now()))
            sending.spawn(self.send, due)
        sending.join()
        gevent.spawn(self.environment.runner.quit)  # which stops this greenlet too
        raise StopUser


class Waiting(Sender):
    """One of those who wait."""

    pause_s = 0.0

    def wait_time(self) -> float:
        """None, but after a refusal as long as Retry-After asks at least."""
        return self.pause_s

    @task
    def detect(self) -> None:
        """One request."""
        self.pause_s = 1.0 if self.send(self.now()) in REFUSED else 0.0


def _code(answer: Any) -> str:
    try:
        return str(answer.json()["error"]["code"])
    except (ValueError, KeyError, TypeError):
        return f"not of the API: {(answer.text or '').partition('(')[0].strip()[:60]}"
