"""When to replay and how much: the schedule of MSSR as pure functions of the step.

Events, interval and rounding follow Section 3.2 and Appendix B of the paper (arXiv 2603.09892). A step
counts from 1. A stage's steps and amounts become a plan in `retain.scheduler`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, chain, count, groupby, pairwise, repeat, takewhile

import numpy as np

from retain.memory.dynamics import phi
from retain.sections import MemoryModel, ScheduleConfig
from retain.types import InputError

MAX_RATIO = 0.9


def round_amount(amount: float) -> int:
    """⌊x + ½ + 10⁻⁹⌋: every amount of samples is rounded so; halves rise even after float noise."""
    return math.floor(amount + 0.5 + 1e-9)


def every_steps(value: int | float, steps: int) -> int:
    """Every so many steps, as a whole number: an integer as it is, a float as a share of `steps`; at least 1."""
    return value if isinstance(value, int) else max(1, round_amount(value * steps))


def first_interval(value: int | float, steps: int) -> float:
    """D₁ in steps: an integer as it is, a float as a share of the stage's `steps`; at least 1, unrounded."""
    return max(float(value if isinstance(value, int) else value * steps), 1.0)


# When


def fixed_times(interval: float) -> Iterator[float]:
    """tₖ = k·D₁: equal spacing (the fixed replay of Section 4), k from 1, in steps."""
    return (k * interval for k in count(1))


def expanding_intervals(interval: float, eta_p: float, rho_p: float) -> Iterator[float]:
    """Dₖ₊₁ = Dₖ·(1 + ηₚ·exp(-ρₚ·k)), D₁ = `interval`, k from 1 (Eq. 8 and 26), in steps."""
    for k in count(1):
        yield interval
        interval *= 1.0 + eta_p * math.exp(-rho_p * k)


def geometric_intervals(interval: float) -> Iterator[float]:
    """Dₖ = D₁·(2ᵏ - 1): D₁, 3D₁, 7D₁, 15D₁, … (Table 8), in steps."""
    return (interval * (2.0**k - 1.0) for k in count(1))


def explicit_intervals(interval: float, units: Sequence[float]) -> Iterator[float]:
    """Dₖ = D₁·unitsₖ, the last one repeating (Tables 4 and 8), in steps. `units` holds at least one."""
    # A repeated interval below one step fires at every step, as one of a whole step does.
    return chain((interval * unit for unit in units), repeat(max(interval * units[-1], 1.0)))


def event_times(schedule: ScheduleConfig, interval: float) -> Iterator[float]:
    """tₖ, k from 1, ascending: the times at which `schedule.kind` fires. `interval` is D₁, both in steps."""
    match schedule.kind:
        case "fixed":
            return fixed_times(interval)
        case "expanding":
            return accumulate(expanding_intervals(interval, schedule.eta_p, schedule.rho_p))
        case "geometric":
            return accumulate(geometric_intervals(interval))
        case "explicit":
            return accumulate(explicit_intervals(interval, schedule.explicit))
    raise ValueError(f"schedule.kind {schedule.kind!r} has no event times of its own")


def event_steps(schedule: ScheduleConfig, interval: float, last: int) -> list[int]:
    """⌊tₖ + ½⌋ from 1 to `last`, ascending and distinct: the steps at which `schedule.kind` fires.

    `interval` is D₁ in steps. What training decides (`threshold`, `loss`, `accuracy`) has none.
    """
    if schedule.kind == "every":
        return list(range(1, last + 1))
    within = takewhile(lambda time: time + 0.5 < last + 1, event_times(schedule, interval))
    return [step for step, _ in groupby(math.floor(time + 0.5) for time in within) if step]


def decided_online(schedule: ScheduleConfig) -> bool:
    """True where the events depend on training: `threshold` (Eq. 22), the triggers, and what a clock of updates
    times, unless `volume: epoch` sets them."""
    timed = schedule.clock != "updates" or schedule.kind == "every"
    return schedule.volume != "epoch" and (schedule.kind in ("threshold", "loss", "accuracy") or not timed)


def below_threshold(log_strengths: np.ndarray, theta: float) -> bool:
    """mean(m) < θ over the buffer (Eq. 22); `log_strengths` (N,) holds log m ≤ 0.

    A mean that equals θ does not fire: the margin of 10⁻⁹ keeps float noise from deciding that, and an exact
    sum keeps the storage order out of it.
    """
    return math.fsum(np.exp(log_strengths).tolist()) < theta * (1.0 - 1e-9) * len(log_strengths)


# How much


def interpolated_ratio(step: int, lambda_0: float, lambda_min: float, beta_r: float) -> float:
    """λ(t) = λ_min + (λ₀ - λ_min)·exp(-β_r·t) (Eq. 29), t the global step."""
    return lambda_min + (lambda_0 - lambda_min) * math.exp(-beta_r * step)


def additive_ratio(step: int, lambda_0: float, lambda_min: float, beta_r: float) -> float:
    """λ(t) = λ₀·exp(-β_r·t) + λ_min (Eq. 9), t the global step."""
    return lambda_0 * math.exp(-beta_r * step) + lambda_min


def ratio(step: int, schedule: ScheduleConfig) -> float:
    """λ(t) of `schedule.ratio_form` at the global step, clipped to [0, 0.9]: the share of the mixed batch."""
    if schedule.ratio_form == "constant":
        value = schedule.lambda_0
    else:
        form = additive_ratio if schedule.ratio_form == "additive" else interpolated_ratio
        value = form(step, schedule.lambda_0, schedule.lambda_min, schedule.beta_r)
    return min(max(value, 0.0), MAX_RATIO)


def replay_for(new: float, ratio: float) -> float:
    """r = w·λ/(1 - λ): replayed samples, not rounded, that make λ the share beside w new ones (B.1)."""
    return new * ratio / (1.0 - ratio)


def rounded_amounts(exact: Iterable[float]) -> list[int]:
    """nₖ = ⌊Cₖ + ½⌋ - ⌊Cₖ₋₁ + ½⌋ with Cₖ the running sum: a stage's amounts, rounded cumulatively."""
    return _increments(round_amount(total) for total in accumulate(exact))


def budget_of(schedule: ScheduleConfig, new_samples: int) -> int | None:
    """R: the samples a stage of `new_samples` may replay under `schedule.budget`; None where the schedule decides."""
    return None if schedule.budget is None else round_amount(schedule.budget * new_samples)


def matched_amounts(exact: Sequence[float], total: int) -> list[int]:
    """`total` in proportion to `exact` by largest remainders, equal remainders evenly spread (MATH 3); 0 of 0."""
    if not sum(exact) > 0.0:
        return [0] * len(exact)
    shares = np.array(exact) / math.fsum(exact) * total
    amounts = np.floor(shares + 1e-9).astype(np.int64)
    remainders, left = np.round(shares - amounts, 9), total - int(amounts.sum())
    if left:
        edge = np.sort(remainders)[-left]
        amounts += remainders > edge
        tied = np.flatnonzero(remainders == edge)
        amounts[tied] += due_amounts(total - int(amounts.sum()), len(tied))
    return amounts.tolist()


def brought_forward(amounts: Sequence[int], fired: Sequence[int], steps: int, cap: int) -> list[int]:
    """The amounts of events at steps `fired` with what the steps left cannot carry moved to the event before."""
    over, moved = 0, []
    for step, amount in zip(reversed(fired), reversed(amounts), strict=True):
        room = cap * (steps - step + 1) - sum(moved)
        moved.append(min(amount + over, room))
        over += amount - moved[-1]
    return moved[::-1]


def due_amounts(amount: int, steps: int) -> list[int]:
    """⌊n·i/K + ½⌋ - ⌊n·(i - 1)/K + ½⌋, i = 1…K: what of an epoch's n samples falls due at each of K steps."""
    return _increments(round_amount(amount * i / steps) for i in range(1, steps + 1))


def _increments(totals: Iterable[int]) -> list[int]:
    return [after - before for before, after in pairwise(chain([0], totals))]


def step_cap(batch_size: int, max_mix: float) -> int:
    """⌊B·x/(1 - x) + ½⌋, x = `max_mix`: the most replayed samples in one step, also in a partial one."""
    return round_amount(replay_for(batch_size, max_mix))


def carry(arrivals: Iterable[tuple[int, int]], steps: int, cap: int) -> list[int]:
    """What of each arrival (step, amount) the stage's steps carry, first come first served, `cap` a step.

    The stage is a row of steps·cap slots; an arrival takes the next free ones from its own step on, and what
    runs over the end is dropped. Arrivals come in the order of their steps.
    """
    carried, slot = [], 0
    for step, amount in arrivals:
        slot = max(slot, (step - 1) * cap)
        taken = min(amount, steps * cap - slot)
        slot += taken
        carried.append(taken)
    return carried


# The unit of time


def expected_wait(buffered: int, steps: int, replayed: int) -> float:
    """W = N·steps/R in steps: how long one of N samples waits for its turn; W = steps where R = 0."""
    return buffered * steps / replayed if replayed else float(steps)


def time_unit(wait: float, memory: MemoryModel) -> float:
    """u = W·h/ln(1/θ), h = (alpha + gamma_d·φ(½))/s_min: steps a tick, so that m = θ after W (Eq. 19, 22).

    h is the hazard of a new sample of median difficulty. A hazard of 0 is an InputError.
    """
    difficulty = float(phi(np.float64(0.5), memory))
    unit = wait * (memory.alpha + memory.gamma_d * difficulty) / (memory.s_min * math.log(1.0 / memory.theta))
    if unit <= 0.0:
        raise InputError(
            f"memory.time_unit: {memory.time_unit!r} needs a hazard above 0, but memory.alpha "
            f"{memory.alpha:g} and memory.gamma_d {memory.gamma_d:g} give none; raise one of them or set "
            "memory.time_unit to a number of steps"
        )
    return unit
