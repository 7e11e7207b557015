"""Synthetic samples beside real ones, where the run keeps any; all of it is text from elsewhere and is escaped."""

from __future__ import annotations

from itertools import zip_longest
from typing import Any

from retain.report.rundata import Run
from retain.report.svg import Markup, cut, join, tag
from retain.report.words import number

SHOWN, LONGEST = 4, 400  # samples of a task, characters of a text
Row = dict[str, Any]


def samples(run: Run) -> Markup:
    """A few synthetic samples of each task, and as many real ones."""
    mode = _storage_mode(run)
    written, real = _written(run), _real(run, mode)
    if not written:
        where = "storage mode on-demand keeps none" if mode == "on-demand" else "the run directory holds none"
        return tag("p", f"There are no synthetic samples to show: {where}.", class_="lead")
    lead = f"{SHOWN} of each task, drawn at random."
    if not real:
        lead += (
            f" No real ones stand beside them: storage mode {mode} keeps none, and the run keeps no demonstrations. "
            "In storage mode hybrid a few are kept."
        )
    tables = [_side_by_side(task, rows, real.get(task, [])) for task, rows in written.items()]
    return join(tag("p", lead, class_="lead"), tables)


def _storage_mode(run: Run) -> str:
    storage = run.config.get("storage")
    return str(storage.get("mode", "stored")) if isinstance(storage, dict) else "stored"


def _written(run: Run) -> dict[str, list[Row]]:
    """Synthetic samples by task: of the files, else what the buffer holds (a cache, or general data for a start)."""
    from retain.reviews import chosen, synthetic_rows

    found = _buffered(run, synthetic=True) | synthetic_rows(run.path)
    return {task: chosen(rows, SHOWN, 0) for task, rows in found.items()}


def _real(run: Run, mode: str) -> dict[str, list[Row]]:
    """Real samples by task: what storage mode hybrid keeps in the buffer, and demonstrations."""
    from retain.reviews import chosen
    from retain.rundir import RunDir
    from retain.store import DEMONSTRATIONS, read_lines

    found = _buffered(run, synthetic=False) if mode == "hybrid" else {}
    found = {task: chosen(rows, SHOWN, 0) for task, rows in found.items()}
    path = next((row / DEMONSTRATIONS for row in RunDir(run.path).rows()[-1:]), None)
    for row in read_lines(path, ("task", "input", "answer")) if path and path.exists() else ():
        found.setdefault(row["task"], []).append(row)
    return {task: rows[:SHOWN] for task, rows in found.items()}


def _buffered(run: Run, synthetic: bool) -> dict[str, list[Row]]:
    """The buffer's samples by task: synthetic ones, or real ones of the tasks that are synthesized."""
    from retain.buffer import SAMPLES_FILE, read_samples
    from retain.cards import CARDS_FILE, read_cards
    from retain.rundir import RunDir
    from retain.types import Frame

    path, folder = run.path / "buffer" / SAMPLES_FILE, next(iter(RunDir(run.path).rows()[-1:]), run.path)
    cards = {card.name: card for card in read_cards(folder)} if (folder / CARDS_FILE).exists() else {}
    found: dict[str, list[Row]] = {}
    for sample in read_samples(path) if path.exists() else ():
        written = sample.confidence is not None or sample.id.startswith(f"{sample.task}/synthetic/")
        if written == synthetic and (written or sample.task in cards):
            frame = cards[sample.task].frame if sample.task in cards else Frame()
            row = {"id": sample.id, "input": frame.input_of(sample), "answer": sample.answer}
            found.setdefault(sample.task, []).append(row | {"consistency": sample.confidence})
    return found


def _side_by_side(task: str, written: list[Row], real: list[Row]) -> Markup:
    """Synthetic samples at the left and real ones at the right; without real ones on both sides."""
    if real:
        head = [tag("th", "written by the model", scope="col"), tag("th", "real", scope="col")]
        pairs = zip_longest(written, real)
    else:
        head = [tag("th", "written by the model", scope="col", colspan=2)]
        pairs = zip_longest(written[::2], written[1::2])
    rows = [tag("tr", _cell(one), _cell(other)) for one, other in pairs]
    table = tag("table", tag("thead", tag("tr", head)), tag("tbody", rows), class_="texts")
    return join(tag("h3", task), table)


def _cell(row: Row | None) -> Markup:
    if row is None:
        return tag("td")
    scores = [f"{name} {number(row[name], digits)}" for name, digits in (("perplexity", 1), ("consistency", 2))
              if isinstance(row.get(name), int | float)]  # fmt: skip
    return tag(
        "td",
        tag("span", _short(row["input"]), class_="text", dir="auto"),
        tag("span", tag("b", _short(row["answer"]), dir="auto"), class_="text"),
        tag("span", ", ".join(scores), class_="note") if scores else None,
    )


def _short(text: str) -> str:
    return cut(text, LONGEST)
