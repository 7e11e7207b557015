"""Run the cells of a comparison: one process each, sharing what is the same, each finished one kept as JSON."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import takewhile
from pathlib import Path
from typing import Any

from retain.cells import cell_changes, cell_path, collect_cell, data_changes, finished_cells, read_cell, write_cell
from retain.comparison import Cell, Comparison, load_data
from retain.config import diff_config, load_config
from retain.relocation import relocate
from retain.run import run
from retain.rundir import RunDir
from retain.sharing import SharedRows, base_row_key, first_stage_key
from retain.tasks import load_tasks
from retain.types import InputError

log = logging.getLogger("retain")
THREADS = "OMP_NUM_THREADS"

Commands = Sequence[tuple[str, list[str]]]
Engine = Callable[[Commands, Path, int], Iterator[tuple[str, int]]]


def run_cell(comparison: Comparison, cell: Cell, keep_run: bool = False, share: bool = True) -> Path:
    """Run one cell to its end, or go on with it, and write its JSON; returns that file. A finished one stays.

    share: take rows that another cell has finished already, and leave one's own for others.
    """
    path = cell_path(comparison, cell.label)
    tasks = load_tasks(cell.config, comparison.base, cell.config.needs_validation)
    data = {task.name: task.fingerprint for task in tasks}
    if path.is_file():
        content = read_cell(path)
        if changes := cell_changes(cell, content) or [f"data of {name}" for name in data_changes(content, data)]:
            raise InputError(f"{path}: run with other settings ({'; '.join(changes[:5])}); use --rerun to run it again")
        return path
    shared = SharedRows(comparison.out / "shared")
    keys = [base_row_key(cell.config, tasks), first_stage_key(cell.config, tasks)] if share else [None, None]
    start = list(takewhile(bool, map(shared.find, keys)))  # a stage stands on the row before it

    def publish(finished: RunDir) -> None:
        rows = finished.rows()
        if len(rows) == 2:
            shared.publish(keys[0], rows[0])
            shared.publish(keys[1], rows[1], finished.buffer)

    folder = comparison.out / "runs" / cell.label
    run(cell.config, comparison.base, folder, start, publish)
    adopted = [row.name for row in start] if _adopted(folder) else []
    write_cell(path, collect_cell(cell, folder, data, adopted))
    if not keep_run:
        shutil.rmtree(folder)
    return path


def run_all(
    comparison: Comparison,
    jobs: int = 1,
    keep_runs: bool = False,
    rerun: bool = False,
    options: Sequence[str] = (),
    engine: Engine | None = None,
) -> list[str]:
    """Run every cell that is not finished, each in a process of its own; returns the labels of those that failed.

    options: what each process is called with beside the file and its label. engine: what starts the processes.
    """
    if rerun:
        drop_changed(comparison)
    done = finished_cells(comparison)
    check_data(comparison, done)
    left = [cell for cell in comparison.cells if cell.label not in done]
    left.sort(key=lambda cell: comparison.file.seeds.index(cell.seed))  # if time runs out, every row has a seed
    log.info("%s: %d cells, %d finished, %d to run", comparison.path, len(comparison.cells), len(done), len(left))
    keep = ["--keep-runs"] if keep_runs else []
    call = [sys.executable, "-m", "retain", "compare", str(comparison.path.absolute()), *options, *keep, "--cell"]
    commands = [(cell.label, [*call, cell.label]) for cell in left]
    failed, started = [], time.monotonic()
    for number, (label, code) in enumerate((engine or local)(commands, comparison.out / "logs", jobs), start=1):
        spent = time.monotonic() - started
        rest = spent / number * (len(left) - number)
        state = "finished" if code == 0 else f"failed (exit {code}): see {comparison.out / 'logs' / f'{label}.log'}"
        log.info("[%d/%d] %s %s; about %.0f min left", number, len(left), label, state, rest / 60)
        failed += [label] if code else []
    return failed


def local(commands: Commands, logs: Path, jobs: int) -> Iterator[tuple[str, int]]:
    """Run commands on this machine, `jobs` at a time with the cores shared out; yields label and exit code."""
    logs.mkdir(parents=True, exist_ok=True)
    cores = int(os.environ.get(THREADS) or len(os.sched_getaffinity(0)))
    environment = os.environ | {THREADS: str(max(1, cores // jobs))}
    running: set[subprocess.Popen] = set()

    def call(label: str, command: list[str]) -> tuple[str, int]:
        with open(logs / f"{label}.log", "ab") as file:
            process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
            running.add(process)
            code = process.wait()
            running.discard(process)
            return label, code

    with ThreadPoolExecutor(jobs) as pool:
        waiting = [pool.submit(call, label, command) for label, command in commands]
        try:
            for one in as_completed(waiting):
                yield one.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(running):
                process.terminate()
            raise


def check_data(comparison: Comparison, done: Mapping[str, Any]) -> None:
    """An InputError where a finished cell was run on other samples than the data hold now."""
    for label, tasks in load_data(comparison).items():
        changed = data_changes(done[label], {task.name: task.fingerprint for task in tasks}) if label in done else []
        if changed:
            path = cell_path(comparison, label)
            raise InputError(f"{path}: run on other data of {', '.join(changed)}; restore them, or delete the file")


def drop_changed(comparison: Comparison) -> None:
    """Remove the JSON and the run of each cell that was run, or begun, with other settings."""
    for cell in comparison.cells:
        path, folder = cell_path(comparison, cell.label), comparison.out / "runs" / cell.label
        begun = folder / "config.yaml"
        if path.is_file():
            changed = bool(cell_changes(cell, read_cell(path)))
        else:
            own = relocate(cell.config, comparison.base, folder)
            changed = begun.is_file() and bool(diff_config(load_config(begun), own))
        if changed:
            log.info("%s: run with other settings; it is run again", cell.label)
            path.unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)


def _adopted(folder: Path) -> bool:
    return b'"adopted"' in (folder / "journal.jsonl").read_bytes()
