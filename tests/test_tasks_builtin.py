import re
from collections import Counter
from datetime import date
from random import Random

import pytest

from retain.tasks.builtin import BUILTIN, split_of
from retain.types import InputError

SPLITS = ("train", "validation", "test")
by_name = pytest.mark.parametrize("name", BUILTIN)


@by_name
def test_the_same_for_the_same_seed_and_longer_is_a_continuation(name):
    task = BUILTIN[name]
    assert task.generate("train", 50, 1) == task.generate("train", 50, 1)
    assert task.generate("train", 80, 1)[:50] == task.generate("train", 50, 1)
    assert task.generate("train", 50, 1) != task.generate("train", 50, 2)
    assert task.generate("train", 0, 1) == []


@by_name
def test_splits_are_disjoint_over_seeds_and_sizes(name):
    inputs = {
        split: [row["input"] for seed in (1, 2) for row in BUILTIN[name].generate(split, 600, seed)] for split in SPLITS
    }
    for split in SPLITS:
        assert len(set(inputs[split][:600])) == 600
        assert all(split_of(text) == split for text in inputs[split])
    assert not set(inputs["train"]) & set(inputs["test"])
    assert not set(inputs["train"]) & set(inputs["validation"])
    assert not set(inputs["validation"]) & set(inputs["test"])


@by_name
def test_rows_are_short_varied_and_well_formed(name):
    task = BUILTIN[name]
    rows = task.generate("train", 4000, 3)
    assert task.name == name and len(task.instruction.split()) <= 15
    assert len(task.description.split()) >= 15 and len(task.summary) <= 60
    answers: dict[str, str] = {}
    for row in rows:
        assert list(row)[:3] == ["instruction", "input", "output"]
        assert row["instruction"] == task.instruction and row.get("choices", []) == list(task.choices)
        assert len(row["input"].split()) <= 30 and row["output"].strip()
        assert not re.search(r"[{}@#_]", row["input"].replace("@mail", "").replace("@work", "").replace("@post", ""))
        assert answers.setdefault(row["input"], row["output"]) == row["output"]
    if task.choices:
        counts = Counter(row["output"] for row in rows)
        assert set(counts) == set(task.choices)
        assert min(counts.values()) > 0.6 * len(rows) / len(task.choices)


def test_the_mix_of_kinds():
    assert 6 <= len(BUILTIN) <= 8
    assert sum(bool(task.choices) for task in BUILTIN.values()) >= 3
    instructions = {task.instruction for task in BUILTIN.values()}
    labels = [label for task in BUILTIN.values() for label in task.choices]
    assert len(instructions) == len(BUILTIN) and len(labels) == len(set(labels))


def test_answers_follow_from_the_inputs():
    for row in BUILTIN["order_number"].generate("test", 300, 5):
        assert re.fullmatch(r"[A-Z]{2}-\d{4,5}", row["output"]) and row["input"].count(row["output"]) == 1
        assert len(re.findall(r"[A-Z]{2}-\d{4}", row["input"])) == 1
    for row in BUILTIN["iso_date"].generate("test", 300, 5):
        day = date.fromisoformat(row["output"])
        assert f"{day:%B}" in row["input"] and str(day.year) in row["input"] and f"{day.day}" in row["input"]
    for row in BUILTIN["invoice_total"].generate("test", 300, 5):
        amounts = [int(amount) for amount in re.findall(r"\$(\d+)", row["input"])]
        assert len(amounts) == 2 and row["output"] == f"${sum(amounts)}"


def test_asking_for_more_than_there_is():
    tiny = BUILTIN["iso_date"].__class__("tiny", "", "", "i", lambda random: (str(random.randint(1, 30)), "x"))
    assert len(tiny.generate("train", 5, 1)) == 5
    with pytest.raises(InputError, match="builtin:tiny has no 1000 different train rows; ask for fewer"):
        tiny.generate("train", 1000, 1)


def test_split_shares():
    counts = Counter(split_of(str(Random(i).random())) for i in range(5000))
    assert counts["train"] == pytest.approx(3500, abs=150) and counts["test"] == pytest.approx(1000, abs=120)
