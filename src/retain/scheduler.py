"""The replay plan of a run, and the replayer that carries it out.

A plan is known before any model is loaded: steps, events, amounts and the memory's unit of time. What training
decides is projected: a `threshold` by a rehearsal with the real memory model, a trigger (`retain.triggers`) as often
as it may fire.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import numpy as np

from retain import schedules
from retain.buffer import Buffer
from retain.config import Config
from retain.memory.state import MemoryState
from retain.plans import Event, StagePlan
from retain.presets import preset_of
from retain.rehearsal import pool, refreshed, samples_asked, stage_curriculum
from retain.sections import ScheduleConfig, TrainingConfig
from retain.triggers import UpdateClock, projected_steps, trigger_of
from retain.types import InputError, Sample

Choice = Callable[[Sequence[Sample], Sequence[str], int], list[str]]  # (new samples, candidates, how many) to ids


def stage_steps(samples: int, training: TrainingConfig) -> np.ndarray:
    """New samples at each optimizer step (steps,): full batches, then each epoch's partial last one.

    `max_steps` cuts or repeats the sequence of epochs.
    """
    epoch = _epoch(samples, training.batch_size)
    return np.resize(epoch, training.max_steps or training.epochs * len(epoch))


def plan_run(config: Config, stages: list[tuple[str, int]], seed_samples: int = 0) -> list[StagePlan]:
    """The plan of every stage from (task, training samples) each; the buffer starts with `seed_samples`, or with as
    many as the model is asked to write."""
    preset, seed_samples = preset_of(config.strategy), config.written_seed or seed_samples
    if preset.joint:
        stages = [("joint", sum(samples for _, samples in stages))]
    plans = [_stage(config, task, samples) for task, samples in stages]
    if not preset.replay and not preset.source:
        return plans
    stored = accumulate((samples for _, samples in stages), initial=seed_samples)
    if preset.source:
        pools = [pool(config, stages[:index], samples, seed_samples) for index, (_, samples) in enumerate(stages)]
        real = [_real_samples(config, stages[:index]) for index in range(len(stages))]
        stored = [sum(sizes.values()) + count for sizes, count in zip(pools, real, strict=True)]
    plans = [
        replace(plan, buffer_size=min(config.buffer.capacity, count))
        for plan, count in zip(plans, stored, strict=False)
    ]
    if config.schedule.clock == "global":
        plans = [replace(plan, interval=plans[_first_buffered(plans)].interval) for plan in plans]
    if not preset.replay:
        return [_with_curriculum(config, plan, k, pools[k], real[k]) for k, plan in enumerate(plans)]
    starts = accumulate((plan.steps for plan in plans), initial=0)
    fired = _event_steps(config.schedule, plans)
    plans = [_with_replay(config, plan, start, steps) for plan, start, steps in zip(plans, starts, fired, strict=False)]
    if schedules.decided_online(config.schedule):
        if config.schedule.kind != "threshold":
            return _project(config, plans)
        if preset.source:
            stages = [(task, samples_asked(config.synthesis.samples, samples)) for task, samples in stages]
        plans = _rehearse(config, plans, stages, seed_samples)
    return plans


def plan_stage(config: Config, task: str, samples: int, buffered: int, first_step: int) -> StagePlan:
    """The plan of one stage after others, as `plan_run` makes it: `buffered` samples asked for entry before it, and it
    starts at global `first_step`. What training decides has no events here.

    A clock that runs through the stages is an InputError: it needs all their plans.
    """
    if config.schedule.clock == "global":
        raise InputError("schedule.clock: global runs through all stages, and here one is planned alone; set stage")
    plan = _stage(config, task, samples)
    if not preset_of(config.strategy).replay:
        return plan
    plan = replace(plan, buffer_size=min(config.buffer.capacity, buffered))
    [fired] = _event_steps(config.schedule, [plan])
    plan = _with_replay(config, plan, first_step, fired)
    return replace(plan, events=[]) if schedules.decided_online(config.schedule) else plan


def plan_to_dict(plans: list[StagePlan], tokens_per_sample: Mapping[str, float] | None = None) -> dict[str, Any]:
    """The JSON of `retain plan --json`; tokens where `tokens_per_sample` has every task's mean."""
    totals: dict[str, Any] = {
        "steps": sum(plan.steps for plan in plans),
        "new_samples": sum(int(plan.new_per_step.sum()) for plan in plans),
        "events": sum(len(plan.events) for plan in plans),
        "replayed": sum(event.replayed for plan in plans for event in plan.events),
    }
    if tokens_per_sample and all(plan.task in tokens_per_sample for plan in plans):
        totals |= _tokens(plans, tokens_per_sample)
    stages = [
        {
            "task": plan.task,
            "steps": plan.steps,
            "time_unit": plan.time_unit,
            "events": [event.to_dict() for event in plan.events],
        }
        for plan in plans
    ]
    return {"stages": stages, "totals": totals}


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
        for step, amount in _due(self._schedule.volume, self._plan, event.step, event.replayed):
            self._later[step], ids = ids[:amount], ids[amount:]


def _epoch(samples: int, batch_size: int) -> np.ndarray:
    if samples < 1:
        raise InputError(f"a stage has {samples} training samples; it needs at least 1")
    full, rest = divmod(samples, batch_size)
    return np.array([batch_size] * full + [rest] * bool(rest), dtype=np.int64)


def _stage(config: Config, task: str, samples: int) -> StagePlan:
    """A stage that replays nothing."""
    new = stage_steps(samples, config.training)
    epoch_steps = len(_epoch(samples, config.training.batch_size))
    interval = schedules.first_interval(config.schedule.first_interval, len(new))
    return StagePlan(task, len(new), new, None, epoch_steps=epoch_steps, interval=interval)


def _real_samples(config: Config, past: list[tuple[str, int]]) -> int:
    """Real samples of the past tasks in a stage's buffer, in storage mode `hybrid` only."""
    kept = sum(samples for _, samples in past)
    return min(config.storage.real_samples, kept) if config.storage.mode == "hybrid" else 0


def _with_curriculum(config: Config, plan: StagePlan, index: int, sizes: Mapping[str, int], real: int) -> StagePlan:
    """The plan of a stage whose synthetic share follows α(t); what depends on training is projected."""
    if not sizes:
        return plan
    curriculum = stage_curriculum(config, plan, index, sizes, dict.fromkeys(sizes, 0.0))
    projected = config.curriculum.kind in ("adaptive", "similarity")
    due = schedules.due_amounts(real if refreshed(config, index + 1) else 0, plan.steps)
    events = [
        Event(step, curriculum.ratio(step), curriculum.amount(int(new), step) + due[step - 1], projected)
        for step, new in enumerate(plan.new_per_step, start=1)
    ]
    return _with_unit(config, replace(plan, events=events))


def _first_buffered(plans: list[StagePlan]) -> int:
    """The index of the first stage that has a buffer, which starts the global clock; 0 where none has."""
    return next((index for index, plan in enumerate(plans) if plan.buffer_size), 0)


def _event_steps(schedule: ScheduleConfig, plans: list[StagePlan]) -> list[list[int]]:
    """The local steps at which each stage fires; what training decides stands as if every step replayed its share."""
    if schedules.decided_online(schedule):
        schedule = schedule.model_copy(update={"kind": "every"})
    if schedule.volume == "epoch":
        fired = [list(range(1, plan.steps + 1, plan.epoch_steps)) for plan in plans]
    elif schedule.clock != "global":
        fired = [schedules.event_steps(schedule, plan.interval, plan.steps) for plan in plans]
    else:
        fired = _global_event_steps(schedule, plans)
    return [steps if plan.buffer_size else [] for steps, plan in zip(fired, plans, strict=True)]


def _global_event_steps(schedule: ScheduleConfig, plans: list[StagePlan]) -> list[list[int]]:
    """Events of one clock that starts with the first buffered stage, as local steps of their stages."""
    first = _first_buffered(plans)
    ends = np.cumsum([plan.steps for plan in plans[first:]])
    steps = np.array(schedules.event_steps(schedule, plans[first].interval, int(ends[-1])), dtype=np.int64)
    parts = np.split(steps, np.searchsorted(steps, ends[:-1], side="right"))
    return [[] for _ in range(first)] + [
        (part - start).tolist() for part, start in zip(parts, [0, *ends[:-1].tolist()], strict=True)
    ]


def _with_replay(config: Config, plan: StagePlan, first_step: int, fired: list[int]) -> StagePlan:
    """The plan with its events and the unit of time they call for."""
    if not plan.buffer_size:
        return plan
    return _with_unit(config, replace(plan, events=_events(config, plan, first_step, fired)))


def _with_unit(config: Config, plan: StagePlan) -> StagePlan:
    """The plan with the unit of time that its events call for."""
    unit = config.memory.time_unit
    if unit == "auto":
        replayed = sum(event.replayed for event in plan.events)
        wait = schedules.expected_wait(plan.buffer_size, plan.steps, replayed)
        unit = schedules.time_unit(wait, config.memory)
    elif unit == "interval":
        unit = schedules.time_unit(plan.interval, config.memory)
    return replace(plan, time_unit=float(unit))


def _events(config: Config, plan: StagePlan, first_step: int, fired: list[int]) -> list[Event]:
    """An event for each local step in `fired`, its amount rounded cumulatively and capped."""
    schedule = config.schedule
    seen = np.concatenate([[0], np.cumsum(plan.new_per_step)])  # new samples up to each step
    ratios = [schedules.ratio(first_step + step, schedule) for step in fired]
    exact = [
        schedules.replay_for(int(seen[last] - seen[first]), ratio)
        for (first, last), ratio in zip(_answers_for(schedule.volume, plan, fired), ratios, strict=True)
    ]
    cap = schedules.step_cap(config.training.batch_size, schedule.max_mix)
    budget = schedules.budget_of(schedule, int(seen[-1]))
    if budget is None:
        amounts = schedules.rounded_amounts(exact)
    else:
        amounts = schedules.brought_forward(schedules.matched_amounts(exact, budget), fired, plan.steps, cap)
    due = [_due(schedule.volume, plan, step, amount) for step, amount in zip(fired, amounts, strict=True)]
    carried = iter(schedules.carry((part for parts in due for part in parts), plan.steps, cap))
    replayed = [sum(next(carried) for _ in parts) for parts in due]
    return [Event(*event) for event in zip(fired, ratios, replayed, strict=True)]


def _answers_for(volume: str, plan: StagePlan, fired: list[int]) -> list[tuple[int, int]]:
    """The span (first, last] of local steps whose new samples each event answers for."""
    if volume == "epoch":
        return [(step - 1, min(step - 1 + plan.epoch_steps, plan.steps)) for step in fired]
    if volume == "batch":
        return [(step - 1, step) for step in fired]
    return list(zip([0, *fired], fired, strict=False))


def _due(volume: str, plan: StagePlan, step: int, amount: int) -> list[tuple[int, int]]:
    """(step, samples) as an event's `amount` falls due: at once, or over the steps of its epoch."""
    if volume != "epoch":
        return [(step, amount)]
    steps = min(plan.epoch_steps, plan.steps - step + 1)
    return list(enumerate(schedules.due_amounts(amount, steps), start=step))


def _project(config: Config, plans: list[StagePlan]) -> list[StagePlan]:
    """The events of a trigger that fires as often as it may, or of a clock whose updates are equal, as projected."""
    starts = accumulate((plan.steps for plan in plans), initial=0)
    projected = []
    for plan, start in zip(plans, starts, strict=False):
        fired = projected_steps(config.schedule, config.trigger, plan) if plan.buffer_size else []
        events = [event._replace(projected=True) for event in _events(config, plan, start, fired)]
        projected.append(replace(plan, events=events))
    return projected


def _rehearse(
    config: Config, plans: list[StagePlan], stages: list[tuple[str, int]], seed_samples: int
) -> list[StagePlan]:
    """The events of a `threshold` schedule where every sample stays at l̂ = ½, marked as projected.

    The real replayer, memory and buffer run through the stages; a constant loss keeps l̂ at ½.
    """
    buffer = Buffer(config.buffer, config.memory, config.seed)
    seed = [Sample(f"/{row}", "", "", "") for row in range(seed_samples)]
    buffer.seed_with(seed)
    confidences = {sample.id: 1.0 for sample in seed}
    first_step, last_event, projected = 0, None, []
    for stage, (plan, (task, samples)) in enumerate(zip(plans, stages, strict=True), start=1):
        buffer.memory.set_unit(plan.time_unit or 1.0, first_step)
        replayer = Replayer(plan, config, stage, first_step, buffer.memory, confidences, last_event)
        for step in range(1, plan.steps + 1):
            ids = list(dict.fromkeys(replayer.draw(step)))
            buffer.memory.review(ids, [0.0] * len(ids), first_step + step)
        projected.append(replace(plan, events=[event._replace(projected=True) for event in replayer.events]))
        first_step, last_event = first_step + plan.steps, replayer.last_event
        buffer.memory.refresh(first_step)
        learned = [Sample(f"{task}/{row}", task, "", "") for row in range(samples)]
        confidences |= {sample.id: 1.0 for sample in learned}
        buffer.admit(learned, first_step, {}, stage)
    return projected


def _tokens(plans: list[StagePlan], per_sample: Mapping[str, float]) -> dict[str, int]:
    """Tokens trained on, estimated from the means: a replayed sample counts as the mean of the past tasks.

    Entries of `per_sample` that name no stage belong to the buffer's seed. Empty where a seed of unknown
    length is replayed.
    """
    stages = {plan.task for plan in plans}
    past = [mean for task, mean in per_sample.items() if task not in stages]
    new = again = 0.0
    for plan in plans:
        replayed = sum(event.replayed for event in plan.events)
        if replayed and not past:
            return {}
        new += float(plan.new_per_step.sum()) * per_sample[plan.task]
        again += replayed * float(np.mean(past)) if replayed else 0.0
        past.append(per_sample[plan.task])
    return {"tokens": schedules.round_amount(new + again), "replayed_tokens": schedules.round_amount(again)}
