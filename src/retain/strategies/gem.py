"""Gradient episodic memory: no step may raise a past task's loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from retain.strategies.base import Strategy, trained
from retain.types import Task


class Gem(Strategy):
    """g̃ = argmin ½ |g̃ − g|² with ⟨g̃, g_k⟩ ≥ 0 for every past task k (Lopez-Paz and Ranzato 2017, arXiv
    1706.08840).

    g_k is the gradient of the mean loss of `samples` buffered samples of task k, drawn anew each step. Where no
    product is negative the gradient stays as it is.
    """

    def begin_task(self, model: torch.nn.Module, task: Task) -> None:
        self.step = 0

    def progress(self) -> dict[str, Any]:
        return {"step": self.step}

    def resume(self, progress: Mapping[str, Any]) -> None:
        self.step = progress["step"]

    def adjust_gradients(self, model: torch.nn.Module) -> None:
        self.step += 1
        past: dict[str, list] = {}
        for sample in self.context.buffer.samples.values():
            past.setdefault(sample.task, []).append(sample)
        if past:
            drawn = [self.context.draw(samples, self.options.samples, self.step) for samples in past.values()]
            references = torch.stack([flat(self.context.gradient(samples)) for samples in drawn])
            replace_gradient(model, project(gradient_of(model), references, self.options.margin))


def project(gradient: torch.Tensor, references: torch.Tensor, margin: float = 0.0) -> torch.Tensor:
    """The vector nearest to `gradient` (P,) whose product with no row of `references` (T, P) is negative.

    `margin` is the least weight of each reference where any is violated, the source's "memory strength".
    """
    products = (references @ gradient).double().cpu().numpy()
    if (products >= 0).all():
        return gradient
    gram = (references @ references.T).double().cpu().numpy()
    weights = torch.as_tensor(solve_dual(gram, products, margin)).to(references)
    return gradient + weights @ references


def solve_dual(gram: np.ndarray, products: np.ndarray, margin: float = 0.0) -> np.ndarray:
    """argmin ½ vᵀ gram v + productsᵀ v over v ≥ margin, shapes (T, T) and (T,): the dual of GEM's program.

    Active set on u = v − margin ≥ 0, after Lawson and Hanson's method for non-negative least squares: the
    variable with the steepest descent becomes free, the free ones are solved for, and what would turn negative on
    the way is fixed at 0 again.
    """
    linear = products + margin * gram.sum(axis=1)
    solution, free = np.zeros(len(linear)), np.zeros(len(linear), dtype=bool)
    tolerance = 1e-12 * max(1e-300, float(np.abs(linear).max()))
    for _ in range(10 * len(linear)):
        slope = np.where(free, 0.0, gram @ solution + linear)
        if slope.min() >= -tolerance:
            break
        free[slope.argmin()] = True
        while free.any():
            target = np.zeros_like(solution)
            target[free] = np.linalg.lstsq(gram[np.ix_(free, free)], -linear[free], rcond=None)[0]
            falling = free & (target <= 0)
            if not falling.any():
                solution = target
                break
            reach = np.where(target < 0, solution / np.where(falling, solution - target, 1.0), 0.0)
            share = reach[falling].min()
            solution = solution + share * (target - solution)
            solution[falling & (reach <= share)] = 0.0
            free &= solution > 0
            solution[~free] = 0.0
    return solution + margin


def flat(tensors: list[torch.Tensor]) -> torch.Tensor:
    """Tensors as one vector."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def gradient_of(model: torch.nn.Module) -> torch.Tensor:
    """What training gathered for the trained parameters, as one vector."""
    return flat([torch.zeros_like(p) if p.grad is None else p.grad for p in trained(model).values()])


def replace_gradient(model: torch.nn.Module, gradient: torch.Tensor) -> None:
    """Put a vector in place of what training gathered."""
    parameters = list(trained(model).values())
    for parameter, part in zip(parameters, gradient.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = part.view_as(parameter).to(parameter.dtype)
