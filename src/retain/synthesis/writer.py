"""Let the model write samples of a task, keep what passes the filters, and account for the rest (SSR 3, 5)."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from retain.cards import TaskCard
from retain.config import Config
from retain.generation import Generated, sample
from retain.likelihood import draw_labels, label_distribution, normalize
from retain.model import LanguageModel
from retain.privacy import noise_seed
from retain.quality.filters import Candidate
from retain.quality.funnel import ALONE, TOGETHER, Funnel, explain, filter_candidates
from retain.sampling import Sampling, clip_logits
from retain.synthesis.prompts import OUTPUT, SHOWING, Pair, conditions_on_label, prompts, read
from retain.synthesis.scores import consistencies, embeddings, perplexities
from retain.synthesis.selection import in_proportion, nearest_to_centroids
from retain.synthesis_sections import FiltersConfig
from retain.team import Team
from retain.types import InputError, Sample
from retain.vllm_engine import Draw, writing

log = logging.getLogger("retain")

HIGH_TEMPERATURE = 1.5  # SSR 7.1's diverse strategy: a third each by temperature, nucleus and top-k
LEAST_ROUND = 32
FIRST_ROUND = 128  # candidates, after which a yield below the floor ends the writing
MOST_ROUND = 2048
INPUTS, ANSWERS, VOTES = range(3)  # what noise is for, in seeds


@dataclass(slots=True)
class Written:
    """What was written for one task: the kept samples and their scores, and an account of all candidates."""

    task: str
    asked: int
    kept: list[Candidate] = field(default_factory=list)
    generated: int = 0
    tokens: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    faults: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    account: str = ""

    def samples(self, card: TaskCard, stage: int) -> list[Sample]:
        """The kept ones as samples of the task, written in or after `stage`; c = 1 where no filter asked for it.

        A confidence is what tells them from real samples.
        """
        sure = [1.0 if one.confidence is None else one.confidence for one in self.kept]
        return [
            card.sample(f"{card.name}/synthetic/{stage}/{k}", one.input, one.answer, confidence)
            for k, (one, confidence) in enumerate(zip(self.kept, sure, strict=True))
        ]

    def facts(self) -> dict[str, Any]:
        """The account as a line of the journal."""
        return {
            "asked": self.asked,
            "generated": self.generated,
            "kept": len(self.kept),
            "dropped": self.dropped,
            "faults": self.faults,
            "generated_tokens": self.tokens,
            "seconds": self.seconds,
            "account": self.account,
        }


class Writer:
    """Writes samples of tasks with one model, as the sections `synthesis` and `filters` say."""

    def __init__(self, lm: LanguageModel, config: Config) -> None:
        self.lm, self.config, self.synthesis = lm, config, config.synthesis
        self._embedded: dict[str, np.ndarray] = {}
        self._draw: Draw | None = None
        private = config.privacy.epsilon_per_token is not None
        self.clip = config.privacy.clip if private else None
        self.seed = Team.launched().agree(noise_seed(config.privacy)) if private else config.seed

    def write(
        self, card: TaskCard, count: int, stage: int, demonstrations: Sequence[Pair] = (), number: int = 0
    ) -> Written:
        """`count` samples of the task, or as many as pass the filters of at most `max_attempts` times as many.

        A function of (seed, stage, task, number) and the weights. The loop ends early where the yield stays below
        `min_yield`; the account says what was dropped and what to change.
        """
        started, written = time.perf_counter(), Written(card.name, count)
        seed = (self.seed, stage, card.stage, number)
        limit = count * self.synthesis.max_attempts
        oversample = 3 if self.config.filters.select == "kmeans" else 1
        passed: list[Candidate] = []
        alone, together = Counter(), Funnel([])
        bar = tqdm(total=count, desc=f"write {card.name}", unit="sample", delay=2, leave=False, disable=None)
        with bar, writing(self.lm, self.config) as self._draw:
            while (lacking := self._lacking(card, together, count * oversample)) and written.generated < limit:
                amount = _round_size(sum(lacking.values()), len(together.kept), written)
                labels = in_proportion(lacking, min(amount, limit - written.generated))
                candidates = self._candidates(card, labels, (*seed, written.generated), demonstrations, written)
                funnel = self._filter(candidates, card, stage, ALONE, seed, written)
                alone.update(funnel.dropped)
                written.faults = dict(Counter(written.faults) + Counter(funnel.faults))
                passed += funnel.survivors
                together = self._filter(passed, card, stage, TOGETHER, seed, written)
                bar.update(min(len(together.kept), count) - bar.n)
                if written.generated >= FIRST_ROUND and len(passed) < self.synthesis.min_yield * written.generated:
                    break
        written.kept = self._selected(card, together.survivors, count)
        written.dropped |= {**alone, **together.dropped}
        written.account = explain(written.dropped, written.generated, self._filters(card), written.faults)
        written.seconds = time.perf_counter() - started
        return written

    # ---- candidates ----------------------------------------------------------------------------------

    def _lacking(self, card: TaskCard, funnel: Funnel, count: int) -> Counter[str | None]:
        """How many samples of each label are missing of `count`; of any label (None) where none is asked for."""
        if not conditions_on_label(self.synthesis, card):
            return +Counter({None: count - len(funnel.kept)})
        quotas = Counter(in_proportion(card.reference.target, count))
        return quotas - Counter(one.answer for one in funnel.survivors)

    def _candidates(
        self,
        card: TaskCard,
        labels: Sequence[str | None],
        seed: tuple[int, ...],
        demonstrations: Sequence[Pair],
        written: Written,
    ) -> list[Candidate]:
        """A new candidate for each of the labels to ask for; what they took is added to `written`."""
        texts = prompts(self.synthesis, card, labels, demonstrations, seed)
        requests = [list(self.lm.tokenizer(text).input_ids) for text in texts]
        joint, shows = self.synthesis.method == "joint", self.synthesis.method in SHOWING
        length = self.synthesis.max_joint_tokens if joint else self.synthesis.max_input_tokens
        base = self.synthesis.method == "pairs" or self.synthesis.inputs_by == "base"
        if (longest := max(map(len, requests))) + length > self.lm.positions:
            given = (card.name, longest, length, self.lm.positions)
            log.warning("%s: prompts of %d tokens leave no room for inputs of %d in the model's %d; show less", *given)
        until = self.lm.tokenizer(OUTPUT, add_special_tokens=False).input_ids if shows else ()
        with self.lm.base() if base else nullcontext():
            found = self._sample(requests, length, (*seed, INPUTS), written, until)
        pairs = [read(self.synthesis.method, self._text(one.ids)) for one in found]
        candidates = [Candidate(input, answer) for input, answer in pairs]
        if self.synthesis.answers == "asked" and conditions_on_label(self.synthesis, card):
            for one, label in zip(candidates, labels, strict=True):
                one.answer = label
        if not joint:
            self._answer(card, candidates, (*seed, ANSWERS), written)
        return self._whole(candidates, written)

    def _whole(self, candidates: list[Candidate], written: Written) -> list[Candidate]:
        """Those that have an input and an answer, after taking all of them into account."""
        whole = [one for one in candidates if one.input and one.answer]
        written.generated += len(candidates)
        written.dropped["unreadable"] = written.dropped.get("unreadable", 0) + len(candidates) - len(whole)
        return whole

    def _sample(
        self, requests, length: int, seed: tuple[int, ...], written: Written, until: Sequence[int] = ()
    ) -> list[Generated]:
        """Texts for the requests (token ids), by one way of sampling or by three in turn."""
        config = self.synthesis
        ways = [Sampling(config.temperature, config.top_k, config.top_p, config.repetition_penalty, self.clip)]
        if config.sampling == "mixed":
            penalty = config.repetition_penalty
            ways = [
                Sampling(HIGH_TEMPERATURE, 0, 1.0, penalty),
                Sampling(config.temperature, 0, config.top_p, penalty),
                Sampling(config.temperature, config.top_k, 1.0, penalty),
            ]
        found: list[Any] = [None] * len(requests)
        for k, way in enumerate(ways):
            places = range(k, len(requests), len(ways))
            texts = self._texts([requests[place] for place in places], way, length, (*seed, k), until)
            for place, text in zip(places, texts, strict=True):
                found[place] = text
        written.tokens += sum(text.tokens for text in found)
        return found

    def _texts(
        self, requests: list[list[int]], way: Sampling, length: int, seed: tuple[int, ...], until: Sequence[int] = ()
    ) -> list[Generated]:
        """Texts for the requests by the engine that `synthesis.engine` names."""
        draw, size = self._draw or sample, self.synthesis.batch_size
        return draw(self.lm, requests, way, length, batch_size=size, seed=seed, until=until)

    def _text(self, ids: Sequence[int]) -> str:
        return self.lm.tokenizer.decode(ids, skip_special_tokens=True)

    def _answer(
        self,
        card: TaskCard,
        candidates: list[Candidate],
        seed: tuple[int, ...],
        written: Written,
    ) -> None:
        """Set the answers of candidates that have an input, with their consistency, which comes for free.

        A label that a candidate has already, which is the one that was asked for, stands: only its consistency is set.
        """
        asked = [one for one in candidates if one.input]
        if not asked:
            return
        prompts_ids = [self.lm.prompt_ids(card.sample("", one.input, "?")) for one in asked]
        if card.labels:
            answers = self._labels(card, prompts_ids, [one.answer for one in asked], seed)
        else:
            answers = self._free_answers(prompts_ids, seed, written)
        for one, (answer, consistency) in zip(asked, answers, strict=True):
            one.answer, one.consistency = answer, consistency

    def _labels(
        self, card: TaskCard, requests: list[list[int]], given: Sequence[str], seed: tuple[int, ...]
    ) -> list[tuple[str, float]]:
        """A label for each prompt, the given one where it is not empty, and its share of the labels' probability.

        No text is written for it. With `clip` the draw is that of a token, among the labels.
        """
        tokens = [self.lm.answer_ids(card.sample("", "?", label), label) for label in card.labels]
        logs = scores = label_distribution(self.lm, requests, tokens)
        if self.clip is not None:
            scores = normalize(clip_logits(torch.from_numpy(logs), self.clip).numpy() / self.synthesis.temperature)
        chosen = scores.argmax(axis=1) if self.synthesis.answers == "greedy" else draw_labels(scores, seed)
        places = [card.labels.index(label) if label else k for label, k in zip(given, chosen, strict=True)]
        return [(card.labels[k], float(np.exp(row[k]))) for k, row in zip(places, logs, strict=True)]

    def _free_answers(
        self, requests: list[list[int]], seed: tuple[int, ...], written: Written
    ) -> list[tuple[str, float]]:
        """A written answer for each prompt and exp of its mean token log-probability."""
        length = self.synthesis.max_output_tokens
        if self.synthesis.answers == "greedy":
            found = self._texts(requests, Sampling(top_k=1), length, seed)
            written.tokens += sum(text.tokens for text in found)
        else:
            found = self._sample(requests, length, seed, written)
        return [(self._text(one.ids).strip(), math.exp(one.log_probability / max(one.tokens, 1))) for one in found]

    # ---- filters -------------------------------------------------------------------------------------

    def _filter(self, candidates: list[Candidate], card: TaskCard, stage: int, only, seed, written) -> Funnel:
        config = self._filters(card)
        return filter_candidates(
            candidates,
            config,
            card.reference,
            only=only,
            stages_since=stage - card.stage,
            score=lambda left: self.score(card, left),
            vote=lambda left: self._vote(card, left, seed, written),
            embed=self._foreign if config.similarity == "sentence-transformers" else self.embed,
            seed=seed,
        )

    def _filters(self, card: TaskCard) -> FiltersConfig:
        """The section `filters` with the task's own limit in place of `auto`."""
        config = self.config.filters
        if config.perplexity != "auto":
            return config
        return config.model_copy(update={"perplexity": card.perplexity_limit})

    def score(self, card: TaskCard, candidates: Sequence[Candidate]) -> None:
        """Set the perplexity of the text without a prompt, and consistency where writing did not give it."""
        values = self.perplexities([(one.input, one.answer) for one in candidates])
        for one, value in zip(candidates, values, strict=True):
            one.perplexity = float(value)
        unknown = [one for one in candidates if one.consistency is None]
        if unknown:
            samples = [card.sample("", one.input, one.answer) for one in unknown]
            for one, value in zip(unknown, consistencies(self.lm, samples), strict=True):
                one.consistency = float(value)

    def perplexities(self, pairs: Sequence[Pair]) -> np.ndarray:
        """Perplexity (N,) of each input and answer, by the generating model or its base."""
        texts = [f"{input} {answer}" for input, answer in pairs]
        return perplexities(self.lm, texts, base=self.config.filters.perplexity_model == "base")

    def _vote(self, card: TaskCard, candidates: list[Candidate], seed: tuple[int, ...], written: Written) -> None:
        """The share of `votes` sampled answers that agree with each candidate's own (MATH 5)."""
        agree = np.zeros(len(candidates))
        for vote in range(self.config.filters.votes):
            others = [Candidate(one.input, "") for one in candidates]
            self._answer(card, others, (*seed, VOTES, vote), written)
            agree += [_same(one.answer, other.answer) for one, other in zip(candidates, others, strict=True)]
        for one, count in zip(candidates, agree, strict=True):
            one.votes = float(count / self.config.filters.votes)

    def embed(self, texts: list[str]) -> np.ndarray:
        """Mean hidden states (N, D) of the untouched model, so that stages are comparable; each text once."""
        missing = [text for text in dict.fromkeys(texts) if text not in self._embedded]
        if missing:
            with self.lm.base():
                self._embedded |= zip(missing, embeddings(self.lm, missing), strict=True)
        return np.stack([self._embedded[text] for text in texts])

    def _foreign(self, texts: list[str]) -> np.ndarray:
        """Embeddings (N, D) by another model, `filters.embedding_model`."""
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError:
            raise InputError(
                "filters.similarity: sentence-transformers is not installed; run `pip install retain[embeddings]`, or "
                "set filters.similarity: hidden"
            ) from None
        return SentenceTransformer(self.config.filters.embedding_model).encode(texts, show_progress_bar=False)

    def _selected(self, card: TaskCard, candidates: list[Candidate], count: int) -> list[Candidate]:
        """`count` of the candidates: the first ones, of each label asked for its share, or the nearest to centers."""
        if len(candidates) <= count:
            return candidates
        if self.config.filters.select == "kmeans":
            chosen = nearest_to_centroids(self.embed([one.input for one in candidates]), count, self.config.seed)
            return [candidates[k] for k in chosen]
        if not conditions_on_label(self.synthesis, card):
            return candidates[:count]
        room = Counter(one.answer for one in candidates)
        share = Counter(in_proportion({label: card.reference.target.get(label, 0.0) for label in room}, count, room))
        chosen = []
        for one in candidates:
            if share[one.answer]:
                share[one.answer] -= 1
                chosen.append(one)
        return chosen


def _round_size(missing: int, kept: int, written: Written) -> int:
    """How many candidates to write next: what is missing over the yield so far, which a small first round tells."""
    share = max(kept, 1) / written.generated if written.generated else 0.7
    return min(max(math.ceil(missing / share), LEAST_ROUND), MOST_ROUND if written.generated else FIRST_ROUND)


def _same(one: str, other: str) -> bool:
    return " ".join(one.lower().split()) == " ".join(other.lower().split())
