"""Plain values that every layer shares."""

from __future__ import annotations

from dataclasses import dataclass, field

IN_MEMORY = "in-memory"  # stands in a configuration where rows were given in Python


class InputError(ValueError):
    """The user's input is wrong. The command prints the message alone and exits with 2."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One example of a task.

    `prompt` is the text after the template; `answer` is what the model should write.
    A chat sample carries `messages` ((role, content), ...) instead and is rendered by the
    model's chat template; its `answer` is the last assistant turn.
    """

    id: str
    task: str
    prompt: str
    answer: str
    choices: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    messages: tuple[tuple[str, str], ...] = ()
    confidence: float | None = None

    @property
    def accepted(self) -> tuple[str, ...]:
        """Every answer that counts as right."""
        return self.references or (self.answer,)


@dataclass(slots=True)
class Task:
    """A named task. Without `train` it is evaluated and never trained."""

    name: str
    train: list[Sample] = field(default_factory=list)
    validation: list[Sample] = field(default_factory=list)
    test: list[Sample] = field(default_factory=list)
    description: str = ""
    metric: str = "exact_match"
    skipped: int = 0
    fingerprint: str = ""

    @property
    def is_stage(self) -> bool:
        return bool(self.train)
