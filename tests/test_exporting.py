"""Samples of a run for other software."""

from __future__ import annotations

import json
import sys

import pytest
from tiny import tiny_values, write_tasks

from retain import Learner, cli
from retain.buffer import Buffer
from retain.config import load_config
from retain.exporting import export
from retain.types import InputError


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A run that learned one task of three; the others' files lie beside it."""
    folder = tmp_path_factory.mktemp("export")
    values = tiny_values(folder, schedule={"first_interval": 2})
    options = {key: values[key] for key in ("model", "strategy", "training", "schedule")}
    learner = Learner(out=folder / "run", **options)
    learner.learn({"name": "color", "train": str(folder / "color_train.jsonl")})
    write_tasks(folder)
    (folder / "task.yaml").write_text("{name: size, train: size_train.jsonl}")
    return folder / "run"


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_what_the_memory_keeps_reads_back_as_task_data(run_dir, tmp_path, form):
    files = export(run_dir, form, tmp_path / "out")
    config = load_config(run_dir / "config.yaml")
    kept = Buffer.load(run_dir / "buffer", config.buffer, config.memory, config.seed).samples.values()
    rows = read_rows(files[0])
    assert [(row["prompt"], row["completion"], tuple(row["choices"])) for row in rows] == [
        (sample.prompt, sample.answer, sample.choices) for sample in kept
    ]
    assert f"config_name: color\n  data_files: data/color.{form}" in files[-1].read_text()
    task = {"name": "again", "train": str(files[0])}
    options = {"strategy": "none", "model": str(run_dir.parent / "model"), "training": {"max_steps": 1}}
    results = Learner(out=tmp_path / "again", **options).learn(task)
    assert results["tasks"] == ["again"]


def read_rows(path):
    import pyarrow.parquet as pq

    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_llamafactory_stage_is_the_one_that_retain_plans(run_dir, tmp_path):
    data, info = export(run_dir, "llamafactory", tmp_path / "out", run_dir.parent / "task.yaml")
    entry = json.loads(info.read_text())["retain_size"]
    assert entry["file_name"] == data.name and entry["columns"]["prompt"] == "instruction"
    rows = json.loads(data.read_text())
    old = [place for place, row in enumerate(rows) if row["output"] in ("red", "blue")]
    assert len(rows) == 24 + len(old) and len(old) > 0
    assert {row["output"] for row in rows} == {"red", "blue", "big", "small"}
    assert old[0] >= 8  # the first event is at step 2 of 4 new samples each
    again = export(run_dir, "llamafactory", tmp_path / "again", run_dir.parent / "task.yaml")
    assert again[0].read_text() == data.read_text()


def test_chats_become_messages(tmp_path):
    from tiny import byte_tokenizer, save_tiny_model

    model = save_tiny_model(tmp_path / "model")
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    tokenizer.save_pretrained(model)
    rows = [
        {"messages": [{"role": "user", "content": f"{k}?"}, {"role": "assistant", "content": "yes"}]} for k in range(8)
    ]
    Learner(str(model), out=tmp_path / "run", schedule={"kind": "every"}).learn({"name": "chat", "train": rows})
    write_tasks(tmp_path)
    (tmp_path / "task.yaml").write_text("{name: size, train: size_train.jsonl}")
    data, info = export(tmp_path / "run", "llamafactory", tmp_path / "out", tmp_path / "task.yaml")
    entry = json.loads(info.read_text())["retain_size"]
    assert entry["formatting"] == "sharegpt" and entry["tags"]["assistant_tag"] == "assistant"
    assert all(
        [turn["role"] for turn in row["messages"]] == ["user", "assistant"] for row in json.loads(data.read_text())
    )
    assert json.loads((export(tmp_path / "run", "jsonl", tmp_path / "data")[0]).read_text().splitlines()[0])["messages"]


@pytest.mark.parametrize(
    ("form", "task", "expected"),
    [
        ("csv", None, "'csv' is not a form of export; choose jsonl, parquet, llamafactory"),
        ("llamafactory", None, "--task: names the new task"),
        ("jsonl", "task.yaml", "--task: names the new task"),
    ],
)
def test_wrong_input_is_refused(run_dir, tmp_path, form, task, expected):
    with pytest.raises(InputError, match=expected):
        export(run_dir, form, tmp_path / "out", task and run_dir.parent / task)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_something_is_left_alone(run_dir, tmp_path):
    (tmp_path / "mine").write_text("x")
    with pytest.raises(InputError, match="is not an empty folder"):
        export(run_dir, "jsonl", tmp_path)


def test_the_command_names_the_files(run_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["retain", "export", "jsonl", str(run_dir), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert not stopped.value.code and str(tmp_path / "out" / "data" / "color.jsonl") in capsys.readouterr().out
