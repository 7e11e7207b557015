"""What a long job meets: losses that are not finite, too little memory."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from test_run import adapter, journal, results, same_tensors
from tiny import byte_tokenizer, stopped_in, tiny_llama, tiny_values

import retain.trainer
from retain.config import make_config
from retain.faults import memory_advice
from retain.model import LanguageModel
from retain.run import run
from retain.sections import TrainingConfig
from retain.strategies.base import Strategy
from retain.trainer import Optimization
from retain.types import Sample

INF, NAN = float("inf"), float("nan")


def run_on(folder, **changes):
    return run(make_config(tiny_values(folder, **changes), "test"), folder, folder / "run")


def poisoned(monkeypatch, value, passes):
    """The losses of these forward passes of training (from 1) become `value`."""
    real, count = retain.trainer.row_losses, 0

    def losses(tokens, row):
        nonlocal count
        count += 1
        found = real(tokens, row)
        return found * value if count in passes else found

    monkeypatch.setattr(retain.trainer, "row_losses", losses)


# ---- losses that are not finite ---------------------------------------------------------------------------


@pytest.fixture
def optimization():
    import peft
    from accelerate import Accelerator

    settings = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    lm = LanguageModel(peft.get_peft_model(tiny_llama(), settings), byte_tokenizer(), 64)
    config = TrainingConfig(learning_rate=0.01, warmup=0.0, schedule="linear")
    return Optimization(lm, Strategy(), Accelerator(), config, steps=10, measure_updates=True)


SAMPLES = [Sample(f"t/{k}", "t", f"line {k}", "red") for k in range(4)]


def state(optimization):
    moments = {k: dict(v) for k, v in optimization.optimizer.optimizer.state_dict()["state"].items()}
    tensors = [p.detach().clone() for p in optimization.lm.parameters()]
    return tensors + [torch.as_tensor(x).clone() for values in moments.values() for x in values.values()]


@pytest.mark.parametrize("value", [NAN, INF])
def test_a_skipped_step_changes_neither_weights_nor_moments_and_the_rate_goes_on(optimization, monkeypatch, value):
    optimization.step(SAMPLES, np.ones(4))
    before, rate = state(optimization), optimization.schedule.get_last_lr()[0]
    poisoned(monkeypatch, value, {1})
    losses = optimization.step(SAMPLES, np.ones(4))
    assert optimization.skipped and not np.isfinite(losses).any() and optimization.update_norm == 0.0
    assert all(torch.equal(a, b) for a, b in zip(state(optimization), before, strict=True))
    assert optimization.schedule.get_last_lr()[0] == pytest.approx(rate - 0.001)
    assert all(p.grad is None for p in optimization.lm.parameters())
    optimization.step(SAMPLES, np.ones(4))
    assert not optimization.skipped and not torch.equal(state(optimization)[1], before[1])


def test_a_gradient_that_is_not_finite_is_skipped_before_a_strategy_sees_it(optimization, monkeypatch):
    seen = []
    monkeypatch.setattr(optimization.strategy, "adjust_gradients", seen.append)
    optimization.lm.parameters()[0].register_hook(lambda gradient: gradient * INF)
    losses = optimization.step(SAMPLES, np.ones(4))
    assert np.isfinite(losses).all() and optimization.skipped and not seen


def test_a_strategys_loss_that_is_not_finite_is_skipped_too(optimization, monkeypatch):
    monkeypatch.setattr(optimization.strategy, "losses", lambda model, batch, base, logits: base / 0.0)
    assert np.isfinite(optimization.step(SAMPLES, np.ones(4))).all() and optimization.skipped


STRATEGIES = ["mssr", "er + ewc", "si", "gem", "agem", "der++", "mssr + lwf", "o-lora", "mir", "loss"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_run_survives_a_step_that_is_not_finite(strategy, tmp_path, monkeypatch):
    """Each forward pass holds a whole step here; the ninth is the third step of the second stage."""
    poisoned(monkeypatch, NAN, {9})
    out = run_on(tmp_path, strategy=strategy)
    skipped = [line for line in journal(out, "step") if "skipped" in line]
    assert [(line["stage"], line["step"], line["new_loss"]) for line in skipped] == [(2, 3, None)]
    assert len(skipped[0]["skipped"]) == skipped[0]["new"] + skipped[0]["replayed"]
    found = results(out)
    assert found["finished"] and found["skipped_steps"] == {"size": 1}
    assert [line["skipped_steps"] for line in journal(out, "stage_end")] == [0, 1, 0]
    assert all(np.isfinite(tensor).all() for tensor in adapter(out).values())
    assert "Steps skipped because a loss or its gradient was not finite: size 1." in (out / "report.html").read_text()


def test_the_memory_learns_nothing_from_a_skipped_step(tmp_path, monkeypatch):
    poisoned(monkeypatch, INF, set(range(8, 11)))
    out = run_on(tmp_path, strategy="er")
    skipped = [line["global_step"] for line in journal(out, "step") if "skipped" in line]
    reviews = pq.read_table(out / "memory_reviews.parquet").to_pydict()
    assert skipped == [8, 9, 10] and not set(skipped) & set(reviews["step"]) and reviews["step"]
    trace = pq.read_table(out / "memory_trace.parquet").to_pydict()
    assert np.isfinite(trace["strength"]).all() and np.isfinite([x for x in trace["ema_loss"] if x is not None]).all()
    for line in (out / "journal.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)


def test_a_run_whose_steps_stay_not_finite_stops_and_names_the_samples(tmp_path, monkeypatch, capsys):
    poisoned(monkeypatch, NAN, set(range(8, 12)))
    with pytest.raises(FloatingPointError, match=r"size, step 4: .* with size/\d+, .* 3 steps in a row were skipped"):
        run_on(tmp_path, training={"batch_size": 4, "max_length": 128, "max_skipped_steps": 3})
    lines = journal(tmp_path / "run", "step")
    assert [bool(line.get("skipped")) for line in lines[-4:]] == [False, True, True, True]
    assert "Name the" not in str(lines[-1]["skipped"])  # ids, not texts


def test_a_skipped_step_is_the_same_one_when_a_stopped_run_resumes(tmp_path, monkeypatch):
    """The one bad sample of a stage is skipped with its batch in either run."""
    real = Optimization.step

    def step(self, samples, weights, new=None):
        with monkeypatch.context() as patched:
            if any(sample.id == "size/3" for sample in samples):
                poisoned(patched, NAN, set(range(99)))
            return real(self, samples, weights, new)

    monkeypatch.setattr(Optimization, "step", step)
    whole = run_on(tmp_path / "whole")
    with stopped_in(2, monkeypatch):
        run_on(tmp_path / "stopped")
    again = run_on(tmp_path / "stopped")
    assert results(whole)["skipped_steps"] == results(again)["skipped_steps"]
    assert same_tensors(adapter(whole), adapter(again))


# ---- too little memory ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "advice"),
    [
        ("retain.trainer.label_logits", "training.micro_batch_size .*training.max_length or training.batch_size"),
        ("retain.evaluate.score_answers", "evaluation.batch_size"),
    ],
)
def test_a_full_gpu_is_advice(place, advice, tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has 1 GiB free.")

    monkeypatch.setattr(place, full)
    with pytest.raises(MemoryError, match=rf"ran out of memory \(CUDA out of memory. Tried .*\); .*{advice}"):
        run_on(tmp_path)


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")]
)
def test_a_full_machine_is_advice_too(error):
    with (
        pytest.raises(MemoryError, match=r"training ran out of memory.*; lower it"),
        memory_advice("training", "lower it"),
    ):
        raise error


def test_other_errors_of_the_machine_pass():
    with pytest.raises(RuntimeError, match="shapes"), memory_advice("training", "lower it"):
        raise RuntimeError("shapes differ")
