"""The table of a comparison: a row a method, its scores over seeds and task orders, and what it cost."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from retain.report.differences import shown_p
from retain.report.svg import clean
from retain.report.tables import plain_table
from retain.report.words import NOTHING, cost, number, signed

if TYPE_CHECKING:
    from rich.table import Table

Cell = Mapping[str, Any]
GAP = "gap_closed"
SCORES = {  # name: title, which end is best
    "ACC": ("ACC", 1),
    "BWT": ("BWT", 1),
    "forgetting": ("forgetting", -1),
    "retention": ("retention", 1),
    "NLL": ("NLL", -1),
    "normalized_score": ("normalized", 1),
    GAP: ("gap closed", 1),
}
COSTS = {
    "replayed_samples": "replayed samples",
    "train_tokens": "tokens trained on",
    "probe_tokens": "probe tokens",
    "eval_tokens": "evaluation tokens",
    "generated_tokens": "generated tokens",
    "seconds": "time",
    "peak_memory_bytes": "peak memory",
    "bytes_kept": "kept",
}


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and standard deviation (None of one value) of what `count` runs had."""

    mean: float | None
    deviation: float | None
    count: int

    @classmethod
    def of(cls, values: Sequence[float | None]) -> Spread:
        """Over the values that there are."""
        known = [value for value in values if value is not None]
        return cls(fmean(known) if known else None, stdev(known) if len(known) > 1 else None, len(known))


def method_rows(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """For each row of the table, in the order of the cells: {"row", "strategy", "seeds", "runs", "scores", "costs"}.

    A score is {"mean", "deviation", "count"} over the row's cells, a cost their mean.
    """
    rows = []
    for name in dict.fromkeys(cell["row"] for cell in cells):
        own = [cell for cell in cells if cell["row"] == name]
        metrics = [cell["results"]["metrics"] for cell in own]
        scores = {key: Spread.of([each.get(key) for each in metrics]) for key in SCORES if key != GAP}
        scores[GAP] = Spread(gap_closed(cells, own), None, len(own))
        rows.append(
            {
                "row": name,
                "strategy": own[0]["strategy"],
                "seeds": sorted({cell["seed"] for cell in own}),
                "runs": len(own),
                "scores": {
                    key: {"mean": s.mean, "deviation": s.deviation, "count": s.count} for key, s in scores.items()
                },
                "costs": {key: _mean([cell["results"]["costs"].get(key) for cell in own]) for key in COSTS},
            }
        )
    return rows


def gap_closed(cells: Sequence[Cell], own: Sequence[Cell]) -> float | None:
    """(ACC - ACC of none) / (ACC of joint - ACC of none), means over the seeds and orders that all three have.

    Of several rows of none or joint it is the first one whose settings are the row's own. None without such runs, and
    where joint is not above none.
    """
    bounds = [_accuracies(_bound(cells, own[0]["settings"], name)) for name in ("none", "joint")]
    mine = _accuracies(own)
    common = mine.keys() & bounds[0].keys() & bounds[1].keys()
    if not common:
        return None
    low, high, value = (fmean(known[one] for one in common) for known in (*bounds, mine))
    return (value - low) / (high - low) if high > low else None


def score_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The scores for the terminal; bold is the best one but for `joint`."""
    table = plain_table("method", "runs", *(title for title, _ in SCORES.values()))
    for row in rows:
        cells = [_styled(shown_score(row, key), key in best_of(rows, row)) for key in SCORES]
        table.add_row(*map(_plain, (clean(row["row"]), str(row["runs"]))), *cells)
    return table


def cost_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The costs of a run for the terminal."""
    table = plain_table("costs of a run", *COSTS.values())
    for row in rows:
        table.add_row(*map(_plain, (clean(row["row"]), *(shown_cost(row, key) for key in COSTS))))
    return table


def difference_table(summary: Mapping[str, Any]) -> Table:
    """ACC against the reference for the terminal; bold where the data tell the methods apart."""
    level = f"{100 * summary['level']:g} % interval"
    table = plain_table(
        f"against {clean(summary['reference'])}", "ACC", level, "p (Holm)", "items better / worse / same"
    )
    for entry in _accuracies_of(summary):
        items = entry["items"] or {"better": NOTHING, "worse": NOTHING, "same": NOTHING}
        p = NOTHING if entry["p_holm"] is None else shown_p(entry["p_holm"])
        counted = " / ".join(map(str, items.values()))
        cells = (signed(entry["difference"], 3), _interval(entry), p, counted)
        table.add_row(_plain(clean(entry["row"])), *(_styled(cell, entry["apart"]) for cell in cells))
    return table


def markdown_table(summary: Mapping[str, Any]) -> str:
    """Scores, the difference in ACC from the reference, and costs for a document."""
    rows, level = summary["rows"], f"{100 * summary['level']:g} %"
    against = {entry["row"]: entry for entry in _accuracies_of(summary)}
    head = ["method", "runs", *(title for title, _ in SCORES.values())]
    head += [f"ACC against {summary['reference']} ({level})", *COSTS.values()]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for row in rows:
        best = best_of(rows, row)
        scores = [f"**{shown_score(row, key)}**" if key in best else shown_score(row, key) for key in SCORES]
        entry = against.get(row["row"])
        shown = f"{signed(entry['difference'], 3)} ({_interval(entry)})" if entry else NOTHING
        costs = [shown_cost(row, key) for key in COSTS]
        lines.append(
            [row["row"], str(row["runs"]), *scores, f"**{shown}**" if entry and entry["apart"] else shown, *costs]
        )
    return "".join(f"| {' | '.join(clean(cell).replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def csv_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Scores, their deviations and costs as they are, unrounded."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    spreads = [name for key in SCORES for name in (key, f"{key}_deviation")]
    writer.writerow(["method", "strategy", "runs", *spreads, *COSTS])
    for row in rows:
        values = [row["scores"][key][part] for key in SCORES for part in ("mean", "deviation")]
        writer.writerow([row["row"], row["strategy"], row["runs"], *values, *(row["costs"][key] for key in COSTS)])
    return file.getvalue()


def best_of(rows: Sequence[Mapping[str, Any]], row: Mapping[str, Any]) -> set[str]:
    """The scores in which no other method is better, `joint` aside."""
    best = set()
    for key, (_, sign) in SCORES.items():
        known = [r["scores"][key]["mean"] for r in rows if r["strategy"] != "joint"]
        known = [sign * value for value in known if value is not None]
        own = row["scores"][key]["mean"]
        if row["strategy"] != "joint" and own is not None and sign * own == max(known) > min(known):
            best.add(key)
    return best


def shown_score(row: Mapping[str, Any], key: str) -> str:
    """`0.713 ± 0.021`: mean and standard deviation over the runs."""
    score = row["scores"][key]
    if score["deviation"] is None:
        return number(score["mean"], 2 if key == GAP else 3)
    return f"{number(score['mean'], 3)} ± {number(score['deviation'], 3)}"


def shown_cost(row: Mapping[str, Any], key: str) -> str:
    """A cost in its unit; what is kept in kB."""
    value = row["costs"][key]
    if value is None:
        return NOTHING
    return f"{value / 1000:,.0f} kB" if key == "bytes_kept" else cost(key, value)


def _accuracies_of(summary: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [entry for entry in summary["differences"] if entry["measure"] == "ACC"]


def _interval(entry: Mapping[str, Any]) -> str:
    return NOTHING if entry["low"] is None else f"{signed(entry['low'], 3)} to {signed(entry['high'], 3)}"


def _accuracies(cells: Sequence[Cell]) -> dict[tuple[int, int], float]:
    metrics = {(cell["seed"], cell["order"]): cell["results"]["metrics"].get("ACC") for cell in cells}
    return {one: value for one, value in metrics.items() if value is not None}


def _bound(cells: Sequence[Cell], settings: Mapping[str, Any], strategy: str) -> list[Cell]:
    alike = [
        cell
        for cell in cells
        if cell["strategy"] == strategy and all(settings.get(key) == value for key, value in cell["settings"].items())
    ]
    return [cell for cell in alike if cell["row"] == alike[0]["row"]]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _plain(text: str) -> Any:
    from rich.text import Text

    return Text(text)


def _styled(text: str, best: bool) -> Any:
    from rich.text import Text

    return Text(text, style="bold" if best else "")
