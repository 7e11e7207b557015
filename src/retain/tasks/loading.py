"""Tasks of a configuration: sources -> checked samples, limits, splits and the metric."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from retain.config import Config
from retain.metrics import METRICS, metric_name
from retain.reading import parse_json, read_bytes
from retain.sections import TaskConfig
from retain.tasks.builtin import BUILTIN
from retain.tasks.files import Row, read_file, show, suggest
from retain.tasks.formats import check_template, detect, frame_of, parse
from retain.tasks.harness import load_harness_task
from retain.tasks.hub import is_hub_name, read_hub
from retain.types import IN_MEMORY, Frame, InputError, Sample, Task

BUILTIN_PREFIX = "builtin:"
BUILTIN_SIZES = {"train": 320, "validation": 64, "test": 100}
ID_PREFIXES = {"train": "", "validation": "validation/", "test": "test/"}
SPLITS = tuple(ID_PREFIXES)
SHOWN_PROBLEMS = 5
VALIDATION_SHARE = 0.05
VALIDATION_LEAST = 16

log = logging.getLogger("retain")


class Split(NamedTuple):
    """The samples of one source after its limit, their final answers by id, the number of skipped rows, and
    what the prompts have in common."""

    samples: list[Sample]
    finals: dict[str, str]
    skipped: int
    frame: Frame


def read_labels(path: Path) -> tuple[str, ...]:
    """The choices in a `labels.json`: a list of at least two different texts."""
    try:
        labels = parse_json(read_bytes(path).decode("utf-8-sig"))
    except ValueError as error:
        raise InputError(f"{path}: {error}; expected a list of texts") from None
    good = isinstance(labels, list) and all(isinstance(label, str) and label.strip() for label in labels)
    if not good or len(labels) < 2 or len(set(labels)) < len(labels):
        raise InputError(f"{path}: {show(labels)}; expected a list of at least two different texts")
    return tuple(labels)


def _read_builtin(name: str, split: str, count: int, seed: int) -> list[Row]:
    if name not in BUILTIN:
        raise InputError(f"no built-in task {show(name)}{suggest(name, list(BUILTIN))}; there are {', '.join(BUILTIN)}")
    rows = BUILTIN[name].generate(split, count, seed)
    return [Row(number, f"row {number + 1}", row) for number, row in enumerate(rows)]


def read_source(source: str, split: str, base: Path, count: int | None, seed: int) -> tuple[list[Row], tuple[str, ...]]:
    """The rows of a file, a built-in task or a Hub data set, and the labels that lie beside the file."""
    if source == IN_MEMORY:
        raise InputError("the rows were given in Python; this needs a file (Learner.learn takes rows again)")
    if source.startswith(BUILTIN_PREFIX):
        name = source.removeprefix(BUILTIN_PREFIX)
        return _read_builtin(name, split, count or BUILTIN_SIZES[split], seed), ()
    path = base / os.path.expanduser(source)
    if not os.path.exists(path) and is_hub_name(source):
        return read_hub(source, split), ()
    rows, labels = read_file(path), path.parent / "labels.json"
    return rows, read_labels(labels) if labels.is_file() else ()


def _explain(problems: list[str], source: str) -> str:
    more = len(problems) - SHOWN_PROBLEMS
    lines = [f"{source}, {problem}" for problem in problems[:SHOWN_PROBLEMS]]
    if more > 0:
        lines.append(f"{source}: {more} more invalid rows")
    lines[-1] += " (correct the rows, or set on_invalid: skip to leave them out)"
    return "\n".join(lines)


def _first_form(rows: list[Row], source: str):
    first = next((row.value for row in rows if isinstance(row.value, dict)), None)
    if first is None:
        problem = rows[0].problem or f"found {show(rows[0].value)}; a row must be an object with named fields"
        raise InputError(f"{source}, {rows[0].place}: {problem}")
    try:
        return detect(first)
    except ValueError as error:
        hint = "; the first line of a CSV file names the columns" if source.lower().endswith(".csv") else ""
        raise InputError(f"{source}: {error}{hint}") from None


def load_split(task: TaskConfig, split: str, config: Config, base: Path) -> Split:
    """One source of a task: its valid rows in the order of a shuffle by `data_seed`, cut to the limit."""
    source, limit = getattr(task, split), getattr(task, f"max_{split}")
    template, on_invalid = task.template or config.template, task.on_invalid or config.on_invalid
    rows, labels = read_source(source, split, base, limit, config.data_seed)
    form = _first_form(rows, source)
    samples, valid, finals, problems = [], [], {}, []
    for row in rows:
        identity = f"{task.name}/{ID_PREFIXES[split]}{row.number}"
        try:
            if row.problem:
                raise ValueError(row.problem)
            fields, final = parse(row.value, form, template, labels)
        except ValueError as error:
            problems.append(f"{row.place}: {error}")
            continue
        samples.append(Sample(id=identity, task=task.name, **fields))
        valid.append(row.value)
        if final:
            finals[identity] = final
    if problems and (on_invalid == "error" or not samples):
        raise InputError(_explain(problems, source))
    order = np.random.default_rng(config.data_seed).permutation(len(samples))[:limit]
    return Split([samples[index] for index in order], finals, len(problems), frame_of(valid, form, template))


def automatic_metric(samples: list[Sample], finals: dict[str, str]) -> str:
    """The metric that fits what most samples look like."""

    def mostly(flags: Iterable[bool]) -> bool:
        return sum(flags) > len(samples) / 2

    if mostly(bool(sample.choices) for sample in samples):
        return "exact_match"
    if mostly(s.id in finals or "####" in s.answer or "\\boxed{" in s.answer for s in samples):
        return "final_answer"
    if mostly(bool(sample.references) for sample in samples):
        return "squad_f1"
    words = sum(len(sample.answer.split()) for sample in samples) / len(samples)
    return "rouge_l" if words > 3 else "exact_match"


def hold_out(train: list[Sample], seed: int) -> tuple[list[Sample], list[Sample]]:
    """Split 5 %, at least 16, off the training samples (App. C); both parts keep their order."""
    count = max(VALIDATION_LEAST, int(np.floor(VALIDATION_SHARE * len(train) + 0.5 + 1e-9)))
    if count >= len(train):
        raise InputError(
            f"train: {len(train)} samples are too few to split {count} off for validation; "
            "give a validation file or more training samples"
        )
    chosen = set(np.random.default_rng(seed).permutation(len(train))[:count].tolist())
    kept = [sample for index, sample in enumerate(train) if index not in chosen]
    return kept, [sample for index, sample in enumerate(train) if index in chosen]


def fingerprint(task: Task, splits: Iterable[str] = SPLITS) -> str:
    """SHA-256 over every sample used, in order."""
    digest = hashlib.sha256()
    for split in splits:
        for s in getattr(task, split):
            fields = (split, s.id, s.prompt, s.answer, s.choices, s.references, s.messages)
            digest.update(json.dumps(fields).encode() + b"\n")
    return digest.hexdigest()


def _warn_of_leaks(task: Task) -> None:
    def question(sample: Sample) -> tuple:
        return sample.prompt, sample.messages[:-1]

    seen = {question(sample) for sample in task.train}
    leaked = sum(question(sample) in seen for sample in task.test)
    if leaked:
        log.warning("task %s: %d of %d test samples are also in train", task.name, leaked, len(task.test))


def _check(task: TaskConfig, config: Config, needs_test: bool) -> list[str]:
    """What is wrong with a task's own fields, before any file is read."""
    problems = []
    try:
        check_template(task.template or config.template)
    except InputError as error:
        problems.append(str(error))
    try:
        known = task.metric is None or metric_name(task.metric) in METRICS
    except InputError as error:
        known = problems.append(f"metric: {error}") or True
    if not known:
        near, names = suggest(task.metric, list(METRICS)), ", ".join(METRICS)
        problems.append(f"metric: unknown metric {show(task.metric)}{near}; there are {names}, and import paths")
    if not (task.train or task.test):
        problems.append("neither train nor test; name a file, builtin:NAME or a Hub name")
    elif needs_test and not task.test:
        problems.append("train without test, so nothing could be scored; add test: a file or a split (owner/name:test)")
    return problems


def _description(task: TaskConfig) -> str:
    """The user's, or that of the built-in task."""
    name = (task.train or task.test or "").removeprefix(BUILTIN_PREFIX)
    return task.description or (BUILTIN[name].description if name in BUILTIN else "")


def _load_splits(task: TaskConfig, config: Config, base: Path) -> tuple[dict[str, Split], list[str]]:
    """The sources of a task that can be read, and what is wrong with the others."""
    splits, problems = {}, []
    for name in filter(lambda name: getattr(task, name), ID_PREFIXES):
        try:
            splits[name] = load_split(task, name, config, base)
        except InputError as error:
            problems += [f"{name}: {line}" for line in str(error).splitlines()]
    return splits, problems


def load_task(
    task: TaskConfig, config: Config, base: Path, split_validation: bool = False, needs_test: bool = True
) -> Task:
    """One task with all its samples; every problem of it in one `InputError`, one line each."""
    if task.lm_eval:
        return load_harness_task(task, config, Path(base))
    splits, problems = _load_splits(task, config, Path(base))
    problems = _check(task, config, needs_test) + problems
    loaded = Task(task.name, description=_description(task), skipped=sum(s.skipped for s in splits.values()))
    for name, split in splits.items():
        setattr(loaded, name, split.samples)
    if "train" in splits:
        loaded.frame = splits["train"].frame
    if not problems and split_validation and loaded.train and not loaded.validation:
        try:
            loaded.train, loaded.validation = hold_out(loaded.train, config.data_seed)
        except InputError as error:
            problems.append(str(error))
    if problems:
        raise InputError("\n".join(f"task {show(task.name)}: {problem}" for problem in problems))
    finals = {identity: final for split in splits.values() for identity, final in split.finals.items()}
    loaded.metric = task.metric or automatic_metric(loaded.test or loaded.train, finals)
    if loaded.metric == "final_answer":
        _use_finals(loaded, finals)
    loaded.fingerprint = fingerprint(loaded)
    _warn_of_leaks(loaded)
    return loaded


def _use_finals(task: Task, finals: dict[str, str]) -> None:
    """Score against the column `answer` where there is one."""
    for split in ID_PREFIXES:
        samples = getattr(task, split)
        setattr(task, split, [replace(s, references=(finals[s.id],)) if s.id in finals else s for s in samples])


def load_tasks(config: Config, base: Path, split_validation: bool = False) -> list[Task]:
    """All tasks of a configuration; the problems of all of them in one `InputError`."""
    problems, tasks, seen = [], [], {}
    for number, task in enumerate(config.tasks, 1):
        first = seen.setdefault(task.name.lower(), number)
        if first != number:
            problems.append(f"task {show(task.name)}: name: task {first} has it already; names must differ")
        try:
            tasks.append(load_task(task, config, base, split_validation))
        except InputError as error:
            problems.append(str(error))
    if problems:
        raise InputError("\n".join(problems))
    return tasks
