"""How much synthetic data a step trains on beside the new samples, and of which task (SSR 2, 3, 5, 7, 9; MATH 4).

α(t) is the synthetic share of a mixed batch, t the stage's step from 1 and s = min(t/T_warmup, 1) its progress.
The numbers of `similarity` and `difficulty` and the ceiling of `growing` are the document's and no keys.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from retain.memory import random
from retain.memory.draw import gumbel_top_k
from retain.memory.dynamics import confidence_priority
from retain.schedules import every_steps, matched_amounts, replay_for, round_amount, step_cap
from retain.synthesis_sections import CurriculumConfig
from retain.types import InputError

LARGEST = 0.95
SIMILARITY_BASE, SIMILARITY_GAIN = 0.5, 0.3
DIFFICULTY_START = {"easy": 0.5, "hard": 0.2}
DIFFICULTY_RISE = 0.3
DRAW_NOISE = 3  # 1 and 2 are the memory's


# The share


def progress(step: int, steps: int, warmup: int | float) -> float:
    """s = min(t/T_warmup, 1): T_warmup is `warmup` steps, or that share of the stage's `steps` where it is a float."""
    return min(step / (warmup if isinstance(warmup, int) else warmup * steps), 1.0)


def linear_ratio(s: float, a0: float, a1: float) -> float:
    """α = a₀ + (a₁ - a₀)·s (SSR 2, 3)."""
    return a0 + (a1 - a0) * s


def cosine_ratio(s: float, a0: float, a1: float) -> float:
    """α = a₁ - (a₁ - a₀)(1 + cos πs)/2: from a₀ to a₁ (the code of SSR 5)."""
    return a1 - (a1 - a0) * (1.0 + math.cos(math.pi * s)) / 2.0


def cosine_decay_ratio(s: float, a0: float, a1: float) -> float:
    """α = a₀ + (a₁ - a₀)(1 + cos πs)/2: from a₁ to a₀ (the formula of SSR 3)."""
    return a0 + (a1 - a0) * (1.0 + math.cos(math.pi * s)) / 2.0


def exponential_ratio(s: float, a0: float, a1: float, rate: float) -> float:
    """α = a₁ - (a₁ - a₀)·exp(-rate·s) (SSR 3); at s = 1 it stays where it is, short of a₁."""
    return a1 - (a1 - a0) * math.exp(-rate * s)


def similarity_ratio(similarity: float) -> float:
    """α = 0.5 + 0.3 (1 - cos) of one past task, cos that of the tasks' mean embeddings; at most 0.95 (SSR 7)."""
    return min(SIMILARITY_BASE + SIMILARITY_GAIN * (1.0 - similarity), LARGEST)


def growing_ratio(task_index: int, initial: float, growth: float) -> float:
    """α = min(0.95, a₀ + δ·i), i the stage's index from 0 (SSR 9.10: 0.2 + 0.1 i)."""
    return min(LARGEST, initial + growth * task_index)


def difficulty_ratio(s: float, difficulty: str) -> float:
    """α = 0.5 + 0.3 s for an easy new task, 0.2 + 0.3 s for a hard one (SSR 9.5)."""
    return DIFFICULTY_START[difficulty] + DIFFICULTY_RISE * s


def adapted_ratio(ratio: float, new_is_worse: bool, old_is_worse: bool, config: CurriculumConfig) -> float:
    """α - δ if the new task suffers, else α + δ if past tasks are forgotten, else α; within [lowest, highest] (SSR 7).

    `when_calm: raise` is SSR 2's form: α + δ where neither suffers, too.
    """
    if new_is_worse:
        ratio -= config.delta
    elif old_is_worse or config.when_calm == "raise":
        ratio += config.delta
    return min(max(ratio, config.lowest), config.highest)


# One stage


class Curriculum:
    """α over one stage, and what it comes to in samples. `amount` and `split_amount` are called in the order of steps.

    `task_index`: the stage's index from 0. `similarities`: cosine of each past task to the new one. `sizes`: how many
    synthetic samples each past task has, oldest first; a task that has none is left out, and α is 0 without any.
    With `kind: similarity` α is the mean of the past tasks' own.
    """

    def __init__(
        self,
        config: CurriculumConfig,
        steps: int,
        batch_size: int,
        task_index: int,
        similarities: Mapping[str, float] | None,
        sizes: Mapping[str, int],
    ) -> None:
        self.config, self.steps, self.task_index = config, steps, task_index
        self.history: list[dict[str, Any]] = []  # of each check: step, ratio after it, new_loss, old_loss
        self._tasks = [task for task, size in sizes.items() if size]
        self._per_task: dict[str, float] = {}
        if "similarity" in (config.kind, config.split):
            self._per_task = {task: similarity_ratio(_similarity(task, similarities)) for task in self._tasks}
        weights = {"even": dict.fromkeys(self._tasks, 1), "similarity": self._per_task, "size": sizes}[config.split]
        total = sum(weights[task] for task in self._tasks)
        self._weights = [weights[task] / total for task in self._tasks]
        self._cap = step_cap(batch_size, config.max_mix)
        self._every = every_steps(config.check_every, steps)
        self._adapted = min(max(config.initial, config.lowest), config.highest)
        self._lowered = 0.0
        self._exact = 0.0  # samples the steps so far called for, not rounded
        self._given = [0] * len(self._tasks)
        self._matched: list[int] | None = None
        self._left: int | None = None
        self._best_new: float | None = None
        self._first_old: float | None = None

    def ratio(self, step: int) -> float:
        """α at local step t, from 1, in [0, 1)."""
        return max(self._ratio(step) - self._lowered, 0.0) if self._tasks else 0.0

    def _ratio(self, step: int) -> float:
        config, a0, a1 = self.config, self.config.initial, self.config.final
        s = progress(step, self.steps, config.warmup)
        match config.kind:
            case "constant":
                return a0
            case "linear":
                return linear_ratio(s, a0, a1)
            case "cosine":
                return cosine_ratio(s, a0, a1)
            case "cosine_decay":
                return cosine_decay_ratio(s, a0, a1)
            case "exponential":
                return exponential_ratio(s, a0, a1, config.rate)
            case "adaptive":
                return self._adapted
            case "similarity":
                return sum(self._per_task.values()) / len(self._per_task)
            case "growing":
                return growing_ratio(self.task_index, a0, config.delta)
            case "difficulty":
                return difficulty_ratio(s, config.difficulty)

    def amount(self, new: int, step: int) -> int:
        """Synthetic samples beside `new` ones at this step: w α/(1 - α) rounded cumulatively, at most the cap.

        The cap of `max_mix` is the same in a partial step; what is above it is dropped.
        """
        if self._matched is not None:
            return min(self._matched[step - 1], self._cap)
        before = self._exact
        self._exact += replay_for(new, self.ratio(step))
        amount = min(round_amount(self._exact) - round_amount(before), self._cap)
        if self._left is not None:
            amount = min(amount, self._left)
            self._left -= amount
        return amount

    def match(self, new_per_step: Sequence[int], total: int) -> None:
        """Spread `total` samples over the stage in proportion to α(t) from now on (MATH 3), whatever α's level.

        `adaptive`, whose α is not known ahead, replays as it would and stops at `total`.
        """
        if self.config.kind == "adaptive":
            self._left = total
        else:
            exact = [replay_for(new, self.ratio(step)) for step, new in enumerate(new_per_step, start=1)]
            self._matched = matched_amounts(exact, total)

    def split_amount(self, amount: int) -> dict[str, int]:
        """How many of a step's samples come from each past task, by `split`.

        After any number of samples each task has had its exact share rounded up or down (Balinski and Young's
        quota method: the next sample goes to the task below its share whose next one is due first).
        """
        before = list(self._given)
        for total in range(sum(before) + 1, sum(before) + amount + 1):
            below = [i for i, weight in enumerate(self._weights) if self._given[i] < weight * total - 1e-9]
            self._given[min(below, key=lambda i: (self._given[i] + 1) / self._weights[i])] += 1
        return {task: now - then for task, now, then in zip(self._tasks, self._given, before, strict=True)}

    def check_due(self, step: int) -> bool:
        """True after each step at which `observe` is due: every `check_every` of the stage."""
        return step % self._every == 0

    def observe(self, step: int, new_loss: float | None, old_loss: float | None) -> None:
        """Take in the new task's validation loss and the past tasks' loss on their synthetic samples, None: unknown.

        The first call, at the stage's start (step 0), sets what later ones are compared with: the new task suffers
        where its loss is more than `tolerance` above its best of this stage, past tasks where theirs is as far above
        its first value. Only `adaptive` acts on it.
        """
        for name, loss in (("new_loss", new_loss), ("old_loss", old_loss)):
            if loss is not None and not math.isfinite(loss):
                raise InputError(f"curriculum: {name} {loss} at step {step} is not a finite number")
        factor = 1.0 + self.config.tolerance
        if self.history:
            new_is_worse = None not in (new_loss, self._best_new) and new_loss > factor * self._best_new
            old_is_worse = None not in (old_loss, self._first_old) and old_loss > factor * self._first_old
            self._adapted = adapted_ratio(self._adapted, new_is_worse, old_is_worse, self.config)
        if new_loss is not None:
            self._best_new = new_loss if self._best_new is None else min(self._best_new, new_loss)
        self._first_old = old_loss if self._first_old is None else self._first_old
        self.history.append({"step": step, "ratio": self.ratio(step), "new_loss": new_loss, "old_loss": old_loss})

    def lower(self, by: float) -> None:
        """α - `by` from now on, not below 0: the generator has drifted (SSR 9.1)."""
        self._lowered += by

    def state(self) -> dict[str, Any]:
        """What a resumed stage needs beside the arguments of `__init__`, as plain JSON."""
        return {
            "adapted": self._adapted,
            "lowered": self._lowered,
            "exact": self._exact,
            "given": list(self._given),
            "best_new": self._best_new,
            "first_old": self._first_old,
            "left": self._left,
            "history": [dict(entry) for entry in self.history],
        }

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken."""
        self.history = [dict(entry) for entry in state["history"]]
        self._given = list(state["given"])
        for name in ("adapted", "lowered", "exact", "best_new", "first_old", "left"):
            setattr(self, f"_{name}", state[name])


# Samples of a step


def draw_samples(
    confidences: Mapping[str, float], amount: int, draw: str, *, seed: int, stage: int, step: int
) -> list[str]:
    """`amount` ids without replacement, uniformly or (`draw: confidence`) with weight c each (SSR 7).

    More than there are takes whole passes and a draw of the rest. A function of (seed, stage, step) and the
    confidences, whatever their order. No ids of none.
    """
    ids = list(confidences)
    if not ids:
        return []
    values = np.array([confidences[one] for one in ids], dtype=np.float64)
    if not (values >= 0.0).all():
        raise InputError(f"confidence of {ids[int(np.argmin(values >= 0.0))]!r}: must be a number of at least 0")
    log_weights = confidence_priority(values) if draw == "confidence" else np.zeros(len(ids))
    noise = random.bits(seed, DRAW_NOISE, stage, step, hashes=random.hash_ids(ids))
    order = [ids[row] for row in gumbel_top_k(log_weights, noise, len(ids))]
    passes, rest = divmod(amount, len(ids))
    return order * passes + order[:rest]


def mixed_loss_weights(n_new: int, confidences: Sequence[float | None], config: CurriculumConfig) -> np.ndarray:
    """Weights (n_new + r,) so that Σ w·CE/(n_new + r) is the loss of a mixed batch without its quality term.

    1 for each of `n_new` new samples, then λ_replay·c_i/c̄ for each synthetic one, c̄ the mean of this batch's
    confidences (SSR 3; MATH 4); λ_replay without `weight_by_confidence`. A sample without confidence is a real one,
    c = 1; confidences that are all 0 weigh alike.
    """
    known = np.array([1.0 if value is None else value for value in confidences], dtype=np.float64)
    if not config.weight_by_confidence or not known.any():
        known = np.ones(len(known))
    replayed = config.lambda_replay * known / (known.mean() if len(known) else 1.0)
    return np.concatenate([np.ones(n_new), replayed])


def _similarity(task: str, similarities: Mapping[str, float] | None) -> float:
    value = (similarities or {}).get(task)
    if value is None or not -1.0 - 1e-6 <= value <= 1.0 + 1e-6:
        raise InputError(f"curriculum: the similarity of task {task!r} is {value}; it must be from -1 to 1")
    return min(max(value, -1.0), 1.0)
