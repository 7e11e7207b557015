"""The picture of what each run forgot: a row a task, a ring where it was learned, a dot where it ended."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from retain.report.rundata import Run, read_run
from retain.report.svg import Markup, Panel, dot, join, rule, shorten, tag, text
from retain.report.theme import DARK, FONT, LIGHT, fixed
from retain.report.words import compact, number, signed
from retain.types import InputError

EXPLAINED = (
    "Ring: score right after learning. Dot: score at the end. The bar between is what was forgotten (orange) "
    "or gained (blue). Tick: the base model."
)


def read_runs(run_dirs: Sequence[Path]) -> list[Run]:
    """The runs in these directories. Raises InputError for none at all and for a broken one."""
    if not run_dirs:
        raise InputError("comparison: no run directory given; name at least one output directory of `retain run`")
    return [read_run(Path(run_dir)) for run_dir in run_dirs]


def labels(runs: Sequence[Run]) -> list[str]:
    """The strategy where it tells the runs apart, else with the directory's name."""
    strategies = [run.strategy for run in runs]
    return [
        name if strategies.count(name) == 1 else f"{name}, {run.path.resolve().name}"
        for name, run in zip(strategies, runs, strict=True)
    ]


def all_tasks(runs: Sequence[Run]) -> list[str]:
    """Every task any of the runs trains, in the order they first appear."""
    return list(dict.fromkeys(task for run in runs for task in run.tasks))


ROW, TOP, LABELS = 30, 62, 142


def panel_height(tasks: Sequence[str]) -> int:
    """Pixels a panel of these tasks needs."""
    return TOP + ROW * len(tasks) + 22


def dumbbells(run: Run, name: str, tasks: Sequence[str], width: int = 300) -> Markup:
    """One panel: for every task the score right after learning, at the end, and the change in figures."""
    bottom = TOP + ROW * len(tasks)
    panel = Panel(LABELS, width - 44, TOP - 8, bottom, (0, 1), (0, 1))
    marks: list[object] = [
        text(0, 16, shorten(name, width, 16), 16, "ink", font_weight=700, data_tip=name),
        text(0, 36, _summary(run), 13, "muted"),
    ]
    for share in (0, 0.5, 1):
        x = panel.x(share)
        marks += [
            rule(x, panel.top, x, bottom),
            text(x, bottom + 16, compact(share), 11, text_anchor="middle"),
        ]
    for index, task in enumerate(tasks):
        marks.append(_dumbbell(run, panel, task, TOP + ROW * (index + 0.5)))
    return join(marks)


def _summary(run: Run) -> str:
    metrics = run.results["metrics"]
    parts = [f"average {number(metrics['ACC'])}" if metrics.get("ACC") is not None else "unfinished"]
    if metrics.get("forgetting") is not None:
        parts.append(f"forgetting {number(metrics['forgetting'])}")
    return ", ".join(parts)


def _dumbbell(run: Run, panel: Panel, task: str, y: float) -> Markup:
    name = text(LABELS - 10, y + 4, shorten(task, LABELS - 10, 12), 12, "ink", text_anchor="end")
    base, learned, final = _three(run, task)
    marks: list[object] = [name]
    if base is not None:
        marks.append(rule(panel.x(base), y - 6, panel.x(base), y + 6, "base", stroke_width=2))
    if final is None:
        return tag("g", marks, data_tip=f"{task}: not measured")
    tip = f"{task}\nbase {number(base, 3)}\nright after learning {number(learned, 3)}"
    tip += f"\nat the end {number(final, 3)}"
    color = "strong"
    if learned is not None:
        color = "loss" if learned - final >= 0.005 else "gain"
        marks.append(rule(panel.x(learned), y, panel.x(final), y, color, stroke_width=5, stroke_opacity=0.5))
        marks.append(dot(panel.x(learned), y, 5, "var(--paper)", stroke="var(--ink)", stroke_width=1.75))
    marks.append(dot(panel.x(final), y, 5.5, f"var(--{color})"))
    change = final - learned if learned is not None else None
    ending = number(final) if change is None else signed(change)
    marks.append(text(panel.right + 12, y + 4, ending, 12, color if change else "muted", font_weight=600))
    return tag("g", marks, data_tip=tip)


def _three(run: Run, task: str) -> tuple[float | None, float | None, float | None]:
    """(base, right after learning if stages came after it, at the end); None for what there is not."""
    rows = run.results["matrices"].get("generated") or []
    if task not in run.tasks or not rows:
        return None, None, None
    column = run.tasks.index(task)
    has_later = not run.joint and column + 1 < len(rows) - 1
    learned = rows[column + 1][column] if has_later else None
    is_learned = len(rows) > 1 if run.joint else column + 1 < len(rows)
    return rows[0][column], learned, rows[-1][column] if is_learned else None


def comparison_svg(run_dirs: Sequence[Path], dark: bool = False) -> str:
    """The picture of what each run forgot as a file of its own, for a README or a slide."""
    runs = read_runs(run_dirs)
    names, tasks = labels(runs), all_tasks(runs)
    columns = min(len(runs), 3 if len(runs) != 4 else 2)
    height, lines = panel_height(tasks) + 24, -(-len(runs) // columns)
    parts = [
        tag(
            "g",
            dumbbells(run, name, tasks),
            transform=f"translate({24 + 324 * (i % columns)} {24 + height * (i // columns)})",
        )
        for i, (run, name) in enumerate(zip(runs, names, strict=True))
    ]
    wide = 24 + 324 * columns
    caption = textwrap.wrap(EXPLAINED, (wide - 48) // 7)
    high = height * lines + 32 + 17 * len(caption)
    paper = (DARK if dark else LIGHT)["paper"]
    drawing = tag(
        "svg",
        tag("rect", width=wide, height=high, rx=8, fill=paper),
        parts,
        [text(24, height * lines + 32 + 17 * i, line, 12) for i, line in enumerate(caption)],
        xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {wide} {high}", width=wide, height=high,
        font_family=FONT, role="img", aria_label="What each run forgot",
    )  # fmt: skip
    return fixed(drawing, dark) + "\n"
