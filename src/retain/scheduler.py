"""The replay plan of a run (`retain.replayer` carries it out).

A plan is known before any model is loaded: steps, events, amounts and the memory's unit of time. What training
decides is projected: a `threshold` by a rehearsal with the real memory model, a trigger (`retain.triggers`) as often
as it may fire.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import accumulate
from typing import Any

import numpy as np

from retain import schedules
from retain.buffer import Buffer
from retain.config import Config
from retain.conflicts import retired_tasks
from retain.plans import Event, StagePlan, due_steps
from retain.presets import preset_of
from retain.rehearsal import pool, refreshed, samples_asked, stage_curriculum
from retain.replayer import Replayer
from retain.sections import ScheduleConfig, TrainingConfig
from retain.triggers import projected_steps
from retain.types import InputError, Sample


def stage_steps(samples: int, training: TrainingConfig) -> np.ndarray:
    """New samples at each optimizer step (steps,): full batches, then each epoch's partial last one.

    `max_steps` cuts or repeats the sequence of epochs.
    """
    epoch = _epoch(samples, training.batch_size)
    return np.resize(epoch, training.max_steps or training.epochs * len(epoch))


def plan_run(
    config: Config, stages: list[tuple[str, int]], seed_samples: int = 0, buffered: int | None = None
) -> list[StagePlan]:
    """The plan of every stage from (task, training samples) each; the buffer starts with `seed_samples`, or with as
    many as the model is asked to write. buffered: the stored samples at the last stage's start, where they are known.
    """
    preset, seed_samples = preset_of(config.strategy), config.written_seed or seed_samples
    if preset.joint:
        stages = [("joint", sum(samples for _, samples in stages))]
    plans = [_stage(config, task, samples) for task, samples in stages]
    if not preset.replay and not preset.source:
        return plans
    names, seed = [task for task, _ in stages], config.buffer.seed
    retired = [retired_tasks(config, names[: number + 1]) for number in range(len(stages))]
    pasts = [[one for one in stages[:number] if one[0] not in gone] for number, gone in enumerate(retired)]
    firsts = [0 if seed and seed.name in gone else seed_samples for gone in retired]
    stored = [first + sum(samples for _, samples in past) for first, past in zip(firsts, pasts, strict=True)]
    if preset.source:
        pools = [pool(config, past, size, seed_samples) for past, (_, size) in zip(pasts, stages, strict=True)]
        real = [_real_samples(config, past) for past in pasts]
        stored = [sum(sizes.values()) + count for sizes, count in zip(pools, real, strict=True)]
    elif buffered is not None and not config.written_seed:  # of what is written the number asked for counts
        stored[-1] = buffered
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
    due = [due_steps(schedule.volume, plan, step, amount) for step, amount in zip(fired, amounts, strict=True)]
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
