"""What holds for every source of synthetic data and every way of writing: runs of two tiny stages, in float64."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from test_run import adapter, journal, results, same_tensors
from test_storage import buffered
from tiny import save_tiny_model, stopped_in, write_tasks

import retain.synthesis.writer
from retain.cli_views import make_plan
from retain.config import load_config, make_config
from retain.run import run
from retain.store import read_lines
from retain.synthesis.selection import in_proportion

SHOWN = {"method": "in-context", "demonstrations_from": "training", "class_conditioned": True}
ON_TRAINING = ("adaptive", "similarity")  # kinds whose plan is a projection
CASES = {
    "ssr": {},
    "ssr-paper": {"strategy": "ssr-paper", "synthesis": {"samples": 4, "demonstrations": 2}},
    "lamol": {"strategy": "lamol", "synthesis": {"samples": 0.5}},
    "mssr + ssr": {"strategy": "mssr + ssr"},
    "ssr + ewc": {"strategy": ["ssr", {"name": "ewc", "samples": 4}]},
    "adaptive": {"curriculum": {"kind": "adaptive", "check_every": 1}},
    "similarity": {"curriculum": {"kind": "similarity"}},
    "growing": {"curriculum": {"kind": "growing"}},
    "concatenate": {"curriculum": {"kind": "concatenate"}},
    "joint": {"synthesis": {"method": "joint"}},
    "in-context": {"synthesis": {"method": "in-context", "demonstrations": 1}},
    "pairs": {"synthesis": {"method": "pairs", "demonstrations": 2}},
    "class_conditioned": {"synthesis": {"class_conditioned": True}},
    "demonstrations from training": {"synthesis": {**SHOWN, "demonstrations": 2}},
    "inputs by the base model": {"synthesis": {"inputs_by": "base"}},
    "pairs from training": {"synthesis": {**SHOWN, "method": "pairs"}},
    "the label asked for": {"synthesis": {**SHOWN, "demonstrations": 2, "answers": "asked"}},
    "mixed": {"synthesis": {"sampling": "mixed"}},
    "self_consistency": {"filters": {"self_consistency": 0.1, "votes": 2}},
    "kmeans": {"filters": {"select": "kmeans"}},
    "a buffer without room": {"buffer": {"capacity": 3}, "curriculum": {"kind": "concatenate"}},
}
OFF = {"heuristics": False, "perplexity": None, "consistency": None, "diversity": None}
LENGTHS = {"samples": 4, "max_input_tokens": 8, "max_output_tokens": 4, "max_joint_tokens": 12}


def run_case(folder, out, changes, tasks=2):
    """Two tasks of 24 samples each, in steps of 4."""
    entries = write_tasks(folder, train=24, test=2)[:tasks]
    values = {
        "model": {"name": str(save_tiny_model(folder / "model")), "dtype": "float64"},
        "tasks": [{**entry, "description": f"Say which {entry['name']} a line names"} for entry in entries],
        "strategy": "ssr",
        "training": {"learning_rate": 1.0e-2, "batch_size": 4, "max_steps": 3, "max_length": 256},
        "evaluation": {"batch_size": 4, "max_new_tokens": 2},
        "schedule": {"first_interval": 1},
        "monitor": {"perplexity_ratio": None},
        **changes,
        "synthesis": {**LENGTHS, **changes.get("synthesis", {})},
        "filters": {**OFF, **changes.get("filters", {})},
    }
    return run(make_config(values, "test"), folder, folder / out)


def stopped_and_resumed(folder, out, changes, monkeypatch):
    """A run that is stopped in its second stage and started again."""
    with stopped_in(2, monkeypatch):
        run_case(folder, out, changes)
    return run_case(folder, out, changes)


def answering(monkeypatch):
    """A random model hardly ever writes `Output:`; here it does, so that a joint text has both its parts."""
    real = retain.synthesis.writer.sample

    def sample(lm, *arguments, **options):
        found = real(lm, *arguments, **options)
        for text in found:
            text.ids += lm.tokenizer(
                f"\nOutput: {lm.tokenizer.decode(text.ids[-2:])}", add_special_tokens=False
            ).input_ids
        return found

    monkeypatch.setattr(retain.synthesis.writer, "sample", sample)


@pytest.mark.parametrize("case", CASES)
def test_contract_of_sources(case, tmp_path, monkeypatch):
    changes = CASES[case]
    if case in ("lamol", "joint"):
        answering(monkeypatch)
    one = run_case(tmp_path, "one", changes)
    again = stopped_and_resumed(tmp_path, "again", changes, monkeypatch)
    assert same_tensors(adapter(one), adapter(again)), "not deterministic, or another end after it was stopped"
    assert results(one)["matrices"] == results(again)["matrices"]
    assert buffered(one) == buffered(again)
    assert all(line["kept"] == line["asked"] for line in journal(one, "synthesis")), "the pool is full"
    assert_planned(one, projected=changes.get("curriculum", {}).get("kind") in ON_TRAINING)
    before = {"strategy": "none", "synthesis": {"generator_weight": 0.0}}
    assert not same_tensors(adapter(one), adapter(run_case(tmp_path, "none", before))), "does not act"


def assert_planned(out, projected=False):
    """What was replayed is what the plan said."""
    planned = {line["stage"]: [(e["step"], e["replayed"]) for e in line["events"]] for line in journal(out, "plan")}
    found = {stage: [] for stage in planned}
    for line in journal(out, "event"):
        found[line["stage"]].append((line["step"], line["replayed"]))
    taken = journal(out, "step")
    steps = {stage: sum(line["replayed"] for line in taken if line["stage"] == stage) for stage in planned}
    assert steps[1] == 0 and steps[2] > 0
    assert steps == {stage: sum(count for _, count in events) for stage, events in found.items()}
    if not projected:
        assert found == planned


def test_a_refresh_and_a_seed_are_in_the_plan(tmp_path):
    changes = {
        "storage": {"mode": "hybrid", "real_samples": 5, "refresh_every": 2},
        "buffer": {"seed": {"train": "color_test.jsonl"}},
        "curriculum": {"kind": "concatenate"},
    }
    out = run_case(tmp_path, "run", changes)
    planned = {line["stage"]: sum(e["replayed"] for e in line["events"]) for line in journal(out, "plan")}
    found = {k: sum(line["replayed"] for line in journal(out, "step") if line["stage"] == k) for k in (1, 2)}
    assert planned == found
    by_task = [line["by_task"] for line in journal(out, "event") if line["stage"] == 2]
    assert {task for counts in by_task for task in counts} == {"seed", "color"}


def test_the_first_stage_is_the_same_under_each_way_of_drawing(tmp_path):
    """Only what is written depends on how it is drawn; training before it does not."""
    one = run_case(tmp_path, "one", {}, tasks=1)
    other = run_case(tmp_path, "other", {"synthesis": {"temperature": 0.5, "top_k": 3}}, tasks=1)
    assert same_tensors(adapter(one), adapter(other)) and buffered(one) != buffered(other)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"synthesis": {"samples": 0.5, "every": 2}},
        {"storage": {"mode": "on-demand"}},
        {"storage": {"mode": "cached", "cache_size": 3}},
        {"strategy": "lamol", "synthesis": {"samples": 0.5}},
        {"strategy": "mssr", "buffer": {"seed": {"synthesize": {"samples": 4}}}},
        {"buffer": {"seed": {"synthesize": {"samples": 4}}}, "synthesis": {"max_joint_tokens": 40}},
    ],
    ids=["stored", "every", "on-demand", "cached", "lamol", "a seed alone", "a seed too"],
)
def test_the_plan_tells_how_much_is_written(changes, tmp_path):
    out = run_case(tmp_path, "run", changes, tasks=3)
    totals = make_plan(load_config(out / "config.yaml"), out)["totals"]
    written = journal(out, "synthesis")
    assert totals["synthetic_samples"] == sum(line["asked"] for line in written) > 0
    assert totals["generated_tokens_at_most"] >= sum(line["generated_tokens"] for line in written) > 0


@pytest.mark.parametrize("writer", ["latest", "base"])
def test_the_base_model_writes_the_same_inputs_whatever_was_learned(writer, tmp_path):
    written = []
    for out, rate in (("one", 1.0e-2), ("other", 1.0e-1)):
        training = {"learning_rate": rate, "batch_size": 4, "max_steps": 3, "max_length": 256}
        run_case(tmp_path, out, {"synthesis": {"inputs_by": writer}, "training": training}, tasks=1)
        written.append([line["input"] for line in read_lines(tmp_path / out / "stages/01-color/synthetic.jsonl.gz")])
    assert written[0] and (written[0] == written[1]) == (writer == "base")


def test_the_label_asked_for_stands_and_the_model_says_how_sure_it_is(tmp_path):
    changes = {"synthesis": {**SHOWN, "demonstrations": 2, "answers": "asked", "samples": 8}}
    out = run_case(tmp_path, "run", changes, tasks=1)
    written = list(read_lines(out / "stages/01-color/synthetic.jsonl.gz"))
    trained = [json.loads(line)["output"] for line in (tmp_path / "color_train.jsonl").read_text().splitlines()]
    shares = {label: count / len(trained) for label, count in Counter(trained).items()}
    asked = Counter(in_proportion(shares, 8))
    assert Counter(line["answer"] for line in written) == asked and len(asked) > 1
    assert len({line["consistency"] for line in written}) > 1 and all(0 < line["consistency"] < 1 for line in written)
