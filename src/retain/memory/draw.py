"""Which rows an event draws (MATH 2, "Which")."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np

from retain.memory.random import to_gumbel


def gumbel_top_k(log_weights: np.ndarray, random_bits: np.ndarray, count: int) -> np.ndarray:
    """`count` rows in the order of sequential sampling without replacement (Gumbel top-k).

    The keys are log w + Gumbel noise. Equal keys (weights of -∞, or noise lost in a huge weight)
    are ordered by the bits, that is uniformly among their like. Shape (min(count, N),).
    """
    count = min(count, len(log_weights))
    if count == 0:
        return np.empty(0, dtype=np.int64)
    largest = log_weights.max()
    shift = largest if np.isfinite(largest) else 0.0
    keys = (log_weights - shift) + to_gumbel(random_bits)
    threshold = np.partition(keys, len(keys) - count)[len(keys) - count]
    above = np.flatnonzero(keys > threshold)
    tied = np.flatnonzero(keys == threshold)
    wanted = count - len(above)
    if wanted < len(tied):
        tied = tied[np.argpartition(random_bits[tied], len(tied) - wanted)[len(tied) - wanted :]]
    rows = np.concatenate([above, tied])
    return rows[np.lexsort((random_bits[rows], keys[rows]))[::-1]]


def stalest(last_review: np.ndarray, ids: Sequence[str], before: float, count: int) -> np.ndarray:
    """At most `count` rows with last_review ≤ `before`, the oldest first, ties by id (Table 12)."""
    stale = np.flatnonzero(last_review <= before)
    count = min(count, len(stale))
    if count == 0:
        return stale[:0]
    cutoff = np.partition(last_review[stale], count - 1)[count - 1]
    older = stale[last_review[stale] < cutoff].tolist()
    tied = stale[last_review[stale] == cutoff].tolist()
    older.sort(key=lambda row: (last_review[row], ids[row]))
    return np.array(older + heapq.nsmallest(count - len(older), tied, key=ids.__getitem__), dtype=np.int64)
