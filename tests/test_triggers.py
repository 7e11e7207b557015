"""Triggers against naive loops over the same losses and scores, and what a run makes of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_run import journal, results, run_tiny
from test_scheduler import make, memory_of, second
from tiny import write_tasks

import retain.checks
from retain.evaluate import TaskScores, evaluate_task
from retain.scheduler import Replayer, plan_run, plan_to_dict
from retain.sections import TriggerConfig
from retain.triggers import Accuracy, Average, LossAverages, LossVariance, ProbeLoss

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
