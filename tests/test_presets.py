"""The named strategies and how they mix with the user's own keys."""

from __future__ import annotations

import copy

import pytest

from retain.presets import PRESETS, REGULARIZERS, EwcOptions, Resolved, preset_of, resolve
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
        (
            "surprise",
            {"kind": "every", "ratio_form": "constant"},
            {"priority": "uniform"},
            {"admission": "surprise"},
        ),
        (
            "mir",
            {"kind": "every", "ratio_form": "constant"},
            {"priority": "uniform", "candidates": 5},
            {"admission": "reservoir"},
        ),
        (
            "forever",
            {"kind": "expanding", "ratio_form": "constant", "clock": "updates"},
            {"priority": "uniform"},
            None,
        ),
        ("loss", {"kind": "loss", "ratio_form": "constant"}, {"priority": "uniform"}, None),
        ("accuracy", {"kind": "accuracy", "ratio_form": "constant"}, {"priority": "uniform"}, None),
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
    assert preset_of(value) == Resolved("mssr", replay="mssr", keeps_buffer=True)


PARTS = ("name", "replay", "source", "joint", "keeps_buffer")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("none", ("none", None, None, False, False)),
        ("joint", ("joint", None, None, True, False)),
        ("ewc", ("ewc", None, None, False, False)),
        ("none + ewc", ("ewc", None, None, False, False)),
        ("ewc+mssr", ("mssr + ewc", "mssr", None, False, True)),
        (["agem", "ewc + er", "si"], ("er + si + ewc + agem", "er", None, False, True)),
        ("gem", ("gem", None, None, False, True)),
        ("none+agem", ("agem", None, None, False, True)),
        ("der++", ("der++", "er", None, False, True)),
        ("der+++", None),
        ("gem + der++", ("der++ + gem", "er", None, False, True)),
        ("der++ + mssr", ("mssr + der++", "mssr", None, False, True)),
        ("ssr", ("ssr", None, "ssr", False, True)),
        ("mssr + ssr", ("ssr + mssr", "mssr", "ssr", False, True)),
        ("ewc + lamol", ("lamol + ewc", None, "lamol", False, True)),
        ("der++ + ssr-paper", ("ssr-paper + der++", None, "ssr-paper", False, True)),
    ],
)
def test_what_a_combination_means(value, expected):
    if expected is None:
        with pytest.raises(InputError, match=r"unknown strategy 'der\+\+\+'; did you mean 'der\+\+'"):
            preset_of(value)
        return
    found = preset_of(value)
    assert tuple(getattr(found, part) for part in PARTS) == expected
    assert preset_of(found.name) == found, "the canonical name means the same"


def test_options_are_kept_and_defaults_filled_in():
    chosen = preset_of([{"name": "ewc", "weight": 5.0, "online": True}, "mssr", "si"])
    [(si, defaults), (ewc, options)] = chosen.regularizers
    assert (ewc, si) == ("ewc", "si")
    assert options == EwcOptions(weight=5.0, online=True) and defaults == REGULARIZERS["si"].options()
    written = resolve({"strategy": [{"name": "ewc", "weight": 5.0, "online": True}, "mssr", "si"]})["strategy"]
    assert written == ["mssr", {"name": "si", **defaults.model_dump()}, {"name": "ewc", **options.model_dump()}]
    assert preset_of(written) == chosen


@pytest.mark.parametrize(
    ("strategy", "buffer", "schedule"),
    [
        ("gem", {"admission": "reservoir"}, None),
        ("gem + mssr", None, {"kind": "expanding", "ratio_form": "interpolated"}),
        ("der++", {"admission": "reservoir"}, {"kind": "every", "ratio_form": "constant"}),
        ("ewc", None, None),
        ("ssr + agem", None, None),
    ],
)
def test_defaults_of_a_combination(strategy, buffer, schedule):
    resolved = resolve({"strategy": strategy})
    assert (resolved.get("buffer"), resolved.get("schedule")) == (buffer, schedule)


@pytest.mark.parametrize("name", REGULARIZERS)
def test_every_regularizer_has_a_summary_and_defaults(name):
    row = REGULARIZERS[name]
    assert row.summary and row.options() and (row.preset is None or row.preset in PRESETS)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("msr", r"unknown strategy 'msr'; did you mean 'mssr'\? known are none, fixed, er, surprise, "),
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
            r"strategy 'er' takes no option 'size'; .* the sections schedule, trigger, memory and buffer",
        ),
        ({"name": "ssr", 3: 1}, r"strategy 'ssr' takes no option '3'; .* sections synthesis, filters, curriculum"),
        ("none + er", r"'none \+ er' names 2 replay strategies"),
        ("ssr + lamol", r"'ssr \+ lamol' names 2 sources of synthetic data; a run takes one"),
        ("ewc + si + ewc", r"'ewc' stands twice"),
        ("joint + ewc + si", r"'joint' trains all tasks in one stage and stands alone; leave out ewc and si"),
        ("none + ssr", r"'none' replays nothing and 'ssr' does; leave one of them out"),
        ("none + ewc + der++", r"'none' replays nothing and 'der\+\+' does"),
        ("ewc + o-lora", r"'o-lora \+ ewc' do not go together: o-lora freezes the weights that ewc would hold"),
        (["osf", "o-lora"], r"'o-lora \+ osf' do not go together: each brings an adapter of its own kind"),
        ({"name": "ewc", "wieght": 1.0}, r"options of 'ewc': wieght: unknown key; did you mean weight\?"),
        (
            {"name": "ewc", 5: 1.0},
            r"options of 'ewc': 5: unknown key \(allowed: weight, online, decay, samples, lab",
        ),
        ({"name": "ewc", "weight": -1}, r"options of 'ewc': weight: -1 is too small \(allowed: at least 0\)"),
        (
            {"name": "ewc", "weight": "1"},
            r"weight: '1' is not a number but text; remove the quotes \(allowed: at le",
        ),
        ({"name": "ewc", "decay": 1.5}, r"decay: 1.5 is too large \(allowed: 0 to 1\)"),
        ({"name": "ewc", "labels": "modl"}, r"labels: 'modl' is not one of model, data; did you mean model\?"),
        ({"name": "gem", "samples": 1.5}, r"options of 'gem': samples: 1.5 .*whole number of at least 1"),
        ({"name": "l2", "weight": float("nan")}, r"weight: nan is not a finite number"),
        ([{"name": "der++", "top_k": 0, "alpha": -1}], r"options of 'der\+\+': 2 problems"),
    ],
)
def test_messages(value, message):
    with pytest.raises(InputError, match=message):
        resolve({"strategy": value})
