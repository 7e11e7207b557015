"""From a checked configuration to a finished run, and a second look at its scores."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from retain.choosing import settle
from retain.config import Config, load_config, make_config
from retain.data_record import changed_splits, check_data
from retain.device import open_model
from retain.evaluate import evaluate_task
from retain.gate import check_names, enforce
from retain.learner import Learner
from retain.presets import AUTO, preset_of
from retain.rundir import RunDir, read_hashes
from retain.selfsynthesis import check_descriptions
from retain.tasks import load_tasks
from retain.tasks.loading import fingerprint
from retain.types import InputError, Task
from retain.weights import load_weights

log = logging.getLogger("retain")


def run(
    config: Config,
    base: Path,
    out: Path | None = None,
    start: Sequence[Path] = (),
    trained: Callable[[RunDir], None] = lambda run_dir: None,
    accept_changed_data: bool = False,
) -> Path:
    """Train and score all tasks of a configuration; returns the run's directory. Resumes what is there.

    base: the folder that relative paths in `config` are relative to. out: overrides `config.output`.
    start: the first rows of another run, where these are the same; they are not computed again.
    trained: called after each stage. accept_changed_data: go on although the data are not those the run began with.
    Raises GateError where `gate.after_stage: stop` is not met.
    """
    out = base / config.output if out is None else out
    by_rule = preset_of(config.strategy).name == AUTO
    config, tasks, choice = settle(config, base)
    if preset_of(config.strategy).source:
        check_descriptions(config, tasks)
    check_names(config)
    learner = Learner.of(config, base, out, tasks)
    changed = check_data(learner.dir, tasks, accept_changed_data)
    learner.changed_data = changed | {"joint"} if changed else set()
    if by_rule:
        learner.dir.log("choice", strategy=choice.strategy, why=choice.why, unsuited=choice.unsuited)
    if not learner.dir.rows() and not config.written_seed:
        learner.dir.adopt(row for row in start if row.is_dir())
    stages = [task for task in tasks if task.is_stage]
    stages = [joined(stages)] if preset_of(config.strategy).joint else stages
    done = [row.name for row in learner.dir.rows()[1:]]
    if done:
        log.info("%s: %s finished already; %s", out, ", ".join(done), "resuming" if len(done) < len(stages) else "")
        learner.dir.log("resume", skipped=done)
    for task in stages:
        learner.train(task)
        trained(learner.dir)
    learner.evaluate()
    learner.report()
    learner.dir.log("end", seconds=time.perf_counter() - learner.started)
    enforce(learner.dir, config)
    return out


def joined(tasks: Sequence[Task]) -> Task:
    """All tasks as one, for the upper bound that sees everything at once."""
    text = "".join(task.fingerprint for task in tasks)
    return Task(
        "joint",
        train=[sample for task in tasks for sample in task.train],
        validation=[sample for task in tasks for sample in task.validation],
        fingerprint=hashlib.sha256(text.encode()).hexdigest(),
    )


def evaluate(
    run_dir: Path, stage: int | None = None, lm_eval: Sequence[str] = (), limit: int | None = None
) -> dict[str, Any]:
    """Score the model of a finished stage (the last one by default; 0 is the untouched model) afresh.

    lm_eval: tasks of lm-eval by name, or YAML files, that are scored instead of the run's own. limit: as many samples
    of each task at most. Nothing in the directory changes. Returns {"stage", "scores": {task: scores}}.
    """
    config = load_config(run_dir / "config.yaml", need_tasks=False)
    specs, base = list(config.tasks), run_dir
    if lm_eval:
        given = make_config({"tasks": [{"lm_eval": name} for name in lm_eval]}, "--lm-eval", need_tasks=False)
        specs, base = given.tasks, Path.cwd()
    if limit is not None:
        specs = [spec.model_copy(update={"max_test": limit}) for spec in specs]
    rows = RunDir(run_dir).rows()
    if not rows:
        raise InputError(f"{run_dir}: nothing is finished yet")
    stage = len(rows) - 1 if stage is None else stage
    if not 0 <= stage < len(rows):
        raise InputError(f"stage: {stage} is not a finished stage of {run_dir}; it has 0 to {len(rows) - 1}")
    tasks = load_tasks(config.model_copy(update={"tasks": specs}), base)
    noted = read_hashes(run_dir)
    for task in tasks if limit is None else ():
        if changed_splits(noted.get(task.name, {}), {"test": fingerprint(task, ["test"])}, ["test"]) and task.test:
            log.warning("%s: its test samples are not those that the run was scored on", task.name)
    lm, _ = open_model(config, run_dir)
    if stage:
        load_weights(lm, rows[stage])
    with nullcontext() if stage else lm.base():
        scores = {task.name: evaluate_task(lm, task, config.evaluation)[0].to_dict() for task in tasks}
    return {"stage": stage, "scores": scores}
