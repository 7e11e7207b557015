"""`retain review`: synthetic samples one by one on the terminal, what people say of them, and how far they agree."""

from __future__ import annotations

import getpass
import sys
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from retain.cards import TaskCard, read_cards
from retain.config import load_config
from retain.quality.human import CRITERIA, Rating
from retain.report.words import number
from retain.reviews import (
    Agreement,
    Review,
    Row,
    Summary,
    add_review,
    agreements,
    chosen,
    read_reviews,
    require_rate,
    summarize,
    synthetic_rows,
)
from retain.rundir import RunDir
from retain.types import InputError

LONGEST = 3000  # characters of a text that are shown
JOINERS = "\u200c\u200d"  # Persian, Hindi and emoji are spelled with them
HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
TITLES = {"label": "label correctness"}
VERDICTS = {"y": True, "yes": True, "n": False, "no": False}

Show = Callable[[RenderableType], None]


def review(run_dir: Path, task: str | None, rater: str | None, count: int | None, scale: bool, show: Show) -> None:
    """Ask for a rating of each sample that this rater has not rated, then sum up; GateError below the rate."""
    config = load_config(run_dir / "config.yaml", need_tasks=False)
    rows = _rows(run_dir, task, config.storage.mode)
    rater = _rater(rater)
    asked = {name: chosen(found, count or config.filters.human_samples, config.seed) for name, found in rows.items()}
    if not _ask_all(run_dir, asked, rater, scale, show):
        show(Text(f"{visible(rater)} has rated all of them; a larger --count shows more"))
    reviews = read_reviews(run_dir)
    found = summarize(rows, reviews)
    ids = {row["id"] for written in rows.values() for row in written}
    show(summary_tables(found, agreements([one for one in reviews if one.id in ids])))
    require_rate(found, config.filters.human_required)


def _rows(run_dir: Path, task: str | None, mode: str) -> dict[str, list[Row]]:
    rows = synthetic_rows(run_dir)
    if not rows:
        why = f" (storage.mode {mode} keeps none in files)" if mode in ("cached", "on-demand") else ""
        raise InputError(f"{run_dir}: no synthetic samples to review{why}; a run of strategy ssr writes them")
    if task is None:
        return rows
    if task not in rows:
        raise InputError(f"--task: {run_dir} has no synthetic samples of {task!r}; it has some of {', '.join(rows)}")
    return {task: rows[task]}


def _rater(name: str | None) -> str:
    if name is None:
        try:
            return getpass.getuser()
        except (KeyError, OSError):
            raise InputError("--rater: this account has no name; give one") from None
    if not name.strip():
        raise InputError("--rater: empty; give a name")
    return name.strip()


def _ask_all(run_dir: Path, asked: Mapping[str, Sequence[Row]], rater: str, scale: bool, show: Show) -> bool:
    """Ask until all is rated or the rater quits; False where there was nothing to ask."""
    done = {one.id for one in read_reviews(run_dir) if one.rater == rater}
    cards = {card.name: card for card in read_cards(RunDir(run_dir).rows()[-1])}
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="replace")
    open_rows = [(task, place, row) for task, rows in asked.items() for place, row in enumerate(rows, start=1)
                 if row["id"] not in done]  # fmt: skip
    for task, place, row in open_rows:
        show(sample_view(row, f"{visible(task)}, {place} of {len(asked[task])}", cards.get(task)))
        rating = _ask_scale(show) if scale else _ask_verdict(show)
        if rating is None:
            break
        add_review(run_dir, Review(row["id"], task, rater, rating))
    return bool(open_rows)


def _ask_verdict(show: Show) -> Rating | None:
    """Yes or no; None to quit."""
    answer = _ask("good enough to train on? y, n, q (quit) ", (*VERDICTS, "q"), show)
    return VERDICTS.get(answer)


def _ask_scale(show: Show) -> Rating | None:
    """1 to 5 on each criterion; None to quit, and what was said of this sample so far is not kept."""
    rating = {}
    for name in CRITERIA:
        answer = _ask(f"{TITLES.get(name, name)} 1-5, q (quit) ", (*"12345", "q"), show)
        if answer == "q":
            return None
        rating[name] = int(answer)
    return rating


def _ask(question: str, allowed: Sequence[str], show: Show) -> str:
    """One of the allowed answers; the end of the input is "q". Piped answers are shown."""
    while True:
        try:
            answer = input(question)
        except EOFError:
            show(Text())
            return "q"
        if not sys.stdin.isatty():
            show(Text(visible(answer)))
        if answer.strip().lower() in allowed:
            return answer.strip().lower()
        show(Text(f"{visible(answer)[:40]!r} is none of {', '.join(allowed)}"))


def visible(text: str) -> str:
    """`text` with every control and format character (bidi marks, escapes) as <U+XXXX>, cut to what people read."""
    shown = text if len(text) <= LONGEST else f"{text[:LONGEST]}… and {len(text) - LONGEST:,} more characters"
    return "".join(f"<U+{ord(char):04X}>" if _is_hidden(char) else char for char in shown)


def _is_hidden(char: str) -> bool:
    return unicodedata.category(char) in HIDDEN and char not in "\n\t" and char not in JOINERS


def sample_view(row: Row, title: str, card: TaskCard | None = None) -> RenderableType:
    """A sample as it stands in front of a rater, with what its task is about."""
    grid = Table(box=box.HORIZONTALS, title=Text(title), title_justify="left", show_header=False, expand=True)
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold", ratio=1)
    about = {"task": card.description, "labels": ", ".join(card.labels)} if card else {}
    for name, text in {**about, "input": row["input"], "answer": row["answer"]}.items():
        if text or name in row:
            grid.add_row(Text(name, style="dim"), Text(visible(text)))
    return grid


def summary_tables(summaries: Sequence[Summary], agreeing: Sequence[Agreement]) -> RenderableType:
    """What all raters said so far, a row a task, and how far each two of them agree."""
    means = {name: TITLES.get(name, name) for name in CRITERIA if any(one.means for one in summaries)}
    table = _table("task", "written", "reviewed", "raters", "approved", *means.values())
    for one in summaries:
        counts = [str(value) for value in (one.written, one.samples, one.raters)]
        table.add_row(
            Text(visible(one.task)), *counts, number(one.rate), *(number(one.means.get(name), 1) for name in means)
        )
    if not agreeing:
        return table
    criteria = {name: f"κ {TITLES.get(name, name)}" for name in CRITERIA if any(one.criteria for one in agreeing)}
    pairs = _table("raters", "samples of both", "agreement", "κ", *criteria.values())
    for one in agreeing:
        names = Text(" and ".join(visible(name) for name in one.raters))
        kappas = [number(one.criteria.get(name)) for name in criteria]
        pairs.add_row(names, str(one.samples), number(one.share), number(one.kappa), *kappas)
    return Group(table, pairs)


def _table(first: str, *others: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right")
    return table
