"""What `retain plan` says of the 7B recipe on one to eight GPUs. The data are stand-ins: words drawn at random, as many
rows and words a row as the real ones roughly have, so that nothing is downloaded.

python benchmarks/plan_scale.py
python benchmarks/plan_scale.py --model google/gemma-2-9b --processes 1 8
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import yaml

from retain.choosing import settle
from retain.config import Config, make_config
from retain.costs import DEVICES, USUAL_MFU, Hardware
from retain.estimates import estimate
from retain.scheduler import plan_run

RECIPE = Path(__file__).parents[1] / "recipes" / "paper3.yaml"
# Training rows, test rows, words of a question and of an answer; of the papers' tables and the data sets' pages.
STAND_INS = {
    "alpaca_gpt4": (20_000, 500, 20, 120),
    "gsm8k": (7_473, 1_319, 45, 100),
    "math": (7_500, 1_000, 40, 100),
    "mmlu": (0, 1_000, 60, 1),
}


def write_stand_ins(folder: Path) -> None:
    """A file of random words for each split."""
    rng = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlu"))
    words = ["".join(rng.choice(letters, size)) for size in rng.integers(3, 8, 2000)]

    def text(count: int) -> str:
        return " ".join(words[k] for k in rng.integers(0, len(words), max(1, int(rng.gamma(4.0, count / 4.0)))))

    for name, (train, test, question, answer) in STAND_INS.items():
        (folder / name).mkdir(parents=True)
        for split, count in (("train", train), ("test", test)):
            rows = [{"instruction": "", "input": text(question), "output": text(answer)} for _ in range(count)]
            (folder / name / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def stood_in(data: Path, model: str) -> Config:
    """The recipe's run on the stand-ins."""
    run = yaml.safe_load(RECIPE.read_text())["run"]
    for task in run["tasks"]:
        task |= {split: str(data / task["name"] / f"{split}.jsonl") for split in ("train", "test") if split in task}
    return make_config({**run, "model": {**run["model"], "name": model}, "strategy": "mssr"}, str(RECIPE))


def main() -> None:
    """Print a line for each device and number of processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="Qwen/Qwen2.5-7B")
    parser.add_argument("--devices", nargs="+", default=["rtx4090", "l4", "a100", "h100"], choices=DEVICES)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--mfu", type=float, default=USUAL_MFU)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_stand_ins(Path(folder) / "data")
        config = stood_in(Path(folder) / "data", options.model)
        _, tasks, _ = settle(config, Path(folder))
        plans = plan_run(config, [(task.name, len(task.train)) for task in tasks if task.is_stage])
        print(f"{options.model}, {RECIPE.name}, mssr; tokens of stand-in data")
        for device in options.devices:
            for processes in options.processes:
                hardware = Hardware(device, processes, options.mfu)
                show(estimate(config, Path(folder), tasks, plans, hardware))


def show(found: dict) -> None:
    """One line."""
    hours, memory = found["hours"], found["memory_bytes"]
    fits = "fits" if memory["total"] <= (memory["device"] or np.inf) else "DOES NOT FIT"
    print(
        f"{found['processes']:2d} x {found['device']:10s} training {hours['training']:7.1f} h, "
        f"evaluation {hours['evaluation']:5.2f} h, writing at most {hours['writing_at_most']:5.2f} h, "
        f"{memory['total'] / 1e9:5.1f} GB {fits}; {found['tokens']['training'] / 1e6:.0f} M tokens, "
        f"{found['flops']['training'] / 1e18:.2f} EFLOP"
    )


if __name__ == "__main__":
    main()
