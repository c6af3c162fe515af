"""The log of a training run: the first worker writes it, and the driver follows it."""

from __future__ import annotations

import json
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from asap.errors import StorageError
from asap.storage.files import exists, read_bytes, write_bytes
from asap.storage.location import Location
from jobs.train.events import OnEvent
from jobs.train.run_folder.folder import RunFolder
from jobs.train.trainer import Trainer

_PUSH_EVERY_S = 10.0
"""Seconds between uploads of the progress of a run at s3://; it is also uploaded at every checkpoint."""
_POLL_LOCAL_S, _POLL_S3_S = 0.5, 3.0
"""Seconds between reads of the progress."""

_LINE_EVERY_S = 10.0
"""Most seconds between lines of mean losses, if a step takes less."""

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
        self._recorded, self._written_s = trainer.done, float("-inf")

    def note_phase(self, phase: str) -> None:
        """Say which work begins. It is over with the next line of the progress."""
        entries = {"phase": phase, "at": time.time()}
        write_bytes(Location(str(self.folder.phase)), json.dumps(entries).encode())
        with suppress(StorageError):
            replace(self.folder, outage_s=0).push(self.folder.phase.name)

    def record_steps(self, trainer: Trainer, losses: Sequence[dict[str, float]], every: int = 25) -> None:
        """Record the steps since the last call. There is a line after the first step, and then from time to time.

        A term that no pair of a step has, such as a box, is 0 in that step. It is left out of the mean, and of the line
        if no step has it.

        Args:
            trainer: The trainer that took the steps.
            losses: The loss terms of each step, and its time in `seconds`; empty if they were not read yet.
            every: Most steps between lines of mean losses.
        """
        if not losses:
            return
        for terms in losses:
            for name, value in terms.items():
                if value:
                    self._terms[name].append(value)
        is_line_due = (
            trainer.done // every > self._recorded // every
            or trainer.done == trainer.total_steps
            or time.monotonic() - self._written_s >= _LINE_EVERY_S
        )
        self._recorded = trainer.done
        if is_line_due:
            means = {name: round(sum(values) / len(values), 4) for name, values in self._terms.items()}
            pairs_per_s = round(trainer.settings.batch_size / means.pop("seconds"), 1)
            self._terms.clear()
            rate = trainer.schedule.get_last_lr()[0]
            self._written_s = time.monotonic()
            stage = {"run_stage": trainer.run_stage}
            self._write(trainer, {"losses": means, "pairs_per_s": pairs_per_s, "rate": rate}, stage)

    def record_validation(self, trainer: Trainer, metrics: dict[str, Any]) -> None:
        """Record the validation metrics of a checkpoint."""
        self._write(trainer, {"validation": metrics})

    def _write(self, trainer: Trainer, event: dict[str, Any], about: dict[str, Any] | None = None) -> None:
        """Append a line to the progress, with entries `about` it, and the numbers of the event to TensorBoard."""
        line = {"pairs": trainer.pairs_done, "of": trainer.pairs_in_all, "workers": trainer.world, "at": time.time()}
        with self.folder.progress.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line | event | (about or {})) + "\n")
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
    """Report the lines that are appended to the run's progress during the block, and the work between them."""
    stop = threading.Event()
    start, former = _read(folder, folder.progress), _read_phase(folder)

    def follow() -> None:
        content, position, last_phase, last_at = start, len(start), former, 0.0
        while True:
            # The last read comes after the block has ended, so that its last lines are reported too.
            is_last = stop.wait(_POLL_LOCAL_S if folder.remote is None else _POLL_S3_S)
            phase = last_phase
            with suppress(StorageError):  # a store may be unavailable for a moment; read it again later
                phase = _read_phase(folder)
                content = _read(folder, folder.progress)
            # A line may be half written: only whole lines are reported.
            whole, newline, _ = content[position:].rpartition(b"\n")
            position += len(whole + newline)
            for line in whole.splitlines():
                event = json.loads(line)
                last_at = event["at"]
                progress(event)
            # Work that a line has ended is not worth a word any more.
            if phase != last_phase and phase.get("at", 0) > last_at:
                progress({"phase": phase["phase"]})
            last_phase = phase
            if is_last:
                return

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _read_phase(folder: RunFolder) -> dict[str, Any]:
    return dict(json.loads(_read(folder, folder.phase) or b"{}"))


def _read(folder: RunFolder, path: Path) -> bytes:
    """Read a file from where the run is kept; a copy on another machine may be behind. Empty if there is none."""
    file = folder.location / path.name
    return read_bytes(file) if exists(file) else b""
