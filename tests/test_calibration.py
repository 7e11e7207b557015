"""The statistics of calibration against closed forms and naive counts."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from scipy import stats
from scipy.integrate import trapezoid

from retain.calibration import (
    auc,
    binned_means,
    bootstrap,
    calibration_error,
    equal_bins,
    forgotten,
    log_losses,
    roc,
    spearman,
)


def naive_auc(scores, positive, strata):
    """Every pair counted."""
    wins = [
        (scores[i] > scores[j]) + 0.5 * (scores[i] == scores[j])
        for i, j in product(range(len(scores)), repeat=2)
        if positive[i] and not positive[j] and strata[i] == strata[j]
    ]
    return sum(wins) / len(wins)


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 8, 60).astype(float)
    return scores, scores + rng.normal(0, 4, 60) > 4, rng.integers(0, 3, 60)


def test_forgotten_is_a_rise_by_more_than_ln_2():
    rise = math.log(2)
    assert forgotten(np.array([rise, np.nextafter(rise, 1), -3.0])).tolist() == [False, True, False]


def test_auc_counts_pairs(data):
    scores, positive, strata = data
    assert auc(scores, positive) == pytest.approx(naive_auc(scores, positive, np.zeros(60)))
    assert auc(scores, positive, strata) == pytest.approx(naive_auc(scores, positive, strata))
    assert auc(-scores, positive) == pytest.approx(1 - auc(scores, positive))


def test_auc_at_its_ends():
    marked = np.array([True, True, False])
    assert auc(np.array([3.0, 2.0, 1.0]), marked) == 1.0
    assert auc(np.ones(3), marked) == 0.5
    assert math.isnan(auc(np.ones(3), np.ones(3, dtype=bool)))
    assert math.isnan(auc(np.ones(2), np.array([True, False]), np.array([1, 2])))  # no pair inside a stratum


def test_a_difference_between_strata_is_no_skill_within_them():
    """Everything is forgotten in the second stage, where all scores are higher: chance inside a stage."""
    scores = np.array([1.0, 2, 1, 2, 8, 9, 8, 9])
    positive = np.array([0, 0, 0, 1, 1, 1, 1, 0], dtype=bool)
    strata = np.repeat([1, 2], 4)
    assert auc(scores, positive) == 12 / 16
    assert auc(scores, positive, strata) == pytest.approx(3 / 6)


def test_spearman(data):
    scores, positive, strata = data
    values = scores**2 + positive
    assert spearman(scores, values) == pytest.approx(stats.spearmanr(scores, values).statistic)
    parts = [(strata == one) for one in range(3)]
    expected = sum(p.sum() * stats.spearmanr(scores[p], values[p]).statistic for p in parts) / 60
    assert spearman(scores, values, strata) == pytest.approx(expected)
    assert spearman(np.exp(scores), values) == pytest.approx(spearman(scores, values))
    assert math.isnan(spearman(np.ones(60), values))
    constant = np.where(strata == 0, 5.0, scores)  # says nothing in one stratum: that one is left out
    rest = sum(p.sum() * stats.spearmanr(scores[p], values[p]).statistic for p in parts[1:])
    assert spearman(constant, values, strata) == pytest.approx(rest / sum(p.sum() for p in parts[1:]))


def test_the_area_under_the_roc_curve_is_the_auc(data):
    scores, positive, _ = data
    points = roc(scores, positive)
    assert points[0].tolist() == [0, 0] and points[-1].tolist() == [1, 1]
    assert len(points) == len(np.unique(scores)) + 1
    assert trapezoid(points[:, 1], points[:, 0]) == pytest.approx(auc(scores, positive))


def test_bins_hold_about_equally_many_and_keep_ties_together():
    assert np.bincount(equal_bins(np.arange(100.0))).tolist() == [10] * 10
    values = np.array([0.0] * 50 + [1.0] * 3 + [2.0] * 47)
    bins = equal_bins(values)
    assert all(len(set(bins[values == one])) == 1 for one in (0.0, 1.0, 2.0))
    assert equal_bins(np.full(7, 0.3)).tolist() == [0] * 7
    assert binned_means(np.array([1.0, 3.0, 5.0]), np.array([0, 0, 2]), 3)[[0, 2]].tolist() == [2.0, 5.0]


def test_log_losses_and_calibration_error_by_hand():
    found = log_losses(np.array([0.25, 0.25, 0.0, 1.0]), np.array([True, False, True, True]))
    assert found == pytest.approx([math.log(4), math.log(4 / 3), math.log(1e6), -math.log1p(-1e-6)])
    probability, happened = np.array([0.2, 0.4, 0.9, 0.9]), np.array([False, True, True, True])
    assert calibration_error(probability, happened, np.array([0, 0, 1, 1])) == pytest.approx((0.2 + 0.1) / 2)


def test_the_interval_of_a_mean_is_the_normal_one():
    values = np.random.default_rng(3).normal(5, 2, 400)
    low, high = bootstrap(lambda rows: values[rows].mean(), np.arange(400), 2000, seed=1)
    half = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)


def test_copies_of_a_sample_do_not_narrow_an_interval():
    values = np.random.default_rng(4).normal(size=50)
    once = bootstrap(lambda rows: values[rows].mean(), np.arange(50), 200, seed=2)
    copied = np.tile(values, 5)
    again = bootstrap(lambda rows: copied[rows].mean(), np.tile(np.arange(50), 5), 200, seed=2)
    np.testing.assert_allclose(again, once)


def test_what_no_resample_knows_has_no_interval():
    low, high = bootstrap(lambda rows: np.array([rows.mean(), math.nan]), np.arange(9), 20, seed=0)
    assert np.isfinite([low[0], high[0]]).all() and np.isnan([low[1], high[1]]).all()
