"""Which of a run's checkpoints becomes its model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

from torch import Tensor

from jobs.train.run_folder.folder import checkpoint_folder
from jobs.train.trainer import Fit

SCORE = "score"
"""Of a checkpoint, what Ray Train keeps the best by: its validation AUC, or -1 where the pairs cannot tell one."""


@dataclass(frozen=True)
class Chosen:
    """A checkpoint's averaged weights, and how it came to be chosen."""

    weights: dict[str, Tensor]
    pairs: int | None
    """Pairs trained on until then; None where the checkpoint does not say."""
    score: float | None
    """Validation AUC; None where the pairs could tell none."""
    way: Literal["best", "last"]

    @classmethod
    def of(cls, kept: Sequence[tuple[Any, dict[str, Any]]], last: Any, way: Literal["best", "last"]) -> Self:
        """From Ray Train's kept checkpoints with their metrics; of two that are equally good, the later."""
        figures = [(found, metrics or {}) for found, metrics in kept]
        best = max(figures, key=lambda one: (_score(one[1]), one[1].get("pairs", 0)), default=(last, {}))
        checkpoint, metrics = best if way == "best" else (last, _metrics_of(last, figures))
        with checkpoint_folder(checkpoint) as place:
            weights = Fit.twin_weights(place)
        score = _score(metrics)
        return cls(weights, metrics.get("pairs"), None if score < 0 else score, way)

    def __str__(self) -> str:
        at = "" if self.pairs is None else f" after {self.pairs} pairs"
        figure = "" if self.score is None else f" (validation AUC {self.score:.3f})"
        return f"the {'best' if self.way == 'best' else 'last'} checkpoint{at}{figure}"


def _score(metrics: dict[str, Any]) -> float:
    return float(metrics.get(SCORE, -1.0))


def _metrics_of(checkpoint: Any, kept: Sequence[tuple[Any, dict[str, Any]]]) -> dict[str, Any]:
    return next((metrics for found, metrics in kept if found.path == checkpoint.path), {})
