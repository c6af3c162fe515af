"""A training run as it goes: what the first worker writes down, and how the driver follows it."""

from __future__ import annotations

import json
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from asap.errors import StorageError
from asap.evaluation.evaluate import evaluate_split
from asap.model.config import ModelConfig
from asap.storage.files import exists, read_bytes
from asap.storage.location import Location
from jobs.train.data.splits import Split
from jobs.train.run_folder.folder import RunFolder
from jobs.train.settings import TrainSettings
from jobs.train.trainer import Trainer

OnEvent = Callable[[dict[str, Any]], None]

_PUSH_EVERY_S = 10.0
"""Between the times that a run at s3:// puts its progress there; at a checkpoint it always does."""
_POLL_S = 3.0

HEADLINE = ("AUC", "mAP", "CF1", "IoU50_gated", "IoU50_boxed", "token_F1")
"""The figures that are worth watching, by their names in `asap.evaluation.metrics`."""


class RunLog:
    """What the first worker writes down, as JSON lines and for TensorBoard: mean losses, speed, validation figures."""

    def __init__(self, settings: TrainSettings, folder: RunFolder, config: ModelConfig, started_at: int = 0) -> None:
        """`started_at`: pairs done; what a killed run drew beyond is taken from TensorBoard's curves."""
        from torch.utils.tensorboard import SummaryWriter  # a second to load

        self.folder = folder
        self._pushed_s = 0.0
        folder.pull(folder.progress.name)
        self.curves = SummaryWriter(folder.curves, purge_step=started_at)
        self.validation = Split.open(settings, folder, "val", config, limit=settings.validation_pairs)
        self._terms: dict[str, list[float]] = defaultdict(list)

    def see(self, fit: Trainer, terms: dict[str, float], every: int = 25) -> dict[str, Any]:
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
        report = evaluate_split(fit.module.twin.model, self.validation.pairs)
        figures = {name: report[name] for name in HEADLINE}
        self._write(fit, {"validation": figures})
        return figures

    def _write(self, fit: Trainer, event: dict[str, Any]) -> None:
        told = {"pairs": fit.pairs_done, "of": fit.pairs_in_all, "workers": fit.world, "at": time.time()}
        with self.folder.progress.open("a", encoding="utf-8") as file:
            file.write(json.dumps(told | event) + "\n")
        for group, values in event.items():
            named = {f"{group}/{name}": value for name, value in values.items()} if isinstance(values, dict) else {}
            for name, value in (named or {group: values}).items():
                if value is not None:
                    self.curves.add_scalar(name, value, fit.pairs_done)
        self.curves.flush()
        if "validation" in event or time.monotonic() - self._pushed_s > _PUSH_EVERY_S:
            self.folder.push(self.folder.progress.name, self.folder.curves.name)
            self._pushed_s = time.monotonic()


@contextmanager
def follow_progress(folder: RunFolder, progress: OnEvent) -> Iterator[None]:
    """Pass on what is appended to the run's progress during the block."""
    stop = threading.Event()
    start = _told(folder)

    def follow() -> None:
        told, position = start, len(start)
        while True:
            last = stop.wait(0.5 if folder.place is None else _POLL_S)
            with suppress(StorageError):  # a store that is away for a moment is asked again
                told = _told(folder)
            whole, newline, _ = told[position:].rpartition(b"\n")
            position += len(whole + newline)
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


def _told(folder: RunFolder) -> bytes:
    """What the run has told so far, where it is kept."""
    file = (folder.place or Location(str(folder.path))) / folder.progress.name
    return read_bytes(file) if exists(file) else b""
