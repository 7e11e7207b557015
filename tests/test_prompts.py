"""What the model is shown, which labels it is asked for, and which of what it wrote are taken."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retain.cards import TaskCard
from retain.config import make_config
from retain.quality.filters import Candidate, Reference
from retain.quality.funnel import Funnel
from retain.synthesis.prompts import conditions_on_label, prompts
from retain.synthesis.selection import in_proportion
from retain.synthesis.writer import Writer
from retain.synthesis_sections import SynthesisConfig
from retain.types import Frame, InputError

SHARES = {"red": 0.5, "blue": 0.3, "green": 0.2}
POOL = [(f"input {k}", label) for label, count in (("red", 5), ("blue", 3)) for k in range(count)]


def card(shares=SHARES):
    return TaskCard("color", "Say the color.", Frame(), Reference(choices=tuple(shares), shares=shares), 10, 1)


def config(**changes):
    changes = {"method": "in-context", "demonstrations": 2, "demonstrations_from": "training", **changes}
    return SynthesisConfig(class_conditioned=True, **changes)


@given(st.lists(st.floats(0.01, 1.0), min_size=1, max_size=6), st.integers(0, 60))
def test_the_first_n_follow_the_weights(weights, amount):
    shares = {k: weight / sum(weights) for k, weight in enumerate(weights)}
    found = in_proportion(shares, amount)
    assert len(found) == amount
    for n in range(amount + 1):
        counts = Counter(found[:n])
        assert all(abs(counts[k] - share * n) < len(shares) for k, share in shares.items())
        assert all(counts[k] < share * n + 1 for k, share in shares.items()), "none comes too early"


@given(st.dictionaries(st.integers(0, 5), st.integers(0, 8), min_size=1), st.integers(0, 40))
def test_room_is_kept_and_filled(room, amount):
    found = Counter(in_proportion(dict.fromkeys(room, 1.0), amount, room))
    assert sum(found.values()) == min(amount, sum(room.values()))
    assert all(found[key] <= room[key] for key in found)


def test_what_one_label_lacks_the_others_fill():
    assert Counter(in_proportion(SHARES, 10, {"red": 9, "blue": 9, "green": 1})) == {"red": 6, "blue": 3, "green": 1}
    assert in_proportion({"red": 0.0, "blue": 0.0}, 3, {"red": 1, "blue": 1}) == ["red", "blue"]


@pytest.mark.parametrize("method", ["in-context", "pairs"])
def test_prompts_show_samples_of_the_label_asked_for(method):
    labels = ["red", "blue", "green", None] * 20
    texts = prompts(config(method=method), card(), labels, POOL, (1, 2))
    assert texts == prompts(config(method=method), card(), labels, POOL, (1, 2)), "a function of the seed"
    assert texts != prompts(config(method=method), card(), labels, POOL, (1, 3))
    for label, text in zip(labels, texts, strict=True):
        shown = [line.removeprefix("Output: ") for line in text.splitlines() if line.startswith("Output: ")]
        assert len(shown) == 2 and text.endswith("Input:") and text.count("Input: ") == 2
        assert label not in ("red", "blue") or set(shown) == {label}
    assert len(set(texts[::4])) > 5, "each prompt shows others"
    assert len(prompts(config(demonstrations=50), card(), ["blue"], POOL, (1,))[0].split("Output:")) == 4


def test_only_prompts_that_show_or_name_a_label_ask_for_one():
    assert conditions_on_label(config(), card()) and not conditions_on_label(config(), card({}))
    assert not conditions_on_label(config(demonstrations_from="kept"), card())
    assert conditions_on_label(SynthesisConfig(class_conditioned=True), card())


def test_labels_that_lack_are_asked_for_and_shares_are_taken():
    writer = Writer.__new__(Writer)
    writer.synthesis, writer.config = config(), make_config({"tasks": []}, "test", need_tasks=False)
    written = [Candidate(f"text {k}", label) for k, label in enumerate(["red"] * 9 + ["blue"] * 2 + ["green"] * 3)]
    assert writer._lacking(card(), Funnel(written), 10) == {"blue": 1}
    taken = Counter(one.answer for one in writer._selected(card(), written, 10))
    assert taken == {"red": 6, "blue": 2, "green": 2}, "what blue lacks, red fills"
    writer.synthesis = SynthesisConfig()
    assert writer._lacking(card(), Funnel(written), 16) == {None: 2} and not writer._lacking(card(), Funnel(written), 3)
    assert writer._selected(card(), written, 3) == written[:3]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"synthesis": {"demonstrations_from": "training"}}, "two-stage shows no samples"),
        ({"synthesis": {"method": "in-context", "demonstrations_from": "training"}}, "how many each prompt shows"),
        ({"synthesis": {"answers": "asked"}}, "asked needs class_conditioned: true"),
        (
            {
                "synthesis": {"method": "pairs", "demonstrations_from": "training"},
                "storage": {"mode": "cached"},
            },
            "cached writes when a task's data are gone",
        ),
    ],
)
def test_what_cannot_be_shown_is_refused(changes, said):
    with pytest.raises(InputError, match=said):
        make_config({"tasks": [], "strategy": "ssr", **changes}, "test", need_tasks=False)
