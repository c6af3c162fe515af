"""Tables of what a scan would read and take, for `asap plan`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Group as Lines
from rich.table import Table
from rich.text import Text

from jobs.cli.display import PLAIN_TABLE, named_values
from jobs.cli.fitting import Fitted
from jobs.scan.look import line_of, notes_of

if TYPE_CHECKING:
    from jobs.scan.look import Group, Look
    from jobs.scan.pilot import Forecast, Pilot

_TEXT_SHOWN = 160
_SHORT_ITEM = 40
"""Characters of the items of a list that stands on one line."""


def look_tables(look: Look) -> Lines:
    """Return the findings of a look: what was understood, counts, the first pairs, and problems."""
    described = _described(look.source) | {"notes": "\n".join(notes_of(look.source))}
    parts: list[Any] = [named_values("input", {name: text for name, text in described.items() if text}), ""]
    parts += [named_values("pairs", _counts(look)), ""]
    first = Table(title="first pairs, as a scan takes them", **PLAIN_TABLE)
    for name in ("id", "image", "text"):
        first.add_column(name, overflow="fold")
    for pair in look.first:
        text = f"error: {pair['error']}" if "error" in pair else pair["text"] or "(none)"
        first.add_row(
            *(Text(str(value)) for value in (pair["id"] or "(none)", pair["image"] or "(none)", _short(text)))
        )
    parts += [Fitted(first, wraps=("text",)), ""]
    problems = {
        "rows that cannot be understood": look.invalid,
        "rows with a warning": look.warnings,
        "sampled pairs that would fail, besides those": {
            code: group for code, group in look.failures.items() if code != "row_invalid"
        },
        "sampled pictures with a warning": look.picture_warnings,
    }
    for title, groups in problems.items():
        if groups:
            parts += [_groups(title, groups), ""]
    return Lines(*parts)


def pilot_tables(pilot: Pilot, forecast: Forecast, *, is_whole: bool) -> Lines:
    """Return the figures of a pilot, and the forecast for the whole input.

    Args:
        pilot: The pilot.
        forecast: What follows from it.
        is_whole: False if the input has more rows than were counted, so that the forecast is a lower bound.
    """
    from jobs.train.plan import shown_hours

    verdicts = ", ".join(f"{count:,} {verdict}" for verdict, count in sorted(pilot.verdicts.items()))
    figures = {
        "judged": f"{pilot.pairs - pilot.failed:,} of {pilot.pairs:,} pairs: {verdicts}",
        f"a detector on {pilot.device}": _between(pilot.pairs_per_s, "{:,.3g}") + " pairs/s",
        "CPU of a pair": f"{_milliseconds(pilot.prepare_cpu_s)} to prepare it, {_milliseconds(pilot.detect_cpu_s)} in "
        "the detector",
    }
    fleet, least = forecast.fleet, "" if is_whole else "at least "
    machine = f"{fleet.cpus} CPUs" + (f" and {fleet.gpus} GPUs" if fleet.gpus else "")
    whole = {
        "rows": f"{least}{forecast.rows:,}",
        "machines": f"{fleet.machines:,} with {machine} each; the {forecast.bound.upper()}s decide",
        "hours": least + "{} ({} to {})".format(*map(shown_hours, forecast.hours)),
    }
    if forecast.cpus_per_gpu is not None:
        whole["CPUs for one GPU"] = f"{forecast.cpus_per_gpu:.1f}"
    if forecast.gets:
        whole["GET requests"] = f"{least}{forecast.gets:,}"
    if forecast.price is not None:
        whole["price"] = least + _between(forecast.price, "{:,.2f}" if forecast.price[0] >= 1 else "{:.2g}")
    note = "The ends of an interval are two standard errors away. Captions, and starts of machines, are not in it."
    return Lines(
        named_values("pilot", figures), "", named_values("the whole input", whole), Text(note, style="dim"), ""
    )


def _between(values: tuple[float, float, float], form: str) -> str:
    middle, low, high = (form.format(value) for value in values)
    return f"{middle} ({low} to {high})"


def _milliseconds(seconds: tuple[float, float, float]) -> str:
    return f"{seconds[0] * 1000:,.3g} ms"


def _described(source: Mapping[str, Any]) -> dict[str, str]:
    """Return the entries of a description that say something, as lines for a person; those of the first table too."""
    lines: dict[str, str] = {}
    for name, value in source.items():
        if name == "tables":
            lines |= _described(value[0]) if value else {}
        elif shown := _shown(value):
            lines[name.replace("_", " ")] = shown
    return lines


def _shown(value: Any) -> str:
    """Return a value for a person; an empty text for one that says nothing: null, false, zero or empty."""
    if not value:
        return ""
    if isinstance(value, Mapping):
        items = ((str(name).replace("_", " "), _shown(item)) for name, item in value.items())
        return "; ".join(f"{name} {item}" for name, item in items if item)
    if isinstance(value, list):
        separator = "\n" if any(len(str(item)) > _SHORT_ITEM for item in value) else ", "
        return separator.join(map(_shown, value))
    if isinstance(value, bool):
        return "yes"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _counts(look: Look) -> dict[str, str]:
    least = "" if look.is_whole else "at least "
    counts = {
        "rows": look.rows,
        "not understood": sum(group.count for group in look.invalid.values()),
        "without a text": look.without_text,
        "without a picture": look.without_image,
        "repeated ids": look.repeated_ids,
        "repeated pictures": look.repeated_images,
        "repeated pairs": look.repeated_pairs,
    }
    lines = {name: f"{least}{count:,}" for name, count in counts.items() if count or name == "rows"}
    lines["sample"] = f"{look.sampled - look.failed:,} of {look.sampled:,} pairs can be read"
    if look.widths:
        lines["pictures"] = (
            f"{min(look.widths):,} to {max(look.widths):,} pixels wide, {min(look.heights):,} to "
            f"{max(look.heights):,} high"
        )
    return lines


def _groups(title: str, groups: dict[str, Group]) -> Fitted:
    table = Table(title=title, **PLAIN_TABLE)
    table.add_column("rows", justify="right")
    table.add_column("first lines", overflow="fold")
    table.add_column("example", overflow="fold")
    for name, group in groups.items():
        lines = ", ".join(_line(row_id) for row_id in sorted(group.row_ids))
        code = f"{name}: " if name.replace("_", "").isalpha() else ""
        table.add_row(f"{group.count:,}", lines, Text(code + _short(group.example)))
    return Fitted(table, wraps=("example",))


def _line(row_id: int) -> str:
    position = line_of(row_id)
    return f"{position['line']:,}" + (f" of part {position['part']}" if "part" in position else "")


def _short(text: str) -> str:
    return text if len(text) <= _TEXT_SHOWN else text[:_TEXT_SHOWN] + "…"
