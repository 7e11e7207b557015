"""Which strategy suits a run: whether old data may be kept, and which tasks the model can write itself (SSR 1, 9.8)."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from retain.config import Config, with_strategy
from retain.presets import AUTO, preset_of
from retain.synthesis_sections import SynthesisConfig
from retain.tasks import load_tasks
from retain.types import Task

log = logging.getLogger("retain")

LEAST_DESCRIPTION = 4  # words; "Task 1" guides nobody (SSR 9.4)
USUAL = 0.9  # a task is as long as this quantile of its samples
TOKENS_A_WORD, CHARACTERS_A_TOKEN = 4 / 3, 4  # of English prose; no tokenizer is at hand


@dataclass(frozen=True, slots=True)
class Choice:
    """strategy: its canonical name; why: in words; unsuited: why synthesis does not suit a task, by name."""

    strategy: str
    why: str
    unsuited: dict[str, str] = field(default_factory=dict)


def settle(config: Config, base: Path) -> tuple[Config, list[Task], Choice]:
    """The configuration with `strategy: auto` replaced, its tasks, and what suits them, whether it is taken or not."""
    tasks = load_tasks(config, base, config.needs_validation)
    choice = choose(tasks, config.keep_data, config.synthesis)
    if preset_of(config.strategy).name != AUTO:
        return config, tasks, choice
    log.info("strategy: auto takes %s: %s", choice.strategy, choice.why)
    settled = with_strategy(config, choice.strategy)
    if settled.needs_validation != config.needs_validation:
        tasks = load_tasks(settled, base, settled.needs_validation)
    return settled, tasks, choice


def choose(tasks: Sequence[Task], keep_data: bool, synthesis: SynthesisConfig) -> Choice:
    """What suits the tasks that are learned: stored samples where they may be kept, else synthetic ones and, where the
    model cannot write a task, a regularizer beside; that alone where it can write none or lacks a description."""
    learned = [task for task in tasks if task.is_stage]
    faults = {task.name: fault for task in learned if (fault := unsuited(task, synthesis))}
    if keep_data:
        why = "old data may be kept (keep_data: true), and stored samples are the surest rehearsal"
        return Choice("mssr", why, faults)
    why = "old data may not be kept (keep_data: false)"
    if not faults:
        return Choice("ssr", f"{why}, and the model can write samples of every task", faults)
    listed = "; ".join(f"{name}: {fault}" for name, fault in faults.items())
    if len(faults) == len(learned) or not all(task.description.strip() for task in learned):
        return Choice("ewc", f"{why}, and the model cannot write samples ({listed})", faults)
    return Choice("ssr + ewc", f"{why}; ewc stands in where the model cannot write good samples ({listed})", faults)


def unsuited(task: Task, synthesis: SynthesisConfig) -> str | None:
    """Why rehearsal by synthesis does not suit a task, in words; None where it does.

    It suits text with a label set and text-to-text that a description guides, with short inputs and answers (SSR 1,
    9.4, 9.8): not conversations, long passages, or reasoning, where a wrong result teaches the error. Lengths are
    estimates of the 0.9 quantile.
    """
    words = len(task.description.split())
    if not words:
        return "it has no description"
    if words < LEAST_DESCRIPTION:
        return f"its description of {words} words is too short to guide (at least {LEAST_DESCRIPTION})"
    if task.metric == "final_answer":
        return "its answers are results of reasoning, and a sample with a wrong one teaches the error"
    conversations = sum([role for role, _ in sample.messages].count("user") > 1 for sample in task.train)
    if 2 * conversations > len(task.train):
        return "its samples are conversations of several turns, and one turn is written"
    inputs = [task.frame.input_of(sample) for sample in task.train]
    answers = [sample.answer for sample in task.train if not sample.choices]
    for what, texts, key in (("inputs", inputs, "max_input_tokens"), ("answers", answers, "max_output_tokens")):
        length, limit = usual_tokens(texts), getattr(synthesis, key)
        if length > limit:
            return f"{what} of about {length} tokens are longer than synthesis.{key} {limit}"
    return None


def usual_tokens(texts: Sequence[str]) -> int:
    """Estimate of the 0.9 quantile of the tokens a text has: 4/3 a word or a quarter a character, the larger one."""
    counts = sorted(max(len(text.split()) * TOKENS_A_WORD, len(text) / CHARACTERS_A_TOKEN) for text in texts)
    return math.ceil(counts[math.ceil(USUAL * len(counts)) - 1]) if counts else 0
