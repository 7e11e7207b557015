"""The synthetic share of a mixed batch, what it comes to in samples, and their weights (MATH 4)."""

from __future__ import annotations

import json
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retain import curriculum
from retain.config import validate
from retain.curriculum import Curriculum, draw_samples, mixed_loss_weights
from retain.synthesis_sections import CurriculumConfig
from retain.types import InputError

SIZES = {"a": 100, "b": 300}
KINDS = (
    "constant",
    "linear",
    "cosine",
    "cosine_decay",
    "exponential",
    "adaptive",
    "similarity",
    "growing",
    "difficulty",
)


def stage(steps: int = 10, *, batch_size=8, index=2, similarities=None, sizes=SIZES, **config) -> Curriculum:
    return Curriculum(CurriculumConfig(**config), steps, batch_size, index, similarities, sizes)


# ---- the share ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "start", "middle", "end"),
    [
        (curriculum.linear_ratio, 0.2, 0.5, 0.8),
        (curriculum.cosine_ratio, 0.2, 0.5, 0.8),
        (curriculum.cosine_decay_ratio, 0.8, 0.5, 0.2),
    ],
)
def test_end_points_and_middle(kind, start, middle, end):
    assert [kind(s, 0.2, 0.8) for s in (0.0, 0.5, 1.0)] == pytest.approx([start, middle, end])


def test_a_quarter_of_the_cosine():
    # (1 + cos 45 degrees)/2 = 0.853553
    assert curriculum.cosine_ratio(0.25, 0.2, 0.8) == pytest.approx(0.8 - 0.6 * 0.8535533906)
    assert curriculum.cosine_decay_ratio(0.25, 0.2, 0.8) == pytest.approx(0.2 + 0.6 * 0.8535533906)


def test_the_exponential_does_not_jump_to_its_end():
    assert curriculum.exponential_ratio(0.0, 0.2, 0.8, 5.0) == pytest.approx(0.2)
    assert curriculum.exponential_ratio(1.0, 0.2, 0.8, 5.0) == pytest.approx(0.8 - 0.6 * 0.006737947)
    assert stage(10, kind="exponential").ratio(10) == stage(10, kind="exponential", warmup=0.5).ratio(8)


def test_similar_tasks_need_less():
    assert [curriculum.similarity_ratio(cosine) for cosine in (1.0, 0.5, 0.0, -1.0)] == [0.5, 0.65, 0.8, 0.95]


def test_growing_with_the_stage():
    assert [curriculum.growing_ratio(index, 0.2, 0.1) for index in (0, 1, 4, 8, 50)] == pytest.approx(
        [0.2, 0.3, 0.6, 0.95, 0.95]
    )
    assert stage(index=3, kind="growing").ratio(1) == pytest.approx(0.5)


def test_difficulty():
    assert stage(10, kind="difficulty").ratio(5) == pytest.approx(0.65)
    assert stage(10, kind="difficulty", difficulty="hard").ratio(10) == pytest.approx(0.5)


def test_constant_is_the_initial_share():
    assert stage(kind="constant", initial=0.5).ratio(7) == 0.5


@pytest.mark.parametrize(("warmup", "s"), [(1.0, 0.3), (0.5, 0.6), (0.2, 1.0), (1, 1.0), (60, 0.05), (1000, 0.003)])
def test_warmup_is_steps_or_a_share(warmup, s):
    assert curriculum.progress(3, 10, warmup) == pytest.approx(s)


@given(
    kind=st.sampled_from(KINDS),
    initial=st.floats(0, 0.99),
    final=st.floats(0, 0.99),
    rate=st.floats(1e-3, 50),
    warmup=st.integers(1, 50) | st.floats(0.01, 1),
    step=st.integers(1, 60),
    cosine=st.floats(-1, 1),
)
def test_the_share_is_a_share(kind, initial, final, rate, warmup, step, cosine):
    made = stage(
        60,
        kind=kind,
        initial=initial,
        final=final,
        rate=rate,
        warmup=warmup,
        similarities=dict.fromkeys(SIZES, cosine),
    )
    assert 0.0 <= made.ratio(step) < 1.0
    if kind in ("linear", "cosine", "exponential", "cosine_decay"):
        assert min(initial, final) - 1e-12 <= made.ratio(step) <= max(initial, final) + 1e-12
        rises = (final >= initial) != (kind == "cosine_decay")
        change = made.ratio(step + 1) - made.ratio(step)
        assert change * (1 if rises else -1) >= -1e-12


def test_the_share_of_similarity_is_the_mean_over_past_tasks():
    made = stage(kind="similarity", similarities={"a": 1.0, "b": 0.0})
    assert made.ratio(1) == pytest.approx((0.5 + 0.8) / 2)


@pytest.mark.parametrize("similarities", [None, {"a": 0.5}, {"a": 0.5, "b": math.nan}, {"a": 0.5, "b": 1.5}])
def test_similarity_needs_a_cosine_of_every_past_task(similarities):
    with pytest.raises(InputError, match=r"similarity of task 'b'|similarity of task 'a' is None"):
        stage(kind="similarity", similarities=similarities)
    with pytest.raises(InputError, match="must be from -1 to 1"):
        stage(split="similarity", similarities=similarities)


def test_float_noise_in_a_cosine_is_forgiven():
    assert stage(kind="similarity", similarities={"a": 1.0 + 1e-7, "b": 1.0}).ratio(1) == 0.5


@pytest.mark.parametrize("sizes", [{}, {"a": 0}])
def test_nothing_to_rehearse(sizes):
    made = stage(sizes=sizes, kind="similarity")
    assert made.ratio(5) == 0.0
    assert made.amount(8, 1) == 0
    assert made.split_amount(0) == {}


# ---- adaptive -------------------------------------------------------------------------------------------


def test_adaptive_by_hand():
    made = stage(kind="adaptive", initial=0.5)
    made.observe(0, 2.0, 1.0)  # what later ones are compared with
    assert made.ratio(1) == 0.5
    made.observe(1, 1.0, 1.05)  # neither is more than a tenth above
    assert made.ratio(2) == 0.5
    made.observe(2, 1.2, 1.5)  # the new task's best is 1.0 by now, and it comes first
    assert made.ratio(3) == pytest.approx(0.4)
    made.observe(3, 1.1, 1.2)  # 1.1 is not above 1.1; past tasks are forgotten
    assert made.ratio(4) == pytest.approx(0.5)
    assert made.history == [
        {"step": 0, "ratio": 0.5, "new_loss": 2.0, "old_loss": 1.0},
        {"step": 1, "ratio": 0.5, "new_loss": 1.0, "old_loss": 1.05},
        {"step": 2, "ratio": pytest.approx(0.4), "new_loss": 1.2, "old_loss": 1.5},
        {"step": 3, "ratio": pytest.approx(0.5), "new_loss": 1.1, "old_loss": 1.2},
    ]


def test_adaptive_stays_within_its_bounds():
    made = stage(kind="adaptive")
    made.observe(0, 1.0, 1.0)
    for step in range(1, 12):
        made.observe(step, 1.0, 2.0)
    assert made.ratio(12) == 0.9
    for step in range(12, 24):
        made.observe(step, 9.0, 2.0)
    assert made.ratio(24) == pytest.approx(0.1)
    assert stage(kind="adaptive", initial=0.0).ratio(1) == 0.1


def test_adaptive_may_rise_where_all_is_calm():
    made = stage(kind="adaptive", when_calm="raise")
    made.observe(0, 1.0, 1.0)
    made.observe(1, 0.9, 1.0)
    assert made.ratio(2) == pytest.approx(0.3)


def test_unknown_losses_change_nothing():
    made = stage(kind="adaptive")
    for step in range(3):
        made.observe(step, None, None)
    made.observe(3, 5.0, None)
    made.observe(4, 9.0, 3.0)
    assert made.ratio(5) == pytest.approx(0.1)
    assert stage(kind="linear").history == []


def test_only_adaptive_acts_on_losses():
    made = stage(kind="linear")
    made.observe(0, 1.0, 1.0)
    made.observe(1, 1.0, 9.0)
    assert made.ratio(5) == pytest.approx(0.5)
    assert made.history[1]["ratio"] == pytest.approx(0.26)


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_no_number(loss):
    made = stage(kind="adaptive")
    with pytest.raises(InputError, match=r"old_loss (nan|inf) at step 4"):
        made.observe(4, 1.0, loss)
    assert made.history == []


def test_checks_are_due_at_every_tenth_of_the_stage():
    made = stage(25)
    assert [step for step in range(1, 26) if made.check_due(step)] == [3, 6, 9, 12, 15, 18, 21, 24]
    assert all(stage(3).check_due(step) for step in (1, 2, 3))
    assert not stage(3, check_every=2).check_due(1)


def test_drift_lowers_every_kind():
    for kind in KINDS:
        made = stage(kind=kind, similarities=dict.fromkeys(SIZES, 0.0), initial=0.5)
        before = made.ratio(5)
        made.lower(0.1)
        assert made.ratio(5) == pytest.approx(before - 0.1)
        made.lower(0.9)
        assert made.ratio(5) == 0.0


def test_bounds_in_order():
    with pytest.raises(InputError, match=r"highest: 0.3 is below lowest \(0.5\)"):
        validate(CurriculumConfig, {"lowest": 0.5, "highest": 0.3}, "curriculum")
    with pytest.raises(InputError, match=r"highest: 0.9 is below lowest \(0.95\)"):
        validate(CurriculumConfig, {"lowest": 0.95}, "curriculum")


# ---- samples --------------------------------------------------------------------------------------------


def test_amounts_make_the_share():
    made = stage(4, kind="constant", initial=0.2)  # 8 new call for 2
    assert [made.amount(8, step) for step in range(1, 5)] == [2, 2, 2, 2]
    made = stage(4, kind="constant", initial=0.1)  # 8/9 a step: 0.89, 1.78, 2.67, 3.56
    assert [made.amount(8, step) for step in range(1, 5)] == [1, 1, 1, 1]
    made = stage(6, kind="constant", initial=0.05)  # 8/19 a step: 0.42, 0.84, 1.26, 1.68, 2.11, 2.53
    assert [made.amount(8, step) for step in range(1, 7)] == [0, 1, 0, 1, 0, 1]


def test_linear_amounts_by_hand():
    # alpha 0.35, 0.5, 0.65, 0.8 of 8: 4.31, 8, 14.86, 32; sums 4.31, 12.31, 27.17, 59.17
    made = stage(4)
    assert [made.amount(8, step) for step in range(1, 5)] == [4, 8, 15, 32]


def test_no_step_exceeds_the_cap():
    made = stage(4, kind="constant", initial=0.9)  # 72 a step, the cap is 32
    assert [made.amount(new, step) for step, new in enumerate((8, 8, 8, 1), 1)] == [32, 32, 32, 9]
    made = stage(4, kind="constant", initial=0.9, max_mix=0.0)
    assert made.amount(8, 1) == 0


@given(
    ratio=st.floats(0, 0.8),
    news=st.lists(st.integers(1, 8), min_size=1, max_size=40),
)
def test_a_stages_amounts_follow_the_exact_sum(ratio, news):
    made = stage(len(news), kind="constant", initial=ratio)
    total = sum(made.amount(new, step) for step, new in enumerate(news, 1))
    assert abs(total - sum(news) * ratio / (1 - ratio)) <= 0.5 + 1e-6


def test_an_even_split_takes_turns():
    made = stage(sizes={"a": 5, "b": 0, "c": 500})
    assert made.split_amount(3) == {"a": 2, "c": 1}
    assert made.split_amount(3) == {"a": 1, "c": 2}


def test_a_split_by_size():
    made = stage(split="size")
    drawn = [made.split_amount(1) for _ in range(8)]
    assert sum(Counter({"a": one["a"]})["a"] for one in drawn) == 2
    assert sum(one["b"] for one in drawn) == 6


def test_a_split_by_similarity_goes_by_each_tasks_own_share():
    made = stage(split="similarity", similarities={"a": 1.0, "b": 0.0})  # 0.5 to 0.8
    assert made.split_amount(130) == {"a": 50, "b": 80}


@given(
    sizes=st.lists(st.integers(1, 1000), min_size=1, max_size=6),
    amounts=st.lists(st.integers(0, 12), min_size=1, max_size=30),
)
def test_a_split_is_never_a_whole_sample_off(sizes, amounts):
    made = stage(split="size", sizes={str(task): size for task, size in enumerate(sizes)})
    given_so_far = Counter()
    for amount in amounts:
        step = made.split_amount(amount)
        assert sum(step.values()) == amount
        assert min(step.values()) >= 0
        given_so_far.update(step)
        for task, size in enumerate(sizes):
            exact = given_so_far.total() * size / sum(sizes)
            assert abs(given_so_far[str(task)] - exact) < 1.0


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_stage_goes_on_alike(kind):
    arguments = (
        CurriculumConfig(kind=kind, split="size", initial=0.3),
        20,
        8,
        2,
        {"a": 0.3, "b": 0.6},
        {"a": 7, "b": 11},
    )

    def play(made, steps):
        seen = []
        for step in steps:
            amount = made.amount(8, step)
            seen.append((amount, made.split_amount(amount), made.ratio(step)))
            made.observe(step, 1.0 + step / 10, 1.0 + step / 30)
        return seen

    whole = Curriculum(*arguments)
    whole.lower(0.05)
    expected = play(whole, range(1, 21))
    first = Curriculum(*arguments)
    first.lower(0.05)
    play(first, range(1, 8))
    state = first.state()
    written = json.dumps(state)
    play(first, range(8, 12))
    assert json.dumps(state) == written  # what the first one does later does not reach the state
    resumed = Curriculum(*arguments)
    resumed.resume(json.loads(written))
    assert play(resumed, range(8, 21)) == expected[7:]
    assert resumed.state() == whole.state()


# ---- draws and weights ----------------------------------------------------------------------------------


def test_draws_depend_on_seed_stage_and_step_and_not_on_order():
    confidences = {f"s{row}": 0.1 + row / 50 for row in range(40)}
    where = {"seed": 1, "stage": 2, "step": 3}
    drawn = draw_samples(confidences, 10, "confidence", **where)
    assert len(set(drawn)) == 10
    assert drawn == draw_samples(dict(reversed(confidences.items())), 10, "confidence", **where)
    for other in ({"seed": 2}, {"stage": 3}, {"step": 4}):
        assert drawn != draw_samples(confidences, 10, "confidence", **(where | other))


def test_draws_follow_the_confidences():
    confidences = {"low": 0.1, "high": 0.3, "none": 0.0}
    first = Counter(draw_samples(confidences, 1, "confidence", seed=0, stage=1, step=step)[0] for step in range(4000))
    assert first["high"] / 4000 == pytest.approx(0.75, abs=0.03)
    assert first["none"] == 0
    first = Counter(draw_samples(confidences, 1, "uniform", seed=0, stage=1, step=step)[0] for step in range(4000))
    assert first["none"] / 4000 == pytest.approx(1 / 3, abs=0.03)


def test_more_than_there_are_takes_whole_passes():
    drawn = draw_samples({"a": 1.0, "b": 1.0, "c": 1.0}, 8, "uniform", seed=0, stage=1, step=1)
    assert sorted(Counter(drawn).values()) == [2, 3, 3]
    assert sorted(drawn[:3]) == ["a", "b", "c"]
    assert draw_samples({}, 8, "confidence", seed=0, stage=1, step=1) == []


@pytest.mark.parametrize("value", [-0.1, math.nan])
def test_a_confidence_is_a_number_of_at_least_0(value):
    with pytest.raises(InputError, match="confidence of 'b'"):
        draw_samples({"a": 0.5, "b": value}, 1, "confidence", seed=0, stage=1, step=1)


def test_weights_are_those_of_the_loss():
    losses = np.array([1.0, 2.0, 3.0, 5.0])
    weights = mixed_loss_weights(2, [0.2, 0.6], CurriculumConfig(lambda_replay=0.5))
    # (1 + 2 + 0.5 * (0.2 / 0.4 * 3 + 0.6 / 0.4 * 5)) / 4
    assert (weights * losses).sum() / 4 == pytest.approx((3 + 0.5 * (1.5 + 7.5)) / 4)
    assert mixed_loss_weights(1, [0.2, 0.6], CurriculumConfig(weight_by_confidence=False)).tolist() == [1, 1, 1]


def test_weights_at_the_edges():
    config = CurriculumConfig(lambda_replay=2.0)
    assert mixed_loss_weights(3, [], config).tolist() == [1, 1, 1]
    assert mixed_loss_weights(0, [0.0, 0.0], config).tolist() == [2, 2]
    assert mixed_loss_weights(1, [None, 1.0], config).tolist() == [1, 2, 2]
    assert mixed_loss_weights(1, [None, 0.5], config).tolist() == pytest.approx([1, 2 / 0.75, 1 / 0.75])


@given(st.lists(st.floats(1e-6, 1), min_size=1, max_size=20))
def test_confidences_do_not_change_the_weight_of_all_synthetic_samples(confidences):
    weights = mixed_loss_weights(0, confidences, CurriculumConfig())
    assert weights.sum() == pytest.approx(len(confidences))
