"""What is kept of a task whose data may not be: its description, its form, and statistics; no sample or part of one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from retain.quality.filters import Embed, Reference
from retain.quality.memorization import TrainingTexts
from retain.sections import Section
from retain.types import Frame, InputError, Sample, Task

CARDS_FILE = "tasks.json"


@dataclass(frozen=True, slots=True)
class TaskCard:
    """A task without its data. size: its training samples; stage: when it was learned, from 1; perplexity and
    perplexity_limit: median and 95th percentile of its real samples under the model that had just learned it."""

    name: str
    description: str
    frame: Frame
    reference: Reference
    size: int
    stage: int
    perplexity: float | None = None
    perplexity_limit: float | None = None

    @classmethod
    def of(
        cls, task: Task, stage: int, prompts: Sequence[str] = (), embed: Embed | None = None, private: bool = False
    ) -> TaskCard:
        """The card of a task whose samples are at hand; `prompts` are texts no input may repeat.

        private: without any statistic of the samples, which DP-SGD would not account for.
        """
        pairs = [(task.frame.input_of(sample), sample.answer) for sample in task.train]
        prompts, labels = (*prompts, task.description), label_set(task)
        reference = Reference(labels, prompts) if private else Reference.of(pairs, labels, prompts, embed)
        return cls(task.name, task.description, task.frame, reference, len(task.train), stage)

    @property
    def labels(self) -> tuple[str, ...]:
        """The label set that all samples share, else empty."""
        return self.reference.choices

    def sample(self, name: str, input: str, answer: str, confidence: float | None = None) -> Sample:
        """A sample of the task with its own text."""
        return self.frame.sample(name, self.name, input, answer, choices=self.labels, confidence=confidence)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON; the training texts are not part of it."""
        known = self.reference
        center = None if known.center is None else [round(float(value), 5) for value in known.center]
        return {
            "name": self.name,
            "description": self.description,
            "frame": asdict(self.frame),
            "size": self.size,
            "stage": self.stage,
            "choices": list(known.choices),
            "prompts": list(known.prompts),
            "min_words": known.min_words,
            "usual": sorted(known.usual),
            "shares": dict(known.shares),
            "center": center,
            "perplexity": self.perplexity,
            "perplexity_limit": self.perplexity_limit,
        }

    def with_texts(self, training: TrainingTexts | None) -> TaskCard:
        """The card with the training texts that no written sample may copy; None forgets them, as it is kept."""
        return replace(self, reference=replace(self.reference, training=training))


class _Kept(Section):
    """What `TaskCard.to_dict` writes."""

    name: str
    description: str
    frame: Frame
    size: int
    stage: int
    choices: list[str]
    prompts: list[str]
    min_words: int
    usual: list[str]
    shares: dict[str, float]
    center: list[float] | None
    perplexity: float | None
    perplexity_limit: float | None

    def card(self) -> TaskCard:
        reference = Reference(
            choices=tuple(self.choices),
            prompts=tuple(self.prompts),
            min_words=self.min_words,
            usual=frozenset(self.usual),
            shares=self.shares,
            center=None if self.center is None else np.asarray(self.center, dtype=np.float64),
        )
        plain = {name: getattr(self, name) for name in ("size", "stage", "perplexity", "perplexity_limit")}
        return TaskCard(self.name, self.description, self.frame, reference, **plain)


_CARDS = TypeAdapter(list[_Kept])


def label_set(task: Task) -> tuple[str, ...]:
    """The choices that all training samples of a task share, else empty."""
    sets = {sample.choices for sample in task.train}
    return sets.pop() if len(sets) == 1 else ()


def texts_of(tasks: Iterable[Task]) -> TrainingTexts:
    """What a written sample may not copy: the inputs of all tasks, and the answers that are no labels."""
    texts: list[str] = []
    for task in tasks:
        labels = label_set(task)
        texts += [task.frame.input_of(sample) for sample in task.train]
        texts += [sample.answer for sample in task.train if sample.answer not in labels]
    return TrainingTexts(texts)


def write_cards(folder: Path, cards: Sequence[TaskCard]) -> None:
    """Write the cards of all tasks learned so far into a stage's folder."""
    text = json.dumps([card.to_dict() for card in cards], indent=1, ensure_ascii=False)
    (folder / CARDS_FILE).write_text(text + "\n", encoding="utf-8")


def read_cards(folder: Path) -> list[TaskCard]:
    """The cards that lie in a stage's folder; a broken file is an InputError."""
    path = folder / CARDS_FILE
    try:
        return [kept.card() for kept in _CARDS.validate_json(path.read_bytes())]
    except FileNotFoundError:
        raise InputError(f"{path}: is missing; restore it, or start anew with --out") from None
    except (OSError, ValidationError) as error:
        why = _first_of(error) if isinstance(error, ValidationError) else error.strerror
        raise InputError(f"{path}: is not what a run wrote ({why}); restore it, or start anew with --out") from None


def _first_of(error: ValidationError) -> str:
    first = error.errors()[0]
    place = ".".join(map(str, first["loc"]))
    return f"{place}: {first['msg']}" if place else first["msg"]
