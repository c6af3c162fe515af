"""Measure how often a calibration breaks its promise, and the recall that it gives away.

Scores are drawn from known populations, so that the true precision of each chosen threshold is known. Two methods
choose on the same draws: bounds that hold at all thresholds together, and the exact tests that `asap calibrate` uses.
The oracle knows the populations and takes the lowest threshold with the target precision. A promise that is kept with a
confidence of 95 % may be broken in 5 % of the draws. A draw in which no threshold is shown has recall 0.

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


def main() -> None:
    """Print a table in Markdown."""
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


if __name__ == "__main__":
    main()
