"""Limits on what a run may forget: found values against those that `gate` allows, and how sure that is."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from retain.config import Config
from retain.conflicts import retired_tasks
from retain.intervals import paired_interval, wilson_interval
from retain.presets import preset_of
from retain.report.journal import current, read_journal
from retain.rundir import PREDICTIONS, RunDir
from retain.store import read_lines
from retain.types import GateError, InputError

log = logging.getLogger("retain")

LIMITS = ("forgetting", "mean_forgetting", "score", "nll", "nll_rise", "general")
LEAST = ("score",)  # all others are the most that is allowed
DRAWS = 4000
HIGHEST_RATIO, HIGHEST_SHARE = 0.9, 0.95


@dataclass(frozen=True, slots=True)
class Finding:
    """One limit and the value found. past: how far the value lies beyond it, at most 0 where it is met.

    low, high: the value's interval over test items, None where the items' scores were not kept; certain: whether all
    of it lies beyond the limit. task: None for a mean over tasks. items: how many it rests on.
    """

    limit: str
    task: str | None
    value: float
    allowed: float
    low: float | None
    high: float | None
    items: int

    @property
    def past(self) -> float:
        return self.allowed - self.value if self.limit in LEAST else self.value - self.allowed

    @property
    def exceeded(self) -> bool:
        return self.past > 1e-9

    @property
    def certain(self) -> bool:
        if self.low is None or self.high is None:
            return self.exceeded
        return self.high < self.allowed if self.limit in LEAST else self.low > self.allowed

    def to_dict(self) -> dict[str, Any]:
        """Its fields, and what follows from them, as plain JSON."""
        return {**asdict(self), "past": self.past, "exceeded": self.exceeded, "certain": self.certain}


class _Row:
    """The scores of one finished row, and of its test items."""

    def __init__(self, run_dir: RunDir, folder: Path) -> None:
        self.folder, self.facts = folder, run_dir.scores(folder)

    def mean(self, task: str, key: str) -> float | None:
        return self.facts["scores"].get(task, {}).get(key)

    @cached_property
    def items(self) -> dict[str, dict[str, dict[str, Any]]]:
        path, found = self.folder / PREDICTIONS, {}
        for line in read_lines(path, ("task", "id")) if path.exists() else ():
            found.setdefault(line["task"], {})[line["id"]] = line
        return found


def check_gate(run_dir: RunDir, config: Config, stage: int | None = None) -> list[Finding]:
    """Every limit of `config.gate` that applies after `stage`, the newest finished one by default.

    With R[t, i] the score on task i after stage t and T this stage: forgetting R[i, i] - R[T, i] of each task learned
    before, and the mean of that (-BWT); score R[T, i] and held-out NLL of each task learned; nll_rise, the NLL now less
    that right after learning; general, the fall R[0, j] - R[T, j] of each evaluation-only task. Tasks that are
    retired (`supersedes`, `valid_until`) have no limit. Intervals: of differences over test items paired
    (`paired_interval`), of a score Wilson's. Raises InputError for a stage that is not finished.
    """
    folders = run_dir.rows()
    stage = len(folders) - 1 if stage is None else stage
    if not 0 < stage < len(folders):
        raise InputError(f"{run_dir.path}: stage {stage} is not finished; there are 1 to {max(len(folders) - 1, 0)}")
    rows = [_Row(run_dir, folder) for folder in folders[: stage + 1]]
    if preset_of(config.strategy).joint:
        learned = {spec.name: stage for spec in config.tasks if spec.train}
    else:
        learned = {row.facts["task"]: number for number, row in enumerate(rows) if number}
    retired = retired_tasks(config, list(learned))
    learned = {task: number for task, number in learned.items() if task not in retired}
    past = {task: number for task, number in learned.items() if number < stage}
    general = {spec.name: 0 for spec in config.tasks if spec.train is None}

    found = _changes(rows, config, "forgetting", past, "score", sign=-1)
    found += _mean_forgetting(rows, config, past)
    found += _levels(rows[-1], config, "score", learned) + _levels(rows[-1], config, "nll", learned)
    found += _changes(rows, config, "nll_rise", past, "nll", sign=1)
    return found + _changes(rows, config, "general", general, "score", sign=-1)


def check_names(config: Config) -> None:
    """An InputError for a limit on a task that there is not, or not of that kind."""
    trained = [spec.name for spec in config.tasks if spec.train]
    others = [spec.name for spec in config.tasks if not spec.train]
    for limit in LIMITS:
        known, given = others if limit == "general" else trained, getattr(config.gate, limit)
        for name in given if isinstance(given, Mapping) else ():
            if name not in known:
                what = "evaluation-only task" if limit == "general" else "task that is learned"
                raise InputError(f"gate.{limit}.{name}: no {what}; there are {', '.join(known) or 'none'}")


def _allowed(config: Config, limit: str, tasks: Mapping[str, int]) -> dict[str, float]:
    """The limit of each of the tasks that has one."""
    given = getattr(config.gate, limit)
    if given is None:
        return {}
    return (
        {task: given[task] for task in tasks if task in given}
        if isinstance(given, Mapping)
        else dict.fromkeys(tasks, given)
    )


def _difference(before: _Row, after: _Row, task: str, key: str, sign: int) -> tuple[float, np.ndarray] | None:
    """sign·(after - before) of a task's mean, and of its items (n,), none where they were not kept; None: no score."""
    means = [row.mean(task, "generated" if key == "score" else key) for row in (before, after)]
    if None in means:
        return None
    first, last = before.items.get(task, {}), after.items.get(task, {})
    both = [one for one in first if one in last]
    return sign * (means[1] - means[0]), sign * np.array([last[one][key] - first[one][key] for one in both])


def _finding(
    config: Config, limit: str, task: str | None, value: float, allowed: float, items: Sequence[np.ndarray]
) -> Finding:
    known = [each for each in items if len(each)]
    low, high = None, None
    if known and len(known) == len(items):
        interval = paired_interval([each[None, :] for each in known], config.gate.level, draws=DRAWS)
        low, high = interval.low, interval.high
    return Finding(limit, task, value, allowed, low, high, sum(map(len, known)))


def _changes(
    rows: Sequence[_Row], config: Config, limit: str, since: Mapping[str, int], key: str, sign: int
) -> list[Finding]:
    """Findings on the change of each task from the row it is counted from to the last one."""
    found = []
    for task, allowed in _allowed(config, limit, since).items():
        change = _difference(rows[since[task]], rows[-1], task, key, sign)
        if change:
            found.append(_finding(config, limit, task, change[0], allowed, [change[1]]))
    return found


def _mean_forgetting(rows: Sequence[_Row], config: Config, past: Mapping[str, int]) -> list[Finding]:
    changes = [_difference(rows[number], rows[-1], task, "score", -1) for task, number in past.items()]
    known = [change for change in changes if change]
    if config.gate.mean_forgetting is None or not known:
        return []
    mean = float(np.mean([value for value, _ in known]))
    return [_finding(config, "mean_forgetting", None, mean, config.gate.mean_forgetting, [each for _, each in known])]


def _levels(row: _Row, config: Config, key: str, learned: Mapping[str, int]) -> list[Finding]:
    """Findings on the score or NLL itself of each task."""
    found = []
    for task, allowed in _allowed(config, key, learned).items():
        value = row.mean(task, "generated" if key == "score" else key)
        if value is None:
            continue
        if key == "score":
            n = row.facts["scores"][task]["n"]
            found.append(Finding(key, task, value, allowed, *wilson_interval(value, n, config.gate.level), n))
        else:
            items = np.array([line["nll"] for line in row.items.get(task, {}).values()])
            found.append(_finding(config, key, task, value, allowed, [items]))
    return found


def failures(findings: Sequence[Finding], config: Config) -> list[Finding]:
    """The limits that are not met; with `gate.noise: pass` those whose whole interval lies beyond."""
    return [one for one in findings if (one.certain if config.gate.noise == "pass" else one.exceeded)]


def sentence(finding: Finding, level: float) -> str:
    """A finding in words: value, limit, and whether noise could explain it."""
    task = f" of {finding.task}" if finding.task else ""
    bound = "least" if finding.limit in LEAST else "most"
    text = f"{finding.limit}{task} is {finding.value:.3f}, at {bound} {finding.allowed:g} is allowed"
    if finding.low is None or finding.high is None:
        return text
    noise = "" if finding.certain else f"; so few test items ({finding.items}) may err by that much"
    return f"{text} ({level * 100:g} % interval {finding.low:.3f} to {finding.high:.3f}{noise})"


def enforce(run_dir: RunDir, config: Config) -> None:
    """What `gate.after_stage` asks for after the newest finished stage: GateError to stop, or a line of the journal."""
    stage = len(run_dir.rows()) - 1
    if config.gate.after_stage == "off" or stage < 1:
        return
    failed = failures(check_gate(run_dir, config), config)
    factor = replay_factor(run_dir, config)
    line = {"stage": stage, "passed": not failed, "action": config.gate.after_stage, "replay_factor": factor,
            "failed": [one.to_dict() for one in failed]}  # fmt: skip
    told = [old for old in current(read_journal(run_dir.journal)) if (old["kind"], old.get("stage")) == ("gate", stage)]
    if not told or told[-1] != told[-1] | line:  # a run that is started again looks again
        run_dir.log("gate", **line)
    if not failed:
        return
    text = "; ".join(sentence(one, config.gate.level) for one in failed)
    if config.gate.after_stage == "stop":
        raise GateError(
            f"gate after stage {stage}: {text}. `retain gate {run_dir.path}` shows every limit, `retain rollback "
            f"{run_dir.path} --to {stage - 1}` takes the stage back; the same run with a wider limit goes on"
        )
    log.warning("gate after stage %d: %s; replay is raised to %.3g times its share", stage, text, factor)


def replay_factor(run_dir: RunDir, config: Config) -> float:
    """What the share of replay is multiplied by: `gate.raise_by` once for each finished stage that missed the gate.

    A function of the finished rows, so a run that is resumed or rolled back finds the same. 1 without `raise_replay`.
    """
    if config.gate.after_stage != "raise_replay":
        return 1.0
    missed = (failures(check_gate(run_dir, config, stage), config) for stage in range(1, len(run_dir.rows())))
    return config.gate.raise_by ** sum(map(bool, missed))


def raise_replay(config: Config, factor: float) -> Config:
    """The configuration with λ₀, λ_min, the curriculum's bounds (up to 0.9 and 0.95) and the budget times `factor`."""
    if factor == 1.0:
        return config

    def scaled(section: Any, names: Sequence[str], highest: float) -> Any:
        grow: Callable[[float], float] = lambda value: max(value, min(highest, value * factor))  # noqa: E731
        return section.model_copy(update={name: grow(getattr(section, name)) for name in names})

    schedule = scaled(config.schedule, ("lambda_0", "lambda_min"), HIGHEST_RATIO)
    if schedule.budget is not None:
        schedule = schedule.model_copy(update={"budget": schedule.budget * factor})
    curriculum = scaled(config.curriculum, ("initial", "final", "lowest", "highest"), HIGHEST_SHARE)
    return config.model_copy(update={"schedule": schedule, "curriculum": curriculum})
