"""Training speed of `replayify(SFTTrainer)` against plain SFTTrainer at equal samples, in turns in one process.

    pip install -e '.[benchmark]'
    python benchmarks/replayify_throughput.py [--data ../shared/data] [--rounds 3] [--samples 24]

SmolLM2-135M with LoRA r 8, float32. A step trains 8 new samples and 8 replayed ones. The plain trainer is given the
same samples in the same order, 8 a forward pass and 2 passes a step, so both do the same arithmetic. Counted is all of
`train()`, on the wall and in processor time, which other programs disturb less.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import datasets
import transformers
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback
from trl import SFTConfig, SFTTrainer

from retain.embedded import embedded_model
from retain.integrations.transformers import Replay, replayify
from retain.linear import mkl_is_slow, use_onednn
from retain.types import Sample

BATCH = 8
OLD, NEW = "sst2", "trec"
Rows = list[dict[str, str]]


def read_rows(data: Path, task: str, count: int) -> Rows:
    """The first rows of a task as prompts and completions."""
    found = datasets.load_dataset("json", data_files=str(data / task / "train.jsonl"), split=f"train[:{count}]")
    return [
        {"prompt": f"{row['instruction']}\n{row['input']}\nAnswer:\n", "completion": row["output"]} for row in found
    ]


def train(rows: Rows, folder: Path, passes: int, replay: Replay | None = None) -> tuple[float, float]:
    """Wall and processor seconds of a fresh model's `train()`."""
    lora = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(embedded_model()), lora)
    if mkl_is_slow():
        use_onednn(model)
    trainer = (replayify(SFTTrainer) if replay else SFTTrainer)(
        model=model,
        args=SFTConfig(
            str(folder),
            per_device_train_batch_size=BATCH,
            gradient_accumulation_steps=passes,
            num_train_epochs=1,
            train_sampling_strategy="sequential",
            bf16=False,
            gradient_checkpointing=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(embedded_model()),
        **({"replay": replay} if replay else {}),
    )
    trainer.remove_callback(PrinterCallback)
    wall, processor = time.perf_counter(), time.process_time()
    trainer.train()
    return time.perf_counter() - wall, time.process_time() - processor


def with_replay(old: Rows, new: Rows) -> tuple[tuple[float, float], Rows]:
    """Seconds of a stage with replay, and all it trained in order."""
    with tempfile.TemporaryDirectory() as folder:
        first = Replay(f"{folder}/memory", OLD, "er", schedule={"lambda_0": 0.5}, model="smollm2-135m")
        first.begin(len(old), len(old), BATCH, 1, {})
        first.finish(lambda _: None, lambda one, row: Sample(one, OLD, old[row]["prompt"], old[row]["completion"]))
        replay = Replay(f"{folder}/memory", NEW)
        seconds = train(new, Path(folder), 1, replay)
    trained = []
    for step, ids in zip(replay.steps, replay.replayer.drawn, strict=True):
        trained += [new[row] for row in step.rows] + [old[int(one.rpartition("/")[2])] for one in ids]
    return seconds, trained


def plain(rows: Rows) -> tuple[float, float]:
    """Seconds of the same samples without replay."""
    with tempfile.TemporaryDirectory() as folder:
        return train(rows, Path(folder), 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("RETAIN_DATA", "../shared/data")))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=24, help="new samples, a multiple of 8")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    old, new = (read_rows(arguments.data, task, arguments.samples) for task in (OLD, NEW))
    _, trained = with_replay(old[:BATCH], new[:BATCH])  # warm-up
    ratios: list[tuple[float, float]] = []
    for number in range(arguments.rounds):
        if number % 2 and ratios:
            theirs, (mine, trained) = plain(trained), with_replay(old, new)
        else:
            mine, trained = with_replay(old, new)
            theirs = plain(trained)
        ratios.append((theirs[0] / mine[0], theirs[1] / mine[1]))
        times = f"replay {mine[0]:.1f} s ({mine[1]:.1f} s of processor), plain {theirs[0]:.1f} s ({theirs[1]:.1f} s)"
        print(f"round {number + 1}: {len(trained)} samples each; {times}", flush=True)
    wall, processor = (statistics.median(column) for column in zip(*ratios, strict=True))
    print(f"speed with replay against plain: {processor:.3f} by processor time, {wall:.3f} on the wall")


if __name__ == "__main__":
    main()
