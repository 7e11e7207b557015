"""The replayer, which carries out the plan of a stage step by step."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from retain import schedules
from retain.config import Config
from retain.memory.state import MemoryState
from retain.plans import Event, StagePlan, due_steps
from retain.triggers import UpdateClock, trigger_of
from retain.types import Sample

Choice = Callable[[Sequence[Sample], Sequence[str], int], list[str]]  # (new samples, candidates, how many) to ids


class Replayer:
    """Hands out the ids to mix into each step of one stage; call `draw` once a step, in order.

    What it does is a function of the seed, the step, the memory's state and what its `trigger` has seen. `last_event`
    is the global step of the run's last event so far, which only what training decides asks for, on the global clock.
    `past` is the state of the last stage's trigger. `choose` takes of an event's candidates those that are replayed.
    """

    def __init__(
        self,
        plan: StagePlan,
        config: Config,
        stage: int,
        first_step: int,
        memory: MemoryState,
        confidences: Mapping[str, float] | None = None,
        last_event: int | None = None,
        past: Mapping[str, Any] | None = None,
        choose: Choice | None = None,
    ) -> None:
        self.events: list[Event] = []
        self.drawn: list[list[str]] = []  # the ids of each event
        self.last_event = last_event if config.schedule.clock == "global" else None
        self._plan, self._schedule, self._stage, self._first_step = plan, config.schedule, stage, first_step
        self._memory, self._confidences = memory, confidences
        self._choose, self._candidates = choose, config.memory.candidates if choose else 1
        self.trigger = trigger_of(config.schedule, config.trigger, plan, past)
        self._online = schedules.decided_online(config.schedule) and plan.buffer_size > 0
        self._least_gap = 0.0 if isinstance(self.trigger, UpdateClock) else plan.interval
        self._planned = {} if self._online else {event.step: event for event in plan.events}
        self._cap = schedules.step_cap(config.training.batch_size, config.schedule.max_mix)
        self._budget = schedules.budget_of(config.schedule, int(plan.new_per_step.sum()))
        self._theta = config.memory.theta
        self._stale_after = config.memory.staleness_cap * plan.epoch_steps
        self._queue: deque[str] = deque()
        self._later: dict[int, list[str]] = {}  # ids of an epoch's event by the step they fall due at
        self._exact = 0.0  # replay the new samples called for so far, not rounded
        self._answered = 0  # local step of the last event: new samples up to it are answered

    def weights(self, new: int, replayed: Sequence[Sample]) -> np.ndarray:
        """Weights (new + r,) of a mixed batch's losses: Eq. 3's λ on the replayed ones."""
        return np.array([1.0] * new + [self._schedule.replay_weight] * len(replayed))

    @property
    def pending(self) -> int:
        """Samples drawn and not yet handed out."""
        return len(self._queue) + sum(map(len, self._later.values()))

    def progress(self) -> dict[str, Any]:
        """What a resumed stage needs beside the arguments of `__init__`."""
        return {
            "events": self.events,
            "drawn": self.drawn,
            "last_event": self.last_event,
            "queue": list(self._queue),
            "later": self._later,
            "exact": self._exact,
            "answered": self._answered,
            "trigger": self.trigger.progress() if self.trigger else {},
        }

    def resume(self, progress: Mapping[str, Any]) -> None:
        """Go on where `progress` was taken."""
        self.events = [Event(*event) for event in progress["events"]]
        self.drawn, self.last_event = progress["drawn"], progress["last_event"]
        self._queue = deque(progress["queue"])
        self._later = {int(step): ids for step, ids in progress["later"].items()}
        self._exact, self._answered = progress["exact"], progress["answered"]
        if self.trigger:
            self.trigger.resume(progress["trigger"])

    def draw(self, step: int, new: Sequence[Sample] = ()) -> list[str]:
        """The ids to mix into local `step` (from 1) beside its `new` samples, drawn from memory at global step
        `first_step + step`."""
        event = self._decide(step) if self._online else self._planned.get(step)
        if event is not None:
            self._fire(event, new)
        self._queue.extend(self._later.pop(step, []))
        return [self._queue.popleft() for _ in range(min(self._cap, len(self._queue)))]

    def _decide(self, step: int) -> Event | None:
        """The event of this step where training decides: one if the trigger says so, or if the buffer's mean strength
        is below θ (Eq. 22), at most once in D₁ steps."""
        now = self._first_step + step
        if self.last_event is not None and now - self.last_event < self._least_gap:
            return None
        if self.trigger:
            due = self.trigger.due(step)
        else:
            strengths = self._memory.log_strengths(now)
            due = len(strengths) and schedules.below_threshold(strengths, self._theta)
        if not due:
            return None
        ratio = schedules.ratio(now, self._schedule)
        since = step - 1 if self._schedule.volume == "batch" else self._answered
        before, self._answered = self._exact, step
        self._exact += schedules.replay_for(int(self._plan.new_per_step[since:step].sum()), ratio)
        amount = schedules.round_amount(self._exact) - schedules.round_amount(before)
        room = self._cap * (self._plan.steps - step + 1) - len(self._queue)
        if self._budget is not None:
            room = min(room, self._budget - sum(event.replayed for event in self.events))
        return Event(step, ratio, min(amount, room))

    def _fire(self, event: Event, new: Sequence[Sample]) -> None:
        """Draw the event's samples, of more candidates where there is a choice, and set down at which step each falls
        due."""
        self.events.append(event)
        self.last_event = self._first_step + event.step
        candidates = min(event.replayed * self._candidates, len(self._memory)) if new else 0
        ids = self._memory.draw(
            max(event.replayed, candidates),
            self.last_event,
            stage=self._stage,
            event=len(self.events),
            stale_after=self._stale_after,
            confidences=self._confidences,
        )
        if 0 < event.replayed < len(ids):
            ids = self._choose(new, ids, event.replayed)
        self.drawn.append(ids)
        for step, amount in due_steps(self._schedule.volume, self._plan, event.step, event.replayed):
            self._later[step], ids = ids[:amount], ids[amount:]
