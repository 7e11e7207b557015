"""l2, ewc and si on quadratics, where the answer is known."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import retain.strategies.ewc
from retain.presets import EwcOptions, L2Options, SiOptions
from retain.strategies.ewc import Ewc
from retain.strategies.l2 import L2
from retain.strategies.si import SynapticIntelligence
from retain.types import Task

TASK = Task("t")


class Quadratic(torch.nn.Module):
    """Loss ½ Σ h (θ − b)², and a frozen parameter beside it."""

    def __init__(self, start, curvature, target):
        super().__init__()
        self.theta = torch.nn.Parameter(torch.tensor(start, dtype=torch.float64))
        self.frozen = torch.nn.Parameter(torch.ones(2), requires_grad=False)
        self.curvature = torch.tensor(curvature, dtype=torch.float64)
        self.aim(target)

    def aim(self, target):
        self.target = torch.tensor(target, dtype=torch.float64)

    def descend(self, strategy, steps, rate=0.02):
        """Plain gradient descent under a strategy, from its start of a stage to its end."""
        strategy.begin_task(self, TASK)
        for _ in range(steps):
            self.zero_grad()
            (0.5 * self.curvature * (self.theta - self.target) ** 2).sum().backward()
            strategy.adjust_gradients(self)
            with torch.no_grad():
                self.theta -= rate * self.theta.grad
        strategy.end_task(self, TASK)
        return self.theta.detach().clone()


def close(found, expected, **tolerance):
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=torch.float64), **tolerance)


def test_l2_ends_between_both_optima():
    model = Quadratic([1.0, -2.0], [1.0, 4.0], [0.0, 3.0])
    found = model.descend(L2(L2Options(weight=3.0), SimpleNamespace(stage=2)), 500)
    close(found, [(1 * 0 + 3 * 1) / 4, (4 * 3 + 3 * -2) / 7])


def test_l2_leaves_the_first_stage_alone():
    found = Quadratic([1.0], [1.0], [5.0]).descend(L2(L2Options(weight=1e9), SimpleNamespace(stage=1)), 1500)
    close(found, [5.0])


FISHERS = [[1.0, 0.0, 2.0], [0.5, 0.0, 0.0]]
ENDS = [[1.0, 1.0, 1.0], [-1.0, 2.0, 4.0]]


def ewc_after_two_tasks(monkeypatch, **options):
    """EWC that has been through two stages which ended at ENDS with FISHERS, each in an object of its own."""
    tensors = {}
    for stage, (fisher, end) in enumerate(zip(FISHERS, ENDS, strict=True), start=1):
        known = {"theta": torch.tensor(fisher, dtype=torch.float64)}
        monkeypatch.setattr(retain.strategies.ewc, "diagonal_fisher", lambda *_, known=known: known)
        strategy = Ewc(EwcOptions(**options), SimpleNamespace(stage=stage, draw=lambda samples, *_, **__: samples))
        strategy.load_state_dict(tensors)
        model = Quadratic(end, [1.0] * 3, end)
        strategy.begin_task(model, TASK)
        strategy.end_task(model, TASK)
        tensors = strategy.state_dict()
    strategy = Ewc(EwcOptions(**options), SimpleNamespace(stage=3))
    strategy.load_state_dict(tensors)
    strategy.end_task = lambda model, task: None
    return strategy


def test_ewc_is_the_sum_of_one_quadratic_a_task(monkeypatch):
    strategy = ewc_after_two_tasks(monkeypatch, weight=2.0)
    model = Quadratic([9.0, 9.0, 9.0], [1.0, 1.0, 3.0], [0.0, 7.0, 2.0])
    fishers, ends = torch.tensor(FISHERS), torch.tensor(ENDS)
    expected = (model.curvature * model.target + 2.0 * (fishers * ends).sum(0)) / (
        model.curvature + 2.0 * fishers.sum(0)
    )
    assert expected[1] == 7.0, "a weight no task needs moves freely"
    close(model.descend(strategy, 2000), expected)


def test_ewc_gradient_is_that_of_the_separate_penalties(monkeypatch):
    strategy = ewc_after_two_tasks(monkeypatch, weight=2.0)
    model = Quadratic([3.0, -5.0, 0.5], [0.0] * 3, [0.0] * 3)
    penalty = sum(
        (0.5 * 2.0 * torch.tensor(f) * (model.theta - torch.tensor(end)) ** 2).sum()
        for f, end in zip(FISHERS, ENDS, strict=True)
    )
    [expected] = torch.autograd.grad(penalty, model.theta)
    strategy.begin_task(model, TASK)
    strategy.adjust_gradients(model)
    close(model.theta.grad, expected)
    assert model.frozen.grad is None


def test_online_ewc_decays_and_holds_the_latest_weights(monkeypatch):
    strategy = ewc_after_two_tasks(monkeypatch, weight=2.0, online=True, decay=0.5)
    model = Quadratic([0.0] * 3, [1.0, 1.0, 3.0], [0.0, 7.0, 2.0])
    precision = [0.5 * 1.0 + 0.5, 0.0, 0.5 * 2.0]
    expected = [
        (h * b + 2.0 * p * end) / (h + 2.0 * p)
        for h, b, p, end in zip([1, 1, 3], [0, 7, 2], precision, ENDS[1], strict=True)
    ]
    close(model.descend(strategy, 2000), expected)


def test_si_follows_the_loss_down_the_path():
    """Under gradient descent with rate r, −Σ g Δθ = r h² e² (1 − q²ⁿ)/(1 − q²), q = 1 − r h, e = θ₀ − b."""
    start, h, b, rate, steps = [1.0, -2.0, 4.0], [1.0, 4.0, 0.0], [0.0, 3.0, 0.0], 0.02, 40
    model = Quadratic(start, h, b)
    strategy = SynapticIntelligence(SiOptions(weight=0.5, damping=0.1), SimpleNamespace(stage=1))
    end = model.descend(strategy, steps, rate)
    theta0, h, b = (torch.tensor(x, dtype=torch.float64) for x in (start, h, b))
    q, e = 1 - rate * h, theta0 - b
    path = rate * (h * e) ** 2 * torch.where(h > 0, (1 - q ** (2 * steps)) / (1 - q**2), 0.0)
    close(strategy.path["theta"], path)
    expected = path / ((end - theta0) ** 2 + 0.1)
    close(strategy.state_dict()["precision/theta"], expected)
    lost = 0.5 * h * ((theta0 - b) ** 2 - (end - b) ** 2)
    close(path, lost, rtol=rate * 4, atol=1e-12)  # as the rate goes to 0 the path integral is the fall of the loss

    later = SynapticIntelligence(SiOptions(weight=0.5, damping=0.1), SimpleNamespace(stage=2))
    later.load_state_dict(strategy.state_dict())
    model.curvature, model.target = torch.ones(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    close(model.descend(later, 3000), 2 * 0.5 * expected * end / (1 + 2 * 0.5 * expected))
    assert (later.state_dict()["precision/theta"] >= expected).all()


def test_si_counts_the_update_that_was_made_and_never_less_than_zero():
    model = Quadratic([0.0, 0.0], [0.0, 0.0], [0.0, 0.0])
    strategy = SynapticIntelligence(SiOptions(damping=1.0), SimpleNamespace(stage=1))
    strategy.begin_task(model, TASK)
    for gradient, move in [([1.0, 1.0], [-0.5, 2.0]), ([-3.0, 1.0], [0.25, 0.0])]:
        model.theta.grad = torch.tensor(gradient, dtype=torch.float64)
        strategy.adjust_gradients(model)
        with torch.no_grad():
            model.theta += torch.tensor(move)
    strategy.end_task(model, TASK)
    close(strategy.path["theta"], [0.5 + 0.75, -2.0])
    close(strategy.state_dict()["precision/theta"], [1.25 / (0.25**2 + 1.0), 0.0])


@pytest.mark.parametrize("strategy", [Ewc(EwcOptions()), SynapticIntelligence(SiOptions())])
def test_state_of_the_first_stage_is_empty(strategy):
    assert strategy.state_dict() == {}
