"""Synthetic samples under a curriculum: what is asked for, what each step gets, and what the plan says of it."""

from collections import Counter

import numpy as np
import pytest

from retain.buffer import Buffer
from retain.checks import Checks
from retain.config import make_config
from retain.rehearsal import CurriculumReplayer, pool, samples_asked, stage_curriculum
from retain.scheduler import plan_run
from retain.trainer import Stage
from retain.types import Sample, Task

STAGES = [("a", 40), ("b", 40), ("c", 30)]


def config(**values):
    return make_config({"strategy": "ssr", "synthesis": {"samples": 10}, **values}, "test", need_tasks=False)


def filled(settings, tasks, count=10):
    buffer = Buffer(settings.buffer, settings.memory, settings.seed)
    for task in tasks:
        samples = [Sample(f"{task}/{k}", task, "p", "a", confidence=(k + 1) / count) for k in range(count)]
        buffer.admit(samples, 0, {}, 1)
    return buffer


def replayer(settings, stage, tasks, due=()):
    plan = plan_run(settings, STAGES)[stage - 1]
    buffer = filled(settings, tasks)
    curriculum = stage_curriculum(settings, plan, stage - 1, buffer.tasks)
    return plan, CurriculumReplayer(plan, settings, stage, buffer, curriculum, due)


def test_an_adaptive_curriculum_looks_at_synthetic_samples_alone(monkeypatch):
    """The real ones that `hybrid` keeps are no synthetic loss, and the general data of a seed are."""
    settings = config(storage={"mode": "hybrid"}, curriculum={"kind": "adaptive"}, buffer={"seed": "synthesize"})
    buffer = filled(settings, ["a"], count=8)
    for task in ("a", "seed"):
        buffer.admit([Sample(f"{task}/real/{k}", task, "p", "a") for k in range(8)], 0, {}, 1)
    plan = plan_run(settings, STAGES)[1]
    dealer = CurriculumReplayer(plan, settings, 2, buffer, stage_curriculum(settings, plan, 1, buffer.tasks))
    seen = []
    monkeypatch.setattr(Checks, "_loss", lambda self, samples, cost: seen.append([s.id for s in samples]) or 1.0)
    Checks(None, settings, [], [], Stage(2, Task("b"), plan, 0), buffer, dealer, lambda kind, **fields: None).begin()
    assert sorted(seen[1]) == sorted([*(f"a/{k}" for k in range(8)), *(f"seed/real/{k}" for k in range(8))])


@pytest.mark.parametrize(
    ("samples", "size", "asked"),
    [(7, 1000, 7), (0.1, 320, 32), (0.001, 10, 1), ("adaptive", 320, 100), ("adaptive", 5000, 500)],
)
def test_samples_asked(samples, size, asked):
    assert samples_asked(samples, size) == asked


def test_a_share_is_of_the_tasks_own_samples_and_on_demand_of_the_new_tasks():
    past = [("a", 100), ("b", 50), ("c", 10)]
    assert pool(config(synthesis={"samples": 0.2}), past, 31) == {"a": 20, "b": 10, "c": 2}
    lamol = config(strategy="lamol", synthesis={"samples": 0.2})
    assert sum(pool(lamol, past, 35).values()) == 7
    assert pool(lamol, [], 35) == {}


@pytest.mark.parametrize(
    "kind", ["constant", "linear", "cosine", "cosine_decay", "exponential", "growing", "difficulty"]
)
def test_the_plan_says_what_is_drawn(kind):
    settings = config(curriculum={"kind": kind})
    plan, dealer = replayer(settings, 3, ["a", "b"])
    drawn = [dealer.draw(step) for step in range(1, plan.steps + 1)]
    assert [event.replayed for event in plan.events] == [len(ids) for ids in drawn]
    assert [event.ratio for event in plan.events] == [event.ratio for event in dealer.events]
    assert abs(sum(one.startswith("a/") for ids in drawn for one in ids) * 2 - sum(map(len, drawn))) <= 1  # even


def test_the_first_stage_has_nothing_to_rehearse():
    plan, dealer = replayer(config(), 1, [])
    assert plan.events == [] and plan.time_unit is None
    assert [dealer.draw(step) for step in range(1, plan.steps + 1)] == [[]] * plan.steps
    assert dealer.events == []


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_concatenated_pool_passes_whole_once_an_epoch(epochs):
    settings = config(strategy="ssr-paper", training={"epochs": epochs, "batch_size": 8}, synthesis={"samples": 10})
    plan, dealer = replayer(settings, 3, ["a", "b"])
    seen = Counter(one for step in range(1, plan.steps + 1) for one in dealer.draw(step))
    assert len(seen) == 20 and set(seen.values()) == {epochs}
    assert sum(event.replayed for event in plan.events) == 20 * epochs


def test_the_real_samples_of_a_refresh_come_once_each_and_spread():
    settings = config(curriculum={"kind": "constant", "initial": 0.0})
    due = [f"real/{k}" for k in range(7)]
    plan, dealer = replayer(settings, 2, ["a"], due)
    drawn = [dealer.draw(step) for step in range(1, plan.steps + 1)]
    assert sorted(one for ids in drawn for one in ids) == due
    assert max(map(len, drawn)) - min(map(len, drawn)) <= 1


def test_draws_by_confidence_do_not_depend_on_storage_order():
    settings = config()
    plan, one = replayer(settings, 2, ["a"])
    _, other = replayer(settings, 2, ["a"])
    other._pools["a"] = dict(reversed(other._pools["a"].items()))
    assert [one.draw(step) for step in range(1, plan.steps + 1)] == [
        other.draw(step) for step in range(1, plan.steps + 1)
    ]


def test_weights_follow_confidence():
    _, dealer = replayer(config(), 2, ["a"])
    samples = [Sample("x", "a", "p", "a", confidence=c) for c in (0.2, 0.6)]
    np.testing.assert_allclose(dealer.weights(2, samples), [1.0, 1.0, 0.5, 1.5])


def test_a_memory_schedule_runs_over_the_number_asked_for():
    stored, synthetic = (make_config({"strategy": s, "synthesis": {"samples": 10}}, "t", need_tasks=False)
                         for s in ("mssr", "mssr + ssr"))  # fmt: skip
    assert [plan.buffer_size for plan in plan_run(stored, STAGES)] == [0, 40, 80]
    plans = plan_run(synthetic, STAGES)
    assert [plan.buffer_size for plan in plans] == [0, 10, 20]
    assert [len(plan.events) for plan in plans] == [len(plan.events) for plan in plan_run(stored, STAGES)]
