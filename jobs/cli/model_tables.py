"""Origin, figures, limits, thresholds and sizes of a model in the terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from jobs.cli.display import PLAIN_TABLE, calibration_table, named_values, size_text
from jobs.cli.fitting import Fitted

_TYPES = {"F16": "float16", "F32": "float32", "BF16": "bfloat16", "F64": "float64"}
"""Types of tensors, by their names in safetensors files."""


def facts_tables(facts: dict[str, Any]) -> Group:
    """Return all that is known of a model, and what is not."""
    parts: list[Any] = [facts_table(facts), ""]
    if metrics := facts["metrics"]:
        has_intervals = any(figure["interval"] for figure in metrics["values"].values())
        no_intervals = "" if has_intervals else " The card has no intervals."
        parts += [Text(f"figures: {metrics['measured_on']}.{no_intervals}"), _metrics_table(metrics, has_intervals)]
        parts += [Text(metrics["by_type"])] if metrics["by_type"] else []
    else:
        parts.append("figures: the card has none. Measure the model on labeled pairs with `asap evaluate`.")
    if facts["robustness"]:
        parts += ["", Text("robustness: what the model flags if the pictures are changed."), _robustness_table(facts)]
    if (calibration := facts["policy"]["calibration"]) and calibration.get("thresholds"):
        parts += ["", calibration_table(calibration["thresholds"])]
    return Group(*parts)


def facts_table(facts: dict[str, Any]) -> Fitted:
    """Return origin, limits, thresholds, familiarity and sizes of a model."""
    from jobs.model.facts import familiarity_sentence

    sizes, policy = facts["sizes"], facts["policy"]
    limits = facts["limits"] or {}
    rows = {
        "model": f"{facts['model_id']}, in {facts['folder']}",
        "limits": facts["limits_sentence"],
        "languages": ", ".join(limits.get("languages") or ()) or "not recorded",
        "label set": f"{facts['label_set_title']}: {', '.join(name.replace('_', ' ') for name in facts['types'])}",
        "thresholds": _thresholds(policy, knows_own=facts["familiarity"] is not None),
        "calibrated": _calibrated(policy["calibration"], facts["model_id"]),
        "familiarity": familiarity_sentence(facts),
        "weights": f"{sizes['parameters']:,} parameters, {size_text(sizes['bytes'])} "
        f"({', '.join(_TYPES.get(name, name) for name in sizes['parameters_by_type'])})",
        "picture": f"{sizes['image_side']} x {sizes['image_side']} px",
        "text": f"{sizes['words']} words and {sizes['tokens']} tokens in one pass, {sizes['vocabulary']:,} word pieces",
        "card": facts["card"] or "none",
    }
    return named_values("", rows)


def _thresholds(policy: dict[str, Any], *, knows_own: bool) -> str:
    """Return all thresholds; those that are equal, together. That of familiarity, if the model knows its own pairs."""
    values = {"manipulated": policy["manipulated"], "review": policy["review"]} | policy["types"]
    values["word"] = policy["word"]
    if len(set(values.values())) == 1:
        shown = f"{policy['manipulated']:g} for all"
    else:
        shown = ", ".join(f"{name.replace('_', ' ')} {value:.6g}" for name, value in values.items())
    band = "" if policy["review"] < policy["manipulated"] else "; no review band"
    border = f"; unfamiliar below {policy['unfamiliar']:g}" if knows_own else ""
    return f"{shown}{band}{border} (policy {policy['policy_id']})"


def _calibrated(calibration: dict[str, Any] | None, model_id: str) -> str:
    """Return what the thresholds were calibrated for, and on what."""
    if not calibration:
        return (
            "no. The thresholds promise no precision: where manipulation is rare, most flagged pairs will be wrong. "
            "Choose them with `asap calibrate`."
        )
    known = {key: calibration.get(key, "unknown") for key in ("target_precision", "prevalence", "confidence")}
    text = (
        f"precision {known['target_precision']} at prevalence {known['prevalence']}, confidence {known['confidence']}, "
        f"on {_count(calibration.get('authentic'))} authentic and {_count(calibration.get('manipulated'))} manipulated "
        f"pairs of {calibration.get('corpus', 'an unknown corpus')} ({calibration.get('split', 'unknown split')})"
    )
    theirs = calibration.get("model_id")
    return text if theirs in (None, model_id) else f"{text}, with another model: {theirs}"


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else "an unknown number of"


def _metrics_table(metrics: dict[str, Any], has_intervals: bool) -> Table:
    table = Table(**PLAIN_TABLE)
    for name in ("metric", "value", "95 % interval")[: 3 if has_intervals else 2]:
        table.add_column(name, no_wrap=True, justify="left" if name == "metric" else "right")
    for name, figure in metrics["values"].items():
        low_high = figure["interval"]
        interval = f"{low_high[0]:.3f} to {low_high[1]:.3f}" if low_high else "–"
        table.add_row(name, f"{figure['value']:.3f}", *([interval] if has_intervals else []))
    return table


def _robustness_table(facts: dict[str, Any]) -> Table:
    """Return the first columns of the card's table: the change, the false positives, and their ratio to the unchanged.

    No more fit into 80 columns; the card has the others.
    """
    table = Table(**PLAIN_TABLE)
    names = list(facts["robustness"][0])[:3]
    for name in names:
        table.add_column(name, justify="left" if name == names[0] else "right")
    for row in facts["robustness"]:
        table.add_row(*(row[name] for name in names))
    return table
