"""The table of the DGM4 papers: which figures of an evaluation, in which order, under which names; in percent."""

from __future__ import annotations

from typing import Any, NamedTuple

from asap.labels import IMAGE_TYPES, TEXT_TYPES

_BOX = (("IoUmean", "IoU_mean"), ("IoU50", "IoU50"), ("IoU75", "IoU75"))
_WORDS = (("precision", "token_precision"), ("recall", "token_recall"), ("F1", "token_F1"))
_ROWS = (
    ("real/fake", "", (("AUC", "AUC"), ("EER", "EER"), ("ACC", "ACC")), ""),
    ("types", "", (("mAP", "mAP"), ("CF1", "CF1"), ("OF1", "OF1")), ""),
    ("face box", "as published: every pair, with no box the truth where no face was touched", _BOX, ""),
    ("face box", "gated: the box is taken back where no image type is predicted", _BOX, "_gated"),
    ("face box", "boxed: pairs with a manipulated face only", _BOX, "_boxed"),
    ("words", "corrected alignment: every piece has the label of its word", _WORDS, ""),
    ("words", "published alignment: labels drift behind punctuation", _WORDS, "_published"),
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
    """A task under one reading of its figures."""

    task: str
    reading: str
    figures: list[tuple[str, str]]
    """Name and value."""


def task_rows(report: dict[str, Any]) -> list[Row]:
    """The rows of the paper's table, from what `Evaluation.compute` says, and what the pictures do."""
    rows = [
        Row(task, reading, [(name, percent(report[key + suffix])) for name, key in figures])
        for task, reading, figures, suffix in _ROWS
    ]
    return [*rows, *_text_type_rows(report)]


def _text_type_rows(report: dict[str, Any]) -> list[Row]:
    """Whether a text is judged with its picture: AP of the text types, and of texts beside another's picture."""
    elsewhere = report.get("AP_elsewhere")
    if elsewhere is None:
        return []
    readings = (
        ("own picture: average precision of the text types", report["AP"][len(IMAGE_TYPES) :]),
        ("another pair's picture: what it lies below the line above is what pictures tell", elsewhere),
    )
    return [
        Row("texts", reading, [(f"AP {name}", percent(value)) for name, value in zip(TEXT_TYPES, values, strict=True)])
        for reading, values in readings
    ]


def class_rows(report: dict[str, Any]) -> list[list[str]]:
    """`CLASS_COLUMNS` for each class that occurs. AUC against the authentic pairs; boxes gated."""
    return [
        [name, f"{figures['pairs']:,}", *(percent(figures[key]) for _, key in _CLASS_FIGURES)]
        for name, figures in report["by_class"].items()
    ]


def percent(value: float | None) -> str:
    """As the papers print it; a dash for what the corpus cannot tell."""
    return "–" if value is None else f"{100 * value:.2f}"
