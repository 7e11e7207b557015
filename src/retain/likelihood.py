"""How likely given answers are: every answer to every prompt in one pass over rows that share what they begin with."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from retain.losses import label_logits, make_rows, token_losses
from retain.memory.random import uniform
from retain.model import LanguageModel
from retain.sampling import draw
from retain.types import Sample


@dataclass(slots=True)
class Candidate:
    """One possible answer to a prompt, the loss of each of its tokens, and the model's own choice at each place."""

    targets: list[int]
    losses: np.ndarray
    best: list[int]


def choice_ids(lm: LanguageModel, sample: Sample) -> list[list[int]]:
    """Token ids of each of a sample's choices, or else of its answer alone, with what ends an answer."""
    return [lm.answer_ids(sample, text) for text in sample.choices or (sample.answer,)]


def cut_prompts(lm: LanguageModel, samples: Sequence[Sample], limit: int = 0) -> list[list[int]]:
    """The prompt of each sample, cut so that its longest choice and `limit` tokens fit behind it."""
    prompts = []
    for sample in samples:
        longest = max(map(len, choice_ids(lm, sample)))
        room = min(max(limit, longest), lm.answer_limit)
        prompts.append(lm.cut_prompt(lm.prompt_ids(sample), room))
    return prompts


def score_answers(
    lm: LanguageModel, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[Sequence[int]]]
) -> tuple[list[list[Candidate]], int]:
    """The candidates of each prompt, given the token ids of its answers; and the tokens that took."""
    pairs = [(i, answer) for i, given in enumerate(answers) for answer in given]
    sequences = [lm.sequence(list(prompts[i]), list(answer)) for i, answer in pairs]
    losses: dict[int, list[float]] = defaultdict(list)
    best: dict[int, list[int]] = defaultdict(list)
    rows, found = list(make_rows(lm, sequences)), []
    lm.model.eval()
    with torch.no_grad():
        for row in lm.team.share(rows):
            logits = label_logits(lm, row)
            found.append((token_losses(logits, row).tolist(), logits.argmax(-1).tolist()))
    for row, scored in zip(rows, lm.team.gather(found), strict=True):
        for owner, loss, token in zip(row.owners.tolist(), *scored, strict=True):
            losses[row.members[owner]].append(loss)
            best[row.members[owner]].append(token)
    grouped: list[list[Candidate]] = [[] for _ in prompts]
    for k, (sequence, (i, _)) in enumerate(zip(sequences, pairs, strict=True)):
        targets = [t for t, label in zip(sequence.ids, sequence.labels, strict=True) if label]
        grouped[i].append(Candidate(targets, np.asarray(losses[k]), best[k]))
    return grouped, sum(row.tokens for row in rows)


def label_distribution(
    lm: LanguageModel, prompts: Sequence[Sequence[int]], labels: Sequence[Sequence[int]]
) -> np.ndarray:
    """log p(label | prompt) (N, L) in nats, normalized over the labels: no decoding where there is a label set.

    labels: the token ids of each with what ends an answer; their log-probabilities are summed (MATH 5).
    """
    longest = max(map(len, labels))
    cut = [lm.cut_prompt(prompt, longest) for prompt in prompts]
    scored, _ = score_answers(lm, cut, [labels] * len(cut))
    logs = np.array([[-candidate.losses.sum() for candidate in row] for row in scored])
    return normalize(logs.reshape(len(cut), len(labels)))


def normalize(log_weights: np.ndarray) -> np.ndarray:
    """Log-probabilities (..., L) of log-weights (..., L): log w - log sum w."""
    return log_weights - np.logaddexp.reduce(log_weights, axis=-1, keepdims=True)


def draw_labels(log_probabilities: np.ndarray, seed: tuple[int, ...]) -> np.ndarray:
    """Index (N,) of a label drawn from each row (N, L); a function of (seed, row) alone."""
    noise = uniform(*seed, hashes=np.arange(len(log_probabilities), dtype=np.uint64))
    return draw(torch.from_numpy(np.exp(log_probabilities)), torch.from_numpy(noise)).numpy()
