"""Elastic weight consolidation: weights that the past tasks' likelihood is sensitive to move less."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from retain.strategies.base import Context, Tensors, prefixed, snapshot, trained, under
from retain.strategies.quadratic import QuadraticPenalty
from retain.types import Sample, Task


class Ewc(QuadraticPenalty):
    """½ weight Σ_k Σ F_k (θ − θ_k)² over past stages k (Kirkpatrick et al. 2017, arXiv 1612.00796, Eq. 3).

    A sum of quadratics is one: P = Σ F_k around the center Σ F_k θ_k / P, so memory does not grow with the
    stages. `online` (Schwarz et al. 2018, arXiv 1805.06370): P = decay P + F_k around the latest θ_k.
    """

    def begin_task(self, model: torch.nn.Module, task: Task) -> None:
        self.strength = self.options.weight
        self._check_state(model)

    def end_task(self, model: torch.nn.Module, task: Task) -> None:
        samples = self.context.draw(task.train, self.options.samples, step=0)
        fisher = diagonal_fisher(self.context, samples, self.options.labels)
        old = self.precision or {name: torch.zeros_like(value) for name, value in fisher.items()}
        for name, weights in snapshot(model).items():
            decay = self.options.decay if self.options.online else 1.0
            self.precision[name] = decay * old[name] + fisher[name]
            step = torch.ones_like(weights) if self.options.online else fisher[name] / self.precision[name]
            center = self.center.get(name, weights)
            self.center[name] = center + torch.nan_to_num(step) * (weights - center)

    def state_dict(self) -> Tensors:
        return prefixed("precision", self.precision) | prefixed("center", self.center)

    def load_state_dict(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self.precision, self.center = under("precision", tensors), under("center", tensors)


def diagonal_fisher(context: Context, samples: Sequence[Sample], labels: str) -> Tensors:
    """F = mean over samples of g², g the gradient of one sample's own loss, by parameter.

    The loss is training's: the mean over a sample's answer tokens. labels: "model" draws each token from the
    model's own distribution given the tokens before it (the Fisher information), "data" takes the answer itself
    (the empirical Fisher).
    """
    parameters = trained(context.lm.model)
    total = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    seed = np.random.SeedSequence((context.seed, context.stage)).generate_state(1)[0]
    generator = torch.Generator().manual_seed(int(seed))
    for sample in samples:
        for row in context.rows([sample]):
            logits = context.logits(row)
            targets = row.targets
            if labels == "model":
                drawn = torch.multinomial(logits.detach().double().softmax(-1).cpu(), 1, generator=generator)
                targets = drawn.squeeze(-1).to(logits.device)
            wide = logits.float() if logits.dtype.itemsize < 4 else logits
            gradients = torch.autograd.grad(F.cross_entropy(wide, targets), list(parameters.values()))
            for name, gradient in zip(parameters, gradients, strict=True):
                total[name] += gradient**2 / len(samples)
    return total
