"""The log of a training run: the first worker writes it, and the driver follows it."""

from __future__ import annotations

import json
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

from asap.errors import StorageError
from asap.storage.files import exists, read_bytes
from jobs.train.events import OnEvent
from jobs.train.run_folder.folder import RunFolder
from jobs.train.trainer import Trainer

_PUSH_EVERY_S = 10.0
"""Seconds between uploads of the progress of a run at s3://; it is also uploaded at every checkpoint."""
_POLL_LOCAL_S, _POLL_S3_S = 0.5, 3.0
"""Seconds between reads of the progress."""

HEADLINE = ("AUC", "mAP", "CF1", "IoU50_gated", "IoU50_boxed", "token_F1")
"""The validation metrics of the log, by their names in `asap.evaluation.metrics`."""


class RunLog:
    """The log of the first worker: mean losses, speed and validation metrics, as JSON lines and for TensorBoard."""

    def __init__(self, folder: RunFolder, trainer: Trainer) -> None:
        """Open the log of a run. Points of a killed run beyond the trainer's step are removed from TensorBoard."""
        from torch.utils.tensorboard import SummaryWriter  # takes a second to load

        self.folder = folder
        self._pushed_s = 0.0
        folder.pull(folder.progress.name)
        self.curves = SummaryWriter(folder.curves, purge_step=trainer.pairs_done)
        self._terms: dict[str, list[float]] = defaultdict(list)
        self._recorded = trainer.done

    def record_steps(self, trainer: Trainer, losses: Sequence[dict[str, float]], every: int = 25) -> None:
        """Record the steps since the last call.

        Args:
            trainer: The trainer that took the steps.
            losses: The loss terms of each step, and its time in `seconds`; empty if they were not read yet.
            every: Steps between lines of mean losses.
        """
        if not losses:
            return
        for terms in losses:
            for name, value in terms.items():
                self._terms[name].append(value)
        is_line_due = trainer.done // every > self._recorded // every or trainer.done == trainer.total_steps
        self._recorded = trainer.done
        if is_line_due:
            means = {name: round(sum(values) / len(values), 4) for name, values in self._terms.items()}
            pairs_per_s = round(trainer.settings.batch_size / means.pop("seconds"), 1)
            self._terms.clear()
            rate = trainer.schedule.get_last_lr()[0]
            self._write(trainer, {"losses": means, "pairs_per_s": pairs_per_s, "rate": rate})

    def record_validation(self, trainer: Trainer, metrics: dict[str, Any]) -> None:
        """Record the validation metrics of a checkpoint."""
        self._write(trainer, {"validation": metrics})

    def _write(self, trainer: Trainer, event: dict[str, Any]) -> None:
        """Append a line to the progress, and its numbers to TensorBoard."""
        line = {"pairs": trainer.pairs_done, "of": trainer.pairs_in_all, "workers": trainer.world, "at": time.time()}
        with self.folder.progress.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line | event) + "\n")
        for group, values in event.items():
            curves = {f"{group}/{name}": value for name, value in values.items()} if isinstance(values, dict) else {}
            for name, value in (curves or {group: values}).items():
                if value is not None:
                    self.curves.add_scalar(name, value, trainer.pairs_done)
        self.curves.flush()
        if "validation" in event:
            self._push(self.folder)
        elif time.monotonic() - self._pushed_s > _PUSH_EVERY_S:
            # The log is not worth a pause of the training: it is uploaded when the store is back.
            with suppress(StorageError):
                self._push(replace(self.folder, outage_s=0))

    def _push(self, folder: RunFolder) -> None:
        self._pushed_s = time.monotonic()
        folder.push(folder.progress.name, folder.curves.name)


@contextmanager
def follow_progress(folder: RunFolder, progress: OnEvent) -> Iterator[None]:
    """Report the lines that are appended to the run's progress during the block."""
    stop = threading.Event()
    start = _read_progress(folder)

    def follow() -> None:
        content, position = start, len(start)
        while True:
            # The last read comes after the block has ended, so that its last lines are reported too.
            is_last = stop.wait(_POLL_LOCAL_S if folder.remote is None else _POLL_S3_S)
            with suppress(StorageError):  # a store may be unavailable for a moment; read it again later
                content = _read_progress(folder)
            # A line may be half written: only whole lines are reported.
            whole, newline, _ = content[position:].rpartition(b"\n")
            position += len(whole + newline)
            for line in whole.splitlines():
                progress(json.loads(line))
            if is_last:
                return

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _read_progress(folder: RunFolder) -> bytes:
    """Read the progress from where the run is kept; a copy on another machine may be behind."""
    file = folder.location / folder.progress.name
    return read_bytes(file) if exists(file) else b""
