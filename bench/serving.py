"""Measure the server under load: saturation, latency, a step, overload, killed replicas, a rolling update.

The load comes from Locust (`bench/load.py`). Arrivals do not wait for answers; only saturation is measured with a fixed
number of clients that do. There are two baselines: a plain FastAPI server that processes pair by pair, and the bare
predictor, which decodes and detects the same pictures in batches in one process, right before and after.

    python bench/serving.py [--model demo] [--seconds 20] [--overload-seconds 600] [--parts overload …] [--json PATH]
        [--figure step.svg]
    python bench/serving.py --model base --seconds 120 --clients 8 --set batch_size=4 --set wait_s=8 --parts overload
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
from load import Answer, Load, by_time, examples, figures, schedule

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from asap.predictor import Predictor
    from serve.settings import ServeSettings

PORT = 8123
OVERLOAD = 3
"""The load of the part `overload`, as a multiple of the capacity of one detector."""


@contextmanager
def model_folder(model: str) -> Iterator[str]:
    """Return a model's folder; for `base`, one of random weights of that size with the tokenizer of the demo model."""
    if model != "base":
        yield model
        return
    from asap.model.asap import Asap
    from asap.model.config import ModelConfig
    from asap.weights.model_folder import load_folder, save

    tokenizer = load_folder("demo").tokenizer
    with tempfile.TemporaryDirectory() as parent:
        drawn = Asap(ModelConfig.preset("base", vocab_size=len(tokenizer)))
        yield str(save(drawn, Path(parent) / "base", tokenizer=tokenizer))


def predictor_of(settings: ServeSettings, batch_size: int) -> Predictor:
    """Load the predictor of a detector without the server, on the same number of threads."""
    import torch

    from asap.predictor import Predictor

    torch.set_num_threads(max(1, int(settings.detector_cpus)))
    return Predictor.from_folder(settings.model, settings.device, settings.precision, batch_size=batch_size)


def bare(options: dict[str, Any], seconds: float) -> float:
    """Measure the pairs per second of the predictor alone, in this process."""
    from asap.finding import Pair
    from serve.settings import ServeSettings

    settings = ServeSettings(**options)
    batch = settings.batch_size
    predictor = predictor_of(settings, batch)
    pairs = [Pair(*example) for example in examples()]
    some = [pairs[number % len(pairs)] for number in range(batch)]
    predictor.predict(some)
    start, detected = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        predictor.predict(some)
        detected += batch
    return detected / (time.perf_counter() - start)


def bare_apart(settings: dict[str, Any], seconds: float) -> float:
    """Measure the same in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return float(pool.apply(bare, (settings, seconds)))


def plain(options: dict[str, Any]) -> None:
    """Serve the predictor in the simplest manner: FastAPI, one pair at a time, in this process."""
    import threading

    import uvicorn
    from fastapi import FastAPI, Form, UploadFile

    from asap.finding import Pair
    from serve.settings import ServeSettings

    predictor = predictor_of(ServeSettings(**options), 1)
    app, lock = FastAPI(), threading.Lock()

    def detect(image: UploadFile, text: str = Form()) -> dict[str, float | None]:
        with lock:
            return {"score": predictor.predict([Pair(image.file.read(), text)])[0].score}

    detect.__annotations__ = {"image": UploadFile, "text": str}  # FastAPI resolves annotations in the module only
    app.post("/v1/detect")(detect)
    uvicorn.run(app, host="127.0.0.1", port=PORT + 1, log_level="warning")


@contextmanager
def plain_server(settings: dict[str, Any]) -> Iterator[str]:
    """Run the plain server for the time of the block; yield its address once it answers."""
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
                    raise SystemExit("the plain server did not start; its message is above") from None
                time.sleep(0.5)
        yield url
    finally:
        process.terminate()
        process.join()


class Server:
    """The application on a Ray of this process, with the settings of `asap serve` except those passed."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.passed, self.settings = settings, dict(settings)
        self.url = f"http://127.0.0.1:{PORT}"

    def deploy(self, **change: Any) -> None:
        """Deploy the application, or replace it with other settings, and wait until it is ready."""
        from serve.app import build
        from serve.run import start
        from serve.settings import ServeSettings

        self.settings |= change
        settings = ServeSettings(**self.settings)
        start(build(settings), settings)

    def replicas(self, name: str = "Detector") -> int:
        """Return the number of running replicas of a deployment."""
        from ray import serve

        return serve.status().applications["asap"].deployments[name].replica_states.get("RUNNING", 0)

    def wait(self, **replicas: int) -> None:
        """Wait until each deployment has exactly so many running replicas."""
        while any(self.replicas(name) != count for name, count in replicas.items()):
            time.sleep(0.5)


def replica_pids(name: str) -> list[int]:
    """Return the process ids of a deployment's replicas on this machine, children of this process or not."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().startswith(f"ray::ServeReplica:asap:{name}".encode()):
                found.append(int(path.parent.name))
        except OSError:  # the process has ended
            continue
    return sorted(found)


def memory_mib() -> float:
    """Return the resident memory of the server's replicas."""
    pages = 0
    for pid in (*replica_pids("Api"), *replica_pids("Detector")):
        try:
            pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        except OSError:
            continue
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def during(url: str, due: list[float], act: Callable[[], None], after_s: float) -> list[Answer]:
    """Return the answers of a load; call `act` `after_s` seconds into it."""
    load = Load.arriving(url, due)
    time.sleep(after_s - load.elapsed())
    act()
    return load.answers()


def watched(url: str, due: list[float], look: Callable[[], float]) -> tuple[list[Answer], list[tuple[float, float]]]:
    """Return the answers of a load, and a series of (seconds, value) that `look` returns about once a second."""
    load, seen = Load.arriving(url, due), []
    while not load.ended_within(1):
        seen.append((round(load.elapsed(), 1), look()))
    return load.answers(), [moment for moment in seen if moment[0] >= 0]


def steady(url: str, seconds: float, clients: int) -> dict[str, Any]:
    """Measure saturation, and latency at 50 % and 80 % of it."""
    Load.waiting(url, 5, clients).answers()
    alone = [answer.latency_s for answer in Load.waiting(url, seconds / 2, 1).answers()]
    full = figures(Load.waiting(url, seconds, clients).answers(), seconds)
    report = {"saturated": full | {"alone_ms": 1000 * statistics.median(alone)}}
    for share in (0.5, 0.8):
        due = schedule([(seconds, share * full["judged_per_s"])])
        report[f"load_{share:.0%}"] = figures(Load.arriving(url, due).answers(), seconds)
    return report


def overload(server: Server, seconds: float, capacity: float, report: dict[str, Any]) -> None:
    """Measure a load of `OVERLOAD` times the capacity of one detector."""
    server.deploy(min_replicas=1, max_replicas=1)
    answers, memory = watched(server.url, schedule([(seconds, OVERLOAD * capacity)]), memory_mib)
    report["overload"] = figures(answers, seconds) | {"memory_mib": memory}


def step(server: Server, seconds: float, capacity: float, report: dict[str, Any]) -> None:
    """Measure a step from almost no load to twice the capacity of one detector, and back.

    Up to three detectors may run, or as many as `--set max_replicas` says.
    """
    server.deploy(min_replicas=1, max_replicas=server.passed.get("max_replicas", 3), downscale_delay_s=10)
    server.wait(Detector=1)
    idle = capacity / 20
    steps = [(10, idle), (seconds + 20, 2 * capacity), (60, idle)]
    answers, replicas = watched(server.url, schedule(steps), server.replicas)
    report["step"] = figures(answers, sum(length for length, _ in steps)) | {
        "replicas": replicas,
        "by_time": by_time(answers, 5),
    }


def draw_step(report: dict[str, Any]) -> str:
    """Draw the step as SVG: load and detected pairs, detectors, and latency."""
    import numpy as np

    from jobs.pages.plot import BLUE, DASHES, GREEN, PURPLE, VERMILION, new_figure, plot_style, render_svg, round_ticks

    parts, replicas = report["by_time"], np.array(report["replicas"], float)

    def draw(axes: Axes, name: str, color: str, label: str, dash: Any, unit: float = 1) -> None:
        points = [(part["at_s"] + part["width_s"] / 2, part[name] / unit) for part in parts if name in part]
        axes.plot(*zip(*points, strict=True), color=color, linestyle=dash, label=label)

    with plot_style():
        note = f"{report['answers'].get('200', 0)} detected, {report['failed']} failed"
        title = "A step to twice the capacity of one detector"
        figure, (load, detectors, latency) = new_figure(title, note, "seconds", heights=(2, 1, 2))
        draw(load, "offered", VERMILION, "requested", DASHES[1])
        draw(load, "detected", BLUE, "detected", DASHES[0])
        detectors.plot(*replicas.T, color=GREEN, drawstyle="steps-post", label="detectors")
        draw(latency, "p50", PURPLE, "median latency", DASHES[2], 1000)
        draw(latency, "p99", PURPLE, "99th percentile", DASHES[0], 1000)
        for axes, label, highest, steps in (
            (load, "pairs per second", max(part["offered"] for part in parts), 4),
            (detectors, "detectors", replicas[:, 1].max(), 2),
            (latency, "latency, s", max(part.get("p99", 0.0) for part in parts) / 1000, 4),
        ):
            ticks = round_ticks(highest, steps)
            axes.set(ylabel=label, ylim=(0, ticks[-1]), yticks=ticks)
        ticks = round_ticks(max(part["at_s"] for part in parts), 6)
        latency.set(xlim=(0, ticks[-1]), xticks=ticks)
    return render_svg(figure, "Load, detected pairs, detectors and latency over time.")


def killed(server: Server, seconds: float, capacity: float, report: dict[str, Any]) -> None:
    """Kill, at half load, one of two detectors; then the only ingress process; then one of two ingress processes."""
    due = schedule([(seconds + 20, capacity / 2)])
    for name, apis in (("Detector", 1), ("Api", 1), ("Api", 2)):
        server.deploy(min_replicas=2, max_replicas=2, api_replicas=apis)
        server.wait(Detector=2, Api=apis)
        answers = during(server.url, due, lambda name=name: os.kill(replica_pids(name)[0], signal.SIGKILL), 5)
        part = f"killed_{name.lower()}_of_{2 if name == 'Detector' else apis}"
        report[part] = figures(answers, seconds + 20) | {"not_judged_at_s": _lost(answers)}
    server.deploy(api_replicas=1)


def update(server: Server, seconds: float, capacity: float, report: dict[str, Any]) -> None:
    """Update every deployment at half load, with one detector and with two."""
    for replicas in (1, 2):
        server.deploy(min_replicas=replicas, max_replicas=replicas)
        server.wait(Detector=replicas)
        wait_s = 0.005 + 0.001 * replicas
        due = schedule([(seconds + 40, capacity / 2)])
        answers = during(server.url, due, lambda wait_s=wait_s: server.deploy(batch_wait_s=wait_s), 5)
        report[f"update_{replicas}"] = figures(answers, seconds + 40) | {"not_judged_at_s": _lost(answers)}


def _lost(answers: list[Answer]) -> list[float]:
    """Return the first and last due time of the pairs that were not detected."""
    due = [round(answer.due_s, 1) for answer in answers if answer.status != 200]
    return [min(due), max(due)] if due else []


def keep(report: dict[str, Any], file: Path | None) -> None:
    """Print the figures so far as a table, and write them to the file."""
    if file:
        file.write_text(json.dumps(report, indent=2) + "\n")
    from rich.console import Console
    from rich.table import Table

    table = Table("part", "offered/s", "detected/s", "p50", "p95", "p99 ms", "shed p99 ms", "lag p99", "answers")
    for name, part in report.items():
        if isinstance(part, dict):
            good = part["judged_ms"]
            numbers = [part["offered_per_s"], part["judged_per_s"], *(good.get(q, 0.0) for q in ("p50", "p95", "p99"))]
            numbers += [part["shed_ms"].get("p99", 0.0), part["lag_p99_ms"]]
            answers = ", ".join(f"{count} x {code}" for code, count in part["answers"].items())
            table.add_row(name, *(f"{number:.3g}" for number in numbers), answers)
    console = Console(width=180)
    console.print(table)
    console.print({name: part for name, part in report.items() if not isinstance(part, dict)})


PARTS: dict[str, Callable[..., None]] = {"overload": overload, "step": step, "killed": killed, "update": update}


def main() -> None:
    """Run the baselines and the parts, print tables, and write JSON and the figure if requested."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--model", default="demo", help="'demo', 'base' (that size, random weights), or a model folder."
    )
    parser.add_argument("--seconds", type=float, default=20, help="Seconds of each steady load.")
    parser.add_argument(
        "--clients", type=int, default=32, help="Clients that wait for their answers, to saturate the server."
    )
    parser.add_argument("--overload-seconds", type=float, default=600, help="Seconds of the overload.")
    parser.add_argument(
        "--parts", nargs="*", default=list(PARTS), choices=list(PARTS), help="Parts to run after the steady loads."
    )
    parser.add_argument("--set", action="append", default=[], help="A setting of the server, NAME=VALUE.")
    parser.add_argument("--json", type=Path, help="File for the figures.")
    parser.add_argument("--figure", type=Path, help="File for the drawing of the step, SVG.")
    arguments = parser.parse_args()
    from jobs.cli.options import changes_of
    from jobs.cluster import ray_running

    report: dict[str, Any] = {}
    num_cpus = max(8, os.cpu_count() or 1)  # enough for all replicas that the parts deploy
    with model_folder(arguments.model) as model, ray_running(num_cpus=num_cpus):
        settings = {"model": model, "port": PORT, "device": "cpu"} | changes_of(arguments.set)
        report["bare_before_per_s"] = bare_apart(settings, arguments.seconds)
        with plain_server(settings) as url:
            beside = steady(url, arguments.seconds, arguments.clients)
            report |= {f"plain_{name}": part for name, part in beside.items()}
        server = Server(settings)
        server.deploy(min_replicas=1, max_replicas=1)
        report |= steady(server.url, arguments.seconds, arguments.clients)
        capacity = report["saturated"]["judged_per_s"]
        keep(report, arguments.json)
        for name in arguments.parts:
            seconds = arguments.overload_seconds if name == "overload" else arguments.seconds
            PARTS[name](server, seconds, capacity, report)
            keep(report, arguments.json)
        from ray import serve

        serve.shutdown()
        report["bare_after_per_s"] = bare_apart(settings, arguments.seconds)
    if arguments.figure and "step" in report:
        arguments.figure.write_text(draw_step(report["step"]))
    keep(report, arguments.json)


if __name__ == "__main__":
    main()
