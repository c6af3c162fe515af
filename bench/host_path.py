"""Measure the time of a detector outside of its model: CPU and wall time a pair, and pairs a second.

Prepared batches go through the detector of a scan, in one thread, and the model is taken away: what its parts return is
recorded in a first round, and returned at once in the others. These parts are encoders, fusion, heads, the features of
familiarity and the normalization of pixels. What is left is the host path: reading the table, padding, stacking,
evidence and the table of results. Preparing is measured too, since work moves there. In rounds with the model, the
predictor runs beside the detector on the same pairs, decoded.

With `--before PATH`, another checkout of the project is measured in turns with this one, each in its own process, so
that other load on the machine affects both. The greatest difference between their results is printed too,
for each column, relative to numbers above 1.

    python bench/host_path.py [--models demo base] [--batch 256] [--rounds 7] [--before PATH] [--json PATH]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import IO, Any, cast

from scan import draw_corpus, random_model

ROOT = Path(__file__).resolve().parents[1]
_MODEL_METHODS = ("encode_text", "fuse", "predict", "image_features", "text_features")
_FUNCTIONS = ("normalize", "text_sums", "token_features", "text_features")
"""Functions that `asap.predictor` calls and that run where the model runs."""
_SCORES = ("score", "types", "word_scores", "familiarity", "familiarity_text", "agreement_image_text", "text_read")


class Replay:
    """The results of the parts of a model in the first round, in the order of the calls."""

    def __init__(self) -> None:
        self._recorded: list[Any] = []
        self._position = self._depth = 0
        self._is_recording = True

    def rewind(self) -> None:
        """Return what was recorded from the first call on."""
        self._is_recording, self._position = False, 0

    def of(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function that records or returns; one that another one calls is not recorded."""

        @wraps(function)
        def call(*arguments: Any, **named: Any) -> Any:
            if not self._is_recording:
                self._position += 1
                return self._recorded[self._position - 1]
            self._depth += 1
            try:
                result = function(*arguments, **named)
            finally:
                self._depth -= 1
            if not self._depth:
                self._recorded.append(result)
            return result

        return call


@contextmanager
def model_taken_away(predictor: Any, replay: Replay) -> Iterator[None]:
    """Let the parts of the model record or return what they returned during the block."""
    import asap.predictor

    places = [(predictor._activations, "encode_image")] + [(predictor._model, name) for name in _MODEL_METHODS]
    places += [(asap.predictor, name) for name in _FUNCTIONS if hasattr(asap.predictor, name)]
    if predictor.familiarity is not None:
        kinds = {type(predictor.familiarity.image), type(predictor.familiarity.changed)}
        places += [(kind, "strangeness") for kind in sorted(kinds, key=str)]
    former = [(place, name, place.__dict__.get(name), getattr(place, name)) for place, name in places]
    for place, name, _, function in former:
        setattr(place, name, replay.of(function))
    try:
        yield
    finally:
        for place, name, own, _ in former:
            setattr(place, name, own) if own is not None else delattr(place, name)


class Bench:
    """The prepared batches of one model, and what is timed on them."""

    def __init__(self, model: str, manifest: Path, batch: int, batches: int) -> None:
        """Prepare the batches and warm up."""
        import torch

        from jobs.scan.input.manifest import to_table
        from jobs.scan.input.sources import find_source
        from jobs.scan.stages.detect import Detection, Detector

        torch.set_num_threads(1)
        rows = list(find_source(str(manifest), batch * batches).rows())
        self._tables = [to_table(rows[start : start + batch]) for start in range(0, len(rows), batch)]
        self._rows, self._preparation = len(rows), _preparation(model)
        self._detector = Detector(Detection(model, "cpu", threads=1, batch_size=batch))
        self._batches, self._replay = self.prepare(), Replay()
        with model_taken_away(self._detector._predictor, self._replay):
            self.detect()

    def prepare(self) -> list[Any]:
        """Return the prepared batches."""
        from jobs.scan.stages.prepare import prepare_batch

        return [prepare_batch(table, self._preparation) for table in self._tables]

    def detect(self) -> list[Any]:
        """Return the results of the detector."""
        return [self._detector(batch) for batch in self._batches]

    def pairs(self) -> list[tuple[list[Any], list[str]]]:
        """Return the pictures and the texts of each batch, as the predictor takes them."""
        import numpy as np

        from asap.preprocessing.images import PreparedImage

        size = self._detector._predictor.image_size
        found = []
        for batch in self._batches:
            images = [
                PreparedImage(
                    pixels=np.frombuffer(pixels, np.uint8).reshape(size, size, 3), width=width, height=height, sha256=""
                )
                for pixels, width, height in zip(
                    *(batch[name].to_pylist() for name in ("pixels", "width", "height")), strict=True
                )
            ]
            found.append((images, batch["text"].to_pylist()))
        return found

    def host(self) -> dict[str, float]:
        """Return the milliseconds a pair of the detector without its model, and of the tasks that prepare."""
        self._replay.rewind()
        with model_taken_away(self._detector._predictor, self._replay):
            cpu, wall = self._seconds(self.detect)
        prepare_cpu, _ = self._seconds(self.prepare)
        scale = 1000 / self._rows
        return {"host_cpu_ms": cpu * scale, "host_wall_ms": wall * scale, "prepare_cpu_ms": prepare_cpu * scale}

    def model(self) -> dict[str, float]:
        """Return pairs a second, and milliseconds of CPU a pair, of the detector and of the predictor."""
        predictor, pairs = self._detector._predictor, self.pairs()
        cpu, wall = self._seconds(self.detect)
        other_cpu, other_wall = self._seconds(lambda: [predictor.predict_prepared(*one) for one in pairs])
        scale = 1000 / self._rows
        return {
            "detector_pairs_per_s": self._rows / wall, "detector_cpu_ms": cpu * scale,
            "predictor_pairs_per_s": self._rows / other_wall, "predictor_cpu_ms": other_cpu * scale,
        }  # fmt: skip

    @staticmethod
    def _seconds(work: Callable[[], Any]) -> tuple[float, float]:
        cpu, wall = time.process_time(), time.perf_counter()
        work()
        return time.process_time() - cpu, time.perf_counter() - wall

    def results(self) -> list[dict[str, Any]]:
        """Return the scores and the evidence of each row."""
        columns = [*_SCORES, "raw_box_px", "words", "verdict", "flagged_types", "warnings", "status"]
        return [row for table in self.detect() for row in table.select(columns).to_pylist()]


def _preparation(model: str) -> Any:
    """Return how the tasks of a scan prepare pairs for a model."""
    from asap.preprocessing import text
    from asap.preprocessing.images import ImageLimits
    from asap.storage.fetch import FetchSettings
    from asap.weights.model_folder import model_config, resolve_folder
    from jobs.scan.stages.prepare import Preparation

    config = model_config(model)
    preparation = Preparation(config.image_size, ImageLimits(), FetchSettings())
    if not hasattr(text, "read_reader_source"):  # a checkout whose tasks read no texts
        return preparation
    folder = Path(resolve_folder(model)) / "tokenizer"
    source = text.read_reader_source(folder, max_words=config.max_words, max_tokens=config.max_tokens)
    return replace(preparation, reader=source)


def work(arguments: argparse.Namespace) -> None:
    """Do what each line of stdin names, a method of `Bench`, and write what it returns to stdout."""
    bench = Bench(arguments.models[0], arguments.corpus, arguments.batch, arguments.batches)
    print(json.dumps({}), flush=True)
    for line in sys.stdin:
        print(json.dumps(getattr(bench, line.strip())()), flush=True)


class Worker:
    """A process that measures one checkout."""

    def __init__(self, tree: Path, model: str, manifest: Path, options: argparse.Namespace) -> None:
        command = [
            sys.executable,
            str(Path(__file__).resolve()),
            "--work",
            "--models",
            model,
            "--corpus",
            str(manifest),
        ]
        command += ["--batch", str(options.batch), "--batches", str(options.batches)]
        environment = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            command, cwd=tree, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._requests, self._responses = cast("IO[str]", self._process.stdin), cast("IO[str]", self._process.stdout)
        self._read()

    def ask(self, request: str) -> Any:
        """Return the response to a line."""
        self._requests.write(request + "\n")
        self._requests.flush()
        return self._read()

    def close(self) -> None:
        """End the process."""
        self._requests.close()
        self._process.wait()

    def _read(self) -> Any:
        line = self._responses.readline()
        if not line:
            raise SystemExit("a worker has failed; its message stands above")
        return json.loads(line)


def greatest_difference(one: Any, other: Any) -> float:
    """Return the greatest difference of two results; infinity if they differ in anything but numbers."""
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) / max(1.0, abs(one), abs(other))
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return max((greatest_difference(one[name], other[name]) for name in one), default=0.0)
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return max(map(greatest_difference, one, other), default=0.0)
    return 0.0 if one == other else math.inf


def measure(model: str, manifest: Path, trees: dict[str, Path], options: argparse.Namespace) -> dict[str, Any]:
    """Measure one model in all checkouts, in turns."""
    workers = {name: Worker(tree, model, manifest, options) for name, tree in trees.items()}
    kinds = ["host"] * options.rounds + ["model"] * options.model_rounds
    rounds = [{name: worker.ask(kind) for name, worker in workers.items()} for kind in kinds]
    found = [worker.ask("results") for worker in workers.values()]
    for worker in workers.values():
        worker.close()
    figures: dict[str, Any] = {
        name: {
            figure: spread([one[name][figure] for one in rounds if figure in one[name]])
            for one in rounds
            for figure in one[name]
        }
        for name in trees
    }
    if len(found) > 1:
        figures["greatest_differences"] = {
            name: greatest_difference(*([row[name] for row in rows] for rows in found)) for name in found[0][0]
        }
    return figures


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return the median and the middle half around it."""
    low, median, high = statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
    return {"median": round(median, 4), "low": round(low, 4), "high": round(high, 4)}


def main() -> None:
    """Measure each model, print the figures, and write JSON if requested."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["demo"], help="Models: 'demo', 'tiny', 'base', or a folder.")
    parser.add_argument("--batch", type=int, default=256, help="Pairs in a batch.")
    parser.add_argument("--batches", type=int, default=4, help="Batches in a round.")
    parser.add_argument("--rounds", type=int, default=15, help="Rounds of each checkout without its model.")
    parser.add_argument("--model-rounds", type=int, default=3, help="Rounds of each checkout with its model.")
    parser.add_argument("--before", type=Path, help="Another checkout, measured in turns with this one.")
    parser.add_argument("--corpus", type=Path, help="A manifest; by default newsroom pairs are drawn.")
    parser.add_argument("--json", type=Path, help="File for the figures.")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options)
        return
    trees = ({"before": options.before.resolve()} if options.before else {}) | {"now": ROOT}
    report: dict[str, Any] = {
        "batch": options.batch,
        "batches": options.batches,
        "rounds": options.rounds,
        "model_rounds": options.model_rounds,
    }
    with tempfile.TemporaryDirectory() as name:
        manifest = options.corpus or draw_corpus(Path(name) / "news", options.batch * options.batches)
        for model in options.models:
            source = random_model(model, manifest, Path(name)) if model in ("tiny", "base") else model
            report[model] = measure(source, manifest, trees, options)
            print(model, json.dumps(report[model], indent=1), flush=True)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
