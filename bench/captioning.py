"""Measure captions: a job beside a bare loop, an endpoint, captions in a scan, and the arithmetic of a captioner.

    python bench/captioning.py annotate --captioner FOLDER [--batch-sizes 1 4 16 64] [--annotators 0]
    python bench/captioning.py endpoint [--concurrency 1 2 4 8 16 32 64]
    python bench/captioning.py endpoint-job [--concurrency 1 2 4 8 16 32 64]
    python tests/support/bucket.py out/demo/corpus newsroom \\
      python bench/captioning.py scan s3://newsroom/metadata/test.json --captioner FOLDER
    python bench/captioning.py arithmetic --captioner FOLDER [--batch-sizes 1 16 64]

Each part repeats its work in rounds, whose order alternates, and shows the median of the rounds with the smallest and
the largest. CPU time is that of all processes of the work, which is reliable on a busy machine too.

annotate: pairs/s of `asap annotate` beside a bare loop over the same pictures, which all differ. The bare loop opens a
batch of pictures, prepares it, generates and decodes, by the classes of transformers, in a process of its own with a
thread for each CPU. Loading and the first batches are not counted. A job runs twice, over few pairs and over many. Of
each run, the seconds from the end of its first batch to the end of its last one count, and the speed is that of the
additional pairs in the additional seconds. The start of Ray and the load of the model are no part of it, and work that
was done ahead meanwhile is in both runs. The CPU time is the difference of both whole runs.

endpoint: requests/s of the engine against a server that answers each request after a fixed time, in a process of its
own, beside the most that the concurrency allows. The engine gets batches, several at a time as in the stage of a job.
Memory is that of its process, at a quarter and at the end of the requests.

endpoint-job: the same for a whole job of annotations, measured as in annotate.

scan: `make demo` without captions, with captions of the flagged pairs, and with captions of all. The store runs in
another process, whose CPU time is not counted.

arithmetic: pairs/s of the engine for each dtype and attention, with the pictures in memory, and how many texts are
those of float32 and eager attention.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

from costs import Cost, costs
from PIL import Image

WARM_UP_BATCHES = 2
TRAVELLING = 64
"""Pairs that travel together in a job, unless more enter the model together."""
MOST_NEW_TOKENS = 40
"""The default of the settings of captions."""
ARITHMETIC = (("float32", "eager"), ("float32", "sdpa"), ("bfloat16", "eager"), ("bfloat16", "sdpa"))


# Pictures.


def read_pairs(manifest: str, pairs: int) -> list[tuple[str, str]]:
    """Return the pictures and texts of the first pairs whose pictures have bytes that no pair before them has."""
    from jobs.scan.input.sources import find_source

    seen, found = set(), []
    for row in find_source(manifest).rows():
        digest = hashlib.sha256(Path(row.image_uri or "").read_bytes()).digest()
        if digest not in seen:
            seen.add(digest)
            found.append((str(row.image_uri), row.text or ""))
        if len(found) == pairs:
            return found
    raise SystemExit(f"{manifest} has {len(found)} different pictures, and {pairs} are wanted. Give a larger corpus.")


def pictures_of(options: argparse.Namespace, folder: Path, pairs: int) -> list[tuple[str, str]]:
    """Return pairs whose pictures differ: of the corpus of the options, or of newsroom."""
    if options.corpus:
        return read_pairs(str(options.corpus), pairs)
    from asap.newsroom import generate

    generate(folder / "news", pairs=2 * pairs, seed=77, splits=(0.0, 0.0, 1.0))
    return read_pairs(str(folder / "news/metadata/test.json"), pairs)


# A job beside a bare loop.


def bare_loop(captioner: str, pictures: Sequence[str], batch_size: int) -> Cost:
    """Caption pictures in a new process, by the classes of transformers alone; return the cost of the loop."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return Cost(*pool.apply(_loop, (captioner, pictures, batch_size)))


def _loop(captioner: str, pictures: Sequence[str], batch_size: int) -> tuple[float, float]:
    import torch
    from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model = AutoModelForImageTextToText.from_pretrained(captioner, dtype=torch.float32).eval()
    model.generation_config.max_length = None  # generate would warn of each batch that it has two limits
    processor, tokenizer = AutoImageProcessor.from_pretrained(captioner), AutoTokenizer.from_pretrained(captioner)

    def caption(batch: Sequence[str]) -> list[str]:
        images = [Image.open(picture).convert("RGB") for picture in batch]
        with torch.inference_mode():
            inputs = processor(images=images, return_tensors="pt")
            output = model.generate(**inputs, max_new_tokens=MOST_NEW_TOKENS, do_sample=False)
        return list(tokenizer.batch_decode(output, skip_special_tokens=True))

    batches = [pictures[start : start + batch_size] for start in range(0, len(pictures), batch_size)]
    for batch in batches[:WARM_UP_BATCHES]:
        caption(batch)
    wall, cpu = time.perf_counter(), time.process_time()
    for batch in batches:
        caption(batch)
    return time.perf_counter() - wall, time.process_time() - cpu


def annotate_cost(
    captions: dict[str, Any], manifest: Path, pairs: int, folder: Path, annotators: int | None = None
) -> tuple[float, Cost]:
    """Run a job over the first pairs; return the seconds from the end of its first batch to the end, and its cost.

    Args:
        captions: Settings of the captioner.
        manifest: The input.
        pairs: Pairs to read.
        folder: Folder for the folder of the job.
        annotators: Processes of the captioner. None: as in the settings.
    """
    from jobs.annotate.run import annotate
    from jobs.annotate.settings import AnnotateSettings

    out, batch_size = folder / f"job-{time.time_ns()}", max(TRAVELLING, captions.get("batch_size", 1))
    settings = AnnotateSettings(
        input=str(manifest), out=str(out), limit=pairs, captions=captions, annotators=annotators,
        batch_size=batch_size, device="cpu", slow_picture_s=600,
    )  # type: ignore[arg-type]  # fmt: skip
    with costs() as cost:
        summary = annotate(settings)
    if (summary["captions"]["new"], summary["errors"]) != (pairs, 0):
        raise SystemExit(f"the job is incomplete: {summary['captions']} of {pairs}, {summary['error_codes']}")
    if pairs <= batch_size:
        raise SystemExit(f"{pairs} pairs are one batch of {batch_size}, which has no end of a batch before it.")
    # The job's own speed leaves the first batch out, and the seconds until its end.
    return (pairs - batch_size) / summary["pairs_per_s"], cost


def speed_of_job(
    captions: dict[str, Any], manifest: Path, few: int, many: int, folder: Path, annotators: int | None = None
) -> tuple[float, float]:
    """Return the pairs/s of a job once it has started, and its CPU milliseconds for a pair."""
    (small_s, small), (large_s, large) = (
        annotate_cost(captions, manifest, pairs, folder, annotators) for pairs in (few, many)
    )
    return (many - few) / (large_s - small_s), 1000 * (large.cpu_s - small.cpu_s) / (many - few)


def write_manifest(pairs: Sequence[tuple[str, str]], folder: Path) -> Path:
    """Write an input of a job."""
    path = folder / "pairs.jsonl"
    lines = (
        json.dumps({"id": str(number), "image": image, "text": text}) for number, (image, text) in enumerate(pairs)
    )
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def measure_annotate(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Return the figures of each number of annotators and batch size. All jobs use one Ray."""
    from jobs.cluster import ray_running

    few, many = options.pairs
    pairs = pictures_of(options, folder, many)
    manifest, pictures = write_manifest(pairs, folder), [picture for picture, _ in pairs]
    shapes = [(annotators, batch) for batch in options.batch_sizes for annotators in options.annotators]
    found: dict[tuple[int, int], dict[str, Any]] = {
        (annotators, batch): {"annotators": annotators or "default", "batch_size": batch, "rounds": []}
        for annotators, batch in shapes
    }
    with ray_running(num_cpus=len(os.sched_getaffinity(0))):
        for turn in range(options.rounds):
            for annotators, batch in shapes[:: -1 if turn % 2 else 1]:
                captions = {"engine": "transformers", "source": options.captioner, "batch_size": batch}
                before = bare_loop(options.captioner, pictures, batch)
                rate, cpu_ms = speed_of_job(captions, manifest, few, many, folder, annotators or None)
                after = bare_loop(options.captioner, pictures, batch)
                bare_rate = 2 * many / (before.wall_s + after.wall_s)
                found[annotators, batch]["rounds"].append({
                    "bare_pairs_per_s": bare_rate,
                    "bare_wall_s": [before.wall_s, after.wall_s],
                    "pairs_per_s": rate,
                    "over_bare": rate / bare_rate,
                    "bare_cpu_ms": 500 * (before.cpu_s + after.cpu_s) / many,
                    "cpu_ms": cpu_ms,
                })  # fmt: skip
                keep(options, list(found.values()))
    return list(found.values())


# An endpoint.


def _serve(latency_s: float, pipe: Any) -> None:
    """Answer every request after a fixed time, until the parent ends this process."""
    import asyncio

    from aiohttp import web

    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "A woman waves."}}
    body = {"choices": [choice], "usage": {"prompt_tokens": 300, "completion_tokens": 4}}

    async def answer(request: web.Request) -> web.Response:
        began = time.monotonic()
        await request.read()
        await asyncio.sleep(max(0.0, began + latency_s - time.monotonic()))
        return web.json_response(body)

    async def main() -> None:
        application = web.Application(client_max_size=2**24)
        application.router.add_post("/v1/chat/completions", answer)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, backlog=512)
        await site.start()
        pipe.send(runner.addresses[0][1])
        await asyncio.Event().wait()

    asyncio.run(main())


@contextmanager
def server(latency_s: float) -> Iterator[str]:
    """Run the server in a process of its own; yield the address of its API."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(latency_s, theirs), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{ours.recv()}/v1"
    finally:
        process.terminate()
        process.join()


def memory_mb() -> float:
    """Return the resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def _ask(address: str, concurrency: int, count: int, batch_size: int, pictures: Sequence[str]) -> dict[str, float]:
    """Have an engine describe `count` pictures, in batches, and return its speed, cost and memory."""
    from jobs.descriptions.engine import Failure, Request
    from jobs.descriptions.loading import load_engine
    from jobs.descriptions.settings import DescriptionSettings

    way = {"address": address, "key_env": None, "concurrency": concurrency}
    settings = DescriptionSettings(engine="openai", source="m", endpoint=way)  # type: ignore[arg-type]
    engine = load_engine(settings)
    data = [Path(picture).read_bytes() for picture in pictures]

    def ask(first: int, last: int) -> None:
        requests = [
            Request(str(number), "", Image.open(BytesIO(data[number % len(data)]))) for number in range(first, last)
        ]
        failed = [outcome for outcome in engine.describe(requests) if isinstance(outcome, Failure)]
        if failed:
            raise SystemExit(f"{len(failed)} requests failed: {failed[0]}")

    ask(0, 2 * concurrency)  # opens all connections
    wall, cpu, quarter_mb = time.perf_counter(), time.process_time(), 0.0
    starts = range(0, count, batch_size)
    with ThreadPoolExecutor(settings.batches_at_a_time(batch_size)) as pool:
        done = pool.map(lambda first: ask(first, min(first + batch_size, count)), starts)
        for start, _ in zip(starts, done, strict=True):
            if not quarter_mb and start + batch_size >= count / 4:
                quarter_mb = memory_mb()
    wall_s, cpu_s = time.perf_counter() - wall, time.process_time() - cpu
    end_mb = memory_mb()
    engine.close()
    return {"requests_per_s": count / wall_s, "cpu_ms": 1000 * cpu_s / count, "quarter_mb": quarter_mb,
            "end_mb": end_mb}  # fmt: skip


def measure_endpoint(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Return the figures of each concurrency."""
    pairs = pictures_of(options, folder, max(options.pictures, 1))
    found = {number: {"concurrency": number, "rounds": []} for number in options.concurrency}
    context = multiprocessing.get_context("spawn")
    with server(options.latency) as address:
        for turn in range(options.rounds):
            for concurrency in options.concurrency[:: -1 if turn % 2 else 1]:
                most = concurrency / options.latency
                count = max(options.least_requests, math.ceil(options.seconds * most))
                with context.Pool(1) as pool:
                    order = address, concurrency, count, options.batch_size, [picture for picture, _ in pairs]
                    figures = pool.apply(_ask, order)
                figures |= {"most_per_s": most, "over_most": figures["requests_per_s"] / most, "requests": count}
                found[concurrency]["rounds"].append(figures)
                keep(options, list(found.values()))
    return list(found.values())


def measure_endpoint_jobs(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Return the figures of a job of annotations for each concurrency. All jobs use one Ray."""
    from jobs.cluster import ray_running

    def size(concurrency: int, seconds: float) -> int:
        return TRAVELLING * math.ceil(1 + seconds * concurrency / options.latency / TRAVELLING)

    sizes = {number: (size(number, 4), size(number, 4 + options.seconds)) for number in options.concurrency}
    pairs = pictures_of(options, folder, max(many for _, many in sizes.values()))
    manifest = write_manifest(pairs, folder)
    found = {number: {"concurrency": number, "rounds": []} for number in options.concurrency}
    with ray_running(num_cpus=len(os.sched_getaffinity(0))), server(options.latency) as address:
        for turn in range(options.rounds):
            for concurrency in options.concurrency[:: -1 if turn % 2 else 1]:
                way = {"address": address, "key_env": None, "concurrency": concurrency}
                captions = {"engine": "openai", "source": "m", "endpoint": way}
                rate, cpu_ms = speed_of_job(captions, manifest, *sizes[concurrency], folder)
                most = concurrency / options.latency
                figures = {"requests_per_s": rate, "most_per_s": most, "over_most": rate / most, "cpu_ms": cpu_ms}
                found[concurrency]["rounds"].append(figures)
                keep(options, list(found.values()))
    return list(found.values())


# A scan.


def scan_cost(options: argparse.Namespace, choice: str, folder: Path) -> dict[str, float]:
    """Scan the input without captions, or with those of `choice`; return wall and CPU seconds and captioned pairs."""
    import pyarrow.parquet as pq

    from jobs.scan.run import scan
    from jobs.scan.settings import ScanSettings

    captions = {"engine": "transformers", "source": str(Path(options.captioner).resolve())}
    chosen = {} if choice == "none" else {"captions": captions, "caption_pairs": choice}
    settings = ScanSettings(
        input=options.input, out=str(folder), job=f"{choice}-{time.time_ns()}", model=options.model, device="cpu",
        limit=options.limit, **chosen,
    )  # fmt: skip
    with costs() as cost:
        summary = scan(settings)
    if summary["errors"]:
        raise SystemExit(f"the scan has {summary['errors']} pairs with errors")
    job = Path(str(settings.job_folder))
    column = pq.read_table(job / "results", columns=["caption"])["caption"]
    captioned = len(column) - column.null_count
    timings = json.loads((job / "job.json").read_text())["timings"]
    return {"wall_s": cost.wall_s, "cpu_s": cost.cpu_s, "pairs": summary["pairs"],
            "captioned": captioned, "caption_s": timings.get("caption_s", 0.0)}  # fmt: skip


def measure_scan(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Return the figures of a scan with each choice of pairs to caption. Each scan starts its own Ray."""
    choices = ("none", "flagged", "all")
    found = {choice: {"captions": choice, "rounds": []} for choice in choices}
    for turn in range(options.rounds):
        for choice in choices[turn % 3 :] + choices[: turn % 3]:
            found[choice]["rounds"].append(scan_cost(options, choice, folder))
            keep(options, list(found.values()))
    for one in found.values():
        for own, bare in zip(one["rounds"], found["none"]["rounds"], strict=True):
            own |= {"more_wall_s": own["wall_s"] - bare["wall_s"], "more_cpu_s": own["cpu_s"] - bare["cpu_s"]}
    return list(found.values())


# Arithmetic.


def measure_arithmetic(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Return the figures of each dtype and attention at each batch size."""
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    pairs = pictures_of(options, folder, options.pairs)
    images = []
    for picture, _ in pairs:
        with Image.open(picture) as image:
            images.append(image.convert("RGB"))
    found = []
    for batch_size in options.batch_sizes:
        group: list[dict[str, Any]] = []
        for dtype, attention in ARITHMETIC:
            group.append({"batch_size": batch_size, "dtype": dtype, "attention": attention, "rounds": []})
        found += group
        measure_group(options, group, images)
        keep(options, found)
    return found


def measure_group(options: argparse.Namespace, group: list[dict[str, Any]], images: Sequence[Image.Image]) -> None:
    """Fill in the rounds of the engines of a batch size. An engine that is refused has the reason in their place."""
    from asap.errors import ConfigError
    from jobs.descriptions.engine import Reply, Request
    from jobs.descriptions.settings import DescriptionSettings
    from jobs.descriptions.transformers_engine import TransformersEngine

    requests = [Request(str(number), "", image) for number, image in enumerate(images)]
    engines: dict[int, TransformersEngine] = {}
    for position, one in enumerate(group):
        names = ("batch_size", "dtype", "attention")
        settings = {"engine": "transformers", "source": options.captioner} | {name: one[name] for name in names}
        try:
            engines[position] = TransformersEngine(DescriptionSettings(**settings), "cpu")
        except ConfigError as error:
            one["refused"] = str(error)
    texts: dict[int, list[str | None]] = {}
    for turn in range(options.rounds + 1):
        for position in sorted(engines, reverse=bool(turn % 2)):
            wall, cpu = time.perf_counter(), time.process_time()
            outcomes = engines[position].describe(requests)
            wall_s, cpu_s = time.perf_counter() - wall, time.process_time() - cpu
            texts[position] = [outcome.text if isinstance(outcome, Reply) else None for outcome in outcomes]
            if turn:  # the first one warms up
                figures = {"pairs_per_s": len(requests) / wall_s, "cpu_ms": 1000 * cpu_s / len(requests)}
                group[position]["rounds"].append(figures)
    for position, written in texts.items():
        same = sum(own == first for own, first in zip(written, texts[0], strict=True))
        group[position] |= {"same_texts": same, "failed": written.count(None), "pairs": len(requests)}
        first = group[0]["rounds"]
        for own, other in zip(group[position]["rounds"], first, strict=True):
            own["over_first"] = own["pairs_per_s"] / other["pairs_per_s"]


# Tables.


def keep(options: argparse.Namespace, figures: list[dict[str, Any]]) -> None:
    """Write the figures so far, if requested: a measurement that is stopped is not lost."""
    if options.json:
        about = {"cpus": len(os.sched_getaffinity(0)), "captioner": getattr(options, "captioner", None)}
        options.json.write_text(json.dumps(about | {"part": options.part, "figures": figures}, indent=1) + "\n")


def spread(values: Sequence[float]) -> str:
    """Return the median with the smallest and the largest value."""
    return f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"


def show(figures: list[dict[str, Any]], columns: dict[str, str], *, markdown: bool) -> None:
    """Print a table: a column of the figures is one value, or one in each round.

    Args:
        figures: The rows.
        columns: The title of each column by its name in the figures or in their rounds.
        markdown: True for Markdown.
    """
    from rich.console import Console
    from rich.table import Table

    rows = []
    for one in figures:
        cells = []
        for name in columns:
            values = [each[name] for each in one["rounds"] if name in each]
            cells.append(spread(values) if values else str(one.get(name, "")))
        rows.append(cells)
    if markdown:
        head, *body = (f"| {' | '.join(cells)} |" for cells in [list(columns.values()), *rows])
        print(head, "|---" * len(columns) + "|", *body, "", sep="\n")
        return
    table = Table(*columns.values())
    for cells in rows:
        table.add_row(*cells)
    Console(width=160).print(table)


COLUMNS = {
    "annotate": {
        "annotators": "captioners", "batch_size": "batch", "bare_pairs_per_s": "bare loop, pairs/s",
        "pairs_per_s": "annotate, pairs/s", "over_bare": "annotate / bare", "bare_cpu_ms": "bare, CPU ms a pair",
        "cpu_ms": "annotate, CPU ms a pair",
    },
    "endpoint": {
        "concurrency": "concurrency", "most_per_s": "most, requests/s", "requests_per_s": "engine, requests/s",
        "over_most": "engine / most", "cpu_ms": "CPU ms a request", "quarter_mb": "MiB at a quarter",
        "end_mb": "MiB at the end",
    },
    "endpoint-job": {
        "concurrency": "concurrency", "most_per_s": "most, requests/s", "requests_per_s": "annotate, requests/s",
        "over_most": "annotate / most", "cpu_ms": "CPU ms a request",
    },
    "scan": {
        "captions": "`--captions`", "captioned": "captioned pairs", "wall_s": "wall, s", "more_wall_s": "more wall, s",
        "cpu_s": "CPU, s", "more_cpu_s": "more CPU, s",
    },
    "arithmetic": {
        "batch_size": "batch", "dtype": "dtype", "attention": "attention", "pairs_per_s": "pairs/s",
        "over_first": "of float32, eager", "cpu_ms": "CPU ms a pair", "same_texts": "same texts", "refused": "refused",
    },
}  # fmt: skip
MEASURES: dict[str, Callable[[argparse.Namespace, Path], list[dict[str, Any]]]] = {
    "annotate": measure_annotate,
    "endpoint": measure_endpoint,
    "endpoint-job": measure_endpoint_jobs,
    "scan": measure_scan,
    "arithmetic": measure_arithmetic,
}


def parse() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    every = {name: parts.add_parser(name) for name in MEASURES}
    for name, part in every.items():
        part.add_argument("--rounds", type=int, default=3)
        part.add_argument("--json", type=Path, help="File for the figures, written after each measurement.")
        part.add_argument("--markdown", action="store_true", help="Print the table as Markdown.")
        if name != "scan":
            part.add_argument("--corpus", type=Path, help="A manifest of local pictures. Default: newsroom is drawn.")
        if name in ("annotate", "scan", "arithmetic"):
            part.add_argument("--captioner", required=True, help="Folder of a captioner that takes no prompt.")
        if name in ("annotate", "arithmetic"):
            part.add_argument("--batch-sizes", type=int, nargs="+", default=[16], help="Pictures that enter together.")
        if name in ("endpoint", "endpoint-job"):
            part.add_argument("--concurrency", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
            part.add_argument("--latency", type=float, default=0.2, help="Seconds until the server answers.")
            part.add_argument("--seconds", type=float, default=10, help="Least seconds of each measurement.")
    annotate, endpoint, scan = every["annotate"], every["endpoint"], every["scan"]
    annotate.add_argument("--pairs", type=int, nargs=2, default=[512, 2560], help="Few and many pairs.")
    annotate.add_argument("--annotators", type=int, nargs="+", default=[0], help="Captioners. 0: the default.")
    endpoint.add_argument("--pictures", type=int, default=64, help="Different pictures.")
    endpoint.add_argument("--least-requests", type=int, default=400, help="Least requests of each measurement.")
    endpoint.add_argument("--batch-size", type=int, default=TRAVELLING, help="Requests that the engine gets at a time.")
    scan.add_argument("input", help="Input of the scan.")
    scan.add_argument("--model", default="demo")
    scan.add_argument("--limit", type=int, help="Scan only the first so many pairs.")
    every["arithmetic"].add_argument("--pairs", type=int, default=256)
    return parser.parse_args()


def main() -> None:
    """Measure one part, print its table, and write JSON if requested."""
    options = parse()
    with tempfile.TemporaryDirectory() as name:
        figures = MEASURES[options.part](options, Path(name))
    keep(options, figures)
    show(figures, COLUMNS[options.part], markdown=options.markdown)


if __name__ == "__main__":
    main()
