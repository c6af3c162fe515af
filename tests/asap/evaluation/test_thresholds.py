"""Bounds of a precision, compared with simulated models whose true precision is known."""

from typing import Any

import numpy as np
import pytest
from scipy.stats import beta, binom, binomtest, norm
from sklearn.metrics import precision_score

from asap.evaluation.precision_test import FlagCounts, Odds, Sizes, _turning_point, is_shown
from asap.evaluation.rank_test import Rates, Room, shows_target
from asap.evaluation.thresholds import SMALLEST_THRESHOLD, Decision, OperatingCurve, precision_at_most, score_meaning

CONFIDENCE = 0.95


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return (1 / (1 + np.exp(-logits))).astype(np.float32)


def _logit(threshold: float) -> float:
    return float(np.log(threshold / (1 - threshold)))


def _draw(seed: int, authentic: int, positive: int, mean: float, digits: int | None = None) -> Decision:
    """Draw authentic logits from N(0, 1), positive ones from N(mean, 1); `digits` rounds scores, so that many tie."""
    generator = np.random.default_rng(seed)
    scores = [_sigmoid(generator.normal(at, 1, size)) for at, size in ((0, authentic), (mean, positive))]
    if digits is not None:
        scores = [np.round(some, digits) for some in scores]
    return Decision(authentic=scores[0], positive=scores[1])


def _true_precision(threshold: float, prevalence: float, mean: float, digits: int | None = None) -> float:
    if digits is not None:  # a rounded score reaches the threshold from half a digit below the next round value
        threshold = np.ceil(threshold * 10**digits - 1e-6) / 10**digits - 0.5 * 10**-digits
    right = prevalence * norm.sf(_logit(threshold) - mean)
    return float(right / (right + (1 - prevalence) * norm.sf(_logit(threshold))))


def _most_broken(runs: int) -> int:
    """Return the number of broken promises that a method of exactly the stated confidence exceeds once in 1,000."""
    return int(binom.isf(0.001, runs, 1 - CONFIDENCE))


# The guarantee.


@pytest.mark.parametrize(
    ("prevalence", "precision", "authentic", "positive", "mean", "digits"),
    [
        (0.5, 0.8, 300, 200, 1.5, None),
        (0.2, 0.9, 800, 600, 2.5, None),
        (0.02, 0.8, 3000, 1000, 3.5, None),
        (0.001, 0.95, 100_000, 2000, 6.0, None),
        (0.2, 0.9, 800, 600, 2.5, 2),
    ],
)
def test_the_guaranteed_precision_holds_on_fresh_draws_with_the_stated_confidence(
    prevalence: float, precision: float, authentic: int, positive: int, mean: float, digits: int | None
) -> None:
    runs, shown, broken = 30, 0, 0
    for seed in range(runs):
        curve = OperatingCurve(_draw(seed, authentic, positive, mean, digits), prevalence, CONFIDENCE)
        position = curve.choose(precision)
        if position is None:
            continue
        point = curve.at(position)
        true = _true_precision(point.value, prevalence, mean, digits)
        shown += 1
        broken += true < precision
        assert point.precision_lower <= point.precision
    assert shown > runs / 4
    assert broken <= _most_broken(runs)


@pytest.mark.slow
def test_the_error_probability_is_used_and_not_left_over() -> None:
    """Expect a few of the promises to be broken: bounds at all thresholds together would break none of them."""
    broken, together, runs = 0, 0, 60
    for seed in range(runs):
        curve = OperatingCurve(_draw(seed, 400, 300, 1.5), 0.5, CONFIDENCE)
        position = curve.choose(0.8)
        if position is None:
            continue
        logit_C = np.log(curve.thresholds_C / (1 - curve.thresholds_C))
        true_C = norm.sf(logit_C - 1.5) / (norm.sf(logit_C - 1.5) + norm.sf(logit_C))
        broken += true_C[position] < 0.8
        together += bool((curve.precision_lower_C > true_C).any())
    assert 1 <= broken <= _most_broken(runs)
    assert together <= 2


def test_a_bound_for_one_threshold_would_promise_too_much() -> None:
    """Show why the bounds must hold for all thresholds at once: the lowest one that seems to suffice is lucky."""
    runs, target, prevalence, mean, authentic, positive = 200, 0.9, 0.2, 2.5, 800, 600
    level, broken = (1 - CONFIDENCE) / 2, 0
    for seed in range(runs):
        decision = _draw(seed, authentic, positive, mean)
        thresholds = np.sort(decision.authentic)[authentic // 2 :]
        false = (decision.authentic >= thresholds[:, None]).sum(axis=1)
        right = (decision.positive >= thresholds[:, None]).sum(axis=1)
        right_lower = prevalence * beta.ppf(level, right, positive - right + 1)
        false_upper = (1 - prevalence) * beta.isf(level, false + 1, authentic - false)
        lucky = thresholds[np.argmax(right_lower / (right_lower + false_upper) >= target)]
        broken += _true_precision(float(lucky), prevalence, mean) < target
    assert broken > (1 - CONFIDENCE) * runs


def test_the_precision_of_a_review_band_is_at_least_its_bound() -> None:
    runs, prevalence, mean, shown, broken = 30, 0.1, 2.5, 0, 0
    for seed in range(runs):
        curve = OperatingCurve(_draw(seed, 4000, 3000, mean), prevalence, CONFIDENCE)
        top = curve.choose(0.85)
        assert top is not None
        bands = curve.bands(top)
        position = bands.choose(0.3)
        if position is None:
            continue
        low, high = (_logit(float(curve.thresholds_C[at])) for at in (position, top))
        right = prevalence * (norm.sf(low - mean) - norm.sf(high - mean))
        true = right / (right + (1 - prevalence) * (norm.sf(low) - norm.sf(high)))
        shown += 1
        broken += not 0.3 <= bands.precision_lower_C[position] <= true
    assert shown > runs / 2
    assert broken <= (1 - CONFIDENCE) * runs


@pytest.mark.slow
def test_other_types_and_words_in_the_wrong_location_lower_the_precision() -> None:
    """Draw the logits of each group independently and compare the precision with its bound.

    Other types are N(1, 1), wrong locations N(0.5, 1), right ones N(3, 1).
    """
    runs, prevalence, target, shown, broken = 24, 0.3, 0.8, 0, 0
    for seed in range(runs):
        draw = np.random.default_rng(seed).normal
        decision = Decision(
            authentic=_sigmoid(draw(0, 1, 1500)),
            positive=_sigmoid(draw(3, 1, 1500)),
            other=_sigmoid(draw(1, 1, 1500)),
            stray=_sigmoid(draw(0.5, 1, 1500)),
        )
        curve = OperatingCurve(decision, prevalence, CONFIDENCE)
        position = curve.choose(target)
        if position is None:
            continue
        x = _logit(float(curve.thresholds_C[position]))
        right = prevalence / 2 * norm.sf(x - 3)
        wrong = prevalence / 2 * (norm.sf(x - 1) + norm.sf(x - 0.5) * norm.cdf(x - 3)) + (1 - prevalence) * norm.sf(x)
        shown += 1
        broken += right / (right + wrong) < target
    assert shown > runs / 2
    assert broken <= _most_broken(runs)


# The figures.


def test_the_estimate_is_the_precision_with_importance_weights() -> None:
    decision, prevalence = _draw(0, 300, 200, 2.0), 0.05
    curve = OperatingCurve(decision, prevalence)
    truth = np.repeat([0, 1], [300, 200])
    weights = np.repeat([(1 - prevalence) / 300, prevalence / 200], [300, 200])
    scores = np.concatenate([decision.authentic, decision.positive])
    for position, threshold in enumerate(curve.thresholds_C):
        expected = precision_score(truth, scores >= threshold, sample_weight=weights, zero_division=0)
        assert curve.precision_C[position] == pytest.approx(expected)
        assert curve.at(position).flagged_share == pytest.approx(weights[scores >= threshold].sum())


def test_the_bounds_are_those_of_clopper_and_pearson() -> None:
    curve = OperatingCurve(_draw(0, 300, 200, 2.0), 0.05, CONFIDENCE)
    strictest = curve.at(len(curve.thresholds_C) - 1)
    # Two rates. Half of the first one's error probability goes to k = 0; the other's is the same at all thresholds.
    levels = 0.5, 1 / len(curve.thresholds_C)
    false, right = (
        binomtest(count, size, alternative=side).proportion_ci(1 - (1 - CONFIDENCE) / 2 * level, "exact")
        for (count, size, side), level in zip(
            ((0, 300, "less"), (strictest.true_positives, 200, "greater")), levels, strict=True
        )
    )
    assert strictest.false_positives == 0
    assert strictest.false_positive_rate_upper == pytest.approx(false.high)
    assert strictest.recall_lower == pytest.approx(right.low)
    assert strictest.precision_lower == pytest.approx(0.05 * right.low / (0.05 * right.low + 0.95 * false.high))


def test_a_threshold_flags_no_more_pairs_than_it_counts() -> None:
    decision = _draw(1, 500, 300, 2.0, digits=2)
    curve = OperatingCurve(decision, 0.1)
    for position, threshold in enumerate(curve.thresholds_C):
        point = curve.at(position)
        assert point.false_positives == (decision.authentic >= float(threshold)).sum()
        assert point.true_positives == (decision.positive >= float(threshold)).sum()
        assert point.false_positive_rate <= point.false_positive_rate_upper
        assert point.recall_lower <= point.recall
        assert point.precision_lower <= point.precision <= point.precision_upper


def test_the_lowest_threshold_whose_precision_is_shown_is_chosen() -> None:
    curve = OperatingCurve(_draw(2, 2000, 1000, 3.0), 0.2)
    position = curve.choose(0.8)
    assert position is not None
    assert curve.at(position, 0.8).precision_lower >= 0.8
    shown = curve.shown(0.8)
    assert shown[position]
    assert not shown[:position].any()
    # The bounds at all thresholds together show the target too, at a higher threshold.
    assert curve.precision_lower_C[position] < 0.8 <= curve.precision_lower_C.max()
    assert curve.choose(0.8, at_least=0.99) != position
    assert curve.choose(curve.best) is not None
    assert curve.choose(curve.best + 1e-4) is None


def test_a_test_of_one_threshold_is_wrong_no_more_often_than_its_level() -> None:
    """Sum the exact probability of every pair of counts at which the test errs, on the border of the hypothesis."""
    sizes, c = Sizes(120, 80), 4.0
    counts = np.array([(false, right) for false in range(121) for right in range(81)])
    nothing = np.zeros(len(counts))
    flagged = FlagCounts(counts[:, 0], counts[:, 1], nothing, nothing)
    wrong = is_shown(flagged, sizes, Odds(c, 0.0, 0.0), 0.05)
    for recall in (0.02, 0.1, 0.3, 0.5, 0.8, 0.95, 1.0):
        chance = binom.pmf(counts[:, 0], 120, recall / c) * binom.pmf(counts[:, 1], 80, recall)
        assert chance[wrong].sum() <= 0.05, recall
    half = binom.pmf(counts[:, 0], 120, 0.125) * binom.pmf(counts[:, 1], 80, 0.5)
    assert half[wrong].sum() > 0.02, "the level is used"


def test_a_test_between_two_thresholds_shows_no_more_than_those_at_the_counts_between_them() -> None:
    """With one false flag fewer, the lowest rates that are not ruled out are lower, and the test here shows less."""

    def shows(most: int, fewest: int | None) -> bool:
        one, none = np.ones(1, np.int64), np.zeros(1, np.int64)
        counts = FlagCounts(most * one, 42 * one, none, none, None if fewest is None else fewest * one)
        return bool(is_shown(counts, Sizes(198, 61, has_stray=True), Odds(6.73, 0.0, 1.0), 0.00872)[0])

    assert [shows(3, None), shows(2, None)] == [True, False]
    assert [shows(3, 3), shows(3, 2)] == [True, False]


@pytest.mark.parametrize(("c", "known"), [(0.3, 0.2), (0.1, 0.05), (0.5, 0.4), (0.05, 0.9)])
def test_the_weights_of_a_test_turn_one_way_on_each_side_of_their_turning_point(c: float, known: float) -> None:
    t = np.linspace(0.001, 0.999, 999)
    allowed = c * t + known
    ratio = (allowed * (1 - allowed) / (t * (1 - t)))[allowed < 1]
    assert _turning_point(c, np.array([known]))[0] == pytest.approx(t[np.argmin(ratio)], abs=0.001)


@pytest.mark.parametrize("other", [None, (9.0, 2, 200)])
def test_a_test_at_a_rank_is_wrong_no_more_often_than_its_level(other: tuple[float, int, int] | None) -> None:
    """Draw the wrong rates of fixed ranks, and sum the exact probability of errors where the recall is the worst."""
    generator, terms = np.random.default_rng(0), [(20.0, 1, 120)] + ([other] if other else [])
    rates = Rates.of([(factor, count, float(size)) for factor, count, size in terms], 0.05)
    assert rates.masses.sum() == pytest.approx(1)
    accepted = next(right for right in range(81) if shows_target(right, 80, rates, 0.05))
    true = sum(factor * generator.beta(count + 1, size - count, 200_000) for factor, count, size in terms)
    error = binom.sf(accepted - 1, 80, np.minimum(true, 1)).mean()
    # The next lower count would be wrong too often, up to the rounding of the cells.
    assert error <= 0.05 < 1.1 * binom.sf(accepted - 2, 80, np.minimum(true, 1)).mean()


def test_the_error_probability_goes_to_the_counts_that_the_sizes_allow() -> None:
    odds = Odds(100.0, 10.0, 0.0)
    few, many = Room.of(odds, 350, 0), Room.of(odds, 50_000, 5000)
    assert few.share(0.05) > 0.9 > 0.05 > many.share(0.05)
    assert few.parts()[0, 0] > 0.95
    assert many.parts()[0, 0] < 0.2
    for room in (few, many):
        assert 0.95 < sum(room.parts().values()) <= 1 + 1e-9


@pytest.mark.parametrize(
    ("authentic", "positive", "other", "prevalence", "precision"),
    [(800, 400, 1200, 0.2, 0.9), (100, 50, 0, 0.2, 0.8), (400, 80, 240, 0.2, 0.8)],
)
def test_few_pairs_that_are_perfectly_separated_are_enough(
    authentic: int, positive: int, other: int, prevalence: float, precision: float
) -> None:
    """Bounds at all thresholds together show the first two of these, and a sequence of tests alone does not."""
    noise = np.random.default_rng(0).normal
    apart = Decision(
        authentic=(0.1 + 0.02 * noise(size=authentic)).clip(0, 1).astype(np.float32),
        positive=(0.9 + 0.02 * noise(size=positive)).astype(np.float32),
        other=(0.1 + 0.02 * noise(size=other)).clip(0, 1).astype(np.float32),
    )
    curve = OperatingCurve(apart, prevalence)
    position = curve.choose(precision)
    assert position is not None
    assert curve.at(position).recall == 1.0


@pytest.mark.parametrize("mean", [1.5, 6.0])
@pytest.mark.parametrize("precision", [0.8, 0.95])
def test_the_pairs_needed_after_a_refusal_are_more_than_those_at_hand(mean: float, precision: float) -> None:
    base = _draw(0, 300, 200, mean)
    other = _sigmoid(np.random.default_rng(1).normal(1, 1, 300))
    curve = OperatingCurve(Decision(authentic=base.authentic, positive=base.positive, other=other), 0.1)
    needed = curve.authentic_pairs_needed(precision)
    assert curve.choose(precision) is not None or needed is None or needed > 300


def test_a_pilot_places_the_starts_and_is_not_tested() -> None:
    decision = _draw(3, 3000, 800, 3.0)
    curve = OperatingCurve(decision, 0.2)
    odds = curve._odds(0.8)
    starts = curve._sequence.starts(odds, 0.05)
    assert sum(starts.values()) == pytest.approx(1)
    assert set(starts) <= set(decision.positive[7::8].tolist())
    others = Decision(authentic=decision.authentic, positive=np.where(np.arange(800) % 8 == 7, decision.positive, 0.0))
    assert OperatingCurve(others, 0.2)._sequence.starts(odds, 0.05) == starts
    assert curve._sequence.sizes() == Sizes(3000, 700)


def test_no_threshold_is_so_small_that_a_processor_rounds_it_to_zero() -> None:
    authentic, positive = np.zeros(500, np.float32), np.full(500, 0.9, np.float32)
    curve = OperatingCurve(Decision(authentic=authentic, positive=positive), 0.5)
    assert curve.thresholds_C.min() == SMALLEST_THRESHOLD > np.nextafter(np.float32(0), np.float32(1))
    position = curve.choose(0.8)
    assert position is not None
    assert curve.at(position).false_positives == 0


@pytest.mark.parametrize("name", ["authentic", "positive", "other", "stray"])
def test_a_score_that_is_not_a_number_is_refused(name: str) -> None:
    scores = {one: np.full(5, 0.5, np.float32) for one in ("authentic", "positive", "other", "stray")}
    scores[name][3] = np.nan
    with pytest.raises(ValueError, match=f"score 3 of {name} is nan"):
        Decision(**scores)


def test_the_meaning_of_a_score_is_restated_for_the_prevalence() -> None:
    """Draw scores that are probabilities at a share of a half, and ask what they mean at 2 %."""
    generator = np.random.default_rng(0)
    scores = generator.uniform(0, 1, 200_000).astype(np.float32)
    manipulated = generator.random(200_000) < scores
    decision = Decision(authentic=scores[~manipulated], positive=scores[manipulated])
    meaning = score_meaning(decision, 0.9, 0.02)
    true = 0.02 * 0.9 / (0.02 * 0.9 + 0.98 * 0.1)
    assert meaning["shifted"] == pytest.approx(true, rel=0.02)
    assert meaning["right_about"] == pytest.approx(true, rel=0.15)
    assert meaning["about_from"] < 0.9 < meaning["about_to"]
    above = 0.02 * 0.19 / (0.02 * 0.19 + 0.98 * 0.01)
    assert meaning["right_at_or_above"] == pytest.approx(above, rel=0.1)
    assert score_meaning(decision, 1.0, 0.02)["right_at_or_above"] in (None, 1.0)


def test_figures_that_do_not_apply_are_left_out() -> None:
    fields = OperatingCurve(_draw(0, 50, 50, 2.0), 0.5).at(0).to_dict()
    assert "other_rate" not in fields
    assert "stray_rate_upper" not in fields
    assert fields["negatives"] == 50


# No guarantee.


def _separated(authentic: int, **changes: Any) -> Decision:
    """Return the scores of a model that separates authentic and positive pairs perfectly."""
    scores = {"authentic": np.full(authentic, 0.1, np.float32), "positive": np.full(2000, 0.9, np.float32)}
    return Decision(**(scores | changes))


def test_a_perfect_model_needs_exactly_the_authentic_pairs_reported() -> None:
    needed = OperatingCurve(_separated(300), 0.001).authentic_pairs_needed(0.95)
    assert needed is not None
    assert OperatingCurve(_separated(300), 0.001).choose(0.95) is None
    assert OperatingCurve(_separated(needed), 0.001).choose(0.95) is not None
    assert OperatingCurve(_separated(needed - 1), 0.001).choose(0.95) is None


def test_more_authentic_pairs_do_not_help_if_another_type_is_flagged() -> None:
    curve = OperatingCurve(_separated(300, other=np.full(500, 0.9, np.float32)), 0.001)
    assert curve.choose(0.95) is None
    assert curve.authentic_pairs_needed(0.95) is None


def test_more_authentic_pairs_do_not_help_a_model_that_separates_nothing() -> None:
    assert OperatingCurve(_draw(0, 500, 500, 0.0), 0.001).authentic_pairs_needed(0.95) is None


@pytest.mark.parametrize("missing", ["authentic", "positive"])
def test_a_curve_needs_authentic_and_positive_pairs(missing: str) -> None:
    some, none = np.full(5, 0.5, np.float32), np.zeros(0, np.float32)
    with pytest.raises(ValueError, match=f"0 {missing}"):
        OperatingCurve(Decision(**({"authentic": some, "positive": some} | {missing: none})), 0.5)


def test_no_threshold_separates_scores_of_one() -> None:
    ones = np.ones(100, np.float32)
    curve = OperatingCurve(Decision(authentic=ones, positive=ones), 0.5)
    assert len(curve.thresholds_C) == 0
    assert (curve.best, curve.choose(0.6), curve.authentic_pairs_needed(0.6)) == (0.0, None, None)


def test_one_authentic_pair_gives_a_very_weak_bound() -> None:
    assert OperatingCurve(_separated(1), 0.5).at(0).false_positive_rate_upper == pytest.approx(1 - 0.0125)


# Pairs that join.


@pytest.mark.slow
def test_the_precision_of_pairs_that_helped_to_choose_the_threshold_is_guaranteed() -> None:
    broken, shown, runs = 0, 0, 40
    for seed in range(runs):
        alone, others = _draw(seed, 400, 400, 3.0), _draw(1000 + seed, 400, 400, 4.0)
        together = OperatingCurve(
            Decision(
                authentic=np.concatenate([alone.authentic, others.authentic]),
                positive=np.concatenate([alone.positive, others.positive]),
            ),
            0.5,
        )
        position = together.choose(0.9)
        if position is None:
            continue
        threshold = float(together.thresholds_C[position])
        least = OperatingCurve(alone, 0.5, CONFIDENCE).guaranteed_precision(threshold, len(together.thresholds_C))
        shown += least > 0.5
        broken += least > _true_precision(threshold, 0.5, 3.0)
    assert shown > 30, "the bound is not empty"
    assert broken <= (1 - CONFIDENCE) * runs


def test_a_threshold_below_every_tried_one_guarantees_nothing() -> None:
    curve = OperatingCurve(_draw(0, 100, 100, 3.0), 0.5)
    assert curve.guaranteed_precision(0.0, 1) == 0.0
    assert curve.guaranteed_precision(1.0, 1) == 0.0


def test_a_precision_is_shown_to_be_low_at_most_as_often_as_the_confidence_allows() -> None:
    threshold, true = 0.8, _true_precision(0.8, 0.3, 1.5)
    bounds = [precision_at_most(_draw(seed, 60, 60, 1.5), threshold, 0.3, CONFIDENCE) for seed in range(500)]
    assert sum(bound < true for bound in bounds) <= (1 - CONFIDENCE) * 500
    assert np.median(bounds) < 0.95


def test_a_band_without_false_flags_is_not_shown_to_be_wrong() -> None:
    few = np.zeros(0, np.float32)
    assert precision_at_most(Decision(authentic=few, positive=few), 0.5, 0.1, CONFIDENCE) == 1.0
    calm = Decision(authentic=np.full(50, 0.1, np.float32), positive=np.full(5, 0.2, np.float32))
    assert precision_at_most(calm, 0.5, 0.1, CONFIDENCE) == 1.0
