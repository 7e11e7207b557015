"""Predicted strength against what happened, as plain values: ranks, reliability, and parameters that fit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from retain import calibration as measures
from retain.config import Config
from retain.history import Observation
from retain.memory.fitting import NAMES, Histories, Parameters, cross_validated, fit, log_retention, losses
from retain.memory.random import bits, hash_ids, uniform
from retain.sections import MemoryModel
from retain.types import InputError

REPEATS = 400
FOLDS = 5
EVENTS = 20
"""Outcomes of the rarer kind that two parameters need: ten for each (Peduzzi et al. 1996)."""
SHARED = (
    *("phi", "phi_k", "phi_c", "phi_power", "phi_kappa", "ema_beta", "quantile_low", "quantile_high"),
    *("beta_s", "gamma_s", "s_min", "s_max"),
)
RANDOM, FOLD = 1, 2  # streams of counter-based noise
ROC_POINTS = 120


def assess(
    groups: Mapping[str, Sequence[Observation]], changes: Mapping[str, Sequence[float | None]], seed: int
) -> dict[str, Any]:
    """Each group of observations against the measured rise of each one's loss in nats a token, None where unknown.

    Raises InputError where nothing, or everything, was forgotten: then nothing can be ranked.
    """
    known = np.array([change for change in changes["intervals"] if change is not None])
    if not len(known):
        raise InputError("the texts of the stored samples are gone, so nothing can be measured")
    _check_outcomes(measures.forgotten(known), f"; the median change is {np.median(known):+.2f}")
    unknown = sum(change is None for change in changes["stored"])
    found = {name: _group(groups[name], changes[name], seed, name != "stored") for name in groups}
    return {"forgotten_above": measures.FORGOTTEN_ABOVE, "bootstrap": REPEATS, "text_gone": unknown, "groups": found}


def _check_outcomes(forgotten: np.ndarray, median: str = "") -> None:
    if forgotten.any() and not forgotten.all():
        return
    what = "every one" if forgotten.any() else "none"
    hint = (
        "less: a lower training.learning_rate, or more replay"
        if forgotten.any()
        else ("more: a higher training.learning_rate, more tasks, or less replay")
    )
    raise InputError(
        f"{what} of {len(forgotten)} observations of stored samples was forgotten (its loss up by more than "
        f"ln 2{median}), so nothing can be told apart; take a run that forgets {hint}"
    )


def _group(group: Sequence[Observation], changes: Sequence[float | None], seed: int, decays: bool) -> dict[str, Any]:
    """One group; `decays`: nothing was reviewed in between, so the strength predicts a probability."""
    pairs = [(one, change) for one, change in zip(group, changes, strict=True) if change is not None]
    if not pairs:
        return {"observations": 0, "forgotten": 0, "measures": {}, "reliability": None, "roc": {}, "by_task": []}
    columns = {name: np.array([getattr(one, name) for one, _ in pairs]) for name in Observation._fields}
    change = np.array([change for _, change in pairs])
    forgotten = measures.forgotten(change)
    scores = _predictors(columns, seed, decays)

    def ranks(rows: np.ndarray) -> np.ndarray:
        strata = columns["stage"][rows]
        return np.array(
            [
                (
                    measures.spearman(score[rows], change[rows]),
                    measures.auc(score[rows], forgotten[rows]),
                    measures.spearman(score[rows], change[rows], strata),
                    measures.auc(score[rows], forgotten[rows], strata),
                )
                for score in scores.values()
            ]
        )

    every = np.arange(len(pairs))
    values = np.stack([ranks(every), *measures.bootstrap(ranks, columns["id"], REPEATS, seed)], axis=-1)
    names = ("spearman", "auc", "spearman_within", "auc_within")
    kept = np.exp(columns["log_strength"] - columns["log_start"])
    return {
        "observations": len(pairs),
        "forgotten": int(forgotten.sum()),
        "measures": {
            predictor: {name: _plain(value) for name, value in zip(names, row, strict=True)}
            for predictor, row in zip(scores, values, strict=True)
        },
        "reliability": _reliability(kept, ~forgotten, columns["id"], seed) if decays else None,
        "roc": {name: _curve(score, forgotten) for name, score in scores.items()},
        "by_task": _by_task(columns, change, forgotten, kept if decays else None),
    }


def _predictors(columns: Mapping[str, np.ndarray], seed: int, decays: bool) -> dict[str, np.ndarray]:
    """Scores (N,) that are high where forgetting is expected. Strengths stay logarithms, which do not underflow."""
    found = {"retention": columns["log_start"] - columns["log_strength"]} if decays else {}
    found |= {"strength": -columns["log_strength"], "waited": columns["waited"].astype(float)}
    last = columns["last_loss"]
    if not np.isnan(last).all():
        found["last_loss"] = np.where(np.isnan(last), np.nanmean(last), last)
    noise = [uniform(seed, RANDOM, int(stage), hashes=hash_ids([one]))[0]
             for one, stage in zip(columns["id"], columns["stage"], strict=True)]  # fmt: skip
    return found | {"random": np.array(noise)}


def _reliability(predicted: np.ndarray, kept: np.ndarray, clusters: np.ndarray, seed: int) -> dict[str, Any]:
    """Predicted retention against the share that was kept, in bins of about equal size, and what a constant scores."""
    bins = measures.equal_bins(predicted)
    count = int(bins.max()) + 1
    low, high = measures.bootstrap(
        lambda rows: measures.binned_means(kept[rows].astype(float), bins[rows], count), clusters, REPEATS, seed
    )
    columns = (
        measures.binned_means(predicted, bins, count),
        measures.binned_means(kept.astype(float), bins, count),
        low,
        high,
        np.bincount(bins, minlength=count),
    )
    names = ("predicted", "kept", "low", "high", "count")
    rate = np.full(len(kept), kept.mean())
    return {
        "bins": [dict(zip(names, _plain(row), strict=True)) for row in np.stack(columns, axis=1)],
        "log_loss": float(measures.log_losses(predicted, kept).mean()),
        "log_loss_constant": float(measures.log_losses(rate, kept).mean()),
        "brier": float(((predicted - kept) ** 2).mean()),
        "brier_constant": float(((rate - kept) ** 2).mean()),
        "calibration_error": measures.calibration_error(predicted, kept, bins),
    }


def _curve(scores: np.ndarray, forgotten: np.ndarray) -> list[list[float | None]]:
    points = measures.roc(scores, forgotten)
    rows = np.unique(np.linspace(0, len(points) - 1, ROC_POINTS).round().astype(int))
    return [_plain(point) for point in points[rows]]


def _by_task(
    columns: Mapping[str, np.ndarray], change: np.ndarray, forgotten: np.ndarray, kept: np.ndarray | None
) -> list[dict[str, Any]]:
    """A row a stage and task of the stored samples: which are forgotten, and when."""
    found = []
    for stage in np.unique(columns["stage"]).tolist():
        of_stage = columns["stage"] == stage
        for task in dict.fromkeys(columns["task"][of_stage].tolist()):
            rows = of_stage & (columns["task"] == task)
            found.append(
                {
                    "stage": stage,
                    "task": task,
                    "observations": int(rows.sum()),
                    "forgotten": float(forgotten[rows].mean()),
                    "predicted": None if kept is None else float(1 - kept[rows].mean()),
                    "median_change": float(np.median(change[rows])),
                }
            )
    return found


def _plain(values: np.ndarray) -> list[float | None]:
    return [round(value, 6) if math.isfinite(value) else None for value in np.asarray(values, dtype=float).tolist()]


def assess_fit(configs: Sequence[Config], histories: Histories, own: np.ndarray) -> dict[str, Any]:
    """Fitted parameters against those the runs had, whose log P(kept) is `own` (M,), and against a constant rate.

    Raises InputError where outcomes are too few, or the runs differ in what is not fitted.
    """
    start = _common(configs)
    _check_outcomes(histories.forgotten)
    events = _events(histories.forgotten)
    if events < EVENTS:
        raise InputError(
            f"{int(histories.forgotten.sum())} of {len(histories.forgotten)} observations are forgotten; a fit needs "
            f"{EVENTS} forgotten and {EVENTS} kept ones: give more runs, or longer ones"
        )
    reviewed = _events(histories.forgotten[histories.reviews > 0])
    consolidation = reviewed >= EVENTS
    found, at_bound = fit(histories, start, consolidation)
    rate = np.full(len(own), histories.forgotten.mean())
    told = {
        "fitted": losses(histories, log_retention(histories, found)),
        "own": losses(histories, own),
        "constant": measures.log_losses(rate, histories.forgotten),
    }
    return {
        "observations": len(own),
        "forgotten": int(histories.forgotten.sum()),
        "reviewed_events": reviewed,
        "events_needed": EVENTS,
        "parameters": {name: _short(value) for name, value in found.values().items()},
        "own": [_own(config) for config in configs],
        "kept_as_it_was": [] if consolidation else ["eta_s", "rho"],
        "at_bound": at_bound,
        "log_likelihood": {name: -float(value.sum()) for name, value in told.items()},
        "held_out": _held_out(histories, start, consolidation, told["own"], configs[0].seed),
        "yaml": _yaml(found),
    }


def _common(configs: Sequence[Config]) -> MemoryModel:
    """The first run's memory, after a look at whether the others are like it."""
    first = configs[0].memory
    for config in configs[1:]:
        for name in SHARED:
            if getattr(config.memory, name) != getattr(first, name):
                raise InputError(
                    f"memory.{name}: the runs differ ({getattr(first, name)} and {getattr(config.memory, name)}); "
                    "fit runs that have it in common"
                )
    if not first.alpha + first.gamma_d > 0 or not first.eta_s > 0:
        defaults = MemoryModel()
        return first.model_copy(update={name: getattr(defaults, name) for name in ("alpha", "gamma_d", "eta_s")})
    return first


def _events(forgotten: np.ndarray) -> int:
    return int(min(forgotten.sum(), (~forgotten).sum()))


def _held_out(
    histories: Histories, start: MemoryModel, consolidation: bool, own: np.ndarray, seed: int
) -> dict[str, Any]:
    """Mean loss of outcomes that the fit has not seen: of other samples, and of other stages."""
    folds = {
        "samples": (bits(seed, FOLD, hashes=hash_ids(histories.id.tolist())) % np.uint64(FOLDS)).astype(int),
        "stages": histories.stage,
    }
    found: dict[str, Any] = {}
    for name, fold in folds.items():
        trained = [histories.forgotten[fold != one] for one in np.unique(fold)]
        if len(trained) < 2 or min(map(_events, trained)) < 2:
            found[name] = None
            continue
        fitted, constant = cross_validated(histories, fold, start, consolidation)
        compared = np.stack([fitted - own, fitted - constant], axis=1)
        low, high = measures.bootstrap(lambda rows, c=compared: c[rows].mean(axis=0), histories.id, REPEATS, seed)
        found[name] = {
            "fitted": float(fitted.mean()),
            "own": float(own.mean()),
            "constant": float(constant.mean()),
            "against_own": _plain([compared[:, 0].mean(), low[0], high[0]]),
            "against_constant": _plain([compared[:, 1].mean(), low[1], high[1]]),
        }
    return found


def _own(config: Config) -> dict[str, Any]:
    return {name: getattr(config.memory, name) for name in NAMES}


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def _yaml(found: Parameters) -> str:
    return "memory:\n" + "".join(f"  {name}: {_short(value)!r}\n" for name, value in found.values().items())
