"""The named strategies and how they mix with the user's own keys."""

from __future__ import annotations

import copy

import pytest

from retain.presets import PRESETS, parse_strategy, preset_of, resolve
from retain.types import InputError


@pytest.mark.parametrize(
    ("name", "schedule", "memory", "buffer"),
    [
        ("fixed", {"kind": "fixed", "ratio_form": "constant"}, {"priority": "uniform"}, None),
        (
            "er",
            {"kind": "every", "ratio_form": "constant"},
            {"priority": "uniform"},
            {"admission": "reservoir"},
        ),
        ("mssr-sch", {"kind": "expanding", "ratio_form": "interpolated"}, {"priority": "uniform"}, None),
        ("mssr-spl", {"kind": "fixed", "ratio_form": "constant"}, {"priority": "retention"}, None),
        ("mssr", {"kind": "expanding", "ratio_form": "interpolated"}, {"priority": "retention"}, None),
        ("none", None, None, None),
        ("joint", None, None, None),
    ],
)
def test_rows_of_the_table(name, schedule, memory, buffer):
    resolved = resolve({"strategy": name})
    assert [resolved.get(section) for section in ("schedule", "memory", "buffer")] == [
        schedule,
        memory,
        buffer,
    ]


def test_only_none_and_joint_do_not_replay():
    assert {name for name, preset in PRESETS.items() if not preset.replay} == {"none", "joint"}
    assert {name for name, preset in PRESETS.items() if preset.joint} == {"joint"}
    assert all(preset.summary for preset in PRESETS.values())


def test_the_users_keys_win_and_the_input_stays():
    raw = {"strategy": "er", "schedule": {"kind": "fixed"}, "buffer": {"capacity": 9}, "seed": 1}
    before = copy.deepcopy(raw)
    assert resolve(raw) == {
        "strategy": "er",
        "schedule": {"kind": "fixed", "ratio_form": "constant"},
        "memory": {"priority": "uniform"},
        "buffer": {"admission": "reservoir", "capacity": 9},
        "seed": 1,
    }
    assert raw == before


def test_without_a_strategy_it_is_mssr():
    assert resolve({})["schedule"] == {"kind": "expanding", "ratio_form": "interpolated"}


def test_a_section_that_is_no_mapping_is_left_for_the_config_to_report():
    assert resolve({"strategy": "er", "schedule": 3})["schedule"] == 3


@pytest.mark.parametrize("value", ["mssr", " mssr ", ["mssr"], {"name": "mssr"}, [{"name": "mssr"}]])
def test_forms_of_a_strategy(value):
    assert parse_strategy(value) == [("mssr", {})]
    assert preset_of(value) is PRESETS["mssr"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("msr", r"unknown strategy 'msr'; did you mean 'mssr'\? known are none, fixed, er, mssr-sch, "),
        ("MSSR", r"unknown strategy 'MSSR'; did you mean 'mssr'\?"),
        ("qqqqq", r"unknown strategy 'qqqqq'; known are none,"),
        ("mssr + ", r"unknown strategy ''; known are none,"),
        ("fixed + mssr", r"'fixed \+ mssr' names 2 replay strategies; a run takes one of them"),
        (["fixed", {"name": "er"}], r"'fixed \+ er' names 2 replay strategies"),
        ([], r"\[\] names no strategy; known are none,"),
        (3, r'3 is neither a name nor \{"name": \.\.\., options\}; known are none,'),
        ({"nome": "er"}, r"\{'nome': 'er'\} is neither a name nor"),
        (
            {"name": "er", "size": 3},
            r"strategy 'er' takes no option 'size'; its settings stand in the sections",
        ),
    ],
)
def test_messages(value, message):
    with pytest.raises(InputError, match=message):
        resolve({"strategy": value})
