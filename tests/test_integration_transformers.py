"""Replay in transformers' Trainer and TRL's SFTTrainer: the same memory and the same decisions as retain's own loop."""

from __future__ import annotations

import json
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
    LlamaForCausalLM,
    PrinterCallback,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainingArguments,
)

from retain import Learner
from retain.adding import add
from retain.buffer import Buffer
from retain.config import load_config, make_config
from retain.integrations.replay import Step
from retain.integrations.transformers import Replay, ReplayMixin, newest_adapter, replayify
from retain.losses import sample_losses
from retain.model import LanguageModel
from retain.rundir import RunDir
from retain.scheduler import plan_run, plan_stage
from retain.trainer import Optimization
from retain.types import InputError, Sample

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
    values = {
        "per_device_train_batch_size": BATCH,
        "num_train_epochs": 1,
        "learning_rate": 1e-2,
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 3,
    }
    return kind(output_dir=str(folder / "trainer"), **(values | changes))


def collator(**options):
    return DataCollatorForSeq2Seq(byte_tokenizer(), padding=True, **options)


def trainer_of(
    folder: Path, task: str = "color", rows=None, cls=Trainer, model=None, collate=None, replay=None, **changes
):
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
    trainer_of(
        tmp_path, "size", cls=Watched, model=model, replay=replay, gradient_accumulation_steps=accumulation
    ).train()
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
    model.register_forward_hook(
        lambda module, args, kwargs, output: calls.append(len(kwargs["labels"])), with_kwargs=True
    )
    trainer = trainer_of(tmp_path, "size", model=model)
    trainer.train()
    assert max(calls) <= BATCH and sum(calls) == 24 + trainer.replay.counts["replayed_samples"]


def test_without_a_past_nothing_changes(tmp_path):
    plain_model, model = tiny_llama(), tiny_llama()
    Trainer(plain_model, arguments(tmp_path), collator(), rows_of(), processing_class=byte_tokenizer()).train()
    trainer_of(tmp_path, model=model).train()
    assert torch.equal(weights(plain_model), weights(model))


def stop_at(trainer: ReplayMixin, last: int) -> None:
    """Train until so many steps are done, and stop as by Ctrl-C."""
    inner = trainer.training_step

    def stopping(*args):
        if trainer.state.global_step == last:
            raise KeyboardInterrupt
        return inner(*args)

    def no_finish(*args):
        raise KeyboardInterrupt

    trainer.training_step, trainer.replay.finish = stopping, no_finish
    with pytest.raises(KeyboardInterrupt):
        trainer.train()


@pytest.mark.parametrize("stop", [2, 3, 6])
def test_a_checkpoint_resumes_exactly(tmp_path, stop):
    schedule = {"kind": "expanding", "first_interval": 2, "max_mix": 0.2}  # drawn samples wait in a queue
    saving = {"save_strategy": "steps", "save_steps": 1}
    for name in ("whole", "resumed"):
        folder, model = tmp_path / name, tiny_llama(torch.float64)
        trainer_of(folder, model=model, replay=Replay(folder / "memory", "color", "mssr", schedule=schedule)).train()
        start = {key: value.clone() for key, value in model.state_dict().items()}
        trainer = trainer_of(folder, "size", model=model, replay=Replay(folder / "memory", "size"), **saving)
        if name == "resumed":
            stop_at(trainer, stop)
            model = tiny_llama(torch.float64)
            model.load_state_dict(start)
            trainer = trainer_of(folder, "size", model=model, replay=Replay(folder / "memory", "size"), **saving)
        trainer.train(resume_from_checkpoint=name == "resumed")
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


SCHEDULES = {
    "mssr": {"schedule": {"first_interval": 2}, "memory": {"refresh_every": 3}},
    "epoch": {"schedule": {"volume": "epoch"}, "memory": {"priority": "risk"}, "buffer": {"capacity": 16}},
    "threshold": {"schedule": {"kind": "threshold", "first_interval": 2, "lambda_0": 0.6, "max_mix": 0.3}},
    "loss": {"strategy": "loss", "schedule": {"first_interval": 1}, "trigger": {"z": 0.1}},
    "er": {"strategy": "er", "schedule": {"budget": 0.3}},
}


def config_of(folder: Path, **changes) -> dict:
    values = {
        "model": str(save_tiny_model(folder / "model")),
        "tasks": [task | {"train": str(folder / task["train"]), "test": None} for task in write_tasks(folder)],
        "strategy": "mssr",
        "training": {"batch_size": BATCH, "epochs": 2, "learning_rate": 1e-2, "max_length": 128},
        "memory": {"refresh_every": 3},
    }
    return values | changes


@pytest.mark.parametrize("kind", SCHEDULES)
def test_recorded_losses_lead_to_the_decisions_of_retain_run(tmp_path, monkeypatch, kind):
    recorded, inner = [], Optimization.step

    def step(self, samples, weights, new=None):
        losses = inner(self, samples, weights, new)
        recorded.append(([s.id for s in samples[:new]], [s.id for s in samples[new:]], losses.tolist()))
        return losses

    monkeypatch.setattr(Optimization, "step", step)
    values = config_of(tmp_path, **SCHEDULES[kind])
    tasks = values.pop("tasks")
    learner = Learner(out=tmp_path / "run", **values)
    for task in tasks:
        learner.learn({"name": task["name"], "train": task["train"]})
    steps = iter(recorded)
    for task in tasks:
        replay = Replay(tmp_path / "replay", task["name"], **values)
        replay.begin(24, 24, BATCH, 12, {})
        for _ in range(12):
            new, again, losses = next(steps)
            assert [sample.id for sample in replay.draw()] == again
            replay.learn(Step([int(one.rpartition("/")[2]) for one in new], losses, [1] * len(losses)))
        replay.finish(lambda folder: None, lambda one, row: Sample(one, one.partition("/")[0], "?", "!"))
    one, other = tmp_path / "run", tmp_path / "replay"
    states = [state_of(run) for run in (one, other)]
    assert states[0] == states[1] and len(states[0]) == (16 if kind == "epoch" else 72)
    events = [[(e["stage"], e["step"], e["ratio"], e["replayed"], e["by_task"]) for e in journal(run, "event")]
              for run in (one, other)]  # fmt: skip
    assert events[0] == events[1] and sum(event[3] for event in events[0]) > 0
    for name in ("memory_trace.parquet", "memory_reviews.parquet"):
        tables = [
            pq.read_table(run / name).sort_by([("step", "ascending"), ("id", "ascending")]) for run in (one, other)
        ]
        assert tables[0].equals(tables[1]) and len(tables[0])
    if kind != "threshold" and kind != "loss":
        plans = [[line["events"] for line in journal(run, "plan")] for run in (one, other)]
        assert plans[0] == plans[1]


def state_of(run: Path) -> dict[str, tuple]:
    """What the memory holds of each sample, whatever the order they are stored in."""
    columns = buffer_of(run).memory.to_tensors()
    names = ("log_strength", "stability", "ema_loss", "hazard", "last_review", "anchor", "reviews")
    return dict(
        zip(buffer_of(run).memory.ids, zip(*(columns[name].tolist() for name in names), strict=True), strict=True)
    )


def journal(run: Path, kind: str) -> list[dict]:
    lines = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


@pytest.mark.parametrize("kind", [kind for kind in SCHEDULES if kind not in ("threshold", "loss")])
def test_a_stage_is_planned_as_in_a_whole_run(kind):
    config = make_config({"strategy": "mssr", **SCHEDULES[kind], "training": {"batch_size": 8, "epochs": 3}}, "test",
                         need_tasks=False)  # fmt: skip
    stages = [("a", 50), ("b", 33), ("c", 7)]
    plans = plan_run(config, stages, seed_samples=10)
    buffered, first_step = 10, 0
    for (task, samples), plan in zip(stages, plans, strict=True):
        alone = plan_stage(config, task, samples, buffered, first_step)
        assert alone.events == plan.events and alone.time_unit == plan.time_unit
        assert (alone.buffer_size, alone.interval, alone.epoch_steps) == (
            plan.buffer_size,
            plan.interval,
            plan.epoch_steps,
        )
        buffered, first_step = buffered + samples, first_step + plan.steps


# ---- TRL ---------------------------------------------------------------------------------------------------


def sft_of(folder: Path, task: str, model, texts: list[dict], replay=None, **changes):
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    trainer = replayify(trl.SFTTrainer)(
        model=model,
        args=arguments(folder, trl.SFTConfig, **({"bf16": False, "gradient_checkpointing": False} | changes)),
        train_dataset=datasets.Dataset.from_list(texts),
        processing_class=byte_tokenizer(),
        replay=replay or Replay(folder / "memory", task, "mssr", schedule=EVERY),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def texts_only(name: str) -> list[dict]:
    return [{"prompt": row["prompt"], "completion": row["completion"]} for row in rows_of(name)]


def test_sft_trainer_has_the_losses_of_the_trainer(tmp_path):
    for folder in ("plain", "sft"):
        model = tiny_llama(torch.float64)
        for task in ("color", "size"):
            if folder == "plain":
                trainer_of(tmp_path / folder, task, model=model).train()
            else:
                sft_of(tmp_path / folder, task, model, texts_only(task)).train()
    for stage in (1, 2):
        plain, sft = (steps_of(tmp_path / folder, stage) for folder in ("plain", "sft"))
        assert [step["replayed"] for step in plain] == [step["replayed"] for step in sft]
        assert [step["tokens"] for step in plain] == [step["tokens"] for step in sft]
        for key in ("new_loss", "replay_loss")[:stage]:
            assert [step[key] for step in plain] == pytest.approx([step[key] for step in sft], rel=1e-3)
    plain, sft = (buffer_of(tmp_path / folder / "memory").samples for folder in ("plain", "sft"))
    assert plain == sft


def test_padding_free_is_the_same_without_padding(tmp_path):
    pytest.importorskip("trl")
    for name, changes in (("padded", {}), ("free", {"padding_free": True, "max_length": None})):
        model = tiny_llama(torch.float64)
        for task in ("color", "size"):
            sft_of(tmp_path / name, task, model, texts_only(task), **changes).train()
    padded, free = (steps_of(tmp_path / name, 2) for name in ("padded", "free"))
    for key in ("replayed", "tokens"):
        assert [step[key] for step in padded] == [step[key] for step in free]
    for key in ("new_loss", "replay_loss"):
        assert [step[key] for step in padded] == pytest.approx([step[key] for step in free], rel=1e-3)


def test_a_flattening_collator_keeps_samples_apart(tmp_path):
    for name, collate in (("padded", None), ("flat", DataCollatorWithFlattening())):
        model = tiny_llama(torch.float64)
        for task in ("color", "size"):
            trainer_of(tmp_path / name, task, model=model, collate=collate).train()
    padded, flat = (steps_of(tmp_path / name, 2) for name in ("padded", "flat"))
    assert [step["tokens"] for step in padded] == [step["tokens"] for step in flat]
    assert [s["replay_loss"] for s in padded] == pytest.approx([s["replay_loss"] for s in flat], rel=1e-3)


def test_whole_texts_are_kept_as_answers(tmp_path):
    texts = [{"text": row["prompt"] + row["completion"]} for row in rows_of("color")]
    sft_of(tmp_path, "color", tiny_llama(torch.float64), texts).train()
    sample = buffer_of(tmp_path / "memory").samples["color/0"]
    assert sample.prompt == "" and sample.answer in {row["text"] for row in texts}


def test_an_encoder_decoder_trains_with_replay(tmp_path):
    tokenizer = byte_tokenizer()
    model = tiny_t5()
    for task in ("color", "size"):
        rows = [{"input_ids": tokenizer(row["prompt"]).input_ids,
                 "labels": [*tokenizer(row["completion"]).input_ids, tokenizer.eos_token_id]}
                for row in rows_of(task)]  # fmt: skip
        trainer = replayify(Seq2SeqTrainer)(
            model=model,
            args=arguments(tmp_path, Seq2SeqTrainingArguments),
            train_dataset=rows,
            data_collator=collator(),
            processing_class=tokenizer,
            replay=Replay(tmp_path / "memory", task, "mssr", schedule=EVERY),
        )
        trainer.train()
    assert trainer.replay.counts["replayed_samples"] > 0
    assert buffer_of(tmp_path / "memory").samples["color/1"].answer == "blue"
    lm = LanguageModel(model, tokenizer, 256)
    sample = trainer._sample("size/0", 0)
    assert len(lm.encode(sample)) == len(rows[0]["input_ids"]) + len(rows[0]["labels"])


# ---- beside `retain run` -----------------------------------------------------------------------------------


def lora_model(folder: Path, adapter: Path | None = None):
    import peft

    model = LlamaForCausalLM.from_pretrained(folder)
    if adapter:
        return peft.PeftModel.from_pretrained(model, adapter, is_trainable=True)
    return peft.get_peft_model(model, peft.LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"],
                                                      task_type="CAUSAL_LM"))  # fmt: skip


def test_a_trainer_goes_on_where_retain_run_stopped(tmp_path):
    values = config_of(tmp_path, **SCHEDULES["mssr"])
    tasks = values.pop("tasks")
    learner = Learner(out=tmp_path / "memory", **values)
    learner.learn({"name": "color", "train": tasks[0]["train"]})
    before = learner.dir.load_buffer(learner.config).memory.to_tensors()
    adapter = newest_adapter(tmp_path / "memory")
    assert adapter == tmp_path / "memory/stages/01-color/adapter"
    trainer = trainer_of(
        tmp_path, "size", model=lora_model(tmp_path / "model", adapter), replay=Replay(tmp_path / "memory", "size")
    )
    trainer.train()
    assert trainer.replay.first_step == 12 and trainer.replay.counts["replayed_samples"] > 0
    after = buffer_of(tmp_path / "memory")
    assert after.tasks == {"color": 24, "size": 24}
    assert set(after.samples) == {f"{task}/{row}" for task in ("color", "size") for row in range(24)}
    assert (after.memory.snapshot(18)["stability"][:24] >= before["stability"]).all()
    assert newest_adapter(tmp_path / "memory").parent.name == "02-size"


def test_retain_goes_on_where_a_trainer_stopped(tmp_path):
    save_tiny_model(tmp_path / "model")
    write_tasks(tmp_path)
    replay = Replay(
        tmp_path / "memory", "color", "mssr", schedule={"first_interval": 2}, test=str(tmp_path / "color_test.jsonl")
    )
    trainer_of(tmp_path, "color", model=lora_model(tmp_path / "model"), replay=replay).train()
    left = buffer_of(tmp_path / "memory").memory.to_tensors()
    task = tmp_path / "next.yaml"
    task.write_text("{name: shape, train: shape_train.jsonl, test: shape_test.jsonl}")
    results = add(tmp_path / "memory", task)
    assert results["tasks"] == ["color", "shape"] and results["finished"]
    scores = results["matrices"]["nll"]
    assert len(scores) == 3 and all(value is not None for row in scores for value in row)
    assert results["costs"]["replayed_samples"] > 0
    after = buffer_of(tmp_path / "memory")
    assert after.tasks == {"color": 24, "shape": 24}
    assert (after.memory.to_tensors()["reviews"][:24] >= left["reviews"]).all()
    third = trainer_of(tmp_path, "size", model=lora_model(tmp_path / "model", newest_adapter(tmp_path / "memory")),
                       replay=Replay(tmp_path / "memory", "size"))  # fmt: skip
    third.train()
    assert buffer_of(tmp_path / "memory").tasks == {"color": 24, "shape": 24, "size": 24}
    assert add(tmp_path / "memory")["tasks"] == ["color", "shape", "size"]


# ---- what is refused, and why ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strategy", "changes", "reason"),
    [
        ("ssr", {}, "writes synthetic data"),
        ("joint", {}, "all tasks at once"),
        ("mssr + ewc", {}, "regularizers act inside"),
        ("mir", {}, "memory.candidates above 1"),
        ("accuracy", {}, "looks at past tasks"),
        ("loss", {"trigger": {"signal": "probe"}}, "looks at past tasks"),
        ("forever", {}, "schedule.clock: updates"),
        ("mssr", {"schedule": {"clock": "global"}}, "schedule.clock: global"),
    ],
)
def test_what_needs_retains_own_loop_is_refused(tmp_path, strategy, changes, reason):
    replay = Replay(tmp_path / "memory", "color", strategy, **changes)
    with pytest.raises(InputError, match=reason):
        replay.begin(8, 8, 4, 2, {})


def test_wrong_input_is_refused_by_name(tmp_path):
    with pytest.raises(InputError, match="no subclass of"):
        replayify(dict)
    with pytest.raises(InputError, match="name"):
        Replay(tmp_path, "no such/name")
    with pytest.raises(InputError, match="auto_find_batch_size"):
        trainer_of(tmp_path, auto_find_batch_size=True)
    extra = [{"input_ids": row["input_ids"], "weight": 1.0} for row in rows_of()]
    with pytest.raises(InputError, match="'weight'"):
        trainer_of(tmp_path, rows=extra, remove_unused_columns=False)
    trainer = trainer_of(tmp_path)
    trainer.train()
    with pytest.raises(InputError, match="make a new one"):
        trainer.train()
    with pytest.raises(InputError, match="has learned it already"):
        trainer_of(tmp_path).train()
    with pytest.raises(InputError, match="strategy: mssr -> fixed"):
        trainer_of(tmp_path, "size", replay=Replay(tmp_path / "memory", "size", "fixed")).train()


def test_packing_and_a_fused_loss_are_refused(tmp_path):
    with pytest.raises(InputError, match="packing=True: a packed row holds several samples"):
        sft_of(tmp_path, "color", tiny_llama(), texts_only("color"), packing=True, max_length=64)

    class Fused(ReplayMixin, Trainer):
        def compute_loss(self, model, inputs, *rest, **kwargs):
            model.register_forward_hook(lambda module, args, output: type(output)(loss=output.loss), prepend=True)
            return super().compute_loss(model, inputs, *rest, **kwargs)

    with pytest.raises(InputError, match="no logits"):
        trainer_of(tmp_path, cls=Fused).train()


def test_replayify_twice_is_once():
    cls = replayify(Trainer)
    assert replayify(cls) is cls and cls.__name__ == "ReplayTrainer"
