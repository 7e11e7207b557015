"""Each method against the reference: paired by seed, task order and test item, with intervals and a plain sentence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from retain.intervals import holm, paired_interval, pooled_variance
from retain.report.words import number
from retain.types import InputError

Cell = Mapping[str, Any]
MEASURES = {"ACC": "score", "NLL": "nll"}  # what is compared item by item, and the items' name for it
BY_SEED = ("BWT", "forgetting")  # what only whole runs have


def differences(cells: Sequence[Cell], reference: str, level: float, spread: str = "pooled") -> list[dict[str, Any]]:
    """Every other row of the table minus the reference, for each of `MEASURES` and `BY_SEED`.

    Each is {"row", "measure", "difference", "low", "high", "p", "p_holm", "over", "pairs", "seeds", "items", "apart",
    "sentence"}: the interval at `level`, p after Holm over the rows compared in this measure, what was resampled, the
    pairs of runs by seed and order, and for how many test items the method is better, worse or as good. Rows without a
    run that has its pair are left out. spread: whether how much a difference varies over seeds is told by its "own"
    seeds alone, or by those of all methods together ("pooled") where its own do not vary more.
    """
    rows = [row for row in dict.fromkeys(cell["row"] for cell in cells) if row != reference]
    entries: list[dict[str, Any]] = []
    for measure in (*MEASURES, *BY_SEED):
        pairs = {row: found for row in rows if (found := _pairs(cells, row, reference, measure))}
        pooled = _pooled(pairs.values(), measure) if spread == "pooled" else None
        compared = [_compare(own, row, measure, level, pooled) for row, own in pairs.items()]
        known = [entry for entry in compared if entry["p"] is not None]
        for entry, p in zip(known, holm([entry["p"] for entry in known]), strict=True):
            entry["p_holm"], entry["apart"] = p, p < 1.0 - level
        for entry in compared:
            entry["sentence"] = sentence(entry, reference, level, len(known))
        entries += compared
    return entries


def sentence(entry: Mapping[str, Any], reference: str, level: float, comparisons: int) -> str:
    """What a difference says, in words."""
    row, digits = entry["row"], 3
    if entry["low"] is None:
        runs = f"one run each, so there is no interval; {entry['measure']} differs by "
        return f"{row} and {reference}: {runs}{number(entry['difference'], digits)}."
    interval = f"{100 * level:g} % interval {number(entry['low'], digits)} to {number(entry['high'], digits)}"
    size = f"{entry['measure']} {number(entry['difference'], digits)}, {interval}"
    if entry["apart"]:
        verb = "lower" if entry["difference"] < 0 else "higher"
        of = f" after Holm's correction for {comparisons} comparisons" if comparisons > 1 else ""
        size = f"by {number(abs(entry['difference']), digits)}, {interval}"
        return f"{row} has a {verb} {entry['measure']} than {reference}, {size}; p = {shown_p(entry['p_holm'])}{of}."
    apart = f"The data do not tell {row} and {reference} apart: difference in {size}"
    if entry["low"] <= 0.0 <= entry["high"]:
        return f"{apart}."
    return f"{apart} taken alone, but p = {shown_p(entry['p_holm'])} among {comparisons} comparisons (Holm)."


def caveat(entries: Sequence[Mapping[str, Any]]) -> str | None:
    """What the intervals do not cover."""
    over = {tuple(entry["over"]) for entry in entries if entry["measure"] in MEASURES}
    if over == {("items",)}:
        return "One seed: the intervals cover the choice of test items alone, and another seed may turn a difference."
    if over == {("seeds",)}:
        return "No scores of single test items: the intervals cover the choice of seeds alone."
    if any("seeds" not in one for one in over):
        return "Where a method has one seed, its interval covers the choice of test items alone."
    return None


def shown_p(p: float) -> str:
    """0.034, or that it is smaller than 0.001."""
    return "< 0.001" if p < 0.001 else number(p, 3)


def _compare(
    pairs: Sequence[tuple[Cell, Cell]], row: str, measure: str, level: float, pooled: tuple[float, int] | None
) -> dict[str, Any]:
    by_item = _item_differences(pairs, MEASURES[measure]) if measure in MEASURES else None
    values = _values(pairs, measure)
    interval = paired_interval(list(by_item.values()) if by_item else [_by_seed(pairs, values)], level, pooled)
    return {
        "row": row,
        "measure": measure,
        **{key: getattr(interval, key) for key in ("difference", "low", "high", "p", "over")},
        "p_holm": None,
        "apart": False,
        "pairs": [
            {"seed": a["seed"], "order": a["order"], "difference": float(value)}
            for (a, _), value in zip(pairs, values[:, 0], strict=True)
        ],
        "items": _counted(by_item, -1 if measure == "NLL" else 1) if by_item else None,
        "tasks": {task: float(each.mean()) for task, each in by_item.items()} if by_item else None,
    }


def _pooled(compared: Iterable[Sequence[tuple[Cell, Cell]]], measure: str) -> tuple[float, int] | None:
    """The variance over seeds from all rows that have the most seeds, the reference among them as zeros."""
    means = [_by_seed(pairs, _values(pairs, measure))[:, 0] for pairs in compared]
    most = max((len(each) for each in means), default=0)
    return pooled_variance(np.array([np.zeros(most), *(each for each in means if len(each) == most)]))


def _pairs(cells: Sequence[Cell], row: str, reference: str, measure: str) -> list[tuple[Cell, Cell]]:
    """The runs of both rows that have seed, task order and a score in this measure."""
    known = {(c["row"], c["seed"], c["order"]): c for c in cells if c["results"]["metrics"].get(measure) is not None}
    keys = [key for key in known if key[0] == row and (reference, *key[1:]) in known]
    return [(known[key], known[reference, *key[1:]]) for key in keys]


def _values(pairs: Sequence[tuple[Cell, Cell]], measure: str) -> np.ndarray:
    """Differences (pairs, 1)."""
    return np.array([[a["results"]["metrics"][measure] - b["results"]["metrics"][measure]] for a, b in pairs])


def _item_differences(pairs: Sequence[tuple[Cell, Cell]], kind: str) -> dict[str, np.ndarray] | None:
    """By task the differences (seeds, items), task orders averaged; None where a run kept no items."""
    tasks = pairs[0][0]["results"]["tasks"]
    if any(task not in cell["items"] for pair in pairs for cell in pair for task in tasks):
        return None
    found = {}
    for task in tasks:
        if len({cell["items"][task]["ids"] for pair in pairs for cell in pair}) > 1:
            labels = ", ".join(sorted({cell["label"] for pair in pairs for cell in pair})[:4])
            raise InputError(f"task {task!r}: scored on other test items in some of {labels}; run these again")
        each = [np.subtract(a["items"][task][kind], b["items"][task][kind]) for a, b in pairs]
        found[task] = _by_seed(pairs, np.array(each))
    return found


def _by_seed(pairs: Sequence[tuple[Cell, Cell]], values: np.ndarray) -> np.ndarray:
    """Means (seeds, n) over the task orders of each seed of `values` (pairs, n)."""
    seeds = np.array([a["seed"] for a, _ in pairs])
    return np.array([values[seeds == seed].mean(axis=0) for seed in dict.fromkeys(seeds.tolist())])


def _counted(by_item: Mapping[str, np.ndarray], sign: int) -> dict[str, int]:
    """Test items on which the method is better, worse and as good as the reference, over all seeds."""
    means = sign * np.concatenate([each.mean(axis=0) for each in by_item.values()])
    return {
        "better": int(np.sum(means > 1e-12)),
        "worse": int(np.sum(means < -1e-12)),
        "same": int(np.sum(np.abs(means) <= 1e-12)),
    }
