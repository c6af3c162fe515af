"""What the server does under load: saturation, latency, a step, too much, a killed replica, a rolling update.

Arrivals follow a schedule that does not wait for answers, drawn by seed with the gaps of a Poisson process, and a
request's latency counts from the moment it was due: what waits behind a stall is counted, so nothing is coordinated
away. The load comes from a process of its own; `lag` is how late that process itself was, and a figure with a large lag
says nothing of the server. Saturation alone is measured with a fixed number of clients that wait, beside a plain
FastAPI server that judges pair by pair, and the bare predictor, which decodes and judges the same pictures in batches
in one process, right before and after.

    python bench/serving.py [--model demo] [--seconds 20] [--overload-seconds 600] [--parts overload …] [--json PATH]
        [--figure step.svg]
    python bench/serving.py --model base --seconds 120 --clients 8 --set batch_size=4 --set wait_s=8 --parts overload
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import multiprocessing
import os
import random
import signal
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2

if TYPE_CHECKING:
    from asap.predictor import Predictor
    from serve.settings import ServeSettings

PAGE = Path(__file__).parent.parent / "serve" / "page"
PORT = 8123
TIMEOUT_S = 60
REFUSED = (429, 503)


@dataclass(frozen=True)
class Answer:
    """One request: when it was due and when it was sent, seconds after the start; status 0 is no answer."""

    due_s: float
    lag_s: float
    latency_s: float
    status: int
    retry_after: bool
    told: str


def pairs() -> list[tuple[bytes, str]]:
    """The page's examples."""
    examples = json.loads((PAGE / "examples.json").read_text())
    return [((PAGE / example["image"]).read_bytes(), example["text"]) for example in examples]


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


def offer(url: str, due: list[float]) -> list[Answer]:
    """Send a request at each moment that one is due, whatever became of those before."""
    return asyncio.run(_offer(url, due))


async def _offer(url: str, due: list[float]) -> list[Answer]:
    given = pairs()
    async with _client(url) as client:
        start, tasks = time.perf_counter(), []
        for number, moment in enumerate(due):
            await asyncio.sleep(max(0.0, start + moment - time.perf_counter()))
            tasks.append(asyncio.create_task(_send(client, *given[number % len(given)], start, moment)))
        return list(await asyncio.gather(*tasks))


def saturate(url: str, seconds: float, clients: int) -> list[Answer]:
    """So many clients, each of which sends its next request once it has its answer."""
    return asyncio.run(_saturate(url, seconds, clients))


async def _saturate(url: str, seconds: float, clients: int) -> list[Answer]:
    given, answers = pairs(), []

    async def one(number: int) -> None:
        while (now := time.perf_counter() - start) < seconds:
            answers.append(await _send(client, *given[number % len(given)], start, now))
            if answers[-1].status in REFUSED:
                await asyncio.sleep(1)  # as Retry-After asks

    async with _client(url) as client:
        start = time.perf_counter()
        await asyncio.gather(*map(one, range(clients)))
    return answers


def _client(url: str) -> httpx2.AsyncClient:
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
    return httpx2.AsyncClient(base_url=url, limits=limits, timeout=TIMEOUT_S)


async def _send(client: httpx2.AsyncClient, image: bytes, text: str, start: float, due: float) -> Answer:
    lag = time.perf_counter() - start - due
    try:
        answer = await client.post("/v1/detect", files={"image": image}, data={"text": text})
        status, retry, told = answer.status_code, "retry-after" in answer.headers, _code(answer)
    except httpx2.HTTPError as error:
        status, retry, told = 0, False, type(error).__name__
    return Answer(due, lag, time.perf_counter() - start - due, status, retry, told)


def _code(answer: httpx2.Response) -> str:
    try:
        return "" if answer.is_success else str(answer.json()["error"]["code"])
    except (ValueError, KeyError, TypeError):
        return f"not of the API: {answer.text.partition('(')[0].strip()[:60]}"


@contextmanager
def elsewhere() -> Iterator[Any]:
    """A process for the load."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        yield pool


@contextmanager
def model_folder(model: str) -> Iterator[str]:
    """The folder of a model; of the base size, one of random weights with the demo model's tokenizer."""
    if model != "base":
        yield model
        return
    from asap.checkpoint import load_folder, save
    from asap.config import ModelConfig
    from asap.model import Asap

    tokenizer = load_folder("demo").tokenizer
    with tempfile.TemporaryDirectory() as parent:
        drawn = Asap(ModelConfig.preset("base", vocab_size=len(tokenizer)))
        yield str(save(drawn, Path(parent) / "base", tokenizer=tokenizer))


def predictor_of(settings: ServeSettings, batch_size: int) -> Predictor:
    """A detector's predictor without the server, on as many threads."""
    import torch

    from asap.predictor import Predictor

    torch.set_num_threads(max(1, int(settings.detector_cpus)))
    return Predictor.from_folder(settings.model, settings.device, settings.precision, batch_size=batch_size)


def bare(given_settings: dict[str, Any], seconds: float) -> float:
    """Pairs a second of the predictor alone, where it is called."""
    from asap.finding import Pair
    from serve.settings import ServeSettings

    settings = ServeSettings(**given_settings)
    batch = settings.batch_size
    predictor = predictor_of(settings, batch)
    given = [Pair(*pair) for pair in pairs()]
    some = [given[number % len(given)] for number in range(batch)]
    predictor.predict(some)
    start, judged = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        predictor.predict(some)
        judged += batch
    return judged / (time.perf_counter() - start)


def plain(given_settings: dict[str, Any]) -> None:
    """Serve the predictor as a first try would: FastAPI, one pair at a time, in a process of its own."""
    import threading

    import uvicorn
    from fastapi import FastAPI, Form, UploadFile

    from asap.finding import Pair
    from serve.settings import ServeSettings

    predictor = predictor_of(ServeSettings(**given_settings), 1)
    app, alone = FastAPI(), threading.Lock()

    def detect(image: UploadFile, text: str = Form()) -> dict[str, float | None]:
        with alone:
            return {"score": predictor.predict([Pair(image.file.read(), text)])[0].score}

    detect.__annotations__ = {"image": UploadFile, "text": str}  # FastAPI looks for names in the module alone
    app.post("/v1/detect")(detect)
    uvicorn.run(app, host="127.0.0.1", port=PORT + 1, log_level="warning")


@contextmanager
def plain_server(settings: dict[str, Any]) -> Iterator[str]:
    """Its address, once it answers."""
    process = multiprocessing.get_context("spawn").Process(target=plain, args=(settings,))
    process.start()
    url = f"http://127.0.0.1:{PORT + 1}"
    try:
        while True:
            try:
                httpx2.get(f"{url}/docs")
                break
            except httpx2.HTTPError:
                if not process.is_alive():
                    raise SystemExit("the plain server did not start") from None
                time.sleep(0.5)
        yield url
    finally:
        process.terminate()
        process.join()


def figures(answers: list[Answer], seconds: float) -> dict[str, Any]:
    """Of a load that lasted so long: what came back, and how late, apart for what was judged and what was not."""
    good = sorted(answer.latency_s for answer in answers if answer.status == 200)
    shed = sorted(answer.latency_s for answer in answers if answer.status in REFUSED)
    told = Counter(f"{answer.status} {answer.told}".strip() for answer in answers)
    return {
        "offered_per_s": len(answers) / seconds,
        "judged_per_s": sum(a.status == 200 and a.due_s + a.latency_s <= seconds for a in answers) / seconds,
        "judged_ms": _quantiles(good),
        "shed_ms": _quantiles(shed),
        "shed_without_retry_after": sum(a.status in REFUSED and not a.retry_after for a in answers),
        "failed": sum(answer.status not in (200, *REFUSED) for answer in answers),
        "lag_p99_ms": _quantiles(sorted(answer.lag_s for answer in answers)).get("p99", 0.0),
        "answers": dict(told),
    }


def _quantiles(ordered: list[float]) -> dict[str, float]:
    shares = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}
    return {name: 1000 * ordered[int(share * (len(ordered) - 1))] for name, share in shares.items()} if ordered else {}


class Server:
    """The application on a Ray of this process. The settings are those of `asap serve`, but for what is given."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.url = f"http://127.0.0.1:{PORT}"

    def deploy(self, **change: Any) -> None:
        """Start it, or replace it by one of other settings, and wait until it is there."""
        from serve.app import build, start
        from serve.settings import ServeSettings

        self.settings |= change
        settings = ServeSettings(**self.settings)
        start(build(settings), settings)

    def replicas(self, name: str = "Detector") -> int:
        """How many run."""
        from ray import serve

        return serve.status().applications["asap"].deployments[name].replica_states.get("RUNNING", 0)

    def wait(self, **replicas: int) -> None:
        """Until so many of each deployment run."""
        while any(self.replicas(name) != count for name, count in replicas.items()):
            time.sleep(0.5)


def replica_pids(name: str) -> list[int]:
    """Processes of a deployment's replicas, on this machine and below this process or not."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().startswith(f"ray::ServeReplica:asap:{name}".encode()):
                found.append(int(path.parent.name))
        except OSError:  # it ended in between
            continue
    return sorted(found)


def memory_mib() -> float:
    """Resident memory of the server's replicas."""
    pages = 0
    for pid in (*replica_pids("Api"), *replica_pids("Detector")):
        try:
            pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        except OSError:
            continue
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def during(pool: Any, url: str, due: list[float], act: Callable[[], None], after_s: float) -> list[Answer]:
    """The answers of a load, so long into which something is done."""
    loading = pool.apply_async(offer, (url, due))
    time.sleep(after_s)
    act()
    answers: list[Answer] = loading.get()
    return answers


def watched(pool: Any, url: str, due: list[float], look: Callable[[], float]) -> tuple[list[Answer], list[Any]]:
    """The answers of a load, and what was seen every second of it."""
    loading, start, seen = pool.apply_async(offer, (url, due)), time.perf_counter(), []
    while not loading.ready():
        seen.append((round(time.perf_counter() - start, 1), look()))
        loading.wait(1)
    return loading.get(), seen


def steady(url: str, pool: Any, seconds: float, clients: int) -> dict[str, Any]:
    """Saturation, and latency below it."""
    pool.apply(saturate, (url, 5, clients))
    alone = [answer.latency_s for answer in pool.apply(saturate, (url, seconds / 2, 1))]
    full = figures(pool.apply(saturate, (url, seconds, clients)), seconds)
    told = {"saturated": full | {"alone_ms": 1000 * statistics.median(alone)}}
    for share in (0.5, 0.8):
        due = schedule([(seconds, share * full["judged_per_s"])])
        told[f"load_{share:.0%}"] = figures(pool.apply(offer, (url, due)), seconds)
    return told


def overload(server: Server, pool: Any, seconds: float, capacity: float, told: dict[str, Any]) -> None:
    """Three times what one detector judges."""
    server.deploy(min_replicas=1, max_replicas=1)
    answers, memory = watched(pool, server.url, schedule([(seconds, 3 * capacity)]), memory_mib)
    told["overload"] = figures(answers, seconds) | {"memory_mib": memory}


def step(server: Server, pool: Any, seconds: float, capacity: float, told: dict[str, Any]) -> None:
    """From next to nothing to twice what one detector judges, and back, with room for three or for as many as set."""
    server.deploy(min_replicas=1, max_replicas=server.settings.get("max_replicas", 3), downscale_delay_s=10)
    server.wait(Detector=1)
    idle = capacity / 20
    steps = [(10, idle), (seconds + 20, 2 * capacity), (60, idle)]
    answers, replicas = watched(pool, server.url, schedule(steps), server.replicas)
    told["step"] = figures(answers, sum(length for length, _ in steps)) | {
        "replicas": replicas,
        "by_time": _by_time(answers, 5),
    }


def _by_time(answers: list[Answer], width: int) -> list[dict[str, float]]:
    """Of each so many seconds: what was due then, and judged of it, a second, and how late."""
    parts: dict[int, list[Answer]] = {}
    for answer in answers:
        parts.setdefault(int(answer.due_s // width) * width, []).append(answer)
    told = []
    for start, some in sorted(parts.items()):
        judged = sorted(answer.latency_s for answer in some if answer.status == 200)
        rates = {"offered": len(some) / width, "judged": len(judged) / width}
        told.append({"at_s": start, "width_s": width} | rates | _quantiles(judged))
    return told


def draw_step(told: dict[str, Any]) -> str:
    """The step as a picture, SVG: load and what was judged of it, detectors, and latency."""
    import numpy as np

    from jobs.plot import BLUE, DASHES, GREEN, PURPLE, VERMILION, Axis, Line, Panel, Plot

    def axis(label: str, most: float, parts: int = 4) -> Axis:
        steps = (size * 10**power for power in range(6) for size in (1, 2, 5))
        width = next(step for step in steps if step * parts >= most)
        count = math.ceil(most / width)
        return Axis(label, width * count, [width * number for number in range(count + 1)])

    def line(name: str, colour: str, label: str, dash: str, unit: float = 1) -> Line:
        points = [(part["at_s"] + part["width_s"] / 2, part[name] / unit) for part in parts if name in part]
        return Line(np.array(points), colour, label, dash)

    parts, replicas = told["by_time"], np.array(told["replicas"], float)
    seconds = max(part["at_s"] for part in parts)
    late = axis("latency, s", max(part.get("p99", 0.0) for part in parts) / 1000)
    return Plot(
        title="A step to twice what one detector judges",
        note=f"{told['answers'].get('200', 0)} judged, {told['failed']} failed",
        x=axis("seconds", seconds, 6),
        panels=[
            Panel(
                axis("pairs a second", max(part["offered"] for part in parts)),
                [line("offered", VERMILION, "asked for", DASHES[1]), line("judged", BLUE, "judged", DASHES[0])],
                2,
            ),
            Panel(axis("detectors", replicas[:, 1].max(), 2), [Line(replicas, GREEN, "detectors", step=True)]),
            Panel(
                late,
                [
                    line("p50", PURPLE, "median latency", DASHES[2], 1000),
                    line("p99", PURPLE, "99th percentile", "", 1000),
                ],
                2,
            ),
        ],
        summary="Load, judged pairs, detectors and latency over time.",
    ).svg()


def killed(server: Server, pool: Any, seconds: float, capacity: float, told: dict[str, Any]) -> None:
    """At half load, one of two detectors; then the one process that takes requests, and one of two."""
    due = schedule([(seconds + 20, capacity / 2)])
    for name, apis in (("Detector", 1), ("Api", 1), ("Api", 2)):
        server.deploy(min_replicas=2, max_replicas=2, api_replicas=apis)
        server.wait(Detector=2, Api=apis)
        answers = during(pool, server.url, due, lambda name=name: os.kill(replica_pids(name)[0], signal.SIGKILL), 5)
        part = f"killed_{name.lower()}_of_{2 if name == 'Detector' else apis}"
        told[part] = figures(answers, seconds + 20) | {"not_judged_at_s": _lost(answers)}
    server.deploy(api_replicas=1)


def update(server: Server, pool: Any, seconds: float, capacity: float, told: dict[str, Any]) -> None:
    """Another version of everything, at half load, with one detector and with two."""
    for replicas in (1, 2):
        server.deploy(min_replicas=replicas, max_replicas=replicas)
        server.wait(Detector=replicas)
        wait_s = 0.005 + 0.001 * replicas
        due = schedule([(seconds + 40, capacity / 2)])
        answers = during(pool, server.url, due, lambda wait_s=wait_s: server.deploy(batch_wait_s=wait_s), 5)
        told[f"update_{replicas}"] = figures(answers, seconds + 40) | {"not_judged_at_s": _lost(answers)}


def _lost(answers: list[Answer]) -> list[float]:
    """When those were due that were not judged: first and last."""
    due = [round(answer.due_s, 1) for answer in answers if answer.status != 200]
    return [min(due), max(due)] if due else []


def keep(told: dict[str, Any], file: Path | None) -> None:
    """Show the figures so far as a table, and write them."""
    if file:
        file.write_text(json.dumps(told, indent=2) + "\n")
    from rich.console import Console
    from rich.table import Table

    table = Table("part", "offered/s", "judged/s", "p50", "p95", "p99 ms", "shed p99 ms", "lag p99", "answers")
    for name, part in told.items():
        if isinstance(part, dict):
            good = part["judged_ms"]
            numbers = [part["offered_per_s"], part["judged_per_s"], *(good.get(q, 0.0) for q in ("p50", "p95", "p99"))]
            numbers += [part["shed_ms"].get("p99", 0.0), part["lag_p99_ms"]]
            answers = ", ".join(f"{count} x {code}" for code, count in part["answers"].items())
            table.add_row(name, *(f"{number:.3g}" for number in numbers), answers)
    console = Console(width=180)
    console.print(table)
    console.print({name: part for name, part in told.items() if not isinstance(part, dict)})


PARTS: dict[str, Callable[..., None]] = {"overload": overload, "step": step, "killed": killed, "update": update}


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="demo", help="'demo', 'base' (that size, random weights), or a model folder")
    parser.add_argument("--seconds", type=float, default=20, help="of each steady load")
    parser.add_argument("--clients", type=int, default=32, help="that wait for their answers, to saturate")
    parser.add_argument("--overload-seconds", type=float, default=600)
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=list(PARTS), help="after the steady loads")
    parser.add_argument("--set", action="append", default=[], help="a setting of the server, NAME=VALUE")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--figure", type=Path, help="where to draw the step, SVG")
    arguments = parser.parse_args()
    from jobs.cluster import ray_running
    from jobs.options import changes_of

    told: dict[str, Any] = {}
    room = max(8, os.cpu_count() or 1)  # for as many replicas as are asked for
    with model_folder(arguments.model) as model, elsewhere() as pool, ray_running(num_cpus=room):
        settings = {"model": model, "port": PORT, "device": "cpu"} | changes_of(arguments.set)
        told["bare_before_per_s"] = pool.apply(bare, (settings, arguments.seconds))
        with plain_server(settings) as url:
            beside = steady(url, pool, arguments.seconds, arguments.clients)
            told |= {f"plain_{name}": part for name, part in beside.items()}
        server = Server(settings)
        server.deploy(min_replicas=1, max_replicas=1)
        told |= steady(server.url, pool, arguments.seconds, arguments.clients)
        capacity = told["saturated"]["judged_per_s"]
        keep(told, arguments.json)
        for name in arguments.parts:
            seconds = arguments.overload_seconds if name == "overload" else arguments.seconds
            PARTS[name](server, pool, seconds, capacity, told)
            keep(told, arguments.json)
        from ray import serve

        serve.shutdown()
        told["bare_after_per_s"] = pool.apply(bare, (settings, arguments.seconds))
    if arguments.figure and "step" in told:
        arguments.figure.write_text(draw_step(told["step"]))
    keep(told, arguments.json)


if __name__ == "__main__":
    main()
