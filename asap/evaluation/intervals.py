"""Confidence intervals of the figures of an evaluation, by a bootstrap over news items.

Pairs of one news item are not independent: they share a picture, and in DGM4 an authentic pair and the pairs made from
it share an id. A bootstrap that draws pairs would take them for independent and give intervals that are too narrow. So
whole items are drawn, with replacement, and an interval is the range between two percentiles of the figure over the
draws (cluster bootstrap with percentile intervals: Davison and Hinkley 1997, chapters 3.8 and 5.3).

A draw is a vector of counts, one for each item. It costs no sorting: scores are sorted once, and curves are cumulative
sums of the counts in that order. Figures that are ratios of sums need only the sums of each item.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from asap.evaluation.metrics import Predictions
from asap.evaluation.news_items import news_items
from asap.labels import IMAGE_TYPES, TEXT_TYPES, TYPES

RESAMPLES = 1000
CONFIDENCE = 0.95
_BLOCK_VALUES = 200_000
"""Counts of pairs in memory at a time, about: pairs times the draws of a block."""

Counts = NDArray[np.int32]
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Bootstrap:
    """The settings of a bootstrap."""

    resamples: int = RESAMPLES
    seed: int = 0
    confidence: float = CONFIDENCE

    def limits(self, values_R: Values) -> list[float] | None:
        """Return the percentile interval of the draws that define the figure; None if there are fewer than 2."""
        defined = values_R[np.isfinite(values_R)]
        if len(defined) < 2:
            return None
        tail = 50 * (1 - self.confidence)
        low, high = np.percentile(defined, [tail, 100 - tail])
        return [float(low), float(high)]


def bootstrap_intervals(predictions: Predictions, settings: Bootstrap | None = None) -> dict[str, Any]:
    """Return the intervals of the headline figures, ready for JSON.

    `figures` has `[low, high]` for each figure by its name in `Evaluation.compute`; None if it is undefined or if there
    is only one news item. `AP` and `AP_elsewhere` have a list of intervals, one for each type. The other keys say how
    the intervals were made.
    """
    settings = settings or Bootstrap()
    items_B = news_items(predictions.items)
    resampled = _Resampled(predictions, items_B)
    draws: dict[str, Values] = {}
    if resampled.items > 1:
        blocks = [resampled.figures(counts) for counts in _draws(resampled.items, len(items_B), settings)]
        draws = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
    names = resampled.names
    limits = {name: settings.limits(draws[name]) if name in draws else None for name in names}
    figures: dict[str, Any] = {name: limit for name, limit in limits.items() if "." not in name}
    for group, types in (("AP", TYPES), ("AP_elsewhere", TEXT_TYPES)):
        if f"{group}.{types[0]}" in limits:
            figures[group] = [limits[f"{group}.{name}"] for name in types]
    return {
        "confidence": settings.confidence,
        "resamples": settings.resamples,
        "seed": settings.seed,
        "method": "percentiles of a bootstrap over news items (pairs that share a picture or an id)",
        "items": resampled.items,
        "figures": figures,
    }


def paired_differences(
    first: Predictions, second: Predictions, settings: Bootstrap | None = None
) -> dict[str, dict[str, float]]:
    """Compare two models on the same pairs: for each figure, second minus first, with an interval.

    Both models are evaluated on the same draws of news items, so what is hard for both cancels out. Each entry has
    `difference` (on the pairs as they are), `low` and `high`, and `p`: twice the smaller share of the draws on one side
    of zero (two-sided, at least 2 / (resamples + 1)). The difference is between these two sets of weights. How much
    another seed of the training would change it is not in the interval. A figure that one of them does not define is
    left out. Types have names like `AP.face_swap`.

    Raises `ValueError` if the pairs are not the same or if there is only one news item.
    """
    settings = settings or Bootstrap()
    same = len(first.margin) == len(second.margin) and all(
        np.array_equal(getattr(first, name), getattr(second, name)) for name in ("types", "box_true", "items")
    )
    if not same:
        raise ValueError("the two models were not evaluated on the same pairs in the same order")
    items_B = news_items(first.items)
    models = [_Resampled(predictions, items_B) for predictions in (first, second)]
    if models[0].items < 2:
        raise ValueError("one news item cannot be drawn from. Evaluate pairs of several items.")

    def difference(counts: Counts) -> dict[str, Values]:
        one, other = (model.figures(counts) for model in models)
        return {name: other[name] - one[name] for name in one if name in other}

    once = difference(np.ones((1, models[0].items), np.int32))
    blocks = [difference(counts) for counts in _draws(models[0].items, len(items_B), settings)]
    compared = {}
    for name, value in once.items():
        draws = np.concatenate([block[name] for block in blocks])
        limits = settings.limits(draws)
        if limits is None or not np.isfinite(value[0]):
            continue
        defined = draws[np.isfinite(draws)]
        # The observed difference counts as one more draw on either side, so that p is never 0.
        sides = [(1 + int(np.sum(side))) / (1 + len(defined)) for side in (defined <= 0, defined >= 0)]
        compared[name] = {
            "difference": float(value[0]), "low": limits[0], "high": limits[1], "p": min(1.0, 2 * min(sides)),
        }  # fmt: skip
    return compared


def _draws(items: int, pairs: int, settings: Bootstrap) -> Iterator[Counts]:
    """Yield blocks of draws: how often each item was drawn, (draws of the block, items)."""
    generator = np.random.default_rng(settings.seed)
    block = max(1, _BLOCK_VALUES // max(pairs, items))
    for start in range(0, settings.resamples, block):
        size = min(block, settings.resamples - start)
        yield np.stack([np.bincount(generator.integers(0, items, items), minlength=items) for _ in range(size)]).astype(
            np.int32
        )


class _Ranking:
    """The pairs sorted by a score, for curves over any counts of the items."""

    def __init__(self, scores_B: NDArray[np.floating], actual_B: NDArray[np.bool_], items_B: NDArray[np.int64]) -> None:
        order = np.argsort(-scores_B, kind="stable")
        ordered = scores_B[order]
        # Pairs of equal score are flagged together, so a curve has a point only after the last of them.
        self._ends_E = np.flatnonzero(np.append(np.diff(ordered) != 0, True))
        self._items_B = items_B[order]
        self._actual_B = actual_B[order].astype(np.int32)
        self._positions_P = np.flatnonzero(self._actual_B)
        # Of positive pairs with one score only the last counts: its position among them, and the end of its score.
        end_P = np.searchsorted(self._ends_E, self._positions_P)
        self._last_F = np.flatnonzero(np.append(np.diff(end_P) != 0, True)) if len(end_P) else end_P
        self._positive_ends_F = self._ends_E[end_P[self._last_F]]

    def curve(self, counts_RG: Counts) -> tuple[Values, Values]:
        """Return the numbers of true and of false positives after each distinct score, from the highest; (R, E)."""
        weights_RB = np.take(counts_RG, self._items_B, axis=1)
        all_RE = np.take(np.cumsum(weights_RB, axis=1, dtype=np.int32), self._ends_E, axis=1)
        weights_RB *= self._actual_B
        true_RE = np.take(np.cumsum(weights_RB, axis=1, dtype=np.int32), self._ends_E, axis=1)
        return true_RE.astype(np.float64), (all_RE - true_RE).astype(np.float64)

    def average_precision(self, counts_RG: Counts) -> Values:
        """Return the average precision of each draw; NaN without a positive pair."""
        # The precision counts only where a positive pair is gained, so the curve is made at these scores alone.
        true_RP = np.cumsum(np.take(counts_RG, self._items_B[self._positions_P], axis=1), axis=1, dtype=np.int32)
        true_RF = true_RP[:, self._last_F]
        weights_RB = np.take(counts_RG, self._items_B, axis=1)
        all_RF = np.take(np.cumsum(weights_RB, axis=1, dtype=np.int32), self._positive_ends_F, axis=1)
        gained_RF = np.diff(true_RF, axis=1, prepend=0)
        if not true_RF.shape[1]:
            return np.full(len(counts_RG), np.nan)
        return _divide(np.sum(gained_RF * (true_RF / np.maximum(all_RF, 1)), axis=1), true_RF[:, -1].astype(np.float64))

    def roc(self, counts_RG: Counts) -> tuple[Values, Values]:
        """Return AUC and equal error rate of each draw; NaN if one class was not drawn."""
        true_RE, false_RE = (np.pad(part, ((0, 0), (1, 0))) for part in self.curve(counts_RG))
        true_RE, false_RE = (_divide(part, part[:, -1:]) for part in (true_RE, false_RE))
        area = np.sum(np.diff(false_RE, axis=1) * (true_RE[:, 1:] + true_RE[:, :-1]), axis=1) / 2
        excess_RE = false_RE - (1 - true_RE)  # rises from -1 to 1
        rows, after = np.arange(len(area)), np.maximum(np.argmax(excess_RE >= 0, axis=1), 1)
        low, high = excess_RE[rows, after - 1], excess_RE[rows, after]
        start, end = false_RE[rows, after - 1], false_RE[rows, after]
        return area, start + _divide(-low, high - low) * (end - start)


class _Resampled:
    """The figures of a model for any counts of the news items."""

    def __init__(self, predictions: Predictions, items_B: NDArray[np.int64]) -> None:
        self.items = int(items_B.max(initial=-1)) + 1
        self._real_fake = _Ranking(predictions.margin, predictions.manipulated, items_B)
        self._types = {
            f"AP.{name}": _Ranking(predictions.multilabel[:, number], predictions.types[:, number], items_B)
            for number, name in enumerate(TYPES)
        }
        elsewhere = np.isfinite(predictions.text_types_elsewhere).all(axis=1)
        if elsewhere.any():
            self._types |= {
                f"AP_elsewhere.{name}": _Ranking(
                    predictions.text_types_elsewhere[elsewhere, number],
                    predictions.types[elsewhere, len(IMAGE_TYPES) + number],
                    items_B[elsewhere],
                )
                for number, name in enumerate(TEXT_TYPES)
            }
        columns = _summed_columns(predictions)
        self._columns = {name: number for number, name in enumerate(columns)}
        self._sums_GK = np.stack(
            [np.bincount(items_B, weights=column, minlength=self.items) for column in columns.values()], axis=1
        )
        self.names = [*self.figures(np.ones((1, self.items), np.int32))] if self.items else []

    def figures(self, counts_RG: Counts) -> dict[str, Values]:
        """Return each figure of R draws, (R,); NaN where a draw does not define it."""
        AUC, EER = self._real_fake.roc(counts_RG)
        precisions = {name: ranking.average_precision(counts_RG) for name, ranking in self._types.items()}
        sums_RK = counts_RG.astype(np.float64) @ self._sums_GK
        sums = {name: sums_RK[:, number] for name, number in self._columns.items()}
        return {
            "AUC": AUC,
            "EER": EER,
            "ACC": _divide(sums["right"], sums["pairs"]),
            "mAP": _mean_of_defined(np.stack([precisions[f"AP.{name}"] for name in TYPES])),
            **_type_f1(sums),
            **_box_figures(sums),
            **_token_figures(sums),
            **precisions,
        }


def _summed_columns(predictions: Predictions) -> dict[str, NDArray[Any]]:
    """Return the values of each pair whose sums give all figures that are ratios of sums."""
    predicted, types = predictions.multilabel >= 0, predictions.types
    columns: dict[str, NDArray[Any]] = {
        "pairs": np.ones(len(types)),
        "right": (predictions.margin > 0) == predictions.manipulated,
        "boxes": predictions.has_box,
    }
    for number in range(len(TYPES)):
        columns[f"right.{number}"] = predicted[:, number] & types[:, number]
        columns[f"predicted.{number}"] = predicted[:, number]
        columns[f"actual.{number}"] = types[:, number]
    overlap, gated = predictions.overlap, predictions.overlap_gated
    for suffix, values in (("", overlap), ("_gated", gated), ("_boxed", overlap * predictions.has_box)):
        columns[f"IoU_mean{suffix}"] = values
        columns |= {f"IoU{percent}{suffix}": values > percent / 100 for percent in (50, 75)}
    for suffix, counts_B4 in predictions.token_counts.items():
        columns |= {
            f"tokens{suffix}.{name}": counts_B4[:, number]
            for number, name in enumerate(("all", "actual", "predicted", "right"))
        }
    return {name: column.astype(np.float64) for name, column in columns.items()}


def _type_f1(sums: dict[str, Values]) -> dict[str, Values]:
    right, predicted, actual = (
        np.stack([sums[f"{kind}.{number}"] for number in range(len(TYPES))])
        for kind in ("right", "predicted", "actual")
    )
    # A type that was never predicted has precision 0, as published; one that was not drawn is left out.
    precision = np.where(actual > 0, right / np.maximum(predicted, 1), np.nan)
    CF1 = _f1(_mean_of_defined(precision), _mean_of_defined(_divide(right, actual)))
    right, predicted, actual = (part.sum(axis=0) for part in (right, predicted, actual))
    return {"CF1": CF1, "OF1": _f1(right / np.maximum(predicted, 1), _divide(right, actual))}


def _box_figures(sums: dict[str, Values]) -> dict[str, Values]:
    whole = {"": "pairs", "_gated": "pairs", "_boxed": "boxes"}
    return {
        f"{name}{suffix}": _divide(sums[f"{name}{suffix}"], sums[whole[suffix]])
        for suffix in whole
        for name in ("IoU_mean", "IoU50", "IoU75")
    }


def _token_figures(sums: dict[str, Values]) -> dict[str, Values]:
    figures: dict[str, Values] = {}
    for suffix in ("", "_published", "_manipulated"):
        right, predicted, actual = (sums[f"tokens{suffix}.{kind}"] for kind in ("right", "predicted", "actual"))
        precision = np.where(actual > 0, right / np.maximum(predicted, 1), np.nan)
        recall = _divide(right, actual)
        figures |= {
            f"token_precision{suffix}": precision,
            f"token_recall{suffix}": recall,
            f"token_F1{suffix}": _f1(precision, recall),
        }
    return figures


def _divide(part: Values, whole: Values) -> Values:
    """Return the ratio; NaN where there is nothing to divide by."""
    ratio = np.full(np.broadcast_shapes(part.shape, whole.shape), np.nan)
    return np.divide(part, whole, out=ratio, where=whole != 0)


def _f1(precision: Values, recall: Values) -> Values:
    total = precision + recall
    return np.where(total == 0, 0.0, _divide(2 * precision * recall, total))


def _mean_of_defined(values_TR: Values) -> Values:
    """Return the mean over the types, without those that are undefined."""
    defined = np.isfinite(values_TR)
    return _divide(np.where(defined, values_TR, 0.0).sum(axis=0), defined.sum(axis=0).astype(np.float64))
