"""Speed of writing synthetic samples against a loop of `model.generate`, alternating.

    python benchmarks/synthesis_throughput.py [--data ../shared/data] [--rounds 3]

SmolLM2-135M with LoRA r 8 on q_proj and v_proj is trained for two passes over 104 samples of sst2, on their inputs as
well, so that it ends its texts as the task does. Then both sides write 128 inputs from the task's description, each
with an answer, in batches of 32 with top-k 50, top-p 0.95 and temperature 1, in float32. The other side is what a
user of transformers and PEFT writes: `generate` for the inputs, left-padded `generate` for the answers. A second
measurement lets 64 texts run to 64 tokens, whether they end or not.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import peft
import torch
import transformers
from accelerate import Accelerator
from transformers import AutoModelForCausalLM

from retain.config import make_config
from retain.embedded import embedded_model
from retain.generation import sample
from retain.layouts import choose_layout
from retain.likelihood import draw_labels, label_distribution
from retain.model import LanguageModel, load_model
from retain.sampling import Sampling
from retain.strategies.base import Strategy
from retain.trainer import Optimization
from retain.types import Sample

COUNT, BATCH = 128, 32
INPUT_TOKENS, ANSWER_TOKENS = 128, 16
FIXED_COUNT, FIXED_TOKENS = 64, 64
TRAINED, PASSES = 104, 2
REQUEST = "Generate a training example for: {}\nInput:"


class Outcome(NamedTuple):
    """What one side wrote: (input, answer) pairs, tokens of the inputs, seconds for inputs and for answers."""

    pairs: list[tuple[str, str]]
    tokens: list[int]
    inputs: float
    answers: float

    @property
    def speed(self) -> float:
        return len(self.pairs) / (self.inputs + self.answers)


class Task(NamedTuple):
    """One real task: its instruction, its labels and rows to train on."""

    instruction: str
    labels: list[str]
    rows: list[dict]

    @property
    def request(self) -> str:
        return REQUEST.format(self.instruction)

    def prompt(self, text: str) -> str:
        return f"{self.instruction}\n{text}\nAnswer:\n"


def read_task(data: Path) -> Task:
    """sst2 in alpaca form."""
    lines = (data / "sst2" / "train.jsonl").read_text(encoding="utf-8").splitlines()[:TRAINED]
    rows = [json.loads(line) for line in lines]
    return Task(rows[0]["instruction"], rows[0]["choices"], rows)


def train(task: Task) -> LanguageModel:
    """The model after two passes over the task, answers and inputs alike."""
    config = make_config({"training": {"learning_rate": 1e-3}}, "benchmark", need_tasks=False)
    lm = load_model(config)
    choose_layout(lm)
    steps = PASSES * [task.rows[k : k + 8] for k in range(0, len(task.rows), 8)]
    optimization = Optimization(lm, Strategy(), Accelerator(), config.training, len(steps))
    for rows in steps:
        answers = [Sample("", "", task.prompt(row["input"]), row["output"]) for row in rows]
        inputs = [Sample("", "", task.request, row["input"]) for row in rows]
        optimization.step(answers + inputs, np.ones(2 * len(rows)))
    return lm


def ours(lm: LanguageModel, task: Task, seed: int) -> Outcome:
    """Inputs sampled in slots; answers drawn from the distribution over the labels."""
    started = time.perf_counter()
    request = lm.tokenizer(task.request).input_ids
    texts = sample(lm, [request] * COUNT, Sampling(), INPUT_TOKENS, batch_size=BATCH, seed=(seed,))
    inputs = [lm.tokenizer.decode(text.ids) for text in texts]
    between = time.perf_counter()
    prompts = [lm.tokenizer(task.prompt(text)).input_ids for text in inputs]
    labels = [lm.answer_ids(Sample("", "", "", ""), label) for label in task.labels]
    chosen = draw_labels(label_distribution(lm, prompts, labels), (seed, 1))
    done = time.perf_counter()
    pairs = list(zip(inputs, (task.labels[k] for k in chosen), strict=True))
    return Outcome(pairs, [text.tokens for text in texts], between - started, done - between)


def generate(model: peft.PeftModel, tokenizer, prompts: list[str], max_new_tokens: int, **options) -> torch.Tensor:
    """New tokens of one batch of prompts by transformers."""
    batch = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
    with torch.inference_mode():
        out = model.generate(
            **batch,
            do_sample=True,
            temperature=1.0,
            top_k=50,
            top_p=0.95,
            max_new_tokens=max_new_tokens,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **options,
        )
    return out[:, batch.input_ids.shape[1] :]


def theirs(model: peft.PeftModel, tokenizer, task: Task, seed: int) -> Outcome:
    """The loop: `generate` for the inputs, `generate` for the answers."""
    torch.manual_seed(seed)
    started = time.perf_counter()
    inputs, tokens = [], []
    for _ in range(0, COUNT, BATCH):
        ids = generate(model, tokenizer, [task.request] * BATCH, INPUT_TOKENS)
        ended = ids == tokenizer.eos_token_id
        tokens += torch.where(ended.any(1), ended.int().argmax(1) + 1, ids.shape[1]).tolist()
        inputs += tokenizer.batch_decode(ids, skip_special_tokens=True)
    between = time.perf_counter()
    answers = []
    for k in range(0, COUNT, BATCH):
        ids = generate(model, tokenizer, [task.prompt(text) for text in inputs[k : k + BATCH]], ANSWER_TOKENS)
        answers += tokenizer.batch_decode(ids, skip_special_tokens=True)
    done = time.perf_counter()
    return Outcome(list(zip(inputs, answers, strict=True)), tokens, between - started, done - between)


def fixed(lm: LanguageModel, model: peft.PeftModel, task: Task) -> tuple[float, float]:
    """Tokens per second of both sides where every text runs to the same length."""
    request = lm.tokenizer(task.request).input_ids
    started = time.perf_counter()
    sample(lm, [request] * FIXED_COUNT, Sampling(), FIXED_TOKENS, batch_size=BATCH, stop=())
    between = time.perf_counter()
    for _ in range(0, FIXED_COUNT, BATCH):
        generate(model, lm.tokenizer, [task.request] * BATCH, FIXED_TOKENS, min_new_tokens=FIXED_TOKENS)
    done = time.perf_counter()
    total = FIXED_COUNT * FIXED_TOKENS
    return total / (between - started), total / (done - between)


def describe(name: str, outcome: Outcome) -> str:
    return (
        f"{name} {outcome.speed:.2f} samples/s ({outcome.inputs:.1f} s inputs of {statistics.mean(outcome.tokens):.0f}"
        f" tokens, at most {max(outcome.tokens)}; {outcome.answers:.1f} s answers)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("RETAIN_DATA", "../shared/data")))
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    task = read_task(arguments.data)
    lm = train(task)
    with tempfile.TemporaryDirectory() as folder:
        lm.save_adapter(Path(folder))
        plain = AutoModelForCausalLM.from_pretrained(embedded_model(), dtype=torch.float32)
        model = peft.PeftModel.from_pretrained(plain, folder).eval()
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, transformers {transformers.__version__}")
    lengths, ratios = [], []
    for k in range(arguments.rounds):
        mine, other = fixed(lm, model, task)
        lengths.append(mine / other)
        print(f"round {k + 1}, fixed length: ours {mine:.0f} tokens/s, generate {other:.0f}, ratio {lengths[-1]:.2f}")
        mine, other = ours(lm, task, k), theirs(model, lm.tokenizer, task, k)
        ratios.append(mine.speed / other.speed)
        print(f"round {k + 1}, natural end: {describe('ours', mine)}; {describe('generate', other)}; {ratios[-1]:.2f}")
    for text, answer in mine.pairs[:4]:
        print(f"  {text.strip()!r} -> {answer}")
    each = ", ".join(f"{ratio:.2f}" for ratio in lengths)
    print(f"tokens per second at fixed length, ratio to generate: {statistics.median(lengths):.2f} (rounds: {each})")
    each = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    print(f"samples per second at natural end, ratio to generate: {statistics.median(ratios):.2f} (rounds: {each})")


if __name__ == "__main__":
    main()
