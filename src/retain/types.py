"""Plain values that every layer shares."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

IN_MEMORY = "in-memory"  # stands in a configuration where rows were given in Python


class InputError(ValueError):
    """The user's input is wrong. The command prints the message alone and exits with 2."""


class GateError(Exception):
    """A condition that the configuration sets is not met. The command prints the message alone and exits with 3."""


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


@dataclass(frozen=True, slots=True)
class Frame:
    """What all prompts of a task have in common; what lies between prefix and suffix is a sample's own input.

    Of a chat task both stand in the user's turn, after the system message, if there is one.
    """

    prefix: str = ""
    suffix: str = ""
    chat: bool = False
    system: str = ""

    def input_of(self, sample: Sample) -> str:
        """The part of the prompt that is the sample's own; of a chat what is so in the last user turn."""
        prompt = sample.prompt
        if sample.messages:
            prompt = next(text for role, text in reversed(sample.messages) if role == "user")
        framed = prompt.startswith(self.prefix) and prompt.endswith(self.suffix)
        return prompt[len(self.prefix) : len(prompt) - len(self.suffix)] if framed else prompt

    def sample(self, id: str, task: str, input: str, answer: str, **fields: Any) -> Sample:
        """A sample of the task made of an input and an answer."""
        prompt = f"{self.prefix}{input}{self.suffix}"
        if not self.chat:
            return Sample(id, task, prompt, answer, **fields)
        messages = (*((("system", self.system),) if self.system else ()), ("user", prompt), ("assistant", answer))
        return Sample(id, task, "", answer, messages=messages, **fields)


@dataclass(slots=True)
class Task:
    """A named task. Without `train` it is evaluated and never trained."""

    name: str
    train: list[Sample] = field(default_factory=list)
    validation: list[Sample] = field(default_factory=list)
    test: list[Sample] = field(default_factory=list)
    description: str = ""
    metric: str = "exact_match"
    frame: Frame = Frame()
    skipped: int = 0
    fingerprint: str = ""
    harness: Any = None

    @property
    def is_scored(self) -> bool:
        """Whether there is something to score it on: test samples, or a task of lm-eval (`tasks.harness`)."""
        return bool(self.test or self.harness)

    @property
    def is_stage(self) -> bool:
        return bool(self.train)
