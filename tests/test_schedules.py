"""The schedule's equations against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retain import schedules
from retain.sections import MemoryModel, ScheduleConfig
from retain.types import InputError


def steps(last: int, interval: float, **schedule) -> list[int]:
    return schedules.event_steps(ScheduleConfig(**schedule), interval, last)


def test_expanding_events_with_the_papers_numbers():
    # t = 100; 100 + 147.561; 247.561 + 214.321; ... (Table 10, a stage of 2000 steps)
    assert steps(2000, 100.0) == [100, 248, 462, 768, 1200, 1801]


def test_expanding_intervals_follow_eq_26():
    intervals = schedules.expanding_intervals(100.0, 0.5, 0.05)
    assert [next(intervals) for _ in range(3)] == pytest.approx([100.0, 147.5614712250357, 214.3210415], rel=1e-9)


def test_an_event_on_the_last_step_fires_and_one_past_it_does_not():
    assert steps(1801, 100.0)[-1] == 1801
    assert steps(1800, 100.0)[-1] == 1200


def test_fixed_events_round_real_times():
    # 2.5, 5.0, 7.5, 10.0: halves rise
    assert steps(11, 2.5, kind="fixed") == [3, 5, 8, 10]
    # 1.3, 2.6, 3.9, 5.2, 6.5
    assert steps(7, 1.3, kind="fixed") == [1, 3, 4, 5, 7]


def test_fixed_times_are_products_not_sums():
    times = schedules.fixed_times(0.1)
    assert [next(times) for _ in range(3)][2] == 3 * 0.1
    assert sum([0.1] * 10) != 10 * 0.1  # the drift that a running sum would bring


def test_geometric_intervals_are_1_3_7_15():
    # intervals 2, 6, 14, 30 at times 2, 8, 22, 52
    assert steps(52, 2.0, kind="geometric") == [2, 8, 22, 52]
    assert steps(51, 2.0, kind="geometric") == [2, 8, 22]


def test_explicit_intervals_repeat_the_last_one():
    # units 1, 2, 4, 7, 15, 15, ... of 2 steps: 2, 6, 14, 28, 58, 88
    assert steps(100, 2.0, kind="explicit") == [2, 6, 14, 28, 58, 88]
    assert steps(10, 2.0, kind="explicit", explicit=[1.5]) == [3, 6, 9]


def test_explicit_events_on_one_step_are_one():
    # 0.6, 1.2, 1.8, 4.8, 7.8
    assert steps(8, 1.0, kind="explicit", explicit=[0.6, 0.6, 0.6, 3]) == [1, 2, 5, 8]


def test_there_is_no_step_0():
    # 0.3, 2.8, 5.3
    assert steps(6, 1.0, kind="explicit", explicit=[0.3, 2.5]) == [3, 5]


def test_a_tiny_repeated_interval_fires_at_every_step_and_ends():
    assert steps(5, 1.0, kind="explicit", explicit=[2, 1e-12]) == [2, 3, 4, 5]


def test_every_step():
    assert steps(4, 3.0, kind="every") == [1, 2, 3, 4]


def test_growth_without_bound_ends():
    assert steps(1000, 1.0, eta_p=1e300, rho_p=0.0) == [1]


def test_threshold_has_no_times_of_its_own():
    with pytest.raises(ValueError, match="threshold"):
        steps(4, 1.0, kind="threshold")


@given(
    kind=st.sampled_from(["expanding", "fixed", "geometric", "explicit", "every"]),
    units=st.lists(st.floats(1e-9, 20), min_size=1, max_size=6),
    interval=st.floats(1, 50),
    last=st.integers(0, 300),
)
def test_events_ascend_within_the_stage(kind, units, interval, last):
    found = steps(last, interval, kind=kind, explicit=units)
    assert found == sorted(set(found))
    assert all(1 <= step <= last for step in found)


@pytest.mark.parametrize(
    ("every", "stage", "steps"),
    [(50, 2000, 50), (0.025, 2000, 50), (0.025, 40, 1), (0.025, 100, 3), (0.5, 1, 1)],
)
def test_every_so_many_steps(every, stage, steps):
    assert schedules.every_steps(every, stage) == steps


@pytest.mark.parametrize(
    ("value", "stage", "interval"),
    [(100, 2000, 100.0), (0.05, 2000, 100.0), (0.05, 50, 2.5), (0.05, 10, 1.0), (1, 10, 1.0), (50, 10, 50.0)],
)
def test_first_interval(value, stage, interval):
    assert schedules.first_interval(value, stage) == interval


@pytest.mark.parametrize(
    ("form", "step", "expected"),
    [
        ("interpolated", 0, 0.3),
        ("interpolated", 2100, 0.05 + 0.25 * 0.9792189645694596),  # exp(-0.021)
        ("interpolated", 100_000, 0.05 + 0.25 / math.e),
        ("additive", 0, 0.35),
        ("additive", 100_000, 0.3 / math.e + 0.05),
        ("constant", 100_000, 0.3),
    ],
)
def test_ratio_forms(form, step, expected):
    assert schedules.ratio(step, ScheduleConfig(ratio_form=form)) == pytest.approx(expected, rel=1e-12)


def test_ratio_is_clipped_to_nine_tenths():
    schedule = ScheduleConfig(ratio_form="additive", lambda_0=0.9, lambda_min=0.5)
    assert schedules.ratio(0, schedule) == 0.9


@pytest.mark.parametrize(("amount", "rounded"), [(0.49, 0), (0.5, 1), (0.5 - 1e-10, 1), (0.5 - 1e-8, 0), (2.5, 3)])
def test_halves_rise_even_with_noise(amount, rounded):
    assert schedules.round_amount(amount) == rounded


def test_replay_for_makes_the_share():
    assert schedules.replay_for(8, 0.2) == pytest.approx(2.0)
    assert schedules.replay_for(8, 0.9) == pytest.approx(72.0)


def test_amounts_are_rounded_cumulatively():
    # sums 1, 2, 2.5, 3.5, 4.5, 5 round to 1, 2, 3, 4, 5, 5
    assert schedules.rounded_amounts([1, 1, 0.5, 1, 1, 0.5]) == [1, 1, 1, 1, 1, 0]
    assert schedules.rounded_amounts([0.1] * 10) == [0, 0, 0, 0, 1, 0, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("amount", "steps", "due"), [(3, 3, [1, 1, 1]), (2, 3, [1, 0, 1]), (5, 2, [3, 2]), (0, 2, [0, 0])]
)
def test_due_amounts(amount, steps, due):
    assert schedules.due_amounts(amount, steps) == due


@pytest.mark.parametrize(
    ("batch", "max_mix", "cap"), [(8, 0.5, 8), (8, 0.8, 32), (8, 0.1, 1), (8, 0.0, 0), (4, 0.2, 1)]
)
def test_step_cap(batch, max_mix, cap):
    assert schedules.step_cap(batch, max_mix) == cap


@pytest.mark.parametrize(
    ("arrivals", "carried"),
    [
        ([(1, 3), (2, 3)], [3, 3]),
        ([(1, 9), (5, 9)], [9, 1]),  # the first one holds slots up to step 5
        ([(5, 9)], [2]),  # one step is left
        ([(1, 20), (2, 1)], [10, 0]),
        ([(1, 0), (5, 2)], [0, 2]),
    ],
)
def test_carry_is_first_come_first_served(arrivals, carried):
    assert schedules.carry(arrivals, 5, 2) == carried


@given(
    st.lists(st.tuples(st.integers(1, 12), st.integers(0, 9)), max_size=8).map(sorted),
    st.integers(0, 4),
)
def test_carry_equals_a_queue_served_step_by_step(arrivals, cap):
    queue, carried = [], [0] * len(arrivals)
    for step in range(1, 13):
        for index, (arrival, amount) in enumerate(arrivals):
            queue += [index] * (amount if arrival == step else 0)
        for index in queue[:cap]:
            carried[index] += 1
        del queue[:cap]
    assert schedules.carry(arrivals, 12, cap) == carried


def test_time_unit_with_the_papers_numbers():
    # 100 (0.01 + 0.2 / 2) / ln 2
    assert schedules.time_unit(100.0, MemoryModel()) == pytest.approx(15.869645449778597, rel=1e-12)


def test_time_unit_uses_the_configured_phi_and_theta():
    # phi(1/2) = 1/4; (0.01 + 0.05) 10 / (2 ln 4)
    memory = MemoryModel(phi="power", theta=0.25, s_min=2.0)
    assert schedules.time_unit(10.0, memory) == pytest.approx(0.6 / (2 * math.log(4)), rel=1e-12)


def test_time_unit_needs_a_hazard():
    with pytest.raises(InputError, match=r"memory\.time_unit: 'auto' needs a hazard above 0, but memory\.alpha 0"):
        schedules.time_unit(10.0, MemoryModel(alpha=0.0, gamma_d=0.0))


def test_expected_wait():
    assert schedules.expected_wait(1024, 2000, 512) == 4000.0
    assert schedules.expected_wait(1024, 2000, 0) == 2000.0


def test_threshold_is_strict_whatever_the_float_noise_and_the_order():
    at_theta = np.log([0.5, 0.5])
    assert not schedules.below_threshold(at_theta, 0.5)
    assert not schedules.below_threshold(at_theta - 1e-15, 0.5)
    assert schedules.below_threshold(np.log([0.5, 0.4999]), 0.5)
    assert not schedules.below_threshold(np.log([0.9, 0.2]), 0.5)
    assert schedules.below_threshold(np.array([-1e6, -1e6]), 0.5)


def test_only_threshold_is_decided_online():
    assert schedules.decided_online(ScheduleConfig(kind="threshold"))
    assert not schedules.decided_online(ScheduleConfig(kind="threshold", volume="epoch"))
    assert not schedules.decided_online(ScheduleConfig())
