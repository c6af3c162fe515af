"""Thresholds that keep a precision at a stated prevalence, with what a labelled corpus can show of it.

A corpus is, say, 66 % manipulated and a platform 0.1 %, so pairs are weighed by importance: all authentic ones
together 1 - prevalence, all manipulated ones prevalence. What cannot be restated is taken from the corpus: the mix
of manipulations among the manipulated pairs, and that its pairs look like the platform's. Pairs are taken to be drawn
independently of each other.

What is shown of a precision is a lower bound, in which the recall is at its lower and every rate of false flags at
its upper bound. The confidence is shared out among these rates (Bonferroni), and each bound is Clopper and Pearson's,
which is exact: where a handful of false positives decides, the normal approximations are far off. A threshold is
chosen by the very scores that judge it, so a bound for one threshold fixed beforehand would promise too much. Two
things make these bounds hold for all thresholds at once:

- False flags: the share of pairs above the (k+1)-th highest of n scores is Beta(k + 1, n - k) whatever the model
  (Wilks 1941), of which Clopper and Pearson's bound is the quantile. It is taken at a fixed grid of k, and a count in
  between is bounded by the next of the grid, so the whole curve is bounded at once.
- Recall: the thresholds tried are those at that grid, and do not depend on the pairs that recall is measured on.

The grid shares its confidence out as 1/2, 1/6, 1/12, ..., most of it to thresholds with few false positives, which is
what a low prevalence needs; that makes the bounds only a little wider than for one threshold.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

Floats = NDArray[np.float32]
Values = NDArray[np.float64]
Ints = NDArray[np.int64]

_GRID_STEP = 2**0.5
_MOST_PAIRS = 1e12
"""More authentic pairs than anybody has."""


def _no_scores() -> Floats:
    return np.zeros(0, np.float32)


@dataclass(frozen=True, kw_only=True, eq=False)
class Decision:
    """The scores by which the pairs of a corpus are flagged for one thing, `score >= threshold`; float32, in [0, 1]."""

    authentic: Floats
    positive: Floats
    """Of the manipulated pairs that have the thing."""
    other: Floats = field(default_factory=_no_scores)
    """Of the manipulated pairs that do not have it."""
    stray: Floats | None = None
    """For each of `positive`, the score of the wrong place: reaching the threshold there alone is a false flag."""


@dataclass(frozen=True, kw_only=True)
class OperatingPoint:
    """What one threshold does at the stated prevalence. Each bound is one-sided, at least at the stated confidence."""

    value: float
    """The threshold."""
    precision: float
    precision_lower: float
    precision_upper: float
    recall: float
    recall_lower: float
    false_positive_rate: float
    """Of authentic pairs."""
    false_positive_rate_upper: float
    other_rate: float | None
    """Of manipulated pairs that do not have the thing, the share flagged for it all the same."""
    other_rate_upper: float | None
    stray_rate: float | None
    """Of pairs that have it, the share flagged in a wrong place alone."""
    stray_rate_upper: float | None
    flagged_share: float
    """Of all pairs at that prevalence."""
    positives: int
    negatives: int
    """Authentic pairs."""
    true_positives: int
    false_positives: int
    """Authentic pairs flagged."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready fields, without those that do not apply."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class Bands:
    """Bands of scores between two thresholds, by the place of the lower one."""

    precision_C: Values
    precision_lower_C: Values
    flagged_share_C: Values
    """Of all pairs at the stated prevalence."""

    def choose(self, precision: float) -> int | None:
        """The place of the widest band whose precision is shown to be at least that."""
        return _first(self.precision_lower_C >= precision)


@dataclass(frozen=True)
class _Rate:
    """The share of one population that is flagged, at each of C thresholds."""

    mass: float
    """The population's share of all pairs at the stated prevalence."""
    size: int
    count_C: Ints
    lower_C: Values
    upper_C: Values
    level_C: Values
    """One minus the confidence of each bound."""

    @property
    def estimate(self) -> Values:
        return np.asarray(self.count_C / self.size)


class OperatingCurve:
    """A decision at every threshold worth trying, from the laxest to the strictest."""

    def __init__(self, decision: Decision, prevalence: float, confidence: float = 0.95) -> None:
        """prevalence: share of manipulated pairs where the thresholds will be used, in (0, 1).

        confidence: with which `precision_lower` holds at all thresholds together, in (0, 1); so do, each by themselves,
        `precision_upper` and the bands' lower bounds. Raises `ValueError` for a decision without an authentic or
        without a positive pair, of which nothing can be shown.
        """
        if not len(decision.authentic) or not len(decision.positive):
            raise ValueError(f"{len(decision.authentic)} authentic and {len(decision.positive)} positive pairs")
        has_it = prevalence * len(decision.positive) / (len(decision.positive) + len(decision.other))
        rates = 2 + bool(len(decision.other)) + (decision.stray is not None)
        level = (1 - confidence) / rates
        tails = [_Tail(scores, level) for scores in (decision.authentic, decision.other) if len(scores)]
        thresholds = np.concatenate([tail.thresholds_K for tail in tails])
        shares = np.concatenate([tail.shares_K for tail in tails]) / len(tails)
        # A score of 1 leaves no probability above it.
        order = [place for place in np.argsort(thresholds, kind="stable") if thresholds[place] <= 1]
        self.thresholds_C: Floats = thresholds[order]
        self._shares_C: Values = shares[order]
        levels = level * self._shares_C
        self._authentic, *others = [
            tail.rate(self.thresholds_C, mass)
            for tail, mass in zip(tails, (1 - prevalence, prevalence - has_it), strict=False)
        ]
        self._positive = self._measure(_reach(decision.positive, self.thresholds_C), decision, has_it, levels)
        self._other = others[0] if others else None
        self._stray = None
        if decision.stray is not None:
            both = np.minimum(decision.stray, decision.positive)
            alone_C = _reach(decision.stray, self.thresholds_C) - _reach(both, self.thresholds_C)
            self._stray = self._measure(alone_C, decision, has_it, levels)
        right, false = self._positive, self._false
        self.precision_C = _precision(right.mass * right.estimate, [rate.mass * rate.estimate for rate in false])
        """The estimate; 0 where nothing is flagged."""
        self.precision_lower_C = _precision(right.mass * right.lower_C, [rate.mass * rate.upper_C for rate in false])
        """What is shown of the precision."""
        self.precision_upper_C = _precision(right.mass * right.upper_C, [rate.mass * rate.lower_C for rate in false])

    @staticmethod
    def _measure(count_C: Ints, decision: Decision, mass: float, level_C: Values) -> _Rate:
        """A rate of the positive pairs, which had no part in the choice of the thresholds."""
        size = len(decision.positive)
        lower_C = np.where(count_C > 0, beta.ppf(level_C, count_C, size - count_C + 1), 0.0)
        upper_C = np.where(count_C < size, beta.isf(level_C, count_C + 1, size - count_C), 1.0)
        return _Rate(mass, size, count_C, lower_C, upper_C, level_C)

    @property
    def _false(self) -> list[_Rate]:
        return [rate for rate in (self._authentic, self._other, self._stray) if rate is not None]

    def choose(self, precision: float) -> int | None:
        """The place of the lowest threshold, so the highest recall, whose precision is shown to be at least that."""
        return _first(self.precision_lower_C >= precision)

    def bands(self, top: int) -> Bands:
        """The bands of scores from each laxer threshold up to, and without, that of place `top`."""
        right = self._positive
        count_C = right.count_C[:top] - right.count_C[top]
        # A band has two thresholds, so its share of the confidence is the product of theirs.
        level_C = right.level_C[:top] * self._shares_C[top]
        lower_C = np.where(count_C > 0, beta.ppf(level_C, count_C, right.size - count_C + 1), 0.0)
        right_C = right.mass * count_C / right.size
        wrong = [rate.mass * (rate.estimate[:top] - rate.estimate[top]) for rate in self._false]
        # All that is flagged wrongly from the lower end up: to subtract what is above the band takes a second bound.
        most = [rate.mass * rate.upper_C[:top] for rate in self._false]
        return Bands(
            precision_C=_precision(right_C, wrong),
            precision_lower_C=_precision(right.mass * lower_C, most),
            flagged_share_C=right_C + np.sum(wrong, axis=0),
        )

    @property
    def best(self) -> float:
        """The highest precision that can be shown at any threshold."""
        return float(self.precision_lower_C.max(initial=0.0))

    def at(self, place: int) -> OperatingPoint:
        """What the threshold of that place does."""
        right, authentic, other, stray = self._positive, self._authentic, self._other, self._stray
        return OperatingPoint(
            value=float(self.thresholds_C[place]),
            precision=float(self.precision_C[place]),
            precision_lower=float(self.precision_lower_C[place]),
            precision_upper=float(self.precision_upper_C[place]),
            recall=float(right.estimate[place]),
            recall_lower=float(right.lower_C[place]),
            false_positive_rate=float(authentic.estimate[place]),
            false_positive_rate_upper=float(authentic.upper_C[place]),
            other_rate=float(other.estimate[place]) if other else None,
            other_rate_upper=float(other.upper_C[place]) if other else None,
            stray_rate=float(stray.estimate[place]) if stray else None,
            stray_rate_upper=float(stray.upper_C[place]) if stray else None,
            flagged_share=float(sum(rate.mass * rate.estimate[place] for rate in (right, *self._false))),
            positives=right.size,
            negatives=authentic.size,
            true_positives=int(right.count_C[place]),
            false_positives=int(authentic.count_C[place]),
        )

    def authentic_pairs_needed(self, precision: float) -> int | None:
        """How many authentic pairs would show the precision if every rate stayed as it was seen here.

        None where no number would: another rate stands in the way, or the false positives that were seen do.
        """
        authentic, *others = self._false
        spoilt_C = np.sum([np.zeros_like(authentic.upper_C), *(rate.mass * rate.upper_C for rate in others)], axis=0)
        right_C = self._positive.mass * self._positive.lower_C
        allowed_C = (right_C * (1 - precision) / precision - spoilt_C) / authentic.mass
        possible = allowed_C > authentic.estimate
        pairs = _least_pairs(authentic.estimate[possible], allowed_C[possible], authentic.level_C[possible])
        least = float(pairs.min(initial=np.inf))
        return int(np.ceil(least)) if least < _MOST_PAIRS / 2 else None


class _Tail:
    """How many pairs lie above a threshold, bounded for all thresholds at once."""

    def __init__(self, scores: Floats, level: float) -> None:
        self._scores = scores
        size = len(scores)
        self._grid_K = _grid(size)
        self.shares_K = _shares(len(self._grid_K))
        self._levels_K = level * self.shares_K
        parameters = self._grid_K + 1, size - self._grid_K
        self._upper_K: Values = beta.isf(self._levels_K, *parameters)
        self._lower_K: Values = beta.ppf(self._levels_K, *parameters)
        self.thresholds_K: Floats = np.nextafter(np.sort(scores)[size - 1 - self._grid_K], np.float32(np.inf))
        """The lowest that lets at most so many pairs of this population through."""

    def rate(self, thresholds_C: Floats, mass: float) -> _Rate:
        """The rate at any thresholds."""
        count_C = _reach(self._scores, thresholds_C)
        above = np.searchsorted(self._grid_K, count_C, "left")
        below = np.searchsorted(self._grid_K, count_C - 1, "right") - 1
        upper_C = np.append(self._upper_K, 1.0)[above]
        lower_C = np.where(below >= 0, self._lower_K[below], 0.0)
        return _Rate(
            mass, len(self._scores), count_C, lower_C, upper_C, np.append(self._levels_K, self._levels_K[-1])[above]
        )


def _first(enough_C: NDArray[np.bool_]) -> int | None:
    places = np.flatnonzero(enough_C)
    return int(places[0]) if len(places) else None


def _reach(scores: Floats, thresholds_C: Floats) -> Ints:
    """How many scores reach each threshold."""
    return np.asarray(len(scores) - np.searchsorted(np.sort(scores), thresholds_C, "left"))


def _grid(size: int) -> Ints:
    """0, 1, 2, 3, 4, 6, 8, 11, ... below `size`."""
    steps = int(np.log(size) / np.log(_GRID_STEP)) + 1
    powers = np.round(_GRID_STEP ** np.arange(steps)).astype(np.int64)
    return np.unique(np.concatenate([[0], powers[powers < size]]))


def _shares(count: int) -> Values:
    """1/2, 1/6, 1/12, ...: together less than 1."""
    places = np.arange(count)
    return 1.0 / ((places + 1) * (places + 2))


def _precision(right_C: Values, wrong: list[Values]) -> Values:
    """From what is flagged rightly and wrongly, as shares of all pairs; 0 where nothing is."""
    all_C = right_C + np.sum(wrong, axis=0)
    return np.divide(right_C, all_C, out=np.zeros_like(right_C), where=all_C > 0)


def _least_pairs(seen: Values, allowed: Values, level: float) -> Values:
    """The least number of pairs whose upper bound is `allowed` where the share `seen` is; bisected on its logarithm."""
    low, high = np.zeros_like(seen), np.full_like(seen, np.log(_MOST_PAIRS))
    for _ in range(64):
        middle = (low + high) / 2
        pairs = np.exp(middle)
        shown = beta.isf(level, seen * pairs + 1, pairs * (1 - seen)) <= allowed
        low, high = np.where(shown, low, middle), np.where(shown, middle, high)
    return np.asarray(np.exp(high))
