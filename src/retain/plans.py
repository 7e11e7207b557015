"""What a plan is: the events of a stage and its steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from retain.schedules import due_amounts


class Event(NamedTuple):
    """Replay at a stage's local `step` (from 1): λ there, and the samples it brings after the cap."""

    step: int
    ratio: float
    replayed: int
    projected: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Its fields by name; `projected` only where it is."""
        fields = self._asdict()
        return fields if self.projected else {name: fields[name] for name in ("step", "ratio", "replayed")}


@dataclass(frozen=True, slots=True)
class StagePlan:
    """One stage: its steps, its replay, and the memory's unit of time (None without a buffer)."""

    task: str
    steps: int
    new_per_step: np.ndarray  # (steps,) int64
    time_unit: float | None
    events: list[Event] = field(default_factory=list)
    buffer_size: int = 0  # samples in the buffer at the stage's start
    epoch_steps: int = 1
    interval: float = 1.0  # D_1 in steps


def due_steps(volume: str, plan: StagePlan, step: int, amount: int) -> list[tuple[int, int]]:
    """(step, samples) as an event's `amount` falls due: at once, or over the steps of its epoch."""
    if volume != "epoch":
        return [(step, amount)]
    steps = min(plan.epoch_steps, plan.steps - step + 1)
    return list(enumerate(due_amounts(amount, steps), start=step))
