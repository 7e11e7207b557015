"""The file of a comparison: which runs it asks for, each with its own configuration."""

from __future__ import annotations

import copy
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from retain.config import Config, lay_over, make_config
from retain.config_errors import Problem, problem_report, problems_of, show
from retain.config_yaml import Lines, apply_override, read_yaml
from retain.presets import preset_of
from retain.scheduler import plan_run, plan_to_dict
from retain.sections import Positive, Section, Seed, Share, Text
from retain.tasks import load_tasks
from retain.types import InputError, Task

REPLAY_SECTIONS = ("schedule", "trigger", "memory", "buffer")
DATA_KEYS = {"tasks", "template", "on_invalid", "data_seed", "hold_out"}
SYNTHESIS_SECTIONS = ("synthesis", "filters", "curriculum", "storage", "monitor")
Values = Annotated[dict[str, list[Any]], Field(description="a mapping from a key to a list of its values")]


class ComparisonFile(Section):
    """Strategies x settings x seeds x orders of the tasks, on one run's configuration."""

    run: Annotated[
        str | dict[str, Any], Field(description="the YAML file of a run or a comparison, or a run's keys below `run`")
    ]
    strategies: Annotated[
        list[Any] | dict[str, Any],
        Field(min_length=1, description="a list of strategies, or a mapping from a label to a strategy or to keys"),
    ]
    seeds: Annotated[list[Seed], Field(min_length=1)] = Field(default_factory=lambda: [42])
    orders: Annotated[list[list[Text]], Field(min_length=1, description="a list of lists of task names")] | None = None
    grid: Values = Field(default_factory=dict)
    vary: Values = Field(default_factory=dict)
    reference: Text | None = None
    match: Literal["samples", "none"] = "samples"
    budget: Positive = 0.1
    level: Share = 0.95
    spread: Literal["pooled", "own"] = "pooled"
    out: Text | None = None
    cells: Text | None = None


@dataclass(frozen=True, slots=True)
class Cell:
    """One run of a comparison. row: the line of the table it belongs to; order: number of the task order, from 1."""

    label: str
    row: str
    seed: int
    order: int
    settings: Mapping[str, Any]
    config: Config


@dataclass(frozen=True, slots=True)
class Comparison:
    """A checked comparison. base: the folder that the runs' paths are relative to."""

    file: ComparisonFile
    path: Path
    base: Path
    out: Path
    cells_folder: Path
    cells: list[Cell]

    @property
    def rows(self) -> list[str]:
        """The lines of the table, in the order of the file."""
        return list(dict.fromkeys(cell.row for cell in self.cells))

    @property
    def reference(self) -> str:
        """The row that the others are compared with: the first one unless the file names another."""
        return self.file.reference or self.rows[0]

    def cell(self, label: str) -> Cell:
        """The cell of this label; InputError for another one."""
        found = next((cell for cell in self.cells if cell.label == label), None)
        if found is None:
            raise InputError(f"--cell: {label!r} is none of {', '.join(cell.label for cell in self.cells)}")
        return found


def load_comparison(path: str | Path, overrides: list[str] | None = None, out: Path | None = None) -> Comparison:
    """Read the YAML file of a comparison; every problem is an InputError that names the file and the line."""
    path = Path(path)
    values, lines = read_yaml(path)
    of_run = [text.removeprefix("run.") for text in overrides or [] if text.startswith("run.")]
    for override in overrides or []:
        if not override.startswith("run."):
            apply_override(values, lines, override)
    try:
        file = ComparisonFile.model_validate(values)
    except ValidationError as error:
        raise problem_report(problems_of(error, ComparisonFile, values), str(path), lines) from None
    base, run, run_lines, source = _base_run(file.run, path, lines, of_run)
    make_config(_ungated({**run, "strategy": "none"}), source, run_lines)
    strategies = _strategies(file.strategies, path, lines)
    cells = list(_cells(file, run, strategies, path, lines))
    if any(cell.config.needs_validation for cell in cells):  # what one holds out, none may train on
        cells = list(_cells(file, {"hold_out": True, **run}, strategies, path, lines))
    out = out or path.parent / (file.out or f"runs/{path.stem}")
    folder = path.parent / file.cells if file.cells else out / "cells"
    comparison = Comparison(file, path, base, out, folder, cells)
    _check(comparison, lines)
    return comparison


def load_data(comparison: Comparison) -> dict[str, list[Task]]:
    """The tasks of each cell by its label; what several cells have in common is read once."""
    known: dict[str, list[Task]] = {}
    found = {}
    for cell in comparison.cells:
        config = cell.config
        facts = [config.model_dump(include=DATA_KEYS), config.needs_validation]
        key = json.dumps(facts, sort_keys=True)
        if key not in known:
            known[key] = load_tasks(config, comparison.base, config.needs_validation)
        found[cell.label] = known[key]
    return found


def plan_cell(cell: Cell, tasks: Sequence[Task]) -> dict[str, Any]:
    """What a cell would replay: the totals of `retain plan`, and whether its events depend on training.

    Samples of a file that seeds the buffer are not counted.
    """
    plans = plan_run(cell.config, [(task.name, len(task.train)) for task in tasks if task.is_stage])
    plan = plan_to_dict(plans)
    projected = any(event.get("projected") for stage in plan["stages"] for event in stage["events"])
    return {**plan["totals"], "projected": projected}


def _base_run(
    run: str | dict[str, Any], path: Path, lines: Lines, overrides: list[str], above: tuple[Path, ...] = ()
) -> tuple[Path, dict[str, Any], Lines, str]:
    """The folder, the plain values and the lines of the configuration that all runs share, and what to call it."""
    if not isinstance(run, str):
        inner = {key[1:]: line for key, line in lines.items() if key[0] == "run" and len(key) > 1}
        return path.parent, lay_over(copy.deepcopy(run), inner, overrides), inner, f"{path}, run"
    file = path.parent / run
    values, run_lines = read_yaml(file)
    if not isinstance(values.get("run"), str | dict):
        return file.parent, lay_over(values, run_lines, overrides), run_lines, str(file)
    if file.resolve() in above:
        raise InputError(f"{path}: run: {show(run)} leads back to itself; name a file that holds the keys of a run")
    return _base_run(values["run"], file, run_lines, overrides, (*above, file.resolve()))


def _strategies(named: list[Any] | dict[str, Any], path: Path, lines: Lines) -> dict[str, dict[str, Any]]:
    """The keys that each strategy sets, by label."""
    problems: list[Problem] = []
    found: dict[str, dict[str, Any]] = {}
    items = named.items() if isinstance(named, dict) else enumerate(named)
    for key, value in items:
        settings = value if isinstance(named, dict) and isinstance(value, dict) else {"strategy": value}
        settings = {"strategy": key, **settings} if isinstance(key, str) and "name" not in settings else settings
        settings = settings if "name" not in settings else {"strategy": settings}
        try:
            label = key if isinstance(key, str) else preset_of(value).name
            preset_of(settings["strategy"])
        except InputError as error:
            problems.append((("strategies", key), str(error)))
            continue
        if label in found:
            problems.append((("strategies", key), f"{label!r} stands twice; name each in a mapping, `label: {{...}}`"))
        found[label] = settings
    if problems:
        raise problem_report(problems, str(path), lines)
    return found


def _cells(
    file: ComparisonFile, run: dict[str, Any], strategies: dict[str, dict[str, Any]], path: Path, lines: Lines
) -> Iterator[Cell]:
    """Every cell once, row by row."""
    seen = set()
    points = [dict(zip(file.grid, values, strict=True)) for values in product(*file.grid.values())]
    single = [{}, *({key: value} for key, values in file.vary.items() for value in values)]
    points = [point | one for point in points for one in single]
    keys = [*file.grid, *file.vary]
    for name, settings in strategies.items():
        for point in points:
            used = {key: value for key, value in point.items() if _matters(key, settings["strategy"])}
            row = " ".join([name, *(f"{_short(key, keys)}={_shown(value)}" for key, value in used.items())])
            if row in seen:
                continue
            seen.add(row)
            for number, order in enumerate(file.orders or [None], start=1):
                for seed in file.seeds:
                    parts = [row, *([f"order{number}"] if file.orders else []), f"seed{seed}"]
                    config = _config(file, run, settings | used, seed, order, f"{path}, {row}")
                    yield Cell(".".join(map(_file_name, parts)), row, seed, number, used, config)


def _matters(key: str, strategy: Any) -> bool:
    """Whether a key of the grid can change what a strategy does."""
    chosen, section = preset_of(strategy), key.partition(".")[0]
    unused = () if chosen.keeps_buffer else REPLAY_SECTIONS
    unused += (() if chosen.source else SYNTHESIS_SECTIONS) + (() if chosen.replays else ("gate",))
    return section not in unused


def _ungated(values: dict[str, Any]) -> dict[str, Any]:
    """A cell's values without what `gate.after_stage` cannot do there: end a run that is to be measured, or raise the
    replay of a strategy that has none."""
    gate = values.get("gate")
    after = gate.get("after_stage") if isinstance(gate, Mapping) else None
    if after == "stop" or (after == "raise_replay" and not preset_of(values["strategy"]).replays):
        return {**values, "gate": {**gate, "after_stage": "off"}}
    return values


def _config(
    file: ComparisonFile, run: dict[str, Any], settings: dict[str, Any], seed: int, order: list[str] | None, source: str
) -> Config:
    """The configuration of one cell."""
    values = {**copy.deepcopy(run), "strategy": settings["strategy"], "seed": seed}
    overrides = [f"{key}={json.dumps(value)}" for key, value in _flat(settings) if key.partition(".")[0] != "strategy"]
    try:
        values = lay_over(values, {}, overrides)
    except InputError as error:
        raise InputError(f"{source}: {error}") from None
    values.pop("output", None)
    values["evaluation"] = {**values.get("evaluation", {}), "save_predictions": True}
    if file.match == "samples":
        values["schedule"] = {"budget": file.budget, **values.get("schedule", {})}
    if order is not None:
        values["tasks"] = _ordered(values["tasks"], order, source)
    return make_config(_ungated(values), source)


def _ordered(tasks: list[dict[str, Any]], order: list[str], source: str) -> list[dict[str, Any]]:
    """The trained tasks in another order, and then those that are only evaluated."""
    trained = {task["name"]: task for task in tasks if task.get("train")}
    if Counter(order) != Counter(trained.keys()):
        raise InputError(f"{source}: orders: {show(order)} does not name each of {', '.join(trained)} once")
    return [trained[name] for name in order] + [task for task in tasks if not task.get("train")]


def _check(comparison: Comparison, lines: Lines) -> None:
    """What is wrong with a comparison as a whole."""
    problems: list[Problem] = []
    labels = Counter(cell.label.lower() for cell in comparison.cells)
    if twice := [label for label, count in labels.items() if count > 1]:
        problems.append((("strategies",), f"{twice[0]!r} would name two cells; change a label, a value or a seed"))
    if comparison.reference not in comparison.rows:
        allowed = ", ".join(comparison.rows)
        problems.append((("reference",), f"{show(comparison.reference)} is no row of the table (allowed: {allowed})"))
    if problems:
        raise problem_report(problems, str(comparison.path), lines)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested keys as `a.b.c`."""
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _short(key: str, keys: Sequence[str]) -> str:
    """The last part of a key where that tells it from the others."""
    last = key.rpartition(".")[2]
    return last if [other.rpartition(".")[2] for other in keys].count(last) == 1 else key


def _shown(value: Any) -> str:
    """A value of the grid in a row's name: text without quotes."""
    return value if isinstance(value, str) else show(value)


def _file_name(text: str) -> str:
    """Text as a part of a file's name: `ssr+ewc`, `mssr-lambda_0=0.3`."""
    return re.sub(r"[^A-Za-z0-9_.+=-]+", "-", text.replace(" + ", "+")).strip("-.") or "x"
