"""Tasks of lm-eval (EleutherAI's lm-evaluation-harness): by name, or a YAML file of its format. Evaluation only."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import logging
import random
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from retain.config import Config
from retain.sections import TaskConfig
from retain.tasks.files import show, suggest
from retain.types import InputError, Task

GROUP = re.compile(rb"^group\s*:", re.MULTILINE)
INSTALL = "run `pip install 'retain[lm-eval]'`"


@dataclass(frozen=True, slots=True)
class Harness:
    """An lm-eval task with its data. name: what its results stand under; metric: the one that is taken as the score,
    as lm-eval's results name it or without its filter; limit: how many samples of each subtask, all for None."""

    name: str
    loaded: dict[str, Any]
    metric: str
    limit: int | None
    num_fewshot: int | None
    apply_chat_template: bool
    seed: int


def is_file(lm_eval: str) -> bool:
    """Whether it names a YAML file rather than a task that lm-eval brings."""
    return lm_eval.lower().endswith((".yaml", ".yml"))


def load_harness_task(spec: TaskConfig, config: Config, base: Path) -> Task:
    """The lm-eval task of `spec` as an evaluation-only task; `max_test` bounds it, `metric` is one of its own.

    A YAML file is relative to `base`, and so are the data files it names, to its own folder. Raises InputError where
    lm-eval is missing, knows no such task or cannot get its data, where the task runs code that a model writes, and
    for a metric that it has not or whose low values are the good ones.
    """
    try:
        loaded, name = _load(str(spec.lm_eval), base)
        metric = _metric(spec, loaded)
    except InputError as error:
        raise InputError(f"task {spec.name!r}: lm_eval: {error}") from None
    harness = Harness(name, loaded, metric, spec.max_test, spec.num_fewshot, spec.apply_chat_template, config.data_seed)
    source = (base / spec.lm_eval).read_bytes() if is_file(spec.lm_eval) else spec.lm_eval.encode()
    facts = (source, spec.max_test, metric, spec.num_fewshot, spec.apply_chat_template)
    fingerprint = hashlib.sha256(repr(facts).encode()).hexdigest()
    return Task(spec.name, description=spec.description, metric=metric, fingerprint=fingerprint, harness=harness)


def _load(lm_eval: str, base: Path) -> tuple[dict[str, Any], str]:
    """What lm-eval loads, and the name of its results."""
    if importlib.util.find_spec("lm_eval") is None:
        raise InputError(f"lm-eval is not installed; {INSTALL}")
    if is_file(lm_eval):
        path = (base / Path(lm_eval).expanduser()).resolve()
        if not path.is_file():
            raise InputError(f"{show(lm_eval)} is no file")
        defaults, wanted = GROUP.search(path.read_bytes()) is not None, str(path)
    else:
        path, defaults, wanted = None, True, lm_eval
    with apart():
        manager = _manager(defaults)
        if path is None and lm_eval not in manager.task_index:
            raise InputError(f"lm-eval has no task {show(lm_eval)}{suggest(lm_eval, manager.all_tasks)}")
        try:
            with contextlib.chdir(path.parent if path else "."):
                loaded = manager.load([wanted])
        except Exception as error:  # whatever the task's YAML, its Python, or the way to its data may raise
            reason = show(" ".join(str(error).split()) or repr(error)).strip("'\"")
            raise InputError(
                f"{show(lm_eval)} cannot be loaded ({type(error).__name__}: {reason}); its data come from the Hub "
                "unless its YAML names files"
            ) from None
    groups, tasks = loaded.get("groups") or {}, loaded["tasks"]
    name = next(iter(groups or tasks), "") if path else lm_eval
    if name not in {**groups, **tasks} or (not groups and len(tasks) > 1):
        raise InputError(f"{show(lm_eval)} is a tag of {', '.join(sorted(tasks)) or 'no task'}; name one of them")
    for task in tasks.values():
        if getattr(task, "UNSAFE_CODE", False) or getattr(task, "MULTIMODAL", False):
            raise InputError(f"{show(lm_eval)} runs code that the model writes, or needs images; that is not supported")
    return loaded, name


@cache
def _manager(defaults: bool) -> Any:
    """lm-eval's index of tasks; that of its own ones takes it a while."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_defaults=defaults)


def _metric(spec: TaskConfig, loaded: dict[str, Any]) -> str:
    """The metric asked for, or the task's first one whose high values are good."""
    known: dict[str, bool] = {}
    for task in loaded["tasks"].values():
        known |= {name: bool(better) for name, better in task.higher_is_better().items()}
    good = [name for name, better in known.items() if better]
    if spec.metric is None and good:
        return good[0]
    if spec.metric is None or spec.metric.partition(",")[0] not in good:
        asked = "" if spec.metric is None else f"metric {show(spec.metric)}: "
        raise InputError(
            f"{asked}a score must be good where it is high; {show(spec.lm_eval)} has {', '.join(good) or 'none such'}"
        )
    return spec.metric


@contextlib.contextmanager
def apart() -> Iterator[None]:
    """lm-eval without its log but for errors, with progress bars on a terminal alone, and with the random states of
    Python and NumPy as they were afterwards."""
    log = logging.getLogger("lm_eval")
    before, states = log.level, (random.getstate(), np.random.get_state())
    log.setLevel(logging.ERROR)
    try:
        with contextlib.nullcontext() if sys.stderr.isatty() else contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        log.setLevel(before)
        random.setstate(states[0])
        np.random.set_state(states[1])
