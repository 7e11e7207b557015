"""Writing examples and filtering them (SSR 5, 6)."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from retain.cards import TaskCard
from retain.config import validate
from retain.presets import UNFILTERED
from retain.quality.filters import Candidate, Reference
from retain.quality.funnel import filter_candidates
from retain.ssr.examples import SyntheticExample, read_batch
from retain.ssr.options import Request, open_model
from retain.synthesis.scores import consistencies, perplexities
from retain.synthesis.writer import Writer
from retain.synthesis_sections import FiltersConfig
from retain.types import Frame

BARE = Frame("", "\nOutput:")  # of a sample whose task is not known


class SynthesisModel:
    """Writes examples of tasks from their descriptions: an input, then its output (SSR 5 "Option 1", 6).

    config: `model`, a transformers model with or without a PEFT adapter; `tokenizer`, found by the model's name where
    it is missing; and the keys of `Options`.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.lm, self.options = open_model(config, "SynthesisModel")
        self.model, self.calls = self.lm.model, 0

    def synthesize_examples(
        self, task_description: str, task_id: Hashable, num_examples: int = 100, batch_size: int = 8
    ) -> list[SyntheticExample]:
        """At most `num_examples` that are not filtered but for being whole, of confidence 1. Each call draws anew."""
        values = {"task_description": task_description, "num_examples": num_examples, "batch_size": batch_size}
        validate(Request, values, "synthesize_examples")
        options = self.options.model_copy(update={"synthesis_batch_size": batch_size})
        config = options.run_config().model_copy(update={"filters": FiltersConfig(**UNFILTERED)})
        card = card_of(task_id, task_description, options.frame(task_description), 0)
        self.calls += 1
        written = Writer(self.lm, config).write(card, num_examples, 0, number=self.calls)
        return [SyntheticExample(one.input, one.answer, task_id) for one in written.kept]


class QualityFilter:
    """Keeps what is fluent and what the model agrees with (SSR 5, 6): `QualityFilter(config)` with the keys of
    `SynthesisModel`, or `QualityFilter(model, perplexity_threshold=..., consistency_threshold=..., tokenizer=...)`.

    cards: what is known of tasks, by repr of their ids; a prompt of the others is the input and "Output:".
    """

    def __init__(
        self,
        config: Any = None,
        perplexity_threshold: float = 100.0,
        consistency_threshold: float = 0.5,
        *,
        model: Any = None,
        tokenizer: Any = None,
    ) -> None:
        if not isinstance(config, Mapping):
            config = {
                "model": config if model is None else model,
                "tokenizer": tokenizer,
                "perplexity_threshold": perplexity_threshold,
                "consistency_threshold": consistency_threshold,
            }
        self.lm, self.options = open_model(config, "QualityFilter")
        self.model = self.lm.model
        self.perplexity_threshold = self.options.perplexity_threshold
        self.consistency_threshold = self.options.consistency_threshold
        self.cards: Mapping[str, TaskCard] = {}

    def compute_perplexity(self, text: str) -> float:
        """exp of the mean token NLL of a text without a prompt (SSR 2)."""
        return float(perplexities(self.lm, [text])[0])

    def compute_consistency(self, input_text: str, output_text: str) -> float:
        """exp of the mean token log-probability of the output given the input, in [0, 1] (SSR 3)."""
        return float(consistencies(self.lm, [BARE.sample("", "", input_text, output_text)])[0])

    def filter_examples(self, examples: Sequence[Any]) -> list[Any]:
        """Those with perplexity < and consistency > the thresholds.

        Of `SyntheticExample`s the confidence is set, of dropped ones too; of (input, output) pairs come mappings
        with input, output, confidence and perplexity.
        """
        pairs = read_batch(examples, self.lm, "filter_examples").pairs if examples else []
        candidates = [Candidate(*pair) for pair in pairs]
        frames = [self._frame(example) for example in examples]
        samples = [frame.sample("", "", *pair) for frame, pair in zip(frames, pairs, strict=True)]
        ppl = perplexities(self.lm, [f"{input} {output}" for input, output in pairs])
        for one, perplexity, consistency in zip(candidates, ppl, consistencies(self.lm, samples), strict=True):
            one.perplexity, one.consistency = float(perplexity), float(consistency)
        limits = {"perplexity": self.perplexity_threshold, "consistency": self.consistency_threshold}
        funnel = filter_candidates(candidates, FiltersConfig(**UNFILTERED | limits), Reference())
        for example, one in zip(examples, candidates, strict=True):
            if isinstance(example, SyntheticExample):
                example.confidence = one.consistency
        return [_kept(examples[row], candidates[row]) for row in funnel.kept]

    def _frame(self, example: Any) -> Frame:
        card = self.cards.get(repr(example.task_id)) if isinstance(example, SyntheticExample) else None
        return card.frame if card else BARE


def card_of(task_id: Hashable, description: str, frame: Frame, stage: int) -> TaskCard:
    """The card of a task of which nothing else is known."""
    return TaskCard(repr(task_id), description, frame, Reference(), 0, stage)


def _kept(example: Any, scored: Candidate) -> Any:
    if isinstance(example, SyntheticExample):
        return example
    facts = {"confidence": scored.consistency, "perplexity": scored.perplexity}
    return {"input": scored.input, "output": scored.answer, **facts}
