"""When training itself calls for replay: triggers by loss and by accuracy, and a clock that counts updates.

Each is told what has happened up to a step's end (`saw`, `check`) and asked at the next step's start (`due`).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import fmean, pvariance
from typing import Any

from retain import schedules
from retain.plans import StagePlan
from retain.sections import ScheduleConfig, TriggerConfig

LEAST_ITEMS = 2  # answers that a score must lose at least: one alone says little
NOISE = 1e-9  # below this a difference is rounding


@dataclass(slots=True)
class Average:
    """Mean and variance with weights ∝ βᵏ for the k-th newest value, exact from the first value on."""

    beta: float
    count: int = 0
    mean: float = 0.0
    variance: float = 0.0

    def add(self, value: float) -> None:
        """a = (1 - β)/(1 - βⁿ), mean ← mean + a d, variance ← (1 - a)(variance + a d²), d = value - mean."""
        self.count += 1
        share = (1.0 - self.beta) / (1.0 - self.beta**self.count)
        change = value - self.mean
        self.mean += share * change
        self.variance = (1.0 - share) * (self.variance + share * change * change)

    def state(self) -> dict[str, float]:
        """All but β, which the configuration holds."""
        return {"count": self.count, "mean": self.mean, "variance": self.variance}

    @property
    def spread(self) -> float:
        """Σ w² = (1 - β)/(1 + β) (1 + βⁿ)/(1 - βⁿ): the mean's variance over that of one value, n > 0."""
        power = self.beta**self.count
        return (1.0 - self.beta) / (1.0 + self.beta) * (1.0 + power) / (1.0 - power)


class Trigger:
    """Decides in one stage whether an event is due. `state` is what the next stage needs to know, `progress` what the
    same stage does that is resumed."""

    def saw(self, loss: float | None, update: float | None) -> None:
        """After a step: the mean loss of its new samples, and the norm of its update where that is measured."""

    def check_due(self, step: int) -> bool:
        """Whether the model is to be looked at after local `step`; 0 is the stage's start."""
        return False

    def check(self, step: int, found: Any) -> None:
        """What that look found."""

    def due(self, step: int) -> bool:
        """Whether an event is due at `step`. Asked at most once a step, and not within D₁ of the last event."""
        raise NotImplementedError

    def state(self) -> dict[str, Any]:
        return {}

    def progress(self) -> dict[str, Any]:
        return self.state()

    def resume(self, progress: Mapping[str, Any]) -> None:
        """Go on where `progress` was taken."""


class LossAverages(Trigger):
    """short - long > z σ √Σw²: the short average of the batch loss lies z of its standard deviations above the long
    one (an EWMA control chart, Roberts 1959). σ² is the long average's variance of one loss. Both go on through the
    run, so that the first losses of a new task stand out."""

    def __init__(self, config: TriggerConfig, past: Mapping[str, Any]) -> None:
        self.z = config.z
        self.short = Average(config.short, **past.get("short", {}))
        self.long = Average(config.long, **past.get("long", {}))

    def saw(self, loss: float | None, update: float | None) -> None:
        if loss is not None:
            self.short.add(loss)
            self.long.add(loss)

    def due(self, step: int) -> bool:
        if not self.short.count:
            return False
        return self.short.mean - self.long.mean > self.z * math.sqrt(self.long.variance * self.short.spread)

    def state(self) -> dict[str, Any]:
        return {"short": self.short.state(), "long": self.long.state()}

    def resume(self, progress: Mapping[str, Any]) -> None:
        self.short = Average(self.short.beta, **progress["short"])
        self.long = Average(self.long.beta, **progress["long"])


class LossVariance(Trigger):
    """The variance of the run's last `window` batch losses is above `growth` times that of as many before them."""

    def __init__(self, config: TriggerConfig, past: Mapping[str, Any]) -> None:
        self.window, self.growth = config.window, config.growth
        self.losses: deque[float] = deque(past.get("losses", ()), maxlen=2 * self.window)

    def saw(self, loss: float | None, update: float | None) -> None:
        if loss is not None:
            self.losses.append(loss)

    def due(self, step: int) -> bool:
        if len(self.losses) < 2 * self.window:
            return False
        losses = list(self.losses)
        return pvariance(losses[self.window :]) > self.growth * pvariance(losses[: self.window])

    def state(self) -> dict[str, Any]:
        return {"losses": list(self.losses)}

    def resume(self, progress: Mapping[str, Any]) -> None:
        self.losses.clear()
        self.losses.extend(progress["losses"])


class Checked(Trigger):
    """A trigger that looks at the model every `eval_every`; a look calls for at most one event."""

    def __init__(self, config: TriggerConfig, steps: int) -> None:
        self.config, self.steps = config, steps
        self.every = schedules.every_steps(config.eval_every, steps)
        self.called = False

    def check_due(self, step: int) -> bool:
        return step % self.every == 0 and step < self.steps

    def due(self, step: int) -> bool:
        called, self.called = self.called, False
        return called


class ProbeLoss(Checked):
    """The probe's mean loss is more than `rise` above its value at the last event, or at the stage's start."""

    reference: float | None = None
    latest: float | None = None

    def check(self, step: int, found: float) -> None:
        self.latest = found
        self.reference = found if self.reference is None else self.reference
        self.called = found > self.reference * (1.0 + self.config.rise)

    def due(self, step: int) -> bool:
        if called := super().due(step):
            self.reference = self.latest
        return called

    def progress(self) -> dict[str, Any]:
        return {"called": self.called, "reference": self.reference, "latest": self.latest}

    def resume(self, progress: Mapping[str, Any]) -> None:
        self.called, self.reference, self.latest = (progress[name] for name in ("called", "reference", "latest"))


class Accuracy(Checked):
    """A past task's score is more than `drop`, and at least two answers, below its best so far in the run."""

    def __init__(self, config: TriggerConfig, steps: int, best: Mapping[str, float]) -> None:
        super().__init__(config, steps)
        self.best = dict(best)

    def check(self, step: int, found: Mapping[str, tuple[float, int]]) -> None:
        """found: score in [0, 1] and number of answers of each task."""
        self.called = False
        for task, (score, answers) in found.items():
            self.best[task] = max(score, self.best.get(task, score))
            lost = self.best[task] - score
            self.called |= lost > self.config.drop + NOISE and lost * answers > LEAST_ITEMS - NOISE

    def state(self) -> dict[str, Any]:
        return {"best": self.best}

    def progress(self) -> dict[str, Any]:
        return {"called": self.called, "best": self.best}

    def resume(self, progress: Mapping[str, Any]) -> None:
        self.called, self.best = progress["called"], progress["best"]


class UpdateClock(Trigger):
    """τ(t) = t₀ + Σ |Δθ| / ū over the updates before step t: the schedule's times tₖ, counted in updates of the size ū.

    ū is the mean norm of the updates of the run's first stage; while that one runs, every update counts 1. The
    update of the step itself counts 1 too, so that equal updates give the events of the step clock.
    """

    def __init__(self, times: Iterator[float], size: float | None) -> None:
        self.times, self.size = times, size
        self.next = next(times)
        self.norms: list[float] = []

    def saw(self, loss: float | None, update: float | None) -> None:
        self.norms.append(update)

    def time(self) -> float:
        """τ at the step that follows what was seen, in updates of the size ū."""
        return 1.0 + (math.fsum(self.norms) / self.size if self.size else len(self.norms))

    def due(self, step: int) -> bool:
        now = self.time()
        if not (fired := self.next < now + 0.5 - NOISE):
            return False
        while math.isfinite(now) and self.next < now + 0.5 - NOISE:
            self.next = next(self.times)
        return fired

    def state(self) -> dict[str, Any]:
        return {"update": self.size or (fmean(self.norms) if self.norms else None)}

    def progress(self) -> dict[str, Any]:
        return {"norms": self.norms, "next": self.next}

    def resume(self, progress: Mapping[str, Any]) -> None:
        self.norms = progress["norms"]
        while self.next < progress["next"]:
            self.next = next(self.times)


def trigger_of(
    schedule: ScheduleConfig, config: TriggerConfig, plan: StagePlan, past: Mapping[str, Any] | None = None
) -> Trigger | None:
    """What decides a stage's events while it trains; None where the plan does, or the memory (`threshold`).

    past: the `state` of the last stage's trigger.
    """
    if not schedules.decided_online(schedule) or schedule.kind == "threshold":
        return None
    past = past or {}
    match schedule.kind:
        case "accuracy":
            return Accuracy(config, plan.steps, past.get("best", {}))
        case "loss":
            kinds = {"averages": LossAverages, "variance": LossVariance}
            return kinds[config.signal](config, past) if config.signal in kinds else ProbeLoss(config, plan.steps)
        case _:
            return UpdateClock(schedules.event_times(schedule, plan.interval), past.get("update"))


def projected_steps(schedule: ScheduleConfig, config: TriggerConfig, plan: StagePlan) -> list[int]:
    """Local steps of a stage at which its trigger may fire, if it fires as often as it may; of a clock of updates
    those of equal updates."""
    checked = schedule.kind == "accuracy" or (schedule.kind == "loss" and config.signal == "probe")
    if not checked:
        plain = schedule.model_copy(update={"kind": "fixed"} if schedule.kind == "loss" else {})
        return schedules.event_steps(plain, plan.interval, plan.steps)
    every = schedules.every_steps(config.eval_every, plan.steps)
    first = 1 if schedule.kind == "accuracy" else 1 + every  # a probe's first look is what others are compared with
    fired: list[int] = []
    for step in range(first, plan.steps + 1, every):
        if not fired or step - fired[-1] >= plan.interval:
            fired.append(step)
    return fired
