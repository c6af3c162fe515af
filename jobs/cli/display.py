"""What the commands show in a terminal: a job's progress, its table, and a finding with its words marked."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from asap.evaluation.table import CLASS_COLUMNS, class_rows, task_rows
from asap.finding import Finding
from asap.render import LEVEL_COLOURS, level, segments

if TYPE_CHECKING:
    from jobs.scan.run import ScanProgress, Watch
    from jobs.train.plan import Plan

_LINE_EVERY_S = 5.0
_PLAIN: dict[str, Any] = {
    "title_justify": "left", "box": SIMPLE_HEAD, "show_edge": False, "pad_edge": False, "collapse_padding": True,
}  # fmt: skip
_VERDICT_STYLES = {"manipulated": "bold white on red", "review": "bold black on yellow", "authentic": "bold green"}


@contextmanager
def progress_shown(console: Console) -> Iterator[Watch]:
    """Show a scan's progress: a live bar in a terminal, else a line every few seconds and at each new stage."""
    if not console.is_terminal:
        yield _Lines(console).watch
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[counts]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("starting", total=None, counts="")

        def watch(now: ScanProgress) -> None:
            total = now.total or None
            bar.update(task, description=now.stage, completed=now.done, total=total, counts=_counts(now))

        yield watch


class _Lines:
    def __init__(self, console: Console) -> None:
        self._console = console
        self._stage = ""
        self._next_s = 0.0

    def watch(self, now: ScanProgress) -> None:
        if now.stage == self._stage and time.monotonic() < self._next_s:
            return
        self._stage, self._next_s = now.stage, time.monotonic() + _LINE_EVERY_S
        done = f"  {now.done}/{now.total} pairs  {_counts(now)}" if now.total else ""
        self._console.print(f"{now.stage}{done}", highlight=False)


@contextmanager
def count_shown(console: Console, what: str) -> Iterator[Callable[[int, int], None]]:
    """Show a count of pairs, told as (done, total)."""
    from jobs.scan.run import ScanProgress

    with progress_shown(console) as watch:
        yield lambda done, total: watch(ScanProgress(what, done, total))


@contextmanager
def training_shown(console: Console) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Show a training run's events, as `train.run` tells them: a line each; in a terminal, a bar for the losses."""
    if not console.is_terminal:
        yield lambda event: _print_line(console, _event_line(event))
        return
    columns = (
        SpinnerColumn(),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("pairs  {task.fields[told]}"),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("training", total=None, told="", visible=False)

        def show(event: dict[str, Any]) -> None:
            if "losses" in event:
                told = f"{_speed(event)}  loss {event['losses']['total']:.3f}"
                bar.update(task, visible=True, completed=event["pairs"], total=event["of"], told=told)
            else:
                _print_line(bar.console, _event_line(event))

        yield show


def _print_line(console: Console, line: str) -> None:
    console.print(line, highlight=False, soft_wrap=True, markup=False)


def _event_line(event: dict[str, Any]) -> str:
    if "start" in event:
        return f"start from {event['start']}\n{event['report']}"
    if "note" in event:
        return str(event["note"])
    if "stage" in event:
        return f"{event['stage']}  {event['done']}/{event['total']}"
    if "corpus" in event:
        return "\n".join([*event["corpus"], f"pictures: {event['ingest']}"])
    if "validation" in event:
        figures = {name: "-" if value is None else f"{value:.3f}" for name, value in event["validation"].items()}
        return f"{event['pairs']}/{event['of']} pairs  validation  {_named(figures)}"
    losses = {name: f"{value:.3f}" for name, value in event["losses"].items()}
    return f"{event['pairs']}/{event['of']} pairs  {_speed(event)}  {_named(losses)}"


def _speed(event: dict[str, Any]) -> str:
    left_min = (event["of"] - event["pairs"]) / event["pairs_per_s"] / 60
    return f"{event['pairs_per_s']:.0f} pairs/s  {left_min:.0f} min left"


def _named(values: dict[str, str]) -> str:
    return "  ".join(f"{name} {value}" for name, value in values.items())


def _counts(now: ScanProgress) -> str:
    if not now.pairs_per_s:
        return ""
    return f"{now.pairs_per_s:.0f} pairs/s  {now.flagged} flagged  {now.errors} errors"


def summary_table(summary: dict[str, Any]) -> Table:
    """The four numbers of a finished scan."""
    table = Table(title=f"scan {summary['job_id']}", title_justify="left")
    for name in ("pairs", "flagged", "errors", "pairs/s"):
        table.add_column(name, justify="right")
    speed = summary.get("pairs_per_s")
    numbers = [f"{summary[name]:,}" for name in ("pairs", "flagged", "errors")]
    table.add_row(*numbers, f"{speed:,.1f}" if speed else "-")
    return table


def plan_tables(plan: Plan) -> Group:
    """What a training run will do."""
    classes = list(dict.fromkeys(name for counts in plan.pairs.values() for name in counts))
    pairs = Table(title="pairs", **_PLAIN)
    pairs.add_column("class", no_wrap=True)
    for split in plan.pairs:
        pairs.add_column(split, justify="right")
    for name in classes:
        pairs.add_row(name, *(f"{counts.get(name, 0):,}" for counts in plan.pairs.values()))
    pairs.add_row("all", *(f"{sum(counts.values()):,}" for counts in plan.pairs.values()), style="bold")
    left_out = f"{plan.left_out_an_epoch:,} pairs of an epoch do not fill a batch" if plan.left_out_an_epoch else ""
    steps = _rows("steps", {"steps": f"{plan.steps:,}", "epochs": f"{plan.epochs:.2f}", "left out": left_out or "none"})
    stages = Table(title="stages", **_PLAIN)
    for name in ("steps", "terms and their weights"):
        stages.add_column(name)
    for stage in plan.stages:
        terms = ", ".join(f"{name} {weight:g}" for name, weight in stage.weights.items())
        locked = "; the image encoder rests" if stage.image_locked else ""
        stages.add_row(f"{stage.first_step:,} to {stage.last_step:,}", terms + locked)
    total = _size(sum(plan.memory.values()))
    memory = {name: _size(size) for name, size in plan.memory.items()} | {"all": total}
    kept = (
        f"{_size(plan.checkpoint_bytes)} each, {plan.checkpoints_written} written, at most {plan.checkpoints_kept} kept"
    )
    return Group(
        pairs, "", steps, "",
        _rows("batch", {name: f"{count:,}" for name, count in plan.batch.items()}), "",
        stages, "",
        _rows("learning rates", {name: f"{rate:g}" for name, rate in plan.rates.items()}), "",
        _rows("parameters", {n: f"{c:,}" for n, c in plan.parameters.items()} | {
            "all": f"{sum(plan.parameters.values()):,}"}), "",
        _rows("memory of a worker", memory),
        Text(f"activations {plan.activations_told}", style="dim"), "",
        _rows("writes", {"checkpoints": kept, "starts from": ", ".join(plan.init) or "random weights",
                         "run folder": plan.out}),
    )  # fmt: skip


def _rows(title: str, rows: dict[str, str]) -> Table:
    table = Table(title=title, show_header=False, **_PLAIN)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, Text(value))
    return table


def _size(count: float) -> str:
    """Bytes as a person reads them."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def evaluation_tables(report: dict[str, Any]) -> Group:
    """The paper's table of an evaluation, and its breakdown by class."""
    about = report["about"]
    title = f"{about['model_id']}: {report['pairs']:,} pairs of {about['split']}, in percent"
    tasks = Table(title=title, show_header=False, **_PLAIN)
    for justify in ("left", "left", "right", "right", "right"):
        tasks.add_column(justify=justify, no_wrap=True)
    for row in task_rows(report):
        tasks.add_row(row.task, row.reading.partition(":")[0], *(f"{name} {value}" for name, value in row.figures))
    classes = Table(title="by class: AUC against the authentic pairs, boxes gated", **_PLAIN)
    for name in CLASS_COLUMNS:
        classes.add_column(name, justify="left" if name == CLASS_COLUMNS[0] else "right", no_wrap=True)
    for values in class_rows(report):
        classes.add_row(*values)
    return Group(tasks, "", classes)


def errors_line(summary: dict[str, Any]) -> str:
    """How often each error occurred, and where each is told; empty without errors."""
    counts = ", ".join(f"{count:,} {code}" for code, count in summary["error_codes"].items())
    return f"errors: {counts}; see {summary['errors_file']}" if counts else ""


def calibration_table(thresholds: dict[str, dict[str, Any]]) -> Table:
    """What is shown of each threshold of a calibrated policy; of `review`, what is shown of its band."""
    table = Table(title="thresholds", title_justify="left")
    table.add_column("flags", no_wrap=True)
    for name in ("from", "precision", "at least", "recall", "FPR", "at most"):
        table.add_column(name, justify="right")
    for name, point in thresholds.items():
        shown = point | (point.get("band") or {})
        if name == "review" and not point.get("band"):
            table.add_row("no review band")
            continue
        shares = (f"{shown[key]:.3f}" for key in ("precision", "precision_lower", "recall"))
        false = (f"{shown[key]:.2g}" for key in ("false_positive_rate", "false_positive_rate_upper"))
        table.add_row(name.replace("_", " "), f"{shown['value']:.6g}", *shares, *false)
    return table


def show_finding(finding: Finding, text: str | None) -> Group:
    """A judged pair: verdict and score, the types, the box, and the text with its flagged words marked."""
    lines: list[Text | Table] = [_headline(finding), _types(finding)]
    if finding.box_px is not None:
        x0, y0, x1, y1 = finding.box_px
        size = f"{finding.width} x {finding.height} px"
        lines.append(Text(f"face  x {x0:.0f} to {x1:.0f}, y {y0:.0f} to {y1:.0f}, of {size}"))
    if text:
        lines.append(_marked(text, finding))
    lines += [Text(f"note  {warning}", style="dim") for warning in finding.warnings]
    lines.append(Text(f"model {finding.model_id}, policy {finding.policy_id}", style="dim"))
    return Group(*lines)


def _headline(finding: Finding) -> Text:
    verdict = finding.verdict or "unknown"
    score = "" if finding.score is None else f"  score {finding.score:.3f}"
    return Text.assemble((f" {verdict} ", _VERDICT_STYLES.get(verdict, "")), score)


def _types(finding: Finding) -> Table:
    table = Table.grid(padding=(0, 2))
    for name, value in (finding.types or {}).items():
        flagged = name in finding.flagged_types
        number = "not judged" if value is None else f"{value:.3f}"
        table.add_row(name.replace("_", " "), number, "flagged" if flagged else "", style="bold red" if flagged else "")
    return table


def _marked(text: str, finding: Finding) -> Text:
    marked = Text("text  ")
    for piece, word in segments(text, finding.words):
        if word is None:
            marked.append(piece)
        else:
            red, green, blue = LEVEL_COLOURS[level(word.score) - 1]
            marked.append(piece, style=f"bold black on rgb({red},{green},{blue})")
    return marked
