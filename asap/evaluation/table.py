"""The table of the DGM4 papers: the figures of an evaluation, their order and names, in percent."""

from __future__ import annotations

from typing import Any, NamedTuple

from asap.labels import IMAGE_TYPES, TEXT_TYPES

_BOX = (("IoUmean", "IoU_mean"), ("IoU50", "IoU50"), ("IoU75", "IoU75"))
_WORDS = (("precision", "token_precision"), ("recall", "token_recall"), ("F1", "token_F1"))
_ROWS = (
    ("real/fake", "", (("AUC", "AUC"), ("EER", "EER"), ("ACC", "ACC")), ""),
    ("types", "", (("mAP", "mAP"), ("CF1", "CF1"), ("OF1", "OF1")), ""),
    ("face box", "as published: all pairs; without a manipulated face, the right answer is no box", _BOX, ""),
    ("face box", "gated: the box counts only if an image type is predicted", _BOX, "_gated"),
    ("face box", "boxed: only pairs with a manipulated face", _BOX, "_boxed"),
    ("words", "corrected alignment: every piece has the label of its word", _WORDS, ""),
    ("words", "published alignment: labels drift after punctuation", _WORDS, "_published"),
)
_CLASS_FIGURES = (
    ("AUC", "AUC"),
    ("ACC", "ACC"),
    ("IoUmean", "IoU_mean_gated"),
    ("IoU50", "IoU50_gated"),
    ("F1", "token_F1"),
)
CLASS_COLUMNS = ("fake_cls", "pairs", *(name for name, _ in _CLASS_FIGURES))


class Row(NamedTuple):
    """The figures of a task under one definition."""

    task: str
    reading: str
    """The definition that the figures follow."""
    figures: list[tuple[str, str]]
    """Names and values."""


def task_rows(report: dict[str, Any]) -> list[Row]:
    """Return the rows of the paper's table from the report of `Evaluation.compute`.

    Two more rows, if the report has them, show the contribution of the pictures to the text types.
    """
    rows = [
        Row(task, reading, [(name, percent(report[key + suffix])) for name, key in figures])
        for task, reading, figures, suffix in _ROWS
    ]
    elsewhere = report.get("AP_elsewhere")
    if elsewhere is None:
        return rows
    # The same texts beside their own picture and beside another's: the difference is what the picture contributes.
    readings = (
        ("own picture: average precision of the text types", report["AP"][len(IMAGE_TYPES) :]),
        ("another pair's picture: the line above minus this one is the contribution of the picture", elsewhere),
    )
    for reading, values in readings:
        figures = [(f"AP {name}", percent(value)) for name, value in zip(TEXT_TYPES, values, strict=True)]
        rows.append(Row("texts", reading, figures))
    return rows


def class_rows(report: dict[str, Any]) -> list[list[str]]:
    """Return the values of `CLASS_COLUMNS` for each class that occurs.

    AUC is measured against the authentic pairs; boxes are gated.
    """
    return [
        [name, f"{figures['pairs']:,}", *(percent(figures[key]) for _, key in _CLASS_FIGURES)]
        for name, figures in report["by_class"].items()
    ]


def percent(value: float | None) -> str:
    """Format a figure in percent, as the papers print it; a dash if it is undefined on the corpus."""
    return "–" if value is None else f"{100 * value:.2f}"
