"""Fitting the memory's parameters: the closed form is the memory's own, and known parameters are found again."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from retain.config import make_config
from retain.history import History, StageHistory, exposures, follow, to_histories
from retain.memory.fitting import Histories, Parameters, cross_validated, fit, log_retention, losses
from retain.sections import MemoryModel

TRUE = Parameters(MemoryModel(alpha=0.03, gamma_d=0.16, eta_s=0.6, rho=0.05), 25.0)


def made_up(stages: int = 8, new: int = 60, steps: int = 60, unit: float = 9.0, seed: int = 0, **memory) -> History:
    """A run whose replay draws uniformly; every sample has a difficulty of its own."""
    rng = np.random.default_rng(seed)
    difficulty = {f"{stage}/{k}": rng.gamma(2.0) for stage in range(stages) for k in range(new)}
    found, known = [], {}
    for number in range(2, stages + 1):
        known |= {one: difficulty[one] for one in difficulty if one.startswith(f"{number - 2}/")}
        first = (number - 1) * steps
        reviews = {}
        for step in range(first + 1, first + steps + 1, 3):
            drawn = rng.choice(sorted(known), 3, replace=False).tolist()
            reviews[step] = {one: float(difficulty[one] * rng.uniform(0.5, 1.5)) for one in drawn}
        refreshes = frozenset(range(first + 5, first + steps + 1, 5))
        tasks = {one: one.split("/")[0] for one in known}
        found.append(StageHistory(number, first, first + steps, unit, dict(known), tasks, refreshes, reviews, {}))
    values = {"tasks": [{"name": "a", "train": "a", "test": "a"}], "memory": {"time_unit": unit, **memory}}
    return History(Path("made-up"), make_config(values, "test"), found)


def outcomes(history: History, parameters: Parameters, seed: int = 1) -> dict[tuple[str, int], bool]:
    """Forgotten or not, drawn from the model itself."""
    rng = np.random.default_rng(seed)
    model = parameters.model.model_copy(update={"time_unit": parameters.time_unit})
    return {
        (one.id, one.stage): bool(rng.uniform() > math.exp(one.log_strength - one.log_start))
        for one in follow(history, model, parameters.time_unit).intervals
    }


def data(history: History, forgotten: dict[tuple[str, int], bool]) -> Histories:
    return to_histories(exposures([history]), [forgotten])


@pytest.fixture(scope="module")
def history() -> History:
    return made_up()


@pytest.fixture(scope="module")
def histories(history) -> Histories:
    return data(history, outcomes(history, TRUE))


@pytest.mark.parametrize(
    "parameters",
    [
        TRUE,
        Parameters(MemoryModel(), 3.0),
        Parameters(MemoryModel(alpha=0.0, gamma_d=1.0, phi="power", s_min=0.5, beta_s=1.5, gamma_s=0.3), 80.0),
        Parameters(MemoryModel(eta_s=0.0), 10.0),
        Parameters(MemoryModel(eta_s=9.0, rho=0.0, s_max=2.0), 10.0),
    ],
)
def test_the_closed_form_is_the_memory_itself(history, parameters):
    """Stabilities and strengths of a whole history, against MemoryState."""
    other = made_up(phi=parameters.model.phi)
    followed = follow(other, parameters.model, parameters.time_unit).intervals
    found = data(other, {(one.id, one.stage): False for one in followed})
    expected = [one.log_strength - one.log_start for one in followed]
    assert max(one.reviews for one in followed) >= 3
    np.testing.assert_allclose(log_retention(found, parameters), expected, rtol=1e-9, atol=1e-12)


def test_one_sample_by_hand():
    """Two reviews 10 and 20 steps apart, then 8 steps; difficulty ½ throughout, 4 steps a tick."""
    one = Histories(*map(np.array, ([[10.0, 20.0]], [[5.0, 10.0]], [0], [2], [8.0], [4.0], [True], [2], ["a"])))
    model = MemoryModel(alpha=0.1, gamma_d=0.2, eta_s=0.5, rho=0.1)
    first = 1 + 0.5 * 9**0.5 * math.exp(-0.1 * 2.5) * (1 - math.exp(-0.2 * 2.5))
    second = first + 0.5 * (10 - first) ** 0.5 * math.exp(-0.1 * 5) * (1 - math.exp(-0.2 * 5 / first))
    found = log_retention(one, Parameters(model, 4.0))
    assert found == pytest.approx([-0.2 * 2 / second])
    assert losses(one, found) == pytest.approx([-math.log(1 - math.exp(-0.4 / second))])


def test_a_common_scale_changes_nothing(histories):
    model = TRUE.model.model_copy(update={"alpha": 0.03 * 7, "gamma_d": 0.16 * 7, "rho": 0.05 * 7})
    scaled = log_retention(histories, Parameters(model, 25.0 * 7))
    np.testing.assert_allclose(scaled, log_retention(histories, TRUE))


def test_known_parameters_are_found_again():
    """2548 outcomes drawn from the model: the estimates lie near what drew them.

    By Wilks' theorem twice the gain in log-likelihood over the truth is χ² with 4 degrees of freedom: 18.5 at 0.001.
    """
    truth = Parameters(MemoryModel(alpha=0.03, gamma_d=0.16, eta_s=1.5, rho=0.1), 25.0)
    history = made_up(stages=14, new=28, steps=60)
    histories = data(history, outcomes(history, truth))
    found, stuck = fit(histories, MemoryModel())
    gain = (
        losses(histories, log_retention(histories, truth)) - losses(histories, log_retention(histories, found))
    ).sum()
    assert len(histories.id) == 2548 and not stuck
    assert 0 <= 2 * gain < 18.5
    scale = found.time_unit / 25.0  # the fit keeps the hazard at φ(½); what can be told is a share of the unit
    assert found.model.alpha + found.model.gamma_d / 2 == pytest.approx(0.11)
    assert found.model.alpha / scale == pytest.approx(0.03, abs=0.012)
    assert found.model.gamma_d / scale == pytest.approx(0.16, rel=0.15)
    assert found.model.eta_s == pytest.approx(1.5, rel=0.35)
    assert found.model.rho / scale == pytest.approx(0.1, rel=0.35)


def test_the_fit_moves_only_what_it_may(histories):
    found, _ = fit(histories, MemoryModel(eta_s=0.3, rho=0.2), consolidation=False)
    assert (found.model.eta_s, found.model.rho) == (0.3, 0.2)
    assert found.time_unit != 9.0


def test_a_bound_is_named(history):
    """Where nothing is forgotten the slowest clock is the best."""
    flat = {(one.id, one.stage): False for one in follow(history, MemoryModel(), 9.0).intervals}
    found, stuck = fit(data(history, flat), MemoryModel(), consolidation=False)
    assert stuck == ["time_unit"] and found.time_unit == pytest.approx(1e6)


def test_held_out_losses_come_from_other_folds(histories):
    folds = histories.stage
    fitted, constant = cross_validated(histories, folds, MemoryModel(), consolidation=False)
    last = folds == 8
    rate = histories.forgotten[~last].mean()
    assert constant[last] == pytest.approx(-np.log(np.where(histories.forgotten[last], rate, 1 - rate)))
    own, _ = fit(histories.only(~last), MemoryModel(), consolidation=False)
    assert fitted[last] == pytest.approx(losses(histories.only(last), log_retention(histories.only(last), own)))
    assert fitted.mean() < constant.mean()  # drawn from such a model, whose stages have the same length
