"""The memory as a whole: golden trajectories, restart, order, draws, and errors that change nothing."""

import json
import math
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save

from retain.memory.state import STATE, MemoryState
from retain.sections import MemoryModel
from retain.types import InputError

pytestmark = pytest.mark.filterwarnings("error")
GOLDEN = json.loads((Path(__file__).parent / "golden" / "memory.json").read_text())
FIELDS = ("log_strength", "stability", "ema_loss", "hazard", "last_review", "reviews", "log_priority")
WRITERS = ("add", "observe", "refresh", "review", "remove", "unit")
PRIORITIES = ("retention", "risk", "gain", "uniform")


def perform(state, operation):
    """One writing operation of a trace, through the Python interface."""
    values = {key: value for key, value in operation.items() if key != "op"}
    name = operation["op"]
    if name in WRITERS:
        (state.set_unit if name == "unit" else getattr(state, name))(**values)


def assert_equal_states(one, two):
    assert one.ids == two.ids
    left, right = one.to_tensors(), two.to_tensors()
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_array_equal(left[name], right[name], err_msg=name)
        assert left[name].dtype == right[name].dtype


def example(config=None, seed=42):
    """Six samples with a history and a change of unit, at step 70."""
    state = MemoryState(config or MemoryModel(), seed=seed, time_unit=8.0)
    state.add(["a", "b", "c"], 0, [1.0, None, 3.0])
    state.refresh(10)
    state.add(["d", "e", "f"], 20, [0.5, 2.0, math.nan])
    state.observe(["a", "f"], [2.0, 4.0])
    state.review(["b", "d"], [2.5, 0.4], 30)
    state.set_unit(20.0, 40)
    state.refresh(50)
    state.review(["a"], [1.5], 70)
    return state


# Trajectories


@pytest.mark.parametrize("case", range(len(GOLDEN)))
def test_golden_trajectory(case):
    trace, queries = GOLDEN[case]["trace"], iter(GOLDEN[case]["answers"]["queries"])
    config = MemoryModel(**trace["config"])
    state = MemoryState(config, time_unit=config.time_unit)
    for operation in trace["ops"]:
        perform(state, operation)
        if operation["op"] == "query":
            expected = next(queries)["samples"]
            found = state.snapshot(operation["step"])
            assert found["id"].tolist() == list(expected)
            for name in FIELDS:
                literal = [sample[name] for sample in expected.values()]
                missing = math.nan if name == "ema_loss" else -math.inf
                literal = [missing if value is None else value for value in literal]
                np.testing.assert_allclose(found[name], literal, rtol=1e-12, atol=1e-15, err_msg=name)
    assert next(queries, None) is None


def test_review_by_hand():
    state = MemoryState(MemoryModel(phi="identity"), time_unit=2.0)
    state.add(["x", "low", "high"], 0, [2.0, 1.0, 3.0])
    assert state.snapshot(0)["hazard"].tolist() == [0.11, 0.11, 0.11]  # no quantiles yet
    state.refresh(0)
    state.review(["x"], [3.0], 20)  # 10 ticks at h = 0.11
    stability = 1 + 0.05 * 3 * math.exp(-0.1) * (1 - math.exp(-1.1))
    hazard = (0.01 + 0.2 * (2.05 - 1.1) / 1.8) / stability
    after = {name: column[0] for name, column in state.snapshot(24).items()}
    assert after["stability"] == pytest.approx(stability, rel=1e-14)
    assert after["ema_loss"] == pytest.approx(2.05, rel=1e-14)
    assert after["hazard"] == pytest.approx(hazard, rel=1e-13)
    assert after["log_strength"] == pytest.approx(-2 * hazard, rel=1e-13)
    assert (after["last_review"], after["reviews"]) == (20, 1)


def test_an_observation_changes_the_average_alone():
    state, untouched = example(), example()
    state.observe(["a", "b"], [5.0, 5.0])
    before, after = untouched.to_tensors(), state.to_tensors()
    assert not np.array_equal(before.pop("ema_loss"), after.pop("ema_loss"), equal_nan=True)
    for name in before:
        np.testing.assert_array_equal(before[name], after[name], err_msg=name)


def test_refresh_charges_the_interval_at_the_new_hazard():
    state = MemoryState(MemoryModel(phi="identity"))
    state.add(["low", "high"], 0, [0.0, 1.0])
    assert state.log_strengths(10).tolist() == pytest.approx([-1.1, -1.1])
    state.refresh(10)
    assert state.log_strengths(10).tolist() == pytest.approx([-0.1, -2.1])
    assert state.log_strengths(11).tolist() == pytest.approx([-0.11, -2.31])


def test_quantiles_stay_when_no_sample_has_a_loss():
    state = MemoryState(MemoryModel(phi="identity"))
    state.add(["low", "high"], 0, [0.0, 1.0])
    state.refresh(0)
    state.remove(["low", "high"])
    state.add(["unknown"], 0)
    state.refresh(1)
    state.add(["hard"], 1, [1.0])
    assert state.snapshot(1)["hazard"].tolist() == pytest.approx([0.11, 0.21])


def test_a_change_of_unit_counts_from_its_step_on():
    state = MemoryState(MemoryModel(), time_unit=4.0)
    state.add(["a"], 0)
    state.set_unit(10.0, 8)
    state.set_unit(5.0, 8)  # replaces the one before
    assert state.to_tensors()["clock_units"].tolist() == [4.0, 5.0]
    assert -state.log_strengths(8)[0] / 0.11 == pytest.approx(2.0, rel=1e-14)
    state.set_unit(2.0, 18)
    for step, ticks in [(18, 4.0), (22, 6.0), (2**53, 4.0 + (2**53 - 18) / 2)]:
        assert -state.log_strengths(step)[0] / 0.11 == pytest.approx(ticks, rel=1e-14)


def test_leaving_drops_the_state():
    state = example()
    state.remove(["a", "d"])
    assert state.ids == ["b", "c", "e", "f"]
    assert "a" not in state and "b" in state and len(state) == 4
    expected = example().snapshot(80)
    kept = [1, 2, 4, 5]
    for name, column in state.snapshot(80).items():
        np.testing.assert_array_equal(column, expected[name][kept], err_msg=name)
    state.add(["a"], 80)
    assert state.snapshot(80)["log_strength"][-1] == 0.0
    assert state.snapshot(80)["reviews"][-1] == 0


def test_queries_write_nothing():
    state = example()
    for priority in PRIORITIES:
        state.log_priorities(1000, priority=priority)
        state.draw(9, 1000, stage=1, event=1, stale_after=1, priority=priority)
    state.snapshot(2000)
    state.log_strengths(3000)
    state.ids.append("no sample")
    assert_equal_states(state, example())


def test_at_most_64_bytes_a_sample():
    state = example()
    assert sum(column.itemsize for column in state._table._columns.values()) == 64
    assert {name: tensor.dtype for name, tensor in state.to_tensors().items() if name in STATE} == STATE


# Long runs and extremes


def test_log_space_holds_for_a_million_steps():
    """The paper's own numbers underflow m at once; its logarithm keeps every digit."""
    state = MemoryState(MemoryModel(phi="identity", zeta=2.0))
    state.add(["easy", "hard", "unknown"], 0, [0.0, 1.0, None])
    for step in range(100, 1_000_001, 100):
        state.refresh(step)
    exact = -1e6 * np.array([0.01, 0.21, 0.11])
    np.testing.assert_allclose(state.log_strengths(1_000_000), exact, rtol=1e-12)
    np.testing.assert_allclose(state.log_priorities(1_000_000), -2.0 * exact, rtol=1e-12)
    state.review(["hard"], [1.0], 1_000_000)
    assert state.snapshot(1_000_000)["log_strength"][1] == 0.0


numbers = st.sampled_from([0.0, 1e-50, 1e-9, 0.5, 1.0, 30.0, 1e9, 1e50])
positive = numbers.filter(bool)
configs = st.fixed_dictionaries(
    {
        **dict.fromkeys(("alpha", "gamma_d", "eta_s", "beta_s", "rho", "gamma_s", "sigma_s"), numbers),
        **dict.fromkeys(("zeta", "beta_m", "rho_m", "phi_c"), numbers),
        **dict.fromkeys(("phi_k", "phi_power", "phi_kappa", "s_max"), positive),
        "s_min": st.just(1e-50),
        "phi": st.sampled_from(["sigmoid", "identity", "power", "log"]),
    }
)


@settings(max_examples=150, deadline=None)
@given(configs, positive, st.lists(st.tuples(st.integers(0, 5), st.integers(0, 10**6)), max_size=12), st.data())
def test_nothing_becomes_nan_at_any_extreme(fields, unit, moves, data):
    state, step = MemoryState(MemoryModel(**fields), time_unit=unit), 0
    losses = st.floats(allow_nan=False, allow_infinity=False)
    state.add(["a", "b", "c"], 0, [1.0, None, data.draw(losses)])
    for kind, wait in moves:
        step += wait
        if kind < 2:
            state.refresh(step)
        elif kind < 4:
            state.review(["a", "b"], [data.draw(losses), data.draw(losses)], step)
        else:
            state.observe(["c"], [data.draw(losses)])
    found = state.snapshot(step + 1)
    assert np.isfinite(found["log_strength"]).all() and (found["log_strength"] <= 0.0).all()
    assert (found["stability"] >= 1e-50).all() and (found["stability"] <= fields["s_max"]).all()
    assert np.isfinite(found["hazard"]).all() and (found["hazard"] >= 0.0).all()
    for priority in PRIORITIES:
        weights = state.log_priorities(step + 1, priority=priority)
        assert (weights < math.inf).all()
        assert sorted(state.draw(3, step + 1, stage=1, event=1, priority=priority)) == ["a", "b", "c"]


def riemann_errors(loss_at, epoch, total=64):
    """The distance of log m from the continuous solution after each epoch, and the summed bound of Eq. 18."""
    config = MemoryModel(phi="identity", ema_beta=0.0, quantile_low=0.0, quantile_high=1.0)
    state = MemoryState(config)
    state.add(["sample", "zero", "one"], 0, [loss_at(0), 0.0, 1.0])  # the last two pin the quantiles
    for step in range(epoch, total + 1, epoch):
        state.observe(["sample"], [loss_at(step)])
        state.refresh(step)
        times = np.linspace(0, step, 64 * step + 1)
        hazards = 0.01 + 0.2 * np.array([loss_at(time) for time in times])
        exact = -np.sum((hazards[1:] + hazards[:-1]) / 2) * (times[1] - times[0])
        lipschitz = np.abs(np.diff(hazards)).max() / (times[1] - times[0])
        yield abs(state.log_strengths(step)[0] - exact), lipschitz / 2 * epoch**2 * (step // epoch)


@pytest.mark.parametrize("epoch", [1, 4, 16, 64])
@pytest.mark.parametrize(
    "loss_at",
    [lambda t: 0.5 + 0.4 * math.sin(t / 9), lambda t: math.exp(-t / 30), lambda t: abs(t - 30) / 40],
)
def test_refreshes_keep_the_riemann_bound(loss_at, epoch):
    """Prop. A.2: |log m - log m(continuous)| is at most L/2 times the epoch squared, each epoch."""
    assert all(error <= bound * (1 + 1e-9) for error, bound in riemann_errors(loss_at, epoch))


def test_the_riemann_bound_is_reached_by_a_linear_loss():
    for epoch in (1, 2, 8, 32):
        for error, bound in riemann_errors(lambda time: time / 64, epoch):
            assert error == pytest.approx(bound, rel=1e-9)


# Restart and order


def test_restart_is_exact():
    state = example(MemoryModel(sigma_s=0.3, priority="risk"), seed=7)
    tensors = load(save(state.to_tensors()))
    again = MemoryState.from_tensors(state.config, state.ids, tensors, seed=7)
    for one in (state, again):
        one.refresh(90)
        one.review(["a", "e"], [1.0, 2.0], 95)
        one.set_unit(3.0, 100)
        one.add(["g"], 110, [2.0])
    assert_equal_states(state, again)
    for event in range(20):
        assert state.draw(4, 120, stage=2, event=event) == again.draw(4, 120, stage=2, event=event)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**9), st.integers(1, 60))
def test_restart_is_exact_anywhere(seed, cut):
    """Stop a golden trace anywhere, restart, go on: every tensor is bit for bit the same."""
    trace = GOLDEN[seed % len(GOLDEN)]["trace"]
    config = MemoryModel(**trace["config"])
    straight = MemoryState(config, time_unit=config.time_unit)
    for operation in trace["ops"]:
        perform(straight, operation)
    stopped = MemoryState(config, time_unit=config.time_unit)
    for operation in trace["ops"][:cut]:
        perform(stopped, operation)
    stopped = MemoryState.from_tensors(config, stopped.ids, stopped.to_tensors())
    for operation in trace["ops"][cut:]:
        perform(stopped, operation)
    assert_equal_states(straight, stopped)


def test_tensors_are_copies():
    state = example()
    tensors = state.to_tensors()
    again = MemoryState.from_tensors(state.config, state.ids, tensors)
    for tensor in tensors.values():
        tensor[:] = 0
    assert_equal_states(state, example())
    assert_equal_states(again, example())


def history(order, config, seed=5):
    """The same history with the samples of every call in another order."""
    rng = np.random.default_rng(11)
    ids = [f"t/{row}" for row in range(60)]
    first = rng.gamma(2.0, 1.0, 60)
    state = MemoryState(config, seed=seed, time_unit=5.0)
    state.add([ids[row] for row in order], 0, [first[row] for row in order])
    for step in range(5, 60, 5):
        chosen, losses = set(rng.choice(60, 10, replace=False).tolist()), rng.gamma(2.0, 1.0, 60)
        rows = [row for row in order if row in chosen]
        state.review([ids[row] for row in rows], [losses[row] for row in rows], step)
        state.refresh(step)
    state.remove([ids[row] for row in order if row % 6 == 0])
    return state


@settings(max_examples=15, deadline=None)
@given(st.permutations(range(60)), st.sampled_from(PRIORITIES))
def test_nothing_depends_on_the_storage_order(order, priority):
    config = MemoryModel(sigma_s=0.2, priority=priority)
    one, two = history(range(60), config), history(order, config)
    left, right = one.snapshot(70), two.snapshot(70)
    places = [right["id"].tolist().index(sample_id) for sample_id in left["id"]]
    for name in left:
        np.testing.assert_array_equal(left[name], right[name][places], err_msg=name)
    for n in (1, 7, 50, 130):
        for stale_after in (None, 15, 65):
            kwargs = {"stage": 1, "event": n, "stale_after": stale_after}
            assert one.draw(n, 70, **kwargs) == two.draw(n, 70, **kwargs)


def test_noise_of_a_review_is_normal_and_depends_on_seed_step_and_id_alone():
    ids = [f"t/{row}" for row in range(2000)]

    def stabilities(seed, step, ids=ids):
        config = MemoryModel(sigma_s=0.5, eta_s=0.0, s_min=5.0, s_max=1e9)
        state = MemoryState(config.model_copy(update={"s_min": 1e-9}), seed=seed)
        state.add(ids, 0)
        state._table["stability"][:] = 5.0
        state.review(ids, [1.0] * len(ids), step)
        return dict(zip(ids, state.snapshot(step)["stability"].tolist(), strict=True))

    found = stabilities(1, 3)
    noise = (np.array(list(found.values())) - 5.0) / 0.5
    assert abs(noise.mean()) < 4 / 2000**0.5
    assert abs(noise.std() - 1) < 4 / 4000**0.5
    assert stabilities(1, 3, ids[5:9]) == {one: found[one] for one in ids[5:9]}
    assert stabilities(2, 3) != found and stabilities(1, 4) != found


# Draws


def test_a_draw_follows_the_exact_probabilities():
    """First picks of `draw` itself against m^-zeta (Eq. 10)."""
    state = MemoryState(MemoryModel(phi="identity", zeta=0.5))
    state.add(["a", "b", "c", "d"], 0, [0.0, 1.0, 2.0, 3.0])
    state.refresh(10)
    exact = np.exp(state.log_priorities(12))
    exact *= 8000 / exact.sum()
    counts = Counter(state.draw(1, 12, stage=1, event=event)[0] for event in range(8000))
    found = np.array([counts[one] for one in state.ids])
    assert (((found - exact) ** 2) / exact).sum() < 21.1  # 99.99 % at 3 degrees of freedom


def test_a_draw_depends_on_seed_stage_and_event():
    def draw(seed, stage, event):
        return example(seed=seed).draw(6, 80, stage=stage, event=event, priority="uniform")

    assert draw(1, 1, 1) == draw(1, 1, 1)
    assert len({tuple(draw(*numbers)) for numbers in [(1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 1, 2)]}) == 4


@pytest.mark.parametrize("n", [0, 1, 5, 6, 7, 12, 17])
def test_more_than_all_takes_whole_passes_and_a_draw_of_the_rest(n):
    found = example().draw(n, 80, stage=1, event=1, stale_after=1)
    assert len(found) == n
    for start in range(0, n // 6 * 6, 6):
        assert sorted(found[start : start + 6]) == list("abcdef")
    assert len(set(found[n // 6 * 6 :])) == n % 6


def test_nothing_is_drawn_from_nothing():
    assert MemoryState(MemoryModel()).draw(5, 0, stage=1, event=1) == []


def test_stale_samples_come_first_up_to_half():
    state = example()  # last reviews: a 70, b 30, c 0, d 30, e 20, f 20
    for event in range(20):
        drawn = state.draw(6, 80, stage=1, event=event, stale_after=50)
        assert drawn[:3] == ["c", "e", "f"]
        assert sorted(drawn) == list("abcdef")
        assert state.draw(5, 80, stage=1, event=event, stale_after=50)[:2] == ["c", "e"]
        assert state.draw(4, 80, stage=1, event=event, stale_after=61)[0] == "c"


def test_what_is_not_stale_or_uniform_is_drawn_as_ever():
    state = example()
    for event in range(20):
        plain = state.draw(3, 80, stage=1, event=event)
        assert state.draw(3, 80, stage=1, event=event, stale_after=81) == plain
        assert state.draw(1, 80, stage=1, event=event, stale_after=1) == plain[:1]
        uniform = state.draw(3, 80, stage=1, event=event, priority="uniform")
        assert state.draw(3, 80, stage=1, event=event, stale_after=1, priority="uniform") == uniform


def test_staleness_is_reached_at_the_cap_itself():
    state = MemoryState(MemoryModel())
    state.add([f"t/{row}" for row in range(50)], 0)
    state.review([f"t/{row}" for row in range(1, 50)], [1.0] * 49, 10)
    starts = [state.draw(2, 40, stage=1, event=event, stale_after=40)[0] for event in range(10)]
    assert starts == ["t/0"] * 10
    assert {state.draw(2, 39, stage=1, event=e, stale_after=40)[0] for e in range(10)} != {"t/0"}


def test_risk_counts_ticks_on_the_clock():
    state = example(MemoryModel(priority="risk", beta_m=0.0, rho_m=1.0))
    ticks = {
        "a": 10 / 20,
        "b": 10 / 8 + 2,
        "c": 40 / 8 + 2,
        "d": 10 / 8 + 2,
        "e": 20 / 8 + 2,
        "f": 20 / 8 + 2,
    }
    assert dict(zip(state.ids, state.log_priorities(80), strict=True)) == pytest.approx(ticks, rel=1e-14)


def test_confidence_priority_needs_a_confidence_for_each_sample():
    state = example(MemoryModel(priority="confidence"))
    confidences = dict(zip("abcdef", (0.5, 0.0, 1.0, 1e-9, 0.25, 1), strict=True))
    weights = state.log_priorities(80, confidences)
    np.testing.assert_allclose(np.exp(weights), list(confidences.values()), rtol=1e-12)
    assert state.draw(6, 80, stage=1, event=3, confidences=confidences)[-1] == "b"
    assert "log_priority" not in state.snapshot(80)
    assert state.snapshot(80, confidences)["log_priority"][0] == math.log(0.5)


# Errors


ERRORS = [
    (lambda s: s.add(["x", "a"], 80), "ids[1] = 'a': is tracked already"),
    (lambda s: s.add(["x", "x"], 80), "ids[1] = 'x': is twice in one call"),
    (lambda s: s.add(["x", 3], 80), "ids[1] = 3: must be a string"),
    (lambda s: s.add("xy", 80), "ids = 'xy': must be a list of strings"),
    (lambda s: s.add(None, 80), "ids = None: must be a list of strings"),
    (lambda s: s.add(["x"], 80, [1.0, 2.0]), "losses: has 2 entries for 1 ids"),
    (lambda s: s.add(["x"], 80, [math.inf]), "losses[0] = inf: must be a finite number"),
    (lambda s: s.add(["x"], 80, [True]), "losses[0] = True: must be a finite number"),
    (lambda s: s.add(["x"], 80, ["1"]), "losses[0] = '1': must be a finite number"),
    (lambda s: s.add(["x"], 80, 1.0), "losses = 1.0: must be a list of numbers"),
    (lambda s: s.add(["x"], 69), "step = 69: comes before step 70"),
    (lambda s: s.observe(["a", "z"], [1.0, 1.0]), "ids[1] = 'z': is not tracked"),
    (lambda s: s.observe(["a"], []), "losses: has 0 entries for 1 ids"),
    (lambda s: s.observe(["a"], [math.nan]), "losses[0] = nan: must be a finite number"),
    (lambda s: s.observe(["a"], [None]), "losses[0] = None: must be a finite number"),
    (lambda s: s.observe(["a"], [10**400]), "losses[0] = an integer of 1329 bits: must be a finite number"),
    (lambda s: s.observe(["a", "a"], [1.0, 1.0]), "ids[1] = 'a': is twice in one call"),
    (lambda s: s.refresh(69), "step = 69: comes before step 70"),
    (lambda s: s.refresh(-1), "step = -1: must be from 0 to 2**53"),
    (lambda s: s.refresh(2**53 + 1), "step = 9007199254740993: must be from 0 to 2**53"),
    (lambda s: s.refresh(80.5), "step = 80.5: must be an integer"),
    (lambda s: s.refresh(True), "step = True: must be an integer"),
    (lambda s: s.refresh("80"), "step = '80': must be an integer"),
    (lambda s: s.review(["a", "z"], [1.0, 1.0], 80), "ids[1] = 'z': is not tracked"),
    (lambda s: s.review(["a", "b"], [1.0, math.inf], 80), "losses[1] = inf: must be a finite number"),
    (lambda s: s.review(["a"], [1.0], 69), "step = 69: comes before step 70"),
    (lambda s: s.remove(["a", "z"]), "ids[1] = 'z': is not tracked"),
    (lambda s: s.remove(["a", "a"]), "ids[1] = 'a': is twice in one call"),
    (lambda s: s.set_unit(0.0, 80), "time_unit = 0.0: must be a number above 0"),
    (lambda s: s.set_unit(-1, 80), "time_unit = -1: must be a number above 0"),
    (lambda s: s.set_unit(math.nan, 80), "time_unit = nan: must be a number above 0"),
    (lambda s: s.set_unit(math.inf, 80), "time_unit = inf: must be a number above 0"),
    (lambda s: s.set_unit(True, 80), "time_unit = True: must be a number above 0"),
    (lambda s: s.set_unit(2.0, 69), "step = 69: comes before step 70"),
    (lambda s: s.log_strengths(69), "step = 69: comes before step 70"),
    (lambda s: s.snapshot(69), "step = 69: comes before step 70"),
    (
        lambda s: s.log_priorities(80, priority="rentention"),
        "priority = 'rentention': is unknown; did you mean",
    ),
    (lambda s: s.log_priorities(80, priority="confidence"), "confidences['a'] = None: must be a number"),
    (
        lambda s: s.log_priorities(80, dict.fromkeys("abcdef", -1), "confidence"),
        "confidences['a'] = -1: must be",
    ),
    (lambda s: s.draw(-1, 80, stage=1, event=1), "n = -1: must be an integer of at least 0"),
    (lambda s: s.draw(2.0, 80, stage=1, event=1), "n = 2.0: must be an integer of at least 0"),
    (lambda s: s.draw(1, 69, stage=1, event=1), "step = 69: comes before step 70"),
]


@pytest.mark.parametrize(("call", "message"), ERRORS)
def test_an_error_names_its_cause_and_changes_nothing(call, message):
    state = example()
    with pytest.raises(InputError) as caught:
        call(state)
    assert str(caught.value).startswith(message)
    assert_equal_states(state, example())
    assert state.draw(4, 80, stage=1, event=1) == example().draw(4, 80, stage=1, event=1)


@pytest.mark.parametrize(
    "write",
    [
        lambda s: s.add(["x"], 75),
        lambda s: s.add([], 75),
        lambda s: s.refresh(75),
        lambda s: s.review(["a"], [1.0], 75),
        lambda s: s.set_unit(3.0, 75),
    ],
)
def test_every_write_moves_the_latest_step(write):
    state = example()
    write(state)
    with pytest.raises(InputError, match="step = 74: comes before step 75"):
        state.refresh(74)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"alpha": 1e51}, "memory.alpha = 1e+51: must be at most 1e+50 in magnitude."),
        ({"s_min": 1e-51}, "memory.s_min = 1e-51: must be at least 1e-50."),
    ],
)
def test_parameters_that_could_overflow_are_refused(fields, message):
    with pytest.raises(InputError) as caught:
        MemoryState(MemoryModel(**fields))
    assert str(caught.value) == message


def test_a_unit_that_is_no_number_is_refused():
    with pytest.raises(InputError, match="time_unit = 'auto': must be a number above 0"):
        MemoryState(MemoryModel(), time_unit="auto")


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("hazard", None, "tensors['hazard']: is missing"),
        (
            "hazard",
            np.zeros(5),
            "tensors['hazard']: is float64 of shape (5,); it must be float64 of length 6.",
        ),
        ("anchor", np.zeros(6), "tensors['anchor']: is float64 of shape (6,); it must be int64 of length 6."),
        (
            "quantiles",
            np.zeros(1),
            "tensors['quantiles']: is float64 of shape (1,); it must be float64 of length 0",
        ),
        (
            "clock_units",
            np.ones(3),
            "tensors['clock_units']: is float64 of shape (3,); it must be float64 of length 2",
        ),
        ("stability", np.full(6, math.nan), "tensors['stability']: holds a number that is not finite."),
    ],
)
def test_a_saved_state_that_is_not_whole_is_refused(name, tensor, message):
    state = example()
    tensors = state.to_tensors()
    del tensors[name]
    if tensor is not None:
        tensors[name] = tensor
    with pytest.raises(InputError) as caught:
        MemoryState.from_tensors(state.config, state.ids, tensors)
    assert str(caught.value).startswith(message)


def test_random_is_not_the_global_generator():
    random.seed(0)
    np.random.seed(0)
    before = example().draw(6, 80, stage=1, event=1)
    random.seed(1)
    np.random.seed(1)
    assert example().draw(6, 80, stage=1, event=1) == before
