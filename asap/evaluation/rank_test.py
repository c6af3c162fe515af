"""Exact tests of a precision at thresholds that the wrong pairs themselves place: their first few ranks.

A sequence of tests (`precision_test`) has to start somewhere, and where few false flags can be survived, most starts
fail. These tests need no start. They look at a few thresholds: the lowest one that flags at most k authentic and at
most j other pairs, for fixed k and j.

**One threshold.** The precision is below its target if `recall < c * false_positive_rate + d * other_rate`, as in
`precision_test`. The threshold that flags at most k of n authentic pairs has a false positive rate whose distribution
is that of U ~ Beta(k + 1, n - k) for any model, or below it if scores are equal (Wilks 1941). The rate V ~ Beta(j + 1,
o - j) of o other pairs is independent of it. The higher one of both thresholds has no more than both rates. The
threshold follows from wrong pairs alone, so the count X of m positive pairs is binomial for it. If the precision is
below the target, the recall is below cU + dV, so

    P(error) <= P(Binomial(m, cU + dV) >= x), averaged over U and V,

where x is the least count that is accepted. This average is the p-value. It needs no division between the rates, so it
is never above the sum of the two error probabilities for which separate bounds would show the target. It is computed
from cells of U and V, each with its upper end, so it is rounded up.

Stray counts are of the positive pairs, so their rate is not independent of X. With them, the error probability is
divided between the quantile of cU + dV, the bound of Clopper and Pearson of the stray rate, and X (Bonferroni).

**Many thresholds.** Each pair of k and j has a part of the error probability (Bonferroni). The parts depend on sizes
and odds alone, so they are fixed before the counts are seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc, betainccinv, gammainc

from asap.evaluation.precision_test import Floats, Ints, Odds, Values, reach

_COUNTS = (0, 1, 2, 3, 4, 6, 8, 11, 16, 23, 32, 45)
"""False flags of the thresholds tested. With more, the sequence of tests does better."""
_SURVIVED = 20
"""The larger, the less goes to counts that even a recall of 1 hardly survives."""
_CELLS = 128
_REST = 0.01
"""The part of a test's error probability for rates that are beyond all cells."""
_OTHER_PARTS = {0.0: 0.25, 0.03: 0.15, 0.1: 0.45, 0.25: 0.15}
"""The parts of the error probability, by how much of their room the other pairs that are flagged use up."""
_MOST_ROOM, _TRIES = 1000.0, 32
"""The largest room, as a number of false flags, for which a number of authentic pairs is looked for."""
_LEAST_PART = 1e-4
"""Tests with a smaller part of the error probability are left out."""


@dataclass(frozen=True)
class Room:
    """The false flags that could be survived if all positive pairs were flagged, in expectation."""

    authentic: float
    other: float | None
    """None if there are no other pairs."""

    @classmethod
    def of(cls, odds: Odds, authentic: float, other: int) -> Room:
        """Return the room that the sizes leave."""
        return cls(authentic / odds.authentic, other / odds.other if other else None)

    def share(self, level: float) -> float:
        """Return the part of the error probability that these tests get; the sequence of tests gets the rest.

        Where sizes alone say that only a few false flags can be survived, the sequence would start in vain.
        """
        room = self.authentic if self.other is None else min(self.authentic, self.other)
        return min(0.95, 10 / (10 + max(0.0, room + np.log(level))))

    def parts(self) -> dict[tuple[int, int], float]:
        """Return the parts of the error probability by the numbers of authentic and other pairs flagged."""
        authentic = _parts(self.authentic)
        other = {0: 1.0} if self.other is None else _other_parts(self.other)
        return {
            (k, j): part * share
            for k, part in authentic.items()
            for j, share in other.items()
            if part * share > _LEAST_PART
        }


def _parts(room: float) -> dict[int, float]:
    """Return a part for each count: 1/2, 1/6, 1/12, ..., less where the room is hardly enough for the count."""
    counts, numbers = np.array(_COUNTS), np.arange(len(_COUNTS))
    weights = gammainc(counts + 1, max(room, 0.1)) ** _SURVIVED / ((numbers + 1) * (numbers + 2))
    return dict(zip(_COUNTS, (weights / weights.sum()).tolist(), strict=True))


def _other_parts(room: float) -> dict[int, float]:
    """Return a part for each count of other pairs: few counts, because each is combined with all authentic ones."""
    parts: dict[int, float] = {}
    for used, part in _OTHER_PARTS.items():
        parts[int(used * room)] = parts.get(int(used * room), 0.0) + part
    return parts


@dataclass(frozen=True)
class Rates:
    """The distribution of cU + dV: values, each rounded up, and their probabilities."""

    values: Values
    masses: Values

    @classmethod
    def of(cls, terms: list[tuple[float, int, float]], level: float) -> Rates:
        """Return the distribution of a sum of rates.

        Args:
            terms: the factor of each rate, the number of pairs flagged, and the number of pairs.
            level: the error probability of the test, which says how far the cells must go.
        """
        tails = np.append(np.geomspace(1, _REST * level / len(terms), _CELLS + 1), 0.0)
        masses, values = np.ones(1), np.zeros(1)
        for factor, count, size in terms:
            ends = factor * np.append(betainccinv(count + 1.0, size - count, tails[1:-1]), 1.0)
            values = (values[:, None] + ends).ravel()
            masses = (masses[:, None] * -np.diff(tails)).ravel()
        if len(terms) > 1:
            # As few cells as one rate has, again with the upper end of each.
            order = np.argsort(values)
            values, masses = values[order], masses[order]
            above = np.cumsum(masses[::-1])[::-1]
            cell = np.searchsorted(-tails, -above)
            first = np.flatnonzero(np.diff(cell, prepend=-1))
            values, masses = values[np.append(first[1:], len(values)) - 1], np.add.reduceat(masses, first)
        return cls(values, masses)


def shows_target(right: int, positive: int, rates: Rates, level: float, stray: tuple[float, int] | None = None) -> bool:
    """Return True if `right` of the positive pairs being flagged shows the target.

    Args:
        right: the number of positive pairs that are flagged.
        positive: the number of positive pairs.
        rates: the distribution of the wrong flags.
        level: the error probability.
        stray: the odds of stray pairs and the number of pairs that are flagged in the wrong location alone.
    """
    if not right:
        return False
    if stray is None:
        chances = betainc(right, positive - right + 1, np.minimum(rates.values, 1.0))
        return float((rates.masses * chances).sum()) <= level
    # What a bound costs says how much of the error probability it deserves.
    odds, count = stray
    mean = float((rates.masses * rates.values).sum())
    costs = np.array([mean, odds / positive, 0.2 / np.sqrt(positive)])
    of_rates, of_stray, of_right = level * costs / costs.sum()
    above = np.cumsum(rates.masses[::-1])[::-1]
    # The last value above which more probability is left: what is beyond it has no more than its part.
    most = rates.values[max(int(np.sum(above > of_rates)) - 1, 0)]
    upper = betainccinv(count + 1, positive - count, of_stray) if count < positive else 1.0
    return bool(betainc(right, positive - right + 1, min(1.0, most + odds * upper)) <= of_right)


@dataclass(frozen=True, eq=False)
class RankTests:
    """The scores of a decision, and the thresholds that may be chosen."""

    authentic: Floats
    positive: Floats
    other: Floats
    stray: Floats | None
    thresholds_C: Floats
    """The thresholds that may be chosen, from the lowest to the highest."""

    def room(self, odds: Odds, authentic: float | None = None) -> Room:
        """Return the false flags that could be survived, with another number of authentic pairs if it is given."""
        return Room.of(odds, len(self.authentic) if authentic is None else authentic, len(self.other))

    def shown(self, odds: Odds, level: float) -> NDArray[np.bool_]:
        """Return, for each of `thresholds_C`, True if one of the tests shows the target at it.

        All answers together are wrong with at most the probability `level`.
        """
        shown_C = np.zeros(len(self.thresholds_C), bool)
        for (k, j), part in self.room(odds).parts().items():
            position = self._position(k, j)
            if position is not None and not shown_C[position]:
                shown_C[position] = self.is_shown(k, j, position, len(self.authentic), odds, part * level)
        return shown_C

    def is_shown(self, k: int, j: int, position: int, authentic: float, odds: Odds, level: float) -> bool:
        """Return True if the target is shown at the threshold at `position`, with so many authentic pairs."""
        right, size = int(self._right[position]), len(self.positive)
        terms = [(odds.authentic, k, authentic)]
        if len(self.other):
            terms.append((odds.other, j, len(self.other)))
        # The average of the rates alone is too high: nothing to compute.
        if right / size <= sum(factor * (count + 1) / (number + 1) for factor, count, number in terms):
            return False
        stray = None if self._stray is None else (odds.stray, int(self._stray[position]))
        return shows_target(right, size, Rates.of(terms, level), level, stray)

    @cached_property
    def _right(self) -> Ints:
        """The numbers of positive pairs that are flagged at each threshold."""
        return reach(self.positive, self.thresholds_C)

    @cached_property
    def _stray(self) -> Ints | None:
        """The numbers of positive pairs that are flagged in the wrong location alone at each threshold."""
        if self.stray is None:
            return None
        return reach(self.stray, self.thresholds_C) - reach(np.minimum(self.stray, self.positive), self.thresholds_C)

    @cached_property
    def _wrong(self) -> tuple[Floats, Floats]:
        """The scores of authentic and of other pairs, from the highest."""
        authentic, other = (np.sort(scores)[::-1] for scores in (self.authentic, self.other))
        return authentic, other

    def _position(self, k: int, j: int) -> int | None:
        """Return the position of the lowest threshold with at most k authentic and at most j other pairs."""
        highest = np.float32(0)
        for scores, count in zip(self._wrong, (k, j), strict=True):
            if not len(scores):
                continue
            if count >= len(scores):
                return None
            highest = max(highest, scores[count])
        position = int(np.searchsorted(self.thresholds_C, highest, "right"))
        return position if position < len(self.thresholds_C) else None

    def authentic_pairs_needed(self, odds: Odds, level: float) -> float:
        """Return how many authentic pairs would show the target where none of those at hand is flagged; or infinity.

        Args:
            odds: the constants of the target.
            level: the error probability of all tests of the target, of which these tests get their share.
        """
        least = np.inf
        tried = odds.authentic * np.geomspace(1, _MOST_ROOM, _TRIES)
        for j in sorted({j for _, j in self.room(odds).parts()}):
            position = self._position(0, j)
            if position is None:
                continue

            def is_enough(pairs: float, j: int = j, position: int = position) -> bool:
                room = self.room(odds, pairs)
                part = room.share(level) * room.parts().get((0, j), 0.0)
                return part > 0 and self.is_shown(0, j, position, pairs, odds, part * level)

            enough = next((number for number, pairs in enumerate(tried) if is_enough(float(pairs))), 0)
            if not enough:
                continue
            low, high = float(tried[enough - 1]), float(tried[enough])
            while high - low > 1e-9 * high:
                middle = (low + high) / 2
                low, high = (low, middle) if is_enough(middle) else (middle, high)
            least = min(least, high)
        return least
