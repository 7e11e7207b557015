"""Does a prediction hold? Rank measures, reliability and intervals (MATH 6, "Forgotten").

A predictor is a score (N,) that is high where forgetting is expected; `strata` (N,) are groups inside which
alone samples are compared, as a replay draw compares what is stored at one time.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy.stats import rankdata

FORGOTTEN_ABOVE = math.log(2.0)
"""A loss that rises by more, in nats a token, means forgotten: the answer's tokens are half as likely (MATH 6)."""
CLIP = 1e-6
"""A predicted probability is held this far from 0 and 1 where its logarithm is taken."""


def forgotten(changes: np.ndarray) -> np.ndarray:
    """Whether each loss rose by more than ln 2 (MATH 6)."""
    return np.asarray(changes) > FORGOTTEN_ABOVE


def spearman(scores: np.ndarray, values: np.ndarray, strata: np.ndarray | None = None) -> float:
    """Spearman's rank correlation, the Pearson correlation of mid-ranks; of strata the mean weighted by size.

    NaN where either side is constant.
    """
    found = [
        (len(rows), _correlation(rankdata(scores[rows]), rankdata(values[rows]))) for rows in _parts(scores, strata)
    ]
    known = [(size, value) for size, value in found if not math.isnan(value)]
    return sum(size * value for size, value in known) / sum(size for size, _ in known) if known else math.nan


def auc(scores: np.ndarray, positive: np.ndarray, strata: np.ndarray | None = None) -> float:
    """Area under the ROC curve: the share of pairs (positive, negative) in which the positive scores higher, ties ½.

    With strata pairs are formed inside them only. NaN without a pair (Mann and Whitney 1947).
    """
    wins, pairs = 0.0, 0
    for rows in _parts(scores, strata):
        marked = positive[rows]
        count = int(marked.sum())
        wins += rankdata(scores[rows])[marked].sum() - count * (count + 1) / 2
        pairs += count * (len(rows) - count)
    return float(wins / pairs) if pairs else math.nan


def roc(scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """The ROC curve: (false positive rate, true positive rate) at each distinct threshold from (0, 0) to (1, 1)."""
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    hits = np.cumsum(positive[order])[ends]
    rates = np.stack([(ends + 1 - hits) / max((~positive).sum(), 1), hits / max(positive.sum(), 1)], axis=1)
    return np.concatenate([np.zeros((1, 2)), rates])


def equal_bins(values: np.ndarray, bins: int = 10) -> np.ndarray:
    """The bin (N,) of each value, from 0: about equally many in each, equal values together."""
    edges = np.unique(np.quantile(values, np.linspace(0, 1, bins + 1)))
    return np.searchsorted(edges[1:-1], values, side="right")


def binned_means(values: np.ndarray, bins: np.ndarray, count: int) -> np.ndarray:
    """Mean of the values in each of `count` bins, NaN in an empty one."""
    sizes = np.bincount(bins, minlength=count)
    with np.errstate(invalid="ignore"):
        return np.bincount(bins, weights=values, minlength=count) / sizes


def log_losses(probability: np.ndarray, happened: np.ndarray) -> np.ndarray:
    """-log of the probability given to what happened (N,), in nats, each probability clipped by 1e-6."""
    clipped = np.clip(probability, CLIP, 1 - CLIP)
    return -np.log(np.where(happened, clipped, 1 - clipped))


def calibration_error(probability: np.ndarray, happened: np.ndarray, bins: np.ndarray) -> float:
    """Expected calibration error: mean over the samples of |mean prediction - share| in their bin (Guo et al. 2017)."""
    count = int(bins.max()) + 1
    gap = binned_means(probability, bins, count) - binned_means(happened.astype(float), bins, count)
    return float(np.abs(gap)[bins].mean())


def bootstrap(
    statistic: Callable[[np.ndarray], np.ndarray], clusters: np.ndarray, repeats: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """The 95 % percentile interval (low, high) of statistic(rows), each of its shape.

    Whole clusters are drawn with replacement: the observations of one sample are not independent.
    """
    generator = np.random.default_rng(seed)
    names, members = np.unique(clusters, return_inverse=True)
    every = np.arange(len(members))
    found = []
    for _ in range(repeats):
        drawn = np.bincount(generator.integers(0, len(names), len(names)), minlength=len(names))
        found.append(statistic(np.repeat(every, drawn[members])))
    found = np.array(found)
    missing = np.isnan(found).all(axis=0)
    low, high = np.nanpercentile(np.where(missing, 0.0, found), (2.5, 97.5), axis=0)
    return np.where(missing, np.nan, low), np.where(missing, np.nan, high)


def _parts(scores: np.ndarray, strata: np.ndarray | None) -> list[np.ndarray]:
    if strata is None:
        return [np.arange(len(scores))]
    return [np.flatnonzero(strata == one) for one in np.unique(strata)]


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    scale = math.sqrt((a @ a) * (b @ b))
    return float(a @ b / scale) if scale > 0 else math.nan
