"""A training run as it goes: what the first worker writes down, and how the driver follows it."""

from __future__ import annotations

import json
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from asap.config import ModelConfig
from jobs.fit import Fit, RunFolder, Split
from jobs.judge import judge
from jobs.settings import TrainSettings

Progress = Callable[[dict[str, Any]], None]

HEADLINE = ("AUC", "mAP", "CF1", "IoU50_gated", "IoU50_boxed", "token_F1")
"""The figures that are worth watching, by their names in `asap.metrics`."""


class RunLog:
    """What the first worker writes down, as JSON lines and for TensorBoard: mean losses, speed, validation figures."""

    def __init__(self, settings: TrainSettings, folder: RunFolder, config: ModelConfig, started_at: int = 0) -> None:
        """`started_at`: pairs done; what a killed run drew beyond is taken from TensorBoard's curves."""
        from torch.utils.tensorboard import SummaryWriter  # a second to load

        self.file = folder.progress
        self.curves = SummaryWriter(folder.curves, purge_step=started_at)
        self.validation = Split.open(settings, folder, "val", config, limit=settings.validation_pairs)
        self._terms: dict[str, list[float]] = defaultdict(list)

    def see(self, fit: Fit, terms: dict[str, float], every: int = 25) -> dict[str, Any]:
        """Take a step's terms in; returns the validation figures where a checkpoint is due."""
        for name, value in terms.items():
            self._terms[name].append(value)
        if fit.done % every == 0 or fit.done == fit.total_steps:
            means = {name: round(sum(values) / len(values), 4) for name, values in self._terms.items()}
            seconds = means.pop("seconds")
            self._terms.clear()
            rate = fit.schedule.get_last_lr()[0]
            self._write(
                fit, {"losses": means, "pairs_per_s": round(fit.settings.batch_size / seconds, 1), "rate": rate}
            )
        if fit.done % fit.steps_a_checkpoint and fit.done != fit.total_steps:
            return {}
        report = judge(fit.module.twin.model, self.validation)
        figures = {name: report[name] for name in HEADLINE}
        self._write(fit, {"validation": figures})
        return figures

    def _write(self, fit: Fit, event: dict[str, Any]) -> None:
        line = {"pairs": fit.pairs_done, "of": fit.total_steps * fit.settings.batch_size, "at": time.time()} | event
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        for group, values in event.items():
            named = {f"{group}/{name}": value for name, value in values.items()} if isinstance(values, dict) else {}
            for name, value in (named or {group: values}).items():
                if value is not None:
                    self.curves.add_scalar(name, value, fit.pairs_done)
        self.curves.flush()


@contextmanager
def followed(file: Path, progress: Progress) -> Iterator[None]:
    """Pass on what is appended to `file` during the block."""
    stop = threading.Event()
    start = file.stat().st_size if file.exists() else 0

    def follow() -> None:
        position = start
        while True:
            last = stop.wait(0.5)
            if file.exists():
                with file.open(encoding="utf-8") as lines:
                    lines.seek(position)
                    text = lines.read()
                whole, _, _ = text.rpartition("\n")
                position += len(whole.encode()) + bool(whole)
                for line in whole.splitlines():
                    progress(json.loads(line))
            if last:
                return

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
