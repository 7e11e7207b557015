"""Plans against numbers worked out by hand, and the replayer against its plan."""

from __future__ import annotations

import json
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retain.config import Config
from retain.memory.state import MemoryState
from retain.plans import Event, StagePlan
from retain.replayer import Replayer
from retain.scheduler import plan_run, plan_to_dict, stage_steps
from retain.schedules import step_cap
from retain.sections import TrainingConfig
from retain.types import InputError


def make(strategy="mssr", memory=None, training=None, capacity=1024, **schedule) -> Config:
    return Config.model_validate(
        {
            "tasks": [],
            "strategy": strategy,
            "schedule": schedule,
            "memory": memory or {},
            "buffer": {"capacity": capacity},
            "training": {"batch_size": 4, **(training or {})},
        }
    )


def amounts(plan: StagePlan) -> list[tuple[int, int]]:
    return [(event.step, event.replayed) for event in plan.events]


# Steps


@pytest.mark.parametrize(
    ("samples", "training", "expected"),
    [
        (8, {}, [4, 4]),
        (10, {}, [4, 4, 2]),
        (10, {"epochs": 2}, [4, 4, 2, 4, 4, 2]),
        (10, {"max_steps": 2}, [4, 4]),
        (10, {"epochs": 2, "max_steps": 8}, [4, 4, 2, 4, 4, 2, 4, 4]),
        (3, {"max_steps": 2}, [3, 3]),
    ],
)
def test_new_samples_at_each_step(samples, training, expected):
    assert stage_steps(samples, TrainingConfig(batch_size=4, **training)).tolist() == expected


def test_a_stage_needs_a_sample():
    with pytest.raises(InputError, match="a stage has 0 training samples; it needs at least 1"):
        plan_run(make(), [("a", 0)])


# Amounts: share 0.2 calls for a quarter of the new samples; a stage of ten samples is 4, 4, 2 an epoch

QUARTER = {"ratio_form": "constant", "lambda_0": 0.2}


def second(samples: int, config: Config) -> StagePlan:
    """The plan of a stage of `samples` that follows one of 40."""
    return plan_run(config, [("a", 40), ("b", samples)])[1]


def test_the_papers_schedule():
    plan = second(8000, make(training={"max_steps": 2000}))
    # share 0.05 + 0.25 exp(-1e-5 t) at t = 2100, 2248, ...; 4 w share/(1 - share) new samples' worth
    assert [step for step, _ in amounts(plan)] == [100, 248, 462, 768, 1200, 1801]
    assert plan.events[0].ratio == pytest.approx(0.05 + 0.25 * math.exp(-0.021), rel=1e-14)
    # 400 x 0.4180522; + 592 x 0.4173245; + 856 x 0.4162747 = 167.22, 414.28, 770.61
    assert [replayed for _, replayed in amounts(plan)][:3] == [167, 247, 357]


def test_proportional_counts_the_partial_batches():
    config = make(training={"epochs": 2}, kind="every", **QUARTER)
    assert amounts(second(10, config)) == [(1, 1), (2, 1), (3, 1), (4, 1), (5, 1), (6, 0)]
    # new samples 8, 6, 6: sums 2, 3.5, 5
    config = make(training={"epochs": 2}, kind="fixed", first_interval=2, **QUARTER)
    assert amounts(second(10, config)) == [(2, 2), (4, 2), (6, 1)]


def test_batch_answers_for_its_own_step():
    # new samples of steps 2, 4, 6 are 4, 4, 2: sums 1, 2, 2.5
    config = make(training={"epochs": 2}, kind="fixed", first_interval=2, volume="batch", **QUARTER)
    assert amounts(second(10, config)) == [(2, 1), (4, 1), (6, 1)]


def test_epoch_replays_once_an_epoch_whatever_the_kind():
    for kind in ("expanding", "threshold"):
        config = make(training={"epochs": 2}, kind=kind, volume="epoch", **QUARTER)
        assert amounts(second(10, config)) == [(1, 3), (4, 2)]  # sums 2.5, 5
    # cut to five steps: 10 and 8 new samples, sums 2.5, 4.5
    config = make(training={"max_steps": 5}, volume="epoch", **QUARTER)
    assert amounts(second(10, config)) == [(1, 3), (4, 2)]


def test_an_epoch_takes_the_ratio_of_its_first_step():
    config = make(training={"epochs": 2}, volume="epoch", beta_r=0.1)  # the stage starts after 20 steps
    assert [event.ratio for event in second(10, config).events] == pytest.approx(
        [0.05 + 0.25 * math.exp(-2.1), 0.05 + 0.25 * math.exp(-2.4)]
    )


def test_ratio_is_taken_at_the_global_step():
    plan = second(40, make(kind="fixed", first_interval=10, beta_r=0.1))
    assert plan.events[0].ratio == pytest.approx(0.05 + 0.25 * math.exp(-2.0))


def test_an_event_of_nothing_is_listed():
    plan = second(40, make(kind="fixed", first_interval=5, ratio_form="constant", lambda_0=0.0))
    assert amounts(plan) == [(5, 0), (10, 0)]


def test_what_the_last_steps_cannot_carry_is_dropped():
    nine = {"ratio_form": "constant", "lambda_0": 0.9, "kind": "fixed"}
    # the event at step 5 of 6 asks for 162; steps 5 and 6 carry 4 each, the partial step too
    assert amounts(second(10, make(training={"epochs": 2}, first_interval=5, **nine))) == [(5, 8)]
    # first come first served: the event at step 2 fills steps 2 to 6
    assert amounts(second(10, make(training={"epochs": 2}, first_interval=2, **nine))) == [
        (2, 20),
        (4, 0),
        (6, 0),
    ]
    assert amounts(second(10, make(first_interval=1, max_mix=0.0, **nine))) == [(1, 0), (2, 0), (3, 0)]


def test_epoch_amounts_are_capped_too():
    # 22.5 and 22.5 asked for (23 and 22), 4 a step over 2 x 3 steps: 12 + 11 of the first, 1 of the second
    config = make(training={"epochs": 2}, volume="epoch", ratio_form="constant", lambda_0=9 / 13, max_mix=0.5)
    assert amounts(second(10, config)) == [(1, 23), (4, 1)]


# The clock


def test_stage_clock_starts_anew_and_the_first_stage_replays_nothing():
    plans = plan_run(make(kind="fixed", first_interval=4, **QUARTER), [("a", 40), ("b", 40), ("c", 40)])
    assert [amounts(plan) for plan in plans] == [[], [(4, 4), (8, 4)], [(4, 4), (8, 4)]]


def test_global_clock_runs_on_from_the_first_stage_with_a_buffer():
    config = make(kind="fixed", first_interval=0.4, clock="global", **QUARTER)
    # D_1 = 0.4 x 10 steps, also in the longer last stage: 4, 8 | 12, 16, 20 | 24, 28, ... from stage b on
    plans = plan_run(config, [("a", 80), ("b", 40), ("c", 40), ("d", 80)])
    assert [amounts(plan) for plan in plans] == [
        [],
        [(4, 4), (8, 4)],
        [(2, 2), (6, 4), (10, 4)],
        [(4, 4), (8, 4), (12, 4), (16, 4), (20, 4)],
    ]
    assert [plan.interval for plan in plans[1:]] == [4.0, 4.0, 4.0]


def test_a_seeded_buffer_starts_the_global_clock_in_the_first_stage():
    config = make(kind="geometric", first_interval=4, clock="global", **QUARTER)
    plans = plan_run(config, [("a", 40), ("b", 40)], seed_samples=5)
    assert [amounts(plan) for plan in plans] == [[(4, 4)], [(6, 6)]]  # 4 and 4 + 12 of 20 steps


# The unit of time


def test_unit_auto_is_the_expected_wait():
    # R = 10 of 10 steps, N = 40: W = 40
    plan = second(40, make(kind="fixed", first_interval=2, **QUARTER))
    assert plan.buffer_size == 40
    assert plan.time_unit == pytest.approx(40 * 0.11 / math.log(2), rel=1e-14)


def test_unit_auto_counts_after_the_cap_and_falls_back_to_the_steps():
    # one event at step 10 asks for 10 and one step carries 4: W = 40 x 10 / 4
    plan = second(40, make(kind="fixed", first_interval=10, **QUARTER))
    assert plan.time_unit == pytest.approx(100 * 0.11 / math.log(2), rel=1e-14)
    plan = second(40, make(kind="fixed", first_interval=11, **QUARTER))
    assert plan.events == []
    assert plan.time_unit == pytest.approx(10 * 0.11 / math.log(2), rel=1e-14)


def test_unit_auto_of_a_threshold_stands_on_every_step():
    plan = second(40, make(kind="threshold", **QUARTER))
    assert plan.time_unit == pytest.approx(40 * 0.11 / math.log(2), rel=1e-14)


def test_unit_interval_and_number():
    config = make(memory={"time_unit": "interval"}, training={"max_steps": 2000})
    assert second(40, config).time_unit == pytest.approx(15.869645449778597, rel=1e-14)
    assert second(40, make(memory={"time_unit": 3})).time_unit == 3.0


def test_a_stage_without_a_buffer_has_no_unit_and_capacity_bounds_it():
    plans = plan_run(make(memory={"time_unit": 3}, capacity=50), [("a", 40), ("b", 40), ("c", 40)])
    assert [plan.time_unit for plan in plans] == [None, 3.0, 3.0]
    assert [plan.buffer_size for plan in plans] == [0, 40, 50]
    seeded = plan_run(make(memory={"time_unit": 3}), [("a", 40), ("b", 40)], seed_samples=7)
    assert [(plan.time_unit, plan.buffer_size) for plan in seeded] == [(3.0, 7), (3.0, 47)]


# Strategies without replay


@pytest.mark.parametrize("strategy", ["none", "joint"])
def test_none_and_joint_never_replay(strategy):
    config = make(strategy, memory={"time_unit": 3}, kind="every")
    for plan in plan_run(config, [("a", 40), ("b", 10)], seed_samples=9):
        assert (plan.events, plan.time_unit, plan.buffer_size) == ([], None, 0)


def test_joint_is_one_stage():
    plans = plan_run(make("joint"), [("a", 40), ("b", 10)])
    assert [(plan.task, plan.steps, int(plan.new_per_step.sum())) for plan in plans] == [("joint", 13, 50)]


# Threshold

# Unit 1: a sample decays by 0.11 a step, so the mean falls below one half at step 7 of the stage.
HALF_AT_7 = {"kind": "threshold", "memory": {"time_unit": 1}, **QUARTER}


def test_threshold_is_projected_at_median_difficulty():
    plan = second(40, make(first_interval=3, **HALF_AT_7))
    # 28 new samples at step 7, 7 of 40 reviewed leave the mean near 0.4; then 12 more new ones
    assert plan.events == [Event(7, 0.2, 7, True), Event(10, 0.2, 3, True)]


def test_threshold_takes_the_ratio_of_the_global_step():
    config = make(kind="threshold", first_interval=4, memory={"time_unit": 1}, beta_r=0.1)
    assert [event.ratio for event in second(40, config).events] == pytest.approx([0.05 + 0.25 * math.exp(-1.7)])


def test_threshold_fires_at_most_once_in_an_interval():
    assert amounts(second(40, make(first_interval=4, **HALF_AT_7))) == [(7, 7)]
    every = amounts(second(40, make(first_interval=1, **HALF_AT_7)))
    assert every == [(7, 7), (8, 1), (9, 1), (10, 1)]


def test_threshold_stops_when_the_memory_is_strong():
    # capacity 4: the event at step 7 reviews the whole buffer
    assert amounts(second(40, make(first_interval=1, capacity=4, **HALF_AT_7))) == [(7, 7)]


def test_threshold_equal_to_theta_does_not_fire():
    # time unit `interval`: the mean is exactly theta D_1 = 3 steps into the stage
    plan = second(40, make(kind="threshold", memory={"time_unit": "interval"}, first_interval=3, **QUARTER))
    assert amounts(plan)[0] == (4, 4)


def test_threshold_volume_batch_and_cap():
    plan = second(40, make(first_interval=3, volume="batch", **HALF_AT_7))
    assert amounts(plan) == [(7, 1), (10, 1)]
    plan = second(40, make(first_interval=3, **{**HALF_AT_7, "lambda_0": 0.9}))
    assert amounts(plan) == [(7, 16), (10, 0)]  # four steps are left at step 7


def test_threshold_on_the_global_clock_waits_across_stages():
    stages = [("a", 40), ("b", 40), ("c", 40)]
    settings = {**HALF_AT_7, "first_interval": 9, "memory": {"time_unit": 1, "theta": 0.9}}
    # theta 0.9 is crossed at the first step: local 1 and 10 in each stage, or 9 steps after the last event
    assert [amounts(plan) for plan in plan_run(make(**settings), stages)] == [
        [],
        [(1, 1), (10, 4)],
        [(1, 1), (10, 4)],
    ]
    on_one_clock = plan_run(make(clock="global", **settings), stages)
    assert [[step for step, _ in amounts(plan)] for plan in on_one_clock] == [[], [1, 10], [9]]


@pytest.mark.parametrize("priority", ["retention", "risk", "gain", "confidence", "uniform"])
def test_threshold_projection_works_with_every_priority(priority):
    config = make(kind="threshold", first_interval=3, memory={"time_unit": 1, "priority": priority}, **QUARTER)
    assert amounts(second(40, config))[0] == (7, 7)


# JSON


def test_plan_as_json():
    config = make(kind="fixed", first_interval=5, **QUARTER)
    plan = plan_to_dict(plan_run(config, [("a", 10), ("b", 40)]))
    assert json.loads(json.dumps(plan)) == plan
    assert plan["stages"] == [
        {"task": "a", "steps": 3, "time_unit": None, "events": []},
        {
            "task": "b",
            "steps": 10,
            # N = 10, R = 5 + 4: the second event asks for 5 on the last step
            "time_unit": pytest.approx(10 * 10 / 9 * 0.11 / math.log(2)),
            "events": [{"step": 5, "ratio": 0.2, "replayed": 5}, {"step": 10, "ratio": 0.2, "replayed": 4}],
        },
    ]
    assert plan["totals"] == {"steps": 13, "new_samples": 50, "events": 2, "replayed": 9}


def test_projected_events_say_so():
    plan = plan_to_dict([second(40, make(first_interval=4, **HALF_AT_7))])
    assert plan["stages"][0]["events"] == [{"step": 7, "ratio": 0.2, "replayed": 7, "projected": True}]


def test_tokens_where_they_are_known():
    config = make(kind="fixed", first_interval=5, **QUARTER)
    plans = plan_run(config, [("a", 10), ("b", 40)])
    totals = plan_to_dict(plans, {"a": 100.0, "b": 7.0})["totals"]
    assert (totals["tokens"], totals["replayed_tokens"]) == (10 * 100 + 40 * 7 + 9 * 100, 900)
    assert "tokens" not in plan_to_dict(plans, {"a": 100.0})["totals"]


def test_tokens_of_a_seed():
    plans = plan_run(make(kind="fixed", first_interval=5, **QUARTER), [("a", 40)], seed_samples=3)
    assert "tokens" not in plan_to_dict(plans, {"a": 10.0})["totals"]
    assert plan_to_dict(plans, {"a": 10.0, "seed": 50.0})["totals"]["replayed_tokens"] == 9 * 50


# The replayer


def memory_of(ids: list[str], config: Config, step: int, unit: float | None) -> MemoryState:
    memory = MemoryState(config.memory, config.seed)
    memory.add(ids, step)
    memory.set_unit(unit or 1.0, step)
    return memory


def replay(config: Config, plan: StagePlan, ids: list[str], first_step: int) -> tuple[Replayer, list[list[str]]]:
    """Run one stage as the trainer would, with a loss of its own for each id."""
    memory = memory_of(ids, config, first_step, plan.time_unit)
    replayer = Replayer(plan, config, 2, first_step, memory)
    mixed = []
    for step in range(1, plan.steps + 1):
        mixed.append(replayer.draw(step))
        reviewed = list(dict.fromkeys(mixed[-1]))
        memory.review(reviewed, [len(one) % 3 + 0.5 for one in reviewed], first_step + step)
    return replayer, mixed


def test_draws_come_at_their_step_from_memory_at_the_global_step():
    config = make(kind="fixed", first_interval=5, **QUARTER)
    plan, ids = second(40, config), [f"a/{row}" for row in range(40)]
    memory = memory_of(ids, config, 10, plan.time_unit)
    expected = memory.draw(5, 15, stage=2, event=1, stale_after=100.0)
    replayer, mixed = replay(config, plan, ids, 10)
    assert mixed[:4] == [[]] * 4
    assert mixed[4] + mixed[5] == expected
    assert (len(mixed[4]), len(mixed[5])) == (4, 1)
    assert replayer.drawn[0] == expected


def test_events_draw_anew():
    replayer, _ = replay(make(kind="every", **QUARTER), second(40, make(kind="every", **QUARTER)), ["x", "y", "z"], 10)
    assert len({tuple(ids) for ids in replayer.drawn}) > 1


def test_stale_samples_come_first():
    memory = {"staleness_cap": 0.5, "time_unit": 1e6}
    config = make(kind="fixed", first_interval=9, memory=memory, training={"epochs": 2}, **QUARTER)
    plan, ids = second(40, config), [f"a/{row}" for row in range(40)]
    memory = memory_of(ids, config, 10, plan.time_unit)
    memory.review(ids[3:], [1.0] * 37, 15)  # half an epoch is 5 steps: at 19 only the first three are stale
    replayer = Replayer(plan, config, 2, 10, memory)
    drawn = [replayer.draw(step) for step in range(1, 11)]
    assert drawn[8][:3] == ids[:3]


def test_an_epochs_samples_fall_due_step_by_step():
    config = make(training={"epochs": 2}, volume="epoch", **QUARTER)
    _, mixed = replay(config, second(10, config), [f"a/{row}" for row in range(40)], 10)
    assert [len(ids) for ids in mixed] == [1, 1, 1, 1, 0, 1]


def test_pending_counts_what_waits():
    config = make(kind="fixed", first_interval=5, **QUARTER)
    plan = second(40, config)
    memory = memory_of([f"a/{row}" for row in range(40)], config, 10, plan.time_unit)
    replayer = Replayer(plan, config, 2, 10, memory)
    pending = []
    for step in range(1, 8):
        replayer.draw(step)
        pending.append(replayer.pending)
    assert pending == [0, 0, 0, 0, 1, 0, 0]


def test_a_draw_larger_than_the_buffer_takes_whole_passes():
    config = make(kind="fixed", first_interval=5, **QUARTER)
    replayer, _ = replay(config, second(40, config), ["x", "y"], 10)
    assert sorted(Counter(replayer.drawn[0]).values()) == [2, 3]


def test_threshold_online_follows_the_losses():
    config = make(first_interval=3, **HALF_AT_7)
    plan, ids = second(40, config), [f"a/{row}" for row in range(40)]
    memory = memory_of(ids, config, 10, 1.0)
    memory.observe(ids, [float(row >= 10) for row in range(40)])
    memory.refresh(10)  # 30 hard samples decay by 0.2087 a step, 10 easy ones by 0.0113
    replayer = Replayer(plan, config, 2, 10, memory)
    for step in range(1, 8):
        replayer.draw(step)
    # 0.75 exp(-0.2087 k) + 0.25 exp(-0.0113 k) is 0.5004 at k = 5 and 0.448 at 6
    assert replayer.events == [Event(6, 0.2, 6)]


def test_a_plan_without_a_buffer_draws_nothing():
    config = make(first_interval=3, **HALF_AT_7)
    first = plan_run(config, [("a", 40), ("b", 40)])[0]
    replayer = Replayer(first, config, 1, 0, MemoryState(config.memory))
    assert [replayer.draw(step) for step in range(1, 11)] == [[]] * 10


configs = st.builds(
    make,
    memory=st.fixed_dictionaries({"priority": st.sampled_from(["retention", "uniform", "gain"])}),
    training=st.fixed_dictionaries(
        {
            "batch_size": st.integers(1, 9),
            "epochs": st.integers(1, 3),
            "max_steps": st.none() | st.integers(1, 40),
        }
    ),
    kind=st.sampled_from(["expanding", "fixed", "geometric", "explicit", "every", "threshold"]),
    first_interval=st.integers(1, 12) | st.floats(0.01, 0.99),
    lambda_0=st.floats(0, 0.9),
    lambda_min=st.floats(0, 0.9),
    beta_r=st.sampled_from([0.0, 1e-5, 0.1]),
    ratio_form=st.sampled_from(["interpolated", "additive", "constant"]),
    volume=st.sampled_from(["proportional", "batch", "epoch"]),
    max_mix=st.floats(0, 0.9),
    clock=st.sampled_from(["stage", "global"]),
    capacity=st.integers(1, 60),
)


@settings(max_examples=80, deadline=None)
@given(configs, st.lists(st.integers(1, 60), min_size=2, max_size=4))
def test_the_plan_fits_its_steps_and_the_replayer_delivers_it(config, sizes):
    plans = plan_run(config, [(f"t{number}", size) for number, size in enumerate(sizes)])
    cap = step_cap(config.training.batch_size, config.schedule.max_mix)
    first_step = 0
    for plan in plans:
        total = sum(event.replayed for event in plan.events)
        starts = [event.step for event in plan.events]
        assert starts == sorted(set(starts))
        assert total <= cap * (plan.steps - starts[0] + 1 if starts else 0)
        ids = [f"t/{row}" for row in range(plan.buffer_size)]
        replayer, mixed = replay(config, plan, ids, first_step)
        assert max(map(len, mixed)) <= cap
        assert replayer.pending == 0
        assert [one for step in mixed for one in step] == [one for event in replayer.drawn for one in event]
        assert sum(map(len, mixed)) == sum(event.replayed for event in replayer.events)
        if config.schedule.kind != "threshold" or config.schedule.volume == "epoch":
            assert replayer.events == plan.events
        if plan.buffer_size:
            _, shuffled = replay(config, plan, ids[::-1], first_step)
            assert shuffled == mixed
        first_step += plan.steps


def test_steps_without_replay_keep_their_new_samples():
    plan = second(10, make())
    assert plan.new_per_step.dtype == np.int64
    assert plan.epoch_steps == 3
