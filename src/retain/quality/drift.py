"""How far synthetic text has moved from real text: statistics of two lists (SSR 8 "Generator Quality", 9.1, 9.7)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from retain.quality.ngrams import ngram_hashes, words


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Distinct word n-grams over all word n-grams of all texts (Li et al. 2016), in (0, 1]; 0 without any.

    Only texts of at least n words have n-grams.
    """
    hashes, _ = ngram_hashes([text for text in texts if len(words(text)) >= n], n)
    return len(np.unique(hashes)) / len(hashes) if len(hashes) else 0.0


def unigram_divergence(texts: Iterable[str], reference: Iterable[str]) -> float:
    """KL(P‖Q) = Σ_w p(w) ln(p(w)/q(w)) of `texts` against `reference`, in nats, ≥ 0.

    p(w) = (count + 1)/(words + V) over the V words of either list (add-one smoothing).
    """
    first, second = (Counter(word for text in side for word in words(text)) for side in (texts, reference))
    vocabulary = list(first | second)
    if not vocabulary:
        return 0.0
    p, q = (np.array([counts[word] + 1.0 for word in vocabulary]) for counts in (first, second))
    p, q = p / p.sum(), q / q.sum()
    return max(0.0, float((p * np.log(p / q)).sum()))


def gaussian_divergence(embeddings: np.ndarray, reference: np.ndarray) -> float:
    """KL(N(μ, σ²)‖N(m, s²)) = ½ Σ_d [σ²/s² + (μ - m)²/s² - 1 - ln(σ²/s²)] of two (N, D), in nats, ≥ 0.

    Diagonal Gaussians; a variance is at least 1e-6 of the reference's mean variance, so that it is never 0.
    """
    first, second = (np.asarray(rows, dtype=np.float64) for rows in (embeddings, reference))
    least = max(1e-6 * second.var(axis=0).mean(), 1e-12)
    variance, expected = (np.maximum(rows.var(axis=0), least) for rows in (first, second))
    shift = (first.mean(axis=0) - second.mean(axis=0)) ** 2
    return 0.5 * float((variance / expected + shift / expected - 1.0 - np.log(variance / expected)).sum())


def label_shares(labels: Iterable[str]) -> dict[str, float]:
    """Share of each label, the most frequent first."""
    counts = Counter(labels)
    return {label: count / counts.total() for label, count in counts.most_common()}


def label_distance(shares: Mapping[str, float], reference: Mapping[str, float]) -> float:
    """Total variation ½ Σ |p - q| of two label distributions, in [0, 1]: the share with another label."""
    labels = {**shares, **reference}
    return 0.5 * sum(abs(shares.get(label, 0.0) - reference.get(label, 0.0)) for label in labels)
