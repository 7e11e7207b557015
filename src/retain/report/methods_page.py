"""The page of a comparison: differences with their intervals, the table, what each method forgot, what it cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from retain.report.differences import shown_p
from retain.report.dumbbells import EXPLAINED, dumbbells, panel_height
from retain.report.methods import COSTS, SCORES, best_of, shown_cost, shown_score
from retain.report.page import document
from retain.report.rundata import Run
from retain.report.svg import Markup, Panel, dot, join, picture, rule, shorten, spread, tag, text, ticks
from retain.report.words import METRICS, compact, number, signed

Entry = Mapping[str, Any]
FOREST = (
    "Dot: the mean difference, with its interval. Small rings: the difference of each seed. Gray: the data do not tell "
    "the method from the reference."
)
METHOD = (
    "Paired: the same seed, task order and test items under both methods. Intervals come from resampling the test "
    "items of each task and drawing seeds anew; each is for one comparison. p-values are two-sided and, within a "
    "measure, corrected by Holm for the number of methods compared."
)
SPREAD = {
    "pooled": " How much a difference varies over seeds is told by all methods together, or by its own seeds where "
    "these vary more.",
    "own": " How much a difference varies over seeds is told by its own seeds alone.",
}


def comparison_page(summary: Mapping[str, Any], cells: Sequence[Entry]) -> str:
    """One self-contained HTML page of what `comparison.json` holds and of the cells it was made of."""
    rows, reference = summary["rows"], summary["reference"]
    entries = [entry for entry in summary["differences"] if entry["measure"] == "ACC"]
    body = join(
        tag("h1", "Which method keeps what it learned"),
        tag("p", _facts(summary, cells), class_="meta"),
        tag("p", summary["caveat"], class_="warning") if summary["caveat"] else None,
        _section(f"Against {reference}", FOREST, _forest(entries), _sentences(entries),
                 tag("p", METHOD + SPREAD[summary["spread"]], class_="lead"))
        if entries
        else None,
        _section("Scores", "Means and standard deviations over runs.", _table(rows, SCORES, shown_score, True)),
        _section("Every measure", f"Differences from {reference}.", _differences(summary["differences"])),
        _section("What each method forgot", EXPLAINED, _panels(cells)),
        _section("Scores and training", "Each method's mean ACC over the tokens it trained on, probed and wrote.",
                 _scatter(rows)),
        _section("Costs of a run", "Means over runs. Rows that were taken from another run count as if run here.",
                 _table(rows, COSTS, shown_cost, False)),
    )  # fmt: skip
    return document(f"Comparison: {', '.join(row['row'] for row in rows)}", body)


def _section(title: str, lead: str, *content: object) -> Markup:
    return tag("section", tag("h2", title), tag("p", lead, class_="lead"), content)


def _facts(summary: Mapping[str, Any], cells: Sequence[Entry]) -> str:
    first = cells[0]
    orders = {cell["order"] for cell in cells}
    seeds = sorted({cell["seed"] for cell in cells})
    tasks = " → ".join(first["results"]["tasks"]) if len(orders) == 1 else f"{len(orders)} task orders"
    budgets = {cell["config"]["schedule"].get("budget") for cell in cells}
    budget = f"{100 * max(budgets):g} % of the new samples replayed" if budgets and None not in budgets else None
    parts = [first["config"]["model"]["name"], tasks, f"seeds {', '.join(map(str, seeds))}", budget,
             f"{summary['missing']} cells are missing" if summary["missing"] else None]  # fmt: skip
    return " · ".join(part for part in parts if part)


def _sentences(entries: Sequence[Entry]) -> Markup:
    ordered = sorted(entries, key=lambda entry: (not entry["apart"], -entry["difference"]))
    return tag("ul", [tag("li", entry["sentence"]) for entry in ordered])


def _forest(entries: Sequence[Entry]) -> Markup:
    """A line a method: interval, mean and each seed's difference in ACC."""
    ordered = sorted(entries, key=lambda entry: -entry["difference"])
    values = [0.0, *(entry[key] for entry in entries for key in ("low", "high") if entry[key] is not None)]
    values += [pair["difference"] for entry in entries for pair in entry["pairs"]]
    margin = 0.05 * (max(values) - min(values)) or 0.05
    bottom = 26 + 26 * len(entries)
    panel = Panel(170, 780, 10, bottom, (min(values) - margin, max(values) + margin), (0, 1))
    marks: list[object] = []
    for value in ticks(*panel.x_domain, 6):
        x = panel.x(value)
        marks += [rule(x, 10, x, bottom, "ink" if value == 0 else "rule"),
                  text(x, bottom + 16, signed(value), 11, text_anchor="middle")]  # fmt: skip
    marks += [_forest_line(panel, entry, 28 + 26 * index) for index, entry in enumerate(ordered)]
    return picture(940, bottom + 24, "Differences in ACC from the reference, with intervals", marks)


def _forest_line(panel: Panel, entry: Entry, y: float) -> Markup:
    color = ("gain" if entry["difference"] > 0 else "loss") if entry["apart"] else "base"
    marks: list[object] = [text(160, y + 4, shorten(entry["row"], 160, 13), 13, "ink", text_anchor="end")]
    shown = signed(entry["difference"], 3)
    if entry["low"] is not None:
        marks.append(rule(panel.x(entry["low"]), y, panel.x(entry["high"]), y, color, stroke_width=3))
        shown += f" ({signed(entry['low'], 3)} to {signed(entry['high'], 3)})"
    marks += [
        dot(panel.x(pair["difference"]), y, 3, "none", stroke="var(--muted)",
            data_tip=f"{entry['row']}, seed {pair['seed']}\n{signed(pair['difference'], 3)}")
        for pair in entry["pairs"]
    ]  # fmt: skip
    marks.append(dot(panel.x(entry["difference"]), y, 5, f"var(--{color})", data_tip=entry["sentence"]))
    marks.append(text(panel.right + 8, y + 4, shown, 11, "ink"))
    return tag("g", marks)


def _table(rows: Sequence[Entry], columns: Mapping[str, Any], shown: Any, scores: bool) -> Markup:
    head = [_head(key, title[0] if scores else title) for key, title in columns.items()]
    lines = []
    for row in rows:
        best = best_of(rows, row) if scores else set()
        cells = [tag("td", shown(row, key), class_="n best" if key in best else "n") for key in columns]
        lines.append(tag("tr", tag("th", row["row"], scope="row"), tag("td", row["runs"], class_="n"), cells))
    top = tag("thead", tag("tr", tag("th", "method"), tag("th", "runs", class_="n"), head))
    return tag("div", tag("table", top, tag("tbody", lines), class_="plain"), class_="scroll")


def _head(key: str, title: str) -> Markup:
    if key not in METRICS:
        return tag("th", title, class_="n", scope="col")
    return tag("th", tag("span", title, class_="explained", tabindex=0, data_tip=METRICS[key][1]), class_="n",
               scope="col")  # fmt: skip


def _differences(entries: Sequence[Entry]) -> Markup:
    lines = []
    for entry in entries:
        items = entry["items"]
        counted = f"{items['better']} / {items['worse']} / {items['same']}" if items else "–"
        interval = "–" if entry["low"] is None else f"{signed(entry['low'], 3)} to {signed(entry['high'], 3)}"
        p = "–" if entry["p_holm"] is None else shown_p(entry["p_holm"])
        values = (signed(entry["difference"], 3), interval, p, counted, " and ".join(entry["over"]) or "nothing")
        cells = [tag("td", value, class_="n best" if entry["apart"] else "n") for value in values]
        lines.append(tag("tr", tag("th", entry["row"], scope="row"), tag("td", entry["measure"]), cells))
    titles = ("difference", "interval", "p (Holm)", "items better / worse / same", "resampled")
    head = tag("tr", tag("th", "method"), tag("th", "measure"), [tag("th", title, class_="n") for title in titles])
    return tag("div", tag("table", tag("thead", head), tag("tbody", lines), class_="plain"), class_="scroll")


def _panels(cells: Sequence[Entry]) -> Markup:
    """A panel a method: mean scores over seeds right after learning and at the end, in the first task order."""
    order = min(cell["order"] for cell in cells)
    groups: dict[str, list[Entry]] = {}
    for cell in cells:
        if cell["order"] == order:
            groups.setdefault(cell["row"], []).append(cell)
    runs = {row: mean_run(group) for row, group in groups.items()}
    panels = [
        picture(300, panel_height(run.tasks), f"{row}: scores right after learning and at the end",
                dumbbells(run, row, run.tasks))
        for row, run in runs.items()
    ]  # fmt: skip
    return tag("div", panels, class_="runs")


def mean_run(cells: Sequence[Entry]) -> Run:
    """The runs of cells with one task order as one whose scores are their means."""
    results = cells[0]["results"]
    matrices = [np.array(cell["results"]["matrices"]["generated"], dtype=np.float64) for cell in cells]
    mean = [[None if np.isnan(value) else float(value) for value in row] for row in np.mean(matrices, axis=0)]
    metrics = {}
    for name in ("ACC", "forgetting"):
        known = [value for cell in cells if (value := cell["results"]["metrics"].get(name)) is not None]
        metrics[name] = float(np.mean(known)) if known else None
    facts = {"tasks": results["tasks"], "joint": results["joint"], "matrices": {"generated": mean}, "metrics": metrics}
    return Run(Path(), facts | {"strategy": cells[0]["strategy"], "finished": True}, {}, "", [], None)


def _scatter(rows: Sequence[Entry]) -> Markup:
    known = [(row, sum(row["costs"][key] or 0 for key in ("train_tokens", "probe_tokens", "generated_tokens")))
             for row in rows if row["scores"]["ACC"]["mean"] is not None]  # fmt: skip
    if not known:
        return tag("p", "No finished run.")
    tokens = [value for _, value in known]
    panel = Panel(44, 700, 14, 330, (0.9 * min(tokens), 1.05 * max(tokens)), (0, 1))
    marks: list[object] = [panel.rows(compact)]
    for value in ticks(*panel.x_domain, 5):
        marks.append(text(panel.x(value), 350, compact(value), 11, text_anchor="middle"))
    marks.append(text(700, 370, "tokens trained on, probed and written", 12, text_anchor="end"))
    places = spread([panel.y(row["scores"]["ACC"]["mean"]) for row, _ in known], 15, panel.top, panel.bottom)
    for index, ((row, value), place) in enumerate(zip(known, places, strict=True)):
        accuracy, color = row["scores"]["ACC"]["mean"], f"var(--task{index % 8})"
        x, y = panel.x(value), panel.y(accuracy)
        marks += [
            rule(x, y, 716, place, "rule"),
            dot(x, y, 5, color, data_tip=f"{row['row']}\nACC {number(accuracy, 3)}\n{value:,.0f} tokens"),
            dot(720, place, 4, color),
            text(730, place + 4, f"{number(accuracy)} {shorten(row['row'], 170, 12)}", 12, "ink"),
        ]
    return picture(940, 378, "Mean ACC of each method over its tokens", marks)
