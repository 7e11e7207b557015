"""What can be told of a sample from its text alone (SSR 7.2, 9.3): empty, short, broken, repeated, copied.

Every check is linear in the length of the text.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from functools import lru_cache

import numpy as np

from retain.quality.ngrams import words

MIN_WORDS = 3
NEAR_VERBATIM = 0.8
USUAL = 0.1  # a fault that more than this share of the real samples have is the task's manner

# Controls but for tab and line ends, lone surrogates, what stands for cut bytes, overrides of direction, tags.
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202d\u202e\ud800-\udfff\ufffd-\uffff\U000e0000-\U000e007f]")
MARKUP = re.compile(r"</?[a-z][a-z0-9]*(?:\s[^<>]*)?/?>|<!|<script|javascript:|\bon[a-z]{4,12}\s*=\s*[\"']", re.I)
PROMPT = re.compile(
    r"(?:^|[\s.!?])(?:input|output|answer|label|task|instruction|response|example(?: \d+)?)\s?:"
    r"|\bgenerate an? (?:new |complete )?(?:training )?(?:example|input)\b"
    r"|<\|\w+\|>|\[/?INST\]"
    r"|\b(?:ignore|disregard|forget) (?:(?:all|any|the|your) ){0,2}(?:previous|prior|above|earlier) instructions?\b",
    re.I,
)

# Up to 8 characters that repeat through 20 more.
RUN = re.compile("|".join(f"(.{{{p}}})\\{p}{{{math.ceil(20 / p)}}}" for p in range(1, 9)))


def heuristic_fault(
    input: str,
    answer: str,
    *,
    min_words: int = MIN_WORDS,
    choices: Collection[str] = (),
    prompts: tuple[str, ...] = (),
    usual: Collection[str] = (),
) -> str | None:
    """The first of a sample's `faults` that is not `usual` for the task; None where it has none."""
    found = faults(input, answer, min_words=min_words, choices=choices, prompts=prompts)
    return next((fault for fault in found if fault not in usual), None)


def faults(
    input: str,
    answer: str,
    *,
    min_words: int = MIN_WORDS,
    choices: Collection[str] = (),
    prompts: tuple[str, ...] = (),
) -> Iterator[str]:
    """What is wrong with a sample, the cheapest checks first (SSR 7.2, 9.3; MATH 5).

    `choices`: where the labels are known, the answer is one of them. `prompts`: texts no input may repeat,
    such as the task's description. A one-word label is a fine answer; SSR's own rule would drop it.
    """
    if not _visible(input):
        yield "empty input"
    if not _visible(answer):
        yield "empty answer"
    if choices and answer not in choices:
        yield "unknown label"
    both = (input, answer)
    if any(map(CONTROL.search, both)):
        yield "control characters"
    if any(map(PROMPT.search, both)):
        yield "prompt remains"
    if choices and any(line.strip() in choices for line in input.splitlines()):
        yield "label as a line"
    if any(map(MARKUP.search, both)):
        yield "markup"
    spoken, answered = words(input), words(answer)
    if len(spoken) < min_words:
        yield "too few words"
    if any(map(repeats, both, (spoken, answered))):
        yield "repetition"
    if copies(answered, spoken) or any(repeats_prompt(spoken, prompt) for prompt in prompts):
        yield "echo"


def min_words_of(texts: Sequence[str]) -> int:
    """Fewest words of an input: 3, or the tenth percentile of the real inputs where that is less, at least 1."""
    counts = sorted(len(words(text)) for text in texts)
    return max(1, min(MIN_WORDS, counts[(len(counts) - 1) // 10])) if counts else MIN_WORDS


def usual_faults(
    pairs: Sequence[tuple[str, str]], *, choices: Collection[str] = (), prompts: tuple[str, ...] = ()
) -> frozenset[str]:
    """Faults of more than a tenth of the real (input, answer) pairs: the task's manner, so no ground to drop."""
    found = [fault for input, answer in pairs for fault in faults(input, answer, choices=choices, prompts=prompts)]
    return frozenset(fault for fault in set(found) if found.count(fault) > USUAL * len(pairs))


def repeats(text: str, spoken: Sequence[str] | None = None) -> bool:
    """True where a text says the same over and over, in a row or by turns.

    In a row: a word five times, a phrase of up to 32 words three times, or up to 8 characters through 20 more.
    By turns: of at least 6 word trigrams fewer than 0.7 are distinct.
    """
    spoken = words(text) if spoken is None else spoken
    if _repeats_a_phrase(spoken) or RUN.search(" ".join(text.split())):
        return True
    trigrams = list(zip(spoken, spoken[1:], spoken[2:], strict=False))
    return len(trigrams) >= 6 and len(set(trigrams)) < 0.7 * len(trigrams)


def copies(answered: Sequence[str], spoken: Sequence[str]) -> bool:
    """True where an answer is its input near-verbatim: Jaccard similarity of their word trigrams ≥ 0.8."""
    first, second = _trigrams(answered), _trigrams(spoken)
    return bool(answered) and len(first & second) >= NEAR_VERBATIM * len(first | second)


def repeats_prompt(spoken: Sequence[str], prompt: str) -> bool:
    """True where an input is part of the prompt, or holds nearly all of a prompt of at least 5 words."""
    asked, length = _prompt_trigrams(prompt)
    given = _trigrams(spoken)
    common = len(given & asked)
    if not spoken or not length or not common:
        return False
    return common >= NEAR_VERBATIM * len(given) or (length >= 5 and common >= NEAR_VERBATIM * len(asked))


@lru_cache(maxsize=64)
def _prompt_trigrams(prompt: str) -> tuple[frozenset, int]:
    spoken = words(prompt)
    return frozenset(_trigrams(spoken)), len(spoken)


def _trigrams(spoken: Sequence[str]) -> set[tuple[str, ...]]:
    """Word trigrams; of fewer than 3 words the words themselves."""
    return set(zip(spoken, spoken[1:], spoken[2:], strict=False)) or {tuple(spoken)}


def _visible(text: str) -> bool:
    return any(not character.isspace() and unicodedata.category(character)[0] != "C" for character in text)


def _repeats_a_phrase(spoken: Sequence[str]) -> bool:
    """True where for a period p ≤ 32 at least max(2p, 4) words in a row equal those p before."""
    number: dict[str, int] = {}
    ids = np.fromiter((number.setdefault(word, len(number)) for word in spoken), np.int64)
    again = len(ids) - len(number)  # words that came before; a repetition is made of these
    for period in range(1, min(32, again // 2) + 1 if again >= 4 else 1):
        different = np.flatnonzero(ids[period:] != ids[:-period])
        runs = np.diff(different, prepend=-1, append=len(ids) - period) - 1
        if runs.max() >= max(2 * period, 4):
            return True
    return False
