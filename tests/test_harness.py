"""Tasks of lm-eval as columns that are only evaluated. What needs the package skips where it is not installed."""

from __future__ import annotations

import importlib.util
import json
import random
import sys

import numpy as np
import pytest
import torch
import yaml
from tiny import byte_tokenizer, tiny_llama, tiny_values

from retain import cli
from retain.config import load_config, make_config
from retain.gate import check_gate
from retain.run import evaluate, run
from retain.rundir import RunDir
from retain.tasks import harness as loading
from retain.tasks import load_tasks
from retain.types import InputError

needs_lm_eval = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed")
CHOICES = ["red", "blue", "green"]


def write_harness(folder, **changes):
    """A multiple-choice task of lm-eval over a local file; returns its rows."""
    rows = [{"question": f"item {k}", "choices": CHOICES, "label": k % 3} for k in range(9)]
    (folder / "colors.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "task": "colors",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": "colors.jsonl"}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "Color of {{question}}:",
        "doc_to_choice": "choices",
        "doc_to_target": "label",
        "metric_list": [
            {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
            {"metric": "brier_score", "aggregation": "brier_score", "higher_is_better": False},
        ],
    }
    (folder / "colors.yaml").write_text(yaml.safe_dump(values | changes))
    return rows


def with_harness(folder, **fields):
    values = tiny_values(folder)
    values["tasks"] = [*values["tasks"][:2], {"lm_eval": "colors.yaml", **fields}]
    return make_config(values, "test")


@pytest.fixture(autouse=True)
def cached_data(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path_factory.getbasetemp() / "datasets"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("harness")
    write_harness(folder)
    config = with_harness(folder)
    run(config, folder)
    return folder


def naive_scores(rows):
    """By hand what the harness asks: whether the right choice is the likeliest, under the untouched model."""
    model, tokenizer = tiny_llama().eval(), byte_tokenizer()
    found = []
    for row in rows:
        prompt = tokenizer(f"Color of {row['question']}:").input_ids
        sums = []
        for choice in row["choices"]:
            answer = tokenizer(f" {choice}").input_ids
            logits = model(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            sums.append(logits[torch.arange(len(answer)), answer].sum().item())
        found.append(float(int(np.argmax(sums)) == row["label"]))
    return found


@needs_lm_eval
def test_it_is_a_column_of_every_row_and_scored_as_by_hand(finished):
    results = json.loads((finished / "run" / "results.json").read_text())
    others = results["evaluation_only"]
    assert others["tasks"] == ["colors"] and results["tasks"] == ["color", "size"]
    assert len(others["matrices"]["generated"]) == 3 and all(
        0 <= row[0] <= 1 for row in others["matrices"]["generated"]
    )
    assert [row[0] for row in others["matrices"]["nll"]] == [None] * 3
    assert others["change"]["colors"] == others["matrices"]["generated"][2][0] - others["matrices"]["generated"][0][0]
    assert results["task_metrics"]["colors"] == "acc"
    lines = map(json.loads, (finished / "run" / "stages" / "00-base" / "predictions.jsonl").read_text().splitlines())
    scores = [line["score"] for line in lines if line["task"] == "colors"]
    expected = naive_scores([json.loads(line) for line in (finished / "colors.jsonl").read_text().splitlines()])
    assert scores == expected and others["matrices"]["generated"][0][0] == pytest.approx(np.mean(expected))
    page = (finished / "run" / "report.html").read_text()
    assert "colors" in page


@needs_lm_eval
def test_the_gate_counts_it_as_general_ability_with_an_interval(finished):
    config = load_config(finished / "run" / "config.yaml", ["gate.general=0.5"])
    [finding] = check_gate(RunDir(finished / "run"), config)
    assert (finding.limit, finding.task, finding.items) == ("general", "colors", 9) and finding.low is not None


@needs_lm_eval
def test_a_second_look_finds_the_same_and_touches_no_random_state(finished, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # the paths in a YAML are relative to it
    config = load_config(finished / "run" / "config.yaml")
    assert config.tasks[2].lm_eval == "../colors.yaml"
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    first = evaluate(finished / "run", 2)["scores"]["colors"]
    again = evaluate(finished / "run", 2, [str(finished / "colors.yaml")])["scores"]
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    assert before[:2] == after[:2] and torch.equal(before[2], after[2])
    assert list(again) == ["colors"] and again["colors"]["generated"] == first["generated"]
    stored = json.loads((finished / "run" / "results.json").read_text())
    assert stored["evaluation_only"]["matrices"]["generated"][2][0] == first["generated"]
    assert first["eval_tokens"] > 0 and first["n"] == 9


@needs_lm_eval
def test_written_answers_and_shots(finished, tmp_path):
    rows = write_harness(
        tmp_path,
        task="written",
        output_type="generate_until",
        doc_to_target="{{choices[label]}}",
        doc_to_choice=None,
        fewshot_split="test",
        generation_kwargs={"until": ["\n"], "max_gen_toks": 4},
        metric_list=[{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    )
    found = evaluate(finished / "run", 0, [str(tmp_path / "colors.yaml")], limit=4)["scores"]["colors"]
    assert found["metric"] == "exact_match" and found["n"] == 4 and 0 < found["generated_tokens"] <= 16
    tasks = [{"lm_eval": str(tmp_path / "colors.yaml"), "num_fewshot": 2, "max_test": 4}]
    config = make_config({**tiny_values(tmp_path), "tasks": tasks}, "test", need_tasks=False)
    [task] = load_tasks(config, tmp_path)
    from retain.device import open_model
    from retain.evaluate import evaluate_task

    lm, _ = open_model(config, tmp_path)
    shots, once = (evaluate_task(lm, task, config.evaluation)[0] for _ in range(2))
    assert shots.eval_tokens > found["eval_tokens"] + 4 * len(rows[0]["question"])
    assert (shots.generated, shots.eval_tokens) == (once.generated, once.eval_tokens)


@needs_lm_eval
@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"lm_eval": "missing.yaml"}, "task 'missing': lm_eval: 'missing.yaml' is no file"),
        ({"metric": "brier_score"}, "metric 'brier_score': a score must be good where it is high; .* has acc"),
        ({"metric": "acc_nrm"}, "metric 'acc_nrm'"),
    ],
)
def test_what_cannot_be_scored_is_refused_before_a_model_is_loaded(tmp_path, fields, expected):
    write_harness(tmp_path)
    config = with_harness(tmp_path, **fields)
    with pytest.raises(InputError, match=expected):
        load_tasks(config, tmp_path)


@needs_lm_eval
@pytest.mark.parametrize(
    "text", ["task: [", "just text", "{task: x, dataset_path: json}", "task: x\nclass: !function no.thing"]
)
def test_a_broken_yaml_is_one_message(tmp_path, text):
    (tmp_path / "colors.yaml").write_text(text)
    with pytest.raises(InputError, match=r"task 'colors': lm_eval: 'colors.yaml' cannot be loaded \("):
        load_tasks(with_harness(tmp_path), tmp_path)


@needs_lm_eval
def test_data_that_cannot_be_fetched_and_unknown_names_are_one_message(tmp_path, monkeypatch, capsys, finished):
    write_harness(tmp_path, dataset_path="nobody/nothing", dataset_kwargs=None)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    asked = ["retain", "evaluate", str(finished / "run"), "--lm-eval", str(tmp_path / "colors.yaml")]
    monkeypatch.setattr(sys, "argv", asked)
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    message = capsys.readouterr().err.strip()
    assert stopped.value.code == 2 and "\n" not in message
    assert "cannot be loaded" in message and "its data come from the Hub" in message
    manager = type("Manager", (), {"task_index": {"arc_easy": 1}, "all_tasks": ["arc_easy"]})()
    monkeypatch.setattr(loading, "_manager", lambda defaults: manager)
    with pytest.raises(InputError, match="lm-eval has no task 'arc_esy'; did you mean 'arc_easy'"):
        evaluate(finished / "run", lm_eval=["arc_esy"])


def test_without_the_package_the_message_says_what_to_install(tmp_path, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "lm_eval" else real(name))
    write_harness(tmp_path)
    with pytest.raises(InputError, match=r"task 'colors': lm_eval: lm-eval is not installed; run `pip install"):
        load_tasks(with_harness(tmp_path), tmp_path)


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ({"lm_eval": "arc_easy", "test": "a.jsonl"}, r"tasks.0.lm_eval: 'arc_easy' beside test"),
        ({"lm_eval": "arc_easy", "train": "a.jsonl"}, r"beside train"),
        ({"name": "x", "test": "a.jsonl", "num_fewshot": 3}, r"tasks.0.num_fewshot: 3 without lm_eval"),
        ({"lm_eval": "arc_easy", "num_fewshot": -1}, "num_fewshot"),
        ({"lm_eval": 3}, "lm_eval"),
        ({"lm_eval": "a/b c"}, "is not a task name"),
    ],
)
def test_wrong_settings_are_named(task, expected):
    with pytest.raises(InputError, match=expected):
        make_config({"tasks": [task]}, "test", need_tasks=False)
