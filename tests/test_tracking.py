"""What trackers hear: the journal's own values, each once, also over a kill. TensorBoard is read back for real where it
is installed; the others stand for themselves as a fake that speaks Accelerate's `GeneralTracker`."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections import Counter
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pyarrow.parquet as pq
import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from tiny import stopped_after, tiny_values

from retain import cli
from retain.config import dump_config, load_config, make_config
from retain.config_yaml import dump_yaml
from retain.rollback import rollback
from retain.run import run
from retain.rundir import RunDir
from retain.tracking import Tracking
from retain.types import InputError


class Fake(GeneralTracker):
    """Keeps what it is told; `runs` are all that were made, in order."""

    name, requires_logging_directory = "fake", False
    runs: ClassVar[list[Fake]] = []
    fails_at: ClassVar[int | None] = None

    def __init__(self, project, **options):
        self.project, self.options, self.told, self.config, self.ended = project, options, [], None, False
        type(self).runs.append(self)

    def start(self):
        if "broken" in self.options:
            raise OSError("no route\nto host")

    @property
    def tracker(self):
        return SimpleNamespace(info=SimpleNamespace(run_id="run-7"))

    def store_init_configuration(self, values):
        self.config = values

    def log(self, values, step=None, **options):
        if step == type(self).fails_at:
            raise ConnectionError("gone")
        self.told += [(name, step, value) for name, value in values.items()]

    def finish(self):
        self.ended = True


@pytest.fixture
def fake(monkeypatch):
    """A fresh fake in the place of W&B, MLflow and trackio."""
    kind = type("Fake", (Fake,), {"runs": [], "fails_at": None})
    for name in ("wandb", "mlflow", "trackio"):
        monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, name, kind)
    real = importlib.util.find_spec
    services = ("wandb", "mlflow", "trackio")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name in services else real(name))
    return kind


def tracked(folder, *trackers, **options):
    values = tiny_values(folder, tracking={"trackers": list(trackers), **options}, checkpoint={"every": 1})
    values["tasks"].pop()
    return make_config(values, "test")


def journal(out, kind):
    lines = map(json.loads, (out / "journal.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == kind]


def series(told, name):
    return {step: value for key, step, value in told if key == name}


def test_curves_replay_memory_and_scores_are_those_of_the_run(fake, tmp_path):
    out = run(tracked(tmp_path, "wandb"), tmp_path)
    [tracker] = fake.runs
    told, steps = tracker.told, journal(out, "step")
    assert series(told, "train/new_loss") == {line["global_step"]: line["new_loss"] for line in steps}
    replays = {line["global_step"]: line["replay_loss"] for line in steps if line["replayed"]}
    assert series(told, "train/replay_loss") == replays and replays
    events = journal(out, "event")
    assert series(told, "replay/lambda") == {line["global_step"]: line["ratio"] for line in events}
    assert series(told, "replay/samples") == {line["global_step"]: line["replayed"] for line in events}
    gaps = np.diff([0, *(line["step"] for line in events)])
    assert list(series(told, "replay/interval").values()) == gaps.tolist()
    trace = pq.read_table(out / "memory_trace.parquet").to_pandas()
    hazards = series(told, "memory/hazard_mean")
    assert len(hazards) > 2
    for step, value in hazards.items():
        rows = trace[trace.step == step]
        assert value == pytest.approx(rows.hazard.mean())
        assert series(told, "memory/stability_mean")[step] == pytest.approx(rows.stability.mean())
        assert series(told, "memory/strength_p50")[step] == pytest.approx(rows.strength.median())
        assert series(told, "memory/below_threshold")[step] == (rows.strength < 0.5).mean()
        assert series(told, "memory/time_to_threshold")[step] == pytest.approx(np.log(2) / rows.hazard.mean())
    results = json.loads((out / "results.json").read_text())
    column = [row[0] for row in results["matrices"]["nll"]]
    assert list(series(told, "nll/color").items()) == list(zip((0, 6, 12), column, strict=True))
    assert series(told, "metrics/ACC") == {12: results["metrics"]["ACC"]}
    assert max(Counter((name, step) for name, step, _ in told).values()) == 1 and tracker.ended
    assert [step for _, step, _ in told] == sorted(step for _, step, _ in told)  # W&B takes no earlier step


def test_a_tracker_is_told_no_path_and_no_text_of_the_user(fake, tmp_path):
    config = tracked(tmp_path, "wandb", project="ours", run="first", options={"wandb": {"entity": "team"}})
    run(config.model_copy(update={"template": "secret {instruction}\n{input}"}), tmp_path)
    [tracker] = fake.runs
    assert tracker.project == "ours" and tracker.options["entity"] == "team" and tracker.options["name"] == "first"
    assert tracker.config["strategy"] == "mssr" and tracker.config["lora.r"] == 8
    assert all(isinstance(value, bool | int | float | str) for value in tracker.config.values())
    text = json.dumps(tracker.config)
    assert str(tmp_path) not in text and "secret" not in text and ".jsonl" not in text


def test_a_run_that_was_killed_tells_each_value_once_and_goes_on_in_its_run(fake, tmp_path, monkeypatch):
    config = tracked(tmp_path, "wandb", "mlflow", "trackio")
    with stopped_after(2, 3, monkeypatch):
        run(config, tmp_path)
    # the journal goes back to the checkpoint; what was told does not
    lines = (tmp_path / "run" / "tracking.jsonl").read_bytes()
    checkpoints = next((tmp_path / "run" / "stages").glob(".02-*")) / "checkpoints"
    newest = sorted(checkpoints.iterdir())[-1]
    for path in sorted(newest.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    newest.rmdir()
    (tmp_path / "run" / "tracking.jsonl").write_bytes(lines + b'{"row": 2, "st')  # as a kill leaves it
    run(config, tmp_path)
    assert len(fake.runs) == 6
    for first, second in zip(fake.runs[:3], fake.runs[3:], strict=True):
        told = [(name, step) for name, step, _ in [*first.told, *second.told]]
        assert max(Counter(told).values()) == 1 and second.config is None
    whole = [*fake.runs[0].told, *fake.runs[3].told]
    assert list(series(whole, "train/new_loss")) == list(range(1, 13))
    assert fake.runs[0].options["id"] == fake.runs[3].options["id"] and fake.runs[3].options["resume"] == "allow"
    assert fake.runs[1].options["run_id"] is None and fake.runs[4].options["run_id"] == "run-7"
    assert fake.runs[2].options["name"] == fake.runs[5].options["name"] == fake.runs[0].options["id"]
    fake.runs.clear()
    run(config, tmp_path)  # finished already
    assert not fake.runs


def test_after_a_rollback_what_is_trained_anew_is_told_anew(fake, tmp_path):
    config = tracked(tmp_path, "wandb")
    out = run(config, tmp_path)
    rollback(out, "1")
    run(config, tmp_path)
    assert list(series(fake.runs[1].told, "train/new_loss")) == list(range(7, 13))
    assert series(fake.runs[1].told, "nll/size").keys() == {12}


def test_a_tracker_that_fails_later_does_not_stop_the_run(fake, tmp_path, caplog):
    fake.fails_at = 3
    out = run(tracked(tmp_path, "wandb"), tmp_path)
    assert json.loads((out / "results.json").read_text())["finished"]
    assert [one.message for one in caplog.records if "tracking" in one.message] == [
        "tracking stops here, the run goes on: ConnectionError: gone"
    ]


def test_other_processes_tell_nothing(tmp_path):
    directory = RunDir(tmp_path)
    before = directory.listener
    assert Tracking.of(tracked(tmp_path, "wandb"), directory, rank=1) is None and directory.listener is before


def test_a_run_without_trackers_writes_what_it_wrote(fake, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    plain, other = run(tracked(tmp_path / "a"), tmp_path / "a"), run(tracked(tmp_path / "b", "wandb"), tmp_path / "b")
    names = [{path.relative_to(out).as_posix() for path in out.rglob("*")} for out in (plain, other)]
    assert names[1] - names[0] == {"tracking.jsonl"} and len(fake.runs) == 1
    assert (plain / "memory_trace.parquet").read_bytes() == (other / "memory_trace.parquet").read_bytes()


def test_trackers_may_change_when_a_run_is_resumed(fake, tmp_path, monkeypatch):
    with stopped_after(1, 2, monkeypatch):
        run(tracked(tmp_path), tmp_path)
    run(tracked(tmp_path, "wandb"), tmp_path)
    assert list(series(fake.runs[0].told, "train/new_loss")) == list(range(3, 13))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tensorbord", "tracking.trackers.0: 'tensorbord'.*one of tensorboard, wandb, mlflow, trackio"),
        ("{trackers: [wandb], options: {mlflow: {}}}", "'mlflow' is not among trackers"),
        ("{with: wandb}", "with"),
        ("{trackers: wandb}", "tracking.trackers"),
        ("{trackers: [wandb], project: ''}", "tracking.project"),
        ("{trackers: [wandb], options: 3}", "tracking.options"),
    ],
)
def test_wrong_settings_are_named(tmp_path, text, expected):
    (tmp_path / "run.yaml").write_text(f"tasks: [iso_date]\ntracking: {text}\n")
    with pytest.raises(InputError, match=expected):
        load_config(tmp_path / "run.yaml")


def test_a_short_form_and_the_file_of_a_run(tmp_path):
    config = make_config({"tasks": ["iso_date"], "tracking": "tensorboard"}, "test")
    assert config.tracking.trackers == ["tensorboard"]
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "config.yaml") == config


def run_command(tmp_path, monkeypatch, capsys, tracking):
    values = tiny_values(tmp_path, tracking=tracking)
    (tmp_path / "run.yaml").write_text(dump_yaml(values))
    monkeypatch.setattr(sys, "argv", ["retain", "run", str(tmp_path / "run.yaml")])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return stopped.value.code, capsys.readouterr().err.strip().splitlines()


def test_a_missing_package_is_one_message_before_anything_is_written(tmp_path, monkeypatch, capsys):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "mlflow" else real(name))
    code, lines = run_command(tmp_path, monkeypatch, capsys, {"trackers": ["mlflow"]})
    assert (code, lines) == (
        2,
        ["error: tracking.trackers: mlflow is not installed; run `pip install 'retain[mlflow]'`"],
    )
    assert not (tmp_path / "run").exists()


def test_one_that_cannot_start_is_one_message(fake, tmp_path, monkeypatch, capsys):
    tracking = {"trackers": ["wandb"], "options": {"wandb": {"broken": True}}}
    code, lines = run_command(tmp_path, monkeypatch, capsys, tracking)
    assert code == 2 and "wandb could not start (OSError: no route to host)" in lines[-1]


def test_a_broken_list_of_what_was_told_is_one_message(fake, tmp_path):
    config = tracked(tmp_path, "wandb")
    out = run(config, tmp_path)
    for text in ('{"row": "x", "step": 1}\n', "[1]\n", '{"ids": 3}\n', "{\n"):
        (out / "tracking.jsonl").write_text(text)
        with pytest.raises(InputError, match=r"tracking\.jsonl"):
            run(config, tmp_path)


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_tensorboard_holds_it_all_once_over_a_kill(tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = tracked(tmp_path, "tensorboard")
    with stopped_after(2, 2, monkeypatch):
        run(config, tmp_path)
    out = run(config, tmp_path)
    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    curve = [(one.step, one.value) for one in events.Scalars("train/new_loss")]
    lines = journal(out, "step")
    assert [step for step, _ in curve] == [line["global_step"] for line in lines] == list(range(1, 13))
    assert [value for _, value in curve] == pytest.approx([line["new_loss"] for line in lines])
    tags = set(events.Tags()["scalars"])
    assert {
        "replay/lambda",
        "replay/interval",
        "memory/hazard_mean",
        "generated/color",
        "nll/size",
        "metrics/ACC",
    } <= tags
    assert [one.step for one in events.Scalars("generated/color")] == [0, 6, 12]
