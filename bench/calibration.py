"""Measure how often a calibration breaks its promise, and the recall that it gives away.

Scores are drawn from known populations, so that the true precision of each chosen threshold is known. Two methods
choose on the same draws: bounds that hold at all thresholds together, and the exact tests that `asap calibrate` uses.
The oracle knows the populations and takes the lowest threshold with the target precision. A promise that is kept with a
confidence of 95 % may be broken in 5 % of the draws. A draw in which no threshold is shown has recall 0.

A second table is about pairs of one news item, whose logits correlate: the tests on all pairs, which take them for
independent, and on one pair of each item, as `asap calibrate` draws them.

    python bench/calibration.py [--runs 400]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import norm, t
from scipy.stats import uniform as flat

from asap.evaluation.news_items import one_of_each
from asap.evaluation.thresholds import Decision, OperatingCurve


class Population(NamedTuple):
    """Logits of a population: how to draw them, and the share above a logit."""

    draw: Callable[[np.random.Generator, int], np.ndarray]
    share_above: Callable[[np.ndarray], np.ndarray]


def _of(distribution: Any) -> Population:
    return Population(
        lambda generator, size: distribution.rvs(size=size, random_state=generator), lambda x: distribution.sf(x)
    )


def _mixed(main: Population, other: Population, part: float) -> Population:
    """Return a population of which a part comes from another one."""

    def draw(generator: np.random.Generator, size: int) -> np.ndarray:
        return np.where(generator.random(size) < part, other.draw(generator, size), main.draw(generator, size))

    return Population(draw, lambda x: (1 - part) * main.share_above(x) + part * other.share_above(x))


def _normal(mean: float, deviation: float = 1.0) -> Population:
    return _of(norm(mean, deviation))


class Setting(NamedTuple):
    """Populations, target and sizes of a calibration."""

    name: str
    authentic: Population
    positive: Population
    prevalence: float
    precision: float
    sizes: tuple[int, int]
    """Authentic and manipulated pairs."""


SETTINGS = (
    Setting("normal, few pairs", _normal(0), _normal(1.5), 0.5, 0.8, (300, 200)),
    Setting("normal", _normal(0), _normal(2.5), 0.2, 0.9, (800, 600)),
    Setting("normal, many pairs", _normal(0), _normal(2.5), 0.2, 0.9, (8000, 6000)),
    Setting("normal, rare", _normal(0), _normal(3.5), 0.02, 0.8, (3000, 1000)),
    Setting("normal, very rare", _normal(0), _normal(6), 0.001, 0.95, (100_000, 2000)),
    Setting("unequal spread", _normal(-3, 2), _normal(3, 3), 0.1, 0.8, (4000, 2000)),
    Setting("heavy tails", _of(t(3)), _of(t(3, loc=6)), 0.2, 0.8, (4000, 2000)),
    Setting("1 % of authentic pairs on top", _mixed(_normal(0), _normal(9), 0.01), _normal(4), 0.5, 0.9, (4000, 2000)),
    Setting("a third is not found", _normal(0), _mixed(_normal(4), _normal(0), 0.33), 0.1, 0.8, (4000, 2000)),
    Setting("bounded scores", _of(flat(-4, 6)), _of(flat(-1, 6)), 0.5, 0.9, (2000, 2000)),
)


def _score(logits: np.ndarray) -> np.ndarray:
    return (1 / (1 + np.exp(-logits))).astype(np.float32)


def measure(setting: Setting, runs: int) -> list[tuple[str, int, int, float, float]]:
    """Return for each method: draws with a threshold, broken promises, mean recall and CPU seconds a draw."""
    odds = setting.precision * (1 - setting.prevalence) / (setting.prevalence * (1 - setting.precision))

    def kept(logit: np.ndarray) -> np.ndarray:
        return setting.positive.share_above(logit) >= odds * setting.authentic.share_above(logit)

    grid = np.linspace(-20, 20, 200_001)
    # The lowest threshold from which on upwards every precision is kept would be too strict for a model with authentic
    # pairs on top, so the oracle takes the lowest one whose own precision is kept.
    oracle = float(setting.positive.share_above(grid[np.argmax(kept(grid))]))
    found: dict[str, list[float]] = {"together": [], "tests": []}
    broken = dict.fromkeys(found, 0)
    seconds = dict.fromkeys(found, 0.0)
    for seed in range(runs):
        generator = np.random.default_rng(seed)
        authentic, positive = (
            _score(population.draw(generator, size))
            for population, size in zip((setting.authentic, setting.positive), setting.sizes, strict=True)
        )
        for method in found:
            before = time.process_time()
            curve = OperatingCurve(Decision(authentic=authentic, positive=positive), setting.prevalence)
            if method == "tests":
                position = curve.choose(setting.precision)
            else:
                enough = np.flatnonzero(curve.precision_lower_C >= setting.precision)
                position = int(enough[0]) if len(enough) else None
            seconds[method] += time.process_time() - before
            if position is None:
                continue
            value = float(curve.thresholds_C[position])
            logit = np.array(np.log(value) - np.log1p(-value))
            found[method].append(float(setting.positive.share_above(logit)))
            broken[method] += not kept(logit)
    rows = [(name, len(found[name]), broken[name], sum(found[name]) / runs, seconds[name] / runs) for name in found]
    return [*rows, ("oracle", runs, 0, oracle, 0.0)]


class Items(NamedTuple):
    """News items of as many pairs each, whose logits correlate."""

    name: str
    count: int
    authentic: int
    """Authentic pairs of an item that has both classes."""
    manipulated: int
    correlation: float
    are_mixed: bool
    """True if each item has both classes. Otherwise an item has pairs of one class, as many as both numbers say."""


ITEMS = (
    Items("2 pairs, one class", 500, 1, 1, 0.5, are_mixed=False),
    Items("4 pairs, one class", 500, 2, 2, 0.5, are_mixed=False),
    Items("8 pairs, one class", 500, 5, 3, 0.9, are_mixed=False),
    Items("8 pairs, both classes", 500, 5, 3, 0.9, are_mixed=True),
    Items("1 authentic, 9 manipulated", 500, 1, 9, 0.5, are_mixed=True),
)


def measure_items(items: Items, runs: int) -> list[tuple[str, int, int, float]]:
    """Return for each method: draws with a threshold, broken promises and mean recall.

    The logits are normal, with mean 0 for authentic and 1.5 for manipulated pairs; the prevalence is 0.5, the target
    0.8. A promise is broken if the true precision at the chosen threshold is below the target.
    """
    prevalence, precision, mean = 0.5, 0.8, 1.5
    size = items.authentic + items.manipulated
    numbers = np.repeat(np.arange(items.count), size)
    found: dict[str, list[float]] = {"all pairs": [], "one of each item": []}
    broken = dict.fromkeys(found, 0)
    for seed in range(runs):
        generator = np.random.default_rng(seed)
        if items.are_mixed:
            fake = np.tile(np.arange(size) >= items.authentic, items.count)
        else:
            fake = np.repeat(generator.random(items.count) < items.manipulated / size, size)
        own, shared = generator.normal(size=len(fake)), generator.normal(size=items.count)[numbers]
        logits = mean * fake + np.sqrt(items.correlation) * shared + np.sqrt(1 - items.correlation) * own
        lots = generator.integers(0, 2**64, len(fake), np.uint64, endpoint=False)
        for method, used in (("all pairs", slice(None)), ("one of each item", one_of_each(numbers, fake, lots))):
            scores, is_fake = _score(logits[used]), fake[used]
            curve = OperatingCurve(Decision(authentic=scores[~is_fake], positive=scores[is_fake]), prevalence)
            position = curve.choose(precision)
            if position is None:
                continue
            value = float(curve.thresholds_C[position])
            logit = np.log(value) - np.log1p(-value)
            right, false = norm.sf(logit - mean), norm.sf(logit)
            found[method].append(float(right))
            broken[method] += bool(prevalence * right < precision * (prevalence * right + (1 - prevalence) * false))
    return [(method, len(found[method]), broken[method], sum(found[method]) / runs) for method in found]


def main() -> None:
    """Print two tables in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=400, help="Draws of each setting.")
    arguments = parser.parse_args()
    print("| scores | prevalence, target | authentic, manipulated | method | shown | broken | recall | CPU ms |")
    print("|---|---|---|---|---|---|---|---|")
    for setting in SETTINGS:
        for name, shown, broken, recall, seconds in measure(setting, arguments.runs):
            print(
                f"| {setting.name} | {setting.prevalence:g}, {setting.precision:g} | {setting.sizes[0]:,}, "
                f"{setting.sizes[1]:,} | {name} | {shown / arguments.runs:.1%} | {broken / arguments.runs:.1%} | "
                f"{recall:.3f} | {1000 * seconds:.0f} |",
                flush=True,
            )
    print("\n| news items | correlation | tests on | shown | broken | recall |\n|---|---|---|---|---|---|")
    for items in ITEMS:
        for method, shown, broken, recall in measure_items(items, arguments.runs):
            print(
                f"| {items.count} of {items.name} | {items.correlation:g} | {method} | {shown / arguments.runs:.1%} | "
                f"{broken / arguments.runs:.1%} | {recall:.3f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
