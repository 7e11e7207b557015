"""Come back to a finished run: take up all it learned, and learn the next task."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from retain.config import Config, load_config, make_config
from retain.config_yaml import read_yaml
from retain.data_record import check_data
from retain.gate import enforce
from retain.learner import Learner
from retain.presets import preset_of
from retain.relocation import relocate
from retain.rundir import RunDir
from retain.sections import TaskConfig
from retain.tasks import load_task
from retain.types import InputError, Sample, Task

log = logging.getLogger("retain")


def add(run_dir: str | Path, task: str | Path | None = None, accept_changed_data: bool = False) -> dict[str, Any]:
    """Learn the task of a YAML file (what stands under `tasks` in a configuration) as the run's next stage.

    Without a task what is not scored yet is scored. The data of earlier stages may be gone, but those at hand must be
    what they were, unless `accept_changed_data`. One that was stopped in its stage goes on there. Returns the results;
    raises GateError where `gate.after_stage: stop` is not met.
    """
    run_dir = Path(run_dir)
    spec = None if task is None else read_task(Path(task), run_dir)
    learner = reopen(run_dir, spec and spec.name, accept_changed_data)
    if spec is None:
        return learner.evaluate()
    results = learner.learn(spec)
    enforce(learner.dir, learner.config)
    return results


def read_task(path: Path, run_dir: Path) -> TaskConfig:
    """The one task of a YAML file, its paths, which are relative to the file, relative to the run's directory."""
    values, lines = read_yaml(path)
    values = values if "tasks" in values else {"tasks": [values]}
    config = make_config(values, str(path), lines, need_tasks=False)
    if len(config.tasks) != 1 or not config.tasks[0].train:
        raise InputError(f"{path}: {len(config.tasks)} tasks; give one with `name` and `train`")
    return relocate(config, path.parent, run_dir).tasks[0]


def reopen(run_dir: Path, begun: str | None = None, accept_changed_data: bool = False) -> Learner:
    """The learner of a run with its finished stages, also those whose data are not at hand any more.

    Raises InputError where there is no run, where the stage of another task than `begun` is not finished, and for data
    that changed unaccepted. Tasks that a rollback took back are left out.
    """
    path = run_dir / "config.yaml"
    if not path.is_file():
        raise InputError(f"{run_dir}: no config.yaml in it, so it is no run")
    config, run = load_config(path, need_tasks=False), RunDir(run_dir)
    if preset_of(config.strategy).joint:
        raise InputError(f"{run_dir}: strategy joint trains all tasks in one stage, so none can be added; start anew")
    rows, free = [run.scores(row) for row in run.rows()[1:]], run.taken_back()
    config = config.model_copy(update={"tasks": [task for task in config.tasks if task.name not in free]})
    done = {row["task"]: row for row in rows}
    if waiting := [task.name for task in config.tasks if task.train and task.name not in {*done, begun}]:
        raise InputError(
            f"{run_dir}: {waiting[0]} is not learned yet; `retain run {path}` goes on with it first, and after "
            f"`retain rollback {run_dir} --to {len(rows)}` it need not be learned"
        )
    found = {task.name: _task(task, config, run_dir, done.get(task.name)) for task in config.tasks}
    tasks = {name: task for name, (task, _) in found.items()}
    learner = Learner.of(config, run_dir, run_dir, list(tasks.values()))
    learner.stages = [tasks[row["task"]] for row in rows]
    learner.accept_changed_data = accept_changed_data
    learner.changed_data = check_data(run, [task for task, whole in found.values() if whole], accept_changed_data)
    return learner


def _task(spec: TaskConfig, config: Config, base: Path, row: dict[str, Any] | None) -> tuple[Task, bool]:
    """A task as its data give it, and whether all of these are at hand; of a stage whose training data are gone its
    size, which is all that replay needs."""
    try:
        return load_task(spec, config, base, config.needs_validation, needs_test=False), True
    except InputError:
        if row is None or "samples" not in row:
            raise
    try:
        task = load_task(spec.model_copy(update={"train": None, "validation": None}), config, base)
    except InputError as error:
        log.warning("%s: not scored any more (%s)", spec.name, str(error).splitlines()[0])
        task = Task(spec.name, description=spec.description)
    task.fingerprint = row["fingerprint"]
    task.train = [Sample(f"{spec.name}/{number}", spec.name, "", "") for number in range(row["samples"])]
    return task, False
