"""Jobs in the terminal: their status, a list of them, their errors, and their result rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from jobs.cli.display import PLAIN_TABLE
from jobs.cli.fitting import Fitted

if TYPE_CHECKING:
    from asap.job_records.status import JobStatus
    from jobs.control.result_query import ErrorCounts

_CELL_WIDTH = 60
_NOTE_WIDTH = 1000
"""Characters of a note that is printed on a line of its own, so that a command in it can be copied."""
_NUMBERS = {"score", "row_id", "attempt", "familiarity"}
_COPIED = {"custom_id", "given_id", "image_uri", "image_sha256", "model_id", "policy_id"}
"""Columns of names and addresses."""
_WIDTHS = dict.fromkeys(_COPIED, _NOTE_WIDTH) | {"error_detail": 200}
"""Characters of a cell, for columns where `_CELL_WIDTH` is too few."""


def status_lines(status: JobStatus) -> list[str]:
    """Return the status of a job as lines."""
    from asap.job_records.status import format_duration
    from jobs.control.row_formats import cell_text

    lines = [f"{status.kind} {status.folder}: {status.state}"]
    if status.phase:
        lines.append(f"phase      {cell_text(status.phase_text, _NOTE_WIDTH)}")
    if counts := _counts(status):
        lines.append(f"pairs      {counts}")
    if status.pairs_per_s and not status.is_silent:
        left = "" if status.left_s is None else f", about {format_duration(status.left_s)} left"
        lines.append(f"speed      {status.pairs_per_s:,.1f} pairs/s{left}")
    age = "" if status.age_s is None else f", last sign of life {format_duration(max(status.age_s, 0))} ago"
    start = f", start {status.runs}" if status.runs > 1 else ""
    lines.append(f"process    {status.process}{start}{age}")
    if sentence := status.sentence():
        lines.append(f"note       {cell_text(sentence, _NOTE_WIDTH)}")
    return lines


def status_line(status: JobStatus) -> str:
    """Return the status of a job as one line, for those who follow it."""
    from asap.job_records.status import format_duration
    from jobs.control.row_formats import cell_text

    is_working = not status.has_ended and not status.is_silent
    speed = f"{status.pairs_per_s:,.0f} pairs/s" if status.pairs_per_s and is_working else ""
    left = "" if status.left_s is None else f"{format_duration(status.left_s)} left"
    phase, note = (cell_text(text, _NOTE_WIDTH) for text in (status.phase_text, status.sentence()))
    return "  ".join(part for part in (status.state, phase, _counts(status), speed, left, note) if part)


def _counts(status: JobStatus) -> str:
    done, total = status.counts.get("done"), status.counts.get("total")
    if done is None and total is None:
        return ""
    share = f" ({100 * (done or 0) / total:.0f} %)" if total else ""
    others = [
        f"{status.counts[name]:,} {name}" for name in ("flagged", "unfamiliar", "errors") if name in status.counts
    ]
    return ", ".join([f"{done or 0:,} of {total or 0:,}{share}", *others])


def jobs_table(jobs: Sequence[JobStatus]) -> Fitted:
    """Return jobs as a table."""
    from asap.job_records.status import format_duration
    from jobs.control.row_formats import cell_text

    table = Table(**PLAIN_TABLE)
    for name, justify in (("job", "left"), ("kind", "left"), ("state", "left"), ("pairs", "right"), ("errors", "right"),
                          ("last sign of life", "right"), ("note", "left")):  # fmt: skip
        table.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for job in jobs:
        done, total = job.counts.get("done"), job.counts.get("total")
        table.add_row(
            Text(cell_text(job.folder.name, _NOTE_WIDTH)),
            job.kind,
            job.state,
            "" if total is None else f"{done or 0:,} of {total:,}",
            f"{job.counts['errors']:,}" if "errors" in job.counts else "",
            "" if job.age_s is None else f"{format_duration(max(job.age_s, 0))} ago",
            Text(cell_text("probably died" if job.is_silent else job.sentence() or job.phase_text, 2 * _CELL_WIDTH)),
        )
    return Fitted(table, wraps=("note",))


def error_tables(counts: ErrorCounts) -> Group:
    """Return failed rows as two tables: their number by code, and the rows."""
    codes = Table(**PLAIN_TABLE)
    for name in ("code", "rows", "may succeed on another try"):
        codes.add_column(name, justify="left" if name == "code" else "right")
    for code, count in counts.codes.most_common():
        retryable = counts.retryable[code]
        codes.add_row(
            Text(code), f"{count:,}", "all" if retryable == count else f"{retryable:,}" if retryable else "no"
        )
    if not counts.first:
        return Group(Fitted(codes))
    columns = ("custom_id", "image_uri", "error_code", "error_detail")
    return Group(Fitted(codes), "", rows_table(columns, counts.first))


def rows_table(columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> Fitted:
    """Return result rows as a table. Long values are cut, but for names and addresses, which people copy."""
    from jobs.control.row_formats import cell_text

    table = Table(**PLAIN_TABLE)
    for name in columns:
        table.add_column(name, justify="right" if name in _NUMBERS else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell_text(row[name], _WIDTHS.get(name, _CELL_WIDTH))) for name in columns))
    return Fitted(table, wraps=[name for name in columns if name not in _COPIED | _NUMBERS])
