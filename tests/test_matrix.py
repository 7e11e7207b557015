"""Score matrix -> metrics: literals worked out by hand, and what must hold for any matrix."""

import copy
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retain.matrix import METRICS, summarize, to_array
from retain.types import InputError

SCORES = st.floats(0, 1)

# Row 0 is the untouched model, R[i, i] the cell right after a task's own stage.
THREE = [
    [0.10, 0.20, 0.30],
    [0.80, 0.25, 0.20],
    [0.50, 0.90, 0.40],
    [0.60, 0.70, 1.00],
]

BY_HAND = {
    "ACC": (0.6 + 0.7 + 1.0) / 3,
    "MAA": (0.8 + (0.5 + 0.9) / 2 + (0.6 + 0.7 + 1.0) / 3) / 3,
    "BWT": ((0.6 - 0.8) + (0.7 - 0.9)) / 2,
    "FWT": ((0.25 - 0.20) + (0.40 - 0.30)) / 2,
    "forgetting": ((0.8 - 0.5) + (0.9 - 0.7)) / 2,  # Eq. 1: the worst later row, not the last one
    "forgetting_final": ((0.8 - 0.6) + (0.9 - 0.7)) / 2,
    "retention": (0.6 / 0.8 + 0.7 / 0.9) / 2,
    "normalized_score": (0.6 / 0.8 + 0.7 / 0.9 + 1.0) / 3,
}


@pytest.mark.parametrize("name", METRICS)
def test_each_metric_by_hand(name):
    assert summarize(THREE)[name] == pytest.approx(BY_HAND[name], abs=1e-12)


def test_names_are_exactly_those_of_the_specification():
    assert list(summarize(THREE)) == [
        "ACC", "MAA", "BWT", "FWT", "forgetting", "forgetting_final", "retention", "normalized_score",
    ]  # fmt: skip


def test_two_tasks_by_hand():
    metrics = summarize([[0.0, 0.5], [1.0, 0.25], [0.5, 0.75]])
    assert metrics == {
        "ACC": 0.625,
        "MAA": (1.0 + 0.625) / 2,
        "BWT": -0.5,
        "FWT": -0.25,
        "forgetting": 0.5,
        "forgetting_final": 0.5,
        "retention": 0.5,
        "normalized_score": (0.5 + 1.0) / 2,
    }


def test_forgetting_may_be_negative():
    metrics = summarize([[0.0, 0.0], [0.4, 0.0], [0.6, 0.9]])
    assert metrics["forgetting"] == pytest.approx(-0.2)
    assert metrics["forgetting_final"] == pytest.approx(-0.2)


def test_forgetting_is_negative_for_negative_scores_too():
    """Padding with zeros, as one published code does, would give 3.0 here."""
    assert summarize([[-3.0, -3.0], [-1.0, -3.0], [-4.0, -1.0]])["forgetting_final"] == 3.0
    assert summarize([[-3.0, -3.0], [-3.0, -3.0], [-1.0, -1.0]])["forgetting"] == -2.0


def test_the_two_forgettings_differ_when_a_task_recovers_and_when_it_peaks_late():
    recovered = summarize([[0, 0, 0], [0.9, 0, 0], [0.1, 0.5, 0], [0.9, 0.5, 0.5]])
    assert recovered["forgetting"] == pytest.approx(0.4)
    assert recovered["forgetting_final"] == pytest.approx(0.0)
    late_peak = summarize([[0, 0, 0], [0.5, 0, 0], [0.9, 0.5, 0], [0.5, 0.5, 0.5]])
    assert late_peak["forgetting"] == pytest.approx(0.0)
    assert late_peak["forgetting_final"] == pytest.approx(0.2)


def test_one_task_has_only_an_average():
    metrics = summarize([[0.2], [0.7]])
    assert metrics.pop("ACC") == 0.7
    assert set(metrics.values()) == {None}


def test_joint_has_only_an_average():
    metrics = summarize([[0.1, 0.2, 0.3], [0.7, 0.8, 0.9]], joint=True)
    assert metrics.pop("ACC") == pytest.approx(0.8)
    assert set(metrics.values()) == {None}


def test_joint_before_its_stage_has_nothing():
    assert set(summarize([[0.1, 0.2]], joint=True).values()) == {None}


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_an_unfinished_run_has_no_metric(rows):
    assert set(summarize(THREE[:rows]).values()) == {None}


def test_forward_transfer_does_not_need_the_last_row():
    metrics = summarize(THREE[:3])
    assert metrics.pop("FWT") == pytest.approx(BY_HAND["FWT"])
    assert set(metrics.values()) == {None}


def test_retention_leaves_out_tasks_never_learned():
    matrix = [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.5, 0.8, 0.0], [0.5, 0.4, 0.9]]
    assert summarize(matrix)["retention"] == 0.5
    nothing = [[0.0, 0.0], [0.0, 0.0], [0.5, 0.9]]
    assert summarize(nothing)["retention"] is None


def test_a_ratio_too_large_for_a_float_is_null():
    assert summarize([[0.0, 0.0], [5e-324, 0.0], [1.0, 0.5]])["retention"] is None


def test_normalized_score_of_a_task_that_stays_at_zero():
    assert summarize([[0.0, 0.0], [0.0, 0.0], [0.0, 0.5]])["normalized_score"] == 0.5


def test_a_column_without_the_measure_is_left_out():
    """Task 2 has no choices, hence no likelihood: what is left is tasks 1 and 3."""
    matrix = [[row[0], None, row[2]] for row in THREE]
    metrics = summarize(matrix)
    assert metrics["ACC"] == pytest.approx((0.6 + 1.0) / 2)
    assert metrics["MAA"] == pytest.approx((0.8 + 0.5 + (0.6 + 1.0) / 2) / 3)
    assert metrics["BWT"] == pytest.approx(-0.2)
    assert metrics["FWT"] == pytest.approx(0.1)
    assert metrics["forgetting"] == pytest.approx(0.3)
    assert metrics["forgetting_final"] == pytest.approx(0.2)
    assert metrics["retention"] == pytest.approx(0.75)
    assert metrics["normalized_score"] == pytest.approx((0.75 + 1.0) / 2)


def test_a_missing_cell_removes_its_task_only_from_the_metrics_that_need_it():
    matrix = copy.deepcopy(THREE)
    matrix[2][0] = None
    metrics = summarize(matrix)
    assert metrics["ACC"] == pytest.approx(BY_HAND["ACC"])
    assert metrics["BWT"] == pytest.approx(BY_HAND["BWT"])
    assert metrics["forgetting"] == pytest.approx(0.2)
    assert metrics["normalized_score"] == pytest.approx((0.7 / 0.9 + 1.0) / 2)


def test_nothing_measured_is_null_everywhere():
    assert set(summarize([[None, None]] * 3).values()) == {None}


@pytest.mark.parametrize(
    ("matrix", "joint", "message"),
    [
        ([[0.1, 0.2]] * 4, False, "4 rows for 2 tasks; at most 3"),
        ([[0.1, 0.2]] * 3, True, "3 rows for 2 tasks; at most 2"),
        ([[0.1, 0.2], [0.3]], False, "row 1 has 1 scores, row 0 has 2"),
        ([[0.1, math.nan]], False, "row 0, column 1 is nan"),
        ([[0.1, 0.1], [math.inf, 0.1]], False, "row 1, column 0 is inf"),
        ([["0.5", 0.1]], False, "row 0, column 0 is '0.5'"),
        ([[True, 0.1]], False, "row 0, column 0 is True"),
    ],
)
def test_wrong_matrices_are_refused(matrix, joint, message):
    with pytest.raises(InputError, match=message):
        summarize(matrix, joint)


def matrices(minimum: int = 2, cell: st.SearchStrategy = SCORES):
    def of_size(tasks: int):
        row = st.lists(cell, min_size=tasks, max_size=tasks)
        return st.lists(row, min_size=tasks + 1, max_size=tasks + 1)

    return st.integers(minimum, 6).flatmap(of_size)


@given(matrices(minimum=1, cell=st.one_of(st.none(), st.floats(0, 1))))
def test_the_input_is_never_edited(matrix):
    before = copy.deepcopy(matrix)
    summarize(matrix)
    assert matrix == before
    scores = to_array(matrix)
    kept = scores.copy()
    for metric in METRICS.values():
        if scores.shape[1] >= 2:
            metric(scores)
    np.testing.assert_array_equal(scores, kept)


@given(matrices())
def test_bounds_and_relations(matrix):
    metrics = summarize(matrix)
    assert 0 <= metrics["ACC"] <= 1 and 0 <= metrics["MAA"] <= 1
    assert 0 <= metrics["normalized_score"] <= 1 + 1e-12
    # the worst later fall is at least the fall at the end, and so is the fall from the best score
    assert metrics["forgetting"] >= -metrics["BWT"] - 1e-12
    assert metrics["forgetting_final"] >= -metrics["BWT"] - 1e-12


@given(matrices(), st.floats(-1, 1))
def test_differences_ignore_a_shift(matrix, shift):
    moved = summarize([[cell + shift for cell in row] for row in matrix])
    before = summarize(matrix)
    for name in ("BWT", "FWT", "forgetting", "forgetting_final"):
        assert moved[name] == pytest.approx(before[name], abs=1e-9)
    assert moved["ACC"] == pytest.approx(before["ACC"] + shift, abs=1e-9)


@given(matrices(cell=st.floats(0.01, 1)), st.floats(0.5, 2))
def test_ratios_ignore_a_scale(matrix, scale):
    scaled, before = summarize([[cell * scale for cell in row] for row in matrix]), summarize(matrix)
    for name in ("retention", "normalized_score"):
        assert scaled[name] == pytest.approx(before[name], rel=1e-9)


@given(st.lists(st.floats(0.01, 1), min_size=2, max_size=6))
def test_a_model_that_never_changes(row):
    metrics = summarize([row] * (len(row) + 1))
    assert metrics["BWT"] == metrics["FWT"] == metrics["forgetting"] == metrics["forgetting_final"] == 0
    assert metrics["retention"] == pytest.approx(1) and metrics["normalized_score"] == pytest.approx(1)
