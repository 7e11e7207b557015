"""The model that learns, writes and rehearses (SSR 6)."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from accelerate import Accelerator
from torch.utils.data import default_collate

from retain.buffer import Buffer
from retain.cards import TaskCard
from retain.config import validate
from retain.curriculum import mixed_loss_weights
from retain.ssr.curriculum import CurriculumScheduler
from retain.ssr.examples import SyntheticExample, read_batch
from retain.ssr.options import Request, open_model
from retain.ssr.synthesis import QualityFilter, SynthesisModel, card_of
from retain.strategies import Context
from retain.strategies.learn_to_write import LearnToWrite
from retain.synthesis.prompts import writing_prompt
from retain.synthesis.writer import Writer
from retain.trainer import Optimization
from retain.types import Frame, InputError, Sample, Task

log = logging.getLogger("retain")


class SSRModel:
    """Learns one task after another and rehearses the past ones by examples it has written itself (SSR 6).

    config: as of `SynthesisModel`. Of a model with a PEFT adapter the adapter is trained, else all that requires
    gradients. What stays of a task: its description, its form, statistics, and its part of `synthetic_memory`.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.lm, self.options = open_model(config, "SSRModel")
        parts = {**config, "model": self.lm}
        self.synthesizer, self.quality_filter = SynthesisModel(parts), QualityFilter(parts)
        names = {"initial_synthetic_ratio", "final_synthetic_ratio", "warmup_steps", "schedule_type", "seed"}
        self.scheduler = CurriculumScheduler(**self.options.model_dump(include=names))
        self.model, self.config = self.lm.model, self.options.run_config()
        self.synthetic_memory: dict[Hashable, list[SyntheticExample]] = {}  # by task_id
        self.cards: dict[str, TaskCard] = {}
        self.quality_filter.cards = self.cards
        self._spaced: set[str] = set()  # tasks whose answers begin with a space, as token ids of a prompt's sequel do

    def train_task(
        self,
        data_loader: Iterable[Any],
        task_id: Hashable,
        task_description: str,
        num_epochs: int = 3,
        learning_rate: float = 5e-5,
    ) -> dict[str, list[float]]:
        """Learn a task with rehearsal of the past ones, then write examples of it; {"loss": mean of each epoch}.

        data_loader: batches, each a list of `SyntheticExample`s, of (input, target) pairs or of mappings, a mapping
        of lists, two columns that a DataLoader has collated, or a mapping of tensors `input_ids` and `labels`, which
        are prompts as they are.
        """
        values = {"task_description": task_description, "num_epochs": num_epochs, "learning_rate": learning_rate}
        validate(Request, values, "train_task")
        loader = list(data_loader) if isinstance(data_loader, Iterator) else data_loader
        rehearsal, stage = self.get_rehearsal_examples(), len(self.cards) + 1
        card = self.cards[repr(task_id)] = self._fresh(task_id, task_description)
        training, losses = self._optimization(stage, learning_rate), []
        seen: dict[tuple[str, str], Sample] = {}
        for _ in range(num_epochs):
            batches = (self._read(batch, number, loader, task_id) for number, batch in enumerate(loader))
            steps = [self._step(training, new, rehearsal, seen) for new in batches]
            if not steps:
                raise InputError("train_task: data_loader has no batch")
            losses.append(float(np.mean(steps)))
        self._learned(self.cards[card.name], list(seen.values()))
        self.synthesize_task_memory(task_id, task_description)
        return {"loss": losses}

    def get_rehearsal_examples(self) -> list[SyntheticExample]:
        """The synthetic examples of all tasks so far."""
        return [example for examples in self.synthetic_memory.values() for example in examples]

    def synthesize_task_memory(self, task_id: Hashable, task_description: str) -> list[SyntheticExample]:
        """Write a task's examples anew with the model as it is, filter and remember them; warns of what is missing."""
        validate(Request, {"task_description": task_description}, "synthesize_task_memory")
        card = self.cards.get(repr(task_id)) or self._fresh(task_id, task_description)
        card, count = replace(card, description=task_description), self.options.num_synthesis_examples
        self.cards[card.name] = card.with_texts(None)
        written = Writer(self.lm, self.config).write(card, count, card.stage)
        if len(written.kept) < count:
            log.warning(
                "task %s: %d of %d synthetic examples; %s", card.name, len(written.kept), count, written.account
            )
        lead = " " if card.name in self._spaced else ""
        kept = [SyntheticExample(one.input, lead + one.answer, task_id, one.confidence) for one in written.kept]
        self.synthetic_memory[task_id] = kept
        return kept

    def _fresh(self, task_id: Hashable, description: str) -> TaskCard:
        return card_of(task_id, description, self.options.frame(description), len(self.cards) + 1)

    def _optimization(self, stage: int, learning_rate: float) -> Optimization:
        """AdamW at a constant learning rate, and the loss that teaches the model to write."""
        accelerator, config = Accelerator(), self.config
        buffer = Buffer(config.buffer, config.memory, config.seed)
        context = Context(self.lm, buffer, accelerator, config.seed, stage, self.cards)
        strategy = LearnToWrite(context, config.synthesis, config.curriculum.lambda_quality)
        training = config.training.model_copy(update={"learning_rate": learning_rate})
        return Optimization(self.lm, strategy, accelerator, training, 1, (config.seed, stage))

    def _read(self, batch: Any, number: int, loader: Any, task_id: Hashable) -> list[SyntheticExample]:
        """The examples of a batch of the task that is being learned."""
        columns, name = getattr(loader, "collate_fn", None) is default_collate, repr(task_id)
        found = read_batch(batch, self.lm, f"train_task: batch {number}", columns)
        if found.tokens:
            self.cards[name] = replace(self.cards[name], frame=Frame())
            self._spaced |= {name} if all(target.startswith(" ") for _, target in found.pairs) else set()
        return [SyntheticExample(*pair, task_id) for pair in found.pairs]

    def _step(self, training: Optimization, new: list, rehearsal: list, seen: dict) -> float:
        """One step on a mixed batch; returns its loss, that of learning to write aside."""
        seen |= {(one.input_text, one.target_text): self._sample(one) for one in new}
        real, synthetic = self.scheduler.draw(new, rehearsal, task_id=new[0].task_id)
        weights = mixed_loss_weights(len(real), [one.confidence for one in synthetic], self.config.curriculum)
        losses = training.step([self._sample(one) for one in real + synthetic], weights)
        if training.skipped or not np.isfinite(losses).all():
            raise FloatingPointError(f"task {new[0].task_id!r}: a loss is not finite; lower learning_rate")
        self.scheduler.step()
        return float(weights @ losses) / len(losses)

    def _sample(self, example: SyntheticExample) -> Sample:
        card = self.cards.get(repr(example.task_id))
        if card is None:
            raise InputError(f"synthetic_memory: task {example.task_id!r} has not been learned by this model")
        return card.sample("", example.input_text, example.target_text)

    def _learned(self, card: TaskCard, samples: list[Sample]) -> None:
        """What is kept of a task; of its texts only hashes, until its first examples are written."""
        task = Task(card.name, samples, description=card.description, frame=card.frame)
        prompt = writing_prompt(self.config.synthesis, card).strip()
        self.cards[card.name] = TaskCard.of(task, card.stage, [prompt])
        self.lm.forget()
