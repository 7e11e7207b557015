"""Warping equals transformers' own processors; draws follow the distribution."""

import numpy as np
import pytest
import torch
from transformers import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from retain import sampling as module
from retain.memory.random import uniform
from retain.sampling import Sampling, draw, draw_tokens, penalize, warp


def random_logits(rows=5, vocabulary=300, scale=3.0):
    return scale * torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(4))


def theirs(logits, sampling):
    """Probabilities (B, V) by transformers: temperature, top-k, top-p."""
    scores = TemperatureLogitsWarper(sampling.temperature)(None, logits)
    if sampling.top_k:
        scores = TopKLogitsWarper(sampling.top_k)(None, scores)
    if sampling.top_p < 1:
        scores = TopPLogitsWarper(sampling.top_p)(None, scores)
    return scores.softmax(-1)


def ours(logits, sampling):
    probabilities, tokens = warp(logits, sampling)
    probabilities = probabilities / probabilities.sum(-1, keepdim=True)
    if tokens is None:
        return probabilities.float()
    return torch.zeros_like(logits).scatter(-1, tokens, probabilities.float())


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("top_k", [0, 1, 2, 50, 1000])
@pytest.mark.parametrize("top_p", [0.01, 0.5, 0.95, 1.0])
def test_warping_equals_transformers(temperature, top_k, top_p, monkeypatch):
    monkeypatch.setattr(module, "NUCLEUS", 8)  # so that top-p alone has to look further
    sampling = Sampling(temperature, top_k, top_p)
    logits = random_logits()
    if top_k == 1000:
        logits = logits[:, :200]
        sampling = Sampling(temperature, 200, top_p)
    torch.testing.assert_close(ours(logits, sampling), theirs(logits, sampling), rtol=1e-4, atol=1e-7)


def test_top_p_alone_sorts_few_tokens(monkeypatch):
    asked = []
    topk = torch.Tensor.topk
    monkeypatch.setattr(torch.Tensor, "topk", lambda self, size: asked.append(size) or topk(self, size))
    warp(random_logits(vocabulary=20_000), Sampling(top_k=0, top_p=0.9))
    warp(random_logits(vocabulary=20_000), Sampling(top_k=50, top_p=0.9))
    assert asked[-1] == 50 and max(asked) < 20_000


@pytest.mark.parametrize("penalty", [0.5, 1.0, 1.3])
def test_repetition_penalty_equals_transformers(penalty):
    logits = random_logits(rows=2)
    seen = [[3, 4, 3, 299], [7, 7, 7, 7]]
    expected = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor(seen), logits.clone())
    torch.testing.assert_close(penalize(logits, penalty, seen), expected)


def test_seen_tokens_of_different_number_and_none():
    logits = torch.tensor([[2.0, -2.0], [2.0, -2.0], [2.0, -2.0]])
    found = penalize(logits, 2.0, [[0], [], [0, 1]])
    assert found.tolist() == [[1.0, -2.0], [2.0, -2.0], [1.0, -4.0]]


def test_the_log_probability_is_the_unwarped_one():
    logits = random_logits()
    noise = torch.linspace(0.01, 0.99, 5, dtype=torch.float64)
    seen = [[1, 2, 3]] * 5
    tokens, log_probabilities = draw_tokens(logits, Sampling(0.3, 5, 0.8, 1.5), noise, seen)
    expected = logits.log_softmax(-1)[range(5), tokens]
    np.testing.assert_allclose(log_probabilities, expected, rtol=1e-5)


def test_half_precision_is_scored_in_single():
    logits = random_logits().bfloat16()
    tokens, log_probabilities = draw_tokens(logits, Sampling(top_k=1), torch.full((5,), 0.5, dtype=torch.float64))
    assert tokens == logits.argmax(-1).tolist()
    np.testing.assert_allclose(log_probabilities, logits.float().log_softmax(-1)[range(5), tokens], rtol=1e-5)


def test_a_draw_inverts_the_distribution_function():
    probabilities = torch.tensor([[0.5, 0.0, 1.0, 0.5, 0.0]], dtype=torch.float64)
    noise = torch.tensor([0.0001, 0.2499, 0.2501, 0.7499, 0.7501, 0.9999999], dtype=torch.float64)
    assert draw(probabilities.expand(6, 5), noise).tolist() == [0, 0, 2, 2, 3, 3]


def test_draws_follow_the_probabilities():
    probabilities = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.05], dtype=torch.float64)
    noise = torch.from_numpy(uniform(1, 2, hashes=np.arange(20_000, dtype=np.uint64)))
    counts = torch.bincount(draw(probabilities.expand(20_000, 5), noise), minlength=5)
    expected = 20_000 * probabilities
    assert float(((counts - expected) ** 2 / expected).sum()) < 18.47  # chi-square, 4 degrees, 0.999
