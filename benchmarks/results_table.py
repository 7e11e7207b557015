"""The tables of docs/methods.md, from the results.json of finished runs.

python benchmarks/results_table.py runs/text4-none runs/text4-mssr
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from retain.cells import bytes_kept
from retain.config import load_config

COLUMNS = ("ACC", "BWT", "forgetting", "forgetting_final", "NLL")
COSTS = ("replayed", "kept", "tokens written", "training s", "all s")


def number(value: float | None) -> str:
    """Two decimals with a sign where it says something; a dash for null."""
    return "-" if value is None else f"{value:.2f}".replace("-0.00", "0.00")


def written(folder: Path) -> int:
    """Tokens that the model wrote as rehearsal data, dropped candidates included."""
    lines = map(json.loads, (folder / "journal.jsonl").read_text(encoding="utf-8").splitlines())
    return sum(line["generated_tokens"] for line in lines if line["kind"] == "synthesis")


def main(folders: list[str]) -> None:
    """Print one row a run, then each run's score matrix, as Markdown."""
    runs = [json.loads((Path(folder) / "results.json").read_text(encoding="utf-8")) for folder in folders]
    tasks = runs[0]["tasks"]
    print("| strategy |", " | ".join(tasks), "|", " | ".join([*COLUMNS, *COSTS]), "|")
    print("|---" * (1 + len(tasks) + len(COLUMNS) + len(COSTS)) + "|")
    for run, folder in zip(runs, folders, strict=True):
        scores = [number(value) for value in run["matrix"][-1]]
        metrics = [number(run["metrics"][name]) for name in COLUMNS]
        costs = run["costs"]
        kept = bytes_kept(load_config(Path(folder) / "config.yaml"), Path(folder))
        counts = [f"{costs['replayed_samples']:,}", f"{kept / 1000:.0f} kB", f"{written(Path(folder)):,}"]
        seconds = [f"{costs[key]:.0f}" for key in ("train_seconds", "seconds")]
        cells = [f"`{run['strategy']}`", *scores, *metrics, *counts, *seconds]
        print("|", " | ".join(cells), "|")
    for run in runs:
        print(f"\n`{run['strategy']}`, score after each stage:\n")
        print("| after |", " | ".join(tasks), "|")
        print("|---" * (len(tasks) + 1) + "|")
        names = ["base model", *(["all tasks"] if run["joint"] else tasks)]
        for name, row in zip(names, run["matrix"], strict=False):
            print("|", name, "|", " | ".join(map(number, row)), "|")
    print(f"\nseed {runs[0]['seed']};", ", ".join(f"{name} {version}" for name, version in runs[0]["versions"].items()))


if __name__ == "__main__":
    main(sys.argv[1:])
