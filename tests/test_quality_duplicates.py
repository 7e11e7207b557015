"""Near duplicates: against double loops, at the edges, and fast."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from retain.metrics import rouge_l
from retain.quality import duplicates
from retain.quality.duplicates import Cosine, MinHash, TokenOverlap, jaccard, minhash_signatures
from retain.quality.ngrams import words

TEXTS = st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=8).map(" ".join), max_size=12)


def cosine(first: np.ndarray, second: np.ndarray) -> float:
    norms = np.linalg.norm(first) * np.linalg.norm(second)
    return float(first @ second / norms) if norms else 0.0


def naive_kept(count: int, similarity, limit: float) -> list[int]:
    kept: list[int] = []
    for one in range(count):
        if all(similarity(one, other) <= limit for other in kept):
            kept.append(one)
    return kept


def kept_of(nearest: np.ndarray, limit: float) -> list[int]:
    return np.flatnonzero(nearest <= limit).tolist()


def variants(count: int, length: int, seed: int) -> list[str]:
    """Texts of which each is an earlier one with some words replaced."""
    generator = np.random.default_rng(seed)
    texts = [[f"w{k}" for k in generator.integers(0, 500, length)] for _ in range(10)]
    while len(texts) < count:
        copy = list(texts[generator.integers(len(texts))])
        for place in generator.integers(0, length, generator.integers(0, 4)):
            copy[place] = f"w{generator.integers(0, 500)}"
        texts.append(copy)
    return [" ".join(text) for text in texts]


# ---- embeddings -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [0.0, 0.3, 0.7])
def test_the_cap_equals_the_double_loop_across_blocks(limit, monkeypatch):
    monkeypatch.setattr(duplicates, "BLOCK", 16)
    rows = np.random.default_rng(0).normal(size=(150, 6))
    expected = naive_kept(150, lambda i, j: cosine(rows[i], rows[j]), limit)
    nearest = Cosine(rows).nearest_kept(limit)
    assert kept_of(nearest, limit) == expected
    assert 1 < len(expected) < 150
    for row in range(1, 150):
        before = [other for other in expected if other < row]
        assert nearest[row] == pytest.approx(max(cosine(rows[row], rows[other]) for other in before), abs=1e-5)


@given(arrays(np.float64, (7, 3), elements=st.floats(-5, 5, width=32)), st.floats(-0.5, 1))
def test_no_two_kept_rows_are_more_similar_than_the_limit(rows, limit):
    made = Cosine(rows)
    kept = kept_of(made.nearest_kept(limit), limit)
    assert kept[:1] == [0]
    for i in kept:
        for j in kept:
            assert i == j or made.units[i] @ made.units[j] <= limit + 1e-5


def test_the_first_of_two_stays():
    rows = [[1.0, 0.0], [0.0, 1.0], [2.0, 0.0], [1.0, 1.0]]
    assert kept_of(Cosine(rows).nearest_kept(0.9), 0.9) == [0, 1, 3]
    assert kept_of(Cosine(rows).nearest_kept(0.5), 0.5) == [0, 1]
    assert kept_of(Cosine(rows).nearest_kept(1.0), 1.0) == [0, 1, 2, 3]


def test_rows_without_a_direction_are_like_nothing():
    rows = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0], [np.nan, 1.0], [np.inf, 0.0]])
    assert Cosine(rows).nearest_kept(0.5).tolist() == [-1.0, 0.0, 0.0, 0.0, 0.0]
    assert Cosine(rows, center=True).units[3].tolist() == [0.0, 0.0, 0.0]
    assert Cosine(np.full((3, 2), np.nan), center=True).nearest_kept(0.5).tolist() == [-1.0, 0.0, 0.0]
    assert len(Cosine(np.empty((0, 5))).nearest_kept(0.5)) == 0


def test_the_center_takes_away_what_all_rows_share():
    generator = np.random.default_rng(0)
    rows = 10.0 + generator.normal(size=(50, 40))
    rows = np.concatenate([rows, rows[:5] + 0.01])
    assert len(kept_of(Cosine(rows).nearest_kept(0.9), 0.9)) == 1
    for center in (True, rows.mean(axis=0)):
        assert kept_of(Cosine(rows, center).nearest_kept(0.9), 0.9) == list(range(50))


def test_a_collapsed_generator_is_seen_in_spite_of_the_center():
    for count in (4, 30):  # of 4 equal rows the mean is exact, of 30 it is off by rounding
        rows = np.tile(np.random.default_rng(0).normal(size=(1, 40)), (count, 1))
        assert kept_of(Cosine(rows, center=True).nearest_kept(0.9), 0.9) == [0]
    assert kept_of(Cosine(rows, center=rows[0] + 1.0).nearest_kept(0.9), 0.9) == [0]


def test_mean_cosines():
    rows = np.random.default_rng(2).normal(size=(20, 4))
    expected = [np.mean([cosine(rows[i], rows[j]) for j in range(20) if j != i]) for i in range(20)]
    assert Cosine(rows).means() == pytest.approx(expected, abs=1e-5)
    assert Cosine(rows[:1]).means().tolist() == [0.0]
    assert Cosine(rows[:0]).means().tolist() == []


def test_embeddings_of_ten_thousand_texts_are_fast():
    rows = np.random.default_rng(0).normal(size=(10_000, 576)).astype(np.float32)
    rows[5000:] = rows[:5000]
    started = time.perf_counter()
    assert kept_of(Cosine(rows, center=True).nearest_kept(0.9), 0.9) == list(range(5000))
    assert time.perf_counter() - started < 30.0


# ---- texts ----------------------------------------------------------------------------------------------


def test_jaccard_by_hand():
    assert jaccard("a b c", "B c d!") == pytest.approx(2 / 4)
    assert jaccard("a a a", "a") == 1.0
    assert jaccard("a", "b") == 0.0
    assert jaccard("", "?") == 1.0
    assert jaccard("", "a") == 0.0


@given(TEXTS, st.floats(0, 1))
def test_shared_words_equal_the_double_loop(texts, limit):
    found = TokenOverlap(texts).nearest_kept(limit)
    assert kept_of(found, limit) == naive_kept(len(texts), lambda i, j: jaccard(texts[i], texts[j]), limit)


@given(TEXTS, st.floats(0, 1))
def test_rouge_equals_the_double_loop(texts, limit):
    found = TokenOverlap(texts, rouge=True).nearest_kept(limit)
    assert kept_of(found, limit) == naive_kept(len(texts), lambda i, j: rouge_l(texts[i], [texts[j]]), limit)


def test_rouge_counts_repeated_words():
    texts = ["a a a b", "a b", "a a a a"]
    index = TokenOverlap(texts, rouge=True)
    index.add(0)
    assert [index.similarities(one)[0] for one in (1, 2)] == [rouge_l(texts[one], texts[:1]) for one in (1, 2)]


@pytest.mark.parametrize("rouge", [False, True])
def test_mean_similarities_of_texts(rouge):
    texts = ["a b c", "a b d", "e f", "", "a b c"]
    similarity = (lambda i, j: rouge_l(texts[i], [texts[j]])) if rouge else (lambda i, j: jaccard(texts[i], texts[j]))
    expected = [np.mean([similarity(i, j) for j in range(5) if j != i]) for i in range(5)]
    assert TokenOverlap(texts, rouge).means() == pytest.approx(expected)
    assert TokenOverlap([], rouge).means().tolist() == []
    assert TokenOverlap(["a"], rouge).means().tolist() == [0.0]


def test_mean_similarity_to_a_spread_of_many_texts(monkeypatch):
    texts = variants(60, 8, seed=1)
    monkeypatch.setattr(duplicates, "COMPARED", 4)
    assert [jaccard(texts[1], texts[k]) for k in (0, 19, 39, 59)] == pytest.approx(
        [TokenOverlap([texts[k], texts[1]]).nearest_kept(2.0)[1] for k in (0, 19, 39, 59)]
    )
    expected = np.mean([jaccard(texts[1], texts[k]) for k in (0, 19, 39, 59)])
    assert TokenOverlap(texts).means()[1] == pytest.approx(expected)


# ---- MinHash --------------------------------------------------------------------------------------------


def shingle_jaccard(first: str, second: str) -> float:
    sets = []
    for text in (first, second):
        tokens = words(text) or [text]
        sets.append({tuple(tokens[k : k + 3]) for k in range(max(len(tokens) - 2, 1))})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def test_signatures_estimate_the_similarity_of_shingles():
    texts = variants(120, 20, seed=0)
    signatures = minhash_signatures(texts)
    pairs = [(i, j) for i in range(120) for j in range(i)]
    estimated = np.array([(signatures[i] == signatures[j]).mean() for i, j in pairs])
    exact = np.array([shingle_jaccard(texts[i], texts[j]) for i, j in pairs])
    between = (exact > 0.1) & (exact < 0.95)
    assert between.sum() > 500
    errors = (estimated - exact)[between]
    # 128 draws: a standard deviation of at most 0.044
    assert abs(errors.mean()) < 0.015
    assert errors.std() < 0.055
    assert np.abs(errors).max() < 0.25


@pytest.mark.parametrize("limit", [0.3, 0.6, 0.9])
def test_banding_loses_almost_nothing(limit):
    texts = variants(400, 20, seed=3)
    signatures = minhash_signatures(texts)
    expected = naive_kept(400, lambda i, j: (signatures[i] == signatures[j]).mean(), limit)
    found = kept_of(MinHash(texts, limit).nearest_kept(limit), limit)
    assert 10 < len(expected) < 400
    assert len(set(found) ^ set(expected)) <= 4


@pytest.mark.parametrize("limit", [0.3, 0.6, 0.9])
def test_banding_finds_pairs_that_are_just_above_the_limit(limit):
    generator = np.random.default_rng(4)
    pairs = []
    while len(pairs) < 300:  # the same words at first, others then
        total = 60
        common = round(2 * total * limit / (1 + limit)) + generator.integers(0, 3)
        texts = [[f"w{k}" for k in generator.integers(0, 10**6, total)] for _ in range(2)]
        texts[1][:common] = texts[0][:common]
        signatures = minhash_signatures([" ".join(text) for text in texts])
        if limit < (signatures[0] == signatures[1]).mean() < limit + 0.05:
            pairs.append([" ".join(text) for text in texts])
    found = [MinHash(pair, limit).nearest_kept(limit)[1] > limit for pair in pairs]
    assert np.mean(found) >= 0.97


def test_minhash_at_the_edges():
    texts = ["same words here now", "Same words, here now!", "other words stand here", "", "", "?", "x", "x"]
    assert kept_of(MinHash(texts, 0.9).nearest_kept(0.9), 0.9) == [0, 2, 3, 5, 6]
    assert MinHash([], 0.9).nearest_kept(0.9).tolist() == []
    assert minhash_signatures([]).shape == (0, 128)
    for limit in (0.0, 1.0):
        assert len(MinHash(texts, limit).nearest_kept(limit)) == len(texts)


def test_minhash_means_compare_without_bands():
    texts = ["a b c d e f", "a b c d x y", "n o p q r s"]
    signatures = minhash_signatures(texts)
    share = (signatures[0] == signatures[1]).mean()
    assert 0.1 < share < 0.7
    assert MinHash(texts, 0.9).means() == pytest.approx([share / 2, share / 2, 0.0])


@settings(max_examples=50)
@given(st.lists(st.text(st.characters(), max_size=30), max_size=8))
def test_equal_texts_are_duplicates_whatever_they_hold(texts):
    doubled = texts + texts
    for index in (MinHash(doubled, 0.9), TokenOverlap(doubled), TokenOverlap(doubled, rouge=True)):
        assert all(row < len(texts) for row in kept_of(index.nearest_kept(0.9), 0.9))


@pytest.mark.parametrize("kind", ["minhash", "jaccard", "rouge"])
def test_ten_thousand_texts_are_fast(kind):
    texts = variants(10_000, 15, seed=5)
    index = MinHash(texts, 0.9) if kind == "minhash" else TokenOverlap(texts, kind == "rouge")
    started = time.perf_counter()
    kept = kept_of(index.nearest_kept(0.9), 0.9)
    assert time.perf_counter() - started < 60.0
    assert 1000 < len(kept) < 10_000


@pytest.mark.parametrize("kind", ["minhash", "jaccard", "rouge"])
def test_copies_and_huge_texts_are_fast(kind):
    texts = ["this is the very same text"] * 3000 + ["spam " * 20_000, " ".join(map(str, range(17_000)))] * 2
    started = time.perf_counter()
    index = MinHash(texts, 0.9) if kind == "minhash" else TokenOverlap(texts, kind == "rouge")
    assert len(kept_of(index.nearest_kept(0.9), 0.9)) == 3
    assert time.perf_counter() - started < 60.0
