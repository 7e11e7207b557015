"""The order of new samples, and what the losses of a step do to the memory."""

import numpy as np
import pytest

from retain.buffer import Buffer
from retain.plans import StagePlan
from retain.scheduler import stage_steps
from retain.sections import BufferConfig, MemoryConfig, TrainingConfig
from retain.trainer import StageRecord, count_skipped, new_batches, observe, review
from retain.types import Sample

SAMPLES = [Sample(f"t/{k}", "t", str(k), "x") for k in range(10)]


def plan(**training):
    new = stage_steps(len(SAMPLES), TrainingConfig(batch_size=4, **training))
    return StagePlan("t", len(new), new, None)


def test_every_epoch_sees_every_sample_once_in_an_order_of_its_own():
    batches = list(new_batches(SAMPLES, plan(epochs=2), seed=1, stage=1))
    assert [len(b) for b in batches] == [4, 4, 2, 4, 4, 2]
    epochs = [[s.id for b in batches[k : k + 3] for s in b] for k in (0, 3)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(s.id for s in SAMPLES)
    assert epochs[0] != epochs[1]
    assert batches == list(new_batches(SAMPLES, plan(epochs=2), seed=1, stage=1))
    assert batches != list(new_batches(SAMPLES, plan(epochs=2), seed=1, stage=2))


def test_max_steps_cuts_or_repeats_the_epochs():
    whole = list(new_batches(SAMPLES, plan(epochs=3), seed=1, stage=1))
    assert list(new_batches(SAMPLES, plan(max_steps=5), seed=1, stage=1)) == whole[:5]
    assert list(new_batches(SAMPLES, plan(max_steps=9), seed=1, stage=1)) == whole


def test_observe_is_a_running_mean():
    running = {}
    observe(running, SAMPLES[:2], np.array([1.0, 2.0]), beta=0.9)
    observe(running, SAMPLES[:1], np.array([3.0]), beta=0.9)
    assert running == {"t/0": pytest.approx(0.9 * 1.0 + 0.1 * 3.0), "t/1": 2.0}


def test_a_sample_that_is_replayed_twice_in_a_step_is_one_review():
    buffer = Buffer(BufferConfig(capacity=8), MemoryConfig())
    buffer.admit(SAMPLES[:2], 5, {"t/0": 1.0, "t/1": 1.0}, stage=1)
    review(buffer, [SAMPLES[0], SAMPLES[1], SAMPLES[0]], np.array([1.0, 1.0, 3.0]), 9)
    state = buffer.memory.snapshot(9)
    assert state["reviews"].tolist() == [1, 1]
    assert state["ema_loss"].tolist() == pytest.approx([0.95 * 1.0 + 0.05 * 2.0, 1.0])
    review(buffer, [], np.array([]), 9)


def test_skipped_steps_are_counted_and_name_their_samples():
    record, batch = StageRecord(), SAMPLES[:3]
    assert count_skipped(record, False, np.array([1.0, 2.0, 3.0]), batch) == []
    assert count_skipped(record, True, np.array([1.0, np.nan, np.inf]), batch) == ["t/1", "t/2"]
    assert count_skipped(record, True, np.array([1.0, 2.0, 3.0]), batch) == ["t/0", "t/1", "t/2"], "the gradient alone"
    assert (record.skipped_steps, record.skipped_in_a_row) == (2, 2)
    count_skipped(record, False, np.array([1.0]), batch[:1])
    assert (record.skipped_steps, record.skipped_in_a_row) == (2, 0)
