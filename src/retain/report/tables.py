"""The same numbers for the terminal. rich is imported when a table is made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from retain.report.guarantees import privacy_sentences
from retain.report.svg import clean, cut
from retain.report.words import METRICS, NOTHING, cost, number

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

LONGEST = 18  # characters of a name


def plain_table(first: str, *others: str) -> Table:
    """An empty table without lines: a column of names, then columns of numbers."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(first)
    for title in others:
        table.add_column(title, justify="right")
    return table


def run_table(results: dict[str, Any]) -> Group:
    """The score matrix with a row a stage, then the metrics in one line. Bold: right after learning."""
    from rich.columns import Columns
    from rich.console import Group
    from rich.text import Text

    metrics = [
        Text(f"{name} {number(results['metrics'][name], 3)}")
        for name in METRICS
        if results["metrics"].get(name) is not None
    ]
    nothing = Text("No metrics yet: the run is not finished.")
    privacy = [Text(sentence) for sentence in privacy_sentences(results.get("privacy"))]
    return Group(_matrix_table(results), Text(), Columns(metrics, padding=(0, 2)) if metrics else nothing, *privacy)


def _matrix_table(results: dict[str, Any]) -> Table:
    from rich.table import Table
    from rich.text import Text

    tasks, others = results["tasks"], results.get("evaluation_only") or {"tasks": []}
    other_rows = (others.get("matrices") or {}).get("generated") or []
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("", no_wrap=True)
    for task in tasks:
        table.add_column(Text(_short(task)), justify="right", no_wrap=True)
    for task in others["tasks"]:
        table.add_column(Text(f"({_short(task)})"), justify="right", no_wrap=True)
    joint = bool(results.get("joint"))
    names = ["base model", *(["all at once"] if joint else [f"after {_short(task)}" for task in tasks])]
    for index, row in enumerate(results["matrix"]):
        cells = [_cell(score, index, None if joint else column + 1) for column, score in enumerate(row)]
        if others["tasks"]:
            extra = other_rows[index] if index < len(other_rows) else [None] * len(others["tasks"])
            cells += [Text(number(score)) for score in extra]
        table.add_row(Text(names[index]), *cells)
    return table


def _short(name: str) -> str:
    return cut(clean(name), LONGEST)


def _cell(score: float | None, row: int, own: int | None) -> Text:
    from rich.text import Text

    style = "" if own is None or row > own else "bold" if row == own else "dim"
    return Text(number(score), style=style)


def compare_table(runs: list[tuple[str, dict[str, Any]]]) -> Table:
    """A row a run: what it scored, what it forgot, what it replayed, how long it took."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("run")
    for title in ("ACC", "forgetting", "BWT", "NLL", "replayed samples", "time"):
        table.add_column(title, justify="right")
    for label, results in runs:
        metrics, costs = results["metrics"], results.get("costs") or {}
        scores = [number(metrics.get(name), 3) for name in ("ACC", "forgetting", "BWT", "NLL")]
        spent = [cost(name, costs[name]) if name in costs else NOTHING for name in ("replayed_samples", "seconds")]
        table.add_row(Text(clean(label)), *[Text(value) for value in scores + spent])
    return table
