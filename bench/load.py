"""A load on a server, by Locust in a process of its own, and what came of it.

Arrivals follow a schedule that does not wait for answers, drawn by seed with the gaps of a Poisson process, and a
request's latency counts from the moment it was due: what waits behind a stall is counted, so nothing is coordinated
away. `lag` is how late the load's own process was; a figure with a large lag says nothing of the server.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parent.parent / "serve" / "page"
LOCUSTFILE = Path(__file__).with_name("locustfile.py")
START_S = 5
"""What Locust takes to come up, and all its clients."""
TIMEOUT_S = 60
"""How long a request has."""
REFUSED = (429, 503)


@dataclass(frozen=True)
class Answer:
    """One request: when it was due and how late it was sent, in seconds; status 0 is no answer."""

    due_s: float
    lag_s: float
    latency_s: float
    status: int
    retry_after: bool
    told: str


def examples() -> list[tuple[bytes, str]]:
    """The page's: pictures and their texts."""
    told = json.loads((PAGE / "examples.json").read_text())
    return [((PAGE / example["image"]).read_bytes(), example["text"]) for example in told]


def schedule(steps: list[tuple[float, float]], seed: int = 0) -> list[float]:
    """When requests are due, in seconds, for steps of (seconds, requests a second)."""
    rng, due, start = random.Random(seed), [], 0.0
    for seconds, rate in steps:
        at = start + rng.expovariate(rate)
        while at < start + seconds:
            due.append(at)
            at += rng.expovariate(rate)
        start += seconds
    return due


class Load:
    """What begins a few seconds after it is made, and goes on by itself."""

    def __init__(self, url: str, user: str, *options: str, due: list[float] | None = None) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._answers = Path(self._folder.name) / "answers.json"
        given = Path(self._folder.name) / "due.json"
        given.write_text(json.dumps(due or []))
        begin = time.time() + START_S
        self._begin = time.perf_counter() + START_S
        options += ("--due", str(given), "--answers", str(self._answers), "--begin", str(begin))
        command = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), user, "--host", url, *options]
        quiet = ["--headless", "--only-summary", "--loglevel", "ERROR", "--exit-code-on-error", "0"]
        self._log = Path(self._folder.name) / "log"
        with self._log.open("w") as log:
            self._process = subprocess.Popen([*command, *quiet], stdout=log, stderr=log)

    @classmethod
    def arriving(cls, url: str, due: list[float]) -> Load:
        """A request at each moment that one is due, whatever became of those before."""
        return cls(url, "Arrivals", due=due)

    @classmethod
    def waiting(cls, url: str, seconds: float, clients: int) -> Load:
        """So many clients, each of which sends its next request once it has its answer."""
        count, run = str(clients), f"{START_S + seconds:.0f}s"
        return cls(url, "Waiting", "-u", count, "-r", count, "--run-time", run, "--stop-timeout", str(TIMEOUT_S))

    def elapsed(self) -> float:
        """Seconds since it began; before, below nought."""
        return time.perf_counter() - self._begin

    def ended_within(self, seconds: float) -> bool:
        """Whether it ends in that time, which is waited for."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def answers(self) -> list[Answer]:
        """All of them, once it has ended."""
        if self._process.wait():
            raise SystemExit(f"locust ended with {self._process.returncode}:\n{self._log.read_text()}")
        told = [Answer(**answer) for answer in json.loads(self._answers.read_text())]
        self._folder.cleanup()
        return told


def figures(answers: list[Answer], seconds: float) -> dict[str, Any]:
    """Of a load that lasted so long: what came back, and how late, apart for what was judged and what was not.

    What clients that wait sent later, until Locust had stopped them, is left out.
    """
    answers = [answer for answer in answers if answer.due_s < seconds]
    good = sorted(answer.latency_s for answer in answers if answer.status == 200)
    shed = sorted(answer.latency_s for answer in answers if answer.status in REFUSED)
    told = Counter(f"{answer.status} {answer.told}".strip() for answer in answers)
    return {
        "offered_per_s": len(answers) / seconds,
        "judged_per_s": sum(a.status == 200 and a.due_s + a.latency_s <= seconds for a in answers) / seconds,
        "judged_ms": quantiles(good),
        "shed_ms": quantiles(shed),
        "shed_without_retry_after": sum(a.status in REFUSED and not a.retry_after for a in answers),
        "failed": sum(answer.status not in (200, *REFUSED) for answer in answers),
        "lag_p99_ms": quantiles(sorted(answer.lag_s for answer in answers)).get("p99", 0.0),
        "answers": dict(told),
    }


def by_time(answers: list[Answer], width: int) -> list[dict[str, float]]:
    """Of each so many seconds: what was due then, and judged of it, a second, and how late."""
    parts: dict[int, list[Answer]] = {}
    for answer in answers:
        parts.setdefault(int(answer.due_s // width) * width, []).append(answer)
    told = []
    for start, some in sorted(parts.items()):
        judged = sorted(answer.latency_s for answer in some if answer.status == 200)
        rates = {"offered": len(some) / width, "judged": len(judged) / width}
        told.append({"at_s": start, "width_s": width} | rates | quantiles(judged))
    return told


def quantiles(ordered: list[float]) -> dict[str, float]:
    """Of seconds in order, in milliseconds."""
    shares = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}
    return {name: 1000 * ordered[int(share * (len(ordered) - 1))] for name, share in shares.items()} if ordered else {}
