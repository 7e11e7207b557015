"""Read a run directory, also one whose run was cut short. Everything else in the report gets a `Run`."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from retain.matrix import summarize
from retain.reading import foreign, parse_json, read_bytes, read_table
from retain.report.journal import current, read_journal
from retain.types import InputError

Rows = list[list[float | None]]
VIEWS = ("generated", "likelihood", "likelihood_summed", "nll")
TRACE_COLUMNS = ("stage", "step", "strength", "stability")
MAX_CONFIG = 1_000_000
LEVELS = (5, 25, 50, 75, 95)  # percent


@dataclass(frozen=True)
class Stage:
    """A stage's place on the axis of global steps: it trains steps first+1 .. last."""

    number: int
    task: str
    first: int
    last: int


@dataclass(frozen=True)
class Refresh:
    """Quantiles (at LEVELS) of strength and stability over the stored samples at one refresh."""

    stage: int
    step: int
    strength: np.ndarray
    stability: np.ndarray
    samples: int


@dataclass(frozen=True)
class Run:
    """What a run directory says, in plain values."""

    path: Path
    results: dict[str, Any]
    config: dict[str, Any]
    config_text: str
    journal: list[dict[str, Any]] = field(repr=False)
    trace: dict[str, np.ndarray] | None = field(repr=False)

    def records(self, kind: str) -> list[dict[str, Any]]:
        return [record for record in self.journal if record["kind"] == kind]

    @property
    def tasks(self) -> list[str]:
        return self.results["tasks"]

    @property
    def joint(self) -> bool:
        return self.results["joint"]

    @property
    def finished(self) -> bool:
        return self.results["finished"]

    @property
    def strategy(self) -> str:
        return strategy_name(self.results["strategy"])

    @property
    def model(self) -> str:
        model = next((record["model"] for record in self.records("start") if "model" in record), None)
        model = self.config.get("model") if model is None else model
        return str(model.get("name") if isinstance(model, dict) else model or "model unknown")

    @cached_property
    def plans(self) -> dict[int, dict[str, Any]]:
        return {plan["stage"]: plan for plan in self.records("plan")}

    @cached_property
    def refreshes(self) -> list[Refresh]:
        """The distribution of the memory at each refresh, in the order they happened."""
        if self.trace is None:
            return []
        order = np.lexsort((self.trace["step"], self.trace["stage"]))
        columns = {name: values[order] for name, values in self.trace.items()}
        changes = np.flatnonzero(np.diff(columns["stage"]) | np.diff(columns["step"])) + 1
        parts = zip(*(np.split(columns[name], changes) for name in TRACE_COLUMNS), strict=True)
        return [
            Refresh(int(stage[0]), int(step[0]), *(np.percentile(v, LEVELS) for v in values), len(step))
            for stage, step, *values in parts
        ]

    @cached_property
    def stages(self) -> list[Stage]:
        """Every stage that took a step, in order."""
        steps = defaultdict(list)
        for record in self.records("step"):
            steps[record["stage"]].append(record)
        stages = []
        for number, records in sorted(steps.items()):
            first = min(record["global_step"] for record in records) - 1
            last = max(record["global_step"] for record in records)
            task = str(records[0].get("task", f"stage {number}"))
            stages.append(Stage(number, task, first, last))
        return stages


def strategy_name(strategy: Any) -> str:
    """A name, "ssr + ewc", a list of names, or {name: ..., options} as one line of text."""
    if isinstance(strategy, dict):
        return str(strategy.get("name", "?"))
    if isinstance(strategy, list):
        return " + ".join(strategy_name(part) for part in strategy)
    return str(strategy)


def read_run(path: Path) -> Run:
    """The run in directory `path`. Raises InputError for what is missing or broken."""
    path = Path(path)
    if not path.is_dir():
        raise InputError(f"{path}: no such directory; give the output directory of `retain run`")
    journal_path = path / "journal.jsonl"
    journal = read_journal(journal_path) if journal_path.exists() else []
    config_path, results_path = path / "config.yaml", path / "results.json"
    config_text = _text(config_path, MAX_CONFIG) if config_path.exists() else ""
    config = _config(config_path, config_text)
    if results_path.exists():
        results = read_results(results_path)
    elif journal:
        results = rebuild(journal, config)
    else:
        raise InputError(
            f"{path}: neither results.json nor journal.jsonl is there, so this is not a run directory; "
            "give the output directory of `retain run`"
        )
    return Run(path, results, config, config_text, current(journal), _trace(path / "memory_trace.parquet"))


def read_results(path: Path) -> dict[str, Any]:
    """results.json with every key the report needs, NaN as None. Raises InputError."""
    try:
        results = parse_json(_text(path))
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{path}: {error}; delete the file to have the report read the journal instead") from None
    if not isinstance(results, dict) or not isinstance(results.get("tasks"), list):
        raise InputError(
            f'{path}, line 1: not an object with a list "tasks"; delete the file to read the journal instead'
        )
    with foreign(path):
        return _complete(_without_nan(results))


def rebuild(journal: list[dict[str, Any]], config: dict[str, Any]) -> dict[str, Any]:
    """The results of a run that wrote none: from the journal's evaluations and the config's tasks."""
    measured = {(record["row"], record["task"]): record for record in journal if record["kind"] == "evaluation"}
    start = next((record for record in journal if record["kind"] == "start"), {})
    strategy = strategy_name(start.get("strategy", config.get("strategy", "?")))
    rows = range(max((row for row, _ in measured), default=-1) + 1)
    declared = [task for task in config.get("tasks") or [] if isinstance(task, dict)]
    stages = [str(task.get("name")) for task in declared if task.get("train")]
    if not stages:
        stages = list(dict.fromkeys(task for _, task in measured))
    others = [task for task in dict.fromkeys(task for _, task in measured) if task not in stages]

    def table(view: str, tasks: list[str]) -> Rows:
        return [[measured.get((row, task), {}).get(view) for task in tasks] for row in rows]

    results = {
        "tasks": stages,
        "matrices": {view: table(view, stages) for view in VIEWS},
        "evaluation_only": {"tasks": others, "matrices": {view: table(view, others) for view in VIEWS}},
        "task_metrics": {task: record.get("metric") for (_, task), record in measured.items()},
        "strategy": strategy,
        "joint": strategy == "joint",
        "seed": start.get("seed", config.get("seed")),
        "versions": start.get("versions", {}),
        "finished": any(record["kind"] == "end" for record in journal),
    }
    return _complete(_without_nan(results))


def _complete(results: dict[str, Any]) -> dict[str, Any]:
    joint = bool(results.get("joint"))
    tasks = [str(task) for task in results["tasks"]]
    matrices = _matrices(results.get("matrices") or {"generated": results.get("matrix")}, len(tasks), joint)
    others = results.get("evaluation_only") or {}
    other_tasks = [str(task) for task in others.get("tasks") or []]
    by_matrix = {view: summarize(rows, joint) for view, rows in matrices.items()}
    metrics = results.get("metrics") or {**by_matrix.get("generated", {}), "NLL": None}
    return {
        "strategy": "?", "seed": None, "versions": {}, "costs": {}, "task_metrics": {}, "truncated": 0,
        "skipped": {}, "skipped_steps": {}, "finished": False,
        **{key: value for key, value in results.items() if value is not None},
        "tasks": tasks, "joint": joint, "matrices": matrices, "metrics": metrics,
        "metrics_by_matrix": results.get("metrics_by_matrix") or by_matrix,
        "evaluation_only": {
            "tasks": other_tasks,
            "matrices": _matrices(others.get("matrices") or {}, len(other_tasks), None),
            "change": others.get("change") or {},
        },
    }  # fmt: skip


def _matrices(matrices: dict[str, Rows | None], tasks: int, joint: bool | None) -> dict[str, Rows]:
    """The matrices that hold at least one score, checked for their shape."""
    kept = {}
    for view in VIEWS:
        rows = matrices.get(view)
        if not rows or all(cell is None for row in rows for cell in row):
            continue
        for number, row in enumerate(rows):
            if len(row) != tasks:
                raise InputError(f"matrix {view}: row {number} has {len(row)} scores for {tasks} tasks; one a task")
        if joint is not None:
            summarize(rows, joint)
        kept[view] = rows
    return kept


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _text(path: Path, limit: int | None = None) -> str:
    try:
        return read_bytes(path, limit).decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None


def _config(path: Path, text: str) -> dict[str, Any]:
    from retain.config_yaml import parse_yaml

    config, _ = parse_yaml(text, str(path))
    return config if isinstance(config, dict) else {}


def _trace(path: Path) -> dict[str, np.ndarray] | None:
    """The columns the memory figure needs, or None where no memory was recorded."""
    if not path.exists():
        return None
    import pyarrow.types as kinds

    hint = "delete it to leave the figure out"
    table = read_table(path, hint=hint, columns=TRACE_COLUMNS)
    for name in TRACE_COLUMNS:
        wanted = kinds.is_integer if name in ("stage", "step") else kinds.is_floating
        if name not in table.column_names or not wanted(table[name].type) or table[name].null_count:
            raise InputError(f"{path}: not readable as a trace (the column {name} is missing or broken); {hint}")
    columns = {name: table[name].to_numpy() for name in TRACE_COLUMNS}
    return columns if len(columns["step"]) else None
