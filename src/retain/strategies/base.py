"""What a strategy is: four hooks whose defaults are plain fine-tuning, and what a method may need besides."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator

from retain.batching import Row
from retain.buffer import Buffer
from retain.cards import TaskCard
from retain.extending import Extension
from retain.losses import label_logits, make_rows, row_losses, token_losses
from retain.memory.random import bits, hash_ids
from retain.model import LanguageModel
from retain.sections import Section
from retain.types import Sample, Task

Tensors = dict[str, torch.Tensor]


class Batch(NamedTuple):
    """One forward pass: its samples in the order of `row.members`, where their labels are, and the weight (B,),
    above 0, that each sample's loss gets."""

    samples: Sequence[Sample]
    row: Row
    weights: torch.Tensor


@dataclass(slots=True)
class Context:
    """What a method may use in one stage besides the model's weights. It adds what its own passes read to
    `probe_tokens`."""

    lm: LanguageModel
    buffer: Buffer
    accelerator: Accelerator
    seed: int
    stage: int
    cards: Mapping[str, TaskCard] = field(default_factory=dict)
    probe_tokens: int = 0

    def progress(self) -> dict[str, Any]:
        """What the stage's methods have read so far."""
        return {"probe_tokens": self.probe_tokens}

    def resume(self, progress: Mapping[str, Any]) -> None:
        """Go on where `progress` was taken."""
        self.probe_tokens = progress["probe_tokens"]

    def rows(self, samples: Sequence[Sample]) -> Iterator[Row]:
        """The forward passes that cover the samples, without dropout, counted as probes."""
        sequences = [self.lm.encode(sample) for sample in samples]
        self.probe_tokens += sum(map(len, sequences))
        self.lm.model.eval()  # a training step turns dropout on again
        return make_rows(self.lm, sequences)

    def logits(self, row: Row) -> torch.Tensor:
        """Logits (K, V) of the row's label tokens, in the run's precision."""
        with self.accelerator.autocast():
            return label_logits(self.lm, row)

    def gradient(self, samples: Sequence[Sample]) -> list[torch.Tensor]:
        """Gradient of the samples' mean loss, one tensor a trained parameter; what training gathered stays."""
        parameters = self.lm.parameters()
        total = [torch.zeros_like(parameter) for parameter in parameters]
        for row in self.lm.team.share(list(self.rows(samples))):
            losses = row_losses(token_losses(self.logits(row), row), row)
            for summed, part in zip(total, torch.autograd.grad(losses.sum() / len(samples), parameters), strict=True):
                summed += part
        self.lm.team.total(total)
        return total

    def draw(self, samples: Sequence[Sample], count: int, step: int) -> list[Sample]:
        """`count` of the samples, uniformly, as a function of (seed, stage, step) and their ids."""
        keys = bits(self.seed, self.stage, step, hashes=hash_ids(sample.id for sample in samples))
        return [samples[place] for place in keys.argsort(kind="stable")[:count]]


class Strategy(Extension):
    """Plain fine-tuning. A method overrides only the hooks it needs.

    Replay is not a strategy class: which samples a batch holds is decided by the schedule and the
    memory before the strategy sees it, so every strategy here combines with every kind of replay.
    A strategy lives for one stage; what must outlast it goes through `state_dict`, and what changes from step to step
    through `progress`.
    """

    def __init__(self, options: Section | None = None, context: Context | None = None) -> None:
        self.options, self.context = options, context

    def begin_task(self, model: torch.nn.Module, task: Task) -> None:
        """Called once before a task's first step, and before its optimizer is made."""

    def losses(self, model: torch.nn.Module, batch: Batch, base: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Per-sample losses (B,), never reduced. `base` (B,) are the token-mean losses, `logits` (K, V)
        those of the K label tokens of `batch.row`."""
        return base

    def adjust_gradients(self, model: torch.nn.Module) -> None:
        """Called once an optimizer step, after all gradients are there and before clipping."""

    def end_task(self, model: torch.nn.Module, task: Task) -> None:
        """Called once after a task's last step."""

    def state_dict(self) -> Tensors:
        """What the next stage needs to know, at the end of this one."""
        return {}

    def load_state_dict(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take over what the last stage left; called before `begin_task`."""

    def progress(self) -> dict[str, Any]:
        """What changed since `begin_task`, between two steps: tensors and plain values."""
        return {}

    def resume(self, progress: Mapping[str, Any]) -> None:
        """Take over what `progress` said, after `begin_task` with the stage's first weights."""


def trained(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The parameters that are trained, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


class StateError(ValueError):
    """What an earlier stage left does not belong to this model."""


def check_shapes(tensors: Mapping[str, torch.Tensor], like: Mapping[str, torch.Tensor], what: str) -> None:
    """StateError unless `tensors` are of the names and shapes of `like`."""
    for name in dict.fromkeys([*like, *tensors]):
        shapes = [tuple(found[name].shape) if name in found else "none" for found in (tensors, like)]
        if shapes[0] != shapes[1]:
            raise StateError(f"{what} of {name}: {shapes[0]}, and the model has {shapes[1]}")


def check_training(model: torch.nn.Module, weights: Tensors, moments: Mapping[str, Tensors]) -> None:
    """StateError unless saved weights, and AdamW's moments by the number of their parameter, are of this model."""
    parameters = trained(model)
    check_shapes(weights, parameters, "weights")
    numbered = {str(number): parameter for number, parameter in enumerate(parameters.values())}
    for name in ("exp_avg", "exp_avg_sq"):
        found = {number: values[name] for number, values in moments.items()}
        check_shapes(found, {number: numbered[number] for number in found}, name)


def snapshot(model: torch.nn.Module) -> Tensors:
    """A copy of the trained parameters."""
    return {name: parameter.detach().clone() for name, parameter in trained(model).items()}


@contextmanager
def holding(model: torch.nn.Module, weights: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """The model with other values of its trained parameters inside this block; graphs built before stay valid."""
    parameters = trained(model)
    own = {name: parameter.data for name, parameter in parameters.items()}
    try:
        for name, parameter in parameters.items():
            parameter.data = weights[name]
        yield
    finally:
        for name, parameter in parameters.items():
            parameter.data = own[name]


def under(prefix: str, tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """Those of the tensors whose names begin with `prefix` and a slash, without it."""
    start = f"{prefix}/"
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


def prefixed(prefix: str, tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """The tensors with `prefix` and a slash before their names."""
    return {f"{prefix}/{name}": tensor for name, tensor in tensors.items()}
