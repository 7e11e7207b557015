"""The equations of the memory model: one pure function each, on arrays of samples.

Source: MSSR (arXiv 2603.09892); "Eq." numbers are the paper's. Times are in ticks, strengths are
natural logarithms. A missing loss is NaN on the way in; nothing comes out as NaN but a missing loss.
"""

from __future__ import annotations

import numpy as np

from retain.sections import MemoryModel

NARROW = 1e-12
"""A distance of the two loss quantiles below this says nothing about difficulty."""


def phi_sigmoid(normalized_loss: np.ndarray, slope: float, center: float) -> np.ndarray:
    """Calibrated sigmoid φ(x) = 1 / (1 + exp(-k (x - c))) (Eq. 20)."""
    with np.errstate(over="ignore"):
        return 1.0 / (1.0 + np.exp(-slope * (normalized_loss - center)))


def phi_identity(normalized_loss: np.ndarray) -> np.ndarray:
    """Linear sensitivity φ(x) = x (A.6)."""
    return np.asarray(normalized_loss, dtype=np.float64)


def phi_power(normalized_loss: np.ndarray, power: float) -> np.ndarray:
    """Power map φ(x) = xᵖ (A.6)."""
    return np.power(normalized_loss, power)


def phi_log(normalized_loss: np.ndarray, kappa: float) -> np.ndarray:
    """Logarithmic map φ(x) = log(1 + κx) / log(1 + κ) (A.6)."""
    return np.log1p(kappa * normalized_loss) / np.log1p(kappa)


def phi(normalized_loss: np.ndarray, config: MemoryModel) -> np.ndarray:
    """The configured map from normalized loss in [0, 1] to difficulty in [0, 1] (A.6)."""
    match config.phi:
        case "sigmoid":
            return phi_sigmoid(normalized_loss, config.phi_k, config.phi_c)
        case "identity":
            return phi_identity(normalized_loss)
        case "power":
            return phi_power(normalized_loss, config.phi_power)
        case "log":
            return phi_log(normalized_loss, config.phi_kappa)


def ema(previous: np.ndarray, loss: np.ndarray, beta: float) -> np.ndarray:
    """Loss signal l̃ ← β l̃ + (1 - β) l; the first observation sets it (Eq. 13).

    previous: NaN where nothing was observed yet. The clip only takes rounding away: an average
    lies between its parts, so it neither drifts under a constant loss nor overflows.
    """
    previous = np.where(np.isnan(previous), loss, previous)
    with np.errstate(over="ignore"):
        mixed = beta * previous + (1.0 - beta) * loss
    return np.clip(mixed, np.minimum(previous, loss), np.maximum(previous, loss))


def loss_quantiles(ema_loss: np.ndarray, low: float, high: float) -> tuple[float, float] | None:
    """Exact quantiles (linear interpolation) of the losses there are, None without any (Eq. 14).

    Halved inside, so that the difference of two finite losses is finite.
    """
    known = ema_loss[~np.isnan(ema_loss)]
    if known.size == 0:
        return None
    lower, upper = 2.0 * np.quantile(0.5 * known, (low, high))
    return float(lower), float(upper)


def normalized(ema_loss: np.ndarray, quantiles: tuple[float, float] | None) -> np.ndarray:
    """l̂ = clip((l̃ - Q_l) / (Q_u - Q_l), 0, 1) (Eq. 14).

    ½ where the sample has no loss, and for all without quantiles or where they are closer than 1e-12.
    """
    ema_loss = np.asarray(ema_loss, dtype=np.float64)
    if quantiles is None:
        return np.full(ema_loss.shape, 0.5)
    low, high = 0.5 * quantiles[0], 0.5 * quantiles[1]
    if high - low < 0.5 * NARROW:
        return np.full(ema_loss.shape, 0.5)
    with np.errstate(over="ignore"):
        share = np.clip((0.5 * ema_loss - low) / (high - low), 0.0, 1.0)
    return np.where(np.isnan(ema_loss), 0.5, share)


def hazard(difficulty: np.ndarray, stability: np.ndarray, alpha: float, gamma_d: float) -> np.ndarray:
    """Decay per tick h = (α + γ_d φ(l̂)) / S (Eq. 4)."""
    return (alpha + gamma_d * difficulty) / stability


def decayed(log_strength: np.ndarray, hazard: np.ndarray, elapsed: np.ndarray) -> np.ndarray:
    """Strength after a time at one hazard, log m - h Δt (Eq. 7 at a refresh, Eq. 17 in a query).

    elapsed: ticks since the anchor at which log m was written.
    """
    return log_strength - hazard * elapsed


def consolidated(
    stability: np.ndarray,
    log_strength: np.ndarray,
    elapsed: np.ndarray,
    noise: np.ndarray | float,
    config: MemoryModel,
) -> np.ndarray:
    """Stability after a review (Eq. 5), S ← clip(S + ΔS + ε, S_min, S_max).

    ΔS = η_s (S_max - S)^β_s exp(-ρ Δt) (1 - m)^γ_s as exp of a sum of logs, an exponent of 0
    removing its factor, so that 0⁰ is 1 and no product of infinity and zero arises.
    elapsed: ticks since the last review. log_strength: just before this one.
    """
    with np.errstate(divide="ignore", over="ignore"):
        log_growth = (
            np.log(config.eta_s)
            + weighted(config.beta_s, np.log(config.s_max - stability))
            - config.rho * elapsed
            + weighted(config.gamma_s, log1mexp(log_strength))
        )
        return np.clip(stability + np.exp(log_growth) + noise, config.s_min, config.s_max)


def retention_priority(log_strength: np.ndarray, zeta: float) -> np.ndarray:
    """Log-weight -ζ log m: weak memories first (Eq. 10, 31)."""
    return weighted(zeta, 0.0 - log_strength)


def risk_priority(log_strength: np.ndarray, elapsed: np.ndarray, beta_m: float, rho_m: float) -> np.ndarray:
    """Log-weight β_m log(1 - m) + ρ_m Δt, Δt in ticks since the last review (Sec. 3.3)."""
    return weighted(beta_m, log1mexp(log_strength)) + rho_m * elapsed


def gain_priority(log_strength: np.ndarray, hazard: np.ndarray, gamma_s: float) -> np.ndarray:
    """Log-weight log h + γ_s log(1 - m), the expected gain of a review (Eq. 30)."""
    with np.errstate(divide="ignore"):
        return np.log(hazard) + weighted(gamma_s, log1mexp(log_strength))


def confidence_priority(confidence: np.ndarray) -> np.ndarray:
    """Log-weight log c of a synthetic sample's confidence c (SSR 7.3)."""
    with np.errstate(divide="ignore"):
        return np.log(confidence)


def weighted(coefficient: float, term: np.ndarray) -> np.ndarray:
    """coefficient · term, where a coefficient of 0 removes the term even if it is infinite."""
    return coefficient * term if coefficient else np.zeros_like(term)


def log1mexp(value: np.ndarray) -> np.ndarray:
    """log(1 - exp(x)) for x ≤ 0 without cancellation; -∞ at 0 (Mächler 2012)."""
    value = np.asarray(value, dtype=np.float64)
    with np.errstate(divide="ignore"):
        return np.where(value > -np.log(2.0), np.log(-np.expm1(value)), np.log1p(-np.exp(value)))
