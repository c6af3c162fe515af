"""Measure the seconds from the command `asap scan` to the first judged pair, phase by phase.

Each round runs the command in a process of its own over a few newsroom pairs. Its phases come from the record of the
job: `began_s`, `timings` and `first_s` of job.json. CPU time is that of the command and all its descendants in the
phase, and is reliable on a busy machine too. Warm: as it comes. Cold: Python has no compiled bytecode, and the files of
the environment are evicted from the page cache, as far as no running process maps them.

Trees are compared in alternating rounds: `--trees . ../before`.

    python bench/start.py [--modes warm cold] [--rounds 3] [--trees PATH ...] [--json PATH]
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from costs import cpu_seconds

PHASES = ("imports", "plan", "manifest", "Ray start", "first worker", "model load", "first batch")
COMMAND = "import sys; from jobs.cli.app import main; sys.exit(main())"
SAMPLE_S = 0.1


class CpuSamples:
    """CPU seconds of a process and its descendants over time, sampled by a thread."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._by_pid: dict[int, float] = {}
        self.samples: list[tuple[float, float]] = [(time.time(), 0.0)]
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def _sample(self) -> None:
        while not self._ended.wait(SAMPLE_S):
            self._by_pid |= cpu_seconds(self._pid)
            self.samples.append((time.time(), sum(self._by_pid.values())))

    def stop(self) -> None:
        """Stop sampling."""
        self._ended.set()
        self._thread.join()

    def at(self, when: float) -> float:
        """Return the CPU seconds used until a time, from the first sample after it."""
        return next((seconds for at, seconds in self.samples if at >= when), self.samples[-1][1])


def evict(folders: Sequence[Path]) -> None:
    """Drop the files of these folders from the page cache. Pages that a running process maps stay."""
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def run(tree: Path, manifest: Path, out: Path, job: str, mode: str) -> dict[str, Any]:
    """Run one scan and return the wall and CPU seconds of each phase."""
    environment = os.environ | {"PYTHONPATH": str(tree)}
    with tempfile.TemporaryDirectory() as bytecode:
        if mode == "cold":
            environment["PYTHONPYCACHEPREFIX"] = bytecode
            evict([tree, Path(sysconfig.get_path("purelib")), Path(sysconfig.get_path("stdlib"))])
        started = time.time()
        process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, "scan", str(manifest), "--out", str(out), "--job", job, "--device", "cpu"],
            cwd=tree, env=environment, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        cpu = CpuSamples(process.pid)
        code = process.wait()
        cpu.stop()
    if code:
        raise SystemExit(f"The scan ended with exit code {code}; its message is above.")
    record = json.loads((out / job / "job.json").read_text())
    begun, timings, first = record["began_s"], record["timings"], record["first_s"]
    ends = [begun, begun + timings["plan_s"]]
    for name in ("manifest_s", "ray_start_s"):
        ends.append(ends[-1] + timings[name])
    ends += [begun + first[name] for name in ("worker", "model", "pairs")]
    wall = dict(zip(PHASES, (b - a for a, b in zip([started, *ends], ends, strict=False)), strict=True))
    used = [0.0, *(cpu.at(end) for end in ends)]
    cpu_s = dict(zip(PHASES, (b - a for a, b in itertools.pairwise(used)), strict=True))
    return {
        "tree": str(tree), "mode": mode, "wall_s": wall | {"all": ends[-1] - started},
        "cpu_s": cpu_s | {"all": used[-1]}, "whole_wall_s": time.time() - started, "whole_cpu_s": cpu.samples[-1][1],
    }  # fmt: skip


def draw_input(folder: Path, pairs: int) -> Path:
    """Draw newsroom pairs and return their manifest."""
    from asap.newsroom import generate

    generate(folder, pairs=pairs, seed=77, workers=1, splits=(0.0, 0.0, 1.0))
    return folder / "metadata" / "test.json"


def show(figures: list[dict[str, Any]]) -> None:
    """Print median, lowest and highest of each phase, by tree and mode."""
    from rich.console import Console
    from rich.table import Table

    for kind in ("wall_s", "cpu_s"):
        groups = sorted({(figure["mode"], figure["tree"]) for figure in figures})
        table = Table("phase", *(f"{mode}\n{Path(tree).name}" for mode, tree in groups), title=kind)
        for phase in (*PHASES, "all"):
            cells = []
            for mode, tree in groups:
                values = [figure[kind][phase] for figure in figures if (figure["mode"], figure["tree"]) == (mode, tree)]
                cells.append(f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})")
            table.add_row(phase, *cells)
        Console(width=140).print(table)


def main() -> None:
    """Run the rounds, print two tables, and write JSON if requested."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modes", nargs="+", choices=("warm", "cold"), default=["warm", "cold"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=64, help="Pairs of the input: one batch.")
    parser.add_argument("--trees", nargs="+", type=Path, default=[Path()], help="Checkouts to compare.")
    parser.add_argument("--json", type=Path, help="File for the figures.")
    options = parser.parse_args()
    figures: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        manifest = draw_input(Path(name) / "news", options.pairs)
        for number in range(options.rounds):
            for mode in options.modes:
                for position, tree in enumerate(options.trees):
                    job = f"{mode}-{number}-{position}"
                    figures.append(run(tree.resolve(), manifest, Path(name) / "out", job, mode))
                    if options.json:  # after each run, so that a measurement that is stopped is not lost
                        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    show(figures)


if __name__ == "__main__":
    main()
