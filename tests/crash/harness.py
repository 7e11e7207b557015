"""Start runs of the tiny model in child processes, kill them, resume them, and compare their ends.

Children are forked from a process that has imported everything and computed nothing, so a start takes no time.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ranks import end, start
from tiny import terse, tiny_llama, tiny_values, write_tasks

import retain.run  # noqa: F401 - imported here, so that children need not
from crash.same import differences

TRAINING = {"learning_rate": 1.0e-2, "batch_size": 4, "max_length": 128, "epochs": 2}
SYNTHESIS = {"samples": 6, "max_input_tokens": 12, "max_output_tokens": 6, "max_attempts": 4}
SCENARIOS = {
    "mssr": {"strategy": "mssr"},
    "ssr": {
        "strategy": "ssr",
        "synthesis": SYNTHESIS,
        "filters": {"heuristics": False, "perplexity": None, "consistency": None},
        "storage": {"mode": "cached", "cache_size": 4},
    },
    "ewc + fixed": {"strategy": "ewc + fixed"},
    "gem": {"strategy": "gem"},
    "mssr on 2 processes": {"strategy": "mssr"},
}
PROCESSES = {"mssr on 2 processes": 2}
FILE_EVENTS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.truncate"}
MOST_KILLS = 4  # of one run


@dataclass
class Count:
    """What happened: kills, starts after a kill, runs that reached their end, and how these differ from the others."""

    kills: int = 0
    resumes: int = 0
    runs: int = 0
    differences: int = 0


def prepare(folder: Path, name: str) -> dict:
    """The files of a scenario; returns its configuration as plain values."""
    values = tiny_values(folder, **SCENARIOS[name], training=TRAINING, checkpoint={"every": 2})
    values["tasks"] = write_tasks(folder, train=16, test=4)
    if name == "ssr":
        terse(tiny_llama()).save_pretrained(folder / "model")
        for task in values["tasks"]:
            task["description"] = "Say which of two words fits the letters of the line that is given."
    return values


def begin(values: dict, folder: Path, out: Path, size: int, kill_at: int = 0) -> list[int]:
    """Run a scenario in forked children; returns their process ids.

    kill_at: number 0 kills itself before the so many-th operation on a file of its own. The last line of the file
    `count` beside the directory says how many there were.
    """

    def prepare(rank: int) -> None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
        if rank:
            sys.stdout = sys.stderr
        else:
            _watch_files(out, kill_at)

    return start(values, folder, out, size, prepare=prepare)


def _watch_files(out: Path, kill_at: int) -> None:
    seen, counter = 0, os.open(out.with_suffix(".count"), os.O_CREAT | os.O_WRONLY | os.O_TRUNC)

    def hook(event: str, arguments: tuple) -> None:
        nonlocal seen
        if event in FILE_EVENTS and str(out) in str(arguments[0]):
            seen += 1
            if seen == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            os.pwrite(counter, f"{seen:9d}\n".encode(), 0)

    sys.addaudithook(hook)


def torture(folder: Path, name: str, seed: int, say: Callable[[str], None]) -> Iterator[Count]:
    """Runs of a scenario that are killed up to four times each and then reach their end; yields the count so far.

    Half of the kills come after a random time, half before a random operation on a file. Raises AssertionError where
    a run fails by itself.
    """
    chance, count = random.Random(f"{seed} {name}"), Count()
    values, whole, out = prepare(folder, name), folder / "whole", folder / "killed"
    began, size = time.monotonic(), PROCESSES.get(name, 1)
    assert end(begin(values, folder, whole, size)) == 0, f"{name}: the run that nobody kills failed"
    took, operations = time.monotonic() - began, int(whole.with_suffix(".count").read_text())
    while True:
        shutil.rmtree(out, ignore_errors=True)
        kills, left = 0, 1.0
        start_again = partial(begin, values, folder, out, size)
        while code := _attempt(start_again, chance, left * took, int(left * operations), kills < MOST_KILLS):
            assert code == -signal.SIGKILL, f"{name}: exit code {code}"
            kills, left = kills + 1, max(0.7 * left, 0.2)
        found = differences(whole, out)
        count = Count(count.kills + kills, count.resumes + kills, count.runs + 1, count.differences + bool(found))
        say(f"{name}: killed {kills} times, {'same end' if not found else '; '.join(found)}")
        yield count


def _attempt(begin: Callable[[int], list[int]], chance: random.Random, took: float, operations: int, kill: bool) -> int:
    """One start of a run, one process of which is killed if it does not end before; returns its exit code."""
    by_time = chance.random() < 0.5
    moment, operation = chance.uniform(0, took), chance.randint(1, operations)
    children = begin(operation if kill and not by_time else 0)
    if kill and by_time:
        time.sleep(moment)
        os.kill(chance.choice(children), signal.SIGKILL)  # one that has ended waits as a zombie, so it is no other
    return end(children)
