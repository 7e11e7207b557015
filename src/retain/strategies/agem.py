"""Averaged gradient episodic memory: no step may raise the mean loss of what is stored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from retain.strategies.base import Strategy
from retain.strategies.gem import flat, gradient_of, replace_gradient
from retain.types import Task


class AGem(Strategy):
    """g̃ = g − (⟨g, r⟩ / ⟨r, r⟩) r where ⟨g, r⟩ < 0 (Chaudhry et al. 2019, arXiv 1812.00420).

    r is the gradient of the mean loss of `samples` samples drawn from the whole buffer at each step.
    """

    def begin_task(self, model: torch.nn.Module, task: Task) -> None:
        self.step = 0

    def progress(self) -> dict[str, Any]:
        return {"step": self.step}

    def resume(self, progress: Mapping[str, Any]) -> None:
        self.step = progress["step"]

    def adjust_gradients(self, model: torch.nn.Module) -> None:
        self.step += 1
        stored = list(self.context.buffer.samples.values())
        if stored:
            drawn = self.context.draw(stored, self.options.samples, self.step)
            reference = flat(self.context.gradient(drawn))
            replace_gradient(model, project_on_one(gradient_of(model), reference))


def project_on_one(gradient: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """The vector nearest to `gradient` whose product with `reference` is not negative; both (P,)."""
    product = gradient @ reference
    if product >= 0:
        return gradient
    return gradient - product / (reference @ reference) * reference
