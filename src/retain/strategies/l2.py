"""Stay near the last stage's weights."""

from __future__ import annotations

import torch

from retain.strategies.base import snapshot
from retain.strategies.quadratic import QuadraticPenalty
from retain.types import Task


class L2(QuadraticPenalty):
    """½ weight Σ (θ − θ*)², θ* the trained weights at the stage's start; no penalty in the first stage.

    The plain baseline of Kirkpatrick et al. 2017 (arXiv 1612.00796, "L2").
    """

    def begin_task(self, model: torch.nn.Module, task: Task) -> None:
        self.strength = self.options.weight
        if self.context.stage > 1:
            self.center = snapshot(model)
            self.precision = {name: torch.ones_like(value) for name, value in self.center.items()}
