"""Are data and code of the user's own still those that a run began with? Hashes in its directory tell."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from retain.config import Config
from retain.extending import code_of, is_import_path
from retain.files import write_json
from retain.presets import preset_of
from retain.report.journal import read_journal
from retain.rundir import DATA_FILE, TAKEN_BACK, RunDir, read_hashes
from retain.tasks.loading import SPLITS, fingerprint
from retain.types import InputError, Task

log = logging.getLogger("retain")
ACCEPTED = "changed"  # stands beside the hashes of a task some stages of which saw other data
HARNESS = "lm_eval"
ALL = (*SPLITS, HARNESS)


def check_data(run: RunDir, tasks: Iterable[Task], accept: bool = False) -> set[str]:
    """Note the data of tasks that are new to a run, and compare those it knows; returns the tasks whose data changed,
    now or before, and were accepted.

    Changed samples, of training, validation or test, are an InputError, unless `accept`: then what is there now
    counts from here on, and the journal says so. A task that a rollback took back may come again with any data.
    """
    tasks = list(tasks)
    known = _welcome_again(run, tasks, read_hashes(run.path))
    now = {task.name: _hashes(task) for task in tasks}
    changed = {name: changes for name in now if (changes := changed_splits(known.get(name, {}), now[name]))}
    if changed and not accept:
        what = "; ".join(f"{name} ({', '.join(splits)})" for name, splits in changed.items())
        raise InputError(
            f"{run.path}: other data than the run began with: {what}. Restore the files, start anew in another "
            "directory with --out, or go on with what is there now by --accept-changed-data"
        )
    if changed:
        run.log("data_changed", tasks=changed)
    accepted = {name for name in now if name in changed or ACCEPTED in known.get(name, {})}
    now |= {name: now[name] | {ACCEPTED: "by --accept-changed-data"} for name in accepted}
    if any(known.get(name) != hashes for name, hashes in now.items()):
        write_json(run.path / DATA_FILE, known | now)
    return accepted


def _welcome_again(run: RunDir, tasks: Iterable[Task], known: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    """What is known of the data, without tasks that come again after a rollback; the scores that finished rows have of
    them are forgotten unless test data and metric are those of before."""
    again = [task for task in tasks if TAKEN_BACK in known.get(task.name, {})]
    base = run.scores(run.rows()[0])["scores"] if again and run.rows() else {}
    run.forget_scores(
        [
            task.name
            for task in again
            if changed_splits(known[task.name], _hashes(task), ("test",))
            or base.get(task.name, {}).get("metric") != task.metric
        ]
    )
    return {name: hashes for name, hashes in known.items() if name not in [task.name for task in again]}


def take_back(run: RunDir, tasks: Iterable[str]) -> None:
    """Note that these tasks need not be learned any more, whatever the run's configuration lists."""
    known = read_hashes(run.path)
    marked = {name: known.get(name, {}) | {TAKEN_BACK: "by retain rollback"} for name in tasks}
    if marked:
        write_json(run.path / DATA_FILE, known | marked)


def forget_task(run: RunDir, task: str) -> None:
    """Take out what a run that was rolled back knows of a task's data and scores."""
    known = read_hashes(run.path)
    if TAKEN_BACK in known.pop(task, {}):
        run.forget_scores([task])
        write_json(run.path / DATA_FILE, known)


def check_stage(run: RunDir, row: Path, task: Task, accepted: Collection[str]) -> None:
    """An InputError where a finished stage was trained on another task, or on data that changed unaccepted."""
    known = run.scores(row)
    changed = known["fingerprint"] != task.fingerprint and task.name not in accepted
    if known["task"] != task.name or changed:
        raise InputError(
            f"task {task.name!r}: {row} was trained on {known['task']!r} with other data; "
            "restore the data, or start anew in another directory with --out"
        )


def own_code(config: Config) -> dict[str, dict[str, str | None]]:
    """The version and source hash of each strategy and metric of the user's own, by import path."""
    names = [*(name for name, _ in preset_of(config.strategy).regularizers), *(task.metric for task in config.tasks)]
    return {name: code_of(name) for name in dict.fromkeys(names) if is_import_path(name)}


def check_code(run: RunDir, config: Config) -> None:
    """Note the code of the user's own that a run takes, and warn where it is not what the run noted last."""
    now = own_code(config)
    if not now:
        return
    before: dict[str, Any] = {}
    for line in read_journal(run.journal):
        before |= line["parts"] if line["kind"] == "code" and isinstance(line.get("parts"), dict) else {}
    changed = [name for name in now if name in before and before[name] != now[name]]
    if changed:
        log.warning("%s: the code of %s changed since the run began; what is finished was made by the old one",
                    run.path, ", ".join(changed))  # fmt: skip
    if now != {name: before.get(name) for name in now}:
        run.log("code", parts=now, changed=changed)


def changed_splits(before: dict[str, str], now: dict[str, str], splits: Iterable[str] = ALL) -> list[str]:
    """The splits whose samples are not those noted before; a task that was not noted has none."""
    return [split for split in splits if before and before.get(split) != now.get(split)]


def _hashes(task: Task) -> dict[str, str]:
    if task.harness:
        return {HARNESS: task.fingerprint}
    return {split: fingerprint(task, (split,)) for split in SPLITS if getattr(task, split)}
