"""Every equation of the memory model against values computed by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retain.memory import dynamics
from retain.sections import MemoryModel

pytestmark = pytest.mark.filterwarnings("error")
DEFAULTS = MemoryModel()
NAN, INF = math.nan, math.inf


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=1e-14, atol=0)


def test_sigmoid():
    x = np.array([0.0, 0.5, 0.6, 1.0])
    close(
        dynamics.phi_sigmoid(x, 10.0, 0.5),
        [0.006692850924284856, 0.5, 0.7310585786300048, 0.9933071490757153],
    )


def test_sigmoid_saturates_without_a_warning():
    assert dynamics.phi_sigmoid(np.array([0.0, 1.0]), 1e6, 0.5).tolist() == [0.0, 1.0]


def test_identity_power_and_log_maps():
    x = np.array([0.0, 0.3, 0.5, 1.0])
    close(dynamics.phi_identity(x), [0.0, 0.3, 0.5, 1.0])
    close(dynamics.phi_power(x, 2.0), [0.0, 0.09, 0.25, 1.0])
    close(dynamics.phi_log(x, 9.0), [0.0, 0.568201724066995, 0.7403626894942439, 1.0])


@pytest.mark.parametrize("kind", ["sigmoid", "identity", "power", "log"])
@given(x=st.floats(0, 1), y=st.floats(0, 1))
def test_maps_are_monotone_within_the_unit_interval(kind, x, y):
    config = MemoryModel(phi=kind)
    low, high = dynamics.phi(np.array(sorted([x, y])), config)
    assert 0.0 <= low <= high <= 1.0


def test_phi_takes_its_parameters_from_the_config():
    x = np.array([0.3])
    close(dynamics.phi(x, MemoryModel(phi_k=20.0, phi_c=0.4)), [0.11920292202211753])
    close(dynamics.phi(x, MemoryModel(phi="power", phi_power=3.0)), [0.027])
    close(dynamics.phi(x, MemoryModel(phi="log", phi_kappa=99.0)), [0.7435691877385932])
    close(dynamics.phi(x, MemoryModel(phi="identity")), [0.3])


def test_ema_starts_with_the_first_loss():
    close(dynamics.ema(np.array([NAN, 2.0, 0.0]), np.array([4.0, 4.0, 1.0]), 0.95), [4.0, 2.1, 0.05])


def test_ema_of_a_constant_loss_does_not_drift():
    value = np.array([0.1])
    for _ in range(1000):
        value = dynamics.ema(value, np.array([0.1]), 0.95)
    assert value[0] == 0.1


@given(st.floats(-1.7e308, 1.7e308), st.floats(-1.7e308, 1.7e308), st.floats(0, 0.999))
def test_ema_lies_between_its_parts(old, new, beta):
    mixed = dynamics.ema(np.array([old]), np.array([new]), beta)[0]
    assert min(old, new) <= mixed <= max(old, new)


def test_quantiles_interpolate_between_order_statistics():
    losses = np.array([5.0, NAN, 1.0, 4.0, 2.0, 3.0])
    close(dynamics.loss_quantiles(losses, 0.05, 0.95), (1.2, 4.8))
    close(dynamics.loss_quantiles(losses, 0.0, 1.0), (1.0, 5.0))


def test_quantiles_of_one_sample_and_of_none():
    assert dynamics.loss_quantiles(np.array([NAN, 3.0]), 0.05, 0.95) == (3.0, 3.0)
    assert dynamics.loss_quantiles(np.array([NAN]), 0.05, 0.95) is None
    assert dynamics.loss_quantiles(np.array([]), 0.05, 0.95) is None


def test_normalized_loss():
    losses = np.array([0.0, 1.2, 2.1, 3.0, 4.8, 9.0, NAN])
    close(dynamics.normalized(losses, (1.2, 4.8)), [0.0, 0.0, 0.25, 0.5, 1.0, 1.0, 0.5])


def test_normalized_loss_is_a_half_when_nothing_tells_samples_apart():
    losses = np.array([0.0, 3.0, NAN])
    assert dynamics.normalized(losses, None).tolist() == [0.5, 0.5, 0.5]
    assert dynamics.normalized(losses, (3.0, 3.0)).tolist() == [0.5, 0.5, 0.5]
    assert dynamics.normalized(losses, (0.0, 0.999e-12)).tolist() == [0.5, 0.5, 0.5]
    assert dynamics.normalized(losses, (0.0, 1.001e-12)).tolist() == [0.0, 1.0, 0.5]


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=9))
def test_normalized_loss_is_never_nan_however_large_the_losses(values):
    losses = np.array(values)
    share = dynamics.normalized(losses, dynamics.loss_quantiles(losses, 0.05, 0.95))
    assert ((share >= 0.0) & (share <= 1.0)).all()


def test_hazard():
    close(dynamics.hazard(np.array([0.0, 0.5, 1.0]), np.array([1.0, 1.0, 2.0]), 0.01, 0.2), [0.01, 0.11, 0.105])


def test_decay():
    close(dynamics.decayed(np.array([0.0, -0.1]), np.array([0.11, 0.11]), np.array([3.0, 10.0])), [-0.33, -1.2])


def consolidated(stability, strength, elapsed, noise=0.0, **fields):
    log_strength = np.log(np.array([strength])) if strength > 0 else np.array([-1e9])
    config = DEFAULTS.model_copy(update=fields)
    return dynamics.consolidated(np.array([stability]), log_strength, np.array([elapsed]), noise, config)[0]


def test_consolidation():
    close(consolidated(1.0, 0.5, 10.0), 1.0678628063526970)  # 1 + 0.05 * 3 * exp(-0.1) * 0.5
    close(consolidated(6.0, 0.2, 0.0), 6.08)  # 6 + 0.05 * 2 * 0.8
    close(consolidated(6.0, 0.0, 0.0, noise=0.5), 6.6)  # 6 + 0.05 * 2 + 0.5


def test_consolidation_is_clipped_at_both_ends():
    assert consolidated(1.0, 0.0, 0.0, eta_s=100.0) == 10.0
    assert consolidated(1.5, 1.0, 0.0, noise=-3.0) == 1.0


@pytest.mark.parametrize(
    ("stability", "strength", "elapsed", "fields", "expected"),
    [
        (10.0, 0.5, 0.0, {"beta_s": 0.0, "s_max": 10.0, "eta_s": 0.0}, 10.0),
        (10.0, 0.5, 0.0, {"beta_s": 0.0}, 10.0),  # 0 to the power of 0 is 1: clipped growth
        (10.0, 0.5, 0.0, {"beta_s": 0.5}, 10.0),
        (1.0, 1.0, 0.0, {"gamma_s": 0.0}, 1.15),  # 1 - m = 0 to the power of 0 is 1
        (1.0, 1.0, 0.0, {"gamma_s": 1.0}, 1.0),
        (1.0, 0.0, 0.0, {"gamma_s": 2.0}, 1.15),
        (1.0, 0.0, 1e12, {}, 1.0),  # exp(-rho elapsed) underflows
        (1.0, 0.0, 1e12, {"rho": 0.0}, 1.15),
        (1.0, 1.0, 0.0, {"eta_s": 0.0, "gamma_s": 0.0}, 1.0),
        (1.0, 0.0, 1e9, {"beta_s": 1e50, "rho": 1e50}, 1.0),  # infinity times zero in the product form
    ],
)
def test_consolidation_at_the_edges(stability, strength, elapsed, fields, expected):
    close(consolidated(stability, strength, elapsed, **fields), expected)


def test_retention_priority():
    strengths = np.array([0.0, -2.0, -1e300])
    close(dynamics.retention_priority(strengths, 1.5), [0.0, 3.0, 1.5e300])
    assert math.copysign(1.0, dynamics.retention_priority(strengths, 1.5)[0]) == 1.0
    assert dynamics.retention_priority(np.array([0.0, -INF]), 0.0).tolist() == [0.0, 0.0]


def test_risk_priority():
    strengths, elapsed = np.log([0.5, 0.25]), np.array([20.0, 0.0])
    close(dynamics.risk_priority(strengths, elapsed, 2.0, 0.01), [-1.1862943611198906, -0.5753641449035618])


def test_risk_priority_at_full_strength():
    full, elapsed = np.zeros(1), np.array([5.0])
    assert dynamics.risk_priority(full, elapsed, 1.0, 0.01).tolist() == [-INF]
    assert dynamics.risk_priority(full, elapsed, 0.0, 0.01).tolist() == [0.05]
    assert dynamics.risk_priority(full, elapsed, 0.0, 0.0).tolist() == [0.0]


def test_gain_priority():
    close(dynamics.gain_priority(np.log([0.25]), np.array([0.2]), 2.0), [-2.184802057337662])


def test_gain_priority_at_the_edges():
    hazards = np.array([0.0, 0.2])
    assert dynamics.gain_priority(np.array([-1.0, 0.0]), hazards, 1.0).tolist() == [-INF, -INF]
    assert dynamics.gain_priority(np.zeros(2), hazards, 0.0).tolist() == [-INF, math.log(0.2)]
    assert dynamics.gain_priority(np.zeros(1), np.zeros(1), 1.0).tolist() == [-INF]


def test_confidence_priority():
    close(dynamics.confidence_priority(np.array([0.25, 1.0])), [-1.3862943611198906, 0.0])
    assert dynamics.confidence_priority(np.zeros(1)).tolist() == [-INF]


def test_log1mexp_where_the_naive_form_fails():
    close(
        dynamics.log1mexp(np.array([-1e-20, -50.0, -0.6931471805599453])),
        [-46.051701859880914, -1.9287498479639178e-22, -0.6931471805599453],
    )
    assert dynamics.log1mexp(np.array([0.0, -INF, -1e300])).tolist() == [-INF, 0.0, 0.0]
