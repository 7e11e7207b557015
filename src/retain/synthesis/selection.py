"""Which samples to ask for and which to take: shares of labels, and k-means (Huang et al. 2024)."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TypeVar

import numpy as np
from sklearn.cluster import KMeans

from retain.schedules import round_amount

CLUSTERS = 20

Key = TypeVar("Key", bound=Hashable)


def in_proportion(weights: Mapping[Key, float], amount: int, room: Mapping[Key, int] | None = None) -> list[Key]:
    """`amount` keys in turn, so that the first n of them follow the weights for every n (SSR 9.7).

    room: how often each may come at most; where a key is used up the others fill its place, and fewer come in all
    where everything is.
    """
    total = sum(weights.values()) or 1.0
    given = {key: 0 for key in weights if (room[key] if room is not None else weights[key])}
    open_keys, chosen = list(given), []
    while open_keys and len(chosen) < amount:
        key = max(open_keys, key=lambda one: weights[one] / total * (len(chosen) + 1) - given[one])
        given[key] += 1
        chosen.append(key)
        if room is not None and given[key] == room[key]:
            open_keys.remove(key)
    return chosen


def nearest_to_centroids(embeddings: np.ndarray, count: int, seed: int, clusters: int = CLUSTERS) -> list[int]:
    """`count` rows of (N, D): of each k-means cluster its share ⌊count·n_c/N + ½⌋, those nearest to its centroid.

    Rows are L2-normalized first. Shares that do not sum to `count` are evened out by distance over all clusters.
    """
    rows = embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
    means = KMeans(min(clusters, len(rows)), n_init=1, random_state=seed).fit(rows)
    distances = np.linalg.norm(rows - means.cluster_centers_[means.labels_], axis=1)
    order = np.argsort(distances, kind="stable")
    chosen: list[int] = []
    for cluster in range(means.n_clusters):
        members = [int(row) for row in order if means.labels_[row] == cluster]
        chosen += members[: round_amount(count * len(members) / len(rows))]
    chosen = sorted(chosen, key=lambda row: distances[row])[:count]
    rest = [int(row) for row in order if row not in set(chosen)]
    return sorted(chosen + rest[: count - len(chosen)])
