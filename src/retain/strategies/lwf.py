"""Learning without forgetting: new inputs are answered as the model of the stage's start answered them."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from retain.losses import row_losses
from retain.strategies.base import Batch, Strategy, holding, snapshot
from retain.types import Task


class LearningWithoutForgetting(Strategy):
    """weight T² KL(p_T(old) ‖ p_T(new)), the mean over a new sample's answer tokens, on top of its loss.

    p_T is the softmax at temperature T (Li and Hoiem 2016, arXiv 1606.09282; T² as in Hinton et al. 2015, so
    that gradients keep their size). The old model is the same model with the adapter of the stage's start; it
    reads the row once more, at label positions only. Replayed samples keep their plain loss, and so does the
    first stage, which has no old model.
    """

    def begin_task(self, model: torch.nn.Module, task: Task) -> None:
        self.task = task.name
        self.old = snapshot(model)

    def losses(self, model: torch.nn.Module, batch: Batch, base: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        new = torch.tensor([sample.task == self.task for sample in batch.samples], device=base.device)
        if self.context.stage == 1 or not new.any():
            return base
        model.eval()
        with torch.no_grad(), holding(model, self.old):
            old = self.context.logits(batch.row)
        model.train()
        self.context.probe_tokens += sum(len(self.context.lm.encode(sample)) for sample in batch.samples)
        divergence = distillation(old, logits, self.options.temperature)
        return base + self.options.weight * new * row_losses(divergence, batch.row)


def distillation(old: torch.Tensor, new: torch.Tensor, temperature: float) -> torch.Tensor:
    """T² KL(softmax(old / T) ‖ softmax(new / T)) of each row of two tables of logits (K, V): shape (K,)."""
    wide = [(z.float() if z.dtype.itemsize < 4 else z) / temperature for z in (old, new)]
    teacher, student = (z.log_softmax(-1) for z in wide)
    return temperature**2 * F.kl_div(student, teacher, log_target=True, reduction="none").sum(-1)
