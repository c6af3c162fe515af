"""Reliability of scores: of the pairs that score 0.8, eight in ten should be manipulated.

The measure is the expected calibration error over bins of equal width (Guo et al., ICML 2017), with a Wilson interval
for each bin.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest
from sklearn.metrics import brier_score_loss

BINS = 10


@dataclass(frozen=True)
class Reliability:
    """The share of manipulated pairs in each of `BINS` bins of the score; NaN in bins without a pair."""

    counts: NDArray[np.int64]
    mean_score: NDArray[np.float64]
    share: NDArray[np.float64]
    """The share of manipulated pairs."""
    low: NDArray[np.float64]
    """The lower end of the 95 % Wilson interval of the share."""
    high: NDArray[np.float64]
    """The upper end of the 95 % Wilson interval of the share."""
    brier: float
    """Mean squared difference of score and truth."""

    @property
    def ece(self) -> float:
        """The expected calibration error: the mean of |share - mean score|, weighted by the pairs of a bin."""
        filled = self.counts > 0
        return float(np.average(np.abs(self.share - self.mean_score)[filled], weights=self.counts[filled]))

    def report(self) -> dict[str, Any]:
        """Return the figures ready for JSON, with None in bins without a pair."""
        columns = {name: getattr(self, name) for name in ("mean_score", "share", "low", "high")}
        rows = [
            {"pairs": int(count)} | {name: float(column[number]) if count else None for name, column in columns.items()}
            for number, count in enumerate(self.counts)
        ]
        return {"ECE": self.ece, "Brier": self.brier, "bins": rows}


def reliability(scores_B: NDArray[np.floating], manipulated_B: NDArray[np.bool_]) -> Reliability:
    """Compute the reliability of B >= 1 scores, each the probability that the pair is manipulated."""
    scores = scores_B.astype(np.float64)
    # A score of exactly 1 belongs to the last bin.
    bins = np.minimum((scores * BINS).astype(np.int64), BINS - 1)
    counts = np.bincount(bins, minlength=BINS)
    hits = np.bincount(bins[manipulated_B], minlength=BINS)
    with np.errstate(invalid="ignore"):
        mean_score = np.bincount(bins, weights=scores, minlength=BINS) / counts
        share = hits / counts
    bounds = np.array([wilson_interval(int(hit), int(count)) for hit, count in zip(hits, counts, strict=True)])
    return Reliability(
        counts=counts,
        mean_score=mean_score,
        share=share,
        low=bounds[:, 0],
        high=bounds[:, 1],
        brier=float(brier_score_loss(manipulated_B, scores)),
    )


def wilson_interval(hits: int, count: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of the share of hits; NaN for a count of 0."""
    if not count:
        return np.nan, np.nan
    interval = binomtest(hits, count).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)
