"""Terminal output of the commands: progress, tables, and a finding with its words marked."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from asap.evaluation.table import CLASS_COLUMNS, class_rows, intervals_sentence, task_rows, words_sentence
from asap.finding import NOT_JUDGED, Finding, score_text
from asap.limits import NO_FAMILIARITY
from asap.render import LEVEL_COLORS, level, segments
from asap.training.objective import LOSS_NAMES
from jobs.cli.fitting import Fitted

if TYPE_CHECKING:
    from jobs.scan.passes import ScanProgress, Watch
    from jobs.train.plan import Plan

_LINE_EVERY_S = 5.0
_MOVES = ("before", "after", "added", "removed")
PLAIN_TABLE: dict[str, Any] = {
    "title_justify": "left", "box": SIMPLE_HEAD, "show_edge": False, "pad_edge": False, "collapse_padding": True,
}  # fmt: skip
_VERDICT_STYLES = {
    "manipulated": "bold white on red", "review": "bold black on yellow", "authentic": "bold green",
    "unfamiliar": "bold white on rgb(71,96,122)",
}  # fmt: skip


def print_tables(console: Console, *tables: RenderableType) -> None:
    """Print tables (`jobs.cli.fitting`), with paths that are longer than a line left whole."""
    console.print(*tables, sep="\n", crop=False)


def print_plain(console: Console, text: str) -> None:
    """Print text as it is: no markup, no highlighting, and no line breaks of its own, so that a path can be copied."""
    console.print(text, highlight=False, soft_wrap=True, markup=False)


# Progress.


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
    """Progress as lines, for a log file or a pipe. A line that says nothing new is left out."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._stage = ""
        self._counts: tuple[int, ...] = ()
        self._next_s = 0.0

    def watch(self, now: ScanProgress) -> None:
        counts = now.done, now.total, now.errors, now.flagged or 0, now.unfamiliar
        is_same_stage = now.stage == self._stage
        # Another speed alone is nothing new: it changes while nothing finishes.
        if is_same_stage and (counts == self._counts or time.monotonic() < self._next_s):
            return
        self._stage, self._counts, self._next_s = now.stage, counts, time.monotonic() + _LINE_EVERY_S
        done = f"  {now.done}/{now.total} pairs  {_counts(now)}" if now.total else ""
        self._console.print(f"{now.stage}{done}", highlight=False)


def _counts(now: ScanProgress) -> str:
    if not now.pairs_per_s:
        return ""
    unfamiliar = f"  {now.unfamiliar} unfamiliar" if now.unfamiliar else ""
    flagged = "" if now.flagged is None else f"  {now.flagged} flagged"
    return f"{now.pairs_per_s:.0f} pairs/s{flagged}{unfamiliar}  {now.errors} errors"


@contextmanager
def count_shown(
    console: Console, stage: str, before: str = "reading the model and the corpus"
) -> Iterator[Callable[[int, int], None]]:
    """Show a count of pairs, reported as (done, total), under the name of a stage; before it, what is done first."""
    from jobs.scan.passes import ScanProgress

    with progress_shown(console) as watch:
        watch(ScanProgress(before))
        yield lambda done, total: watch(ScanProgress(stage, done, total))


# Results.


def summary_table(summary: dict[str, Any]) -> Fitted:
    """Return the numbers of a finished scan as a table."""
    table = Table(title=f"scan {summary['job_id']}", title_justify="left")
    counts = ("pairs", "flagged", "unfamiliar", "errors")
    for name in (*counts, "pairs/s"):
        table.add_column(name, justify="right")
    speed = summary.get("pairs_per_s")
    numbers = [f"{summary.get(name, 0):,}" for name in counts]  # summaries of earlier versions lack `unfamiliar`
    table.add_row(*numbers, f"{speed:,.1f}" if speed else "-")
    return Fitted(table)


def summary_lines(summary: dict[str, Any]) -> list[str]:
    """Return the lines below the table of a finished scan: errors, descriptions, report, limits, others."""
    lines = []
    if counts := ", ".join(f"{count:,} {code}" for code, count in summary["error_codes"].items()):
        lines.append(f"errors: {counts}; see {summary['errors_file']}")
    for name in ("captions", "explanations"):
        found = summary.get(name) or {"written": 0, "failed": {}}  # summaries of earlier versions lack it
        if found["written"] or found["failed"]:
            failed = ", ".join(f"{count:,} {kind}" for kind, count in found["failed"].items())
            lines.append(f"{name}: {found['written']:,} written" + (f"; failed: {failed}" if failed else ""))
    if reused := summary.get("reused"):
        from jobs.scan.stages.result_rows import reused_words

        lines.append(f"not judged again: {reused_words(reused)}")
    lines.append(f"report: {summary['report']}")
    if summary.get("limits"):
        judges_all = "" if summary.get("familiarity_id") else f" {NO_FAMILIARITY}"
        lines.append(f"limits: {summary['limits']}{judges_all}")
    unfamiliar, read = summary.get("unfamiliar", 0), summary["pairs"] - summary["errors"]
    if unfamiliar:
        whose = "most pairs" if 2 * unfamiliar > read else "some pairs"
        lines.append(
            f"{whose} were not judged: {unfamiliar:,} of {read:,} look like nothing that "
            f"{summary['model_id'].partition('@')[0]} was made from; see {summary['unfamiliar_file']}"
        )
    return lines


def changes_table(changes: dict[str, Any]) -> Fitted:
    """Return the pairs that another policy has flagged, by verdict and by type: before, after, and how many moved."""
    table = Table(title="changes", **PLAIN_TABLE)
    table.add_column("pairs", overflow="fold")
    for name in _MOVES:
        table.add_column(name, justify="right", no_wrap=True)
    groups = {"flagged": changes["flagged"]}
    groups |= changes["verdicts"] | {
        f"flagged: {name.replace('_', ' ')}": one for name, one in changes["types"].items()
    }
    for name, counts in groups.items():
        style = "" if counts["added"] or counts["removed"] else "dim"
        table.add_row(name, *(f"{counts[move]:,}" for move in _MOVES), style=style)
    return Fitted(table)


def plan_tables(plan: Plan) -> Group:
    """Return the tables of `asap train --plan`."""
    # The pairs, by class and split.
    classes = list(dict.fromkeys(name for counts in plan.pairs.values() for name in counts))
    pairs = Table(title="pairs", **PLAIN_TABLE)
    pairs.add_column("class", no_wrap=True)
    for split in plan.pairs:
        pairs.add_column(split, justify="right")
    for name in classes:
        pairs.add_row(name, *(f"{counts.get(name, 0):,}" for counts in plan.pairs.values()))
    pairs.add_row("all", *(f"{sum(counts.values()):,}" for counts in plan.pairs.values()), style="bold")
    for kind in ("caption", "explanation"):
        if any(plan.described.values()):
            have = (plan.described.get(split, {}).get(kind, 0) for split in plan.pairs)
            pairs.add_row(f"with {kind}", *(f"{count:,}" for count in have), style="dim")
    left_out = f"{plan.left_out_an_epoch:,} pairs per epoch do not fill a batch" if plan.left_out_an_epoch else "none"

    # The stages, by short names of the terms, and below them the meaning of those that occur.
    stages = Table(title="stages", **PLAIN_TABLE)
    for name in ("steps", "loss terms and their weights"):
        stages.add_column(name)
    for stage in plan.stages:
        terms = ", ".join(f"{name} {weight:g}" for name, weight in stage.weights.items())
        locked = "; the image encoder is frozen" if stage.image_locked else ""
        stages.add_row(f"{stage.first_step:,} to {stage.last_step:,}", terms + locked)
    used = dict.fromkeys(name for stage in plan.stages for name in stage.weights)

    memory = {name: size_text(size) for name, size in plan.memory.items()} | {
        "all": size_text(sum(plan.memory.values()))
    }
    device = {}
    if plan.fit:
        device = {f"choice {number}": note for number, note in enumerate(plan.fit.notes, start=1)}
    if plan.workers_note:
        device["workers"] = plan.workers_note
    device |= {f"cores for {name}": f"{cores:.0f}" for name, cores in plan.cpus.items()}
    device["hours"] = plan.hours
    parameters = {**plan.parameters, "all": sum(plan.parameters.values())}
    checkpoints = (
        f"{size_text(plan.checkpoint_bytes)} each, {plan.checkpoints_written} written "
        f"({size_text(plan.checkpoint_bytes * plan.checkpoints_written)}), at most {plan.checkpoints_kept} kept"
    )
    faster = "" if plan.precision == "bfloat16" else " `--set precision=auto` is at least twice as fast (bfloat16)."
    if plan.checkpoint_every_s is not None:
        checkpoints += f"; one more after {plan.checkpoint_every_s:g} s without one"
    pictures = size_text(plan.cache_bytes) if plan.cache_bytes else "none, they are streamed"
    # The best checkpoint, the last one, and the one that is being written.
    disk = (
        f"{size_text(plan.cache_bytes + (plan.checkpoints_kept + 1) * plan.checkpoint_bytes)} at most, beside the model"
    )
    return Group(
        Fitted(pairs), "",
        named_values("steps", {"steps": f"{plan.steps:,}", "epochs": f"{plan.epochs:.2f}", "left out": left_out}), "",
        named_values("batch", {name: f"{count:,}" for name, count in plan.batch.items()}), "",
        Fitted(stages), "",
        named_values("loss terms", {name: LOSS_NAMES.get(name, "") for name in used}), "",
        named_values("learning rates", {name: f"{rate:g}" for name, rate in plan.rates.items()}), "",
        named_values("parameters", {name: f"{count:,}" for name, count in parameters.items()}), "",
        named_values("memory per worker", memory),
        Text(plan.memory_note, style="dim"), "",
        named_values("device", device), "",
        _speed_table(plan),
        Text(
            f"estimated: {plan.flops_a_pair / 1e9:,.0f} GFLOP a pair; MFU is the share of the dense {plan.precision} "
            "peak, an assumption with its interval. Stages that train fewer terms are faster. The cores decode for one "
            f"GPU, JPEGs of 1024 x 768.{faster}",
            style="dim",
        ), "",
        named_values("writes", {"checkpoints": checkpoints, "pictures": pictures, "disk": disk,
                         "starts from": ", ".join(plan.init) or "random weights", "run folder": plan.out}),
    )  # fmt: skip


def _speed_table(plan: Plan) -> Fitted:
    """Return the estimated speed of the run on GPUs by name."""
    from jobs.train.plan import shown_hours

    table = Table(title="speed on GPUs", **PLAIN_TABLE)
    for name in ("GPU", "pairs/s", "MFU", "cores", "hours", "from", "to", "bottleneck"):
        is_text = name in ("GPU", "bottleneck")
        table.add_column(name, justify="left" if is_text else "right", no_wrap=name != "bottleneck")
    pairs = plan.steps * plan.batch["pairs of a step"]
    for speed in plan.speeds:
        hours, least, most = (
            shown_hours(pairs / (pairs_per_s * plan.batch["workers"]) / 3600)
            for pairs_per_s in (speed.pairs_per_s, speed.most_pairs_per_s, speed.least_pairs_per_s)
        )
        table.add_row(
            speed.gpu, f"{speed.pairs_per_s:,.0f}", f"{speed.mfu:.0%}", f"{speed.decoding_cores:.1f}",
            hours, least, most, speed.bottleneck,
        )  # fmt: skip
    return Fitted(table)


def named_values(title: str, rows: dict[str, str]) -> Fitted:
    """Return names and their values as a table of two columns."""
    table = Table(title=title, show_header=False, **PLAIN_TABLE)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, Text(value))
    return Fitted(table)


def size_text(count: float) -> str:
    """Format bytes in the unit that reads best."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def evaluation_tables(report: dict[str, Any]) -> Group:
    """Return the papers' table of an evaluation, and its breakdown by class."""
    about = report["about"]
    title = f"{about['model_id']}: {report['pairs']:,} pairs of {about['split']}, in percent"
    tasks = Table(title=title, show_header=False, **PLAIN_TABLE)
    tasks.add_column(no_wrap=True)
    tasks.add_column()  # a name of two words may take both lines of a row
    for _ in range(3):
        tasks.add_column(justify="right", no_wrap=True)
    for row in task_rows(report):
        # A terminal is narrow. It shows the name of a reading, of which the page has the explanation too; in the row of
        # the texts, the names of types without their `text_`; and an interval below its figure.
        figures = [f"{name.replace(' text_', ' ')} {value}" for name, value in row.figures]
        cells = [
            Text(figure) if limits is None else Text.assemble(figure, "\n", (limits, "dim"))
            for figure, limits in zip_longest(figures, row.intervals)
        ]
        tasks.add_row(row.task, row.reading.partition(":")[0], *cells)
    tasks.caption = " ".join(filter(None, (words_sentence(report), intervals_sentence(report))))
    classes = Table(title="by class: AUC against the authentic pairs, boxes gated", **PLAIN_TABLE)
    for name in CLASS_COLUMNS:
        classes.add_column(name, justify="left" if name == CLASS_COLUMNS[0] else "right", no_wrap=True)
    for values in class_rows(report):
        classes.add_row(*values)
    return Group(Fitted(tasks), "", Fitted(classes))


def calibration_table(thresholds: dict[str, dict[str, Any]]) -> Fitted:
    """Return the rates of each threshold of a calibrated policy; for `review`, the rates of its band."""
    table = Table(title="thresholds", **PLAIN_TABLE)
    table.add_column("flags")
    for name in ("from", "precision", "at least", "recall", "FPR", "at most", "right at this score"):
        table.add_column(name, justify="right")
    for name, point in thresholds.items():
        if name == "review" and not point.get("band"):
            table.add_row("no review band")
            continue
        rates = point | (point.get("band") or {})
        fractions = (f"{rates[key]:.3f}" for key in ("precision", "precision_lower", "recall"))
        false_positives = (f"{rates[key]:.2g}" for key in ("false_positive_rate", "false_positive_rate_upper"))
        about = (point.get("score_meaning") or {}).get("right_about")
        meaning = "–" if about is None else f"{about:.2g}"
        table.add_row(name.replace("_", " "), f"{rates['value']:.6g}", *fractions, *false_positives, meaning)
    meanings = [point["score_meaning"] for point in thresholds.values() if point.get("score_meaning")]
    prevalences = {float(meaning["prevalence"]) for meaning in meanings}
    table.caption_justify = "left"
    if prevalences:
        table.caption = (
            f"Where {100 * prevalences.pop():g} % of the pairs are manipulated: 'precision' is the share that is right "
            "from the threshold up, 'right at this score' the share among pairs that score about the threshold."
        )
    return Fitted(table)


def shortfall_table(shortfalls: Sequence[Mapping[str, Any]]) -> Fitted:
    """Return what each threshold lacks that a calibration cannot show (`PrecisionNotShown.shortfalls`)."""
    from asap.evaluation.pairs_needed import MOST_PAIRS

    table = Table(title="not shown", **PLAIN_TABLE)
    table.add_column("flags", overflow="fold")
    for name in ("target precision", "at best", "authentic pairs", "needed", "pairs that have it", "needed"):
        table.add_column(name, justify="right")
    for one in shortfalls:
        pairs = []
        for name in ("authentic", "positive"):
            needed = one[f"{name}_needed"]
            pairs += [f"{one[name]:,}", "?" if needed is None else f"{needed:,}"]
        best = "–" if one["shown"] is None else f"{one['shown']:g}"
        table.add_row(one["threshold"].replace("_", " "), f"{one['target']:g}", best, *pairs)
    table.caption = (
        "'at best' is the highest target that these pairs show. So many pairs are needed if they score as these do; "
        f"'?': not even {MOST_PAIRS:,} such pairs are enough, or there is none to go by."
    )
    table.caption_justify = "left"
    return Fitted(table)


# One finding.


def show_finding(finding: Finding, text: str | None) -> Group:
    """Return a finding as lines: verdict and score, types, face box, and the text with its flagged words marked.

    An unfamiliar pair has no score and no types here: they mean nothing.
    """
    verdict = finding.verdict or "unknown"
    style = _VERDICT_STYLES.get(verdict, "")
    lines: list[Text | Table]
    if verdict == "unfamiliar":
        lines = [Text(f" {NOT_JUDGED} ", style), Text(finding.note)]
    else:
        score = "" if finding.score is None else f"  score {score_text(finding.score, 3)}"
        lines = [Text.assemble((f" {verdict} ", style), score), _types(finding)]
        lines += [Text(finding.note)] if finding.note else []
    if finding.box_px is not None:
        x0, y0, x1, y1 = finding.box_px
        size = f"{finding.width} x {finding.height} px"
        lines.append(Text(f"face  x {x0:.0f} to {x1:.0f}, y {y0:.0f} to {y1:.0f}, of {size}"))
    if text:
        lines.append(_marked(text, finding))
    lines += [Text(f"note  {warning}", style="dim") for warning in finding.warnings]
    lines += [Text(finding.limits, style="dim")] if finding.limits else []
    lines.append(Text(f"model {finding.model_id}, policy {finding.policy_id}", style="dim"))
    return Group(*lines)


def _types(finding: Finding) -> Table:
    table = Table.grid(padding=(0, 2))
    for name, value in (finding.types or {}).items():
        flagged = name in finding.flagged_types
        number = "not scored" if value is None else score_text(value, 3)
        table.add_row(name.replace("_", " "), number, "flagged" if flagged else "", style="bold red" if flagged else "")
    return table


def _marked(text: str, finding: Finding) -> Text:
    marked = Text("text  ")
    for piece, word in segments(text, finding.words):
        if word is None:
            marked.append(piece)
        else:
            red, green, blue = LEVEL_COLORS[level(word.score) - 1]
            marked.append(piece, style=f"bold black on rgb({red},{green},{blue})")
    return marked
