"""What l2, ewc and si share: a quadratic penalty on the distance to earlier weights."""

from __future__ import annotations

import torch

from retain.strategies.base import Strategy, Tensors, check_shapes, trained


class QuadraticPenalty(Strategy):
    """Adds the gradient of ½ c Σ P (θ − θ*)², that is c P (θ − θ*), to what training gathered.

    In closed form it needs no graph and does not depend on how a batch is cut into micro-batches; the losses
    that the run reports stay those of the data. P is `precision`, θ* is `center`, c is `strength`.
    """

    strength: float = 0.0

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)
        self.precision: Tensors = {}
        self.center: Tensors = {}

    def _check_state(self, model: torch.nn.Module) -> None:
        """StateError where precision and center of earlier stages are not those of the trained parameters."""
        for what in ("precision", "center") if self.context.stage > 1 else ():
            check_shapes(getattr(self, what), trained(model), what)

    def adjust_gradients(self, model: torch.nn.Module) -> None:
        for name, parameter in trained(model).items():
            if name in self.precision:
                pull = self.strength * self.precision[name] * (parameter.detach() - self.center[name])
                parameter.grad = pull if parameter.grad is None else parameter.grad + pull
