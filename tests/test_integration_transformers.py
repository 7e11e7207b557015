"""Replay in transformers' Trainer and TRL's SFTTrainer: the same memory and the same decisions as retain's own loop."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from tiny import byte_tokenizer, save_tiny_model, tiny_llama, tiny_t5, write_tasks
from transformers import (
    DataCollatorForSeq2Seq,
    DataCollatorWithFlattening,
    PrinterCallback,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainingArguments,
)

from retain import Learner
from retain.buffer import Buffer
from retain.config import load_config, make_config
from retain.integrations.transformers import Replay, ReplayMixin, newest_adapter, replayify
from retain.losses import sample_losses
from retain.model import LanguageModel
from retain.rundir import RunDir
from retain.scheduler import plan_run, plan_stage
from retain.types import InputError

EVERY = {"kind": "every", "lambda_0": 0.34}
BATCH = 4


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def rows_of(name: str = "color", count: int = 24, labels: tuple[str, ...] = ("red", "blue")) -> list[dict]:
    """Token rows of prompts and answers of unequal length, and their texts."""
    tokenizer = byte_tokenizer()
    rows = []
    for k in range(count):
        prompt, answer = f"{name} {k} {'xyz'[k % 3] * (1 + k % 5)}\n", labels[k % 2]
        ask, tell = tokenizer(prompt).input_ids, [*tokenizer(answer).input_ids, tokenizer.eos_token_id]
        rows.append({"input_ids": ask + tell, "attention_mask": [1] * len(ask + tell),
                     "labels": [-100] * len(ask) + tell, "prompt": prompt, "completion": answer})  # fmt: skip
    return rows


def arguments(folder: Path, kind=TrainingArguments, **changes):
    values = {"per_device_train_batch_size": BATCH, "learning_rate": 1e-2, "report_to": "none", "seed": 3, "num_train_epochs": 1,
              "save_strategy": "no", "logging_steps": 1, "disable_tqdm": True, "use_cpu": True}  # fmt: skip
    return kind(output_dir=str(folder / "trainer"), **(values | changes))


def collator(**options):
    return DataCollatorForSeq2Seq(byte_tokenizer(), padding=True, **options)


def trainer_of(folder: Path, task: str = "color", rows=None, cls=Trainer, model=None, collate=None, replay=None, **changes):
    """A trainer with replay over token rows; its memory is `folder/memory`."""
    replay = replay or Replay(folder / "memory", task, "mssr", schedule=EVERY)
    trainer = replayify(cls)(
        model=model or tiny_llama(torch.float64),
        args=arguments(folder, **changes),
        train_dataset=rows or rows_of(task),
        data_collator=collate or collator(),
        processing_class=byte_tokenizer(),
        replay=replay,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def learned(folder: Path, *tasks: str, **changes) -> ReplayMixin:
    """Tasks learned in turn; returns the last trainer."""
    model = tiny_llama(torch.float64)
    for task in tasks:
        trainer = trainer_of(folder, task, model=model, **changes)
        trainer.train()
    return trainer


def steps_of(folder: Path, stage: int) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "memory/journal.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "step" and line["stage"] == stage]


def weights(model) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def buffer_of(run: Path) -> Buffer:
    config = load_config(run / "config.yaml", need_tasks=False)
    return Buffer.load(run / "buffer", config.buffer, config.memory, config.seed)


def test_two_tasks_leave_the_directory_of_a_run(tmp_path):
    trainer = learned(tmp_path, "color", "size")
    run = RunDir(tmp_path / "memory")
    assert [row.name for row in run.rows()] == ["00-base", "01-color", "02-size"]
    buffer = buffer_of(run.path)
    assert buffer.tasks == {"color": 24, "size": 24} and buffer.memory.snapshot(12)["reviews"].sum() > 0
    first = buffer.samples["color/0"]
    assert (first.prompt, first.answer) == (rows_of("color")[0]["prompt"], "red")
    results = json.loads((run.path / "results.json").read_text())
    assert results["tasks"] == ["color", "size"] and results["finished"]
    assert results["costs"]["replayed_samples"] == trainer.replay.counts["replayed_samples"] > 0
    reviews = pq.read_table(run.path / "memory_reviews.parquet").to_pylist()
    assert len(reviews) == trainer.replay.counts["replayed_samples"]  # none comes twice in a step here


def test_the_realized_ratio_is_in_the_logs(tmp_path):
    trainer = learned(tmp_path, "color", "size")
    lines = [line for line in trainer.state.log_history if "loss" in line]
    steps = steps_of(tmp_path, 2)
    assert len(lines) == len(steps) == 6
    for line, step in zip(lines, steps, strict=True):
        assert line["replayed_samples"] == step["replayed"]
        assert line["replay_ratio_samples"] == pytest.approx(step["replayed"] / (step["replayed"] + step["new"]))
        assert 0 < line["replay_ratio_tokens"] < 1 and line["replay_loss"] == pytest.approx(step["replay_loss"])
    end = trainer.state.log_history[-1]
    assert end["replay_ratio_samples"] == pytest.approx(0.34, abs=0.02)
    own = sum(len(row["input_ids"]) for row in rows_of("size"))
    again = trainer.replay.counts["replayed_tokens"]
    assert end["replay_ratio_tokens"] == pytest.approx(again / (own + again))


def naive_gradient(model, batch: list[dict], weight: list[float]) -> torch.Tensor:
    """Of the sum of weighted token losses over the number of label tokens, sample by sample."""
    total, count = 0.0, 0
    for row, one in zip(batch, weight, strict=True):
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])
        logits = model(input_ids=ids).logits[0, :-1]
        kept = labels[1:] != -100
        total = total + one * torch.nn.functional.cross_entropy(logits[kept], labels[1:][kept], reduction="sum")
        count += int(kept.sum())
    gradients = torch.autograd.grad(total / count, list(model.parameters()))
    return torch.cat([gradient.flatten() for gradient in gradients])


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("weight", [1.0, 0.25])
def test_the_gradient_is_that_of_all_label_tokens(tmp_path, accumulation, weight):
    learned(tmp_path, "color", replay=Replay(tmp_path / "memory", "color", schedule=EVERY | {"replay_weight": weight}))
    model = tiny_llama(torch.float64, seed=1)
    seen = []

    class Watched(ReplayMixin, Trainer):
        def _clip_grad_norm(self, model):
            step = self.replay.steps[-1]
            rows = rows_of("size")
            old = {f"color/{k}": row for k, row in enumerate(rows_of("color"))}
            batch = [rows[k] for k in step.rows] + [old[s.id] for s in self.replay.drawn]
            again = len(self.replay.drawn)
            grads = torch.cat([p.grad.flatten() for p in model.parameters()])
            expected = naive_gradient(tiny_copy(model), batch, [1.0] * len(step.rows) + [weight] * again)
            torch.testing.assert_close(grads, expected, rtol=1e-4, atol=1e-6)  # its loss is in float32
            seen.append((len(step.rows), again))
            return super()._clip_grad_norm(model)

    def tiny_copy(model):
        copy = tiny_llama(torch.float64)
        copy.load_state_dict(model.state_dict())
        return copy

    replay = Replay(tmp_path / "memory", "size")
    trainer_of(tmp_path, "size", cls=Watched, model=model, replay=replay, gradient_accumulation_steps=accumulation).train()
    assert len(seen) == 24 // (BATCH * accumulation) and all(new == BATCH * accumulation for new, _ in seen)
    assert sum(again for _, again in seen) > 0


def test_each_sample_has_the_loss_that_retain_would_see(tmp_path):
    learned(tmp_path, "color")
    model, lm = tiny_llama(torch.float64, seed=2), None

    class Watched(ReplayMixin, Trainer):
        def training_step(self, model, inputs, *rest):
            nonlocal lm
            lm = LanguageModel(model, byte_tokenizer(), 256)
            rows = inputs["retain_rows"]
            samples = [self._sample(f"size/{row}", row) for row in rows] + self.replay.drawn
            expected = sample_losses(lm, [lm.encode(sample) for sample in samples]).tolist()
            loss = super().training_step(model, inputs, *rest)
            assert self.replay.steps[-1].losses == pytest.approx(expected, rel=1e-6)
            assert self.replay.steps[-1].tokens == [len(lm.encode(sample)) for sample in samples]
            return loss

    trainer_of(tmp_path, "size", cls=Watched, model=model).train()


def test_there_is_one_forward_pass_a_micro_batch(tmp_path):
    learned(tmp_path, "color")
    model, calls = tiny_llama(torch.float64), []
    model.register_forward_hook(lambda module, args, kwargs, output: calls.append(len(kwargs["labels"])), with_kwargs=True)
    trainer = trainer_of(tmp_path, "size", model=model)
    trainer.train()
    assert max(calls) <= BATCH and sum(calls) == 24 + trainer.replay.counts["replayed_samples"]


def test_without_a_past_nothing_changes(tmp_path):
    plain_model, model = tiny_llama(), tiny_llama()
    Trainer(plain_model, arguments(tmp_path), collator(), rows_of(), processing_class=byte_tokenizer()).train()
    trainer_of(tmp_path, model=model).train()
    assert torch.equal(weights(plain_model), weights(model))


@pytest.mark.parametrize("stop", [2, 3, 6])
def test_a_checkpoint_resumes_exactly(tmp_path, stop):
    schedule = {"kind": "expanding", "first_interval": 2, "max_mix": 0.2}  # drawn samples wait in a queue
    for name, resumed in (("whole", False), ("resumed", True)):
        folder = tmp_path / name
        model = tiny_llama(torch.float64)
        trainer_of(folder, model=model, replay=Replay(folder / "memory", "color", "mssr", schedule=schedule)).train()
        torch.save(model.state_dict(), folder / "model.pt")
        changes = {"save_strategy": "steps", "save_steps": 1, "gradient_accumulation_steps": 1}
        trainer = trainer_of(folder, "size", model=model, replay=Replay(folder / "memory", "size"), **changes)
        if resumed:
            inner = trainer.training_step

            def stopping(*args):
                if trainer.state.global_step == stop:
                    raise KeyboardInterrupt
                return inner(*args)

            if stop < 6:
                trainer.training_step = stopping
                with pytest.raises(KeyboardInterrupt):
                    trainer.train()
            else:
                trainer.replay.finish = lambda *args: (_ for _ in ()).throw(KeyboardInterrupt)
                with pytest.raises(KeyboardInterrupt):
                    trainer.train()
            model = tiny_llama(torch.float64)
            model.load_state_dict(torch.load(folder / "model.pt"))
            trainer = trainer_of(folder, "size", model=model, replay=Replay(folder / "memory", "size"), **changes)
        trainer.train(resume_from_checkpoint=resumed)
    whole, again = tmp_path / "whole", tmp_path / "resumed"
    tensors = [buffer_of(folder / "memory").memory.to_tensors() for folder in (whole, again)]
    for key, value in tensors[0].items():
        np.testing.assert_array_equal(value, tensors[1][key], err_msg=key)
    for name in ("memory_trace.parquet", "memory_reviews.parquet"):
        assert pq.read_table(whole / "memory" / name).equals(pq.read_table(again / "memory" / name))
    assert len(pq.read_table(again / "memory/memory_reviews.parquet")) > 0
    checkpoints = [folder / "trainer/checkpoint-6/model.safetensors" for folder in (whole, again)]
    assert checkpoints[0].read_bytes() == checkpoints[1].read_bytes()


def test_a_checkpoint_of_another_memory_is_refused(tmp_path):
    learned(tmp_path, "color", save_strategy="steps", save_steps=2)
    with pytest.raises(InputError, match="belongs to another memory"):
        trainer_of(tmp_path, "size").train(resume_from_checkpoint=True)
    (tmp_path / "trainer/checkpoint-6/retain_losses.safetensors").unlink()
    with pytest.raises(InputError, match=r"retain_losses.safetensors: is missing"):
        trainer_of(tmp_path, "size").train(resume_from_checkpoint=True)
