"""Pick representative samples by k-means (Huang et al. 2024, "Self-Synthesized Rehearsal")."""

from __future__ import annotations

import numpy as np
from sklearn.cluster import KMeans

from retain.schedules import round_amount

CLUSTERS = 20


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
