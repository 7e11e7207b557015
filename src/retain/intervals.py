"""How sure a paired difference of two methods is: intervals over seeds and test items, and Holm's correction.

The design is crossed: every seed is scored on the same test items, under either method. Both are samples of what
could have been drawn, so both are resampled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

DRAWS = 20_000
CHUNK = 2_000_000  # places of resampled items held in memory at once


@dataclass(frozen=True, slots=True)
class Interval:
    """A difference with its interval at `level`, and the two-sided p-value of no difference.

    over: what was resampled, of "seeds" and "items"; without both there is no interval, and its bounds are None.
    """

    difference: float
    low: float | None
    high: float | None
    p: float | None
    level: float
    over: tuple[str, ...]


def paired_interval(
    differences: Sequence[np.ndarray],
    level: float = 0.95,
    pooled: tuple[float, int] | None = None,
    seed: int = 0,
    draws: int = DRAWS,
) -> Interval:
    """Interval of d = mean over tasks of the mean over seeds and items of (S, nᵢ) paired `differences`, one a task.

    A draw is d + Σ (v - 1/n)·d̄_item + t_f·√(σ²/S): v the shares of items in a sample with replacement within each
    task, then a new set of seeds, normal with the variance σ² of the seeds' means d̄_seed, known with f = S - 1 degrees
    of freedom. That is the bootstrap of crossed factors (Owen 2007, arXiv 0712.1111) with its seeds drawn
    parametrically, for few values drawn again spread too little: with three, an interval of 95 % would hold the truth
    7 times of 10. The noise of single items under single seeds is in both parts: intervals are a little too wide.

    pooled: σ² and f from all methods compared (`pooled_variance`); σ² is then the larger one of this and its own.
    One seed: only items are drawn. Tasks of one item (a score a seed) have no part of items. The ends are quantiles of
    the draws, p is twice the smaller share of them beyond 0.
    """
    tasks = [np.asarray(task, dtype=np.float64) for task in differences]
    seeds = np.mean([task.mean(axis=1) for task in tasks], axis=0)  # (S,)
    center = float(seeds.mean())
    generator = np.random.default_rng(seed)
    spread, over = np.zeros(draws), []
    if len(seeds) > 1:
        over.append("seeds")
        variance, degrees = float(seeds.var(ddof=1)), len(seeds) - 1
        if pooled:
            variance, degrees = max(variance, pooled[0]), pooled[1]
        spread += math.sqrt(variance / len(seeds)) * generator.standard_t(degrees, draws)
    if any(task.shape[1] > 1 for task in tasks):
        over.append("items")
        spread += sum(_resampled_mean(task.mean(axis=0), draws, generator) for task in tasks) / len(tasks)
    if not over:
        return Interval(center, None, None, None, level, ())
    low, high = np.quantile(center + spread, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    beyond = min(np.sum(center + spread <= 0.0), np.sum(center + spread >= 0.0))
    p = min(1.0, 2.0 * (1.0 + float(beyond)) / (draws + 1.0))
    return Interval(center, float(low), float(high), p, level, tuple(over))


def wilson_interval(mean: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """(p + z²/2n ± z·√(p(1 - p)/n + z²/4n²))/(1 + z²/n), p = `mean` of n scores in [0, 1] (Wilson 1927).

    Of scores that are not 0 or 1 alone it is too wide, for none vary more than these.
    """
    z = NormalDist().inv_cdf(0.5 + level / 2.0)
    center = mean + z * z / (2 * n)
    half = z * math.sqrt(mean * (1.0 - mean) / n + z * z / (4 * n * n))
    return (center - half) / (1 + z * z / n), (center + half) / (1 + z * z / n)


def pooled_variance(scores: np.ndarray) -> tuple[float, int] | None:
    """σ² over seeds of the difference of two methods, from `scores` (M, S) of all of them, and its degrees of freedom.

    2 Σ (x - x̄_method - x̄_seed + x̄)²/((M - 1)(S - 1)): twice the residual of the two-way analysis of variance, whose
    methods all spread alike over seeds. None for fewer than two of either.
    """
    methods, seeds = scores.shape
    if methods < 2 or seeds < 2:
        return None
    residuals = scores - scores.mean(axis=0) - scores.mean(axis=1, keepdims=True) + scores.mean()
    degrees = (methods - 1) * (seeds - 1)
    return 2.0 * float(np.sum(residuals**2)) / degrees, degrees


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for how many there are: p₍ₖ₎ → maxⱼ≤ₖ (m - j + 1) p₍ⱼ₎, at most 1 (Holm 1979)."""
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = largest
    return corrected


def _resampled_mean(values: np.ndarray, draws: int, generator: np.random.Generator) -> np.ndarray:
    """Deviation (draws,) from the mean of `values` (n,) of the means of samples of n with replacement."""
    count, centered = len(values), values - values.mean()
    sizes = [len(part) for part in np.array_split(np.arange(draws), math.ceil(draws * count / CHUNK))]
    return np.concatenate([centered[generator.integers(0, count, (size, count))].mean(axis=1) for size in sizes])
