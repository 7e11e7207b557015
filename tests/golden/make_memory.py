"""A slow scalar reference of the memory model, and the golden trajectories it makes.

    python tests/golden/make_memory.py        # writes tests/golden/memory.json

One dict a sample, plain `math`, written from the equations (MSSR Eq. 4, 5, 7, 10, 13, 14, 17, 20, 30 and
Sec. 3.3) without the package: what the package computes on arrays must come out the same.
"""

import json
import math
import random
from pathlib import Path

DEFAULTS = {
    "alpha": 0.01, "gamma_d": 0.20, "phi": "sigmoid", "phi_k": 10.0, "phi_c": 0.5, "phi_power": 2.0,
    "phi_kappa": 9.0, "ema_beta": 0.95, "quantile_low": 0.05, "quantile_high": 0.95, "eta_s": 0.05,
    "beta_s": 0.5, "rho": 0.01, "gamma_s": 1.0, "s_min": 1.0, "s_max": 10.0, "sigma_s": 0.0, "theta": 0.5,
    "priority": "retention", "zeta": 1.0, "beta_m": 1.0, "rho_m": 0.01,
}  # fmt: skip


def run(trace):
    """The answers to the queries of a valid trace."""
    c = {**DEFAULTS, **trace["config"]}
    units = [(0, c["time_unit"])]
    samples, quantiles, queries = {}, None, []
    for op in trace["ops"]:
        kind, t = op["op"], op.get("step")
        if kind == "unit":
            units.append((t, op["time_unit"]))
        elif kind == "add":
            for i, loss in zip(op["ids"], op.get("losses", [None] * len(op["ids"])), strict=True):
                s = {"logm": 0.0, "S": c["s_min"], "loss": loss, "star": t, "anchor": t, "n": 0}
                s["h"] = hazard(s, c, quantiles)
                samples[i] = s
        elif kind == "observe":
            for i, loss in zip(op["ids"], op["losses"], strict=True):
                samples[i]["loss"] = average(samples[i]["loss"], loss, c)
        elif kind == "refresh":
            losses = sorted(s["loss"] for s in samples.values() if s["loss"] is not None)
            if losses:
                quantiles = quantile(losses, c["quantile_low"]), quantile(losses, c["quantile_high"])
            for s in samples.values():
                s["h"] = hazard(s, c, quantiles)
                s["logm"], s["anchor"] = query(s, t, units), t
        elif kind == "review":
            for i, loss in zip(op["ids"], op["losses"], strict=True):
                s = samples[i]
                m = math.exp(query(s, t, units))
                d = ticks(s["star"], t, units)
                growth = c["eta_s"] * (c["s_max"] - s["S"]) ** c["beta_s"]
                growth *= math.exp(-c["rho"] * d) * (1.0 - m) ** c["gamma_s"]
                s["S"] = min(max(s["S"] + growth, c["s_min"]), c["s_max"])
                s["logm"], s["anchor"], s["star"], s["n"] = 0.0, t, t, s["n"] + 1
                s["loss"] = average(s["loss"], loss, c)
                s["h"] = hazard(s, c, quantiles)
        elif kind == "remove":
            for i in op["ids"]:
                del samples[i]
        elif kind == "query":
            found = {i: answer(s, t, units, c) for i, s in samples.items()}
            queries.append({"step": t, "samples": found})
    return {"queries": queries}


def ticks(start, end, units):
    """Ticks from one step to another, added up over the stretches of one unit."""
    total = 0.0
    for k, (begin, unit) in enumerate(units):
        stop = units[k + 1][0] if k + 1 < len(units) else math.inf
        total += max(0, min(end, stop) - max(start, begin)) / unit
    return total


def query(s, t, units):
    """Eq. 17."""
    return s["logm"] - s["h"] * ticks(s["anchor"], t, units)


def average(old, loss, c):
    """Eq. 13."""
    return loss if old is None else c["ema_beta"] * old + (1.0 - c["ema_beta"]) * loss


def quantile(ordered, level):
    """Linear interpolation between order statistics."""
    place = level * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def hazard(s, c, quantiles):
    """Eq. 14, A.6, Eq. 4."""
    x = 0.5
    if s["loss"] is not None and quantiles is not None and quantiles[1] - quantiles[0] >= 1e-12:
        x = (s["loss"] - quantiles[0]) / (quantiles[1] - quantiles[0])
        x = min(max(x, 0.0), 1.0)
    if c["phi"] == "sigmoid":
        difficulty = 1.0 / (1.0 + math.exp(-c["phi_k"] * (x - c["phi_c"])))
    elif c["phi"] == "power":
        difficulty = x ** c["phi_power"]
    elif c["phi"] == "log":
        difficulty = math.log(1.0 + c["phi_kappa"] * x) / math.log(1.0 + c["phi_kappa"])
    else:
        difficulty = x
    return (c["alpha"] + c["gamma_d"] * difficulty) / s["S"]


def log_or_none(x):
    return math.log(x) if x > 0.0 else None


def answer(s, t, units, c):
    """One sample in a query; Eq. 10, Eq. 30 and Sec. 3.3 for the priority."""
    logm = query(s, t, units)
    forgotten = log_or_none(-math.expm1(logm))
    terms = {
        "uniform": [(1.0, 0.0)],
        "retention": [(-c["zeta"], logm)],
        "risk": [(c["beta_m"], forgotten), (c["rho_m"], ticks(s["star"], t, units))],
        "gain": [(1.0, log_or_none(s["h"])), (c["gamma_s"], forgotten)],
    }[c["priority"]]
    terms = [(a, x) for a, x in terms if a]
    priority = None if any(x is None for _, x in terms) else sum(a * x for a, x in terms)
    return {
        "log_strength": logm,
        "stability": s["S"],
        "ema_loss": s["loss"],
        "hazard": s["h"],
        "last_review": s["star"],
        "reviews": s["n"],
        "log_priority": priority,
    }


def random_trace(rng, config, length=40):
    """A valid trace of random operations."""
    ops, tracked, step, entered = [], [], 0, 0
    for _ in range(length):
        step += rng.choice([0, 0, 1, 3, 25, 200])
        kind = rng.choice(["add", "observe", "refresh", "review", "review", "remove", "unit", "query", "query"])
        some = rng.sample(tracked, rng.randint(0, len(tracked)))
        op = {"op": kind}
        if kind == "add":
            op["ids"] = [f"task/{entered + k}" for k in range(rng.randint(0, 4))]
            entered += len(op["ids"])
            tracked += op["ids"]
            if rng.random() < 0.6:
                op["losses"] = [rng.choice([None, rng.uniform(0.0, 5.0)]) for _ in op["ids"]]
        elif kind in ("observe", "review"):
            op["ids"], op["losses"] = some, [rng.uniform(0.0, 5.0) for _ in some]
        elif kind == "remove":
            op["ids"] = some[:2]
            tracked = [i for i in tracked if i not in op["ids"]]
        elif kind == "unit":
            op["time_unit"] = rng.uniform(0.5, 40.0)
        if kind not in ("observe", "remove"):
            op["step"] = step
        ops.append(op)
    return {"config": config, "ops": [*ops, {"op": "query", "step": step + 7}]}


CONFIGS = [
    {"time_unit": 1},
    {"time_unit": 15.9, "phi": "identity", "priority": "risk", "ema_beta": 0.5},
    {"time_unit": 8, "phi": "power", "priority": "gain", "beta_s": 0, "gamma_s": 0},
    {
        "time_unit": 3.5,
        "phi": "log",
        "priority": "gain",
        "alpha": 0,
        "quantile_low": 0.0,
        "quantile_high": 1.0,
    },
    {"time_unit": 1, "priority": "retention", "zeta": 0, "s_min": 2, "s_max": 2.1, "eta_s": 3.0},
    {"time_unit": 40, "priority": "uniform", "phi_k": 20, "phi_c": 0.4, "rho": 0, "gamma_s": 2.0},
    {"time_unit": 2, "priority": "risk", "rho_m": 0, "beta_m": 0.7, "beta_s": 1.0},
]


def make():
    """The golden trajectories, a trace and its answers for each configuration."""
    traces = [random_trace(random.Random(seed), config, 60) for seed, config in enumerate(CONFIGS)]
    return [{"trace": trace, "answers": run(trace)} for trace in traces]


if __name__ == "__main__":
    lines = ",\n".join(json.dumps(case) for case in make())
    Path(__file__).with_name("memory.json").write_text(f"[\n{lines}\n]\n")
