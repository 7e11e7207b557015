"""The filters in a row, the cheap ones first, and what became of the candidates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from retain.quality import filters
from retain.quality.filters import Candidate, Complete, Embed, Reference, Verdicts
from retain.synthesis_sections import FiltersConfig
from retain.types import InputError

# The names are those of their keys. Of the first each candidate is judged alone, so they can run as rounds of
# generation come in; the others look at all candidates together.
ALONE = ("heuristics", "memorization", "consistency", "perplexity", "self_consistency")
TOGETHER = ("keep_ratio", "diversity", "balance")
ADVICE = {
    "unreadable": "describe the task more closely or raise synthesis.generator_weight, so that whole samples come out",
    "heuristics": "describe the task more closely or raise synthesis.generator_weight; filters.min_words or "
    "filters.heuristics: false loosens it",
    "memorization": "raise synthesis.temperature, or filters.memorization to allow more overlap",
    "consistency": "lower filters.consistency, or set synthesis.answers: greedy",
    "perplexity": "raise filters.perplexity",
    "self_consistency": "lower filters.self_consistency",
    "keep_ratio": "raise filters.keep_ratio",
    "diversity": "raise synthesis.temperature for more variety, or filters.diversity",
    "balance": "set synthesis.class_conditioned: true, or filters.balance: false",
}


class Funnel:
    """What the filters have left of a list of candidates, and why they dropped the others."""

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        self.candidates = candidates
        self.reasons: Verdicts = [None] * len(candidates)  # "filter: why" of each that was dropped
        self.dropped: dict[str, int] = {}  # by each filter that ran, in order

    @property
    def kept(self) -> list[int]:
        """Numbers of the candidates that no filter has dropped."""
        return [row for row, reason in enumerate(self.reasons) if reason is None]

    @property
    def survivors(self) -> list[Candidate]:
        """The candidates that no filter has dropped."""
        return [self.candidates[row] for row in self.kept]

    @property
    def faults(self) -> dict[str, int]:
        """How many candidates had each fault that the heuristics found, the most frequent first."""
        found = (reason.partition(": ")[2] for reason in self.reasons if reason and reason.startswith("heuristics"))
        return dict(Counter(found).most_common())

    def apply(self, name: str, verdicts: Verdicts) -> None:
        """Take in what filter `name` says of each survivor."""
        for row, verdict in zip(self.kept, verdicts, strict=True):
            if verdict is not None:
                self.reasons[row] = f"{name}: {verdict}"
        self.dropped[name] = len(verdicts) - verdicts.count(None)


def filter_candidates(
    candidates: Sequence[Candidate],
    config: FiltersConfig,
    reference: Reference,
    *,
    only: Collection[str] = ALONE + TOGETHER,
    stages_since: int = 0,
    score: Complete | None = None,
    vote: Complete | None = None,
    embed: Embed | None = None,
    seed: int | Sequence[int] = 42,
) -> Funnel:
    """Run the filters of `only` that `config` turns on over the candidates (SSR 2, 3, 7.2, 9; MATH 5).

    stages_since: k of `stricter`. What costs a forward pass is asked for late and only for what is left: `score`
    sets a candidate's consistency and perplexity, `vote` its votes, where they are None, and `embed` turns inputs
    into embeddings (N, D). `memorization` needs `reference.training` and does not run without.
    """
    if "balance" in only and config.balance and not reference.choices:
        raise InputError("filters.balance: the task has no label set to balance; set filters.balance: false")
    min_words = reference.min_words if config.min_words == "auto" else config.min_words
    age = stages_since if config.stricter else 0
    steps: dict[str, Callable[[list[Candidate]], Verdicts]] = {
        "heuristics": lambda left: filters.heuristics(left, reference, min_words),
        "memorization": lambda left: filters.memorization(left, reference.training, config.memorization),
        "consistency": lambda left: filters.high_consistency(
            left, filters.consistency_limit(config.consistency, age), score
        ),
        "perplexity": lambda left: filters.low_perplexity(
            left, filters.perplexity_limit(config.perplexity, age), score
        ),
        "self_consistency": lambda left: filters.enough_votes(left, config.self_consistency, vote),
        "keep_ratio": lambda left: filters.best_share(left, config.keep_ratio),
        "diversity": lambda left: filters.diversity(left, config, embed, reference.center),
        "balance": lambda left: filters.balanced(
            [one.answer for one in left], reference.target, np.random.default_rng(seed)
        ),
    }
    funnel = Funnel(candidates)
    for name, run in steps.items():
        if name in only and _runs(name, config, reference):
            funnel.apply(name, run(funnel.survivors))
    return funnel


def explain(dropped: Mapping[str, int], generated: int, config: FiltersConfig, faults: Mapping[str, int]) -> str:
    """A sentence or two: what each filter dropped of `generated` candidates, and which key to change first.

    `dropped` and `faults` are those of a `Funnel`, or their sums over several.
    """
    if not generated:
        return "no candidate was generated"
    found = ", ".join(f"{fault} {count}" for fault, count in list(faults.items())[:3])
    details = {"heuristics": f" ({found})"} if found else {}
    largest = sorted((name for name in dropped if dropped[name]), key=lambda name: -dropped[name])
    parts = [f"{name}{details.get(name, _limit(name, config))} dropped {dropped[name]}" for name in largest]
    kept = generated - sum(dropped.values())
    account = f"{kept} of {generated} candidates were kept ({kept / generated:.1%})"
    return f"{account}: {', '.join(parts)}. To keep more, {ADVICE[largest[0]]}." if parts else f"{account}."


def _limit(name: str, config: FiltersConfig) -> str:
    value = getattr(config, name, None)
    return f" ({value:g})" if isinstance(value, int | float) and not isinstance(value, bool) else ""


def _runs(name: str, config: FiltersConfig, reference: Reference) -> bool:
    """A filter that is null or false is off; the penalty form of diversity uses `keep_ratio` itself."""
    if name == "memorization" and reference.training is None:
        return False
    if name == "keep_ratio" and config.diversity is not None and config.diversity_form == "penalty":
        return False
    value = getattr(config, name)
    return value is not None and value is not False
