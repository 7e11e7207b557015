"""Who stays in the buffer, and that a saved buffer comes back bit for bit."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retain.buffer import MEMORY_FILE, SAMPLES_FILE, Buffer, balanced_shares
from retain.sections import BufferConfig, MemoryConfig
from retain.types import InputError, Sample


def samples(task: str, count: int) -> list[Sample]:
    return [Sample(f"{task}/{row}", task, f"question {row}", "answer") for row in range(count)]


def make(capacity: int, admission: str = "balanced", seed: int = 42) -> Buffer:
    return Buffer(BufferConfig(capacity=capacity, admission=admission), MemoryConfig(), seed)


def fill(buffer: Buffer, *sizes: int) -> Buffer:
    """Tasks t1, t2, ... enter after one another, ten steps apart."""
    for stage, size in enumerate(sizes, start=1):
        buffer.admit(samples(f"t{stage}", size), 10 * stage, {}, stage)
    return buffer


# Shares


@pytest.mark.parametrize(
    ("sizes", "capacity", "shares"),
    [
        ([5, 5], 20, [5, 5]),
        ([9, 9], 10, [5, 5]),
        ([9, 9, 9], 10, [4, 3, 3]),
        ([9, 9, 9], 11, [4, 4, 3]),
        ([9, 2, 9], 11, [5, 2, 4]),  # nine are left for two: five and four
        ([1, 9, 2, 9], 12, [1, 5, 2, 4]),
        ([3, 9, 9], 11, [3, 4, 4]),
        ([9, 9, 9], 2, [1, 1, 0]),
        ([0, 9], 4, [0, 4]),
        ([], 4, []),
    ],
)
def test_balanced_shares(sizes, capacity, shares):
    assert balanced_shares(sizes, capacity) == shares


@given(st.lists(st.integers(0, 40), max_size=8), st.integers(1, 100))
def test_shares_fill_the_capacity_and_differ_by_one_at_most(sizes, capacity):
    shares = balanced_shares(sizes, capacity)
    assert sum(shares) == min(capacity, sum(sizes))
    assert all(share <= size for share, size in zip(shares, sizes, strict=True))
    cut = [share for share, size in zip(shares, sizes, strict=True) if share < size]
    assert cut == sorted(cut, reverse=True)  # the remainders go to the oldest
    assert not cut or max(shares) - min(cut) <= 1


# Admission


@pytest.mark.parametrize("admission", ["balanced", "reservoir", "fifo", "surprise"])
@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=5), capacity=st.integers(1, 50))
def test_the_buffer_is_always_as_full_as_it_can_be(admission, sizes, capacity):
    buffer = fill(make(capacity, admission), *sizes)
    assert len(buffer) == min(capacity, sum(sizes))
    assert sorted(buffer.memory.ids) == sorted(buffer.samples)
    assert sum(buffer.tasks.values()) == len(buffer)


def test_balanced_keeps_an_equal_share_of_each_task():
    buffer = fill(make(10), 20, 20)
    assert buffer.tasks == {"t1": 5, "t2": 5}
    buffer.admit(samples("t3", 20), 30, {}, 3)
    assert buffer.tasks == {"t1": 4, "t2": 3, "t3": 3}


def test_a_shrinking_share_only_loses_members_and_does_not_depend_on_the_order_of_entry():
    before = set(fill(make(10), 20).samples)
    after = {one for one in fill(make(10), 20, 20).samples if one.startswith("t1/")}
    assert after < before
    turned = make(10)
    turned.admit(samples("t1", 20)[::-1], 10, {}, 1)
    assert set(turned.samples) == before


def test_balanced_members_are_a_uniform_draw():
    counts = np.zeros(12)
    for seed in range(600):
        for one in fill(make(3, seed=seed), 12).samples:
            counts[int(one.split("/")[1])] += 1
    assert chi_square(counts, 150.0) < 31.3  # 0.1 % of chi-square with 11 degrees of freedom


@pytest.mark.parametrize("sizes", [(12,), (5, 7), (1, 9, 2)])
def test_reservoir_is_uniform_over_all_samples_in_whatever_stages_they_came(sizes):
    order = [f"t{stage}/{row}" for stage, size in enumerate(sizes, start=1) for row in range(size)]
    counts = dict.fromkeys(order, 0)
    for seed in range(600):
        for one in fill(make(3, "reservoir", seed), *sizes).samples:
            counts[one] += 1
    assert chi_square(np.array(list(counts.values())), 150.0) < 31.3


def chi_square(counts: np.ndarray, expected: float) -> float:
    """Pearson's statistic, scaled for draws without replacement (3 of 12)."""
    return float(((counts - expected) ** 2 / expected).sum() / (1 - 3 / 12) * 11 / 12)


def test_reservoir_counts_what_it_has_seen():
    assert fill(make(3, "reservoir"), 5, 7).seen == 12


def test_fifo_keeps_the_last():
    buffer = fill(make(4, "fifo"), 3, 3)
    assert list(buffer.samples) == ["t1/2", "t2/0", "t2/1", "t2/2"]


def test_surprise_keeps_the_largest_losses_of_each_task():
    buffer = make(5, "surprise")
    buffer.admit(samples("t1", 6), 10, {f"t1/{k}": loss for k, loss in enumerate([0.1, 3.0, 2.0, 5.0, 1.0])}, 1)
    assert list(buffer.samples) == ["t1/0", "t1/1", "t1/2", "t1/3", "t1/4"]  # t1/5 has no loss
    buffer.memory.review(["t1/0"], [1e9], 12)  # a sample that became surprising stays
    buffer.admit(samples("t2", 3), 20, {"t2/0": 1.0, "t2/1": 9.0, "t2/2": 4.0}, 2)
    assert list(buffer.samples) == ["t1/0", "t1/1", "t1/3", "t2/1", "t2/2"]


def test_surprise_without_losses_is_the_balanced_draw():
    assert list(fill(make(4, "surprise"), 9, 9).samples) == list(fill(make(4), 9, 9).samples)


def test_memory_follows_the_buffer():
    buffer = make(4)
    buffer.admit(samples("t1", 4), 10, {"t1/0": 1.5, "t1/2": 2.5}, 1)
    state = buffer.memory.snapshot(10)
    losses = dict(zip(state["id"], state["ema_loss"], strict=True))
    assert (losses["t1/0"], losses["t1/2"]) == (1.5, 2.5)
    assert np.isnan([losses["t1/1"], losses["t1/3"]]).all()
    buffer.admit(samples("t2", 4), 20, {}, 2)
    state = buffer.memory.snapshot(20)
    entered = dict(zip(state["id"], state["last_review"], strict=True))
    assert {one: step for one, step in entered.items()} == {
        one: 10 if one.startswith("t1/") else 20 for one in buffer.samples
    }


def test_a_seed_is_a_past_task_that_enters_at_step_0_without_losses():
    buffer = make(10)
    buffer.seed_with(samples("general", 20))
    assert buffer.tasks == {"general": 10}
    state = buffer.memory.snapshot(0)
    assert (state["last_review"] == 0).all() and np.isnan(state["ema_loss"]).all()
    buffer.admit(samples("t1", 20), 10, {}, 1)
    assert buffer.tasks == {"general": 5, "t1": 5}


@pytest.mark.parametrize(
    ("entering", "losses", "message"),
    [
        (samples("t1", 1), {}, "sample 't1/0' is in the buffer already; every sample needs its own id"),
        (samples("t2", 1) * 2, {}, "sample 't2/0' is in the buffer already"),
        (samples("t2", 1), {"t2/0": float("inf")}, r"losses\[0\] = inf: must be a finite number"),
    ],
)
def test_a_refused_admission_changes_nothing(entering, losses, message):
    buffer = fill(make(2), 2)
    before = (dict(buffer.samples), buffer.memory.ids, buffer.seen)
    with pytest.raises(InputError, match=message):
        buffer.admit(entering, 20, losses, 2)
    assert (dict(buffer.samples), buffer.memory.ids, buffer.seen) == before


# Save and load


def worn(admission: str = "balanced") -> Buffer:
    """A buffer with a history: all fields of a sample, reviews, a refresh, an eviction, a change of unit."""
    buffer = make(6, admission)
    rich = Sample(
        "t1/x",
        "t1",
        "línea 1\nline 2",
        "",
        ("yes", "no"),
        ("yes", "y"),
        (("user", "hi"), ("assistant", "ho")),
        0.1,
    )
    buffer.seed_with([rich, *samples("t1", 5)])
    buffer.memory.set_unit(3.7, 0)
    ids = buffer.memory.ids
    buffer.memory.review(ids[:3], [0.1, 0.2, 0.3], 7)
    buffer.memory.refresh(9)
    buffer.admit(samples("t2", 4), 10, {"t2/1": 0.3}, 1)
    buffer.memory.set_unit(0.3, 10)
    return buffer


def load(buffer: Buffer, folder) -> Buffer:
    return Buffer.load(folder, buffer.config, buffer.memory.config, buffer.seed)


@pytest.mark.parametrize("admission", ["balanced", "reservoir", "fifo"])
def test_a_loaded_buffer_is_the_saved_one_bit_for_bit(tmp_path, admission):
    saved = worn(admission)
    saved.save(tmp_path / "buffer")
    loaded = load(saved, tmp_path / "buffer")
    assert list(loaded.samples.items()) == list(saved.samples.items())
    assert (loaded.memory.ids, loaded.seen) == (saved.memory.ids, saved.seen)
    tensors = loaded.memory.to_tensors()
    for name, tensor in saved.memory.to_tensors().items():
        np.testing.assert_array_equal(tensors[name], tensor)
    draw = {"stage": 2, "event": 1}
    assert loaded.memory.draw(9, 12, **draw) == saved.memory.draw(9, 12, **draw)
    for buffer in (saved, loaded):  # and they go on alike
        buffer.admit(samples("t3", 9), 20, {}, 2)
    assert list(loaded.samples) == list(saved.samples)
    assert loaded.memory.ids == saved.memory.ids


def test_the_same_buffer_is_the_same_file(tmp_path):
    buffer = worn()
    buffer.save(tmp_path / "a")
    load(buffer, tmp_path / "a").save(tmp_path / "b")
    for name in (SAMPLES_FILE, MEMORY_FILE):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_an_empty_buffer_is_saved_too(tmp_path):
    make(3).save(tmp_path)
    assert len(load(make(3), tmp_path)) == 0


def test_a_failed_save_leaves_the_old_file_and_nothing_beside(tmp_path, monkeypatch):
    worn().save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        make(3).save(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("name", [SAMPLES_FILE, MEMORY_FILE])
def test_a_missing_or_broken_file_is_named(tmp_path, name):
    buffer = worn()
    buffer.save(tmp_path)
    whole = (tmp_path / name).read_bytes()
    for content in (b"", b"nonsense", whole[: len(whole) // 2]):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=rf"{name}: is not a saved buffer or is broken \(.*\)\. Restore it"):
            load(buffer, tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(InputError, match=rf"{name}: is missing; the buffer needs it\. Restore it or start the run"):
        load(buffer, tmp_path)
    (tmp_path / name).mkdir()
    with pytest.raises(InputError, match=rf"{name}: is not a saved buffer or is broken \(a directory, not a file\)"):
        load(buffer, tmp_path)


def test_other_columns_and_tensors_are_named(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq
    from safetensors.numpy import load_file, save_file

    buffer = worn()
    buffer.save(tmp_path)
    tensors = load_file(tmp_path / MEMORY_FILE)
    for name, reason in [
        ("stability", r"tensors\['stability'\]: is missing"),
        ("buffer_rows", "buffer_rows is missing"),
    ]:
        save_file({key: tensor for key, tensor in tensors.items() if key != name}, tmp_path / MEMORY_FILE)
        with pytest.raises(InputError, match=rf"{MEMORY_FILE}: is not a saved buffer or is broken \({reason}"):
            load(buffer, tmp_path)
    save_file({**tensors, "buffer_rows": tensors["buffer_rows"] + 1}, tmp_path / MEMORY_FILE)
    with pytest.raises(InputError, match=rf"{MEMORY_FILE}: is not a saved buffer or is broken"):
        load(buffer, tmp_path)
    pq.write_table(pa.table({"id": ["a"], "text": ["b"]}), tmp_path / SAMPLES_FILE)
    with pytest.raises(InputError, match=rf"{SAMPLES_FILE}: is not .* \(its columns are id, text\)"):
        load(buffer, tmp_path)


def test_files_of_two_saves_are_told_apart(tmp_path):
    worn().save(tmp_path / "a")
    fill(make(6), 3, 3).save(tmp_path / "b")
    os.replace(tmp_path / "b" / SAMPLES_FILE, tmp_path / "a" / SAMPLES_FILE)
    with pytest.raises(InputError, match=rf"{MEMORY_FILE}: belongs to other samples than {SAMPLES_FILE}; restore both"):
        load(worn(), tmp_path / "a")
