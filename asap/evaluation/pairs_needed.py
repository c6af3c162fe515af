"""The labeled pairs that a target precision needs, where those at hand do not show it.

The numbers are found by trying: the scores at hand are repeated until the tests of `thresholds` show the target, so
every rate stays as it is. More pairs with these scores would show it; others are likely to, and promise nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from asap.evaluation.thresholds import Decision, Floats, OperatingCurve

MOST_PAIRS = 1_000_000
"""Pairs of all kinds together up to which the scores are repeated."""
_NEAR = 1.05
"""The search ends when the number is known within this factor."""


class PairsNeeded(NamedTuple):
    """Numbers of labeled pairs."""

    authentic: int
    positive: int
    """Pairs with the feature."""


def pairs_needed(decision: Decision, prevalence: float, confidence: float, precision: float) -> PairsNeeded | None:
    """Return how many pairs would show a target that these do not show, if every rate stayed as it is.

    They are more authentic pairs alone if that is enough, else more of all kinds in the same mix. Beyond `MOST_PAIRS`
    the number is the estimate of `OperatingCurve.authentic_pairs_needed`, or None if that finds none either.

    Args:
        decision: the scores at hand, with at least one authentic and one positive pair.
        prevalence: the share of manipulated pairs where the thresholds will be used.
        confidence: the confidence of the promise.
        precision: the target.
    """

    def shows(more: Decision) -> bool:
        return OperatingCurve(more, prevalence, confidence).choose(precision) is not None

    authentic, positive = len(decision.authentic), len(decision.positive)
    others = positive + len(decision.other)
    enough = _least_factor(lambda factor: shows(_with_authentic(decision, factor)), (MOST_PAIRS - others) / authentic)
    if enough is not None:
        return PairsNeeded(round(enough * authentic), positive)
    enough = _least_factor(lambda factor: shows(_with_all(decision, factor)), MOST_PAIRS / (authentic + others))
    if enough is not None:
        return PairsNeeded(round(enough * authentic), round(enough * positive))
    estimate = OperatingCurve(decision, prevalence, confidence).authentic_pairs_needed(precision)
    return PairsNeeded(estimate, positive) if estimate is not None and estimate > MOST_PAIRS else None


def _least_factor(is_enough: Callable[[float], bool], most: float) -> float | None:
    """Return a factor above 1 that is enough and nearly the least, or None if not even `most` is."""
    if most <= 1 or not is_enough(most):
        return None
    low, high = 1.0, 2.0
    while high < most and not is_enough(high):
        low, high = high, 2 * high
    high = min(high, most)
    while high > _NEAR * low:
        middle = (low * high) ** 0.5
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high


def _with_authentic(decision: Decision, factor: float) -> Decision:
    return dataclasses.replace(decision, authentic=_repeat(np.sort(decision.authentic), factor))


def _with_all(decision: Decision, factor: float) -> Decision:
    # In the order of the scores, every eighth positive pair, which places the starts of the tests, is like the others.
    order = np.argsort(decision.positive, kind="stable")
    return Decision(
        authentic=_repeat(np.sort(decision.authentic), factor),
        positive=_repeat(decision.positive[order], factor),
        other=_repeat(np.sort(decision.other), factor),
        stray=None if decision.stray is None else _repeat(decision.stray[order], factor),
    )


def _repeat(scores: Floats, factor: float) -> Floats:
    """Return so many times as many scores, each about as often as the others."""
    count = round(factor * len(scores))
    return scores[(np.arange(count) * len(scores)) // max(count, 1)]
