"""`simulate`: golden answers, agreement with the scalar reference, and one clear message an error."""

import copy
import json
import math
import random
import runpy
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retain.memory.simulate import simulate
from retain.types import InputError

pytestmark = pytest.mark.filterwarnings("error")
FOLDER = Path(__file__).parent / "golden"
GOLDEN = json.loads((FOLDER / "memory.json").read_text())
REFERENCE = runpy.run_path(str(FOLDER / "make_memory.py"))


def assert_same(found, expected):
    """Equal in shape and order, numbers to a relative 1e-11 (sums of ticks cancel)."""
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        for key in expected:
            assert_same(found[key], expected[key])
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    elif expected is None or isinstance(expected, str):
        assert found == expected
    else:
        assert found == pytest.approx(expected, rel=1e-11, abs=1e-14)


@pytest.mark.parametrize("case", range(len(GOLDEN)))
def test_golden_answers(case):
    assert_same(simulate(GOLDEN[case]["trace"]), GOLDEN[case]["answers"])


def test_the_golden_file_is_what_its_script_makes():
    assert_same(json.loads(json.dumps(REFERENCE["make"]())), GOLDEN)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(REFERENCE["CONFIGS"]))
def test_agrees_with_the_scalar_reference_on_any_trace(seed, config):
    trace = REFERENCE["random_trace"](random.Random(seed), config)
    assert_same(simulate(trace), REFERENCE["run"](trace))


def trace(*ops, **config):
    return {"config": {"time_unit": 1, **config}, "ops": list(ops)}


def query(*ops, **config):
    return simulate(trace(*ops, **config))["queries"][-1]["samples"]


def test_output_to_the_letter():
    answers = simulate(
        trace(
            {"op": "add", "ids": ["b", "a"], "step": 0, "losses": [2, None]},
            {"op": "query", "step": 5},
            {"op": "remove", "ids": ["b"]},
            {"op": "query", "step": 5},
        )
    )
    known = {
        "log_strength": -0.55,
        "stability": 1.0,
        "ema_loss": 2.0,
        "hazard": 0.11,
        "last_review": 0,
        "reviews": 0,
        "log_priority": 0.55,
    }
    unknown = {**known, "ema_loss": None}
    assert answers == {
        "queries": [
            {"step": 5, "samples": {"b": known, "a": unknown}},
            {"step": 5, "samples": {"a": unknown}},
        ]
    }


def test_answers_are_strict_json():
    for priority in ("retention", "risk", "gain", "uniform"):
        found = simulate(
            trace({"op": "add", "ids": ["\ud800"], "step": 0}, {"op": "query", "step": 0}, priority=priority)
        )
        assert "-0.0" not in json.dumps(found, allow_nan=False)


def test_minus_infinity_is_null():
    add = {"op": "add", "ids": ["a"], "step": 3}
    assert query(add, {"op": "query", "step": 3}, priority="risk")["a"]["log_priority"] is None
    assert query(add, {"op": "query", "step": 3}, priority="risk", beta_m=0)["a"]["log_priority"] == 0.0
    assert query(add, {"op": "query", "step": 9}, priority="gain", alpha=0, gamma_d=0)["a"]["log_priority"] is None


def test_last_review_starts_at_entry():
    found = query({"op": "add", "ids": ["a"], "step": 7}, {"op": "query", "step": 9})
    assert found["a"]["last_review"] == 7


def test_no_operations_and_no_samples():
    assert simulate(trace()) == {"queries": []}
    assert simulate(trace({"op": "refresh", "step": 0}, {"op": "query", "step": 0})) == {
        "queries": [{"step": 0, "samples": {}}]
    }


def test_no_refresh_that_the_trace_does_not_name():
    found = query(
        {"op": "add", "ids": ["a", "b"], "step": 0, "losses": [1, 2]},
        {"op": "observe", "ids": ["a"], "losses": [9]},
        {"op": "query", "step": 10_000},
    )
    assert found["a"]["hazard"] == found["b"]["hazard"] == 0.11


def test_the_trace_is_not_changed():
    given_trace = trace({"op": "add", "ids": ["a"], "step": 0, "losses": [1]}, {"op": "query", "step": 2})
    before = copy.deepcopy(given_trace)
    simulate(given_trace)
    assert given_trace == before


ADD = {"op": "add", "ids": ["a", "b"], "step": 5}
NAMES = "add, observe, refresh, review, remove, unit, query"
OPERATION_ERRORS = [
    (7, "ops[1] = 7: must be an object with the key 'op'."),
    ({}, f"ops[1].op: is missing. Allowed: {NAMES}."),
    ({"op": "reveiw"}, f"ops[1].op = 'reveiw': is unknown; did you mean review? Allowed: {NAMES}."),
    ({"op": [1]}, f"ops[1].op = [1]: is unknown; Allowed: {NAMES}."),
    ({"op": "query"}, "ops[1].step: is missing; needed: op, step."),
    ({"op": "review", "ids": ["a"], "step": 9}, "ops[1].losses: is missing; needed: op, ids, losses, step."),
    ({"op": "unit", "step": 9}, "ops[1].time_unit: is missing; needed: op, time_unit, step."),
    (
        {"op": "query", "step": 9, "stpe": 1},
        "ops[1]: has the unknown key 'stpe'; did you mean step? Allowed: op, step.",
    ),
    ({"op": "query", "step": 4}, "ops[1].step = 4: comes before step 5, which has been."),
    ({"op": "query", "step": 9.5}, "ops[1].step = 9.5: must be an integer from 0 to 2**53."),
    ({"op": "query", "step": True}, "ops[1].step = True: must be an integer from 0 to 2**53."),
    ({"op": "query", "step": "9"}, "ops[1].step = '9': must be an integer from 0 to 2**53."),
    ({"op": "query", "step": None}, "ops[1].step = None: must be an integer from 0 to 2**53."),
    ({"op": "query", "step": -1}, "ops[1].step = -1: must be from 0 to 2**53."),
    ({"op": "query", "step": 10**400}, "ops[1].step = an integer of 1329 bits: must be from 0 to 2**53."),
    ({"op": "refresh", "step": 4}, "ops[1].step = 4: comes before step 5, which has been."),
    (
        {"op": "review", "ids": ["a"], "losses": [1], "step": 4},
        "ops[1].step = 4: comes before step 5, which has been.",
    ),
    ({"op": "add", "ids": ["c"], "step": 4}, "ops[1].step = 4: comes before step 5, which has been."),
    ({"op": "unit", "time_unit": 2, "step": 4}, "ops[1].step = 4: comes before step 5, which has been."),
    ({"op": "unit", "time_unit": 0, "step": 9}, "ops[1].time_unit = 0: must be a number above 0"),
    ({"op": "unit", "time_unit": "auto", "step": 9}, "ops[1].time_unit = 'auto': must be a number above 0"),
    ({"op": "unit", "time_unit": True, "step": 9}, "ops[1].time_unit = True: must be a number above 0"),
    ({"op": "unit", "time_unit": math.nan, "step": 9}, "ops[1].time_unit = nan: must be a number above 0"),
    (
        {"op": "unit", "time_unit": 10**400, "step": 9},
        "ops[1].time_unit = an integer of 1329 bits: must be a",
    ),
    ({"op": "add", "ids": "c", "step": 9}, "ops[1].ids = 'c': must be a list."),
    ({"op": "add", "ids": {"c": 1}, "step": 9}, "ops[1].ids = {'c': 1}: must be a list."),
    ({"op": "add", "ids": ["c", 1], "step": 9}, "ops[1].ids[1] = 1: must be a string."),
    ({"op": "add", "ids": [["c"]], "step": 9}, "ops[1].ids[0] = ['c']: must be a string."),
    (
        {"op": "add", "ids": ["c", "a"], "step": 9},
        "ops[1].ids[1] = 'a': is tracked already. Remove it first.",
    ),
    ({"op": "add", "ids": ["c", "c"], "step": 9}, "ops[1].ids[1] = 'c': is twice in one call."),
    ({"op": "add", "ids": ["c"], "step": 9, "losses": 1}, "ops[1].losses = 1: must be a list."),
    ({"op": "add", "ids": ["c"], "step": 9, "losses": []}, "ops[1].losses: has 0 entries for 1 ids."),
    (
        {"op": "add", "ids": ["c"], "step": 9, "losses": [math.nan]},
        "ops[1].losses[0] = nan: must be a finite number",
    ),
    (
        {"op": "add", "ids": ["c"], "step": 9, "losses": [-math.inf]},
        "ops[1].losses[0] = -inf: must be a finite",
    ),
    ({"op": "observe", "ids": ["z"], "losses": [1]}, "ops[1].ids[0] = 'z': is not tracked. Add it first."),
    ({"op": "observe", "ids": ["a"], "losses": [True]}, "ops[1].losses[0] = True: must be a finite number."),
    ({"op": "observe", "ids": ["a"], "losses": ["1"]}, "ops[1].losses[0] = '1': must be a finite number."),
    ({"op": "observe", "ids": ["a"], "losses": [None]}, "ops[1].losses[0] = None: must be a finite number."),
    (
        {"op": "observe", "ids": ["a"], "losses": [10**400]},
        "ops[1].losses[0] = an integer of 1329 bits: must be",
    ),
    ({"op": "observe", "ids": ["a"], "losses": [1, 2]}, "ops[1].losses: has 2 entries for 1 ids."),
    (
        {"op": "observe", "ids": ["a"], "losses": [1], "step": 9},
        "ops[1]: has the unknown key 'step'; Allowed: op,",
    ),
    (
        {"op": "review", "ids": ["a", "a"], "losses": [1, 1], "step": 9},
        "ops[1].ids[1] = 'a': is twice in one call.",
    ),
    ({"op": "remove", "ids": ["a", "z"]}, "ops[1].ids[1] = 'z': is not tracked. Add it first."),
]


@pytest.mark.parametrize(("operation", "message"), OPERATION_ERRORS)
def test_an_error_in_an_operation_names_it(operation, message):
    with pytest.raises(InputError) as caught:
        simulate(trace(ADD, operation))
    assert str(caught.value).startswith(message)


def test_a_query_counts_as_a_step():
    with pytest.raises(InputError, match=r"ops\[2\]\.step = 8: comes before step 9"):
        simulate(trace(ADD, {"op": "query", "step": 9}, {"op": "refresh", "step": 8}))
    with pytest.raises(InputError, match=r"ops\[2\]\.step = 8: comes before step 9"):
        simulate(trace(ADD, {"op": "query", "step": 9}, {"op": "query", "step": 8}))


CONFIG_ERRORS = [
    ({}, "config.time_unit: is missing; a simulation needs a number (steps per tick)."),
    ({"time_unit": "auto"}, "config.time_unit = 'auto': must be a number above 0"),
    ({"time_unit": 0}, "config.time_unit = 0: must be a number above 0"),
    ({"time_unit": -2}, "config.time_unit = -2: must be a number above 0"),
    ({"time_unit": True}, "config.time_unit = True: must be a number above 0"),
    ({"time_unit": None}, "config.time_unit = None: must be a number above 0"),
    ({"time_unit": math.nan}, "config.time_unit = nan: must be a number above 0"),
    ({"time_unit": 10**400}, "config.time_unit = an integer of 1329 bits: must be a number above 0"),
    ({"time_unit": 1, "alhpa": 1}, "config.alhpa: unknown key; did you mean alpha?"),
    ({"time_unit": 1, "refresh_every": 5}, "config.refresh_every: unknown key"),
    ({"time_unit": 1, "alpha": -0.1}, "config.alpha: -0.1 is too small"),
    ({"time_unit": 1, "alpha": True}, "config.alpha: true is not a number"),
    ({"time_unit": 1, "alpha": "0.1"}, "config.alpha: '0.1' is not a number"),
    ({"time_unit": 1, "alpha": None}, "config.alpha: null is not a number"),
    ({"time_unit": 1, "alpha": math.nan}, "config.alpha: nan is not a finite number"),
    ({"time_unit": 1, "alpha": math.inf}, "config.alpha: inf is not a finite number"),
    ({"time_unit": 1, "alpha": 10**400}, "config.alpha: 1000"),
    ({"time_unit": 1, "alpha": 1e60}, "config.alpha = 1e+60: must be at most 1e+50 in magnitude."),
    ({"time_unit": 1, "ema_beta": 1}, "config.ema_beta: 1 is too large"),
    ({"time_unit": 1, "phi": "sigmiod"}, "config.phi: 'sigmiod' is not one of sigmoid, identity, power, log"),
    ({"time_unit": 1, "s_min": 20}, "config.s_max: 10 is below s_min (20)"),
    ({"time_unit": 1, "quantile_low": 0.99}, "config.quantile_high: 0.95 is not above quantile_low (0.99)"),
    ({"time_unit": 1, "sigma_s": 0.1}, "config.sigma_s = 0.1: must be 0; a trace has no seed for the noise."),
    ({"time_unit": 1, "priority": "confidence"}, "config.priority = 'confidence': needs confidences"),
    ([], "config = []: must be an object of memory fields."),
]


@pytest.mark.parametrize(("config", "message"), CONFIG_ERRORS)
def test_an_error_in_the_config_names_the_field(config, message):
    with pytest.raises(InputError) as caught:
        simulate({"config": config, "ops": []})
    assert str(caught.value).startswith(message)


def test_all_that_is_wrong_with_the_config_is_one_message():
    with pytest.raises(InputError) as caught:
        simulate({"config": {"alpha": -1, "zeta": "x", "sigma": 2}, "ops": []})
    assert [line.split(":")[0] for line in str(caught.value).split("\n")] == [
        "config.time_unit", "config.alpha", "config.zeta", "config.sigma",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([], "trace = []: must be an object with config, ops."),
        (None, "trace = None: must be an object with config, ops."),
        ({"ops": []}, "trace.config: is missing; needed: config, ops."),
        ({"config": {"time_unit": 1}}, "trace.ops: is missing; needed: config, ops."),
        ({"config": {"time_unit": 1}, "ops": {}}, "ops = {}: must be a list of operations."),
        (
            {"config": {}, "ops": [], "confg": 1},
            "trace: has the unknown key 'confg'; did you mean config? Allowed:",
        ),
    ],
)
def test_a_trace_that_is_none(wrong, message):
    with pytest.raises(InputError) as caught:
        simulate(wrong)
    assert str(caught.value).startswith(message)
