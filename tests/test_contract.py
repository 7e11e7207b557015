"""What holds for every strategy, alone and combined: runs of three tiny stages, in float64."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from crash.same import differences
from safetensors.numpy import load_file
from test_run import adapter, journal, results, run_tiny, same_tensors
from tiny import stopped_after, tiny_llama, write_tasks

import retain.checks
import retain.learner
from retain.evaluate import evaluate_task
from retain.presets import PRESETS, REGULARIZERS, preset_of

STRONG = {
    "l2": {"weight": 100.0},
    "ewc": {"weight": 1.0e6},
    "si": {"weight": 100.0},
    "lwf": {"weight": 10.0},
    "der++": {"alpha": 10.0},
    "o-lora": {"weight": 10.0, "l2": 0.1},
}
EAGER = {"signal": "probe", "rise": 0.0, "eval_every": 1, "drop": 0.0}  # triggers that a small model sets off
COMBINED = [
    "loss + ewc",
    "forever + si",
    "mir + der++ + agem",
    "mssr + ewc",
    "er + si + lwf + agem",
    "fixed + der++ + gem",
    "o-lora + lwf + gem",
]


def strategy(name):
    """A strategy whose regularizers have a large coefficient."""
    return [{"name": part, **STRONG[part]} if part in STRONG else part for part in name.split(" + ")]


def run_float64(folder, out, name, every=None, **training):
    training = {"learning_rate": 1.0e-2, "batch_size": 4, "max_length": 128, **training}
    model = {"name": str(folder / "model"), "dtype": "float64"}
    tasks = [{**entry, "validation": entry["test"]} for entry in write_tasks(folder)]
    changes = {"strategy": strategy(name), "model": model, "training": training, "tasks": tasks, "trigger": EAGER}
    return run_tiny(folder, folder / out, **changes, checkpoint={"every": every})


def kept(out):
    """Everything a strategy left behind at the end."""
    folder = sorted((out / "stages").glob("[0-9]*-*"))[-1]
    path = folder / "strategy.safetensors"
    return adapter(out) | (load_file(path) if path.exists() else {})


@pytest.fixture(autouse=True)
def graded(monkeypatch):
    """Validation scores of a model too small to write an answer: the likelihood, which changes with each step."""

    def likelihood(*arguments):
        found, records = evaluate_task(*arguments)
        return replace(found, generated=math.exp(-found.nll), n=10**6), records

    monkeypatch.setattr(retain.checks, "evaluate_task", likelihood)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return run_float64(tmp_path_factory.mktemp("plain"), "run", "none")


@pytest.fixture
def stopped_and_resumed(tmp_path, monkeypatch):
    """A run that is stopped in its second stage, a step after a checkpoint, and started again."""

    def run_twice(name):
        with stopped_after(2, 5, monkeypatch):
            run_float64(tmp_path, "stopped", name, every=2)
        out = run_float64(tmp_path, "stopped", name)
        assert [line["after_step"] for line in journal(out, "resume") if "after_step" in line] == [4]
        return out

    return run_twice


@pytest.fixture
def opened(monkeypatch):
    """The models that were opened, as the runs left them."""
    models, real = [], retain.learner.open_model

    def opening(*arguments):
        models.append(real(*arguments))
        return models[-1]

    monkeypatch.setattr(retain.learner, "open_model", opening)
    return models


@pytest.mark.parametrize("name", [*PRESETS, *REGULARIZERS, *COMBINED])
def test_contract(name, tmp_path, plain, stopped_and_resumed, opened):
    one, chosen = run_float64(tmp_path, "one", name), preset_of(name)
    again = run_float64(tmp_path, "again", name) if chosen.joint else stopped_and_resumed(name)
    assert differences(one, again) == [], "not deterministic, or another end after it was stopped"
    assert results(one)["strategy"] == chosen.name

    cut = run_float64(tmp_path, "cut", name, micro_batch_size=1)
    assert kept(cut).keys() == kept(one).keys()
    for key, value in kept(one).items():
        np.testing.assert_allclose(kept(cut)[key], value, rtol=1e-6, atol=1e-6, err_msg="depends on micro-batches")

    assert_base_untouched(opened[0][0])
    if chosen.joint:
        return
    if "osf" not in name:
        assert same_tensors(adapter(one, 1), adapter(plain, 1)), "the first stage has nothing to protect"
    if name != "none":
        assert difference(adapter(one), adapter(plain)) > 1e-3, "does not act"
    new = [[(line["task"], line["step"], line["new"]) for line in journal(out, "step")] for out in (one, plain)]
    assert new[0] == new[1], "every strategy trains the same new samples in the same steps"


def assert_base_untouched(lm):
    base = tiny_llama(torch.float64).state_dict()
    found = {name.replace(".base_layer", ""): value for name, value in lm.model.get_base_model().state_dict().items()}
    assert base.keys() <= found.keys()
    assert all(torch.equal(found[name], value) for name, value in base.items())


def difference(one, two):
    """The largest difference of two adapters; infinite where their shapes differ."""
    if {key: value.shape for key, value in one.items()} != {key: value.shape for key, value in two.items()}:
        return np.inf
    return max(np.abs(one[key] - two[key]).max() for key in one)
