"""The table of the DGM4 papers: the figures of an evaluation, their order and names, in percent."""

from __future__ import annotations

from typing import Any, NamedTuple

from asap.labels import TEXT_TYPES

_BOX = (("IoUmean", "IoU_mean"), ("IoU50", "IoU50"), ("IoU75", "IoU75"))
_WORDS = (("precision", "token_precision"), ("recall", "token_recall"), ("F1", "token_F1"))
_ROWS = (
    ("real/fake", "", (("AUC", "AUC"), ("EER", "EER"), ("ACC", "ACC")), ""),
    ("types", "", (("mAP", "mAP"), ("CF1", "CF1"), ("OF1", "OF1")), ""),
    ("face box", "as published: all pairs; without a manipulated face, the right answer is no box", _BOX, ""),
    ("face box", "gated: the box counts only if an image type is predicted", _BOX, "_gated"),
    ("face box", "boxed: only pairs with a manipulated face", _BOX, "_boxed"),
    ("words", "corrected alignment: every piece has the label of its word", _WORDS, ""),
    ("words", "manipulated texts: the same, without the authentic texts", _WORDS, "_manipulated"),
    ("words", "published alignment: labels drift after punctuation", _WORDS, "_published"),
)
_COVERED = (("AUC", "AUC_covered"), ("coverage", "coverage"), ("ACC", "ACC_covered"))
_CLASS_FIGURES = (
    ("AUC", "AUC"),
    ("ACC", "ACC"),
    ("IoUmean", "IoU_mean_gated"),
    ("IoU50", "IoU50_gated"),
    ("F1", "token_F1"),
)
CLASS_COLUMNS = ("fake_cls", "pairs", *(name for name, _ in _CLASS_FIGURES))

LEGEND = (
    ("AUC", "the chance that a manipulated pair gets a higher score than an authentic one; 50 is guessing"),
    ("EER", "the share of wrong verdicts at the threshold where both kinds of error are equally frequent"),
    ("ACC", "the share of pairs whose verdict is right, if every score from 0.5 up is called manipulated"),
    ("AP, mAP", "average precision: how well a type is ranked, for all thresholds; mAP is the mean over the types"),
    ("CF1, OF1", "F1 of the types: the mean over the types, and over all decisions together"),
    (
        "IoU",
        "the overlap of the reported face box with the true one, from 0 to 100; IoU50 counts overlaps of 50 or more",
    ),
    ("precision", "of the words that the model marks, the share that was manipulated"),
    ("recall", "of the words that were manipulated, the share that the model marks"),
    ("F1", "precision and recall in one number, which is high only if both are"),
    (
        "words of all texts",
        "all words count together: a word of an authentic text that is marked lowers precision and F1",
    ),
    ("95 % interval", "in such a range the figure would lie, for other news items of the same kind, 95 times of 100"),
    ("coverage", "the share of pairs that the model judges; the others look like nothing that it was made from"),
)
"""The meaning of each figure, in one line."""


class Row(NamedTuple):
    """The figures of a task under one definition."""

    task: str
    reading: str
    """The definition that the figures follow."""
    figures: list[tuple[str, str]]
    """Names and values."""
    intervals: tuple[str, ...] = ()
    """The interval of each figure; empty if the report has none."""


def task_rows(report: dict[str, Any]) -> list[Row]:
    """Return the rows of the paper's table from the report of `Evaluation.compute`.

    Two more rows, if the report has them, show the contribution of the pictures to the text types, and another one the
    pairs that the policy judges.
    """
    limits = report.get("intervals", {}).get("figures", {})
    rows = [
        Row(
            task,
            reading,
            [(name, percent(report[key + suffix])) for name, key in figures],
            tuple(interval(limits.get(key + suffix)) for _, key in figures) if limits else (),
        )
        for task, reading, figures, suffix in _ROWS
    ]
    if report.get("coverage") is not None:
        figures = [(name, percent(report[key])) for name, key in _COVERED]
        rows.insert(1, Row("real/fake", "judged: only the pairs that are familiar enough to the model", figures))
    elsewhere = report.get("AP_elsewhere")
    if elsewhere is None:
        return rows
    # The same texts beside their own picture and beside another's: the difference is what the picture contributes.
    readings = (
        ("own picture: average precision of the text types", "AP"),
        ("another pair's picture: the line above minus this one is the contribution of the picture", "AP_elsewhere"),
    )
    for reading, key in readings:
        values = report[key][-len(TEXT_TYPES) :]
        figures = [(f"AP {name}", percent(value)) for name, value in zip(TEXT_TYPES, values, strict=True)]
        ranges = tuple(map(interval, limits[key][-len(TEXT_TYPES) :])) if key in limits else ()
        rows.append(Row("texts", reading, figures, ranges))
    return rows


def class_rows(report: dict[str, Any]) -> list[list[str]]:
    """Return the values of `CLASS_COLUMNS` for each class that occurs.

    AUC is measured against the authentic pairs; boxes are gated.
    """
    return [
        [name, f"{figures['pairs']:,}", *(percent(figures[key]) for _, key in _CLASS_FIGURES)]
        for name, figures in report["by_class"].items()
    ]


def interval(limits: list[float] | None) -> str:
    """Format an interval in percent; a dash if there is none."""
    return "–" if limits is None else f"{percent(limits[0])} to {percent(limits[1])}"


def intervals_sentence(report: dict[str, Any]) -> str:
    """Return how the intervals were made, in one sentence; empty if the report has none."""
    made = report.get("intervals")
    if not made:
        return ""
    if made["items"] < 2:
        return "There are no intervals: all pairs are of one news item."
    return (
        f"{100 * made['confidence']:g} % intervals: {made['method']}; {made['resamples']:,} resamples of "
        f"{made['items']:,} items, seed {made['seed']}."
    )


def words_sentence(report: dict[str, Any]) -> str:
    """Return how many pairs the figures of words are over, in one sentence; empty if they are over all pairs."""
    pairs, labeled = report["pairs"], report.get("word_labeled_pairs")  # reports of earlier versions lack it
    if labeled is None or labeled == pairs:
        return ""
    if not labeled:
        return "There are no figures of words: the corpus has no word positions (fake_text_pos)."
    return (
        f"The figures of words are over {labeled:,} of {pairs:,} pairs. The other texts are manipulated, but the "
        "corpus does not say in which words."
    )


def percent(value: float | None) -> str:
    """Format a figure in percent, as the papers print it; a dash if it is undefined on the corpus."""
    return "–" if value is None else f"{100 * value:.2f}"
