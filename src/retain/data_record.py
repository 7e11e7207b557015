"""Are the data still those that a run began with? Their hashes stand in one file of its directory."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

from retain.files import write_json
from retain.reading import read_json
from retain.rundir import DATA_FILE, RunDir
from retain.tasks.loading import SPLITS, fingerprint
from retain.types import InputError, Task

ACCEPTED = "changed"  # stands beside the hashes of a task some stages of which saw other data


def check_data(run: RunDir, tasks: Iterable[Task], accept: bool = False) -> set[str]:
    """Note the data of tasks that are new to a run, and compare those it knows; returns the tasks whose data changed,
    now or before, and were accepted.

    Changed samples, of training, validation or test, are an InputError, unless `accept`: then what is there now
    counts from here on, and the journal says so.
    """
    tasks, known = list(tasks), read_hashes(run.path)
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


def check_stage(run: RunDir, row: Path, task: Task, accepted: Collection[str]) -> None:
    """An InputError where a finished stage was trained on another task, or on data that changed unaccepted."""
    known = run.scores(row)
    changed = known["fingerprint"] != task.fingerprint and task.name not in accepted
    if known["task"] != task.name or changed:
        raise InputError(
            f"task {task.name!r}: {row} was trained on {known['task']!r} with other data; "
            "restore the data, or start anew in another directory with --out"
        )


def read_hashes(folder: Path) -> dict[str, dict[str, str]]:
    """The hash of each split by task; empty where none were noted. A file that is no such thing is an InputError."""
    try:
        found = read_json(folder / DATA_FILE)
    except FileNotFoundError:
        return {}
    if not isinstance(found, dict) or not all(isinstance(hashes, dict) for hashes in found.values()):
        raise InputError(f"{folder / DATA_FILE}: is not what a run wrote; restore it, or start anew with --out")
    return found


def changed_splits(before: dict[str, str], now: dict[str, str], splits: Iterable[str] = SPLITS) -> list[str]:
    """The splits whose samples are not those noted before; a task that was not noted has none."""
    return [split for split in splits if before and before.get(split) != now.get(split)]


def _hashes(task: Task) -> dict[str, str]:
    return {split: fingerprint(task, (split,)) for split in SPLITS if getattr(task, split)}
