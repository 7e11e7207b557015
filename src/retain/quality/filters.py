"""The filters of synthetic samples, each usable alone, each saying why it drops a sample (SSR 2, 3, 7.2, 9; MATH 5).

A filter takes candidates and returns a verdict for each: None keeps it, else in words why not.
`retain.quality.funnel` runs those that the configuration turns on.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from retain.quality.drift import label_shares
from retain.quality.duplicates import Cosine, MinHash, TextSimilarity, TokenOverlap
from retain.quality.heuristics import MIN_WORDS, heuristic_fault, min_words_of, usual_faults
from retain.quality.memorization import LONG, TrainingTexts
from retain.quality.ngrams import words
from retain.schedules import round_amount
from retain.synthesis_sections import FiltersConfig

KEEP_RATIO = 0.7  # SSR 7.2; of the penalty form, where `keep_ratio` sets none

Verdicts = list[str | None]


@dataclass(slots=True)
class Candidate:
    """A generated sample and what its model thinks of it; None is not known.

    perplexity: exp of the mean token NLL of input and answer; consistency: p(answer | input) in [0, 1];
    votes: share in [0, 1] of sampled answers that agree with `answer`.
    """

    input: str
    answer: str
    perplexity: float | None = None
    consistency: float | None = None
    votes: float | None = None

    @property
    def confidence(self) -> float | None:
        """c = consistency (SSR 3): the weight of the sample in draws and losses."""
        return self.consistency


Complete = Callable[[list[Candidate]], None]  # sets what is not known of the candidates it is given
Embed = Callable[[list[str]], np.ndarray]  # N texts -> (N, D)


@dataclass(frozen=True, slots=True)
class Reference:
    """What the filters know of a task: made of its real samples while they are at hand, none of which it keeps."""

    choices: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()
    min_words: int = MIN_WORDS
    usual: frozenset[str] = frozenset()
    shares: Mapping[str, float] = field(default_factory=dict)
    training: TrainingTexts | None = None
    center: np.ndarray | None = None

    @classmethod
    def of(
        cls,
        pairs: Sequence[tuple[str, str]],
        choices: Sequence[str] = (),
        prompts: Sequence[str] = (),
        embed: Embed | None = None,
    ) -> Reference:
        """From the real (input, answer) pairs, the label set if there is one, and texts no input may repeat.

        embed: where `filters.similarity` is hidden; the mean (D,) of the real inputs becomes the center.
        """
        inputs = [input for input, _ in pairs]
        return cls(
            choices=tuple(choices),
            prompts=tuple(prompts),
            min_words=min_words_of(inputs),
            usual=usual_faults(pairs, choices=choices, prompts=prompts),
            shares=label_shares(answer for _, answer in pairs) if choices else {},
            training=TrainingTexts(inputs + [answer for _, answer in pairs if answer not in choices]),
            center=np.asarray(embed(inputs), dtype=np.float64).mean(axis=0) if embed and inputs else None,
        )

    @property
    def target(self) -> Mapping[str, float]:
        """The shares that labels should have: those of the real samples, or equal ones."""
        return self.shares or dict.fromkeys(self.choices, 1.0 / max(len(self.choices), 1))


# One candidate at a time


def heuristics(candidates: Sequence[Candidate], reference: Reference, min_words: int) -> Verdicts:
    """What the texts alone tell (SSR 7.2, 9.3): see `retain.quality.heuristics.faults`."""
    known = {"choices": reference.choices, "prompts": reference.prompts, "usual": reference.usual}
    return [heuristic_fault(one.input, one.answer, min_words=min_words, **known) for one in candidates]


def memorization(candidates: Sequence[Candidate], training: TrainingTexts, limit: float) -> Verdicts:
    """Keep if the input, and an answer of at least 8 words, overlap one training text by ≤ `limit` (SSR 9.9).

    A shorter answer is dropped where it is a whole training text, one that stands there once; see `TrainingTexts`.
    """
    shares = training.overlap([one.input for one in candidates])
    long = [row for row, one in enumerate(candidates) if len(words(one.answer)) >= LONG]
    shares[long] = np.maximum(shares[long], training.overlap([candidates[row].answer for row in long]))
    shares[training.telling([one.answer for one in candidates])] = 1.0
    return [f"{share:.2f} of it stands in one training text" if share > limit else None for share in shares]


def perplexity_limit(limit: float, stages_since: int) -> float:
    """limit/(1 + 0.1 k), k = stages since the task was learned: stricter with age (SSR 9.1; MATH 5)."""
    return limit / (1.0 + 0.1 * stages_since)


def consistency_limit(limit: float, stages_since: int) -> float:
    """min(0.95, limit (1 + 0.1 k)), k = stages since the task was learned (MATH 5); never below `limit` itself."""
    return max(limit, min(0.95, limit * (1.0 + 0.1 * stages_since)))


def low_perplexity(candidates: Sequence[Candidate], limit: float, complete: Complete | None = None) -> Verdicts:
    """Keep if PPL < `limit` (SSR 2); what is not a number is dropped."""
    values = _known(candidates, "perplexity", complete)
    return [None if value < limit else f"{value:.4g} is not below {limit:.4g}" for value in values]


def high_consistency(candidates: Sequence[Candidate], limit: float, complete: Complete | None = None) -> Verdicts:
    """Keep if p(answer | input) > `limit` (SSR 2); what is not a number is dropped."""
    values = _known(candidates, "consistency", complete)
    return [None if value > limit else f"{value:.4g} is not above {limit:.4g}" for value in values]


def enough_votes(candidates: Sequence[Candidate], limit: float, complete: Complete | None = None) -> Verdicts:
    """Keep if at least the share `limit` of sampled answers agrees with the sample's own (MATH 5)."""
    values = _known(candidates, "votes", complete)
    return [None if value >= limit else f"{value:.4g} of the votes is less than {limit:.4g}" for value in values]


# All candidates together


def ranking(candidates: Sequence[Candidate]) -> list[int]:
    """Candidates by consistency, highest first, then perplexity, lowest first, then as they came (SSR 7.2)."""
    keys = [(-_number(one.consistency, 0.0), _number(one.perplexity, math.inf)) for one in candidates]
    return sorted(range(len(candidates)), key=keys.__getitem__)


def best_share(candidates: Sequence[Candidate], ratio: float) -> Verdicts:
    """Keep the ⌊N·ratio + ½⌋ that rank best: thresholds that adapt to the model (SSR 7.2)."""
    return _keep_first(ranking(candidates), ratio, "consistency and perplexity")


def diversity(
    candidates: Sequence[Candidate],
    config: FiltersConfig,
    embed: Embed | None = None,
    center: np.ndarray | None = None,
) -> Verdicts:
    """Few near duplicates of inputs, as `config.diversity_form` says (SSR 3, 7 "Example Deduplication"; MATH 5).

    `cap`: keep if the largest similarity to what is kept is ≤ `config.diversity`, the best ranked first.
    `penalty`: keep the ⌊N·ratio + ½⌋ largest log c - λ_div·s̄, s̄ the mean similarity to the others.
    embed: for `config.similarity` of kind hidden or sentence-transformers. center: (D,), what the hidden states of
    all texts share; the candidates' own mean where it is None.
    """
    if not candidates:
        return []
    order = ranking(candidates)
    similarity = _similarity([candidates[row].input for row in order], config, embed, center)
    if config.diversity_form == "penalty":
        confidences = [_number(candidates[row].confidence, 1.0) for row in order]
        with np.errstate(divide="ignore"):
            scores = np.log(confidences) - config.diversity_weight * similarity.means()
        best = [order[place] for place in np.argsort(-scores, kind="stable")]
        return _keep_first(best, config.keep_ratio or KEEP_RATIO, "confidence and mean similarity")
    verdicts: Verdicts = [None] * len(candidates)
    for row, value in zip(order, similarity.nearest_kept(config.diversity).tolist(), strict=True):
        if value > config.diversity:
            verdicts[row] = f"similarity {value:.2f} to a kept one is above {config.diversity:.4g}"
    return verdicts


def balanced(labels: Sequence[str], target: Mapping[str, float], generator: np.random.Generator) -> Verdicts:
    """Keep a random part of each label so that the kept ones follow `target` (rejection; SSR 9.7; MATH 5).

    ⌊M·target_l + ½⌋ of label l, M = min_l count_l/target_l. A target label of which there is none is left out
    and the others keep their proportions; a label that is no target is dropped.
    """
    counts = Counter(labels)
    target = {label: share for label, share in target.items() if share > 0.0 and counts[label]}
    total = min((counts[label] / share for label, share in target.items()), default=0.0)
    verdicts: Verdicts = [None if label in target else f"{label!r} is no label" for label in labels]
    for label, share in target.items():
        room = round_amount(total * share)
        rows = [row for row, one in enumerate(labels) if one == label]
        for row in generator.permutation(rows)[room:].tolist():
            verdicts[row] = f"more than {room} of {label!r}"
    return verdicts


def _similarity(
    texts: list[str], config: FiltersConfig, embed: Embed | None, center: np.ndarray | None
) -> Cosine | TextSimilarity:
    match config.similarity:
        case "minhash":
            return MinHash(texts, config.diversity)
        case "jaccard" | "rouge":
            return TokenOverlap(texts, rouge=config.similarity == "rouge")
    if embed is None:
        raise ValueError(f"filters.similarity: {config.similarity!r} needs embeddings")
    if config.similarity == "sentence-transformers":
        return Cosine(embed(texts))
    return Cosine(embed(texts), center=True if center is None else center)


def _keep_first(order: Sequence[int], ratio: float, by: str) -> Verdicts:
    """None for the first ⌊N·ratio + ½⌋ rows of `order`."""
    room = round_amount(len(order) * ratio)
    verdicts: Verdicts = [None] * len(order)
    for row in order[room:]:
        verdicts[row] = f"not among the best {room} of {len(order)} by {by}"
    return verdicts


def _known(candidates: Sequence[Candidate], name: str, complete: Complete | None) -> list[float]:
    """The candidates' scores `name`, those that are missing set by `complete`."""
    missing = [one for one in candidates if getattr(one, name) is None]
    if missing and complete:
        complete(missing)
    values = [getattr(one, name) for one in candidates]
    if None in values:
        raise ValueError(f"filters.{name}: candidate {values.index(None)} has no {name}")
    return values


def _number(value: float | None, otherwise: float) -> float:
    """`otherwise` for what is unknown or not a number."""
    return otherwise if value is None or math.isnan(value) else value
