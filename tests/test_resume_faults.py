"""What may happen between a run's start and its resume: a violent end, changed data, another process, other clocks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from test_run import adapter, journal, results, same_tensors
from tiny import stopped_in, tiny_values

import retain.rundir
from retain import Learner
from retain.config import make_config
from retain.holder import HOLDER, hold, last_place, read_holder
from retain.run import evaluate, run
from retain.types import InputError

SOURCE = Path(retain.rundir.__file__).parent


def run_on(folder, accept_changed_data=False, **changes):
    config = make_config(
        tiny_values(folder, **changes) if changes or not (folder / "model").exists() else VALUES(folder), "t"
    )
    return run(config, folder, folder / "run", accept_changed_data=accept_changed_data)


def VALUES(folder):
    """The configuration of a folder whose files are left as they are."""
    return yaml.safe_load((folder / "values.yaml").read_text())


def begin(folder, monkeypatch, stage=2, **changes):
    """A run that is stopped in a stage; its configuration lies beside it."""
    values = tiny_values(folder, **changes)
    (folder / "values.yaml").write_text(yaml.safe_dump(values))
    with stopped_in(stage, monkeypatch):
        run(make_config(values, "t"), folder, folder / "run")
    return folder / "run"


def change(path: Path):
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:-1], lines[-1].replace('"input": "', '"input": "other ')]))


# ---- data -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "split"), [("color", "train"), ("size", "train"), ("shape", "train"), ("shape", "test")]
)
def test_changed_data_are_refused_before_anything_is_done(name, split, tmp_path, monkeypatch):
    """Data of a finished stage, of the one that was stopped, of one to come, and test samples of one to come."""
    out = begin(tmp_path, monkeypatch)
    change(tmp_path / f"{name}_{split}.jsonl")
    before = (out / "journal.jsonl").read_bytes()
    with pytest.raises(InputError, match=rf"other data than the run began with: {name} \({split}\).*--accept-changed"):
        run_on(tmp_path)
    assert (out / "journal.jsonl").read_bytes() == before


def test_changed_data_are_taken_when_told_and_the_journal_says_so(tmp_path, monkeypatch):
    out = begin(tmp_path, monkeypatch)
    change(tmp_path / "color_train.jsonl")
    change(tmp_path / "shape_test.jsonl")
    run_on(tmp_path, accept_changed_data=True)
    assert results(out)["finished"]
    assert [line["tasks"] for line in journal(out, "data_changed")] == [{"color": ["train"], "shape": ["test"]}]
    run_on(tmp_path, accept_changed_data=True)
    assert len(journal(out, "data_changed")) == 1, "they are the run's data now"


def test_changed_data_of_a_joint_run(tmp_path, monkeypatch):
    out = begin(tmp_path, monkeypatch, stage=1, strategy="joint")
    change(tmp_path / "size_train.jsonl")
    with pytest.raises(InputError, match=r"size \(train\)"):
        run_on(tmp_path)
    run_on(tmp_path, accept_changed_data=True)
    assert results(out)["finished"]


def test_a_learner_notices_changed_data_of_a_stage_that_was_stopped(tmp_path, monkeypatch):
    values = tiny_values(tmp_path)
    rows = [{"instruction": "Say", "input": str(k), "output": "yes"} for k in range(8)]
    options = {"training": {"max_length": 128}}
    with stopped_in(1, monkeypatch):
        Learner(values["model"], "mssr", tmp_path / "out", **options).learn(name="yes", train=rows, test=rows[:2])
    with pytest.raises(InputError, match=r"other data than the run began with: yes \(train\)"):
        Learner(values["model"], "mssr", tmp_path / "out", **options).learn(name="yes", train=rows[:6], test=rows[:2])


def test_what_evaluate_scores_on_other_test_samples_is_said(tmp_path, caplog):
    tiny = tiny_values(tmp_path)
    out = run(make_config(tiny, "t"), tmp_path, tmp_path / "run")
    change(tmp_path / "size_test.jsonl")
    caplog.clear()
    evaluate(out, 0)
    assert "size: its test samples are not those that the run was scored on" in caplog.text
    assert "color" not in caplog.text


def test_the_command_refuses_and_takes_an_option(tmp_path, monkeypatch):
    begin(tmp_path, monkeypatch)
    change(tmp_path / "color_test.jsonl")
    command = [sys.executable, "-m", "retain", "run", str(tmp_path / "values.yaml")]
    refused = subprocess.run(command, capture_output=True, text=True)
    assert refused.returncode == 2 and "color (test)" in refused.stderr and "Traceback" not in refused.stderr
    taken = subprocess.run([*command, "--accept-changed-data"], capture_output=True, text=True)
    assert taken.returncode == 0, taken.stderr


# ---- processes --------------------------------------------------------------------------------------------

HOLDING = """
import os, signal, sys
from pathlib import Path
from retain.holder import hold
lock, left = hold(Path(sys.argv[1]))
print(os.getpid(), flush=True)
sys.stdin.readline()
"""


def holding(folder):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDING, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    process.stdout.readline()
    return process


def test_the_second_process_says_who_holds_the_directory(tmp_path):
    first = holding(tmp_path)
    with pytest.raises(InputError, match=rf"in use by another process \({first.pid} on \S+, since 20\d\d-.*\); wait"):
        hold(tmp_path)
    first.communicate("\n")
    lock, left = hold(tmp_path)
    assert left is None and read_holder(tmp_path)["pid"] == os.getpid(), "a normal end leaves nothing"
    lock.release()


def test_a_lock_whose_process_is_dead_is_stale(tmp_path):
    first = holding(tmp_path)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    assert (tmp_path / ".lock").exists() and read_holder(tmp_path)["pid"] == first.pid
    lock, left = hold(tmp_path)
    assert left["pid"] == first.pid
    lock.release()


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"pid": "x"}', b"[" * 90_000, b"\xff\xfe", b'{"pid": 1e400}'])
def test_a_record_that_says_nothing_does_not_matter(content, tmp_path):
    (tmp_path / HOLDER).write_bytes(content)
    lock, left = hold(tmp_path)
    assert left is None
    lock.release()


def killed(folder, monkeypatch, **record):
    """A run that was stopped in stage 2, as if by SIGKILL in its third step."""
    out = begin(folder, monkeypatch)
    with open(out / "journal.jsonl", "a") as file:
        file.write(json.dumps({"kind": "step", "stage": 2, "task": "size", "step": 3, "global_step": 9}) + "\n{'torn")
    assert not (out / HOLDER).exists(), "the stopped run took its record back"
    with_this_machine = {"pid": 7, "host": os.uname().nodename, "since": "2026-01-01T00:00:00+00:00", "boot": None}
    (out / HOLDER).write_text(json.dumps(with_this_machine | record))
    return out


@pytest.mark.parametrize(
    ("same_boot", "expected"),
    [
        (True, "killer ended it (`dmesg` tells), lower training.micro_batch_size"),
        (False, "has been started again since"),
    ],
)
def test_a_run_that_was_killed_is_explained_on_resume(same_boot, expected, tmp_path, monkeypatch, caplog):
    boot = Path("/proc/sys/kernel/random/boot_id")
    if not boot.exists():
        pytest.skip("this system does not say when it was started")
    out = killed(tmp_path, monkeypatch, boot=boot.read_text().strip() if same_boot else "another")
    run_on(tmp_path)
    said = next(text for text in caplog.messages if "stopped without a word" in text)
    assert "process 7 on" in said and "at step 3 of stage 2" in said and expected in said
    [line] = journal(out, "stopped")
    assert (line["at"], line["holder"]["pid"]) == ({"stage": 2, "step": 3}, 7)
    assert results(out)["finished"] and not caplog.messages.count("torn")
    caplog.clear()
    run_on(tmp_path)
    assert "stopped without a word" not in caplog.text


def test_a_really_killed_run_is_explained(tmp_path):
    """SIGKILL from inside, in the second step of the second stage, as the memory killer does it."""
    values = tiny_values(tmp_path)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))
    program = """
import os, signal, sys
import retain.trainer
from retain.cli import main
real, count = retain.trainer.Optimization.step, 0
def step(self, *arguments):
    global count
    count += 1
    if count == 8: os.kill(os.getpid(), signal.SIGKILL)
    return real(self, *arguments)
if sys.argv.pop(1) == "kill": retain.trainer.Optimization.step = step
main()
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run([*command, "kill", "run", str(tmp_path / "run.yaml")], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL
    again = subprocess.run([*command, "", "run", str(tmp_path / "run.yaml")], capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "stopped without a word at step 1 of stage 2" in again.stderr
    assert not (tmp_path / "run" / HOLDER).exists()


def test_the_last_place_in_a_journal(tmp_path):
    path = tmp_path / "journal.jsonl"
    assert last_place(path) == {}
    step = '{"kind": "step", "stage": 1, "step": 4}\n'
    path.write_text(step + '{"kind": "probe"}\n{"torn')
    assert last_place(path) == {"stage": 1, "step": 4}
    path.write_text(step + '{"kind": "stage_end"}\n{"kind": "evaluation"}\n')
    assert last_place(path) == {}
    path.write_text(step + '{"kind": "end"}\n')
    assert last_place(path) is None
    path.write_text("x" * 200_000)
    assert last_place(path) == {}


def test_what_bounds_memory_may_change_on_resume(tmp_path, monkeypatch):
    out = begin(tmp_path, monkeypatch)
    values = VALUES(tmp_path)
    values["training"]["micro_batch_size"], values["evaluation"]["batch_size"] = 2, 3
    run(make_config(values, "t"), tmp_path, out)
    assert results(out)["finished"]
    values["training"]["batch_size"] = 8
    with pytest.raises(InputError, match=r"training\.batch_size: 4 -> 8"):
        run(make_config(values, "t"), tmp_path, out)


# ---- clocks -----------------------------------------------------------------------------------------------


def test_a_clock_that_runs_backwards_changes_nothing_but_the_times(tmp_path, monkeypatch):
    class Backwards(datetime):
        hours = 0

        @classmethod
        def now(cls, zone=None):
            cls.hours += 1
            return datetime(2026, 1, 1, tzinfo=UTC) - timedelta(hours=cls.hours)

    whole = run(make_config(tiny_values(tmp_path / "a"), "t"), tmp_path / "a", tmp_path / "a" / "run")
    monkeypatch.setattr(retain.rundir, "datetime", Backwards)
    monkeypatch.setattr("time.time", lambda: -1.0e9)
    begin(tmp_path / "b", monkeypatch)
    out = run_on(tmp_path / "b")
    assert same_tensors(adapter(out), adapter(whole)) and results(out)["matrices"] == results(whole)["matrices"]
    times = [json.loads(line)["time"] for line in (out / "journal.jsonl").read_text().splitlines()]
    assert times == sorted(times, reverse=True)
    assert min(line["seconds"] for line in journal(out, "step")) >= 0
    assert all(value >= 0 for value in results(out)["costs"].values())


def test_no_decision_and_no_duration_comes_from_the_wall_clock():
    """`time.time` is not used at all; dates only stand in journals, reviews and records."""
    dated = {"rundir.py", "reviews.py", "holder.py"}
    for path in SOURCE.rglob("*.py"):
        text = path.read_text()
        assert "time.time()" not in text, path
        assert "datetime.now" not in text or path.name in dated, path


# ---- torn lines -------------------------------------------------------------------------------------------


def test_every_reader_of_a_journal_passes_over_a_torn_line(tmp_path):
    values = {"training": {"learning_rate": 0.01, "batch_size": 4, "max_length": 128, "epochs": 2}}
    out = run(make_config(tiny_values(tmp_path, **values), "t"), tmp_path, tmp_path / "run")
    torn = '{"kind": "step", "task": "é'.encode()[:-1]
    commands = [["report"], ["evaluate", "--stage", "0"], ["calibrate"], ["fit"]]
    for name, *options in commands:
        with open(out / "journal.jsonl", "ab") as file:
            file.write(torn)
        done = subprocess.run(
            [sys.executable, "-m", "retain", name, str(out), *options], capture_output=True, text=True
        )
        assert "Traceback" not in done.stderr and "journal.jsonl" not in done.stderr, done.stderr
        assert done.returncode == 0 or (name in ("calibrate", "fit") and "forgotten" in done.stderr + done.stdout), (
            done.stderr
        )
        content = (out / "journal.jsonl").read_bytes()
        assert content.endswith(torn), f"{name} does not write here"
        (out / "journal.jsonl").write_bytes(content.removesuffix(torn))
