"""The charts of an evaluation."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

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
    new_figure,
    plot_style,
    render_svg,
    round_ticks,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    Chart = tuple[Figure, str]
    """A figure, and a sentence that sums it up for readers who cannot see it."""

IOU_BINS = 20
_TYPE_COLORS = dict(zip(TYPES, (BLUE, VERMILION, GREEN, PURPLE), strict=True))


def draw_figures(predictions: Predictions) -> dict[str, str]:
    """Return each chart as SVG by its file name; one that these pairs give no data for is left out."""
    charts: dict[str, Callable[[Predictions], Chart | None]] = {
        "roc.svg": roc,
        "precision_recall.svg": precision_recall,
        "iou.svg": iou_histogram,
        "reliability.svg": reliability_diagram,
    }
    drawn = {name: draw(predictions) for name, draw in charts.items()}
    return {name: render_svg(*chart) for name, chart in drawn.items() if chart is not None}


@plot_style()
def roc(predictions: Predictions) -> Chart | None:
    """Draw the ROC curve of real/fake with its AUC, the equal error rate and the threshold of a half.

    None if all pairs are of one class.
    """
    manipulated, metrics = predictions.manipulated, real_fake_metrics(predictions.margin, predictions.manipulated)
    if metrics["AUC"] is None:
        return None
    false_positives, true_positives, _ = roc_curve(manipulated, predictions.margin)
    flagged = predictions.margin > 0
    found = flagged[manipulated].mean()
    figure, (axes,) = new_figure(
        "Real or fake: ROC",
        f"{manipulated.sum():,} manipulated and {(~manipulated).sum():,} authentic pairs",
        "False positive rate",
    )
    axes.set_ylabel("True positive rate")
    axes.plot([0, 1], [0, 1], color=QUIET, linestyle=DASHES[2], linewidth=1.25)
    axes.plot(false_positives, true_positives, color=BLUE, label=f"AUC {_percent(metrics['AUC'])}")
    # The hollow dot comes first: where the two fall together, its rim still shows behind the filled one.
    axes.plot(
        metrics["EER"], 1 - metrics["EER"], "o", color="white", markeredgecolor=INK,
        label=f"equal error rate {_percent(metrics['EER'])}",
    )  # fmt: skip
    axes.plot(
        flagged[~manipulated].mean(), found, "o", color=VERMILION, markeredgecolor="white",
        label=f"threshold 0.5: {_percent(found)} found",
    )  # fmt: skip
    summary = f"The ROC curve has an area of {metrics['AUC']:.4f} and an equal error rate of {metrics['EER']:.4f}."
    return figure, summary


@plot_style()
def precision_recall(predictions: Predictions) -> Chart | None:
    """Draw precision over recall for each type that occurs, as the staircase whose area is the AP.

    None if no pair has a type.
    """
    present = [(number, name) for number, name in enumerate(TYPES) if predictions.types[:, number].any()]
    if not present:
        return None
    figure, (axes,) = new_figure(
        "Manipulation types: precision and recall",
        "In brackets what guessing gives: the share of pairs that have the type",
        "Recall",
    )
    axes.set_ylabel("Precision")
    averages = []
    for number, name in present:
        actual, logits = predictions.types[:, number], predictions.multilabel[:, number]
        precision, recall, _ = precision_recall_curve(actual, logits)
        average, label = _percent(average_precision_score(actual, logits)), name.replace("_", " ")
        averages.append(f"{label} {average}")
        # A precision holds from its own recall down to the next lower one: the area under these steps is the AP.
        axes.plot(
            recall, precision, color=_TYPE_COLORS[name], linestyle=DASHES[number], drawstyle="steps-post",
            label=f"{label}: AP {average} ({_percent(actual.mean())})",
        )  # fmt: skip
    return figure, f"Average precision: {', '.join(averages)}."


@plot_style()
def iou_histogram(predictions: Predictions) -> Chart | None:
    """Draw a histogram of the IoU of pairs with a true box.

    Boxes that are withheld because no image type is flagged are shown separately. None if no pair has a true box.
    """
    overlap, shown = predictions.overlap[predictions.has_box], predictions.flags_a_face[predictions.has_box]
    if not len(overlap):
        return None
    kept, withheld = (np.histogram(overlap[which], IOU_BINS, (0, 1))[0] for which in (shown, ~shown))
    half = _percent((overlap > 0.5).mean())
    figure, (axes,) = new_figure(
        "Face boxes: overlap with the true box",
        f"{len(overlap):,} pairs with a manipulated face; mean {overlap.mean():.3f}, {half} above 0.5, "
        f"{_percent((overlap > 0.75).mean())} above 0.75",
        "IoU",
    )
    middles = (np.arange(IOU_BINS) + 0.5) / IOU_BINS
    axes.bar(middles, kept, 0.88 / IOU_BINS, color=BLUE, label="image type predicted, box shown")
    axes.bar(middles, withheld, 0.88 / IOU_BINS, kept, color=SKY, label="none predicted, box withheld (gated)")
    _count_pairs(axes, (kept + withheld).max(), steps=5)
    for threshold in (0.5, 0.75):
        axes.axvline(threshold, color=INK, linestyle=DASHES[1], linewidth=1.25)
    return figure, f"Histogram of the IoU of {len(overlap)} boxes; {half} are above 0.5."


@plot_style()
def reliability_diagram(predictions: Predictions) -> Chart:
    """Draw the share of manipulated pairs in each bin of the score, with 95 % intervals, above the size of the bin."""
    bins = reliability(expit(predictions.margin.astype(np.float64)), predictions.manipulated)
    held = bins.counts > 0
    figure, (shares, counts) = new_figure(
        "Does a score mean what it says?",
        f"Expected calibration error {_percent(bins.ece)} over {len(held)} bins, Brier score {bins.brier:.3f}; "
        f"{_percent(predictions.manipulated.mean())} manipulated",
        "Score (probability of manipulated)",
        heights=(3, 1),
    )
    shares.set_ylabel("Share manipulated")
    shares.plot([0, 1], [0, 1], color=QUIET, linestyle=DASHES[1], linewidth=1.5, label="a score that does")
    shares.vlines(bins.mean_score[held], bins.low[held], bins.high[held], color=VERMILION, linewidth=1.5)
    shares.plot(
        bins.mean_score[held], bins.share[held], "o", color=VERMILION, markeredgecolor="white", zorder=3,
        label="share manipulated, 95 % interval",
    )  # fmt: skip
    counts.bar((np.arange(len(held)) + 0.5) / len(held), bins.counts, 0.88 / len(held), color=SKY)
    _count_pairs(counts, bins.counts.max(), steps=2)
    return figure, f"Reliability diagram with an expected calibration error of {bins.ece:.4f}."


def _count_pairs(axes: Axes, highest: int, steps: int) -> None:
    """Let the y axis count pairs, from 0 to a round number at or above the highest count."""
    ticks = round_ticks(highest, steps)
    axes.set(ylabel="Pairs", ylim=(0, ticks[-1]), yticks=ticks)
    axes.yaxis.set_major_formatter("{x:,.0f}")


def _percent(share: float | NDArray[np.floating]) -> str:
    return f"{100 * float(share):.1f} %"
