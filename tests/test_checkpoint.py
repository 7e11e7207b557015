"""Checkpoints: what is saved and found again, what a broken one, a full disk and a signal do, and what is not done
twice."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import threading
import time

import pytest
import torch
import typer
from crash.same import differences
from test_compare import without_times
from test_compare import write as write_comparison
from test_run import journal, run_tiny
from tiny import save_tiny_model, stopped_after, terse, tiny_llama, tiny_values, write_tasks

import retain.checkpoint
import retain.cli_guard
import retain.learner
import retain.stages
from retain.cells import read_cell
from retain.checkpoint import SEAL, Checkpoints, read_state, write_state
from retain.cli_guard import guarded
from retain.compare import run_cell
from retain.comparison import load_comparison
from retain.config import make_config
from retain.interrupts import Stopped, deferred, stop
from retain.progress import StageProgress
from retain.run import run
from retain.sealed import read_sealed, write_sealed
from retain.sections import CheckpointConfig
from retain.synthesis.writer import Writer
from retain.trainer import Optimization
from retain.types import InputError

STATE = {
    "one": {"number": 0.1 + 0.2, "none": None, "list": [1, "two"], "deep": {"t": torch.arange(3)}},
    "two": {"half": torch.ones(2, 2, dtype=torch.bfloat16) / 3, "step": torch.tensor(7.0)},
    "empty": {},
}


# ---- one folder -----------------------------------------------------------------------------------------


def saved(folder, steps=(2, 4), **config):
    """Checkpoints after these steps, each with its step as its state."""
    checkpoints = Checkpoints(folder, CheckpointConfig(**config))
    for step in steps:
        checkpoints.save(step, lambda to, step=step: write_state(to, {"part": {"step": step, "t": torch.ones(9)}}))
    return checkpoints


def test_a_state_is_read_back_to_the_last_bit(tmp_path):
    write_state(tmp_path, STATE)
    found = read_state(tmp_path)
    pairs = [(STATE["one"]["deep"].pop("t"), found["one"]["deep"].pop("t"))]
    pairs += [(STATE["two"].pop(name), found["two"].pop(name)) for name in ("half", "step")]
    assert found == STATE
    assert all(one.dtype == other.dtype and torch.equal(one, other) for one, other in pairs)


def test_the_last_ones_are_kept_and_the_newest_is_found(tmp_path):
    assert saved(tmp_path / "none", steps=()).newest() is None
    found = saved(tmp_path, (1, 2, 10), keep=2).newest()
    assert sorted(path.name for path in tmp_path.glob("[0-9]*")) == ["00000002", "00000010"]
    assert found.step == found.state["part"]["step"] == 10


def damage_byte(folder):
    path = folder / "state.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "bit flipped": damage_byte,
    "truncated": lambda folder: os.truncate(folder / "state.safetensors", 50),
    "empty": lambda folder: os.truncate(folder / "state.json", 0),
    "file missing": lambda folder: (folder / "state.json").unlink(),
    "file added": lambda folder: (folder / "more.json").write_text("{}"),
    "seal missing": lambda folder: (folder / SEAL).unlink(),
    "seal half-written": lambda folder: os.truncate(folder / SEAL, 90),
    "seal of another": lambda folder: shutil.copy(folder.parent / "00000002" / SEAL, folder),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_broken_one_is_told_and_the_one_before_it_used(damage, tmp_path, caplog):
    checkpoints = saved(tmp_path)
    damage(tmp_path / "00000004")
    assert checkpoints.newest().step == 2 and checkpoints.broken == ["00000004"]
    assert f"{tmp_path / '00000004'}: broken" in caplog.text and not (tmp_path / "00000004").exists()
    damage_byte(tmp_path / "00000002")
    assert checkpoints.newest() is None


def test_when_one_is_due(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    every, minutes, off = (
        Checkpoints(tmp_path, CheckpointConfig(**config))
        for config in ({"every": 3, "minutes": None}, {"minutes": 2.0}, {"minutes": None})
    )
    assert [step for step in range(1, 8) if every.due(step)] == [3, 6]
    assert not minutes.due(1) and not off.due(1)
    now[0] += 120.0
    assert minutes.due(2) and not off.due(2)
    minutes.save(2, lambda folder: None)
    assert not minutes.due(3)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_where_the_disk_refuses_nothing_is_lost(number, tmp_path, caplog):
    checkpoints = saved(tmp_path, (2,))

    def refuse(folder):
        (folder / "half").write_text("half")
        raise OSError(number, os.strerror(number))

    checkpoints.save(4, refuse)
    assert f"no checkpoint after step 4 ({os.strerror(number)}); the run goes on" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["00000002"] and checkpoints.newest().step == 2


def test_a_sealed_value(tmp_path):
    path, value = tmp_path / "x.jsonl", {"text": "\ud800 \u2028 <", "number": 0.1, "inf": float("inf")}
    write_sealed(path, value)
    assert read_sealed(path) == value
    path.write_bytes(path.read_bytes().replace(b"0.1", b"0.2"))
    assert read_sealed(path) is None and read_sealed(tmp_path / "none") is None
    for broken in (b"", b"\xff", b"1\n2\n3", b"{}\n{}", b"[]\n1", b'{"sha256": 1}\n1'):
        path.write_bytes(broken)
        assert read_sealed(path) is None


# ---- signals --------------------------------------------------------------------------------------------


def test_a_signal_waits_until_it_is_heeded():
    reached, before = [], signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped) as caught, deferred() as pending:
        os.kill(os.getpid(), signal.SIGTERM)
        reached.append("the end of the step")
        pending.heed()
        reached.append("another step")
    assert reached == ["the end of the step"] and caught.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_same_signal_again_stops_at_once_and_another_one_waits():
    reached = []
    with pytest.raises(Stopped) as caught, deferred():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)  # what stops a comparison sends both
        reached.append(1)
        os.kill(os.getpid(), signal.SIGINT)
        reached.append(2)
    assert reached == [1] and caught.value.code == 130


def test_an_ignored_signal_stays_ignored_and_a_thread_hears_none():
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with deferred() as pending:
            os.kill(os.getpid(), signal.SIGTERM)
        assert pending.caught is None
    finally:
        signal.signal(signal.SIGTERM, before)
    inside = []

    def in_a_thread():
        with deferred() as pending:
            inside.append(pending.caught)

    thread = threading.Thread(target=in_a_thread)
    thread.start()
    thread.join()
    assert inside == [None]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_exit_code_of_a_command_that_a_signal_stops(number, code, capsys, monkeypatch):
    monkeypatch.setattr(retain.cli_guard, "_show_log", lambda: None)
    with pytest.raises(typer.Exit) as caught:
        guarded(lambda: os.kill(os.getpid(), number) or time.sleep(5))()
    assert caught.value.exit_code == code and "run the same command again to resume" in capsys.readouterr().err


# ---- runs -----------------------------------------------------------------------------------------------


def values_of(folder, **changes):
    """Two short stages of six steps."""
    return {"tasks": write_tasks(folder)[:2]} | changes


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return run_tiny(folder, **values_of(folder))


def begun(folder, monkeypatch, step=5, **changes):
    """A run that was stopped after a step of its second stage."""
    with stopped_after(2, step, monkeypatch):
        run_tiny(folder, **values_of(folder, checkpoint={"every": 2}, **changes))
    return folder / "run" / "stages" / ".02-size" / "checkpoints"


def resumed(folder):
    return journal(folder / "run", "resume")[-1]


def test_a_broken_checkpoint_in_a_run(whole, tmp_path, monkeypatch):
    damage_byte(begun(tmp_path, monkeypatch) / "00000004")
    run_tiny(tmp_path, **values_of(tmp_path))
    assert resumed(tmp_path)["after_step"] == 2 and resumed(tmp_path)["broken"] == ["00000004"]
    assert differences(whole, tmp_path / "run") == []


def test_no_whole_checkpoint_in_a_run(whole, tmp_path, monkeypatch):
    folder = begun(tmp_path, monkeypatch)
    for checkpoint in folder.iterdir():
        damage_byte(checkpoint)
    run_tiny(tmp_path, **values_of(tmp_path))
    assert resumed(tmp_path)["after_step"] == 0 and len(resumed(tmp_path)["broken"]) == 2
    assert differences(whole, tmp_path / "run") == []


def test_a_disk_that_is_full_at_every_checkpoint(whole, tmp_path, monkeypatch, caplog):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(retain.checkpoint, "write_sealed", full)
    run_tiny(tmp_path, **values_of(tmp_path, checkpoint={"every": 2}))
    assert caplog.text.count("No space left on device") == 6
    assert [line for line in differences(whole, tmp_path / "run") if "config.yaml" not in line] == []


def test_other_data_than_the_stage_was_begun_with(tmp_path, monkeypatch):
    begun(tmp_path, monkeypatch)
    config = make_config(tiny_values(tmp_path, **values_of(tmp_path)), "test")
    path = tmp_path / "size_train.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(InputError, match=r"other data than the run began with: size \(train\)"):
        run(config, tmp_path, tmp_path / "run")
    run(config, tmp_path, tmp_path / "run", accept_changed_data=True)
    assert not journal(tmp_path / "run", "resume")[-1].get("after_step"), "its checkpoints are of the other data"
    assert next(line["step"] for line in journal(tmp_path / "run", "step") if line["stage"] == 2) == 1


def test_a_checkpoint_of_something_else(tmp_path, monkeypatch):
    folder = begun(tmp_path, monkeypatch) / "00000004"
    state = read_state(folder)
    write_state(folder, {**state, "replayer": {}})
    write_sealed(folder / SEAL, retain.checkpoint.checksums(folder, skip=[SEAL]))
    with pytest.raises(InputError, match=r"00000004: no checkpoint of this stage \(replayer: KeyError"):
        run_tiny(tmp_path, **values_of(tmp_path))


@pytest.mark.parametrize("part", ["weights", "exp_avg", "exp_avg_sq", "path", "last"])
def test_a_checkpoint_of_other_shapes(part, tmp_path, monkeypatch):
    """Its checksums are right, so somebody made it so; a vector that could be broadcast would go unseen."""
    folder = begun(tmp_path, monkeypatch, strategy="si + fixed") / "00000004"
    state = read_state(folder)
    weights, moments = (state["optimization"][name] for name in ("weights", "moments"))
    places = {"weights": weights, "exp_avg": moments["0"], "exp_avg_sq": moments["1"]}
    group = places.get(part) or state["strategy"]["si"][part]
    name = part if part.startswith("exp") else next(iter(group))
    group[name] = group[name][:1].clone()
    write_state(folder, state)
    write_sealed(folder / SEAL, retain.checkpoint.checksums(folder, skip=[SEAL]))
    with pytest.raises(InputError, match=rf"00000004: no checkpoint of this stage .*{part} of .* the model has"):
        run_tiny(tmp_path, **values_of(tmp_path, strategy="si + fixed"))


def test_a_signal_saves_the_step_it_comes_in(whole, tmp_path, monkeypatch):
    real = StageProgress.save

    def signalled(self, step):
        if (self.stage.number, step) == (2, 3):
            os.kill(os.getpid(), signal.SIGTERM)
        real(self, step)

    with monkeypatch.context() as patched, pytest.raises(Stopped):
        patched.setattr(StageProgress, "save", signalled)
        run_tiny(tmp_path, **values_of(tmp_path, checkpoint={"minutes": None}))
    run_tiny(tmp_path, **values_of(tmp_path))
    assert resumed(tmp_path)["after_step"] == 3
    assert differences(whole, tmp_path / "run") == []


def counted(monkeypatch, owner, name, stop_at=None):
    """The number of calls of a function, the `stop_at`-th of which stops the run instead."""
    calls, real = [], getattr(owner, name)

    def call(*arguments, **options):
        calls.append(arguments)
        if len(calls) == stop_at:
            stop(signal.SIGTERM)
        return real(*arguments, **options)

    monkeypatch.setattr(owner, name, call)
    return calls


@pytest.mark.parametrize("evaluation", range(1, 7))
def test_no_task_is_scored_twice_and_no_stage_trained_again(evaluation, whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patched, pytest.raises(Stopped):
        counted(patched, retain.learner, "evaluate_task", stop_at=evaluation)
        run_tiny(tmp_path, **values_of(tmp_path))
    scored, trained = (
        counted(monkeypatch, *where) for where in ((retain.learner, "evaluate_task"), (retain.stages, "train_stage"))
    )
    run_tiny(tmp_path, **values_of(tmp_path))
    assert len(scored) == 7 - evaluation and len(trained) == 2 - (evaluation - 1) // 2
    assert differences(whole, tmp_path / "run") == []


def test_weights_that_broke_before_they_were_scored_are_trained_again(whole, tmp_path, monkeypatch, caplog):
    with monkeypatch.context() as patched, pytest.raises(Stopped):
        counted(patched, retain.learner, "evaluate_task", stop_at=6)
        run_tiny(tmp_path, **values_of(tmp_path))
    os.truncate(tmp_path / "run" / "stages" / ".02-size" / "adapter" / "adapter_model.safetensors", 60)
    run_tiny(tmp_path, **values_of(tmp_path))
    assert differences(whole, tmp_path / "run") == []


MIXED = {
    "threshold": {"schedule": {"kind": "threshold", "first_interval": 1}},
    "a draw for an epoch": {"schedule": {"volume": "epoch", "first_interval": 1}, "lora": {"dropout": 0.2}},
    "variance": {"strategy": "loss", "trigger": {"signal": "variance", "window": 2, "growth": 1.0}},
    "patience": {"training": {"batch_size": 4, "max_length": 128, "patience": 9}, "evaluation": {"after": 2}},
    "adaptive": {"strategy": "ssr + si", "curriculum": {"kind": "adaptive"}, "storage": {"mode": "on-demand"}},
    "cached": {"strategy": "mssr + ssr", "storage": {"mode": "cached", "cache_size": 3}, "synthesis": {"every": 1}},
    "private": {"strategy": "none", "privacy": {"dp_sgd": {"delta": 0.01}, "noise_seed": 3}},
}


def run_mixed(folder, out, name, **changes):
    """One of these, with a model whose texts end, and tasks that can be written and validated."""
    synthesis = {"samples": 6, "max_input_tokens": 12, "max_output_tokens": 6, "max_attempts": 4}
    filters = {"heuristics": False, "perplexity": None, "consistency": None}
    changes = {"filters": filters, **values_of(folder), **MIXED[name], **changes}
    values = tiny_values(folder, **changes) | {"synthesis": {**synthesis, **changes.get("synthesis", {})}}
    values["tasks"] = [
        {**task, "description": "Say which of two words fits the letters of a line.", "validation": task["test"]}
        for task in values["tasks"]
    ]
    save_tiny_model(folder / "model", terse(tiny_llama()))
    return run(make_config(values, "test"), folder, folder / out)


@pytest.mark.parametrize("name", MIXED)
def test_what_else_resumes_inside_a_stage(name, tmp_path, monkeypatch):
    if name == "private":
        pytest.importorskip("opacus", reason="needs the extra `privacy`")
    one = run_mixed(tmp_path, "one", name)
    with stopped_after(2, 3, monkeypatch):
        run_mixed(tmp_path, "two", name, checkpoint={"every": 2})
    two = run_mixed(tmp_path, "two", name)
    assert journal(two, "resume")[-1]["after_step"] == 2
    assert differences(one, two) == []


def test_no_sample_is_written_twice(tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        writings = counted(patched, Writer, "write")
        one = run_mixed(tmp_path, "one", "cached")
    with monkeypatch.context() as patched, pytest.raises(Stopped):
        counted(patched, Writer, "write", stop_at=len(writings))  # the last task at the end of the last stage
        run_mixed(tmp_path, "two", "cached")
    written, steps = counted(monkeypatch, Writer, "write"), counted(monkeypatch, Optimization, "step")
    two = run_mixed(tmp_path, "two", "cached")
    assert len(writings) > 3 and len(written) == 1 and not steps
    assert differences(one, two) == []


def test_a_cell_of_a_comparison_resumes_inside_a_stage(tmp_path, monkeypatch):
    comparison = load_comparison(write_comparison(tmp_path, strategies=["mssr"]))
    alone = load_comparison(write_comparison(tmp_path, strategies=["mssr"]), out=tmp_path / "alone")
    with stopped_after(2, 5, monkeypatch), monkeypatch.context() as patched:
        patched.setattr(Checkpoints, "due", lambda self, step: step == 4)
        run_cell(comparison, comparison.cells[0])
    done = run_cell(comparison, comparison.cells[0], keep_run=True)
    assert journal(comparison.out / "runs" / "mssr.seed1", "resume")[-1]["after_step"] == 4
    assert without_times(read_cell(done)) == without_times(read_cell(run_cell(alone, alone.cells[0])))
