"""The counter-based noise, and draws against the exact probabilities of sequential sampling."""

import hashlib
import itertools
from collections import Counter

import numpy as np
import pytest

from retain.memory import random
from retain.memory.draw import gumbel_top_k, stalest

pytestmark = pytest.mark.filterwarnings("error")
IDS = [f"task/{row}" for row in range(100_000)]
HASHES = random.hash_ids(IDS)
# The 99.99th percentile of chi-square, by degrees of freedom.
CRITICAL = {2: 18.42, 4: 23.51, 7: 29.88, 59: 108.16, 63: 113.5, 99: 160.06}


def chi_square(counts, expected):
    counts, expected = np.asarray(counts, dtype=float), np.asarray(expected, dtype=float)
    return float(((counts - expected) ** 2 / expected).sum())


def test_hashes_are_blake2b():
    expected = int.from_bytes(hashlib.blake2b(b"task/0", digest_size=8).digest(), "little")
    assert int(random.hash_ids(["task/0", "x"])[0]) == expected
    assert random.hash_ids([]).shape == (0,)


def test_an_id_that_is_no_valid_unicode_has_a_hash():
    assert random.hash_ids(["\ud800"])[0] != random.hash_ids(["\ud801"])[0]


def splitmix(value):
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) % 2**64
    return value ^ (value >> 31)


@pytest.mark.parametrize(("seed", "counters"), [(42, (1, 2, 3)), (0, ()), (2**80 + 7, (2**53,))])
def test_bits_are_those_of_the_scalar_definition(seed, counters):
    key = 0
    for counter in (seed, *counters):
        key = splitmix((key + 0x9E3779B97F4A7C15 + counter) % 2**64)
    expected = [splitmix((splitmix(int(h) ^ key) + key) % 2**64) for h in HASHES[:50]]
    assert random.bits(seed, *counters, hashes=HASHES[:50]).tolist() == expected


def test_bits_do_not_change_from_release_to_release():
    assert random.bits(42, 1, 2, 3, hashes=random.hash_ids(["task/0"])).tolist() == [15183708879199993512]


def test_counters_may_be_numpy_integers():
    plain = random.bits(42, 1, 2, hashes=HASHES[:5])
    assert random.bits(42, np.int64(1), np.int32(2), hashes=HASHES[:5]).tolist() == plain.tolist()


def test_noise_of_a_sample_does_not_depend_on_the_others():
    alone = random.gumbel(1, 2, hashes=HASHES[17:18])
    assert alone[0] == random.gumbel(1, 2, hashes=HASHES)[17]


def test_uniform_is_uniform_and_open():
    values = random.uniform(3, 1, hashes=HASHES)
    assert chi_square(np.histogram(values, 100, (0, 1))[0], np.full(100, 1000)) < CRITICAL[99]
    ends = random.to_uniform(np.array([0, 2**64 - 1], dtype=np.uint64))
    assert 0.0 < ends[0] < ends[1] < 1.0
    assert np.isfinite(random.to_gumbel(np.array([0, 2**64 - 1], dtype=np.uint64))).all()


@pytest.mark.parametrize("other", [(4, 1, 1), (3, 2, 1), (3, 1, 2), (3, 1), (3, 1, 1, 0)])
def test_seed_and_every_counter_matter(other):
    one, two = (random.uniform(*counters, hashes=HASHES) for counters in ((3, 1, 1), other))
    cells = np.histogram2d(one, two, 8, ((0, 1), (0, 1)))[0]
    assert chi_square(cells.ravel(), np.full(64, len(IDS) / 64)) < CRITICAL[63]


def test_normal_has_the_moments_of_a_normal():
    values = random.normal(3, 1, hashes=HASHES)
    count = len(values)
    assert abs(values.mean()) < 4 / count**0.5
    assert abs((values**2).mean() - 1) < 4 * (2 / count) ** 0.5
    assert abs((values**4).mean() - 3) < 4 * (96 / count) ** 0.5


WEIGHTS = np.array([0.4, 0.25, 0.2, 0.1, 0.05])


def draws(log_weights, count, events):
    hashes = HASHES[: len(log_weights)]
    for event in range(events):
        yield tuple(gumbel_top_k(log_weights, random.bits(42, 1, 1, event, hashes=hashes), count).tolist())


def test_first_picks_follow_the_weights():
    log_weights = np.array([0.0, -0.5, -1.0, -1.5, 0.7, -2.5, -3.0, -0.1]) - 1e4
    exact = np.exp(log_weights - log_weights.max())
    exact /= exact.sum()
    counts = Counter(row for (row,) in draws(log_weights, 1, 20_000))
    assert chi_square([counts[row] for row in range(8)], exact * 20_000) < CRITICAL[7]


def sequences(weights, count):
    """The exact probability of each ordered draw without replacement."""
    for rows in itertools.permutations(range(len(weights)), count):
        probability, left = 1.0, weights.sum()
        for row in rows:
            probability *= weights[row] / left
            left -= weights[row]
        yield rows, probability


def test_ordered_draws_are_exact_sequential_sampling():
    exact = dict(sequences(WEIGHTS, 3))
    assert sum(exact.values()) == pytest.approx(1.0)
    counts = Counter(draws(np.log(WEIGHTS), 3, 30_000))
    assert chi_square([counts[rows] for rows in exact], [p * 30_000 for p in exact.values()]) < CRITICAL[59]


def test_inclusion_of_each_sample_is_exact():
    exact = np.zeros(5)
    for rows, probability in sequences(WEIGHTS, 2):
        exact[list(rows)] += probability
    counts = Counter(row for rows in draws(np.log(WEIGHTS), 2, 20_000) for row in rows)
    deviation = (np.array([counts[row] for row in range(5)]) / 20_000 - exact) / np.sqrt(exact * (1 - exact) / 20_000)
    assert np.abs(deviation).max() < 4.0


def test_weights_of_minus_infinity_come_last_and_uniformly():
    log_weights = np.array([-np.inf, -3.0, -np.inf, 0.0, -np.inf, -np.inf, -np.inf])
    found = list(draws(log_weights, 3, 10_000))
    assert all(set(rows[:2]) == {1, 3} for rows in found)
    counts = Counter(rows[2] for rows in found)
    assert chi_square([counts[row] for row in (0, 2, 4, 5, 6)], np.full(5, 2000)) < CRITICAL[4]


@pytest.mark.parametrize("log_weights", [np.full(5, -np.inf), np.full(5, 1e300), np.full(5, -1e300)])
def test_equal_weights_are_drawn_uniformly_however_large(log_weights):
    counts = Counter(row for (row,) in draws(log_weights, 1, 10_000))
    assert chi_square([counts[row] for row in range(5)], np.full(5, 2000)) < CRITICAL[4]


def test_a_common_offset_of_the_weights_takes_no_noise_away():
    log_weights = 1e16 + np.array([0.0, 2.0, 4.0])
    exact = np.exp([-4.0, -2.0, 0.0])
    counts = Counter(row for (row,) in draws(log_weights, 1, 10_000))
    assert chi_square([counts[row] for row in range(3)], exact / exact.sum() * 10_000) < CRITICAL[2]


def test_noise_lost_in_a_huge_weight_still_orders_equals_at_random():
    log_weights = np.array([0.0, -1e30, -1e30, -1e30, -1e30, -1e30])
    found = list(draws(log_weights, 2, 10_000))
    assert {rows[0] for rows in found} == {0}
    counts = Counter(rows[1] for rows in found)
    assert chi_square([counts[row] for row in range(1, 6)], np.full(5, 2000)) < CRITICAL[4]


def test_a_smaller_draw_is_the_start_of_a_larger_one():
    bits = random.bits(1, hashes=HASHES[:200])
    log_weights = np.where(np.arange(200) % 3 == 0, -np.inf, np.linspace(0.0, 3.0, 200))
    whole = gumbel_top_k(log_weights, bits, 200).tolist()
    assert sorted(whole) == list(range(200))
    for count in (0, 1, 7, 133, 134, 150, 199, 500):
        assert gumbel_top_k(log_weights, bits, count).tolist() == whole[:count]


def test_stalest_come_oldest_first_with_ties_by_id():
    last_review = np.array([5, 3, 9, 3, 3, 7, 5])
    ids = ["g", "c", "a", "b", "d", "e", "f"]
    for count, expected in [
        (0, ""),
        (1, "b"),
        (2, "bc"),
        (3, "bcd"),
        (4, "bcdf"),
        (5, "bcdfg"),
        (9, "bcdfg"),
    ]:
        rows = stalest(last_review, ids, 5, count)
        assert "".join(ids[row] for row in rows) == expected
    assert stalest(last_review, ids, 2.9, 4).tolist() == []
