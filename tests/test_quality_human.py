"""Agreement of two raters, by hand and against the definition with a table of counts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retain.quality.human import CRITERIA, approval_rate, cohens_kappa, is_approved, percent_agreement, weighted_kappa
from retain.types import InputError

PAIRS = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=30)


def rated(*values: int) -> dict[str, int]:
    return dict(zip(CRITERIA, values, strict=True))


def test_approval():
    assert is_approved(True) and not is_approved(False)
    assert is_approved(rated(3, 4, 5, 3))
    assert not is_approved(rated(5, 5, 5, 2))  # a wrong label
    assert not is_approved({})
    assert approval_rate([True, False, rated(5, 5, 5, 5), rated(5, 5, 5, 1)]) == 0.5
    with pytest.raises(InputError, match="there are none"):
        approval_rate([])


def test_kappa_by_hand():
    # 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: p_o 0.7, p_e 0.5*0.6 + 0.5*0.4 = 0.5
    first = [True] * 25 + [False] * 25
    second = [True] * 20 + [False] * 5 + [True] * 10 + [False] * 15
    assert percent_agreement(first, second) == pytest.approx(0.7)
    assert cohens_kappa(first, second) == pytest.approx(0.4)


def test_weighted_kappa_by_hand():
    # mean (a - b)^2 = 2/3; over all nine pairs (0 + 1 + 9 + 1 + 0 + 4 + 4 + 1 + 1)/9 = 21/9
    assert weighted_kappa([1, 2, 3], [1, 2, 4]) == pytest.approx(1 - (1 / 3) / (21 / 9))
    assert weighted_kappa([1, 5], [5, 1]) == pytest.approx(-1.0)


def test_a_constant_answer_has_no_kappa_unless_the_other_rater_differs():
    assert cohens_kappa([True, True], [True, True]) is None
    assert weighted_kappa([4, 4], [4, 4]) is None
    assert cohens_kappa([True, True], [False, False]) == 0.0
    assert weighted_kappa([4, 4], [2, 2]) == 0.0


@pytest.mark.parametrize("measure", [percent_agreement, cohens_kappa, weighted_kappa])
def test_two_raters_rate_the_same_items(measure):
    for first, second in (([1], [1, 2]), ([], [])):
        with pytest.raises(InputError, match="two raters rate the same items"):
            measure(first, second)


def kappa_of_table(pairs, weights) -> float | None:
    observed = np.zeros((5, 5))
    for a, b in pairs:
        observed[a - 1, b - 1] += 1 / len(pairs)
    expected = np.outer(observed.sum(axis=1), observed.sum(axis=0))
    chance = (weights * expected).sum()
    return None if chance < 1e-12 else 1.0 - (weights * observed).sum() / chance


@given(PAIRS)
def test_both_kappas_equal_the_weighted_table(pairs):
    first, second = zip(*pairs, strict=True)
    distance = np.abs(np.arange(5)[:, None] - np.arange(5)[None, :])
    for measure, weights in ((cohens_kappa, distance > 0), (weighted_kappa, distance**2 / 16)):
        expected = kappa_of_table(pairs, weights)
        found = measure(first, second)
        assert (found is None) == (expected is None)
        assert found is None or found == pytest.approx(expected, abs=1e-9)
        assert found is None or found <= 1.0 + 1e-12
    assert percent_agreement(first, second) == pytest.approx(np.mean([a == b for a, b in pairs]))
