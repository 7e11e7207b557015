"""What a strategy is: four hooks whose defaults are plain fine-tuning."""

from __future__ import annotations

import torch

from retain.types import Task


class Strategy:
    """Plain fine-tuning. A method overrides only the hooks it needs.

    Replay is not a strategy class: which samples a batch holds is decided by the schedule and the
    memory before the strategy sees it, so every strategy here combines with every kind of replay.
    """

    def __init__(self, **options: object) -> None:
        if options:
            raise TypeError(f"takes no options, got {', '.join(options)}")

    def begin_task(self, model: torch.nn.Module, task: Task) -> None:
        """Called once before a task's first step."""

    def losses(self, model: torch.nn.Module, batch: object, base: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Per-sample losses (B,), never reduced. `base` (B,) are the token-mean losses, `logits` (K, V)
        those of the K label tokens of `batch`."""
        return base

    def adjust_gradients(self, model: torch.nn.Module) -> None:
        """Called once an optimizer step, after all gradients are there and before clipping."""

    def end_task(self, model: torch.nn.Module, task: Task) -> None:
        """Called once after a task's last step."""
