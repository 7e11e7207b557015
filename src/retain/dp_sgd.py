"""DP-SGD: gradients of single samples, clipped and hidden in noise, and what that guarantees (docs/privacy.md)."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from retain.plans import StagePlan
from retain.privacy import check_installed, noise_seed
from retain.synthesis_sections import PrivacyConfig
from retain.team import Team
from retain.types import Sample

log = logging.getLogger("retain")

Spent = tuple[float, float, int]  # noise multiplier, sampling rate and steps, as opacus's accountants take them


class PrivateGradient:
    """g = (Σ_new g_i·min(1, C/|g_i|) + N(0, σ²C²) + Σ_replayed w_j g_j)/(B + r) (Abadi et al. 2016, Algorithm 1).

    Call `take` after the backward pass of each sample and `release` when all are there. B is the expected number of
    new samples: those of a step are a Poisson sample, each of the `size` samples with probability `rate`. Replayed
    samples are synthetic, so what they add is post-processing. C is `max_grad_norm`, σ `noise_multiplier`.
    """

    def __init__(
        self, parameters: Sequence[torch.nn.Parameter], privacy: PrivacyConfig, plan: StagePlan, size: int, stage: int
    ) -> None:
        check_installed(privacy)
        self.parameters, self.options, self.size = list(parameters), privacy.dp_sgd, size
        if self.options.delta * size >= 1:
            log.warning("privacy.dp_sgd.delta %g promises little to %d samples; take less than 1/%d",
                        self.options.delta, size, size)  # fmt: skip
        self.rate = min(1.0, int(plan.new_per_step.max()) / size)
        sequence = np.random.SeedSequence((Team.launched().agree(noise_seed(privacy)), stage))
        drawing, self._noise = sequence.spawn(2)
        self._drawing = np.random.default_rng(drawing)
        self.sums = [torch.zeros_like(parameter) for parameter in self.parameters]

    def batches(self, samples: Sequence[Sample], steps: int) -> Iterator[list[Sample]]:
        """The new samples of each step, each of them with probability `rate`; a step may have none."""
        for _ in range(steps):
            chosen = np.flatnonzero(self._drawing.random(len(samples)) < self.rate)
            yield [samples[i] for i in self._drawing.permutation(chosen)]

    def take(self, clip: bool) -> None:
        """Move the gradients that a backward pass left into the sum, clipped as one vector to norm C."""
        gradients = [parameter.grad for parameter in self.parameters]
        norm = math.sqrt(sum(float(one.double().pow(2).sum()) for one in gradients if one is not None))
        scale = min(1.0, self.options.max_grad_norm / norm) if clip and norm > 0 else 1.0
        for total, parameter in zip(self.sums, self.parameters, strict=True):
            if parameter.grad is not None:
                total += scale * parameter.grad
                parameter.grad = None

    def release(self, replayed: int, step: int) -> None:
        """Leave the noisy mean as the parameters' gradient, and begin a new sum. The noise is a function of the
        stage's `step`, so that a resumed stage draws it anew."""
        deviation = self.options.noise_multiplier * self.options.max_grad_norm
        seed = np.random.SeedSequence(self._noise.entropy, spawn_key=(*self._noise.spawn_key, step))
        generator = torch.Generator().manual_seed(int(seed.generate_state(1, np.uint64)[0]) >> 1)
        for total, parameter in zip(self.sums, self.parameters, strict=True):
            noise = torch.randn(total.shape, generator=generator, dtype=torch.float64) * deviation
            parameter.grad = (total + noise.to(total)) / (self.rate * self.size + replayed)
            total.zero_()

    def account(self, steps: int, earlier: Sequence[Spent] = ()) -> dict[str, Any]:
        """What `steps` steps cost a record of this stage's task, and, with what `earlier` stages spent on theirs, one
        that stands in all tasks."""
        spent = (self.options.noise_multiplier, self.rate, steps)
        alone, together = (epsilon_of(history, self.options.delta) for history in ([spent], [*earlier, spent]))
        return {
            "epsilon": alone if math.isfinite(alone) else None,
            "epsilon_over_all_tasks": together if math.isfinite(together) else None,
            "delta": self.options.delta,
            "spent": list(spent),
        }


def epsilon_of(history: Sequence[Spent], delta: float) -> float:
    """ε at `delta` of the Poisson-subsampled Gaussian mechanism, composed by opacus's Rényi accountant.

    For data sets that differ by one sample, added or removed (Mironov et al. 2019, arXiv 1908.10530).
    """
    from opacus.accountants import RDPAccountant  # an extra: `retain[privacy]`

    accountant = RDPAccountant()
    accountant.history = [tuple(spent) for spent in history]
    return float(accountant.get_epsilon(delta))
