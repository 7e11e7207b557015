"""The loss of a mixed batch with its quality term, against a naive form of the sum."""

from __future__ import annotations

import pytest
import torch
from test_strategies import context, naive_logits, naive_loss

from retain.curriculum import mixed_loss_weights
from retain.sections import TrainingConfig
from retain.strategies.learn_to_write import LearnToWrite
from retain.synthesis_sections import CurriculumConfig, SynthesisConfig
from retain.trainer import Optimization
from retain.types import Sample

LABELS = ("red", "blue", "a")
NEW = [Sample(f"new/{k}", "new", f"Tell {'z' * k}:\n", word) for k, word in enumerate(["big", "small"])]
WRITTEN = [
    Sample("s/0", "old", "Say x:\n", "red", choices=LABELS, confidence=0.2),
    Sample("s/1", "old", "Say xx:\n", "blue", choices=LABELS, confidence=0.6),
    Sample("s/2", "old", "Say xxx:\n", "so many", confidence=0.0),
]


def doubt(model, lm, sample):
    """-log p(label | input) over the labels, or of free text its mean token NLL."""
    if not sample.choices:
        return naive_loss(model, lm, sample)
    sums = []
    for label in sample.choices:
        logits, targets = naive_logits(model, lm, Sample("", "", sample.prompt, label))
        sums.append(logits.log_softmax(-1)[range(len(targets)), targets].sum())
    return -torch.stack(sums).log_softmax(0)[sample.choices.index(sample.answer)]


@pytest.mark.parametrize("lambda_replay", [1.0, 0.3, 0.0])
@pytest.mark.parametrize("lambda_quality", [0.0, 0.5])
def test_the_gradient_is_that_of_the_mixed_loss(lambda_replay, lambda_quality, monkeypatch):
    """[sum_new CE + lambda_replay sum_syn c_i/mean(c) CE_i + lambda_quality sum_syn -log consistency_i]/(B + r)."""
    have = context(stored=())
    lm, model = have.lm, have.lm.model
    curriculum = CurriculumConfig(lambda_replay=lambda_replay, lambda_quality=lambda_quality)
    strategy = LearnToWrite(have, SynthesisConfig(generator_weight=0.0), lambda_quality)
    optimization = Optimization(lm, strategy, have.accelerator, TrainingConfig(), 1)
    monkeypatch.setattr(optimization, "_update", lambda: None)
    optimization.step(NEW + WRITTEN, mixed_loss_weights(2, [one.confidence for one in WRITTEN], curriculum))
    found = torch.cat([parameter.grad.flatten() for parameter in lm.parameters()])

    mean = sum(one.confidence for one in WRITTEN) / 3
    total = sum(naive_loss(model, lm, one) for one in NEW)
    total = total + lambda_replay * sum(one.confidence / mean * naive_loss(model, lm, one) for one in WRITTEN)
    total = total + lambda_quality * sum(doubt(model, lm, one) for one in WRITTEN)
    expected = torch.cat([grad.flatten() for grad in torch.autograd.grad(total / 5, list(lm.parameters()))])
    assert torch.allclose(found, expected, rtol=1e-6, atol=1e-7)
