"""Every replaying strategy replays the same number of samples under `schedule.budget`."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from retain.config import make_config
from retain.curriculum import Curriculum
from retain.memory.state import MemoryState
from retain.replayer import Replayer
from retain.scheduler import plan_run
from retain.schedules import brought_forward, carry, matched_amounts
from retain.synthesis_sections import CurriculumConfig

STAGES = [("a", 160), ("b", 160), ("c", 90)]


def plans(strategy, stages=STAGES, **schedule):
    values = {
        "tasks": [],
        "strategy": strategy,
        "schedule": schedule,
        "synthesis": {"samples": 40},
        "training": {"epochs": 2, "batch_size": 8},
    }
    config = make_config(values, "test", need_tasks=False)
    return config, plan_run(config, stages)


def replayed(plan):
    return sum(event.replayed for event in plan.events)


@pytest.mark.parametrize(
    "strategy", ["fixed", "er", "mssr", "mssr-sch", "mssr-spl", "der++", "surprise", "ssr", "ssr + ewc", "ssr + mssr"]
)
def test_every_strategy_replays_the_same(strategy):
    _, found = plans(strategy, budget=0.1)
    assert [replayed(plan) for plan in found] == [0, 32, 18]


@pytest.mark.parametrize(
    "schedule", [{"kind": "geometric"}, {"kind": "explicit"}, {"volume": "epoch"}, {"volume": "batch"}]
)
def test_every_schedule_replays_the_same(schedule):
    _, found = plans("mssr", budget=0.5, **schedule)
    assert [replayed(plan) for plan in found] == [0, 160, 90]


def test_events_keep_their_places():
    _, free = plans("mssr")
    _, held = plans("mssr", budget=0.1)
    assert [[event.step for event in plan.events] for plan in free] == [
        [event.step for event in plan.events] for plan in held
    ]


def test_without_a_buffer_or_replay_nothing_is_replayed():
    assert [replayed(plan) for plan in plans("none", budget=0.1)[1]] == [0, 0, 0]
    assert [replayed(plan) for plan in plans("ewc", budget=0.1)[1]] == [0, 0, 0]


def test_a_constant_share_is_spread_over_the_whole_stage():
    _, found = plans("er", budget=0.1)
    steps = [event.step for event in found[1].events if event.replayed]
    assert len(steps) == 32 and steps[0] <= 2 and steps[-1] >= 39
    assert max(np.diff(steps)) <= 2


def test_a_threshold_stops_at_the_budget():
    config, found = plans("mssr", kind="threshold", budget=0.05)
    memory = MemoryState(config.memory)
    memory.add([f"a/{k}" for k in range(50)], 0)
    memory.set_unit(0.01, 0)  # forgets all at once, so it would fire at every step
    replayer = Replayer(found[1], config, 2, 40, memory)
    drawn = [one for step in range(1, found[1].steps + 1) for one in replayer.draw(step)]
    assert len(drawn) == 16


def test_an_adaptive_curriculum_stops_at_the_budget():
    curriculum = Curriculum(CurriculumConfig(kind="adaptive"), 40, 8, 1, None, {"a": 50})
    curriculum.match([8] * 40, 10)
    assert sum(curriculum.amount(8, step) for step in range(1, 41)) == 10


@example([5e-324], 1)
@given(st.lists(st.floats(0.0, 50.0), min_size=1, max_size=40), st.integers(0, 500))
def test_largest_remainders(exact, total):
    found = matched_amounts(exact, total)
    if sum(exact) <= 0:
        assert found == [0] * len(exact)
        return
    shares = np.array(exact) * total / sum(exact)
    assert sum(found) == total
    assert all(abs(n - share) < 1 + 1e-6 for n, share in zip(found, shares, strict=True))
    raised = [share - np.floor(share + 1e-9) for n, share in zip(found, shares, strict=True) if n > share + 1e-6]
    lowered = [share - np.floor(share + 1e-9) for n, share in zip(found, shares, strict=True) if n < share - 1e-6]
    assert not raised or not lowered or min(raised) >= max(lowered) - 1e-6


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(0, 60)), min_size=1, max_size=12), st.integers(1, 9))
def test_what_is_brought_forward_is_carried(events, cap):
    amounts = dict(events)
    fired = sorted(amounts)
    wanted = [amounts[step] for step in fired]
    moved = brought_forward(wanted, fired, 30, cap)
    assert carry(zip(fired, moved, strict=True), 30, cap) == moved
    if sum(carry(zip(fired, wanted, strict=True), 30, cap)) == sum(wanted):
        assert moved == wanted
    assert sum(moved) == min(sum(wanted), cap * (30 - fired[0] + 1))
