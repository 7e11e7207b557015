"""Several runs side by side: what each scored, what each forgot, what it cost."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from retain.report.dumbbells import EXPLAINED, all_tasks, dumbbells, labels, panel_height, read_runs
from retain.report.page import document, save
from retain.report.rundata import Run
from retain.report.svg import Markup, Panel, dot, join, picture, shorten, spread, tag, text
from retain.report.words import METRICS, compact, cost, number

RUN_COLORS = [f"var(--task{index})" for index in (7, 0, 1, 2, 3, 5, 6, 4)]


@dataclass(frozen=True)
class Column:
    """A column of the table: how it is read from a run and which end is best (+1 high, -1 low, 0 neither)."""

    title: str
    value: Callable[[Run], float | None]
    form: Callable[[float | None], str]
    best: int = 0
    definition: str | None = None


def _metric(title: str, name: str, best: int) -> Column:
    return Column(
        title,
        lambda run: run.results["metrics"].get(name),
        lambda value: number(value, 3),
        best,
        METRICS[name][1],
    )


def _cost(title: str, name: str) -> Column:
    return Column(title, lambda run: run.results["costs"].get(name), lambda value: cost(name, value))


COLUMNS = [
    _metric("ACC", "ACC", 1),
    _metric("forgetting", "forgetting", -1),
    _metric("BWT", "BWT", 1),
    _metric("NLL", "NLL", -1),
    _cost("replayed samples", "replayed_samples"),
    _cost("time", "seconds"),
]


def write_comparison(run_dirs: Sequence[Path], out: Path) -> Path:
    """Write one self-contained HTML file that sets the runs side by side. Raises InputError."""
    runs, out = read_runs(run_dirs), Path(out)
    names = labels(runs)
    body = join(
        tag("h1", "What each run kept"),
        tag("p", _shared(runs), class_="meta"),
        _differences(runs),
        tag("p", _headline(runs, names), class_="headline"),
        tag("section", tag("h2", "What each run forgot"), tag("p", EXPLAINED, class_="lead"),
            _panels(runs, names)),
        tag("section", tag("h2", "In numbers"), _table(runs, names, out.parent)),
        tag("section", tag("h2", "Each task over the stages"),
            tag("p", "One line a run; the ring marks the stage that trains the task.", class_="lead"),
            _lines(runs, names)),
    )  # fmt: skip
    return save(out, document("Comparison: " + ", ".join(names), body))


def _shared(runs: Sequence[Run]) -> str:
    first = runs[0]
    return " · ".join(
        [
            first.model,
            f"seed {first.results['seed']}",
            f"{len(first.tasks)} tasks: " + " → ".join(first.tasks),
        ]
    )


def _differences(runs: Sequence[Run]) -> Markup | None:
    """Say so where the runs differ in more than their strategy."""
    facts = {
        "model": {run.model for run in runs},
        "seed": {str(run.results["seed"]) for run in runs},
        "tasks or their order": {tuple(run.tasks) for run in runs},
        "being finished": {run.finished for run in runs},
    }
    differing = [name for name, values in facts.items() if len(values) > 1]
    return (
        tag("p", f"Careful: these runs differ in {', '.join(differing)} too.", class_="warning") if differing else None
    )


def _headline(runs: Sequence[Run], names: Sequence[str]) -> Markup:
    finished = [pair for pair in zip(names, runs, strict=True) if _final(pair[1]) is not None]
    ranked = sorted((pair for pair in finished if not pair[1].joint), key=lambda pair: -_final(pair[1]))
    if len(finished) < 2:
        return Markup("Fewer than two of these runs are finished, so there is no final average to compare.")
    shown = {name for name, _ in (*ranked[:1], *ranked[-1:])}
    sentences = [_sentence(name, run) for name, run in ranked if name in shown]
    return join(sentences, [_sentence(name, run) for name, run in finished if run.joint])


def _final(run: Run) -> float | None:
    return run.results["metrics"].get("ACC")


def _sentence(name: str, run: Run) -> Markup:
    """Where one run ended and what it forgot on the way."""
    forgotten = run.results["metrics"].get("forgetting")
    if run.joint:
        tail = "with all tasks at once"
    elif forgotten is None:
        tail = "on average"
    else:
        tail = f"on average and forgot {number(forgotten)}" if forgotten > 0.005 else "on average and forgot nothing"
    return join(tag("b", name), " ends at ", tag("strong", number(_final(run))), f" {tail}. ")


def _table(runs: Sequence[Run], names: Sequence[str], folder: Path) -> Markup:
    rows = []
    for index, (run, name) in enumerate(zip(runs, names, strict=True)):
        cells = [_table_cell(column, run, runs) for column in COLUMNS]
        swatch = tag("span", class_="swatch", style=f"background:{RUN_COLORS[index % len(RUN_COLORS)]}")
        rows.append(tag("tr", tag("th", swatch, _link(run, name, folder), scope="row"), cells))
    head = [
        tag("th", tag("span", column.title, class_="explained", tabindex=0, data_tip=column.definition)
            if column.definition else column.title, scope="col", class_="n")
        for column in COLUMNS
    ]  # fmt: skip
    table = tag("table", tag("thead", tag("tr", tag("th", "run"), head)), tag("tbody", rows), class_="plain")
    return tag("div", table, class_="scroll")


def _table_cell(column: Column, run: Run, runs: Sequence[Run]) -> Markup:
    value = column.value(run)
    known = [column.value(other) for other in runs if not other.joint and column.value(other) is not None]
    is_best = (
        column.best
        and value is not None
        and len(known) > 1
        and value * column.best == max(other * column.best for other in known)
    )
    return tag("td", column.form(value), class_="n best" if is_best else "n")


def _link(run: Run, name: str, folder: Path) -> Markup:
    report = run.path / "report.html"
    if not report.exists():
        return tag("span", name)
    return tag("a", name, href=quote(os.fsencode(os.path.relpath(report.resolve(), folder.resolve()))))


def _panels(runs: Sequence[Run], names: Sequence[str]) -> Markup:
    tasks = all_tasks(runs)
    panels = [
        picture(
            300,
            panel_height(tasks),
            f"{name}: scores right after learning and at the end",
            dumbbells(run, name, tasks),
        )
        for run, name in zip(runs, names, strict=True)
    ]
    return tag("div", panels, class_="runs")


def _lines(runs: Sequence[Run], names: Sequence[str]) -> Markup:
    return tag("div", [_line_panel(runs, names, task) for task in all_tasks(runs)], class_="runs")


def _line_panel(runs: Sequence[Run], names: Sequence[str], task: str) -> Markup:
    width, height = 300, 190
    stages = max([len(run.tasks) for run in runs])
    panel = Panel(28, width - 96, 30, height - 24, (0, stages), (0, 1))
    marks: list[object] = [
        text(0, 14, shorten(task, width, 14), 14, "ink", font_weight=600),
        panel.rows(compact, 2),
    ]
    ends = []
    for index, (run, name) in enumerate(zip(runs, names, strict=True)):
        color = RUN_COLORS[index % len(RUN_COLORS)]
        points = _points(run, task, stages)
        marks.append(panel.line(points, color, stroke_width=2, stroke_dasharray="3 3" if run.joint else None))
        marks += [
            dot(
                panel.x(x),
                panel.y(y),
                2.5,
                color,
                data_tip=f"{name}, {task}\nafter stage {x}: {number(y, 3)}",
            )
            for x, y in points
        ]
        own = run.tasks.index(task) + 1 if task in run.tasks else None
        marks += [dot(panel.x(x), panel.y(y), 4, "var(--paper)", stroke=color, stroke_width=2)
                  for x, y in points if x == own and not run.joint]  # fmt: skip
        if points:
            ends.append((points[-1][1], f"{number(points[-1][1])} {shorten(name, 58, 11)}", color, name))
    places = spread([panel.y(value) for value, *_ in ends], 14, panel.top, panel.bottom)
    marks += [
        join(dot(panel.right + 12, y, 4, color), text(panel.right + 20, y + 4, label, 11, "ink", data_tip=name))
        for (_, label, color, name), y in zip(ends, places, strict=True)
    ]
    marks += [
        text(panel.x(stage), height - 6, "base" if stage == 0 else stage, 11, text_anchor="middle")
        for stage in range(0, stages + 1, max(1, -(-stages // 6)))
    ]
    return picture(width, height, f"{task} over the stages in each run", marks)


def _points(run: Run, task: str, stages: int) -> list[tuple[int, float]]:
    rows = run.results["matrices"].get("generated") or []
    if task not in run.tasks:
        return []
    column = run.tasks.index(task)
    places = (0, stages) if run.joint else range(len(rows))
    return [(place, row[column]) for place, row in zip(places, rows, strict=False) if row[column] is not None]
