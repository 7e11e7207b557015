"""Training speed against TRL's SFTTrainer on the same samples, alternating, and against this machine's limit.

    pip install -e '.[benchmark]'
    python benchmarks/train_throughput.py [--data ../shared/data] [--rounds 3]

Both train SmolLM2-135M with LoRA r 8 on q_proj and v_proj on the same 96 samples (half sst2, half ag_news),
batch 8, float32. A real token is a token of a sample, counted alike for both, without padding.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
import transformers
from accelerate import Accelerator
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from retain.config import make_config
from retain.embedded import embedded_model
from retain.layouts import choose_layout
from retain.linear import mkl_is_slow, use_onednn
from retain.model import load_model
from retain.strategies.base import Strategy
from retain.trainer import Optimization
from retain.types import Sample

BATCH = 8


def read_samples(data: Path, order: str = "tasks", per_task: int = 48) -> list[Sample]:
    """The first samples of both tasks: one task after the other, or taken in turns."""
    found = []
    for task in ("sst2", "ag_news"):
        lines = (data / task / "train.jsonl").read_text(encoding="utf-8").splitlines()[:per_task]
        rows = [json.loads(line) for line in lines]
        found.append(
            [
                Sample(f"{task}/{k}", task, f"{r['instruction']}\n{r['input']}\nAnswer:\n", r["output"])
                for k, r in enumerate(rows)
            ]
        )
    groups = found if order == "tasks" else zip(*found, strict=True)
    return [sample for group in groups for sample in group]


def ours(samples: list[Sample]) -> float:
    """Seconds inside the training steps of our loop."""
    config = make_config({"training": {"learning_rate": 1e-3, "batch_size": BATCH}}, "benchmark", need_tasks=False)
    lm = load_model(config)
    choose_layout(lm)
    steps = [samples[k : k + BATCH] for k in range(0, len(samples), BATCH)]
    optimization = Optimization(lm, Strategy(), Accelerator(), config.training, len(steps))
    started = time.perf_counter()
    for batch in steps:
        optimization.step(batch, np.ones(len(batch)))
    return time.perf_counter() - started


def trl(samples: list[Sample], sampling: str) -> float:
    """Seconds TRL reports for its training loop; `sampling` is "random" (its default) or "sequential"."""
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    folder = embedded_model()
    rows = Dataset.from_list([{"prompt": s.prompt, "completion": s.answer} for s in samples])
    with tempfile.TemporaryDirectory() as scratch:
        arguments = SFTConfig(
            output_dir=scratch,
            per_device_train_batch_size=BATCH,
            num_train_epochs=1,
            learning_rate=1e-3,
            train_sampling_strategy=sampling,
            bf16=False,
            gradient_checkpointing=False,
            packing=False,
            use_cpu=not torch.cuda.is_available(),
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        trainer = SFTTrainer(
            model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
            processing_class=AutoTokenizer.from_pretrained(folder),
            args=arguments,
            train_dataset=rows,
            peft_config=LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
        )
        return trainer.train().metrics["train_runtime"]


def matmul_gflops(size: int = 2048, repeats: int = 10) -> float:
    """Measured speed of a square float32 matrix product, in GFLOP/s, by the library our loop uses."""
    product = torch.nn.Linear(size, size, bias=False).requires_grad_(False)
    if mkl_is_slow():
        use_onednn(product)
    a = torch.rand(size, size)
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        product(a)
        times.append(time.perf_counter() - started)
    return 2 * size**3 / statistics.median(times) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("RETAIN_DATA", "../shared/data")))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--order", choices=["tasks", "mixed"], default="tasks", help="what our loop is given")
    parser.add_argument("--trl-sampling", choices=["random", "sequential"], default="random")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    samples = read_samples(arguments.data, arguments.order)
    tokenizer = AutoTokenizer.from_pretrained(embedded_model())
    tokens = sum(len(tokenizer(s.prompt + s.answer).input_ids) + 1 for s in samples)
    model = AutoModelForCausalLM.from_pretrained(embedded_model())
    weights = sum(p.numel() for p in model.parameters()) - model.get_input_embeddings().weight.numel()
    print(f"{len(samples)} samples, {tokens} real tokens, {torch.get_num_threads()} threads, torch {torch.__version__}")
    speeds, ratios, shares = [], [], []
    for k in range(arguments.rounds):
        limit = matmul_gflops() * 1e9 / (4 * weights)
        mine, theirs = tokens / ours(samples), tokens / trl(samples, arguments.trl_sampling)
        speeds.append(mine)
        ratios.append(mine / theirs)
        shares.append(mine / limit)
        print(f"round {k + 1}: ours {mine:.0f} tokens/s, TRL {theirs:.0f}, limit {limit:.0f}")
    print(f"share of the matrix-product limit: {statistics.median(shares):.2f}")
    print(f"ratio to TRL: {statistics.median(ratios):.2f} (rounds: {', '.join(f'{r:.2f}' for r in ratios)})")


if __name__ == "__main__":
    main()
