"""Differential privacy: the bound of a drawn token, DP-SGD against a naive loop, closed forms, what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_run import adapter, results, run_tiny, same_tensors

from retain.config import make_config
from retain.plans import StagePlan
from retain.privacy import private_temperature
from retain.sampling import Sampling, clip_logits, warp
from retain.synthesis_sections import PrivacyConfig
from retain.types import InputError, Sample

LOGITS = st.lists(st.floats(-80, 80), min_size=5, max_size=5)


@settings(max_examples=300)
@given(LOGITS, LOGITS, st.floats(0.1, 20), st.floats(0.5, 20))
def test_no_change_of_the_logits_changes_a_tokens_chance_by_more_than_epsilon(one, other, epsilon, clip):
    way = Sampling(private_temperature(epsilon, clip), 0, 1.0, 1.0, clip)
    chances = []
    for logits in (one, other):
        weights, places = warp(torch.tensor([logits], dtype=torch.float64), way)
        assert places is None
        chances.append((weights / weights.sum()).log())
    assert float((chances[0] - chances[1]).abs().max()) <= epsilon * (1 + 1e-9)


def test_the_bound_is_reached():
    epsilon, clip = 1.3, 7.0
    way = Sampling(private_temperature(epsilon, clip), 0, 1.0, 1.0, clip)
    high, low = ([50.0, 0.0, *[0.0] * 10_000], [-50.0, 0.0, *[0.0] * 10_000])
    chances = [warp(torch.tensor([row], dtype=torch.float64), way)[0] for row in (high, low)]
    logs = [float((weights[0, 0] / weights.sum()).log()) for weights in chances]
    assert 0.95 * epsilon < abs(logs[0] - logs[1]) <= epsilon


def test_clipped_logits_keep_the_softmax_where_nothing_is_cut():
    logits = torch.tensor([[1.0, -2.0, 3.5]])
    assert torch.allclose(clip_logits(logits, 10.0).softmax(-1), logits.softmax(-1))
    assert clip_logits(logits, 2.0).tolist() == [[-0.5, -2.0, 2.0]]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"privacy": {"epsilon_per_token": 2.0}, "synthesis": {"top_k": 50}}, "top_k: 50 would break the bound"),
        ({"privacy": {"epsilon_per_token": 2.0}, "synthesis": {"answers": "greedy"}}, "would break the bound"),
        ({"privacy": {"dp_sgd": {}}, "strategy": "mssr"}, "reads stored samples again and again"),
        ({"privacy": {"dp_sgd": {}}, "strategy": "ssr", "storage": {"mode": "hybrid"}}, "keeps real samples"),
        ({"privacy": {"dp_sgd": {}}, "strategy": "ssr + ewc"}, "Fisher information on real samples"),
    ],
)
def test_what_would_break_a_guarantee_is_refused(changes, said):
    with pytest.raises(InputError, match=said):
        make_config({"tasks": [], **changes}, "test", need_tasks=False)


# ---- DP-SGD ---------------------------------------------------------------------------------------------


def private_gradient(parameters, **options):
    pytest.importorskip("opacus", reason="needs the extra `privacy`")
    from retain.dp_sgd import PrivateGradient

    privacy = PrivacyConfig(dp_sgd=options, noise_seed=5)
    plan = StagePlan("a", 4, np.full(4, 10), None, epoch_steps=4)
    return PrivateGradient(parameters, privacy, plan, 40, 1)


def test_gradients_are_clipped_one_by_one_and_divided_by_the_expected_batch():
    parameters = [torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(2, 2))]
    private = private_gradient(parameters, max_grad_norm=1.0, noise_multiplier=1e-9, delta=1e-3)
    generator, expected = torch.Generator().manual_seed(0), [torch.zeros(3), torch.zeros(2, 2)]
    for size in (0.01, 1.0, 50.0):
        for clip in (True, False):
            gradients = [size * torch.randn(one.shape, generator=generator) for one in parameters]
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient.clone()
            private.take(clip)
            norm = math.sqrt(sum(float(one.pow(2).sum()) for one in gradients))
            scale = min(1.0, 1.0 / norm) if clip else 1.0
            expected = [total + scale * one for total, one in zip(expected, gradients, strict=True)]
    private.release(replayed=3, step=1)
    for parameter, total in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad, total / (10 + 3), rtol=1e-5, atol=1e-6)


def test_noise_has_its_deviation_and_is_a_function_of_the_step():
    parameter = torch.nn.Parameter(torch.zeros(40_000))
    private = private_gradient([parameter], max_grad_norm=0.5, noise_multiplier=2.0, delta=1e-3)
    drawn = []
    for step in (1, 2, 1):
        private.release(replayed=0, step=step)
        drawn.append(parameter.grad * 10)
    assert float(drawn[0].std()) == pytest.approx(1.0, rel=0.02) and abs(float(drawn[0].mean())) < 0.02
    assert torch.equal(drawn[0], drawn[2]) and not torch.equal(drawn[0], drawn[1])


def test_batches_are_poisson_samples():
    private = private_gradient([torch.nn.Parameter(torch.zeros(1))], max_grad_norm=1.0, noise_multiplier=1.0)
    samples = [Sample(str(k), "a", "", "") for k in range(40)]
    sizes = [len(batch) for batch in private.batches(samples, 2000)]
    assert np.mean(sizes) == pytest.approx(10, abs=0.3) and np.var(sizes) == pytest.approx(7.5, rel=0.15)


def test_epsilon_of_one_full_gaussian_step_is_the_known_one():
    """Without subsampling the Rényi divergence is α/(2σ²), so ε is min over α of α/(2σ²) + the conversion's term."""
    pytest.importorskip("opacus", reason="needs the extra `privacy`")
    from retain.dp_sgd import epsilon_of

    sigma, delta = 2.0, 1e-5
    orders = np.arange(1.01, 64, 0.01)
    terms = np.log((orders - 1) / orders) - (np.log(delta) + np.log(orders)) / (orders - 1)
    known = (orders / (2 * sigma**2) + terms).min()
    assert epsilon_of([(sigma, 1.0, 1)], delta) == pytest.approx(known, rel=0.01)
    assert epsilon_of([(sigma, 0.1, 10)], delta) < epsilon_of([(sigma, 0.1, 100)], delta)
    both = epsilon_of([(sigma, 0.1, 10), (sigma, 0.1, 10)], delta)
    assert both == pytest.approx(epsilon_of([(sigma, 0.1, 20)], delta), rel=1e-6)


def test_a_private_run_says_what_it_spent(tmp_path):
    pytest.importorskip("opacus", reason="needs the extra `privacy`")
    privacy = {"dp_sgd": {"delta": 0.01, "noise_multiplier": 1.0}, "noise_seed": 3}
    out = run_tiny(tmp_path, strategy="none", privacy=privacy)
    tasks = results(out)["privacy"]["training"]["tasks"]
    assert list(tasks) == ["color", "size", "shape"]
    spent = [one["epsilon_over_all_tasks"] for one in tasks.values()]
    assert 0 < spent[0] < spent[1] < spent[2] and spent[0] == tasks["color"]["epsilon"]
    other = run_tiny(tmp_path, tmp_path / "other", strategy="none", privacy={**privacy, "noise_seed": 4})
    assert not same_tensors(adapter(out), adapter(other))
