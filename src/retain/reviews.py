"""What people say of a run's synthetic samples: reviews.jsonl, and the gate before they are rehearsed (SSR 9.3)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from retain.config import Config
from retain.files import drop_torn_line
from retain.memory.random import bits, hash_ids
from retain.quality.human import (
    CRITERIA,
    Rating,
    approval_rate,
    cohens_kappa,
    is_approved,
    percent_agreement,
    weighted_kappa,
)
from retain.rundir import RunDir
from retain.store import read_lines, synthetic_file
from retain.types import GateError, InputError

REVIEWS = "reviews.jsonl"
REVIEW_NOISE = 4  # 1 and 2 are the memory's, 3 the curriculum's

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Review:
    """What one rater said of one sample: yes or no, or 1 to 5 on each criterion."""

    id: str
    task: str
    rater: str
    rating: Rating


@dataclass(frozen=True, slots=True)
class Summary:
    """The reviews of one task's `written` samples. means: of each criterion over the ratings from 1 to 5."""

    task: str
    written: int
    samples: int
    ratings: int
    raters: int
    rate: float | None
    means: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Agreement:
    """Two raters on the samples that both rated: share of equal verdicts, κ, and κ_w of each criterion."""

    raters: tuple[str, str]
    samples: int
    share: float
    kappa: float | None
    criteria: Mapping[str, float | None]


def synthetic_rows(run_dir: Path) -> dict[str, list[Row]]:
    """The synthetic samples a run keeps in files, by task: those of the last finished stage that wrote any of it."""
    found: dict[str, list[Row]] = {}
    for folder in RunDir(run_dir).rows():
        path, newest = synthetic_file(folder), {}
        for row in read_lines(path, ("id", "task", "input", "answer")) if path else ():
            newest.setdefault(row["task"], []).append(row)
        found |= newest
    return found


def chosen(rows: Sequence[Row], count: int, seed: int) -> list[Row]:
    """`count` of the rows, the same ones for every rater: a function of (seed, id)."""
    keys = bits(seed, REVIEW_NOISE, hashes=hash_ids(row["id"] for row in rows))
    return [rows[k] for k in np.argsort(keys, kind="stable")[:count]]


def add_review(run_dir: Path, review: Review) -> None:
    """Append one line to reviews.jsonl."""
    line = {"id": review.id, "task": review.task, "rater": review.rater, "rating": review.rating}
    with open(run_dir / REVIEWS, "a", encoding="utf-8") as file:
        file.write(json.dumps({"time": datetime.now(UTC).isoformat(timespec="seconds"), **line}) + "\n")


def read_reviews(run_dir: Path) -> list[Review]:
    """All reviews of a run; of a sample that a rater rated twice the last one. A broken line is an InputError."""
    path = run_dir / REVIEWS
    if not path.exists():
        return []
    drop_torn_line(path)
    reviews = {}
    for number, row in enumerate(read_lines(path, ("id", "task", "rater")), start=1):
        if not _is_rating(row.get("rating")):
            allowed = f"true, false, or a whole number from 1 to 5 for each of {', '.join(CRITERIA)}"
            raise InputError(f"{path}, review {number}: rating {row.get('rating')!r}; it must be {allowed}")
        reviews[row["rater"], row["id"]] = Review(row["id"], row["task"], row["rater"], row["rating"])
    return list(reviews.values())


def summarize(rows: Mapping[str, Sequence[Row]], reviews: Sequence[Review]) -> list[Summary]:
    """A summary for each task of `rows`; reviews of samples that were written anew since do not count."""
    summaries = []
    for task, written in rows.items():
        ids = {row["id"] for row in written}
        found = [review for review in reviews if review.id in ids]
        ratings = [review.rating for review in found]
        graded = [rating for rating in ratings if not isinstance(rating, bool)]
        means = {name: fmean(rating[name] for rating in graded) for name in CRITERIA} if graded else {}
        raters = len({review.rater for review in found})
        rate = approval_rate(ratings) if ratings else None
        reviewed = len({review.id for review in found})
        summaries.append(Summary(task, len(written), reviewed, len(ratings), raters, rate, means))
    return summaries


def agreements(reviews: Sequence[Review]) -> list[Agreement]:
    """How far each two raters agree on what both have rated."""
    by_rater: dict[str, dict[str, Rating]] = {}
    for review in reviews:
        by_rater.setdefault(review.rater, {})[review.id] = review.rating
    found = []
    for pair in combinations(by_rater, 2):
        first, second = (by_rater[rater] for rater in pair)
        both = [one for one in first if one in second]
        if not both:
            continue
        verdicts = [[is_approved(ratings[one]) for one in both] for ratings in (first, second)]
        graded = [one for one in both if not isinstance(first[one], bool) and not isinstance(second[one], bool)]
        criteria = {
            name: weighted_kappa([first[one][name] for one in graded], [second[one][name] for one in graded])
            for name in (CRITERIA if graded else ())
        }
        found.append(Agreement(pair, len(both), percent_agreement(*verdicts), cohens_kappa(*verdicts), criteria))
    return found


def require_approval(run_dir: Path, config: Config) -> None:
    """Raise GateError where the next stage would rehearse samples that people have not approved (SSR 9.3).

    With `filters.human`: of a task of which more than `human_above` were written, `human_samples` or all must be
    rated, and at least `human_required` of the ratings approve.
    """
    section = config.filters
    if not section.human:
        return
    rows = {task: written for task, written in synthetic_rows(run_dir).items() if len(written) > section.human_above}
    found = summarize(rows, read_reviews(run_dir))
    open_tasks = [one for one in found if one.samples < min(section.human_samples, one.written)]
    if open_tasks:
        counts = ", ".join(
            f"of {one.task} {one.samples} of {min(section.human_samples, one.written)}" for one in open_tasks
        )
        ways = " and ".join(f"`retain review {run_dir} --task {one.task}`" for one in open_tasks)
        raise GateError(
            f"filters.human: the next stage would rehearse samples that people have not looked at ({counts} are "
            f"rated); run {ways}, then the same command again"
        )
    require_rate(found, section.human_required)


def require_rate(summaries: Sequence[Summary], required: float) -> None:
    """Raise GateError for tasks whose approval rate is below `required`; tasks without ratings pass."""
    low = [one for one in summaries if one.rate is not None and one.rate < required]
    if low:
        rates = ", ".join(f"{one.rate:.2f} for {one.task} ({one.ratings} ratings)" for one in low)
        raise GateError(
            f"filters.human_required: the approval rate is {rates} and must be at least {required:g}; describe the "
            "task more closely or tighten the filters in a new run"
        )


def _is_rating(value: Any) -> bool:
    if isinstance(value, dict):
        grades = list(value.values())
        return set(value) == set(CRITERIA) and all(type(grade) is int and 1 <= grade <= 5 for grade in grades)
    return isinstance(value, bool)
