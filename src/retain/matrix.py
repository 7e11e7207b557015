"""Score matrix -> named metrics (MATH section 6; MSSR Eq. 1, 36, 37).

R has one row a finished stage plus row 0, the untouched model, and one column a task: R[t, i] is the
score on task i after stage t, stages counted from 1. A cell nobody measured is NaN inside this module and
None outside. Each function leaves a task (or a stage) out of its mean when a cell it needs is missing and
returns NaN when nothing is left. No function edits its input.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from retain.types import InputError

Matrix = Sequence[Sequence[float | None]]


def average(scores: np.ndarray) -> float:
    """ACC = meanᵢ R[T, i], the average score at the end (MATH 6). R: (T+1, T)."""
    return _mean(scores[-1])


def mean_average(scores: np.ndarray) -> float:
    """MAA = meanₜ meanᵢ≤ₜ R[t, i], the average over all stages of what was learned so far (MATH 6)."""
    return _mean(np.array([_mean(row[:stage]) for stage, row in enumerate(scores[1:], start=1)]))


def backward_transfer(scores: np.ndarray) -> float:
    """BWT = meanᵢ<T (R[T, i] - R[i, i]); negative = forgotten (MATH 6)."""
    return _mean((scores[-1] - learned(scores))[:-1])


def forward_transfer(scores: np.ndarray) -> float:
    """FWT = meanᵢ>1 (R[i-1, i] - R[0, i]), what earlier tasks gave to later ones (MATH 6).

    Needs rows 0..T-1 only, so a run in its last stage has it already.
    """
    columns = np.arange(1, scores.shape[1])
    return _mean(scores[columns, columns] - scores[0, columns])


def forgetting(scores: np.ndarray) -> float:
    """F = meanᵢ<T maxₜ>ᵢ (R[i, i] - R[t, i]) (MSSR Eq. 1); may be negative."""
    worst = np.array([column[stage + 1 :].min() for stage, column in _past(scores)])
    return _mean(learned(scores)[:-1] - worst)


def forgetting_final(scores: np.ndarray) -> float:
    """meanᵢ<T (maxᵢ≤ₜ<T R[t, i] - R[T, i]), the fall from the best score to the last (MATH 6)."""
    best = np.array([column[stage:-1].max() for stage, column in _past(scores)])
    return _mean(best - scores[-1, :-1])


def retention(scores: np.ndarray) -> float:
    """meanᵢ<T R[T, i] / R[i, i] over the tasks with R[i, i] > 0 (MATH 6)."""
    at_first, at_last = learned(scores)[:-1], scores[-1, :-1]
    known = at_first > 0  # False for NaN
    with np.errstate(over="ignore"):  # a score of 1e-320; `summarize` turns the infinity into None
        return _mean(at_last[known] / at_first[known])


def normalized_score(scores: np.ndarray) -> float:
    """meanᵢ R[T, i] / max(max₁≤ₜ≤T R[t, i], 1e-8) (MSSR Eq. 36, 37); before its own stage a task may be unmeasured."""
    stages, unseen = scores[1:], np.tri(*scores[1:].shape, dtype=bool) == 0
    best = np.where(unseen & np.isnan(stages), -np.inf, stages).max(axis=0)
    return _mean(scores[-1] / np.maximum(best, 1e-8))


def learned(scores: np.ndarray) -> np.ndarray:
    """R[i, i]: the score on each task right after its own stage. (T+1, T) -> (T,)."""
    return np.diagonal(scores, offset=-1)


METRICS: dict[str, Callable[[np.ndarray], float]] = {
    "ACC": average,
    "MAA": mean_average,
    "BWT": backward_transfer,
    "FWT": forward_transfer,
    "forgetting": forgetting,
    "forgetting_final": forgetting_final,
    "retention": retention,
    "normalized_score": normalized_score,
}


def summarize(matrix: Matrix, joint: bool = False) -> dict[str, float | None]:
    """Every metric of MATH 6 by name, None where it is not defined (yet).

    `matrix` has rows 0..T of T scores; fewer rows are an unfinished run, whose metrics that need the last
    row are None. What needs history (all but ACC) is None for T < 2 and for `joint`, whose matrix has the
    first and the last row alone. Raises InputError for a wrong shape or a value that is not a number.
    """
    scores = to_array(matrix, joint)
    rows, tasks = scores.shape
    finished = tasks > 0 and rows == (2 if joint else tasks + 1)
    metrics: dict[str, float | None] = dict.fromkeys(METRICS)
    for name, metric in METRICS.items():
        has_rows = rows >= tasks if name == "FWT" else finished
        has_history = tasks >= 2 and not joint
        if has_rows and (has_history or name == "ACC"):
            value = metric(scores)
            metrics[name] = value if math.isfinite(value) else None
    return metrics


def to_array(matrix: Matrix, joint: bool = False) -> np.ndarray:
    """A checked float64 copy of the matrix, NaN for None. Shape (rows, T); raises InputError."""
    tasks = len(matrix[0]) if len(matrix) else 0
    limit = 2 if joint else tasks + 1
    if len(matrix) > limit:
        raise InputError(
            f"matrix: {len(matrix)} rows for {tasks} tasks; at most {limit} are allowed: "
            f"the untouched model and {'the joint stage' if joint else 'one a stage'}"
        )
    for number, row in enumerate(matrix):
        if len(row) != tasks:
            raise InputError(f"matrix: row {number} has {len(row)} scores, row 0 has {tasks}; one a task")
        for column, value in enumerate(row):
            if not (value is None or _is_number(value)):
                raise InputError(
                    f"matrix: row {number}, column {column} is {value!r}; allowed is a finite number or null"
                )
    cells = [[math.nan if value is None else value for value in row] for row in matrix]
    return np.array(cells, dtype=np.float64).reshape(len(matrix), tasks)


def _is_number(value: object) -> bool:
    is_real = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    return is_real and math.isfinite(value)


def _past(scores: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """(stage, column) of every task but the last."""
    return [(stage, scores[:, stage - 1]) for stage in range(1, scores.shape[1])]


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else math.nan
