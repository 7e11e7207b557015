"""How many synthetic samples a stage asks for, and which of them each step gets under a curriculum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from retain.buffer import Buffer, balanced_shares
from retain.config import Config
from retain.curriculum import Curriculum, draw_samples, mixed_loss_weights
from retain.plans import Event, StagePlan
from retain.schedules import budget_of, due_amounts, round_amount
from retain.types import Sample

SMALLEST_ADAPTIVE = 100
PASS_SHIFT = 1 << 20  # passes over the whole pool draw apart from the steps


def samples_asked(samples: int | float | str, size: int) -> int:
    """Synthetic samples to ask for: a number, a share of `size`, or max(100, size // 10) (`adaptive`; SSR 9.2)."""
    if samples == "adaptive":
        return max(SMALLEST_ADAPTIVE, size // 10)
    return samples if isinstance(samples, int) else max(1, round_amount(samples * size))


def pool(config: Config, past: Sequence[tuple[str, int]], size: int, seed_samples: int = 0) -> dict[str, int]:
    """Samples of the buffer's seed and synthetic ones of each past task (name, training samples) beside a stage of
    `size` training samples; what the buffer has no room for is shared out.

    A share is one of a task's own samples; of what is written on demand it is one of the new task's, divided
    evenly over the past ones (LAMOL's γ).
    """
    asked, seed_samples = config.synthesis.samples, config.written_seed or seed_samples
    sizes = {config.buffer.seed.name: seed_samples} if config.buffer.seed and seed_samples else {}
    if config.storage.mode == "on-demand" and isinstance(asked, float) and past:
        parts = due_amounts(samples_asked(asked, size), len(past))
        sizes |= {task: part for (task, _), part in zip(past, parts, strict=True)}
    else:
        sizes |= {task: samples_asked(asked, own) for task, own in past}
    return dict(zip(sizes, balanced_shares(list(sizes.values()), config.buffer.capacity), strict=True))


def asked_of_model(config: Config, stages: Sequence[tuple[str, int]]) -> int:
    """Samples that a run over `stages` (name, training samples) asks the model to write, the buffer's seed included.

    `cached` and `on-demand` write again at a stage's start what they did not keep; `every` writes all tasks anew.
    """
    asked = [samples_asked(config.synthesis.samples, size) for _, size in stages]
    every, mode = config.synthesis.every, config.storage.mode
    total = config.written_seed
    for number in range(1, len(stages) + 1):
        if config.storage.writes_at_start:
            pools = pool(config, stages[: number - 1], stages[number - 1][1])
            lacking = sum(
                count for task, count in pools.items() if not config.buffer.seed or task != config.buffer.seed.name
            )
            total += max(0, lacking - (config.storage.cache_size if mode == "cached" else 0))
        if mode != "on-demand":
            total += sum(asked[:number]) if every and number % every == 0 else asked[number - 1]
    return total


def curriculum_pools(config: Config, buffer: Buffer) -> dict[str, dict[str, float]]:
    """By task the ids that a curriculum draws from, with their confidence: all but the real samples of `hybrid`."""
    seed = config.buffer.seed
    pools: dict[str, dict[str, float]] = {}
    for name, sample in buffer.samples.items():
        if sample.confidence is not None:
            pools.setdefault(sample.task, {})[name] = sample.confidence
        elif seed and sample.task == seed.name:
            pools.setdefault(sample.task, {})[name] = 1.0
    return pools


def refreshed(config: Config, stage: int) -> bool:
    """Whether `stage`, from 1, trains on the real samples of `hybrid` (SSR 9.1)."""
    return config.storage.mode == "hybrid" and stage % config.storage.refresh_every == 0


def stage_curriculum(
    config: Config,
    plan: StagePlan,
    index: int,
    sizes: Mapping[str, int],
    similarities: Mapping[str, float] | None = None,
) -> Curriculum:
    """The curriculum of the stage with `index` from 0 over a pool of `sizes` samples of each past task.

    `concatenate` is a constant share that brings each sample of the pool once an epoch.
    """
    section = config.curriculum
    if section.kind == "concatenate":
        total = sum(sizes.values())
        new = int(plan.new_per_step[: plan.epoch_steps].sum())
        section = section.model_copy(
            update={"kind": "constant", "initial": total / (total + new), "split": "size", "max_mix": 0.99}
        )
    curriculum = Curriculum(section, plan.steps, config.training.batch_size, index, similarities, sizes)
    budget = budget_of(config.schedule, int(plan.new_per_step.sum()))
    if budget is not None:
        curriculum.match(plan.new_per_step.tolist(), budget)
    return curriculum


class CurriculumReplayer:
    """Hands out the ids of a stage's synthetic samples step by step; call `draw` once a step, in order.

    Takes the place of `scheduler.Replayer` where α(t) sets the amounts instead of a memory schedule. `due` are ids
    that come on top, spread evenly over the stage: the real samples of a refresh (SSR 9.1).
    """

    last_event: int | None = None
    trigger = None

    def __init__(
        self,
        plan: StagePlan,
        config: Config,
        stage: int,
        buffer: Buffer,
        curriculum: Curriculum,
        due: Sequence[str] = (),
    ) -> None:
        self.events: list[Event] = []
        self.drawn: list[list[str]] = []
        self.curriculum = curriculum
        self._plan, self._config, self._stage = plan, config, stage
        self._pools = curriculum_pools(config, buffer)
        self._decks: dict[str, list[str]] = {task: [] for task in self._pools}
        self._passes = dict.fromkeys(self._pools, 0)
        ends = np.cumsum([0, *due_amounts(len(due), plan.steps)])
        self._due = [list(due[first:last]) for first, last in pairwise(ends.tolist())]

    @property
    def pending(self) -> int:
        """Samples drawn and not yet handed out: none, a step takes what it draws."""
        return 0

    def progress(self) -> dict[str, Any]:
        """What a resumed stage needs beside the arguments of `__init__`."""
        return {
            "events": self.events,
            "drawn": self.drawn,
            "decks": self._decks,
            "passes": self._passes,
            "curriculum": self.curriculum.state(),
        }

    def resume(self, progress: Mapping[str, Any]) -> None:
        """Go on where `progress` was taken."""
        self.events = [Event(*event) for event in progress["events"]]
        self.drawn, self._decks, self._passes = progress["drawn"], progress["decks"], progress["passes"]
        self.curriculum.resume(progress["curriculum"])

    def draw(self, step: int, new: Sequence[Sample] = ()) -> list[str]:
        """The ids to mix into local `step` (from 1); its `new` samples do not matter."""
        amount = self.curriculum.amount(int(self._plan.new_per_step[step - 1]), step)
        shares = self.curriculum.split_amount(amount)
        ids = [one for task, count in shares.items() for one in self._of_task(task, count, step)]
        ids += self._due[step - 1]
        if self._pools or ids:
            self.events.append(Event(step, self.curriculum.ratio(step), len(ids)))
            self.drawn.append(ids)
        return ids

    def weights(self, new: int, replayed: Sequence[Sample]) -> np.ndarray:
        """Weights (new + r,) of a mixed batch's losses (MATH 4)."""
        return mixed_loss_weights(new, [sample.confidence for sample in replayed], self._config.curriculum)

    def _of_task(self, task: str, count: int, step: int) -> list[str]:
        """`count` ids of a task: by confidence anew at each step, or dealt from a shuffled deck, pass after pass."""
        seed = self._config.seed
        if self._config.curriculum.draw == "confidence":
            return draw_samples(self._pools[task], count, "confidence", seed=seed, stage=self._stage, step=step)
        deck = self._decks[task]
        while len(deck) < count:
            self._passes[task] += 1
            number = PASS_SHIFT + self._passes[task]
            everything = self._pools[task]
            deck += draw_samples(everything, len(everything), "uniform", seed=seed, stage=self._stage, step=number)
        self._decks[task] = deck[count:]
        return deck[:count]
