"""Thresholds that keep a precision at a stated prevalence, with a confidence bound from a labeled corpus.

In a corpus 66 % of the pairs may be manipulated; on a platform, 0.1 %. Pairs are therefore weighted by importance: the
authentic ones have the total weight 1 - prevalence, the manipulated ones the total weight prevalence. Two assumptions
remain: the mix of manipulations is that of the corpus, and the pairs of the corpus look like those of the platform.
Pairs are assumed to be drawn independently of each other.

There are two kinds of guarantee:

- `OperatingCurve.choose` takes the lowest threshold that exact tests show for a target that was fixed beforehand. Two
  kinds of tests share the error probability (Bonferroni), in parts that follow from sizes and odds alone: a sequence of
  tests (`asap.evaluation.precision_test`), which finds most where many false flags can be survived, and tests at the
  first few ranks of wrong pairs (`asap.evaluation.rank_test`), for where few can. This is how thresholds are chosen.
- The bounds of a curve hold at all thresholds at once, for any use of them: review bands, and pairs that join others.
  They are wider. A lower bound of the precision combines the lower bound of the recall with the upper bound of every
  false flag rate. The error probability is divided among these rates (Bonferroni). Each bound is that of Clopper and
  Pearson, which is exact; normal approximations are far off if only a few false positives decide.

A threshold is chosen by the same scores that evaluate it, so a bound for one threshold fixed beforehand would promise
too much. The bounds of a curve hold for all thresholds at once, for two reasons:

- False flags: the share of pairs above the (k+1)-th highest of n scores is distributed as Beta(k + 1, n - k) for any
  model (Wilks 1941), and the bound of Clopper and Pearson is a quantile of it. The bound is computed on a fixed grid of
  k. A count between two grid points is bounded by the next grid point, so the whole curve is bounded at once.
- Recall: the thresholds tried follow from the scores of the negatives. They do not depend on the pairs that recall is
  measured on. Each has an equal part of the error probability.

The grid points get 1/2, 1/6, 1/12, ... of the error probability. Most of it goes to thresholds with few false
positives, which a low prevalence needs. The bounds are therefore only a little wider than for a single threshold.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

from asap.evaluation.precision_test import FlagCounts, Odds, Sequence, is_shown, reach
from asap.evaluation.rank_test import RankTests

Floats = NDArray[np.float32]
Values = NDArray[np.float64]
Ints = NDArray[np.int64]

_GRID_STEP = 2**0.5
_FINE_STEPS = 64
"""Thresholds are tried at each of the first so many false flags, and then at steps of this part of the count."""
SMALLEST_THRESHOLD = np.finfo(np.float32).smallest_normal
"""Many processors round smaller numbers to 0, and a threshold of 0 flags every pair."""
_HINT_THRESHOLDS = 24
_MOST_PAIRS = 1e12
"""More authentic pairs than anybody has: a limit for the search in `authentic_pairs_needed`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Decision:
    """The scores by which pairs are flagged for one feature: `score >= threshold`; float32, in [0, 1]."""

    authentic: Floats
    """Scores of the authentic pairs."""
    positive: Floats
    """Scores of the manipulated pairs that have the feature."""
    other: Floats = field(default_factory=lambda: np.zeros(0, np.float32))
    """Scores of the manipulated pairs that do not have it."""
    stray: Floats | None = None
    """The score in the wrong location of each of `positive`. A pair that is flagged there alone is a false flag."""

    def __post_init__(self) -> None:
        """Refuse scores that are not numbers, which no threshold would ever flag."""
        for name in ("authentic", "positive", "other", "stray"):
            scores = getattr(self, name)
            if scores is not None and not (finite := np.isfinite(scores)).all():
                raise ValueError(
                    f"score {int(np.argmin(finite))} of {name} is {scores[np.argmin(finite)]}, not a number"
                )


@dataclass(frozen=True, kw_only=True)
class OperatingPoint:
    """The figures of one threshold at the stated prevalence.

    Each bound is one-sided and holds at least with the stated confidence.
    """

    value: float
    """The threshold."""
    precision: float
    precision_lower: float
    precision_upper: float
    recall: float
    recall_lower: float
    false_positive_rate: float
    """The share of authentic pairs that is flagged."""
    false_positive_rate_upper: float
    other_rate: float | None
    """The share of manipulated pairs without the feature that is flagged."""
    other_rate_upper: float | None
    stray_rate: float | None
    """The share of the pairs with the feature that is flagged in a wrong location alone."""
    stray_rate_upper: float | None
    flagged_share: float
    """The share of all pairs, at that prevalence, that is flagged."""
    positives: int
    """The number of pairs with the feature."""
    negatives: int
    """The number of authentic pairs."""
    true_positives: int
    """The number of pairs with the feature that are flagged."""
    false_positives: int
    """The number of authentic pairs that are flagged."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields ready for JSON, without those that do not apply."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class Bands:
    """Bands of scores between two thresholds, by the position of the lower one."""

    precision_C: Values
    precision_lower_C: Values
    flagged_share_C: Values
    """The share of all pairs, at the stated prevalence, whose score is in the band."""

    def choose(self, precision: float) -> int | None:
        """Return the position of the widest band with `precision` as a lower bound; None if there is none."""
        return _first(self.precision_lower_C >= precision)


@dataclass(frozen=True)
class _Rate:
    """The rate at which one population is flagged, at each of C thresholds."""

    mass: float
    """The population's share of all pairs at the stated prevalence."""
    size: int
    """The number of its pairs in the corpus."""
    count_C: Ints
    """The number of them that is flagged."""
    lower_C: Values
    upper_C: Values
    level_C: Values
    """The error probability of each bound: one minus its confidence."""

    @property
    def estimate(self) -> Values:
        return np.asarray(self.count_C / self.size)


class OperatingCurve:
    """A decision at every threshold that is tried, from the lowest to the highest."""

    def __init__(self, decision: Decision, prevalence: float, confidence: float = 0.95) -> None:
        """Compute the curve and its bounds.

        Args:
            decision: the scores.
            prevalence: the share of manipulated pairs where the thresholds will be used, in (0, 1).
            confidence: the probability, in (0, 1), that `precision_lower` holds at all thresholds together. It holds
                for `precision_upper` and for the lower bounds of the bands too, for each of these on its own.

        Raises `ValueError` for a decision without an authentic or without a positive pair: no bound exists then.
        """
        if not len(decision.authentic) or not len(decision.positive):
            raise ValueError(f"{len(decision.authentic)} authentic and {len(decision.positive)} positive pairs")
        # Divide the error probability among the rates: recall, false positives and, if they exist, other and stray.
        has_it = prevalence * len(decision.positive) / (len(decision.positive) + len(decision.other))
        rates = 2 + bool(len(decision.other)) + (decision.stray is not None)
        level = (1 - confidence) / rates
        self._level, self._scores = level, decision.positive
        self._prevalence, self._error = prevalence, 1 - confidence
        tails = [_Tail(scores, level) for scores in (decision.authentic, decision.other) if len(scores)]
        thresholds = np.concatenate([tail.thresholds_K for tail in tails])
        # The thresholds tried come from the scores of the negatives alone. One above 1 cannot be reached by a score.
        self.thresholds_C: Floats = np.unique(thresholds[thresholds <= 1])
        self._shares_C: Values = np.full(len(self.thresholds_C), 1 / max(len(self.thresholds_C), 1))
        levels = level * self._shares_C
        parts = decision.authentic, decision.positive, decision.other, decision.stray, self.thresholds_C
        self._sequence, self._ranks = Sequence(*parts), RankTests(*parts)
        self._authentic, *others = [
            tail.rate(self.thresholds_C, mass)
            for tail, mass in zip(tails, (1 - prevalence, prevalence - has_it), strict=False)
        ]
        # The positive pairs have no part in the choice of the thresholds, so a bound for each threshold is enough.
        self._positive = self._measure(reach(decision.positive, self.thresholds_C), decision, has_it, levels)
        self._other = others[0] if others else None
        self._stray = None
        if decision.stray is not None:
            # Flagged in the wrong location alone: reached there, less reached in both.
            both = np.minimum(decision.stray, decision.positive)
            alone_C = reach(decision.stray, self.thresholds_C) - reach(both, self.thresholds_C)
            self._stray = self._measure(alone_C, decision, has_it, levels)
        right, false = self._positive, self._false
        self.precision_C = _precision(right.mass * right.estimate, [rate.mass * rate.estimate for rate in false])
        """The estimate of the precision; 0 where nothing is flagged."""
        self.precision_lower_C = _precision(right.mass * right.lower_C, [rate.mass * rate.upper_C for rate in false])
        """The guaranteed precision: a lower bound at all thresholds together."""
        self.precision_upper_C = _precision(right.mass * right.upper_C, [rate.mass * rate.lower_C for rate in false])

    @staticmethod
    def _measure(count_C: Ints, decision: Decision, mass: float, level_C: Values) -> _Rate:
        """Compute a rate of the positive pairs, with the bounds of Clopper and Pearson."""
        size = len(decision.positive)
        lower_C = np.where(count_C > 0, beta.ppf(level_C, count_C, size - count_C + 1), 0.0)
        upper_C = np.where(count_C < size, beta.isf(level_C, count_C + 1, size - count_C), 1.0)
        return _Rate(mass, size, count_C, lower_C, upper_C, level_C)

    @property
    def _false(self) -> list[_Rate]:
        return [rate for rate in (self._authentic, self._other, self._stray) if rate is not None]

    def _odds(self, precision: float) -> Odds:
        other = self._other.mass if self._other else 0.0
        return Odds.of(precision, self._authentic.mass, self._positive.mass, other)

    def shown(self, precision: float) -> NDArray[np.bool_]:
        """Return, for each of the thresholds, True if the tests show at least this precision.

        All answers for a precision that was fixed beforehand hold together, with the stated confidence.
        """
        if not len(self.thresholds_C):
            return np.zeros(0, bool)
        odds = self._odds(precision)
        share = self._ranks.room(odds).share(self._error)
        in_sequence = self._sequence.shown(odds, (1 - share) * self._error)
        return np.asarray(in_sequence | self._ranks.shown(odds, share * self._error))

    def choose(self, precision: float, at_least: float = 0.0) -> int | None:
        """Return the position of the lowest threshold whose precision is shown; None if there is none.

        The lowest threshold has the highest recall. Those below `at_least` are not chosen.
        """
        return _first(self.shown(precision) & (self.thresholds_C >= np.float32(at_least)))

    def bands(self, top: int) -> Bands:
        """Return the bands from each lower threshold up to, and without, the threshold at position `top`."""
        right = self._positive
        count_C = right.count_C[:top] - right.count_C[top]
        # A band has two thresholds, so its share of the error probability is the product of their shares.
        level_C = right.level_C[:top] * self._shares_C[top]
        lower_C = np.where(count_C > 0, beta.ppf(level_C, count_C, right.size - count_C + 1), 0.0)
        right_C = right.mass * count_C / right.size
        wrong = [rate.mass * (rate.estimate[:top] - rate.estimate[top]) for rate in self._false]
        # Count all false flags from the lower end up. Subtracting those above the band would need a second bound.
        most = [rate.mass * rate.upper_C[:top] for rate in self._false]
        return Bands(
            precision_C=_precision(right_C, wrong),
            precision_lower_C=_precision(right.mass * lower_C, most),
            flagged_share_C=right_C + np.sum(wrong, axis=0),
        )

    @cached_property
    def best(self) -> float:
        """The highest target that is shown at any threshold, to four digits.

        It is a hint for the next attempt with other pairs: these pairs have chosen it, so they do not guarantee it.
        """
        low, high = 0, 10_000
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.shown(middle / 10_000).any() else (low, middle)
        return low / 10_000

    def guaranteed_precision(self, threshold: float, candidates: int) -> float:
        """Return a lower bound of the precision at a threshold that these pairs helped to choose.

        False flags are bounded at all thresholds together, so those from the next lower threshold of the grid count.

        Args:
            threshold: one of the thresholds that another curve, over these and other pairs, has tried.
            candidates: the number of thresholds that it has tried; none of them depends on manipulated pairs.
        """
        below = int(np.searchsorted(self.thresholds_C, np.float32(threshold), "right")) - 1
        count = int(reach(self._scores, np.array([threshold], np.float32))[0])
        if below < 0 or not count:
            return 0.0
        recall = beta.ppf(self._level / candidates, count, len(self._scores) - count + 1)
        wrong = [np.array([rate.mass * rate.upper_C[below]]) for rate in self._false]
        return float(_precision(np.array([self._positive.mass * recall]), wrong)[0])

    def at(self, position: int, shown: float = 0.0) -> OperatingPoint:
        """Return the figures of the threshold at this position.

        Args:
            position: the position of the threshold.
            shown: the target for which `choose` has returned this position. It is the lower bound of the precision
                then, unless the bound at all thresholds together is even higher.
        """
        right, authentic, other, stray = self._positive, self._authentic, self._other, self._stray
        return OperatingPoint(
            value=float(self.thresholds_C[position]),
            precision=float(self.precision_C[position]),
            precision_lower=max(shown, float(self.precision_lower_C[position])),
            precision_upper=float(self.precision_upper_C[position]),
            recall=float(right.estimate[position]),
            recall_lower=float(right.lower_C[position]),
            false_positive_rate=float(authentic.estimate[position]),
            false_positive_rate_upper=float(authentic.upper_C[position]),
            other_rate=float(other.estimate[position]) if other else None,
            other_rate_upper=float(other.upper_C[position]) if other else None,
            stray_rate=float(stray.estimate[position]) if stray else None,
            stray_rate_upper=float(stray.upper_C[position]) if stray else None,
            flagged_share=float(sum(rate.mass * rate.estimate[position] for rate in (right, *self._false))),
            positives=right.size,
            negatives=authentic.size,
            true_positives=int(right.count_C[position]),
            false_positives=int(authentic.count_C[position]),
        )

    def authentic_pairs_needed(self, precision: float) -> int | None:
        """Return the number of authentic pairs that would guarantee the precision if every rate stayed as observed.

        None if no number would be enough, because of another rate or of the false positives observed.
        """
        if not len(self.thresholds_C):
            return None
        odds = self._odds(precision)
        needed = [self._ranks.authentic_pairs_needed(odds, self._error), self._needed_in_sequence(odds)]
        # The pairs at hand were not enough, so a number up to theirs is no answer.
        more = [number for number in needed if self._authentic.size < number < _MOST_PAIRS / 2]
        return int(np.ceil(min(more) * (1 - 1e-8))) if more else None

    def _needed_in_sequence(self, odds: Odds) -> float:
        """Return the number of authentic pairs with which a test of the sequence would succeed; or infinity."""
        # A selection of the thresholds is enough for a hint.
        some_K = np.unique(np.linspace(0, len(self.thresholds_C) - 1, _HINT_THRESHOLDS).astype(np.int64))
        sizes, seen_K = self._sequence.sizes(), self._authentic.estimate[some_K]
        right_K = reach(self._sequence.positive[~self._sequence.pilot], self.thresholds_C[some_K])
        nothing_K = np.zeros(len(some_K))
        other_K = self._other.count_C[some_K] if self._other else nothing_K
        stray_K = self._stray.count_C[some_K] * (sizes.positive / self._positive.size) if self._stray else nothing_K

        def is_enough(pairs_K: Values) -> NDArray[np.bool_]:
            counts = FlagCounts(seen_K * pairs_K, right_K, other_K, stray_K)
            shares_K = np.array([self._ranks.room(odds, float(pairs)).share(self._error) for pairs in pairs_K])
            return is_shown(counts, dataclasses.replace(sizes, authentic=pairs_K), odds, (1 - shares_K) * self._error)

        # Where the pairs at hand would be enough, the sequence stopped before: more of them are no remedy there.
        beyond_K = is_enough(np.full(len(some_K), float(self._authentic.size)))
        # The least number is found by bisection on its logarithm, for all these thresholds together.
        low_K = nothing_K + np.log(self._authentic.size)
        high_K = np.full(len(some_K), np.log(_MOST_PAIRS))
        for _ in range(22):
            middle_K = (low_K + high_K) / 2
            shown_K = is_enough(np.exp(middle_K))
            low_K, high_K = np.where(shown_K, low_K, middle_K), np.where(shown_K, middle_K, high_K)
        return float(np.exp(high_K[~beyond_K]).min(initial=np.inf))


def precision_at_most(decision: Decision, threshold: float, prevalence: float, confidence: float) -> float:
    """Return an upper bound of the precision at one threshold; 1 where no pair of a class shows anything.

    Args:
        decision: the scores; its `other` and `stray` pairs are not counted.
        threshold: a threshold that was fixed beforehand.
        prevalence: the share of manipulated pairs.
        confidence: the probability that the bound holds.
    """
    level = (1 - confidence) / 2  # recall and false flags
    right, false = (int((scores >= np.float32(threshold)).sum()) for scores in (decision.positive, decision.authentic))
    rest = len(decision.positive) - right
    recall = float(beta.isf(level, right + 1, rest)) if rest else 1.0
    false_rate = float(beta.ppf(level, false, len(decision.authentic) - false + 1)) if false else 0.0
    if not false_rate:
        return 1.0
    return prevalence * recall / (prevalence * recall + (1 - prevalence) * false_rate)


def score_meaning(decision: Decision, threshold: float, prevalence: float) -> dict[str, Any]:
    """Return what a score at a threshold means where the share of manipulated pairs is `prevalence`, ready for JSON.

    A score is a probability at the share of manipulated pairs of the training. These are estimates, without a bound:

    - `right_at_or_above`: of all pairs that reach the threshold, the share that has the feature.
    - `right_about`: of the pairs with about this score, the share that has the feature. They are the `pairs_about`
      labeled pairs whose scores are closest to it, from `about_from` to `about_to`.
    - `shifted`: the score at the threshold, restated for the prevalence by the rule of Bayes (Saerens et al. 2002), on
      the assumption that it was a probability at the share of the labeled pairs. `right_about` needs no assumption.
    """
    other = len(decision.other)
    positive = prevalence * len(decision.positive) / (len(decision.positive) + other)
    groups = (
        (decision.positive, positive),
        (decision.authentic, 1 - prevalence),
        (decision.other, prevalence - positive),
    )
    scores = np.concatenate([scores for scores, _ in groups]).astype(np.float64)
    weights = np.concatenate([np.full(len(scores), mass / max(len(scores), 1)) for scores, mass in groups])
    has_it = np.arange(len(scores)) < len(decision.positive)
    # As many pairs on both sides, and at least 100: fewer say little about one score.
    count = max(100, len(scores) // 50)
    order = np.argsort(scores, kind="stable")
    middle = int(np.searchsorted(scores[order], threshold))
    nearest = order[max(0, middle - count // 2) : middle + count // 2]
    above = scores >= np.float32(threshold)
    labeled = len(decision.positive) / len(scores)
    right, wrong = threshold * positive / labeled, (1 - threshold) * (1 - positive) / (1 - labeled)
    return {
        "prevalence": prevalence,
        "right_at_or_above": _share(weights[above], has_it[above]),
        "right_about": _share(weights[nearest], has_it[nearest]),
        "about_from": float(scores[nearest].min()),
        "about_to": float(scores[nearest].max()),
        "pairs_about": len(nearest),
        "shifted": float(right / (right + wrong)),
    }


def _share(weights: Values, chosen: NDArray[np.bool_]) -> float | None:
    """Return the part of the weight that is chosen; None without any weight."""
    return float(weights[chosen].sum() / weights.sum()) if weights.sum() > 0 else None


class _Tail:
    """The share of a population above a threshold, bounded for all thresholds at once."""

    def __init__(self, scores: Floats, level: float) -> None:
        self._scores = scores
        size = len(scores)
        # The counts that are bounded: 0, 1, 2, 3, 4, 6, 8, 11, ... below `size`.
        steps = int(np.log(size) / np.log(_GRID_STEP)) + 1
        powers = np.round(_GRID_STEP ** np.arange(steps)).astype(np.int64)
        self._grid_K: Ints = np.unique(np.concatenate([[0], powers[powers < size]]))
        # Their shares of the error probability: 1/2, 1/6, 1/12, ..., in total less than 1.
        numbers = np.arange(len(self._grid_K))
        self.shares_K: Values = 1.0 / ((numbers + 1) * (numbers + 2))
        self._levels_K = level * self.shares_K
        parameters = self._grid_K + 1, size - self._grid_K
        self._upper_K: Values = beta.isf(self._levels_K, *parameters)
        self._lower_K: Values = beta.ppf(self._levels_K, *parameters)
        fine = [_FINE_STEPS]
        while fine[-1] < size:
            fine.append(fine[-1] + max(1, fine[-1] // _FINE_STEPS))
        counts = np.unique(np.concatenate([np.arange(min(_FINE_STEPS, size)), [one for one in fine if one < size]]))
        above = np.nextafter(np.sort(scores)[size - 1 - counts.astype(np.int64)], np.float32(np.inf))
        self.thresholds_K: Floats = np.maximum(above, SMALLEST_THRESHOLD)
        """For many counts, the lowest threshold that flags at most that many pairs of this population."""

    def rate(self, thresholds_C: Floats, mass: float) -> _Rate:
        """Return the rate at any thresholds. A count between two grid points has the bounds of the next ones."""
        count_C = reach(self._scores, thresholds_C)
        above = np.searchsorted(self._grid_K, count_C, "left")
        below = np.searchsorted(self._grid_K, count_C - 1, "right") - 1
        upper_C = np.append(self._upper_K, 1.0)[above]
        lower_C = np.where(below >= 0, self._lower_K[below], 0.0)
        return _Rate(
            mass, len(self._scores), count_C, lower_C, upper_C, np.append(self._levels_K, self._levels_K[-1])[above]
        )


def _first(enough_C: NDArray[np.bool_]) -> int | None:
    positions = np.flatnonzero(enough_C)
    return int(positions[0]) if len(positions) else None


def _precision(right_C: Values, wrong: list[Values]) -> Values:
    """Return the precision, given right and wrong flags as shares of all pairs; 0 where nothing is flagged."""
    all_C = right_C + np.sum(wrong, axis=0)
    return np.divide(right_C, all_C, out=np.zeros_like(right_C), where=all_C > 0)
