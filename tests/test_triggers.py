"""Triggers against naive loops over the same losses and scores, and what a run makes of them."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_run import journal, results, run_tiny
from test_scheduler import make, memory_of, second
from test_storage import run_secret, write_secret_tasks
from tiny import write_tasks

import retain.checks
import retain.stages
from retain.buffer import Buffer
from retain.checks import Checks
from retain.config import make_config
from retain.evaluate import TaskScores, evaluate_task
from retain.plans import StagePlan
from retain.replayer import Replayer
from retain.scheduler import plan_run, plan_to_dict
from retain.schedules import event_steps
from retain.sections import BufferConfig, MemoryConfig, ScheduleConfig, TriggerConfig
from retain.trainer import Stage
from retain.triggers import Accuracy, Average, LossAverages, LossVariance, ProbeLoss, trigger_of
from retain.types import InputError, Sample, Task

LOSSES = st.lists(st.floats(0, 100), min_size=1, max_size=60)


def weighted(values, beta):
    """Mean, variance and Σ w² with weights ∝ βᵏ, from their definition."""
    weights = np.array([beta ** (len(values) - 1 - k) for k in range(len(values))])
    weights /= weights.sum()
    mean = weights @ np.array(values)
    return mean, weights @ (np.array(values) - mean) ** 2, (weights**2).sum()


def above(losses, z=2.0):
    """Whether the short average of the losses lies z of its standard deviations above the long one."""
    short, _, spread = weighted(losses, 0.9)
    long, variance, _ = weighted(losses, 0.99)
    return bool(short - long > z * math.sqrt(variance * spread))


def fired(trigger, losses):
    """The steps, from 1, after whose loss the trigger is due."""
    steps = []
    for step, loss in enumerate(losses, start=1):
        trigger.saw(loss, None)
        steps += [step] * trigger.due(step + 1)
    return steps


# ---- by loss ----------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(LOSSES, st.sampled_from([0.0, 0.5, 0.9, 0.99]))
def test_an_average_is_the_weighted_mean_of_all_values(values, beta):
    average = Average(beta)
    for value in values:
        average.add(value)
    mean, variance, spread = weighted(values, beta)
    assert average.mean == pytest.approx(mean, rel=1e-9, abs=1e-9)
    assert average.variance == pytest.approx(variance, rel=1e-7, abs=1e-7)
    assert average.spread == pytest.approx(spread, rel=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_averages_fire_where_a_naive_loop_over_the_losses_does(seed):
    rng = np.random.default_rng(seed)
    next_task = 3.0 * np.exp(-np.arange(60) / 10)  # falls again
    losses = (np.concatenate([np.zeros(60), next_task]) + rng.gamma(2.0, 0.1, 120)).tolist()
    expected = [step for step in range(1, len(losses) + 1) if above(losses[:step])]
    assert fired(LossAverages(TriggerConfig(), {}), losses) == expected
    assert {61, 62, 63, 64, 65} <= set(expected), "a new task is noticed"


def test_constant_and_falling_losses_fire_nothing():
    assert fired(LossAverages(TriggerConfig(), {}), [1.5] * 80) == []
    assert fired(LossAverages(TriggerConfig(), {}), [3.0 - 0.02 * k for k in range(80)]) == []
    assert fired(LossVariance(TriggerConfig(window=5), {}), [1.5] * 80) == []


def test_steps_without_new_samples_are_passed_over():
    trigger = LossAverages(TriggerConfig(), {})
    assert fired(trigger, [None, None]) == [] and trigger.short.count == 0


@pytest.mark.parametrize(("window", "growth"), [(20, 2.0), (3, 1.5)])
def test_variance_fires_where_a_naive_loop_over_the_losses_does(window, growth):
    rng = np.random.default_rng(1)
    losses = (1.0 + rng.standard_normal(100) * np.where(np.arange(100) < 60, 0.1, 0.3)).tolist()
    expected = [
        step
        for step in range(2 * window, 101)
        if np.var(losses[step - window : step]) > growth * np.var(losses[step - 2 * window : step - window])
    ]
    assert fired(LossVariance(TriggerConfig(window=window, growth=growth), {}), losses) == expected != []


def test_a_probe_is_compared_with_its_value_at_the_last_event():
    trigger = ProbeLoss(TriggerConfig(rise=0.1, eval_every=2), steps=20)
    assert [step for step in range(21) if trigger.check_due(step)] == list(range(0, 20, 2))
    due = []
    for loss in [1.0, 1.1, 1.11, 1.2, 1.23, 1.0, 1.36]:
        trigger.check(0, loss)
        due.append((trigger.due(1), trigger.due(1)))
    # above 1.1; then above 1.11 * 1.1 = 1.221; then above 1.23 * 1.1 = 1.353
    assert due == [(call, False) for call in (False, False, True, False, True, False, True)]


def test_a_look_that_came_too_early_for_an_event_counts_until_the_next():
    trigger = ProbeLoss(TriggerConfig(), steps=20)
    for loss in (1.0, 1.2):
        trigger.check(0, loss)
    trigger.check(0, 1.05)
    assert not trigger.due(3)


# ---- by accuracy ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "answers", "called"),
    [
        ([0.9, 0.88], 1000, False),  # not more than 0.02 below
        ([0.9, 0.87], 1000, True),
        ([0.9, 0.87], 50, False),  # one answer and a half
        ([0.9, 0.86], 50, True),
        ([0.9, 0.95, 0.92], 1000, True),  # below its best, not its first
        ([0.9, 0.8, 0.9], 1000, False),
    ],
)
def test_a_score_far_enough_below_its_best_calls(scores, answers, called):
    trigger = Accuracy(TriggerConfig(), 20, {})
    for score in scores:
        trigger.check(0, {"a": (score, answers), "b": (0.5, answers)})
    assert trigger.due(1) == called and not trigger.due(2)


def test_the_best_score_outlasts_the_stage():
    first = Accuracy(TriggerConfig(), 20, {})
    first.check(0, {"a": (0.9, 100)})
    assert first.state() == {"best": {"a": 0.9}}
    second = Accuracy(TriggerConfig(), 20, first.state()["best"])
    second.check(0, {"a": (0.5, 100)})
    assert second.due(1)


# ---- in the replayer --------------------------------------------------------------------------------------


def test_events_answer_for_what_was_trained_since_the_last_one():
    config = make("loss", kind="loss", first_interval=3, ratio_form="constant", lambda_0=0.2)
    plan, ids = second(40, config), [f"a/{row}" for row in range(40)]
    replayer = Replayer(plan, config, 2, 10, memory_of(ids, config, 10, plan.time_unit))
    mixed = []
    losses, before = [9.0, 1.0, 9.0, 9.0, 9.0, 9.0, 0.0, 9.0, 9.0, 9.0], [1.0] * 40
    for loss in before:
        replayer.trigger.saw(loss, None)
    for step, loss in enumerate(losses, start=1):
        mixed.append(len(replayer.draw(step)))
        replayer.trigger.saw(loss, None)
    naive, last, answered = [], None, 0
    for step in range(1, 11):
        if above([*before, *losses[: step - 1]]) and (last is None or step - last >= 3):
            naive, last, answered = [*naive, (step, step - answered)], step, step  # a quarter of 4 new ones a step
    assert [(event.step, event.replayed) for event in replayer.events] == naive != []
    assert sum(mixed) == sum(amount for _, amount in naive)


@pytest.mark.parametrize(
    ("trigger", "kind", "steps"),
    [
        ({}, "loss", [3, 6, 9]),
        ({"signal": "probe", "eval_every": 2}, "loss", [3, 7]),
        ({"eval_every": 2}, "accuracy", [1, 5, 9]),
        ({"eval_every": 4}, "accuracy", [1, 5, 9]),
    ],
)
def test_a_plan_projects_the_most_events_there_may_be(trigger, kind, steps):
    config = make(kind=kind, first_interval=3).model_copy(update={"trigger": TriggerConfig(**trigger)})
    plans = plan_run(config, [("a", 40), ("b", 40)])
    assert [event.step for event in plans[1].events] == steps and plans[0].events == []
    assert all(event["projected"] is True for event in plan_to_dict(plans)["stages"][1]["events"])
    every = plan_run(make(kind="every"), [("a", 40), ("b", 40)])[1]
    assert plans[1].time_unit == every.time_unit, "as if every step replayed its share"


def test_epochs_leave_nothing_to_a_trigger():
    config = make(kind="loss", volume="epoch")
    assert [event.projected for event in second(40, config).events] == [False]


# ---- in a run ---------------------------------------------------------------------------------------------


def test_a_run_fires_where_a_loop_over_its_journal_does(tmp_path):
    out = run_tiny(tmp_path, strategy="loss", trigger={"z": 0.1}, schedule={"first_interval": 1}, **three_epochs())
    losses = [line["new_loss"] for line in journal(out, "step")]
    expected = [step for step in range(19, len(losses) + 1) if above(losses[: step - 1], 0.1)]
    assert [line["global_step"] for line in journal(out, "event")] == expected != []
    assert results(out)["costs"].get("probe_tokens", 0) == 0


def test_a_probe_is_counted_and_looked_at_when_it_should_be(tmp_path):
    trigger = {"signal": "probe", "probe": 8, "eval_every": 2, "rise": 0.0}
    out = run_tiny(tmp_path, strategy="loss", trigger=trigger)
    looks = journal(out, "probe")
    assert [(look["stage"], look["step"]) for look in looks] == [(s, k) for s in (2, 3) for k in (0, 2, 4)]
    assert results(out)["costs"]["probe_tokens"] > 0
    for stage in (2, 3):
        values = {look["step"]: look["loss"] for look in looks if look["stage"] == stage}
        reference, expected = values[0], []
        for step in (2, 4):
            if values[step] > reference:
                reference, expected = values[step], [*expected, step + 1]
        assert [line["step"] for line in journal(out, "event") if line["stage"] == stage] == expected


def test_a_run_replays_where_a_past_score_has_fallen(tmp_path, monkeypatch):
    scores = {"color": [0.9, 0.9, 0.5, 0.9, 0.85, 0.85], "size": [1.0, 1.0, 1.0]}
    asked = []

    def score(lm, task, config):
        assert task.test == task.validation and task.test[0].task == task.name
        asked.append(task.name)
        return TaskScores(scores[task.name].pop(0), None, None, 1.0, "exact_match", 100, 0, 0.5, 7, 3), []

    monkeypatch.setattr(retain.checks, "evaluate_task", score)
    tasks = [{**entry, "validation": entry["test"]} for entry in write_tasks(tmp_path)]
    out = run_tiny(tmp_path, strategy="accuracy", tasks=tasks, trigger={"eval_every": 2})
    assert asked == ["color"] * 3 + ["color", "size"] * 3
    # stage 2 looks after steps 0, 2, 4; stage 3 too, and there 0.85 is below the best of stage 2
    assert [(line["stage"], line["step"]) for line in journal(out, "event")] == [(2, 5), (3, 3), (3, 5)]
    counted = sum(line["eval_tokens"] for line in journal(out, "evaluation"))
    assert results(out)["costs"]["eval_tokens"] == counted + 9 * 7


def test_accuracy_splits_off_validation_samples_and_scores_them(tmp_path):
    out = run_tiny(tmp_path, strategy="accuracy", trigger={"eval_every": 2})
    assert {line["n"] for line in journal(out, "past")} == {16}
    assert evaluate_task is retain.checks.evaluate_task


def three_epochs():
    return {"training": {"learning_rate": 1.0e-2, "batch_size": 4, "max_length": 128, "epochs": 3}}


# ---- a clock of updates -----------------------------------------------------------------------------------


def clocked(norms, size=None, kind="expanding", interval=1.0):
    """The steps at which a clock of updates fires, given the norm of each step's update."""
    config = make(clock="updates", kind=kind)
    plan = StagePlan("b", len(norms), np.ones(len(norms)), None, interval=interval)
    trigger = trigger_of(config.schedule, config.trigger, plan, {"update": size})
    found = []
    for step, norm in enumerate(norms, start=1):
        found += [step] * trigger.due(step)
        trigger.saw(1.0, norm)
    return found


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["expanding", "fixed", "geometric", "explicit"]),
    st.sampled_from([1.0, 1.3, 2.5, 3.7, 8.0]),
    st.none() | st.floats(1e-6, 1e3),
)
def test_equal_updates_give_the_events_of_the_step_clock(kind, interval, size):
    assert clocked([size or 0.3] * 60, size, kind, interval) == event_steps(ScheduleConfig(kind=kind), interval, 60)


@pytest.mark.parametrize("seed", range(4))
def test_unequal_updates_fire_where_a_naive_loop_does(seed):
    norms = np.random.default_rng(seed).gamma(2.0, 0.5, 80)
    times, interval, time = [], 3.0, 0.0
    for k in range(1, 40):
        time += interval
        times.append(time)
        interval *= 1 + 0.5 * math.exp(-0.05 * k)
    expected = []
    for step in range(1, 81):
        now = 1 + norms[: step - 1].sum() / 0.8
        expected += [step] if any(now - norms[step - 2] / 0.8 <= t - 0.5 < now for t in times) and step > 1 else []
    assert clocked(norms.tolist(), 0.8, interval=3.0) == expected != []


def test_faster_learning_brings_replay_forward():
    slow, fast = (clocked([norm] * 40, 1.0, interval=4.0) for norm in (1.0, 2.0))
    assert len(fast) > len(slow) and fast[0] < slow[0]


def test_a_clock_survives_updates_of_any_size():
    for norm in (0.0, math.inf, math.nan, 1e300):
        assert len(clocked([norm] * 5, 1.0, "geometric", 2.0)) <= 5
    assert clocked([0.0] * 9, 0.0, "fixed", 3.0) == [3, 6, 9]


def test_a_plan_of_updates_is_that_of_steps_and_projected():
    steps, updates = (
        second(400, make("forever", kind="expanding", clock=clock, ratio_form="constant"))
        for clock in ("stage", "updates")
    )
    assert [event._replace(projected=True) for event in steps.events] == updates.events != []


@pytest.mark.parametrize("kind", ["every", "threshold"])
def test_other_kinds_keep_their_own_clock(kind):
    config = make(kind=kind, first_interval=2, clock="updates", memory={"time_unit": 5.0})
    plain = make(kind=kind, first_interval=2, memory={"time_unit": 5.0})
    assert second(40, config).events == second(40, plain).events


def test_a_run_follows_the_norms_of_its_saved_adapters(tmp_path, monkeypatch):
    adapters = {}
    real = retain.stages.train_stage

    def keep_every_step(lm, stage, strategy, buffer, replayer, accelerator, config, watch):
        adapters[stage.number] = [lm.adapter_weights()]
        after = watch.after_step

        def keep(step, new_loss, update_norm):
            adapters[stage.number].append(lm.adapter_weights())
            return after(step, new_loss, update_norm)

        return real(lm, stage, strategy, buffer, replayer, accelerator, config, replace(watch, after_step=keep))

    monkeypatch.setattr(retain.stages, "train_stage", keep_every_step)
    out = run_tiny(tmp_path, strategy="forever", schedule={"first_interval": 2}, **three_epochs())
    norms = {
        stage: [
            math.sqrt(sum(float(((new[key] - old[key]) ** 2).sum()) for key in new)) for old, new in pairwise(weights)
        ]
        for stage, weights in adapters.items()
    }
    size = sum(norms[1]) / len(norms[1])
    for stage in (1, 2, 3):
        logged = [line["update_norm"] for line in journal(out, "step") if line["stage"] == stage]
        assert logged == pytest.approx(norms[stage], rel=1e-4)
        events = [line["step"] for line in journal(out, "event") if line["stage"] == stage]
        assert events == (clocked(norms[stage], size, interval=2.0) if stage > 1 else [])
    plan = next(line for line in journal(out, "plan") if line["stage"] == 3)
    assert all(event["projected"] for event in plan["events"])
    planned = [event["step"] for event in plan["events"]]
    assert planned != [line["step"] for line in journal(out, "event") if line["stage"] == 3], "the clock matters"


# ---- with other parts -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "strategy",
    [
        "loss + ssr",
        "forever + ewc + ssr",
        ["mir", "ssr", {"name": "l2", "weight": 3.0}],
        ["accuracy", "ssr"],
    ],
)
def test_synthetic_samples_are_replayed_alike(strategy, tmp_path):
    tasks = [{**entry, "validation": entry["test"]} for entry in write_secret_tasks(tmp_path)]
    trigger = {"signal": "probe", "rise": 0.0, "eval_every": 1}
    out = run_secret(tmp_path, strategy=strategy, tasks=tasks, trigger=trigger)
    found, looks = results(out), journal(out, "probe") + journal(out, "past")
    assert found["finished"] and found["strategy"].startswith("ssr")
    if "loss" in strategy or "accuracy" in strategy:  # what a tiny model loses is not sure to call
        assert looks and all(line["stage"] > 1 for line in looks)
    else:
        assert found["costs"]["replayed_samples"] > 0 and not looks


def test_accuracy_keeps_validation_data_and_says_so():
    values = {"strategy": "accuracy + ssr", "keep_data": False}
    with pytest.raises(InputError, match=r"keep_data: false, but strategy .* scores the validation data of past tasks"):
        make_config(values, "test", need_tasks=False)
    make_config({**values, "strategy": "loss + ssr"}, "test", need_tasks=False)


def test_a_task_without_validation_samples_is_named():
    stage = Stage(2, Task("b"), second(40, make("accuracy", kind="accuracy")), 10)
    buffer = Buffer(BufferConfig(), MemoryConfig())
    buffer.admit([Sample("a/1", "a", "", "")], 10, {}, 1)
    replayer = Replayer(stage.plan, make("accuracy", kind="accuracy"), 2, 10, buffer.memory)
    with pytest.raises(InputError, match=r"task 'a': has no validation samples, which schedule.kind: accuracy scores"):
        Checks(
            None, make("accuracy", kind="accuracy"), [], [Task("a")], stage, buffer, replayer, lambda *a, **k: None
        ).begin()


def test_averages_in_order():
    with pytest.raises(InputError, match=r"trigger.long: 0.9 is not above short \(0.9\)"):
        make_config({"trigger": {"long": 0.9}}, "test", need_tasks=False)
