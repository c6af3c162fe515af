"""The charts of an evaluation."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.container import BarContainer
from matplotlib.lines import Line2D
from sklearn.metrics import auc

from asap.evaluation.metrics import Predictions
from asap.labels import TYPES, types_of
from asap.training.targets import CLASSES
from jobs.evaluate.charts import draw_figures, iou_histogram, precision_recall, reliability_diagram, roc
from jobs.pages.plot import render_svg


def predictions(*classes: str, right: float = 1.0, seed: int = 0) -> Predictions:
    """Return pairs of the classes, with scores that favor the truth by `right`."""
    stream = np.random.default_rng(seed)
    types = np.array([[name in types_of(cls) for name in TYPES] for cls in classes])
    has_box = types[:, :2].any(axis=1)
    truth = np.where(types.any(axis=1), right, -right)
    boxes = np.tile(np.array([0.5, 0.5, 0.4, 0.4]), (len(classes), 1)) * has_box[:, None]
    shift = stream.uniform(0, 0.2, (len(classes), 1)) * np.array([1, 0, 0, 0])
    tokens = np.zeros((len(classes), 4), np.int64)
    return Predictions(
        margin=(truth + stream.normal(size=len(classes))).astype(np.float32),
        multilabel=(np.where(types, right, -right) + stream.normal(size=types.shape)).astype(np.float32),
        types=types, box=(boxes + shift).astype(np.float32), box_true=boxes.astype(np.float32),
        tokens=tokens, tokens_published=tokens, text_types_elsewhere=np.full((len(classes), 2), np.nan, np.float32),
        fake_cls=np.array(classes, object), familiarity=np.full(len(classes), np.nan),
        items=np.zeros((len(classes), 2), np.uint64),
    )  # fmt: skip


@pytest.fixture
def mixed() -> Predictions:
    return predictions(*CLASSES * 30)


def curves(axes: Axes) -> list[Line2D]:
    """Return the lines of a panel that the legend names, without the dots."""
    return [line for line in axes.get_lines() if label(line) and line.get_marker() == "None"]


def dots(axes: Axes) -> list[Line2D]:
    return [line for line in axes.get_lines() if line.get_marker() == "o"]


def label(artist: Artist | BarContainer) -> str:
    """Return the label in the legend; matplotlib's own names for the others begin with an underscore."""
    text = str(artist.get_label())
    return "" if text.startswith("_") else text


def heights(bars: BarContainer) -> np.ndarray:
    return np.array([bar.get_height() for bar in bars])


def test_the_roc_curve_has_the_area_of_its_label(mixed):
    figure, _ = roc(mixed)
    (curve,) = curves(figure.axes[0])
    assert label(curve) == f"AUC {100 * auc(*curve.get_data()):.1f} %"
    assert curve.get_xydata()[0].tolist() == [0, 0]
    assert curve.get_xydata()[-1].tolist() == [1, 1]


def test_the_equal_error_and_the_threshold_lie_on_the_roc_curve(mixed):
    figure, _ = roc(mixed)
    (curve,) = curves(figure.axes[0])
    along = np.arange(0, len(curve.get_xydata()) - 1, 0.001)
    positions = [np.interp(along, range(len(column)), column) for column in curve.get_data()]
    marks = dots(figure.axes[0])
    assert [label(mark).partition(" ")[0] for mark in marks] == ["equal", "threshold"]
    for mark in marks:
        assert np.abs(np.stack(positions, 1) - mark.get_xydata()).sum(axis=1).min() < 1e-3, label(mark)


def test_each_type_has_a_staircase_of_its_average_precision(mixed):
    figure, summary = precision_recall(mixed)
    marks = curves(figure.axes[0])
    assert [label(mark).partition(":")[0] for mark in marks] == [name.replace("_", " ") for name in TYPES]
    assert len({mark.get_color() for mark in marks}) == 4
    dashes = re.findall(r"stroke-dasharray: ([^;]+)", render_svg(figure, summary))
    assert len(set(dashes)) == 3, "and one curve is solid"
    assert len(dashes) == 6, "each curve and its key"
    for mark in marks:
        recall, precision = mark.get_data()
        assert mark.get_drawstyle() == "steps-post", "a precision holds from its recall down to the next"
        area = float((-np.diff(recall) * precision[:-1]).sum())
        assert f"AP {100 * area:.1f} %" in label(mark)


def test_a_type_that_does_not_occur_has_no_curve():
    figure, _ = precision_recall(predictions("orig", "face_swap", "text_swap"))
    assert len(curves(figure.axes[0])) == 2
    assert precision_recall(predictions("orig", "orig")) is None


def test_the_iou_histogram_counts_the_pairs_with_a_face_and_separates_the_gated(mixed):
    figure, _ = iou_histogram(mixed)
    kept, withheld = figure.axes[0].containers
    shown = mixed.has_box & mixed.flags_a_face
    assert heights(kept).sum() == shown.sum() > 0
    assert heights(withheld).sum() == (mixed.has_box & ~mixed.flags_a_face).sum() > 0
    assert [bar.get_y() for bar in withheld] == heights(kept).tolist(), "stacked"
    assert [bar.get_x() for bar in withheld] == [bar.get_x() for bar in kept]
    above = (mixed.overlap[shown] > 0.5).sum()
    assert heights(kept)[10:].sum() == above


def test_the_bars_share_the_axis_evenly(mixed):
    for figure in (iou_histogram(mixed)[0], reliability_diagram(mixed)[0]):
        axes = figure.axes[-1]
        for bars in axes.containers:
            edges = [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in bars]
            gaps = np.diff(edges, axis=1)
            assert np.allclose([sum(edge) / 2 for edge in edges], (np.arange(len(bars)) + 0.5) / len(bars))
            assert np.allclose(gaps, 0.88 / len(bars))
            assert axes.get_xlim() == (0, 1)


@pytest.mark.parametrize("pairs", [1, 3, 7, 40, 999, 12_345])
def test_the_count_axis_ends_above_the_tallest_bar_in_few_round_steps(pairs):
    figure, _ = reliability_diagram(predictions(*["orig"] * pairs, right=30))
    ticks, (low, high) = figure.axes[1].get_yticks(), figure.axes[1].get_ylim()
    assert low == 0
    assert high >= pairs
    assert 2 <= len(ticks) <= 4
    assert ticks[-1] == high
    assert high < 3 * pairs + 1


def test_the_reliability_diagram_has_a_dot_for_each_bin_that_holds_a_pair(mixed):
    figure, _ = reliability_diagram(mixed)
    upper, lower = figure.axes
    (mark,) = dots(upper)
    (bars,) = lower.containers
    (whiskers,) = upper.collections
    assert heights(bars).sum() == len(mixed.margin)
    assert len(mark.get_xydata()) == (heights(bars) > 0).sum() == len(whiskers.get_segments())
    for (x, y), ((x_low, low), (x_high, high)) in zip(mark.get_xydata(), whiskers.get_segments(), strict=True):
        assert x == x_low == x_high
        assert low <= y <= high


def test_every_chart_is_an_svg_file(mixed):
    charts = draw_figures(mixed)
    assert list(charts) == ["roc.svg", "precision_recall.svg", "iou.svg", "reliability.svg"]
    for svg in charts.values():
        assert ElementTree.fromstring(svg).tag.endswith("svg")  # noqa: S314  # our own
        assert "nan" not in svg


@pytest.mark.parametrize(
    ("classes", "left"),
    [
        (["orig"], ["reliability.svg"]),
        (["orig", "text_swap"], ["roc.svg", "precision_recall.svg", "reliability.svg"]),
        (["face_swap"], ["precision_recall.svg", "iou.svg", "reliability.svg"]),
    ],
)
def test_a_chart_without_data_is_left_out(classes, left):
    assert list(draw_figures(predictions(*classes))) == left
