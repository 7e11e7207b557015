"""Training so that rehearsal data can be synthesized: the model learns to write the inputs it is trained on."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from retain.losses import label_logits, make_rows, row_losses, token_losses
from retain.strategies.base import Batch, Context, Strategy
from retain.synthesis.prompts import writing_sequence
from retain.synthesis_sections import SynthesisConfig
from retain.types import Sample


class LearnToWrite(Strategy):
    """CE + w·CE(input | writing prompt) + λ_quality·(-log consistency) on synthetic samples (SSR 3; MATH 4).

    The second term is LAMOL's (Sun et al. 2020): without it a small model cannot write a task's inputs from its
    description. Samples whose task has no card, and methods whose prompt holds demonstrations, have none. The third
    acts on synthetic samples alone and is not weighted by confidence; for free text it repeats CE.
    """

    def __init__(self, context: Context, synthesis: SynthesisConfig, lambda_quality: float) -> None:
        super().__init__(None, context)
        self.synthesis, self.quality = synthesis, lambda_quality
        self.writes = synthesis.generator_weight > 0 and synthesis.method in ("two-stage", "joint")

    def losses(self, model: torch.nn.Module, batch: Batch, base: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        total = base
        if self.writes:
            total = total + self.synthesis.generator_weight * self._writing_losses(batch.samples, base)
        if self.quality:
            total = total + self.quality * self._doubts(batch.samples, base) / batch.weights.to(base.dtype)
        return total

    def _writing_losses(self, samples: Sequence[Sample], like: torch.Tensor) -> torch.Tensor:
        """Token-mean loss (B,) of each sample's input given its task's writing prompt."""
        cards = self.context.cards
        places = [place for place, sample in enumerate(samples) if sample.task in cards]
        sequences = []
        for sample in (samples[place] for place in places):
            card = cards[sample.task]
            text = card.frame.input_of(sample)
            sequences.append(writing_sequence(self.context.lm, self.synthesis, card, text, sample.answer))
        return self._scattered(sequences, places, like)

    def _doubts(self, samples: Sequence[Sample], like: torch.Tensor) -> torch.Tensor:
        """-log consistency (B,) of synthetic samples under the current weights, 0 for the others."""
        doubts = torch.zeros_like(like)
        for place, sample in enumerate(samples):
            if sample.confidence is not None:
                doubts[place] = self._doubt(sample, like)
        return doubts

    def _doubt(self, sample: Sample, like: torch.Tensor) -> torch.Tensor:
        lm = self.context.lm
        if not sample.choices:
            return self._scattered([lm.encode(sample)], [0], like.new_zeros(1))[0]
        prompt = lm.prompt_ids(sample)
        sequences = [lm.sequence(prompt, lm.answer_ids(sample, label)) for label in sample.choices]
        means = self._scattered(sequences, range(len(sequences)), like.new_zeros(len(sequences)))
        lengths = torch.tensor([sum(sequence.labels) for sequence in sequences], device=lm.device)
        return -torch.log_softmax(-means * lengths, dim=0)[sample.choices.index(sample.answer)]

    def _scattered(self, sequences, places: Sequence[int], like: torch.Tensor) -> torch.Tensor:
        """Token-mean losses of the sequences at their places of a vector like `like`; the rest is 0."""
        losses = torch.zeros_like(like)
        for row in make_rows(self.context.lm, sequences):
            each = row_losses(token_losses(label_logits(self.context.lm, row), row), row)
            index = torch.tensor([places[member] for member in row.members], device=like.device)
            losses = losses.index_add(0, index, each.to(like.dtype))
        self.context.probe_tokens += sum(map(len, sequences))
        return losses
