"""Terminal output of a training run: the work that is under way, the loss terms by name, and the time that is left.

A file or a pipe gets lines. A terminal gets the same lines, but for the losses and for counts, which move a bar.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from asap.job_records.status import format_duration
from asap.training.objective import LOSS_NAMES
from jobs.cli.display import print_plain

_LINE_EVERY_S = 5.0
"""Fewest seconds between two lines of the same count."""
_RECENT = 12
"""Reports that make the speed by which the time left is estimated."""
_TOTAL = "the sum of the terms, each times its weight"
_METRIC_NAMES: Mapping[str, str] = {
    "AUC": "real or fake: 0.5 is guessing, 1 is perfect",
    "mAP": "ranking of the four types",
    "CF1": "right and complete decisions about the types (F1)",
    "IoU50_gated": "pairs with the right box, or rightly with none",
    "IoU50_boxed": "manipulated faces with the right box",
    "token_F1": "right and complete marks of manipulated words (F1)",
}
"""The words for the metrics of `jobs.train.run_folder.log.HEADLINE`."""
_INGEST = {
    "cache": "pictures: decoded once, into a cache on this machine (ingest=cache)",
    "stream": "pictures: decoded anew for every epoch (ingest=stream)",
}


class Pace:
    """The speed of recent work. Earlier work does not count: it may have been faster or slower."""

    def __init__(self) -> None:
        self._marks: deque[tuple[float, int]] = deque(maxlen=_RECENT)

    def mark(self, done: int, at_s: float) -> None:
        """Take note of how much is done at a time."""
        if self._marks and done < self._marks[-1][1]:  # a run goes back to a checkpoint
            self._marks.clear()
        self._marks.append((at_s, done))

    @property
    def per_s(self) -> float | None:
        """Work per second; None before two marks."""
        (first_s, first), (last_s, last) = (self._marks[0], self._marks[-1]) if self._marks else ((0, 0), (0, 0))
        return (last - first) / (last_s - first_s) if last > first and last_s > first_s else None


@contextmanager
def training_shown(console: Console) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Show the events of `jobs.train.events`: lines, and in a terminal a bar below them."""
    if not console.is_terminal:
        yield TrainingLines(console).show
        return
    columns = (
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=20), TextColumn("{task.fields[status]}"),
        TimeElapsedColumn(),
    )  # fmt: skip
    with _Bar(*columns, console=console, transient=True, refresh_per_second=4) as bar:
        yield TrainingLines(console, bar).show


class _Bar(Progress):
    """A bar with the loss terms below it."""

    terms = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        """Return the bar, and the loss terms if there are any."""
        yield self.make_tasks_table(self.tasks)
        if self.terms:
            yield Text(self.terms, style="dim")

    def move(self, description: str, done: int = 0, total: int | None = None, status: str = "") -> None:
        """Show some work; new work starts the clock of the bar anew."""
        if not self.tasks or self.tasks[0].description != description:
            for task in self.task_ids:
                self.remove_task(task)
            self.terms = ""
            self.add_task(description, total=total, completed=done, status=status)
        else:
            self.update(self.task_ids[0], completed=done, total=total, status=status)


class TrainingLines:
    """The lines of a run. A line that says nothing new is left out, and each term is explained once."""

    def __init__(self, console: Console, bar: _Bar | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        """Prepare the lines.

        Args:
            console: The file or terminal that gets the lines.
            bar: The bar of a terminal, which shows losses and counts in their place.
            clock: Returns the seconds of a steady clock.
        """
        self._console, self._bar, self._clock = console, bar, clock
        self._last, self._explained = "", set[str]()
        self._work, self._next_s = "", 0.0
        self._pace = Pace()

    def show(self, event: dict[str, Any]) -> None:
        """Show an event of `jobs.train.events`."""
        if "phase" in event:
            self._print(event["phase"])
            if self._bar:
                self._bar.move(event["phase"])
        elif "stage" in event:
            self._show_count(event["stage"], event["done"], event["total"])
        elif "losses" in event:
            self._show_losses(event)
        elif "validation" in event:
            self._explain("validation metrics", event["validation"], _METRIC_NAMES)
            metrics = {name: "-" if value is None else f"{value:.3f}" for name, value in event["validation"].items()}
            self._print(f"{_counted(event)}  validation  {_joined(metrics)}")
        elif "start" in event:
            self._print(f"start from {event['start']}\n{event['report']}")
        elif "corpus" in event:
            self._print("\n".join([*event["corpus"], _INGEST[event["ingest"]]]))
        else:
            self._print(str(event["note"]))

    def _print(self, line: str) -> None:
        if line != self._last:
            print_plain(self._console, line)
        self._last = line

    def _show_count(self, work: str, done: int, total: int) -> None:
        """Show how much of some work is done: from time to time, and when it is complete."""
        now_s = self._clock()
        if work != self._work:
            self._work, self._pace, self._next_s = work, Pace(), now_s + _LINE_EVERY_S
            self._print(f"{work}: {total:,}")
        self._pace.mark(done, now_s)
        speed = self._pace.per_s
        left = f"{format_duration((total - done) / speed)} left" if speed and done < total else ""
        if self._bar:
            self._bar.move(work, done, total, "  ".join(filter(None, (f"{done:,} of {total:,}", left))))
        if done == total or (now_s >= self._next_s and not self._bar):
            self._print(f"{work}: " + ("done" if done == total else f"{done:,} of {total:,}, {left}".rstrip(", ")))
            self._next_s = now_s + _LINE_EVERY_S

    def _show_losses(self, event: dict[str, Any]) -> None:
        stage = event.get("run_stage")  # runs of earlier versions have none
        work = f"stage {stage['number']} of {stage['of']}" if stage and stage["of"] > 1 else "training"
        if work != self._work:
            self._work, self._pace = work, Pace()  # another stage has another speed
            if stage and stage["of"] > 1:
                self._print(f"{work} of the training, to {stage['ends']:,} of {event['of']:,} pairs")
        self._explain("loss terms; less is better", event["losses"], {**LOSS_NAMES, "total": _TOTAL})
        self._pace.mark(event["pairs"], event.get("at", self._clock()))
        # The pace has the pauses for checkpoints in it; at the first report there is only the speed of its steps.
        left = f"{format_duration((event['of'] - event['pairs']) / (self._pace.per_s or event['pairs_per_s']))} left"
        if stage and stage["ends"] < event["of"]:
            left += " at the speed of this stage"
        pairs_per_s = event["pairs_per_s"]
        speed = f"{pairs_per_s:,.0f} pairs/s  {left}" if pairs_per_s >= 10 else f"{pairs_per_s:.1f} pairs/s  {left}"
        # The total first: the terms are its parts, and more of them join.
        terms = sorted(event["losses"].items(), key=lambda term: term[0] != "total")
        losses = _joined({name: f"{value:.3f}" for name, value in terms})
        if self._bar:
            self._bar.move(work, event["pairs"], event["of"], f"{_counted(event)}  {speed}")
            self._bar.terms = losses
        else:
            self._print(f"{_counted(event)}  {speed}  {losses}")

    def _explain(self, title: str, values: Iterable[str], meanings: Mapping[str, str]) -> None:
        """Print what new terms mean. Terms join stage by stage, so the first step does not have all of them."""
        new = [name for name in values if name in meanings and name not in self._explained]
        if not new:
            return
        self._explained |= set(new)
        width = max(map(len, new))
        self._print("\n".join([f"{title}:", *(f"  {name:<{width}}  {meanings[name]}" for name in new)]))


def _counted(event: dict[str, Any]) -> str:
    return f"{event['pairs']:,} of {event['of']:,} pairs"


def _joined(values: Mapping[str, str]) -> str:
    return "  ".join(f"{name} {value}" for name, value in values.items())
