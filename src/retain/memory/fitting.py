"""The memory's parameters by maximum likelihood from review histories, as spaced-repetition software fits its own.

An observation is a stored sample over a time without review; it was forgotten or not. The model gives
P(kept) = m(end) / m(start) = exp(-∫h dτ): m is the survival function of the hazard h (Eq. 4, 7). The likelihood is
Bernoulli. Scaling α, γ_d, ρ and the unit of time together changes nothing, so α + γ_d φ(½) stays what it was,
and the unit carries the scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import minimize

from retain.calibration import CLIP, log_losses
from retain.memory import dynamics
from retain.sections import MemoryModel

NAMES = ("alpha", "gamma_d", "time_unit", "eta_s", "rho")
BOUNDS = {"share": (0.0, 1.0), "time_unit": (1e-2, 1e6), "eta_s": (1e-4, 10.0), "rho": (1e-5, 10.0)}
"""Of what is searched: α's share of the hazard at φ(½), steps a tick, Eq. 5's η_s and ρ."""
STARTS = ((0.1, 0.05), (0.5, 0.5), (0.9, 0.05))
"""Where the search begins: α's share and η_s. On simulated histories all of them end at one optimum."""


@dataclass(frozen=True)
class Histories:
    """N samples with up to K reviews each, and M observations of them.

    elapsed, weighted (N, K): steps before each review since the one before (or entry), plain and weighted by the
    difficulty φ(l̂). sample, reviews (M,): whose and after how many reviews. steps, weighted_steps (M,): the same two
    times over the observation. forgotten (M,), stage (M,), id (M,).
    """

    elapsed: np.ndarray
    weighted: np.ndarray
    sample: np.ndarray
    reviews: np.ndarray
    steps: np.ndarray
    weighted_steps: np.ndarray
    forgotten: np.ndarray
    stage: np.ndarray
    id: np.ndarray

    def only(self, rows: np.ndarray) -> Histories:
        """Some of the observations."""
        names = ("sample", "reviews", "steps", "weighted_steps", "forgotten", "stage", "id")
        return replace(self, **{name: getattr(self, name)[rows] for name in names})


@dataclass(frozen=True)
class Parameters:
    """A point in the space of the fit; the model holds α, γ_d, η_s and ρ."""

    model: MemoryModel
    time_unit: float

    def values(self) -> dict[str, float]:
        """The five by name."""
        return {name: self.time_unit if name == "time_unit" else getattr(self.model, name) for name in NAMES}


def log_retention(histories: Histories, parameters: Parameters) -> np.ndarray:
    """log P(kept) (M,) = -(α n + γ_d e) / (S u) over n steps that weigh e by difficulty, u steps a tick (Eq. 4, 7).

    S after each review is Eq. 5's, from its own n and e. An S that a review did not change holds them all.
    """
    model, unit = parameters.model, parameters.time_unit
    stability = np.full(len(histories.elapsed), model.s_min)
    reached = [stability]
    for elapsed, weighted in zip(histories.elapsed.T, histories.weighted.T, strict=True):
        log_strength = -(model.alpha * elapsed + model.gamma_d * weighted) / (stability * unit)
        stability = dynamics.consolidated(stability, log_strength, elapsed / unit, 0.0, model)
        reached.append(stability)
    decay = model.alpha * histories.steps + model.gamma_d * histories.weighted_steps
    return -decay / (np.array(reached)[histories.reviews, histories.sample] * unit)


def losses(histories: Histories, log_kept: np.ndarray) -> np.ndarray:
    """-log of the probability of each outcome (M,), in nats; probabilities are clipped by 1e-6."""
    return log_losses(-np.expm1(np.minimum(log_kept, 0.0)), histories.forgotten)


def fit(histories: Histories, start: MemoryModel, consolidation: bool = True) -> tuple[Parameters, list[str]]:
    """The parameters of the highest likelihood, from several starts inside BOUNDS, and the names of those at a bound.

    consolidation: fit η_s and ρ too, which need observations of reviewed samples; else they stay as in `start`.
    """
    searched = list(BOUNDS)[: 4 if consolidation else 2]
    limits = [BOUNDS[name] if name == "share" else tuple(np.log(BOUNDS[name])) for name in searched]

    def objective(point: np.ndarray) -> float:
        return float(losses(histories, log_retention(histories, _parameters(point, start))).mean())

    found = [minimize(objective, x0, method="L-BFGS-B", bounds=limits) for x0 in _starts(histories, start, searched)]
    best = min(found, key=lambda one: one.fun)
    near = [abs(x - edge) < 1e-6 for x, edges in zip(best.x, limits, strict=True) for edge in edges]
    stuck = [name for name, low, high in zip(searched, near[::2], near[1::2], strict=True) if low or high]
    names = {"share": "alpha" if best.x[0] < 0.5 else "gamma_d"}
    return _parameters(best.x, start), [names.get(name, name) for name in stuck]


def cross_validated(
    histories: Histories, folds: np.ndarray, start: MemoryModel, consolidation: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Loss of each held-out outcome (M,) in nats, from parameters and from a constant rate fitted to other folds."""
    fitted, constant = np.full((2, len(folds)), np.nan)
    for fold in np.unique(folds):
        held, rest = folds == fold, folds != fold
        parameters, _ = fit(histories.only(rest), start, consolidation)
        fitted[held] = losses(histories.only(held), log_retention(histories.only(held), parameters))
        rate = histories.forgotten[rest].mean()
        constant[held] = log_losses(np.full(held.sum(), rate), histories.forgotten[held])
    return fitted, constant


def _parameters(point: Sequence[float], start: MemoryModel) -> Parameters:
    """The parameters at (share, log u[, log η_s, log ρ])."""
    share, log_unit, *growth = point
    middle = float(dynamics.phi(np.array(0.5), start))
    scale = start.alpha + start.gamma_d * middle
    changes = {"alpha": float(share * scale), "gamma_d": float((1 - share) * scale / middle)}
    if growth:
        changes |= dict(zip(("eta_s", "rho"), np.exp(growth).tolist(), strict=True))
    return Parameters(start.model_copy(update=changes), float(np.exp(log_unit)))


def _starts(histories: Histories, start: MemoryModel, searched: Sequence[str]) -> list[list[float]]:
    """Points around the unit of time whose constant hazard would explain the share of forgotten observations."""
    rate = -np.log1p(-np.clip(histories.forgotten.mean(), CLIP, 1 - CLIP))
    scale = start.alpha + start.gamma_d * float(dynamics.phi(np.array(0.5), start))
    unit = scale * histories.steps.mean() / (start.s_min * rate)
    log_unit = np.log(np.clip(unit, *BOUNDS["time_unit"]))
    return [[share, log_unit, np.log(eta_s), np.log(0.01)][: len(searched)] for share, eta_s in STARTS]
