"""Coming back to a finished run with its next task, its earlier data gone."""

from __future__ import annotations

import json
import shutil
import sys

import pytest
from tiny import tiny_values

from retain import Learner, cli
from retain.adding import add
from retain.config import load_config, make_config
from retain.run import run
from retain.types import InputError


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run over two tasks."""
    folder = tmp_path_factory.mktemp("finished")
    values = tiny_values(folder, schedule={"first_interval": 2})
    values["tasks"].pop()
    run(make_config(values, "test"), folder)
    return folder


@pytest.fixture
def home(finished, tmp_path):
    """A copy of it to change, with the file of a next task in a folder of its own."""
    shutil.copytree(finished, tmp_path / "home")
    new = tmp_path / "home" / "new"
    new.mkdir()
    for split in ("train", "test"):
        shutil.move(tmp_path / "home" / f"shape_{split}.jsonl", new)
    (new / "task.yaml").write_text("{name: shape, train: shape_train.jsonl, test: shape_test.jsonl}")
    return tmp_path / "home"


def test_a_task_is_added_as_if_it_had_stood_in_the_file(home, tmp_path):
    added = add(home / "run", home / "new" / "task.yaml")
    whole = tmp_path / "whole"
    whole.mkdir()
    values = tiny_values(whole, schedule={"first_interval": 2})
    run(make_config(values, "test"), whole)
    expected = json.loads((whole / "run" / "results.json").read_text())
    for key in ("tasks", "matrix", "matrices", "metrics", "finished"):
        assert added[key] == expected[key], key
    assert added["costs"]["replayed_samples"] == expected["costs"]["replayed_samples"] > 0


def test_the_data_of_earlier_tasks_may_be_gone(home):
    for name in ("color", "size"):
        (home / f"{name}_train.jsonl").unlink()
    (home / "color_test.jsonl").unlink()
    results = add(home / "run", home / "new" / "task.yaml")
    assert results["tasks"] == ["color", "size", "shape"] and results["finished"]
    assert [row[1] is not None for row in results["matrix"]] == [True] * 4  # size can be scored still
    assert [row[0] is not None for row in results["matrix"]] == [True] * 3 + [False]
    assert results["costs"]["replayed_samples"] > 0


def test_rows_given_in_python_may_be_gone(tmp_path):
    values = tiny_values(tmp_path)
    rows = [{"instruction": "Name it.", "input": f"{k}", "output": "red"} for k in range(12)]
    options = {key: values[key] for key in ("model", "strategy", "training", "schedule", "evaluation")}
    Learner(out=tmp_path / "run", **options).learn({"name": "rows", "train": rows, "test": rows[:4]})
    task = tmp_path / "next.yaml"
    task.write_text("tasks: [{name: shape, train: shape_train.jsonl, test: shape_test.jsonl}]")
    results = add(tmp_path / "run", task)
    assert results["tasks"] == ["rows", "shape"] and results["costs"]["replayed_samples"] > 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{name: color, train: shape_train.jsonl}", "learned already, from other data"),
        ("{name: x}", "give one with `name` and `train`"),
        ("tasks: []", "0 tasks; give one"),
        ("{name: x, train: a.jsonl, trian: b.jsonl}", "trian"),
        ("[1, 2]", "task.yaml"),
        ("{name: x, train: missing.jsonl}", "missing.jsonl"),
    ],
)
def test_a_wrong_task_is_refused_and_changes_nothing(home, text, expected):
    (home / "new" / "task.yaml").write_text(text)
    before = load_config(home / "run" / "config.yaml")
    with pytest.raises(InputError, match=expected):
        add(home / "run", home / "new" / "task.yaml")
    assert load_config(home / "run" / "config.yaml") == before


def test_a_run_that_is_not_finished_is_named(home):
    shutil.rmtree(home / "run" / "stages" / "02-size")
    with pytest.raises(InputError, match=r"size is not learned yet; `retain run .*config.yaml` goes on"):
        add(home / "run", home / "new" / "task.yaml")
    with pytest.raises(InputError, match="it is no run"):
        add(home / "new", home / "new" / "task.yaml")


def test_the_command_prints_the_table(home, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["retain", "add", str(home / "run"), str(home / "new" / "task.yaml")])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert not stopped.value.code
    printed = capsys.readouterr().out
    assert "shape" in printed and "ACC" in printed


@pytest.mark.parametrize("split", ["train", "test"])
def test_data_that_changed_are_refused_or_accepted(home, split, monkeypatch, capsys):
    path = home / f"color_{split}.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    task = home / "new" / "task.yaml"
    for arguments in ((task,), ()):
        with pytest.raises(InputError, match=rf"other data than the run began with: color \({split}\)"):
            add(home / "run", *arguments)
    monkeypatch.setattr(sys, "argv", ["retain", "add", str(home / "run"), str(task), "--accept-changed-data"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert not stopped.value.code
    lines = [json.loads(line) for line in (home / "run" / "journal.jsonl").read_text().splitlines()]
    assert [line["tasks"] for line in lines if line["kind"] == "data_changed"] == [{"color": [split]}]
    assert add(home / "run")["finished"]  # what was accepted counts from there on


def test_a_task_whose_stage_was_begun_with_other_data(home, monkeypatch):
    from tiny import stopped_in

    with stopped_in(3, monkeypatch):
        add(home / "run", home / "new" / "task.yaml")
    path = home / "new" / "shape_train.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(InputError, match=r"shape \(train\)"):
        add(home / "run", home / "new" / "task.yaml")
    assert add(home / "run", home / "new" / "task.yaml", accept_changed_data=True)["finished"]
