"""A few kills in every run of the tests; `make crash` is a hundred."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from crash.same import differences

ROOT = Path(__file__).parents[2]


def test_runs_that_are_killed_end_as_those_that_are_not():
    command = [sys.executable, "-m", "tests.crash", "--kills", "4", "--seed", "7"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    kills, resumes, runs, different = map(int, done.stdout.splitlines()[-1].split()[1:5])
    assert kills == resumes >= 4 and runs >= 4 and different == 0


def write(folder, **changes):
    files = {
        "journal.jsonl": '{"kind": "step", "time": "1", "loss": 0.5}\n',
        "results.json": json.dumps({"costs": {"seconds": 1.0, "tokens": 7}}),
        "a/adapter.safetensors": "weights",
    } | changes
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_differences_are_found_and_times_are_none(tmp_path):
    one = write(tmp_path / "one")
    resumed = '{"kind": "resume"}\n{"kind": "step", "time": "2", "loss": 0.5}\n'
    costs = json.dumps({"costs": {"seconds": 2.0, "tokens": 7}})
    assert differences(one, write(tmp_path / "two", **{"journal.jsonl": resumed, "results.json": costs})) == []
    twice = '{"kind": "step", "loss": 0.5}\n' * 2
    assert differences(one, write(tmp_path / "three", **{"journal.jsonl": twice}))[0].startswith(
        "journal.jsonl: 1 and 2 rows, from 1 on"
    )
    changed = {"a/adapter.safetensors": "weighs", "a/left.tmp": "", "results.json": costs.replace("7", "8")}
    assert differences(one, write(tmp_path / "four", **changed)) == [
        "a/adapter.safetensors: differs",
        "a/left.tmp: only in the second",
        "results.json: differs",
    ]
