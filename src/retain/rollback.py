"""Back to how a run stood after an earlier stage, so that training can go on from there."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from retain.config import Config, load_config
from retain.data_record import take_back
from retain.files import cut_lines, write_text
from retain.presets import preset_of
from retain.reviews import REVIEWS, read_reviews
from retain.rundir import TRACKED, RunDir
from retain.store import read_lines, synthetic_file
from retain.trace import FILES, merge_traces
from retain.types import InputError

ROLLED_BACK = "rolled-back"
DERIVED = ("report.html", "calibration.html", "calibration.json", "probes")  # made of the whole run


@dataclass(frozen=True, slots=True)
class RolledBack:
    """stage: the number it went back to; gone: the folders of the stages after it, in order; kept_in: where they lie
    now, None where they were deleted; unfinished: whether parts of a stage that had not finished went with them;
    tasks: those of the configuration that need not be learned any more."""

    stage: int
    gone: tuple[str, ...]
    kept_in: Path | None
    unfinished: bool
    tasks: tuple[str, ...]


def rollback(path: Path, to: str, delete: bool = False) -> RolledBack:
    """Bring a run's directory to the state right after stage `to` (its number, 0 for none, or its task's name).

    Adapter, strategy state and cards lie in the stage's own folder, and the buffer with its memory too, but for the
    newest one (`RunDir.settle`); so what comes after is moved to rolled-back/N, or deleted, and what is made
    of all stages is made anew. The configuration still lists the tasks after it, and a run by it learns them again; but
    they bind no longer: another task may come next. Raises InputError for a stage that is not finished, or whose buffer
    is gone.
    """
    run_dir = RunDir(path)
    config = load_config(run_dir.config_file, need_tasks=False)
    run_dir.lock()
    run_dir.settle()
    rows = run_dir.rows()
    stage = find_stage(run_dir, to)
    if stage < len(rows) - 1 and (stage or config.written_seed) and not (rows[stage] / "buffer").is_dir():
        raise InputError(
            f"--to: {rows[stage].name} has no buffer of its own any more (buffer.history: "
            f"{str(config.buffer.history).lower()}), so training could not go on from there; start anew with --out"
        )
    gone = tuple(row.name for row in rows[stage + 1 :])
    trash = _trash(path)
    shutil.copyfile(path / "journal.jsonl", trash / "journal.jsonl")
    unfinished = _move_stages(run_dir, rows[: stage + 1], trash)
    run_dir.settle()
    if gone:
        for name in ("results.json", *DERIVED, *FILES):
            _move(path / name, trash / name)
        _write_derived(run_dir, config, trash)
    if delete or not (gone or unfinished):
        shutil.rmtree(trash)
        if not any(trash.parent.iterdir()):
            trash.parent.rmdir()
    kept_in = None if delete or not trash.exists() else trash
    cut_lines(path / TRACKED, lambda line: line.get("row", 0) > stage)  # what is trained anew is told anew
    tasks = _unlearned(run_dir, config)
    take_back(run_dir, tasks)
    run_dir.log("rollback", stage=stage, gone=list(gone), unfinished=unfinished, tasks=tasks,
                kept_in=kept_in and kept_in.relative_to(path).as_posix())  # fmt: skip
    return RolledBack(stage, gone, kept_in, unfinished, tuple(tasks))


def _unlearned(run_dir: RunDir, config: Config) -> list[str]:
    """The tasks of a configuration that no stage learned."""
    learned = run_dir.learned()
    if preset_of(config.strategy).joint and learned:
        return []
    return [task.name for task in config.tasks if task.train and task.name not in learned]


def find_stage(run_dir: RunDir, name: str) -> int:
    """The number of a finished stage, given as such or by its task. Raises InputError."""
    rows = run_dir.rows()
    if not rows:
        raise InputError(f"{run_dir.path}: nothing is finished yet")
    tasks = {run_dir.scores(row)["task"]: number for number, row in enumerate(rows) if number}
    if name in tasks:
        return tasks[name]
    if name.isdecimal() and int(name) < len(rows):
        return int(name)
    known = "".join(f", {number} or {task}" for task, number in tasks.items())
    raise InputError(
        f"--to: {name!r} is not a finished stage of {run_dir.path}; there are 0 (the untouched model){known}"
    )


def _trash(path: Path) -> Path:
    folder = path / ROLLED_BACK
    folder.mkdir(exist_ok=True)
    number = 1 + max((int(old.name) for old in folder.iterdir() if old.name.isdecimal()), default=0)
    (folder / str(number) / "stages").mkdir(parents=True)
    return folder / str(number)


def _move_stages(run_dir: RunDir, kept: list[Path], trash: Path) -> bool:
    """Move all but the kept rows away, the last first, so that a crash leaves a run that is whole; True where some of
    it was a stage that had not finished."""
    rows = run_dir.rows()
    others = [part for part in run_dir.stages.iterdir() if part not in rows]
    others += run_dir.path.glob("checkpoint*")
    for part in others:
        _move(part, trash / part.relative_to(run_dir.path))
    if len(kept) < len(rows):
        _move(run_dir.buffer, rows[-1] / "buffer")  # so that the last row is whole, wherever it lies
    for row in reversed(rows[len(kept) :]):
        _move(row, trash / "stages" / row.name)
    return bool(others)


def _move(source: Path, target: Path) -> None:
    if source.exists():
        os.replace(source, target)


def _write_derived(run_dir: RunDir, config: Config, trash: Path) -> None:
    """Traces, results and reviews of the stages that are left."""
    rows = run_dir.rows()
    if len(rows) > 1:
        merge_traces(rows, run_dir.path)
    old = trash / "results.json"
    if old.exists():
        known = json.loads(old.read_text(encoding="utf-8"))
        run_dir.write_results(config, known["skipped"], known["versions"])
    _keep_reviews(run_dir, trash)


def _keep_reviews(run_dir: RunDir, trash: Path) -> None:
    """Only reviews of samples that are still there: the stages to come write others under the same ids."""
    path = run_dir.path / REVIEWS
    if not path.exists():
        return
    shutil.copyfile(path, trash / REVIEWS)
    files = filter(None, map(synthetic_file, run_dir.rows()))
    known = {row["id"] for file in files for row in read_lines(file, ("id",))}
    read_reviews(run_dir.path)  # a broken file is an InputError
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    write_text(path, "".join(line for line in lines if line.strip() and json.loads(line)["id"] in known))
