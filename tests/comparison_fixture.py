"""Finished cells of a comparison made up for tests, with effects that are known."""

from __future__ import annotations

import numpy as np

from retain.matrix import summarize

TASKS = ["sst2", "trec", "dbpedia"]
ACCURACY = {"none": 0.45, "fixed": 0.60, "er": 0.605, "mssr": 0.72, "joint": 0.80}


def cell(row, seed, accuracy, *, items=50, order=1, tasks=TASKS, strategy=None):
    """One cell whose test items are right with a probability that depends on the item more than on the method."""
    generator = np.random.default_rng([seed, order, len(row)])
    hard = np.random.default_rng(0).normal(0.0, 0.15, (len(TASKS), items))
    chance = np.clip(accuracy + generator.normal(0.0, 0.01) + hard, 0.0, 1.0)
    right = (np.random.default_rng([seed, 1]).random((len(TASKS), items)) < chance).astype(float)
    joint = row == "joint"
    final = right.mean(axis=1)
    rows = [
        [0.1] * 3,
        *([[0.9 if column <= stage else 0.1 for column in range(3)] for stage in range(2)] * (not joint)),
    ]
    matrix = [*rows, final.tolist()]
    costs = {
        "train_tokens": 30_000, "replayed_samples": 0 if row in ("none", "joint") else 64, "replayed_tokens": 900,
        "probe_tokens": 0, "eval_tokens": 50_000, "generated_tokens": 200, "train_seconds": 60.0,
        "eval_seconds": 30.0, "seconds": 90.0, "peak_memory_bytes": 10**9, "bytes_kept": 40_000,
    }  # fmt: skip
    results = {
        "tasks": list(tasks),
        "matrix": matrix,
        "matrices": {"generated": matrix},
        "metrics": {**summarize(matrix, joint), "NLL": 1.0 - accuracy},
        "joint": joint,
        "costs": costs,
        "strategy": strategy or row,
    }
    return {
        "format": 1,
        "label": f"{row}.seed{seed}",
        "row": row,
        "strategy": strategy or row,
        "seed": seed,
        "order": order,
        "settings": {},
        "config": {"model": {"name": "tiny"}, "schedule": {"budget": 0.1}},
        "data": {},
        "results": results,
        "items": {
            task: {"ids": f"ids of {task}", "score": right[place].tolist(), "nll": (1.0 - right[place]).tolist()}
            for place, task in enumerate(tasks)
        },
    }


def cells(seeds=(1, 2, 3), rows=ACCURACY, **more):
    """Every row under every seed."""
    return [cell(row, seed, rows[row], **more) for row in rows for seed in seeds]
