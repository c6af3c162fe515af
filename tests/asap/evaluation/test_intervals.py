"""Intervals of the figures, compared with the figures of repeated pairs and with fresh draws of a known population."""

import json
import pickle
from typing import Any

import numpy as np
import pytest
import torch

from asap.evaluation.intervals import Bootstrap, bootstrap_intervals, paired_differences
from asap.evaluation.metrics import Evaluation, Predictions
from asap.evaluation.news_items import news_items
from asap.model.asap import AsapOutput

FEW = Bootstrap(resamples=40)


def evaluated(pairs: int, seed: int = 0, *, group: int = 3, noise: float = 1.0, ties: bool = False) -> Evaluation:
    """Evaluate drawn pairs, `group` of them to a news item, whose difficulty they share."""
    draw = np.random.default_rng(seed)
    number = np.arange(pairs)
    types = (draw.random((pairs, 4)) < 0.3).astype(np.float32)
    hard = draw.normal(0, 1, pairs)[number // group]
    margin = (types.any(axis=1) * 2.0 - 1) * (1 + hard) + noise * draw.normal(0, 1, pairs)
    margin = np.round(margin) if ties else margin
    logits = types - 0.5 + noise * draw.normal(0, 0.5, (pairs, 4))
    boxes = draw.uniform(0.3, 0.6, (pairs, 4)).astype(np.float32)
    labels = (draw.random((pairs, 6)) < 0.3 * types[:, 2:].max(axis=1, keepdims=True)).astype(np.int64)
    labels[:, 5] = -100
    words = labels + noise * draw.normal(0, 1, (pairs, 6)) - 0.5
    output = AsapOutput(
        torch.tensor(np.stack([0 * margin, margin], 1)), torch.tensor(logits), torch.tensor(boxes),
        torch.tensor(np.stack([0 * words, words], -1)),
    )  # fmt: skip
    has_box = types[:, :2].max(axis=1, keepdims=True)
    true = torch.tensor((boxes + draw.normal(0, 0.05, boxes.shape)) * has_box, dtype=torch.float32)
    evaluation = Evaluation()
    evaluation.update(
        output, torch.tensor(types), true, torch.tensor(labels), torch.tensor(labels).roll(1, dims=1),
        torch.tensor(logits[:, 2:] - draw.normal(0, 0.3, (pairs, 2))),
        items=[(f"{one // group}.jpg", str(one)) for one in number],
    )  # fmt: skip
    return evaluation


def repeated(predictions: Predictions, counts: np.ndarray) -> dict[str, Any]:
    """Compute the figures of the pairs with each repeated as often as its count says."""
    evaluation = Evaluation()
    evaluation._batches = [Predictions(*(np.repeat(column, counts, axis=0) for column in predictions))]
    return evaluation.compute()


def flat(report: dict[str, Any], name: str) -> float | None:
    group, _, kind = name.partition(".")
    types = ["face_swap", "face_attribute", "text_swap", "text_attribute"][2 if group == "AP_elsewhere" else 0 :]
    return report[group][types.index(kind)] if kind else report[group]


@pytest.mark.parametrize("ties", [False, True])
def test_a_draw_has_the_figures_of_the_pairs_repeated_by_its_counts(ties: bool) -> None:
    from asap.evaluation.intervals import _Resampled

    predictions = evaluated(150, ties=ties).predictions()
    items = news_items(predictions.items)
    resampled = _Resampled(predictions, items)
    counts = np.stack([np.ones(50), *np.random.default_rng(1).poisson(1, (4, 50))]).astype(np.int32)
    figures = resampled.figures(counts)
    assert set(figures) >= {
        "AUC",
        "EER",
        "ACC",
        "mAP",
        "CF1",
        "OF1",
        "IoU75_boxed",
        "token_F1_manipulated",
        "AP.text_swap",
    }
    for row, drawn in enumerate(counts):
        report = repeated(predictions, drawn[items])
        for name, values in figures.items():
            assert values[row] == pytest.approx(flat(report, name), abs=1e-9), name


def test_intervals_depend_neither_on_shards_nor_on_the_order_of_the_pairs() -> None:
    whole = evaluated(90)
    predictions = whole.predictions()
    merged = Evaluation()
    for rows in (slice(0, 40), slice(40, None)):
        part = Evaluation()
        part._batches = [Predictions(*(column[rows] for column in predictions))]
        merged.merge(pickle.loads(pickle.dumps(part)))  # noqa: S301
    expected = bootstrap_intervals(predictions, FEW)
    assert bootstrap_intervals(merged.predictions(), FEW) == expected
    shuffled = np.random.default_rng(0).permutation(90)
    reordered = bootstrap_intervals(Predictions(*(column[shuffled] for column in predictions)), FEW)
    assert reordered["figures"]["AUC"] == pytest.approx(expected["figures"]["AUC"])
    assert json.loads(json.dumps(expected, allow_nan=False)) == expected
    assert (expected["resamples"], expected["seed"], expected["items"]) == (40, 0, 30)


def test_an_interval_holds_the_true_figure_about_as_often_as_it_says() -> None:
    true = evaluated(60_000, seed=99).compute()["AUC"]
    held = alone = 0
    for seed in range(60):
        predictions = evaluated(300, seed, group=6).predictions()
        low, high = bootstrap_intervals(predictions, Bootstrap(resamples=200))["figures"]["AUC"]
        held += low <= true <= high
        unlinked = predictions._replace(items=np.zeros((300, 2), np.uint64))
        low, high = bootstrap_intervals(unlinked, Bootstrap(resamples=200))["figures"]["AUC"]
        alone += low <= true <= high
    assert held >= 51, "of 60; 57 are expected"
    assert alone < held, "pairs drawn one by one promise too much"


def test_a_figure_that_is_undefined_has_no_interval() -> None:
    authentic = evaluated(40)
    part = authentic.predictions()
    rows = ~part.manipulated
    intervals = bootstrap_intervals(Predictions(*(column[rows] for column in part)), FEW)["figures"]
    assert intervals["AUC"] is None
    assert intervals["AP"] == [None] * 4
    assert intervals["ACC"] is not None
    single = bootstrap_intervals(Predictions(*(column[:3] for column in part)), FEW)
    assert (single["items"], single["figures"]["ACC"]) == (1, None)


def test_models_are_compared_on_the_same_draws() -> None:
    better, worse = (evaluated(600, noise=noise).predictions() for noise in (0.3, 1.5))
    worse = worse._replace(types=better.types, box_true=better.box_true)
    found = paired_differences(worse, better, Bootstrap(resamples=200))["AUC"]
    assert 0 < found["low"] < found["difference"] < found["high"]
    assert found["p"] == pytest.approx(2 / 201)
    same = paired_differences(better, better, FEW)["AP.face_swap"]
    assert same == {"difference": 0, "low": 0, "high": 0, "p": 1}
    # Intervals of each model alone are wider: what is hard for both does not cancel there.
    low, high = bootstrap_intervals(better, Bootstrap(resamples=200))["figures"]["AUC"]
    nearly = better._replace(margin=better.margin + np.float32(0.01) * worse.margin)
    close = paired_differences(better, nearly, Bootstrap(resamples=200))["AUC"]
    assert close["high"] - close["low"] < (high - low) / 4


def test_other_pairs_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="same pairs"):
        paired_differences(evaluated(30).predictions(), evaluated(30, seed=1).predictions(), FEW)
