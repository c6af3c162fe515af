"""The labeled pairs that a target needs."""

import numpy as np
import pytest

from asap.evaluation import pairs_needed as module
from asap.evaluation.pairs_needed import MOST_PAIRS, PairsNeeded, pairs_needed
from asap.evaluation.thresholds import Decision, OperatingCurve


def _draw(seed: int, authentic: int, positive: int, mean: float) -> Decision:
    generator = np.random.default_rng(seed)
    scores = [generator.normal(at, 1, size) for at, size in ((0, authentic), (mean, positive))]
    return Decision(authentic=_sigmoid(scores[0]), positive=_sigmoid(scores[1]))


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return (1 / (1 + np.exp(-logits))).astype(np.float32)


def _shows(decision: Decision, prevalence: float, precision: float) -> bool:
    return OperatingCurve(decision, prevalence).choose(precision) is not None


def test_a_perfect_model_needs_little_more_than_the_pairs_that_the_theory_gives() -> None:
    decision = Decision(authentic=np.full(300, 0.1, np.float32), positive=np.full(2000, 0.9, np.float32))
    needed = pairs_needed(decision, 0.001, 0.95, 0.95)
    least = OperatingCurve(decision, 0.001).authentic_pairs_needed(0.95)
    assert needed is not None
    assert least is not None
    assert least <= needed.authentic <= 1.05 * least
    assert needed.positive == 2000


@pytest.mark.parametrize(("mean", "prevalence", "precision"), [(3.0, 0.01, 0.9), (2.0, 0.2, 0.9), (2.0, 0.01, 0.9)])
def test_so_many_authentic_pairs_with_the_same_scores_show_the_target(
    mean: float, prevalence: float, precision: float
) -> None:
    decision = _draw(0, 300, 200, mean)
    needed = pairs_needed(decision, prevalence, 0.95, precision)
    assert needed is not None
    assert needed.positive == 200, "authentic pairs alone are enough here"
    assert not _shows(decision, prevalence, precision)
    factor = needed.authentic / 300
    assert _shows(module._with_authentic(decision, factor), prevalence, precision)
    assert not _shows(module._with_authentic(decision, factor / 1.06), prevalence, precision)


def test_where_authentic_pairs_alone_would_never_do_more_of_all_kinds_are_counted() -> None:
    # Other pairs are flagged as often as they can be, and 300 of them bound their rate too badly.
    scores = _draw(0, 800, 400, 3.0)
    generator = np.random.default_rng(0)
    decision = Decision(
        authentic=scores.authentic, positive=scores.positive,
        other=(0.6 * generator.random(300)).astype(np.float32), stray=(0.5 * generator.random(400)).astype(np.float32),
    )  # fmt: skip
    assert OperatingCurve(decision, 0.001).authentic_pairs_needed(0.95) is None
    needed = pairs_needed(decision, 0.001, 0.95, 0.95)
    assert needed is not None
    assert needed.positive > 400
    assert needed.authentic / 800 == pytest.approx(needed.positive / 400, rel=0.01)
    assert _shows(module._with_all(decision, needed.authentic / 800), 0.001, 0.95)
    assert not _shows(module._with_authentic(decision, MOST_PAIRS / 800), 0.001, 0.95)


def test_no_number_of_pairs_helps_a_model_that_separates_nothing() -> None:
    assert pairs_needed(_draw(0, 500, 500, 0.0), 0.001, 0.95, 0.95) is None
    ones = np.ones(100, np.float32)
    assert pairs_needed(Decision(authentic=ones, positive=ones), 0.5, 0.95, 0.6) is None


def test_a_number_beyond_all_that_is_tried_is_estimated() -> None:
    decision = Decision(authentic=np.full(300, 0.1, np.float32), positive=np.full(2000, 0.9, np.float32))
    least = OperatingCurve(decision, 1e-6).authentic_pairs_needed(0.95)
    assert least is not None
    assert least > MOST_PAIRS
    assert pairs_needed(decision, 1e-6, 0.95, 0.95) == PairsNeeded(least, 2000)


def test_repeated_pairs_keep_their_stray_scores_and_rates() -> None:
    decision = Decision(
        authentic=np.array([0.1, 0.2], np.float32), positive=np.array([0.9, 0.5, 0.7], np.float32),
        stray=np.array([0.09, 0.05, 0.07], np.float32),
    )  # fmt: skip
    more = module._with_all(decision, 2.0)
    assert more.positive.tolist() == np.array([0.5, 0.5, 0.7, 0.7, 0.9, 0.9], np.float32).tolist()
    assert more.stray is not None
    assert more.stray.tolist() == pytest.approx((more.positive / 10).tolist())
    assert module._with_authentic(decision, 1.5).authentic.tolist() == np.array([0.1, 0.1, 0.2], np.float32).tolist()
