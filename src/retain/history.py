"""What a run recorded of its stored samples, and the memory model led through that history again."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from retain.config import Config, load_config
from retain.memory.fitting import Histories
from retain.memory.state import MemoryState
from retain.presets import preset_of
from retain.reading import foreign, read_table
from retain.report.rundata import read_journal, read_results
from retain.sections import MemoryModel
from retain.trace import FILES, REVIEW_LOG, TRACE
from retain.types import InputError

SAME = 1e-9
"""Strengths that differ by more than rounding does not come from the recorded history."""


@dataclass(frozen=True)
class StageHistory:
    """One stage with stored samples: global steps, and the loss signal of each sample as the stage found it."""

    number: int
    first_step: int
    last_step: int
    time_unit: float
    losses: dict[str, float]
    tasks: dict[str, str]
    refreshes: frozenset[int]
    reviews: dict[int, dict[str, float]]
    strengths: dict[str, float]


@dataclass(frozen=True)
class History:
    """The stages of a finished run that had stored samples."""

    path: Path
    config: Config
    stages: list[StageHistory]


class Observation(NamedTuple):
    """A stored sample from a stage's start to global `step`, at which its loss is or can be measured.

    waited: steps since its last review, or its entry. loss: what a review at `step` measured, NaN at a stage's end.
    reviews: how many it had before `step`; last_loss: the last one that training saw. Strengths are logarithms.
    """

    id: str
    task: str
    stage: int
    step: int
    elapsed: int
    waited: int
    reviews: int
    last_loss: float
    log_start: float
    log_strength: float
    reviewed: bool
    loss: float


class Review(NamedTuple):
    """The time before a sample's review: steps and log m since the one before, which is number `reviews`."""

    id: str
    reviews: int
    elapsed: int
    log_strength: float


@dataclass
class Followed:
    """`ends`: every stored sample at each stage's end. `firsts`: those that were reviewed, at their first review in
    the stage. `log`: all reviews."""

    ends: list[Observation]
    firsts: list[Observation]
    log: list[Review]

    @property
    def unreviewed(self) -> list[Observation]:
        """Over stages in which the sample was not reviewed (MATH 6)."""
        return [one for one in self.ends if not one.reviewed]

    @property
    def intervals(self) -> list[Observation]:
        """Every stored sample once a stage: up to its first review in it, or to the stage's end."""
        return self.unreviewed + self.firsts


def read_history(path: Path) -> History:
    """The history in a run's directory. Raises InputError where the run has none, or is not finished."""
    config = load_config(path / "config.yaml", need_tasks=False)
    chosen = preset_of(config.strategy)
    if not chosen.replay and not chosen.source:
        raise InputError(
            f"{path}: strategy {chosen.name} replays nothing, so no memory predicts; take a run with replay"
        )
    if not (path / "results.json").is_file() or not read_results(path / "results.json")["finished"]:
        raise InputError(f"{path}: the run is not finished; `retain run` with the same configuration goes on with it")
    trace, reviews = (_read(path / name) for name in (TRACE, REVIEW_LOG))
    if not len(trace["id"]):
        raise InputError(f"{path}: nothing was stored before the last stage began; a run needs two stages or more")
    plans = {line["stage"]: line for line in read_journal(path / "journal.jsonl") if line["kind"] == "plan"}
    numbers = np.unique(trace["stage"]).tolist()
    if missing := [number for number in numbers if number not in plans]:
        raise InputError(f"{path / 'journal.jsonl'}: no plan of stage {missing[0]}; restore the file the run wrote")
    with foreign(path):
        stages = [_stage(number, plans[number].get("time_unit") or 1.0, trace, reviews) for number in numbers]
    return History(path, config, stages)


def _read(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise InputError(f"{path}: is missing; the run recorded no memory, or an older version made it: run it anew")
    table = read_table(path, FILES[path.name], "run it anew")
    if lost := [name for name in table.column_names if name != "ema_loss" and table[name].null_count]:
        raise InputError(f"{path}: values are missing from the column {lost[0]}; run it anew")
    return {name: table[name].to_numpy() for name in table.column_names}


def _stage(number: int, time_unit: float, trace: dict[str, Any], reviews: dict[str, Any]) -> StageHistory:
    own = {name: values[trace["stage"] == number] for name, values in trace.items()}
    logged = {name: values[reviews["stage"] == number].tolist() for name, values in reviews.items()}
    by_step: dict[int, dict[str, float]] = {}
    for step, one, loss in zip(logged["step"], logged["id"], logged["loss"], strict=True):
        by_step.setdefault(step, {})[one] = loss
    first, last = int(own["step"].min()), int(own["step"].max())
    start, end = own["step"] == first, own["step"] == last
    return StageHistory(
        number, first, last, time_unit,
        losses=_pairs(own, start, "ema_loss"), tasks=_pairs(own, start, "task"),
        refreshes=frozenset(own["step"].tolist()) - {first}, reviews=by_step,
        strengths=_pairs(own, end, "strength"),
    )  # fmt: skip


def _pairs(columns: dict[str, np.ndarray], rows: np.ndarray, name: str) -> dict[str, Any]:
    return dict(zip(columns["id"][rows].tolist(), columns[name][rows].tolist(), strict=True))


def follow(history: History, model: MemoryModel | None = None, time_unit: float | None = None) -> Followed:
    """Lead the memory model through the recorded reviews and refreshes.

    With the run's own parameters (the default) the strengths must be those that it recorded: else an InputError.
    """
    with foreign(history.path / TRACE):
        return _follow(history, model, time_unit)


def _follow(history: History, model: MemoryModel | None, time_unit: float | None) -> Followed:
    memory = MemoryState(model or history.config.memory, history.config.seed)
    found, last_losses = Followed([], [], []), {}
    for stage in history.stages:
        memory.set_unit(time_unit or stage.time_unit, stage.first_step)
        memory.remove([one for one in memory.ids if one not in stage.losses])
        entering = [one for one in stage.losses if one not in memory]
        memory.add(entering, stage.first_step, [stage.losses[one] for one in entering])
        last_losses |= {one: stage.losses[one] for one in entering}
        _follow_stage(stage, memory, last_losses, found)
        if model is None and time_unit is None:
            _check_same(history.path, stage, memory)
    return found


def _follow_stage(stage: StageHistory, memory: MemoryState, last_losses: dict[str, float], found: Followed) -> None:
    start, reviewed = _rows(memory, stage.first_step), set()

    def observe(one: str, row: tuple[float, int, int], step: int, loss: float) -> Observation:
        log_strength, last_review, reviews = row
        return Observation(
            one, stage.tasks[one], stage.number, step, step - stage.first_step, step - last_review, reviews,
            last_losses[one], start[one][0], log_strength, one in reviewed, loss,
        )  # fmt: skip

    for step in sorted(stage.refreshes | stage.reviews.keys()):
        if losses := stage.reviews.get(step):
            now = _rows(memory, step)
            first = losses.keys() - reviewed
            reviewed |= first
            found.firsts += [observe(one, now[one], step, loss) for one, loss in losses.items() if one in first]
            found.log += [Review(one, now[one][2], step - now[one][1], now[one][0]) for one in losses]
            memory.review(list(losses), list(losses.values()), step)
            last_losses |= losses
        if step in stage.refreshes:
            memory.refresh(step)
    ends = _rows(memory, stage.last_step)
    found.ends += [observe(one, row, stage.last_step, math.nan) for one, row in ends.items()]


def _rows(memory: MemoryState, step: int) -> dict[str, tuple[float, int, int]]:
    """(log m, last review, reviews) of each sample."""
    state = memory.snapshot(step)
    columns = (state[name].tolist() for name in ("log_strength", "last_review", "reviews"))
    return dict(zip(state["id"].tolist(), zip(*columns, strict=True), strict=True))


def _check_same(path: Path, stage: StageHistory, memory: MemoryState) -> None:
    for one, log_strength in zip(memory.ids, memory.log_strengths(stage.last_step), strict=True):
        recorded = stage.strengths.get(one, math.nan)
        if not abs(math.exp(log_strength) - recorded) <= SAME:
            raise InputError(
                f"{path / TRACE}: stage {stage.number}, sample {one!r} ended at strength {recorded:.6g}, but its "
                f"reviews lead to {math.exp(log_strength):.6g}; restore the files the run wrote, or run it anew"
            )


def exposures(histories: Iterable[History]) -> list[Followed]:
    """Each history followed with a stability of 1, a tick of one step and the hazard φ(l̂) alone.

    -log m is then the time in steps weighted by difficulty, which no parameter of the fit changes: losses, quantiles
    and φ are given. Eq. 4 and 7 make every strength a linear function of it and of the steps.
    """
    alone = {"alpha": 0.0, "gamma_d": 1.0, "eta_s": 0.0, "s_min": 1.0, "s_max": 1.0, "sigma_s": 0.0}
    return [follow(one, one.config.memory.model_copy(update=alone), 1.0) for one in histories]


def to_histories(followed: list[Followed], forgotten: list[dict[tuple[str, int], bool]]) -> Histories:
    """What the fit needs of several runs: their reviews, and each interval whose outcome is known by (id, stage)."""
    samples = {
        key: row
        for row, key in enumerate(
            {(run, one.id): None for run, found in enumerate(followed) for one in found.intervals}
        )
    }
    width = max([one.reviews + 1 for found in followed for one in found.log], default=0)
    elapsed, weighted = np.zeros((2, len(samples), width))
    for run, found in enumerate(followed):
        for one in found.log:
            place = samples[run, one.id], one.reviews
            elapsed[place], weighted[place] = one.elapsed, -one.log_strength
    kept = [(run, one, forgotten[run][one.id, one.stage]) for run, found in enumerate(followed)
            for one in found.intervals if (one.id, one.stage) in forgotten[run]]  # fmt: skip
    return Histories(
        elapsed=elapsed,
        weighted=weighted,
        sample=np.array([samples[run, one.id] for run, one, _ in kept], dtype=np.int64),
        reviews=np.array([one.reviews for _, one, _ in kept], dtype=np.int64),
        steps=np.array([float(one.elapsed) for _, one, _ in kept]),
        weighted_steps=np.array([one.log_start - one.log_strength for _, one, _ in kept]),
        forgotten=np.array([outcome for *_, outcome in kept], dtype=bool),
        stage=np.array([one.stage for _, one, _ in kept], dtype=np.int64),
        id=np.array([one.id for _, one, _ in kept], dtype=object),
    )
