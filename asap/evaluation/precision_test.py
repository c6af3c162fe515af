"""An exact test that a threshold keeps a precision, and a sequence of such tests that chooses a threshold.

**One threshold.** The precision is below its target if `recall < c * false_positive_rate + d * other_rate + e *
stray_rate`, with constants c, d, e that follow from target and prevalence. Two counts show the opposite: X of m
positive pairs are flagged, Y of n authentic ones, and both are independent binomials.

Suppose first that there are no other and stray pairs. For any number t, consider the hypothesis that the false positive
rate is at least t and the recall at most c * t. It has two independent exact p-values, one from Y and one from X. They
become one by a weighted sum of their normal quantiles (Stouffer et al. 1949; Lipták 1958), which is valid for
independent p-values and weights that do not depend on the data. If the precision is below the target, the hypothesis is
true for t = the true false positive rate. So the largest of these p-values over all t is a valid p-value (union-
intersection: Casella and Berger 2002, 8.2.3). The weights may depend on t: those of the two standard errors at t make
the sum nearly the same for all t, so that the maximum costs little. Two bounds with half of the error probability each
(Bonferroni) need about 1.2 to 1.4 times the distance.

Rates of other and stray pairs are replaced by upper bounds of Clopper and Pearson, for which a part of the error
probability is spent that follows from sizes and odds (Bonferroni). Other pairs are independent of X and Y, so their
bound may be in the weights; stray counts are of the positive pairs, so theirs is not.

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
upper one and the higher false flags of the lower one, and looks at all rates that either count of false flags allows.
So it shows nothing that the test at a threshold between them would not show.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc, betaincc, gammaincinv, ndtri, ndtri_exp, rel_entr
from scipy.stats import beta

Floats = NDArray[np.float32]
Values = NDArray[np.float64]
Ints = NDArray[np.int64]

PILOT_STEP = 8
"""One positive pair of so many places the starts."""
_STARTS = (0, 1, 3, 8, 20)
"""False positives that a test at each start should survive. More make a start robust, but need a higher recall."""
_RECALLS = (0.5, 0.8, 0.95)
_RECALL_PART = 0.01
_EXTRA_SHARES = (0.05, 0.3)
"""The least and the most of a test's error probability for the upper bound of other pairs, and for stray ones."""
_OUTSIDE_SHARE = 0.02
"""The part of a test's error probability, on each side, for false positive rates that are not looked at."""
_CELLS = 40
_CHUNK = 48
_FAR = 40.0
"""A normal quantile beyond all that float64 can tell from certainty."""


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

    authentic: float | Values
    """One number, or one for each threshold."""
    positive: int
    other: int = 0
    has_stray: bool = False


@dataclass(frozen=True)
class FlagCounts:
    """The pairs that are flagged at each of K thresholds, or at any threshold of each of K ranges of them."""

    authentic_K: NDArray[np.number]
    """The most that are flagged in a range, as of other and stray pairs."""
    positive_K: NDArray[np.number]
    """The fewest that are flagged in a range."""
    other_K: NDArray[np.number]
    stray_K: NDArray[np.number]
    fewest_authentic_K: NDArray[np.number] | None = None
    """The fewest authentic pairs that are flagged in a range; None for single thresholds."""

    def __getitem__(self, some: slice) -> FlagCounts:
        fewest_K = None if self.fewest_authentic_K is None else self.fewest_authentic_K[some]
        return FlagCounts(
            self.authentic_K[some], self.positive_K[some], self.other_K[some], self.stray_K[some], fewest_K
        )


def is_shown(counts: FlagCounts, sizes: Sizes, odds: Odds, level: float | Values) -> NDArray[np.bool_]:
    """Return, for each of K thresholds, True if its precision is shown to be above the target.

    Each answer alone is wrong with at most the probability `level`, if the precision is below the target.
    """
    other_K = np.zeros(len(counts.positive_K))
    shift_K = other_K.copy()
    # What one more false flag costs says how much of the error probability each rate deserves.
    authentic = odds.authentic / np.asarray(sizes.authentic)
    rest = np.asarray(level)
    if sizes.other:
        extra = _extra_share(odds.other / sizes.other, authentic) * level
        rest = rest - extra
        other_K += odds.other * _upper(counts.other_K, sizes.other, extra)
    if sizes.has_stray:
        extra = _extra_share(odds.stray / sizes.positive, authentic) * level
        rest = rest - extra
        shift_K += odds.stray * _upper(counts.stray_K, sizes.positive, extra)
    outside = _OUTSIDE_SHARE * rest
    least_K = _least_sum(counts, sizes, odds.authentic, other_K, shift_K, outside)
    return np.asarray(least_K >= -ndtri(rest - 2 * outside))


def _extra_share(cost: float, authentic: Values) -> Values:
    """Return the part of the error probability for a rate, by the costs of its flags and of authentic ones.

    For rates of which nothing is flagged, the bounds are `-cost * log(level)`, whose sum is least for such parts.
    """
    return np.asarray(np.clip(cost / (cost + authentic), *_EXTRA_SHARES))


def _upper(count_K: NDArray[np.number], size: int, level: Values) -> Values:
    """Return the upper bounds of Clopper and Pearson."""
    full = count_K >= size
    return np.where(full, 1.0, beta.isf(level, count_K + 1, np.where(full, 1, size - count_K)))


def _least_sum(
    counts: FlagCounts,
    sizes: Sizes,
    c: float,
    known_K: Values,
    shift_K: Values,
    outside: Values,
) -> Values:
    """Return a lower bound of the weighted sum of both normal quantiles over the false positive rates t.

    Rates outside the interval of Clopper and Pearson, with the error probability `outside` on each side, are left out
    (Berger and Boos 1994). The interval is cut into cells. Within a cell the quantile of Y grows with t and that of X
    falls, so the one at the lower end and the other at the upper end bound their sum, whatever the cells. The weights
    are those of the standard errors at t. Within a cell they only turn one way as t grows (`_turning_point` is the end
    of one), so the sum in a cell is least at one of its ends if it is positive. Where the recall that the hypothesis
    allows is nearly 1, X can show nothing and only Y counts; where t is nearly 0, Y can show nothing and only X counts.
    """
    false_K, right_K, m = counts.authentic_K, counts.positive_K, sizes.positive
    n = np.broadcast_to(np.asarray(sizes.authentic, np.float64), np.shape(false_K))
    count, rest = false_K.astype(np.float64), np.maximum(n - false_K, 0.0)
    fewest = count if counts.fewest_authentic_K is None else counts.fewest_authentic_K.astype(np.float64)
    first_K = np.where(fewest > 0, beta.ppf(outside, np.maximum(fewest, 1e-9), np.maximum(n - fewest, 0.0) + 1), 0.0)
    only_right = 0.02 / n
    starts_at_0_K = first_K < only_right
    first_K = np.maximum(first_K, only_right)
    last_K = np.where(rest > 0, beta.isf(outside, count + 1, np.where(rest > 0, rest, 1.0)), 1.0)
    only_false_K = np.clip((m / (m + 1) - known_K) / c, 0.0, 1.0)
    end_K = np.maximum(np.minimum(last_K, only_false_K), first_K)
    roots_KN = np.sqrt(first_K)[:, None] + np.linspace(0, 1, _CELLS) * (np.sqrt(end_K) - np.sqrt(first_K))[:, None]
    # Close to a recall of 1 the quantile of X changes fast, so more cells follow the recall there.
    angles_KN = [np.arcsin(np.sqrt(np.minimum(c * t_K + known_K, 1.0))) for t_K in (first_K, end_K)]
    turned_KN = angles_KN[0][:, None] + np.linspace(0, 1, _CELLS) * (angles_KN[1] - angles_KN[0])[:, None]
    recall_KN = (np.sin(turned_KN) ** 2 - known_K[:, None]) / c
    turning_K1 = _turning_point(c, known_K)[:, None]
    ends_KN = np.concatenate([roots_KN**2, recall_KN, turning_K1], axis=1)
    t_KN = np.sort(np.clip(ends_KN, first_K[:, None], end_K[:, None]), axis=1)
    allowed_KN = np.minimum(c * t_KN + known_K[:, None], 1.0)
    from_false_KN = _quantile_of_false(count[:, None], n[:, None], t_KN)
    from_right_KN = _quantile_of_right(right_K[:, None], m, np.minimum(allowed_KN + shift_K[:, None], 1.0))
    # Both variances without a factor that they share, so that they have a ratio at t = 0 too.
    t_KN = np.maximum(t_KN, 1e-300)
    ratio_KN = np.sqrt(n[:, None] * allowed_KN * (1 - allowed_KN) / (m * c * c * t_KN * np.maximum(1 - t_KN, 1e-300)))
    turn_KN = np.arctan(ratio_KN)
    weight_false_KN, weight_right_KN = np.cos(turn_KN), np.sin(turn_KN)
    lower_KN, upper_KN = from_false_KN[:, :-1], from_right_KN[:, 1:]
    least_K = np.minimum(
        weight_false_KN[:, :-1] * lower_KN + weight_right_KN[:, :-1] * upper_KN,
        weight_false_KN[:, 1:] * lower_KN + weight_right_KN[:, 1:] * upper_KN,
    )
    # Cells without a width have nothing inside.
    least_K = np.where(np.diff(t_KN, axis=1) > 0, least_K, np.inf).min(axis=1)
    least_K = np.where(starts_at_0_K, np.minimum(least_K, from_right_KN[:, 0]), least_K)
    beyond_K = _quantile_of_false(count, n, np.maximum(only_false_K, first_K))
    return np.where(last_K > only_false_K, np.minimum(least_K, beyond_K), least_K)


def _turning_point(c: float, known_K: Values) -> Values:
    """Return the t at which the ratio of the two standard errors is least; there is one if c + known < 1.

    The ratio is that of `a * (1 - a)` with `a = c * t + known` to `t * (1 - t)`. Its derivative is 0 where
    `c * (1 - 2 * known - c) * t**2 + 2 * known * (1 - known) * t = known * (1 - known)`.
    """
    rest_K = np.maximum(known_K * (1 - known_K), 0.0)
    root_K = np.sqrt(np.maximum(rest_K**2 + c * (1 - 2 * known_K - c) * rest_K, 0.0))
    return np.asarray(rest_K / np.maximum(rest_K + root_K, 1e-300))


def _quantile_of_false(count: NDArray[np.number], size: Values, rate: Values) -> Values:
    """Return the normal quantile of P(more than `count` of `size` are flagged), which is large if few are."""
    rest = size - count
    return np.where(rest > 0, _beta_quantile(count + 1.0, np.where(rest > 0, rest, 1.0), rate), -_FAR)


def _quantile_of_right(count: NDArray[np.number], size: int, rate: Values) -> Values:
    """Return the normal quantile of P(fewer than `count` of `size` are flagged), which is large if many are."""
    some = np.maximum(count, 1.0)
    exact = np.where(count > 0, -_beta_quantile(some, size - some + 1.0, rate), -_FAR)
    # Beyond the smallest numbers of float64 the bound of Chernoff (1952) is good enough.
    share = count / size
    divergence = np.where(share > rate, size * (rel_entr(share, rate) + rel_entr(1 - share, 1 - rate)), 0.0)
    bound = -ndtri_exp(-np.clip(divergence, 1e-9, 1e9))
    return np.where(exact > _FAR - 5, np.maximum(exact, bound), exact)


def _beta_quantile(a: NDArray[np.number], b: NDArray[np.number], rate: Values) -> Values:
    """Return the normal quantile of P(Beta(a, b) <= rate), exact in both tails."""
    below, above = betainc(a, b, rate), betaincc(a, b, rate)
    return np.clip(np.where(below < above, ndtri(below), -ndtri(above)), -_FAR, _FAR)


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
        # The recall at which a start would survive its false positives, by the pilot's recall at each of its scores. A
        # start at a high recall is more often beyond what the target permits, so it gets less.
        parts: dict[float, float] = {}
        extra = odds.other / len(self.other) if len(self.other) else 0.0
        extra += odds.stray / len(self.positive) if self.stray is not None else 0.0
        for allowed in _STARTS:
            recall = odds.authentic * gammaincinv(allowed + 1, 1 - level / 3) / len(self.authentic)
            recall -= extra * np.log(level / 3)
            if recall < 0.9:
                start = float(pilot[min(int(np.ceil(recall * len(pilot))), len(pilot) - 1)])
                parts[start] = parts.get(start, 0.0) + (1 - recall) ** 2
        # A few starts at fixed recalls, for models with authentic pairs among the highest scores or with few pairs.
        for recall in _RECALLS:
            start = float(pilot[int(recall * (len(pilot) - 1))])
            parts[start] = parts.get(start, 0.0) + _RECALL_PART
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
        most, fewest = reach(self.authentic, lower), reach(self.authentic, upper)
        return FlagCounts(most, reach(positive, upper), reach(self.other, lower), stray_K, fewest)


def reach(scores: Floats, thresholds_K: Floats) -> Ints:
    """Count the scores that reach each threshold."""
    return np.asarray(len(scores) - np.searchsorted(np.sort(scores), thresholds_K, "left"))
