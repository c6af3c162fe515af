"""A job of annotations in the terminal: its plan and its summary."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from jobs.cli.display import PLAIN_TABLE, named_values
from jobs.cli.fitting import Fitted

if TYPE_CHECKING:
    from jobs.annotate.preview import Pilot, Preview

_KINDS = {"caption": "pictures", "explanation": "texts"}


def summary_table(summary: dict[str, Any]) -> Fitted:
    """Return the numbers of a finished job as a table: a row for captions, a row for explanations."""
    table = Table(title=f"annotations {summary['job_id']}: {summary['pairs']:,} pairs", **PLAIN_TABLE)
    names = ("described", "new", "repeated", "cut", "failed", "input_tokens", "output_tokens")
    table.add_column("")
    for name in names:
        table.add_column(name.replace("_", " "), justify="right")
    for kind in _KINDS:
        if counts := summary.get(f"{kind}s"):
            table.add_row(f"{kind}s", *(f"{counts[name]:,}" for name in names))
    return Fitted(table)


def summary_lines(summary: dict[str, Any]) -> list[str]:
    """Return the lines below the table of a finished job: errors, costs, files, and how training reads them."""
    lines = []
    if counts := ", ".join(f"{count:,} {code}" for code, count in summary["error_codes"].items()):
        lines.append(f"errors: {counts}; see {summary['errors_file']}")
    costs = [f"{kind}s {summary[f'{kind}s']['cost']:,.4g}" for kind in _KINDS if "cost" in summary.get(f"{kind}s", {})]
    if costs:
        lines.append(f"cost: {', '.join(costs)}")
    for kind, file in summary["files"].items():
        left_out = summary[kind]["left_out"]
        note = f" ({left_out:,} rows are only in annotations/, because others share their id)" if left_out else ""
        lines.append(f"{kind}: {file}{note}")
    settings = " ".join(f"--set '{kind}=[\"{summary['folder']}\"]'" for kind in summary["files"])
    lines.append(f"to train on them: asap train CORPUS {settings}")
    return lines


def preview_tables(preview: Preview) -> Group:
    """Return the tables of `asap annotate --plan`."""
    parts: list[Any] = [named_values("pairs", _counts(preview))]
    for kind, pilot in preview.pilots.items():
        parts += ["", named_values(f"{kind}s", _figures(pilot, _KINDS[kind]))]
    if preview.pilots:
        parts.append(
            Text(
                "Hours are those of one process, by the median part of the pilot, its fastest and its slowest. More "
                "processes (--annotators; one for each CPU if the model is small) divide them. Tokens "
                "have an interval of two standard errors.",
                style="dim",
            )
        )
    for kind in preview.untried:
        parts.append(Text(f"{kind}s: a plan does not run vLLM, which needs Ray and a GPU, so it has no figures of it."))
    return Group(*parts)


def _counts(preview: Preview) -> dict[str, str]:
    counts = {"rows": f"{preview.rows:,}"}
    for kind, number in preview.distinct.items():
        missing = preview.missing[kind]
        counts[f"{_KINDS[kind]} to describe"] = f"{number:,}" + (f"; {missing:,} rows have none" if missing else "")
    return counts


def _figures(pilot: Pilot, described: str) -> dict[str, str]:
    figures = {
        "pilot": f"{pilot.requests} {described}",
        "tokens in": _interval(pilot.input_tokens, ".0f"),
        "tokens out": _interval(pilot.output_tokens, ".0f"),
        "hours": _interval(pilot.hours, ".3g"),
    }
    if pilot.cost is not None:
        figures["cost"] = _interval(pilot.cost, ".3g")
    if pilot.failed:
        figures["failed"] = f"{pilot.failed} of {pilot.requests}"
    return figures | {"wrote": pilot.wrote}


def _interval(values: tuple[float, float, float], form: str) -> str:
    middle, low, high = (format(value, form) for value in values)
    return f"{middle} ({low} to {high})"
