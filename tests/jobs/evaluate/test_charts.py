"""The pictures of an evaluation."""

from xml.etree import ElementTree

import numpy as np
import pytest
from sklearn.metrics import auc

from asap.evaluation.metrics import Predictions
from asap.labels import TYPES, types_of
from asap.training.targets import CLASSES
from jobs.evaluate.charts import draw_figures, iou_histogram, precision_recall, reliability_diagram, roc
from jobs.pages.plot import Bars, Dots, Line


def predictions(*classes: str, right: float = 1.0, seed: int = 0) -> Predictions:
    """Pairs of the classes; scores that favour the truth by `right`."""
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
        fake_cls=np.array(classes, object),
    )  # fmt: skip


@pytest.fixture
def mixed() -> Predictions:
    return predictions(*CLASSES * 30)


def lines(plot, colour=None):
    return [
        mark
        for panel in plot.panels
        for mark in panel.marks
        if isinstance(mark, Line) and mark.colour == (colour or mark.colour)
    ]


def test_the_roc_curve_has_the_area_that_it_says(mixed):
    plot = roc(mixed)
    (curve,) = [line for line in lines(plot) if line.label]
    area = auc(curve.points[:, 0], curve.points[:, 1])
    assert curve.label == f"AUC {100 * area:.1f} %"
    assert curve.points[0].tolist() == [0, 0]
    assert curve.points[-1].tolist() == [1, 1]


def test_the_equal_error_and_the_threshold_lie_on_the_roc_curve(mixed):
    plot = roc(mixed)
    (curve,) = [line for line in lines(plot) if line.label]
    along = np.arange(0, len(curve.points) - 1, 0.001)
    places = np.stack([np.interp(along, range(len(curve.points)), column) for column in curve.points.T], axis=1)
    dots = [mark for mark in plot.panels[0].marks if isinstance(mark, Dots)]
    assert len(dots) == 2
    for mark in dots:
        assert np.abs(places - mark.points).sum(axis=1).min() < 1e-3, mark.label


def test_each_type_has_a_staircase_of_its_average_precision(mixed):
    marks = lines(precision_recall(mixed))
    assert [mark.label.partition(":")[0] for mark in marks] == [name.replace("_", " ") for name in TYPES]
    assert len({mark.colour for mark in marks}) == len({mark.dash for mark in marks}) == 4
    for mark in marks:
        widths = np.diff(mark.points[:, 0])
        area = float((widths * mark.points[1:, 1]).sum())
        assert f"AP {100 * area:.1f} %" in mark.label


def test_a_type_that_does_not_occur_has_no_curve():
    assert len(lines(precision_recall(predictions("orig", "face_swap", "text_swap")))) == 2
    assert precision_recall(predictions("orig", "orig")) is None


def test_the_iou_histogram_counts_the_pairs_with_a_face_and_tells_the_gated_apart(mixed):
    kept, withheld = (mark for mark in iou_histogram(mixed).panels[0].marks if isinstance(mark, Bars))
    shown = mixed.has_box & mixed.flags_a_face
    assert kept.heights.sum() == shown.sum() > 0
    assert withheld.heights.sum() == (mixed.has_box & ~mixed.flags_a_face).sum() > 0
    assert (withheld.base == kept.heights).all()
    above = (mixed.overlap[shown] > 0.5).sum()
    assert kept.heights[10:].sum() == above


@pytest.mark.parametrize("pairs", [1, 3, 7, 40, 999, 12_345])
def test_the_count_axis_ends_above_the_tallest_bar_in_few_round_steps(pairs):
    axis = reliability_diagram(predictions(*["orig"] * pairs, right=30)).panels[1].y
    assert axis.high >= pairs
    assert 2 <= len(axis.ticks) <= 4
    assert axis.ticks[-1] == axis.high
    assert axis.high < 3 * pairs + 1


def test_the_reliability_diagram_has_a_dot_for_each_bin_that_holds_a_pair(mixed):
    upper, lower = reliability_diagram(mixed).panels
    (dots,) = [mark for mark in upper.marks if isinstance(mark, Dots)]
    (bars,) = lower.marks
    assert bars.heights.sum() == len(mixed.margin)
    assert len(dots.points) == (bars.heights > 0).sum()
    assert (dots.low <= dots.points[:, 1]).all()
    assert (dots.high >= dots.points[:, 1]).all()


def test_every_picture_is_an_svg_of_its_own(mixed):
    pictures = draw_figures(mixed)
    assert list(pictures) == ["roc.svg", "precision_recall.svg", "iou.svg", "reliability.svg"]
    for svg in pictures.values():
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
def test_a_picture_that_the_pairs_cannot_tell_is_left_out(classes, left):
    assert list(draw_figures(predictions(*classes))) == left
