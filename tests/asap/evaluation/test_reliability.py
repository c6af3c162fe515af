"""Reliability of scores."""

import json

import numpy as np
import pytest

from asap.evaluation.reliability import BINS, reliability


def test_a_calibrated_score_has_no_calibration_error() -> None:
    scores = np.repeat([0.25, 0.75], 100)
    manipulated = np.tile([True, False, False, False], 25).tolist() + np.tile([True, True, True, False], 25).tolist()
    found = reliability(scores, np.array(manipulated))
    assert found.ece == pytest.approx(0)
    assert found.share[[2, 7]] == pytest.approx([0.25, 0.75])
    assert found.brier == pytest.approx(0.25 * 0.75)


def test_the_calibration_error_weighs_bins_by_their_pairs() -> None:
    scores = np.array([0.05] * 30 + [0.95] * 10)
    manipulated = np.array([False] * 30 + [False] * 10)
    assert reliability(scores, manipulated).ece == pytest.approx((30 * 0.05 + 10 * 0.95) / 40)


def test_every_score_has_a_bin_even_at_the_edges() -> None:
    scores = np.array([0.0, 0.1, 0.5, 1.0])
    counts = reliability(scores, np.array([False, True, False, True])).counts
    assert counts[[0, 1, 5, 9]].tolist() == [1, 1, 1, 1]
    assert counts.sum() == 4


def test_the_interval_contains_the_share_and_narrows_with_more_pairs() -> None:
    few, many = (reliability(np.full(n, 0.5), np.arange(n) % 2 == 0) for n in (10, 1000))
    for found in (few, many):
        assert found.low[5] < found.share[5] < found.high[5]
    assert many.high[5] - many.low[5] < (few.high[5] - few.low[5]) / 5


def test_one_pair_is_enough_and_empty_bins_are_none() -> None:
    found = reliability(np.array([0.93], np.float32), np.array([True]))
    report = json.loads(json.dumps(found.report(), allow_nan=False))
    assert report["ECE"] == pytest.approx(0.07, abs=1e-6)
    assert len(report["bins"]) == BINS
    assert report["bins"][0] == {"pairs": 0, "mean_score": None, "share": None, "low": None, "high": None}
    assert report["bins"][9]["pairs"] == report["bins"][9]["share"] == 1
