"""Intervals hold the truth as often as they say, and Holm's correction is the textbook's."""

from __future__ import annotations

import numpy as np
import pytest

from retain.intervals import holm, paired_interval, pooled_variance

TRUTH = 0.02


def simulated(generator, seeds, seed_spread, item_spread, noise, tasks=2, items=40):
    """Differences of a crossed design: an effect a seed, an effect an item, and noise."""
    by_seed = generator.normal(0.0, seed_spread, (seeds, 1))
    by_item = [generator.normal(0.0, item_spread, (1, items)) for _ in range(tasks)]
    return [TRUTH + by_seed + effect + generator.normal(0.0, noise, (seeds, items)) for effect in by_item]


@pytest.mark.parametrize(
    ("seeds", "spreads"),
    [
        (1, (0.0, 0.3, 0.4)),  # one seed: no claim about others
        (2, (0.05, 0.2, 0.3)),
        (3, (0.05, 0.0, 0.3)),
        (3, (0.0, 0.4, 0.2)),
        (5, (0.1, 0.1, 0.1)),
    ],
)
def test_coverage(seeds, spreads):
    generator = np.random.default_rng([seeds, 7])
    held, runs = 0, 300
    for run in range(runs):
        found = paired_interval(simulated(generator, seeds, *spreads), seed=run, draws=1000)
        held += found.low <= TRUTH <= found.high
    assert held / runs >= 0.92  # 0.95 less two and a half standard errors
    if seeds == 1:
        assert held / runs <= 0.98  # no wider than need be


@pytest.mark.parametrize(("ratio", "least"), [(1.0, 0.94), (2.0, 0.86)])
def test_coverage_where_methods_share_their_spread(ratio, least):
    """One method among 8; `ratio`: how much more it varies over seeds than the others, which pooling assumes it does
    not."""
    generator = np.random.default_rng(5)
    held, widths, own_widths = 0, [], []
    for run in range(400):
        scores = generator.normal(0.0, 0.03, (8, 3))
        scores[1] *= ratio
        difference = [(scores[1] - scores[0])[:, None]]
        found = paired_interval(difference, pooled=pooled_variance(scores), seed=run, draws=1000)
        own = paired_interval(difference, seed=run, draws=1000)
        held += found.low <= 0.0 <= found.high
        widths.append(found.high - found.low)
        own_widths.append(own.high - own.low)
    assert held / 400 >= least
    assert np.mean(widths) < 0.75 * np.mean(own_widths)


def test_pooled_variance_is_that_of_differences():
    scores = np.random.default_rng(0).normal(0.0, 0.1, (400, 5)) + np.arange(5)  # an effect of the seed falls out
    variance, degrees = pooled_variance(scores)
    assert degrees == 399 * 4
    assert variance == pytest.approx(2 * 0.1**2, rel=0.1)
    two = np.array([[0.1, 0.4, 0.3], [0.2, 0.2, 0.9]])
    assert pooled_variance(two) == (pytest.approx((two[1] - two[0]).var(ddof=1)), 2)
    assert pooled_variance(two[:1]) is None and pooled_variance(two[:, :1]) is None


def test_plain_resampling_of_three_seeds_would_not_hold():
    """Why seeds are drawn from a distribution: quantiles of resampled means of three values are too narrow."""
    generator = np.random.default_rng(3)
    held = 0
    for _ in range(500):
        values = generator.normal(TRUTH, 0.1, 3)
        means = values[generator.integers(0, 3, (500, 3))].mean(axis=1)
        low, high = np.quantile(means, [0.025, 0.975])
        held += low <= TRUTH <= high
    assert held / 500 < 0.8


def test_one_seed_is_the_normal_interval_of_its_items():
    values = np.random.default_rng(0).normal(0.1, 1.0, (1, 400))
    found = paired_interval([values])
    error = values.std() / 20
    assert found.over == ("items",)
    assert (found.low, found.high) == pytest.approx(
        (values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=0.1 * error
    )


def test_items_that_do_not_differ_leave_students_interval_of_the_seeds():
    values = np.array([[0.10], [0.14], [0.11], [0.17], [0.08]])
    found = paired_interval([np.tile(values, (1, 30))], draws=100_000)
    error = values.std(ddof=1) / np.sqrt(5)
    assert found.over == ("seeds", "items")
    assert found.high - found.low == pytest.approx(2 * 2.776 * error, rel=0.05)  # t of 4 degrees, 0.975


def test_tasks_weigh_alike_whatever_their_items():
    found = paired_interval([np.full((2, 10), 0.4), np.full((2, 1000), 0.0)])
    assert found.difference == pytest.approx(0.2)


def test_scores_a_seed_without_items():
    found = paired_interval([np.array([[0.1], [0.2], [0.3]])])
    assert found.over == ("seeds",) and found.low < 0.2 < found.high
    single = paired_interval([np.array([[0.1]])])
    assert (single.difference, single.low, single.high, single.p, single.over) == (0.1, None, None, None, ())


def test_equal_methods_and_certain_ones():
    same = paired_interval([np.zeros((3, 20))])
    assert (same.low, same.high, same.p) == (0.0, 0.0, 1.0)
    apart = paired_interval([np.ones((3, 20))])
    assert apart.low == apart.high == 1.0 and apart.p < 0.001


def test_deterministic_and_level():
    values = simulated(np.random.default_rng(5), 3, 0.1, 0.1, 0.1)
    assert paired_interval(values) == paired_interval(values)
    wide, narrow = paired_interval(values, level=0.99), paired_interval(values, level=0.8)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_p_and_interval_agree():
    generator = np.random.default_rng(11)
    for run in range(60):
        found = paired_interval(simulated(generator, 3, 0.03, 0.1, 0.2), seed=run, draws=2000)
        assert (found.p < 0.049) <= (not found.low <= 0.0 <= found.high)
        assert (found.p > 0.051) <= (found.low <= 0.0 <= found.high)


def test_many_items_fit_in_memory():
    values = np.random.default_rng(0).normal(0.0, 1.0, (1, 50_000))
    found = paired_interval([values], draws=200)
    assert found.high - found.low == pytest.approx(2 * 1.96 / np.sqrt(50_000), rel=0.3)


def test_holm():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([0.04]) == [0.04] and holm([]) == []
