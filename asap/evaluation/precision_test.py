"""An exact test that a threshold keeps a precision, and a sequence of such tests that chooses a threshold.

**One threshold.** The precision is below its target if `recall < c * false_positive_rate + d * other_rate + e *
stray_rate`, with constants c, d, e that follow from target and prevalence. Two counts show the opposite: X of m positive
pairs are flagged, Y of n authentic ones, and both are independent binomials.

Suppose first that there are no other and stray pairs. For any number t, consider the hypothesis that the false positive
rate is at least t and the recall at most c * t. It has two independent exact p-values, one from Y and one from X. They
become one by a weighted sum of their normal quantiles (Stouffer et al. 1949; Lipták 1958), which is valid for
independent p-values and weights that do not depend on the data. If the precision is below the target, the hypothesis is
true for t = the true false positive rate. So the largest of these p-values over all t is a valid p-value (union-
intersection: Casella and Berger 2002, 8.2.3). The weights may depend on t: those of the two standard errors at t make
the sum nearly the same for all t, so that the maximum costs little. Two bounds with half of the error probability each
(Bonferroni) need about 1.2 to 1.4 times the distance.

Rates of other and stray pairs are replaced by upper bounds of Clopper and Pearson, for which a fixed part of the error
probability is spent (Bonferroni). Other pairs are independent of X and Y, so their bound may be in the weights; stray
counts are of the positive pairs, so theirs is not.

**Many thresholds.** Testing every threshold with a correction for their number wastes most of the error probability,
for they nearly repeat each other. Instead they are tested in an order that is fixed before the counts are seen: from a
start downwards, until a test fails. No correction is needed: an error requires that the first threshold of the order
that is below the target is accepted, and that is one test (fixed sequence testing: Maurer et al. 1995; Learn then Test:
Angelopoulos et al. 2021, section 4). There are several starts, each with a part of the error probability, and the part
of a start is handed on where all tests down to the next start succeed (fallback procedure: Wiens and Dmitrienko 2005).
The family error rate stays below the whole: let j be the first stretch between two starts that has a threshold below
the target. Its error has at most the parts handed out up to j; without this error, nothing is handed on beyond j, and
the same holds for the later stretches with the parts that are left.

The starts must not depend on the counts. So every eighth positive pair (`PILOT_STEP`) only helps to place them, and the
tests use the others. All authentic pairs are used. The thresholds themselves are all numbers of float32 below a start,
which no data chose. The counts change only at scores, and between two thresholds a test takes the lower recall of the
upper one and the higher false flags of the lower one, which is on the safe side.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc, gammaincinv, ndtri
from scipy.stats import beta

Floats = NDArray[np.float32]
Values = NDArray[np.float64]
Ints = NDArray[np.int64]

PILOT_STEP = 8
"""One positive pair of so many places the starts."""
_STARTS = ((0, 0.1), (1, 0.15), (4, 0.25), (12, 0.25), (36, 0.25))
"""For each start: the false positives that a test there should survive, and its part of the error probability."""
_EXTRA_SHARE = 0.15
"""The part of a test's error probability for the upper bound of other pairs, and the same for stray ones."""
_CELLS = 40
_WIDTH = 5.0
_CHUNK = 48


@dataclass(frozen=True)
class Odds:
    """The constants of the hypothesis `recall < c * false_positive_rate + d * other_rate + e * stray_rate`."""

    authentic: float
    other: float
    stray: float

    @classmethod
    def of(cls, precision: float, authentic: float, positive: float, other: float) -> Odds:
        """Return the constants for a target precision and the shares of the three populations."""
        odds = precision / (1 - precision)
        return cls(odds * authentic / positive, odds * other / positive, odds)


@dataclass(frozen=True)
class Sizes:
    """The numbers of pairs that are counted."""

    authentic: float
    positive: int
    other: int = 0
    has_stray: bool = False


@dataclass(frozen=True)
class FlagCounts:
    """The pairs that are flagged at each of K thresholds."""

    authentic_K: NDArray[np.number]
    positive_K: NDArray[np.number]
    other_K: NDArray[np.number]
    stray_K: NDArray[np.number]

    def __getitem__(self, some: slice) -> FlagCounts:
        return FlagCounts(self.authentic_K[some], self.positive_K[some], self.other_K[some], self.stray_K[some])


def is_shown(counts: FlagCounts, sizes: Sizes, odds: Odds, level: float) -> NDArray[np.bool_]:
    """Return, for each of K thresholds, True if its precision is shown to be above the target.

    Each answer alone is wrong with at most the probability `level`, if the precision is below the target.
    """
    extra = _EXTRA_SHARE * level
    other_K = np.zeros(len(counts.positive_K))
    shift_K = other_K.copy()
    if sizes.other:
        level -= extra
        other_K += odds.other * _upper(counts.other_K, sizes.other, extra)
    if sizes.has_stray:
        level -= extra
        shift_K += odds.stray * _upper(counts.stray_K, sizes.positive, extra)
    return _least_sum(counts.authentic_K, counts.positive_K, sizes, odds.authentic, other_K, shift_K) >= -ndtri(level)


def _upper(count_K: NDArray[np.number], size: int, level: float) -> Values:
    """Return the upper bounds of Clopper and Pearson."""
    full = count_K >= size
    return np.where(full, 1.0, beta.isf(level, count_K + 1, np.where(full, 1, size - count_K)))


def _least_sum(
    false_K: NDArray[np.number], right_K: NDArray[np.number], sizes: Sizes, c: float, known_K: Values, shift_K: Values
) -> Values:
    """Return a lower bound of the weighted sum of both normal quantiles over all false positive rates t.

    The interval of t is cut into cells. Within a cell the quantile of Y grows with t and that of X falls, so the one at
    the lower end and the other at the upper end bound their sum. The cells follow the counts, but any cells give a
    bound. The weights are those of the standard errors at t; they only turn one way as t grows, so the sum in a cell is
    least at one of its ends if it is positive. Below `low` only X counts, from `high` on only Y.
    """
    n, m = sizes.authentic, sizes.positive
    low = 0.02 / n
    # Where the recall that the hypothesis allows is nearly 1, X can show nothing.
    high_K = np.clip((m / (m + 1) - known_K) / c, low, 1 - 1e-12)
    middle_K = np.sqrt(false_K + 1.0)[:, None] + np.linspace(-_WIDTH, _WIDTH, _CELLS) / 2
    near_KN = np.maximum(middle_K, 0.0) ** 2 / n
    far_KN = np.exp(np.log(low) + np.linspace(0, 1, 24) * (np.log(high_K) - np.log(low))[:, None])
    t_KN = np.sort(np.clip(np.concatenate([near_KN, far_KN], axis=1), low, high_K[:, None]), axis=1)
    allowed_KN = np.minimum(c * t_KN + known_K[:, None], 1.0)
    from_false_KN = _quantile_of_false(false_K[:, None], n, t_KN)
    from_right_KN = _quantile_of_right(right_K[:, None], m, np.minimum(allowed_KN + shift_K[:, None], 1.0))
    error_false_KN = c * np.sqrt(t_KN * (1 - t_KN) / n)
    error_right_KN = np.sqrt(allowed_KN * (1 - allowed_KN) / m)
    length_KN = np.hypot(error_false_KN, error_right_KN)
    weight_false_KN, weight_right_KN = error_false_KN / length_KN, error_right_KN / length_KN
    lower_KN, upper_KN = from_false_KN[:, :-1], from_right_KN[:, 1:]
    cells_KN = np.minimum(
        weight_false_KN[:, :-1] * lower_KN + weight_right_KN[:, :-1] * upper_KN,
        weight_false_KN[:, 1:] * lower_KN + weight_right_KN[:, 1:] * upper_KN,
    )
    # Cells without a width have nothing inside.
    least_K = np.where(np.diff(t_KN, axis=1) > 0, cells_KN, np.inf).min(axis=1)
    return np.minimum(np.minimum(least_K, from_right_KN[:, 0]), from_false_KN[:, -1])


def _quantile_of_false(count: NDArray[np.number], size: float, rate: Values) -> Values:
    """Return the normal quantile of P(more than `count` of `size` are flagged), which is large if few are."""
    rest = np.maximum(size - count, 0.0)
    more = np.where(rest > 0, betainc(count + 1.0, np.where(rest > 0, rest, 1.0), rate), 0.0)
    return np.clip(ndtri(more), -1e3, 8.0)


def _quantile_of_right(count: NDArray[np.number], size: int, rate: Values) -> Values:
    """Return the normal quantile of P(fewer than `count` of `size` are flagged), which is large if many are."""
    at_least = np.where(count > 0, betainc(np.maximum(count, 1.0), size - np.maximum(count, 1.0) + 1.0, rate), 1.0)
    return np.clip(-ndtri(at_least), -1e3, 8.0)


@dataclass(frozen=True, eq=False)
class Sequence:
    """The scores in the order in which their thresholds are tested: pilot, tests, and the thresholds tried."""

    authentic: Floats
    positive: Floats
    other: Floats
    stray: Floats | None
    thresholds_C: Floats
    """The thresholds that may be chosen, from the lowest to the highest."""

    @property
    def pilot(self) -> NDArray[np.bool_]:
        """True for each positive pair that places the starts."""
        return np.arange(len(self.positive)) % PILOT_STEP == PILOT_STEP - 1

    def sizes(self) -> Sizes:
        """Return the numbers of pairs that the tests count."""
        return Sizes(len(self.authentic), int((~self.pilot).sum()), len(self.other), self.stray is not None)

    def starts(self, odds: Odds, level: float) -> dict[float, float]:
        """Return the parts of the error probability by the threshold at which each begins."""
        pilot = np.sort(self.positive[self.pilot])[::-1]
        if not len(pilot):
            return {0.5: 1.0}
        # The recall at which a start would survive its false positives, by the pilot's recall at each of its scores.
        parts: dict[float, float] = {}
        for allowed, part in _STARTS:
            expected = gammaincinv(allowed + 1, 1 - level * part)
            recall = 1.1 * odds.authentic * expected / len(self.authentic)
            if recall < 0.95:
                start = float(pilot[min(int(np.ceil(recall * len(pilot))), len(pilot) - 1)])
                parts[start] = parts.get(start, 0.0) + part
        if not parts:  # every pair is needed: one start, where nearly all positive pairs are flagged
            parts[float(pilot[int(0.95 * (len(pilot) - 1))])] = 1.0
        total = sum(parts.values())
        return {start: part / total for start, part in parts.items()}

    def shown(self, odds: Odds, level: float) -> NDArray[np.bool_]:
        """Return, for each of `thresholds_C`, True if the tests reach it.

        All answers together are wrong with at most the probability `level`.
        """
        starts = {np.float32(start): part for start, part in self.starts(odds, level).items()}
        bounds = np.unique(np.concatenate([self.thresholds_C, np.array([*starts], np.float32)]))[::-1]
        bounds = bounds[bounds <= max(starts)]
        counts, sizes = self._counts(bounds), self.sizes()
        reached: set[np.float32] = set()
        begins = [int(np.flatnonzero(bounds == start)[0]) for start in sorted(starts, reverse=True)]
        handed_on = 0.0
        for begin, end in zip(begins, [*begins[1:], len(bounds) - 1], strict=True):
            available = handed_on + level * starts[bounds[begin]]
            passed = begin
            while passed < end:
                some = is_shown(counts[passed : min(passed + _CHUNK, end)], sizes, odds, available)
                good = len(some) if some.all() else int(np.argmin(some))
                reached.update(bounds[passed + 1 : passed + good + 1].tolist())
                passed += good
                if good < len(some):
                    break
            handed_on = available if passed == end else 0.0
        return np.isin(self.thresholds_C, np.array([*reached], np.float32))

    def _counts(self, bounds: Floats) -> FlagCounts:
        """Return the counts between neighboring bounds, which fall: the least right and the most wrong flags."""
        upper, lower = bounds[:-1], bounds[1:]
        positive = self.positive[~self.pilot]
        stray_K = np.zeros(len(upper), np.int64)
        if self.stray is not None:
            stray = self.stray[~self.pilot]
            # Reached in the wrong place from the lower bound on, and not in the right one from the upper bound on.
            stray_K = np.array(
                [np.sum((stray >= low) & (positive < high)) for low, high in zip(lower, upper, strict=True)], np.int64
            )
        return FlagCounts(_reach(self.authentic, lower), _reach(positive, upper), _reach(self.other, lower), stray_K)


def _reach(scores: Floats, thresholds_K: Floats) -> Ints:
    """Count the scores that reach each threshold."""
    return np.asarray(len(scores) - np.searchsorted(np.sort(scores), thresholds_K, "left"))
