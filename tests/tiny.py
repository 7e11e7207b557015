"""Tiny random models and a byte-level tokenizer, made in code: real classes, no download."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

import retain.progress
import retain.stages

WORDS = {"color": ["red", "blue"], "size": ["big", "small"], "shape": ["round", "flat"]}


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, and an end-of-text token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<pad>": 0, "<end>": 1} | {char: k + 2 for k, char in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<pad>")


def tiny_llama(dtype: torch.dtype = torch.float32, seed: int = 0) -> LlamaForCausalLM:
    """Two layers of width 32 with random weights."""
    config = LlamaConfig(
        vocab_size=258,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).to(dtype)


def tiny_t5(dtype: torch.dtype = torch.float32, seed: int = 0, **changes: object) -> T5ForConditionalGeneration:
    """Two layers of width 32 on either side with random weights, and T5's own dropout of 0.1."""
    config = T5Config(
        vocab_size=258,
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=32,
        decoder_start_token_id=0,
        **changes,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return T5ForConditionalGeneration(config).to(dtype)


def terse(model: PreTrainedModel) -> PreTrainedModel:
    """The model with many tokens that end a text, which random weights seldom do otherwise."""
    model.generation_config.eos_token_id = list(range(1, 60))
    return model


def save_tiny_model(folder: Path, model: PreTrainedModel | None = None) -> Path:
    """A tiny model (the Llama) and its tokenizer as a folder that `model: PATH` takes."""
    (model or tiny_llama()).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def write_tasks(folder: Path, train: int = 24, test: int = 8) -> list[dict]:
    """Small two-way tasks as alpaca JSONL files; returns their entries for a config."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for name, labels in WORDS.items():
        for split, count in (("train", train), ("test", test)):
            rows = [
                {
                    "instruction": f"Name the {name}.",
                    "input": f"{split} {k} {'xyz'[k % 3] * (1 + k % 5)}",
                    "output": labels[k % 2],
                    "choices": labels,
                }
                for k in range(count)
            ]
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / f"{name}_{split}.jsonl").write_text(text)
        entries.append({"name": name, "train": f"{name}_train.jsonl", "test": f"{name}_test.jsonl"})
    return entries


def tiny_values(folder: Path, **changes: object) -> dict:
    """A complete configuration as plain values; write it as YAML into `folder` or pass it to make_config."""
    values = {
        "model": str(save_tiny_model(folder / "model")),
        "tasks": write_tasks(folder),
        "strategy": "mssr",
        "training": {"learning_rate": 1.0e-2, "batch_size": 4, "max_length": 128},
        "schedule": {"first_interval": 1},
        "evaluation": {"batch_size": 4},
        "output": "run",
    }
    return values | changes


@contextmanager
def stopped_after(number: int, step: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What runs inside is stopped after this step of the stage with this number, as by a kill."""
    real = retain.progress.StageProgress.save

    def stop(self, after):
        real(self, after)
        if (self.stage.number, after) == (number, step):
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(retain.progress.StageProgress, "save", stop)
        yield


@contextmanager
def stopped_in(number: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What runs inside is stopped as by Ctrl-C when it begins to train the stage with this number."""
    real = retain.stages.train_stage

    def stop(lm, stage, *rest):
        if stage.number == number:
            raise KeyboardInterrupt
        return real(lm, stage, *rest)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(retain.stages, "train_stage", stop)
        yield
