"""Synaptic intelligence: weights that lowered the past losses most move less."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from retain.strategies.base import Tensors, check_shapes, prefixed, snapshot, trained, under
from retain.strategies.quadratic import QuadraticPenalty
from retain.types import Task


class SynapticIntelligence(QuadraticPenalty):
    """weight Σ Ω (θ − θ*)², θ* the weights at the stage's start (Zenke et al. 2017, arXiv 1703.04200).

    ω = −Σ_steps g Δθ with the optimizer's real update Δθ and the loss gradient g before clipping and before any
    penalty; at a stage's end Ω += max(ω, 0) / (Δ² + damping), Δ the stage's total change. A negative ω would
    reward moving away, so it counts as 0.
    """

    def begin_task(self, model: torch.nn.Module, task: Task) -> None:
        self.strength = 2 * self.options.weight
        self.start, self.last = snapshot(model), snapshot(model)
        self.path = {name: torch.zeros_like(value) for name, value in self.start.items()}
        self.gradient: Tensors = {}
        self.center = self.start
        self._check_state(model)

    def adjust_gradients(self, model: torch.nn.Module) -> None:
        self._follow(model)
        self.gradient = {n: p.grad.detach().clone() for n, p in trained(model).items() if p.grad is not None}
        super().adjust_gradients(model)

    def _follow(self, model: torch.nn.Module) -> None:
        """Add what the last update did to the path integral."""
        now = snapshot(model)
        for name, gradient in self.gradient.items():
            self.path[name] -= gradient * (now[name] - self.last[name])
        self.last = now

    def progress(self) -> dict[str, Any]:
        return {"last": self.last, "path": self.path, "gradient": self.gradient}

    def resume(self, progress: Mapping[str, Any]) -> None:
        for name, tensors in progress.items():
            check_shapes(tensors, {key: self.start[key] for key in tensors}, name)
            setattr(self, name, {key: value.to(self.start[key].device) for key, value in tensors.items()})

    def end_task(self, model: torch.nn.Module, task: Task) -> None:
        self._follow(model)
        for name, path in self.path.items():
            moved = (self.last[name] - self.start[name]) ** 2
            gained = path.clamp(min=0.0) / (moved + self.options.damping)
            self.precision[name] = self.precision[name] + gained if name in self.precision else gained

    def state_dict(self) -> Tensors:
        return prefixed("precision", self.precision)

    def load_state_dict(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self.precision = under("precision", tensors)
