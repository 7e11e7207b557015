"""What the model scores: the headline, the matrix as a heatmap, a small panel a task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from retain.report.rundata import Rows, Run
from retain.report.svg import Markup, Panel, box, dot, join, picture, rule, shorten, tag, text
from retain.report.words import NOTHING, VIEWS, compact, number, signed

INVERTED = {"deep": 0.68, "bright": 0.58}  # above it ink turns white on light pages, black on dark ones


@dataclass(frozen=True)
class View:
    """One matrix seen as a picture: how far a score fills the scale and in which direction it is better."""

    name: str
    high: float  # the top of the scale
    sign: int  # +1 higher is better, -1 lower is better

    def fill(self, score: float) -> float:
        """0 (worst) to 1 (best), the depth of a heatmap cell."""
        share = min(max(score / self.high, 0.0), 1.0)
        return share if self.sign > 0 else 1 - share


def view_of(run: Run, name: str) -> View:
    """The scale of a matrix: 0 to 1, or 0 to the run's highest NLL."""
    if name != "nll":
        return View(name, 1.0, 1)
    tables = (run.results["matrices"], run.results["evaluation_only"]["matrices"])
    cells = [cell for table in tables for row in table.get(name, []) for cell in row if cell is not None]
    return View(name, max([*cells, 1e-9]), -1)


def headline(run: Run) -> Markup:
    """One or two sentences: where it ended, from where, and what was forgotten."""
    rows = run.results["matrices"].get("generated") or []
    metrics, tasks = run.results["metrics"], run.tasks
    if not run.finished:
        return _unfinished(rows, len(tasks), run.joint)
    if not rows or metrics.get("ACC") is None:
        return Markup("No generated answers were scored in this run.")
    before = _average(rows[0])
    count = f"{len(tasks)} tasks" if len(tasks) != 1 else "one task"
    learned = f"{count}{' at once' if run.joint else ''}"
    first = join("After ", learned, " the average score is ", _strong(number(metrics["ACC"])))
    against = f", against {number(before)} before training." if before is not None else "."
    return join(first, against, " ", _forgotten(rows, tasks, metrics), _others(run))


def _strong(value: str) -> Markup:
    return tag("strong", value)


def _unfinished(rows: Rows, stages: int, joint: bool) -> Markup:
    total = 1 if joint else stages
    done = max(len(rows) - 1, 0)
    what = f"Unfinished: {done} of {total} {'stage is' if total == 1 else 'stages are'} done."
    so_far = _average(rows[-1] if joint else rows[-1][:done]) if done else None
    if so_far is None:
        return Markup(what)
    return join(what, " The tasks learned so far score ", _strong(number(so_far)), " on average.")


def _forgotten(rows: Rows, tasks: list[str], metrics: dict[str, float | None]) -> Markup | None:
    if metrics.get("BWT") is None:
        return None
    pairs = [(task, rows[i + 1][i], rows[-1][i]) for i, task in enumerate(tasks[:-1])]
    falls = [(first - last, task, first, last) for task, first, last in pairs if None not in (first, last)]
    worst, task, first, last = max(falls, key=lambda fall: fall[0])
    change = metrics["BWT"]
    if worst < 0.005:
        return join("No task it learned lost anything by the end.")
    detail = join("most on ", tag("b", task), f" ({number(first)} → {number(last)})")
    if change > -0.005:
        return join("What it had learned held on average; it lost ", detail, ".")
    return join("Of what it had learned it lost ", _strong(number(-change)), " on average, ", detail, ".")


def _others(run: Run) -> Markup | None:
    rows = run.results["evaluation_only"]["matrices"].get("generated")
    if not rows:
        return None
    parts = [
        f"{task} {number(first)} → {number(last)}"
        for task, first, last in zip(run.results["evaluation_only"]["tasks"], rows[0], rows[-1], strict=True)
    ]
    return join(" Never trained on: ", ", ".join(parts), ".")


def _average(cells: list[float | None]) -> float | None:
    known = [cell for cell in cells if cell is not None]
    return sum(known) / len(known) if known else None


def row_names(run: Run) -> list[str]:
    """Base first, then what each row comes after, also rows not reached yet."""
    return ["base model", *(["all at once"] if run.joint else [f"after {task}" for task in run.tasks])]


def heatmap(run: Run, view: View) -> Markup:
    """Rows stages, columns tasks; a ring marks a task's score right after its stage."""
    rows = run.results["matrices"].get(view.name, [])
    others = run.results["evaluation_only"]
    other_rows = others["matrices"].get(view.name, [])
    names = row_names(run)
    head = [tag("th", task, scope="col", data_tip=_column_tip(run, task)) for task in run.tasks]
    gap = tag("td", class_="gap") if others["tasks"] else None
    head += [gap] + [tag("th", task, scope="col", data_tip=f"{task}\nevaluated, never trained on")
             for task in others["tasks"]]  # fmt: skip
    body = []
    for index, name in enumerate(names):
        cells = [_cell(run, view, rows, index, column) for column in range(len(run.tasks))]
        cells.append(gap)
        for column, task in enumerate(others["tasks"]):
            score = other_rows[index][column] if index < len(other_rows) else None
            cells.append(_score_cell(view, score, f"{task}, {name}: {number(score, 3)}", ""))
        body.append(tag("tr", tag("th", name, scope="row"), cells))
    table = tag(
        "table",
        tag("thead", tag("tr", tag("td"), head)),
        tag("tbody", body),
        tag("tfoot", _change_row(run, view, rows, other_rows)),
        class_="heat",
    )
    return join(tag("p", VIEWS[view.name][1], class_="lead"), tag("div", table, class_="scroll"))


def _column_tip(run: Run, task: str) -> str:
    metric = run.results["task_metrics"].get(task)
    return f"{task}\nscored by {metric}" if metric else task


def _cell(run: Run, view: View, rows: Rows, row: int, column: int) -> Markup:
    score = rows[row][column] if row < len(rows) else None
    tip = f"{run.tasks[column]}, {row_names(run)[row]}: {number(score, 3)}"
    if run.joint:
        return _score_cell(view, score, tip, "")
    own = column + 1
    kind = "own" if row == own else "before" if row < own else "after"
    reference = rows[own][column] if own < len(rows) else None
    if kind == "after" and None not in (score, reference):
        tip += f"\n{signed(score - reference, 3)} since it was learned"
    elif kind == "before":
        tip += "\nnot learned yet"
    elif kind == "own":
        tip += "\nright after learning it"
    return _score_cell(view, score, tip, kind)


def _score_cell(view: View, score: float | None, tip: str, kind: str) -> Markup:
    if score is None:
        return tag("td", NOTHING, class_=f"{kind} none".strip())
    fill = view.fill(score)
    shade = " ".join(name for name, limit in INVERTED.items() if fill > limit)
    classes, style = f"{kind} {shade}".strip(), f"--fill:{fill:.3f}"
    return tag("td", tag("span", number(score)), class_=classes, style=style, data_tip=tip)


def _change_row(run: Run, view: View, rows: Rows, other_rows: Rows) -> Markup:
    """Score now minus score right after learning (for what was never trained: minus the base model's)."""
    references = rows[:1] * len(run.tasks) if run.joint else rows[1:]
    cells = [
        _change_cell(view, references[column][column] if column < len(references) else None, rows[-1][column])
        if rows and (run.joint or column + 1 < len(rows) - 1)
        else tag("td")
        for column in range(len(run.tasks))
    ]
    others = range(len(run.results["evaluation_only"]["tasks"]))
    cells.append(tag("td", class_="gap") if others else None)
    for column in others:
        first, last = (other_rows[0][column], other_rows[-1][column]) if other_rows else (None, None)
        cells.append(_change_cell(view, first, last))
    return tag("tr", tag("th", "since base" if run.joint else "since learned", scope="row"), cells)


def _change_cell(view: View, first: float | None, last: float | None) -> Markup:
    if first is None or last is None:
        return tag("td")
    better = (last - first) * view.sign
    tone = "loss" if better <= -0.005 else "gain" if better >= 0.005 else "even"
    return tag("td", signed(last - first), class_=tone)


def task_panels(run: Run, view: View) -> Markup:
    """A small panel a task on one common scale; the shaded part is what was forgotten."""
    panels = []
    for column, task in enumerate(run.tasks):
        scores = [row[column] for row in run.results["matrices"].get(view.name, [])]
        panels.append(_task_panel(run, view, task, scores, None if run.joint else column + 1))
    others = run.results["evaluation_only"]
    for column, task in enumerate(others["tasks"]):
        scores = [row[column] for row in others["matrices"].get(view.name, [])]
        panels.append(_task_panel(run, view, task, scores, 0))
    return tag("div", [panel for panel in panels if panel], class_="panels")


def _task_panel(run: Run, view: View, task: str, scores: list[float | None], own: int | None) -> Markup | None:
    """`own`: the row the task is compared with: its own stage, 0 for evaluation only, None for joint."""
    points = [(row, score) for row, score in enumerate(scores) if score is not None]
    if not points:
        return None
    width, height, stages = 240, 172, len(row_names(run)) - 1
    panel = Panel(34, width - 12, 50, height - 24, (0, stages), (0, view.high))
    reference = scores[own] if own is not None and own < len(scores) else None
    marks: list[object] = [panel.rows(compact, 2), _row_labels(panel, run, stages)]
    since = [point for point in points if own is not None and point[0] >= own]
    if reference is not None and len(since) > 1:
        marks.append(panel.area(below(since, reference, view.sign), "var(--loss)", fill_opacity=0.22))
        ends, level = (panel.x(own), panel.x(since[-1][0])), panel.y(reference)
        marks.append(rule(ends[0], level, ends[1], level, "muted", stroke_dasharray="2 3"))
    before = [point for point in points if own is None or point[0] <= own]
    marks.append(panel.line(before, "var(--base)", stroke_width=1.5, stroke_dasharray="4 3"))
    marks.append(panel.line(since, "var(--strong)", stroke_width=2.25))
    marks += [_point(panel, run, view, task, row, score, own) for row, score in points]
    subtitle = _subtitle(points, reference, own, view)
    title = text(0, 14, shorten(task, width, 14), 14, "ink", font_weight=600, data_tip=task)
    return picture(width, height, f"{task}: {subtitle[0]}", title, text(0, 32, subtitle[0], 12, subtitle[1]), marks)


def _subtitle(points: list[tuple[int, float]], reference: float | None, own: int | None, view: View) -> tuple[str, str]:
    """(text, color) under a panel's title."""
    last_row, last = points[-1]
    if own == 0:
        return f"never trained on: {number(points[0][1])} → {number(last)}", "muted"
    if own is None:
        return f"before {number(points[0][1])}, after {number(last)}", "muted"
    if reference is None:
        return f"{number(last)}, not learned yet", "muted"
    if last_row == own:
        return f"learned at {number(reference)}", "muted"
    change = last - reference
    tone = "loss" if change * view.sign <= -0.005 else "gain" if change * view.sign >= 0.005 else "muted"
    return f"{number(reference)} → {number(last)} ({signed(change)})", tone


def _row_labels(panel: Panel, run: Run, stages: int) -> Markup:
    every = max(1, -(-stages // 8))
    names = {0: "base", stages: "joint"} if run.joint else {0: "base"}
    return join(
        [
            text(panel.x(row), panel.bottom + 16, names.get(row, row), 11,
                 text_anchor="start" if row == 0 else "end" if row == stages else "middle")
            for row in range(0, stages + 1, every)
            if row == 0 or panel.x(row) - panel.left > 36
        ]
    )  # fmt: skip


def _point(panel: Panel, run: Run, view: View, task: str, row: int, score: float, own: int | None) -> Markup:
    x, y = panel.x(row), panel.y(score)
    tip = f"{task}, {row_names(run)[row]}: {number(score, 3)}"
    learned = own is not None and row >= own
    mark = dot(x, y, 4.5 if row == own else 3, "var(--strong)" if learned else "var(--base)",
               stroke="var(--paper)", stroke_width=1.5)  # fmt: skip
    reach = (panel.right - panel.left) / max(1, len(row_names(run)) - 1)
    hit = box(x - reach / 2, panel.top, reach, panel.bottom - panel.top, "transparent", data_tip=tip)
    return join(mark, hit)


def below(points: list[tuple[float, float]], reference: float, sign: int) -> list[tuple[float, float, float]]:
    """(x, curve, reference) where the curve is on the worse side of the reference, crossings included."""
    worse: Callable[[float], float] = min if sign > 0 else max
    band = []
    for index, (x, y) in enumerate(points):
        if index:
            x0, y0 = points[index - 1]
            if (y0 - reference) * (y - reference) < 0:
                band.append((x0 + (x - x0) * (reference - y0) / (y - y0), reference, reference))
        band.append((x, worse(y, reference), reference))
    return band
