"""The pictures of an evaluation: what its figures are the summary of."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_curve

from asap.evaluation.metrics import Predictions, real_fake_metrics
from asap.evaluation.reliability import reliability
from asap.labels import TYPES
from jobs.pages.plot import (
    BLUE,
    DASHES,
    GREEN,
    INK,
    PURPLE,
    QUIET,
    SKY,
    VERMILION,
    Axis,
    Bars,
    Dots,
    Line,
    Panel,
    Plot,
    Points,
)

IOU_BINS = 20
_DIAGONAL = np.array([[0.0, 0.0], [1.0, 1.0]])
_TYPE_COLOURS = dict(zip(TYPES, (BLUE, VERMILION, GREEN, PURPLE), strict=True))


def draw_figures(predictions: Predictions) -> dict[str, str]:
    """Each picture by its file name, as SVG; one that the pairs cannot tell anything for is left out."""
    figures: dict[str, Callable[[Predictions], Plot | None]] = {
        "roc.svg": roc,
        "precision_recall.svg": precision_recall,
        "iou.svg": iou_histogram,
        "reliability.svg": reliability_diagram,
    }
    plots = {name: draw(predictions) for name, draw in figures.items()}
    return {name: plot.svg() for name, plot in plots.items() if plot is not None}


def roc(predictions: Predictions) -> Plot | None:
    """Real/fake: the ROC polyline, its AUC, the equal error rate and the threshold of a half. None of one class."""
    manipulated, figures = predictions.manipulated, real_fake_metrics(predictions.margin, predictions.manipulated)
    if figures["AUC"] is None:
        return None
    false_positives, true_positives, _ = roc_curve(manipulated, predictions.margin)
    flagged = predictions.margin > 0
    half = np.array([[flagged[~manipulated].mean(), flagged[manipulated].mean()]])
    equal = np.array([[figures["EER"], 1 - figures["EER"]]])
    return Plot(
        title="Real or fake: ROC",
        note=f"{manipulated.sum():,} manipulated and {(~manipulated).sum():,} authentic pairs",
        x=Axis("False positive rate"),
        panels=[
            Panel(
                Axis("True positive rate"),
                [
                    Line(_DIAGONAL, QUIET, dash=DASHES[2], width=1.25),
                    Line(np.stack([false_positives, true_positives], 1), BLUE, f"AUC {_percent(figures['AUC'])}"),
                    Dots(equal, INK, f"equal error rate {_percent(figures['EER'])}", hollow=True),
                    Dots(half, VERMILION, f"threshold 0.5: {_percent(half[0, 1])} found"),
                ],
            )
        ],
        summary=f"The ROC curve has an area of {figures['AUC']:.4f} and an equal error rate of {figures['EER']:.4f}.",
    )


def precision_recall(predictions: Predictions) -> Plot | None:
    """Each type that occurs: precision over recall as the staircase whose area is the AP."""
    marks, told = [], []
    for number, name in enumerate(TYPES):
        actual, logits = predictions.types[:, number], predictions.multilabel[:, number]
        if not actual.any():
            continue
        precision, recall, _ = precision_recall_curve(actual, logits)
        average = float(average_precision_score(actual, logits))
        spoken, share = name.replace("_", " "), float(actual.mean())
        told.append(f"{spoken} {_percent(average)}")
        label = f"{spoken}: AP {_percent(average)} ({_percent(share)})"
        # From full recall down, a precision holds until the next lower recall.
        points = np.stack([recall, precision], 1)[::-1]
        marks.append(Line(_held_back(points), _TYPE_COLOURS[name], label, DASHES[number]))
    if not marks:
        return None
    return Plot(
        title="Manipulation types: precision and recall",
        note="In brackets what guessing gives: the share of pairs that have the type",
        x=Axis("Recall"),
        panels=[Panel(Axis("Precision"), marks)],
        summary=f"Average precision: {', '.join(told)}.",
    )


def _held_back(points: Points) -> Points:
    """Points of a staircase whose value holds from the point before, not to the next one."""
    corners = np.repeat(points, 2, axis=0)
    return np.stack([corners[:-1, 0], corners[1:, 1]], axis=1)


def iou_histogram(predictions: Predictions) -> Plot | None:
    """Pairs with a true box by the IoU of the predicted one, those apart that no image type would show."""
    overlap, shown = predictions.overlap[predictions.has_box], predictions.flags_a_face[predictions.has_box]
    if not len(overlap):
        return None
    kept, withheld = (np.histogram(overlap[which], IOU_BINS, (0, 1))[0].astype(float) for which in (shown, ~shown))
    y = _count_axis("Pairs", float((kept + withheld).max()))
    half = float((overlap > 0.5).mean())
    return Plot(
        title="Face boxes: overlap with the true box",
        note=f"{len(overlap):,} pairs with a manipulated face; mean {overlap.mean():.3f}, {_percent(half)} above 0.5, "
        f"{_percent((overlap > 0.75).mean())} above 0.75",
        x=Axis("IoU"),
        panels=[
            Panel(
                y,
                [
                    Bars(kept, BLUE, "image type predicted, box shown"),
                    Bars(withheld, SKY, "none predicted, box withheld (gated)", base=kept),
                    *(Line(np.array([[x, 0], [x, y.high]]), INK, dash=DASHES[1], width=1.25) for x in (0.5, 0.75)),
                ],
            )
        ],
        summary=f"Histogram of the IoU of {len(overlap)} boxes; {_percent(half)} are above 0.5.",
    )


def reliability_diagram(predictions: Predictions) -> Plot:
    """The share of manipulated pairs in each bin of the score, with 95 % intervals, over how many pairs it holds."""
    found = reliability(expit(predictions.margin.astype(np.float64)), predictions.manipulated)
    held = found.counts > 0
    dots = Dots(
        np.stack([found.mean_score[held], found.share[held]], 1), VERMILION,
        "share manipulated, 95 % interval", found.low[held], found.high[held],
    )  # fmt: skip
    return Plot(
        title="Does a score mean what it says?",
        note=f"Expected calibration error {_percent(found.ece)} over {len(held)} bins, Brier score {found.brier:.3f}; "
        f"{_percent(float(predictions.manipulated.mean()))} manipulated",
        x=Axis("Score (probability of manipulated)"),
        panels=[
            Panel(
                Axis("Share manipulated"),
                [Line(_DIAGONAL, QUIET, "a score that does", dash=DASHES[1], width=1.5), dots],
                share=3,
            ),
            Panel(_count_axis("Pairs", float(found.counts.max()), few=True), [Bars(found.counts.astype(float), SKY)]),
        ],
        summary=f"Reliability diagram with an expected calibration error of {found.ece:.4f}.",
    )


def _count_axis(label: str, highest: float, few: bool = False) -> Axis:
    """From 0 to a round number at or above the highest count."""
    step = _round_step(highest / (2 if few else 5))
    ticks = np.arange(0, highest + step, step)
    ticks = ticks[: int(np.searchsorted(ticks, highest)) + 1]
    return Axis(label, float(ticks[-1]), ticks.tolist(), "{:,.0f}".format)


def _round_step(least: float) -> float:
    """The smallest whole 1, 2 or 5 times a power of ten that is at least so much."""
    power = 10.0 ** np.floor(np.log10(max(least, 1)))
    return float(next(n * power for n in (1, 2, 5, 10) if n * power >= least))


def _percent(share: float | NDArray[np.floating]) -> str:
    return f"{100 * float(share):.1f} %"
