"""Maximally interfered retrieval: what the new batch is about to harm most is replayed."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from retain.losses import label_logits, row_losses, token_losses
from retain.strategies.base import Context, holding, trained
from retain.types import Sample


class MostInterfered:
    """Of drawn candidates those with the largest `interference` (Aljundi et al. 2019, arXiv 1908.04742)."""

    def __init__(self, context: Context, rate: float) -> None:
        self.context, self.rate = context, rate

    def __call__(self, new: Sequence[Sample], ids: Sequence[str], count: int) -> list[str]:
        """`count` of the ids, the most interfered first; of equal ones the order stays."""
        candidates = [self.context.buffer.samples[one] for one in ids]
        rises = interference(self.context, new, candidates, self.rate)
        return [ids[place] for place in rises.argsort(descending=True, stable=True)[:count].tolist()]


def interference(context: Context, new: Sequence[Sample], candidates: Sequence[Sample], rate: float) -> torch.Tensor:
    """l(x; θ − rate g) − l(x; θ) (N,) of each candidate x, in nats a token; g is the gradient of the new samples' mean
    loss. One plain gradient step stands for the update to come; the weights stay. Counted as probes."""
    before = _losses(context, candidates)
    pairs = zip(trained(context.lm.model).items(), context.gradient(new), strict=True)
    ahead = {name: parameter.detach() - rate * gradient for (name, parameter), gradient in pairs}
    with holding(context.lm.model, ahead):
        return _losses(context, candidates) - before


def _losses(context: Context, samples: Sequence[Sample]) -> torch.Tensor:
    """Loss (N,) of each sample. Not in mixed precision, in which so small a step would be lost."""
    total = torch.zeros(len(samples), dtype=torch.float64)
    with torch.no_grad():
        for row in context.lm.team.share(list(context.rows(samples))):
            total[row.members] = row_losses(token_losses(label_logits(context.lm, row), row), row).double().cpu()
    context.lm.team.total([total], context.lm.device)
    return total
