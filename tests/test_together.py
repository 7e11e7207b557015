"""What two parts of retain do to each other's runs."""

from __future__ import annotations

import json
import shutil

import pytest
import yaml
from tiny import stopped_after, tiny_values

from retain import Learner, reading
from retain.adding import add
from retain.bundle import KEYS
from retain.calibrate import probe
from retain.comparison import load_comparison
from retain.config import load_config, make_config
from retain.erasure import erase, find
from retain.history import read_history
from retain.integrations.replay import Replay
from retain.run import run
from retain.types import GateError, InputError


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run over color and size, with shape in a file of its own."""
    folder = tmp_path_factory.mktemp("finished")
    values = tiny_values(folder, checkpoint={"every": 2})
    (folder / "next.yaml").write_text(yaml.safe_dump(values["tasks"].pop()))
    run(make_config(values, "test"), folder)
    return folder


@pytest.fixture
def home(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "home")


def test_an_added_task_goes_on_where_it_was_stopped_without_the_data_before_it(home, tmp_path, monkeypatch):
    whole = shutil.copytree(home, tmp_path / "whole")
    expected = add(whole / "run", whole / "next.yaml")
    for name in ("color", "size"):
        (home / f"{name}_train.jsonl").unlink()
    with stopped_after(3, 4, monkeypatch):
        add(home / "run", home / "next.yaml")
    with pytest.raises(InputError, match="shape is not learned yet"):
        add(home / "run")
    assert add(home / "run", home / "next.yaml")["matrices"] == expected["matrices"]
    journal = [json.loads(line) for line in (home / "run" / "journal.jsonl").read_text().splitlines()]
    assert [line["after_step"] for line in journal if line["kind"] == "resume" and "into" in line] == [4]


def test_the_stage_of_an_added_task_has_its_gate(home):
    path = home / "run" / "config.yaml"
    values = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(values | {"gate": {"after_stage": "stop", "score": {"shape": 1.0}}}))
    with pytest.raises(GateError, match="gate after stage 3: score of shape"):
        add(home / "run", home / "next.yaml")
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"gate": {}}))
    assert add(home / "run", home / "next.yaml")["finished"]


def test_a_probe_leaves_out_an_erased_sample_whose_row_is_gone(home):
    place = read_history(home / "run").stages[-1].losses
    one = next(name for name in place if name.startswith("color/"))
    erase(find(home / "run", record=one))
    lines = (home / "color_train.jsonl").read_text().splitlines(keepends=True)
    del lines[int(one.removeprefix("color/"))]
    (home / "color_train.jsonl").write_text("".join(lines))
    with pytest.raises(InputError, match="its data are not those"):
        probe(read_history(home / "run"))
    run(load_config(home / "run" / "config.yaml"), home / "run", home / "run", accept_changed_data=True)
    found = probe(read_history(home / "run"))
    assert found[2] and one not in found[2]


def test_what_was_erased_is_counted_in_a_bundle(home):
    (home / "run" / "report.html").write_text("train 3")
    erasure = find(home / "run", text="train 3")
    assert {"buffered samples", "pages"} <= erasure.counts.keys() <= KEYS


def test_a_file_that_a_run_removes_meanwhile_is_no_device(tmp_path, monkeypatch):
    (tmp_path / "scratch.tmp").touch()
    monkeypatch.setattr(reading.os, "walk", lambda root: [(str(tmp_path), [], ["gone", "scratch.tmp"])])
    reading.check_links(tmp_path)


def test_the_cells_of_a_comparison_run_to_their_end_whatever_the_gate(home):
    values = load_config(home / "run" / "config.yaml").model_dump(exclude={"strategy", "output"}, exclude_unset=True)
    (home / "run" / "base.yaml").write_text(yaml.safe_dump(values))
    file = home / "compare.yaml"
    file.write_text(yaml.safe_dump({"run": "run/base.yaml", "strategies": ["none", "mssr"]}))

    def after(*overrides):
        cells = load_comparison(file, list(overrides)).cells
        return {cell.row: cell.config.gate.after_stage for cell in cells}

    assert after("run.gate.after_stage=stop") == {"none": "off", "mssr": "off"}
    assert after("run.gate.after_stage=raise_replay") == {"none": "off", "mssr": "raise_replay"}
    assert after("vary={gate.after_stage: [raise_replay]}") == {
        "none": "off", "mssr": "off", "mssr after_stage=raise_replay": "raise_replay"}  # fmt: skip
    with pytest.raises(InputError, match=r"gate\.after_stage"):
        after("run.gate.after_stage=often")


def test_a_trainer_waits_for_what_retain_run_began(home):
    shutil.rmtree(home / "run" / "stages" / "02-size")
    config = load_config(home / "run" / "config.yaml").model_dump(include={"model", "training"}, exclude_unset=True)
    with pytest.raises(InputError, match=r"size is not learned yet; `retain run .*config.yaml` goes on"):
        Replay(home / "run", "shape").begin(24, 24, 4, 6, config)


def test_nothing_is_added_to_a_joint_run(home):
    path = home / "run" / "config.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"strategy": "joint"}))
    with pytest.raises(InputError, match="strategy joint trains all tasks in one stage"):
        add(home / "run", home / "next.yaml")


def test_the_journal_of_a_learner_begins_with_its_start(home):
    config = load_config(home / "run" / "config.yaml")
    options = config.model_dump(include={"training", "schedule", "evaluation"}, exclude_unset=True)
    learner = Learner(str(home / "model"), out=home / "new", **options)
    data = {split: str(home / f"shape_{split}.jsonl") for split in ("train", "test")}
    learner.learn({"name": "shape", **data})
    kinds = [json.loads(line)["kind"] for line in (home / "new" / "journal.jsonl").read_text().splitlines()]
    assert kinds[0] == "start" and kinds.count("start") == 1
