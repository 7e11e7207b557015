"""What people think of a sample of the synthetic data (SSR 8 "Human Evaluation", 9.3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from retain.types import InputError

CRITERIA = ("fluency", "coherence", "relevance", "label")
APPROVED_FROM = 3  # of 1 to 5

Rating = bool | Mapping[str, int]


def is_approved(rating: Rating) -> bool:
    """A yes, or no criterion below 3 of 5: a fluent text with a wrong label teaches the wrong label."""
    return rating if isinstance(rating, bool) else min(rating.values(), default=0) >= APPROVED_FROM


def approval_rate(ratings: Sequence[Rating]) -> float:
    """Share of the ratings that approve, in [0, 1]; an InputError without any."""
    if not ratings:
        raise InputError("ratings: there are none; rate at least one sample")
    return sum(map(is_approved, ratings)) / len(ratings)


def percent_agreement(first: Sequence[bool | int], second: Sequence[bool | int]) -> float:
    """Share of items on which two raters say the same, in [0, 1]."""
    a, b = _paired(first, second)
    return float((a == b).mean())


def cohens_kappa(first: Sequence[bool | int], second: Sequence[bool | int]) -> float | None:
    """κ = (p_o - p_e)/(1 - p_e): agreement beyond chance (Cohen 1960), p_e from each rater's own shares.

    None where both raters gave one and the same answer throughout: chance explains it all.
    """
    a, b = _paired(first, second)
    expected = sum(float((a == answer).mean() * (b == answer).mean()) for answer in np.unique(a))
    return None if expected == 1.0 else (float((a == b).mean()) - expected) / (1.0 - expected)


def weighted_kappa(first: Sequence[int], second: Sequence[int]) -> float | None:
    """κ_w = 1 - E[(a - b)²] / (Var a + Var b + (E a - E b)²): quadratic weights (Cohen 1968).

    The denominator is what chance brings: E[(a - b)²] of independent ratings. For ordered ratings, such as 1 to 5.
    None where both raters gave one and the same rating throughout.
    """
    a, b = _paired(first, second)
    expected = float(a.var() + b.var() + (a.mean() - b.mean()) ** 2)
    return None if expected == 0.0 else 1.0 - float(((a - b) ** 2).mean()) / expected


def _paired(first: Sequence[bool | int], second: Sequence[bool | int]) -> tuple[np.ndarray, np.ndarray]:
    if len(first) != len(second) or not len(first):
        raise InputError(f"ratings: {len(first)} and {len(second)}; two raters rate the same items, at least one")
    return np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
