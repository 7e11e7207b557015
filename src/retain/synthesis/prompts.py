"""What the model is asked to write, how what it wrote is read, and what teaches it to write (SSR 5; MATH 4)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import permutations

import numpy as np

from retain.batching import Encoded
from retain.cards import TaskCard
from retain.model import LanguageModel
from retain.synthesis_sections import SynthesisConfig

Pair = tuple[str, str]  # an input and its answer
INPUT, OUTPUT = "Input:", "Output:"
SHOWING = ("in-context", "pairs")  # methods whose prompt holds demonstrations
BOUNDARY = re.compile(rf"(?:^|\n)\s*(?={INPUT}|{OUTPUT})|\n\s*\n(?=Task:|Example|Generate )")


def conditions_on_label(config: SynthesisConfig, card: TaskCard) -> bool:
    """Whether the prompt names, or shows samples of, the label that the sample should have (SSR 9.7)."""
    shows, names = config.demonstrations_from == "training", "{description}" in config.prompt
    return config.class_conditioned and bool(card.labels) and (shows if config.method in SHOWING else names)


def writing_prompt(config: SynthesisConfig, card: TaskCard, label: str | None = None) -> str:
    """The prompt after which the model writes an input (two-stage) or an input and its output (joint)."""
    description = card.description if label is None else f"{card.description}\nGenerate examples with label: {label}"
    return config.prompt.replace("{name}", card.name).replace("{description}", description)


def shown(pairs: Sequence[Pair]) -> str:
    """Demonstrations as they stand in a prompt."""
    return "".join(f"{INPUT} {input}\n{OUTPUT} {answer}\n\n" for input, answer in pairs)


def prompts(
    config: SynthesisConfig,
    card: TaskCard,
    labels: Sequence[str | None],
    demonstrations: Sequence[Pair],
    seed: Sequence[int],
) -> list[str]:
    """A prompt for each of `labels` (None: any), a function of them and the seed, whose last number counts requests.

    `in-context` shows all demonstrations; `pairs` shows two of them, every ordered pair in turn (Huang et al. 2024).
    With `demonstrations_from: training` each prompt shows others, of its label where there are any.
    """
    if config.method not in SHOWING:
        return [writing_prompt(config, card, label) for label in labels]
    if config.demonstrations_from == "training":
        sets = _drawn(demonstrations, labels, 2 if config.method == "pairs" else config.demonstrations, seed)
    elif config.method == "pairs":
        ordered = list(permutations(demonstrations, 2)) or [tuple(demonstrations)]
        sets = [ordered[(seed[-1] + k) % len(ordered)] for k in range(len(labels))]
    else:
        sets = [demonstrations] * len(labels)
    if config.method == "pairs":
        return [f"{card.description}\n\n{shown(pairs)}{INPUT}" for pairs in sets]
    return [f"Task: {card.description}\n\n{shown(pairs)}Generate a new example:\n{INPUT}" for pairs in sets]


def _drawn(pool: Sequence[Pair], labels: Sequence[str | None], count: int, seed: Sequence[int]) -> list[list[Pair]]:
    """For each label `count` samples of the pool without replacement, those that have the label if any has."""
    generator = np.random.default_rng(seed)
    drawn = []
    for label in labels:
        own = [pair for pair in pool if pair[1] == label] or pool
        drawn.append([own[k] for k in generator.permutation(len(own))[:count].tolist()])
    return drawn


def read(method: str, text: str) -> Pair:
    """The input that was written and, where the method writes it too, the output ("" where it is missing)."""
    input, _, rest = text.partition(f"\n{OUTPUT}")
    input = BOUNDARY.split(input.strip(), maxsplit=1)[0].strip()
    return input, BOUNDARY.split(rest.strip(), maxsplit=1)[0].strip() if method == "joint" else ""


def writing_sequence(lm: LanguageModel, config: SynthesisConfig, card: TaskCard, input: str, answer: str) -> Encoded:
    """The sequence whose loss teaches the model to write this input of the task (LAMOL; SSR 5)."""
    label = answer if conditions_on_label(config, card) else None
    prompt = list(lm.tokenizer(writing_prompt(config, card, label)).input_ids)
    text = f" {input}\n{OUTPUT} {answer}" if config.method == "joint" else f" {input}"
    return lm.sequence(prompt, [*lm.tokenizer(text, add_special_tokens=False).input_ids, lm.tokenizer.eos_token_id])
