"""What plain SFTTrainer forgets, and what `replayify(SFTTrainer)` keeps: two real tasks in turn, on SmolLM2-135M.

    pip install -e '.[benchmark]'
    python benchmarks/trl_forgetting.py [--data ../shared/data] [--samples 160] [--items 50] [--strategy mssr]

The first task is trained once: without a past both trainers are the same, to the bit. From its weights the second one
is trained without and with replay, with the same new samples in the same order. Scores are exact match of the generated
answer; losses are the mean over the held-out answers' tokens.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import datasets
import transformers
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback
from trl import SFTConfig, SFTTrainer

from retain.config import Config, make_config
from retain.embedded import embedded_model
from retain.evaluate import evaluate_task
from retain.integrations.transformers import Replay, replayify
from retain.linear import mkl_is_slow, use_onednn
from retain.model import LanguageModel
from retain.strategies.base import snapshot
from retain.tasks import load_tasks
from retain.types import Task

TASKS = ("trec", "sst2")


def read(arguments: argparse.Namespace) -> tuple[Config, list[Task]]:
    """Both tasks, in the default template of `retain run`."""
    limits = {"max_train": arguments.samples, "max_test": arguments.items}
    tasks = [{"name": name, "train": f"{name}/train.jsonl", "test": f"{name}/test.jsonl", **limits} for name in TASKS]
    config = make_config({"tasks": tasks, "data_seed": arguments.seed}, "benchmark")
    return config, load_tasks(config, arguments.data)


def train(trainer: type, model, tokenizer, task: Task, folder: str, arguments: argparse.Namespace, **more) -> float:
    """Train one task; returns processor seconds."""
    rows = [{"prompt": sample.prompt, "completion": sample.answer} for sample in task.train]
    made = trainer(
        model=model,
        args=SFTConfig(
            folder,
            per_device_train_batch_size=arguments.batch,
            learning_rate=arguments.rate,
            num_train_epochs=1,
            seed=arguments.seed,
            bf16=False,
            gradient_checkpointing=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
        **more,
    )
    made.remove_callback(PrinterCallback)
    started = time.process_time()
    made.train()
    return time.process_time() - started


def score(model, tokenizer, config: Config, tasks: list[Task]) -> list[tuple[float, float]]:
    """(score, loss) on each task."""
    lm = LanguageModel(model, tokenizer, 1024)
    found = [evaluate_task(lm, task, config.evaluation)[0] for task in tasks]
    return [(one.generated, one.nll) for one in found]


def measure(arguments: argparse.Namespace) -> dict[str, list[tuple[float, float]]]:
    """The rows of the table."""
    config, tasks = read(arguments)
    tokenizer = AutoTokenizer.from_pretrained(embedded_model())
    lora = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    transformers.set_seed(arguments.seed)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(embedded_model()), lora)
    if mkl_is_slow():
        use_onednn(model)
    table = {"untouched": score(model, tokenizer, config, tasks)}
    with tempfile.TemporaryDirectory() as folder:
        memory, both = f"{folder}/memory", replayify(SFTTrainer)
        replay = Replay(memory, TASKS[0], arguments.strategy, seed=arguments.seed)
        train(both, model, tokenizer, tasks[0], f"{folder}/trainer", arguments, replay=replay)
        table[f"after {TASKS[0]}"] = score(model, tokenizer, config, tasks)
        learned = snapshot(model)
        for name in ("plain SFTTrainer", f"replayify, {arguments.strategy}"):
            model.load_state_dict(learned, strict=False)
            replay = Replay(memory, TASKS[1])
            plain = name.startswith("plain")
            seconds = train(SFTTrainer if plain else both, model, tokenizer, tasks[1], f"{folder}/trainer", arguments,
                            **({} if plain else {"replay": replay}))  # fmt: skip
            table[f"after {TASKS[1]}, {name}"] = score(model, tokenizer, config, tasks)
            extra = "" if plain else f", {replay.counts['replayed_samples']} samples replayed"
            print(f"{name}: {seconds:.0f} s of processor time{extra}", flush=True)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("RETAIN_DATA", "../shared/data")))
    parser.add_argument("--samples", type=int, default=160, help="training samples of each task")
    parser.add_argument("--items", type=int, default=50, help="test items of each task")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--strategy", default="mssr")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    table = measure(arguments)
    rows = [("", *(f"{task} {what}" for task in TASKS for what in ("score", "loss")))]
    rows += [(name, *(f"{value:.2f}" for pair in found for value in pair)) for name, found in table.items()]
    for number, row in enumerate(rows):
        print(f"| {' | '.join(row)} |")
        if not number:
            print(f"|{'---|' * len(row)}")


if __name__ == "__main__":
    main()
