"""O-LoRA: each stage learns in a low-rank space orthogonal to those of the earlier stages."""

from __future__ import annotations

import numpy as np
import torch

from retain.model import ADAPTER
from retain.strategies.base import Strategy, trained
from retain.types import Task

PAST = "past"


class OLora(Strategy):
    """weight Σ_layers Σ |A_past A_newᵀ| + ½ l2 Σ θ_new² (Wang et al. 2023, arXiv 2310.14152).

    From the second stage on the adapter so far is frozen under the name `past` and an empty one of rank
    `lora.r` is trained beside it. At the stage's end both become one adapter again, A below A and B beside B:
    the sum of two low-rank products is the product of the stacked factors. So a stage's folder holds an ordinary
    adapter, of rank r times the number of stages, and its scale stays alpha / r. The absolute values are those of
    the authors' program, where their equation squares; the gradient is added in closed form.
    """

    def begin_task(self, model: torch.nn.Module, task: Task) -> None:
        self.beside: list[tuple[torch.nn.Parameter, torch.Tensor]] = []
        if self.context.stage == 1:
            return
        lm = self.context.lm
        total = lm.model.peft_config[ADAPTER].r
        lm.put_adapter(PAST, total, lm.adapter_weights(), dropout=False)
        lm.activate(PAST)
        seed = np.random.SeedSequence((self.context.seed, self.context.stage)).generate_state(1)[0]
        lm.put_adapter(ADAPTER, total // (self.context.stage - 1), seed=int(seed))
        lm.activate(ADAPTER, PAST)
        for layer in model.modules():
            if ADAPTER in getattr(layer, "lora_A", {}):
                self.beside.append((layer.lora_A[ADAPTER].weight, layer.lora_A[PAST].weight.detach()))

    def adjust_gradients(self, model: torch.nn.Module) -> None:
        for new, past in self.beside:
            overlap = new.detach() @ past.T
            new.grad += self.options.weight * overlap.sign() @ past
        if self.beside and self.options.l2:
            for parameter in trained(model).values():
                parameter.grad += self.options.l2 * parameter.detach()

    def end_task(self, model: torch.nn.Module, task: Task) -> None:
        lm = self.context.lm
        if self.beside:
            past, new = lm.adapter_weights(PAST), lm.adapter_weights()
            stacked = {name: torch.cat([past[name], new[name]], int("lora_B" in name)) for name in new}
            self.beside = []
            lm.activate(PAST)
            lm.put_adapter(ADAPTER, next(len(factor) for name, factor in stacked.items() if "lora_A" in name), stacked)
            lm.activate()
            lm.model.delete_adapter(PAST)
