"""Going back to an earlier stage: the directory is that of a run that stopped there, and training goes on from it."""

import json
import shutil

import pytest
import yaml
from test_run import journal, results, run_tiny, same_tensors
from tiny import stopped_in, tiny_values
from typer.testing import CliRunner

from retain import Learner
from retain.adding import add
from retain.cli import app
from retain.config import load_config, make_config
from retain.report import write_report
from retain.report.rundata import current, read_journal
from retain.rollback import rollback
from retain.run import run
from retain.rundir import TAKEN_BACK, read_hashes
from retain.types import InputError

VOLATILE = ("journal.jsonl", ".lock", "report.html", "README.md", "adapter_config.json")  # PEFT writes sets


def files(out):
    """The bytes of all files but those that tell the time, and scores and results without it."""
    found = {}
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out).as_posix()
        if path.is_dir() or path.name in VOLATILE or name.startswith("rolled-back"):
            continue
        found[name] = path.read_bytes()
        if path.name in ("scores.json", "results.json"):
            content = json.loads(found[name])
            del content["costs"]
            content["scores"] = {task: {**s, "seconds": 0} for task, s in content.get("scores", {}).items()}
            found[name] = content
    return found


STRATEGIES = {
    "mssr": {},
    "der++ + ewc": {},
    "ssr": {
        "synthesis": {"samples": 6, "max_input_tokens": 12, "max_output_tokens": 8, "max_attempts": 2},
        "filters": {"heuristics": False, "perplexity": None, "consistency": None, "diversity": None},
        "curriculum": {"kind": "constant", "initial": 0.3},
    },
}


def described(values):
    for task in values["tasks"]:
        task["description"] = f"Say which {task['name']} a thing of the given name has."
    return values


def run_both(folder, monkeypatch, strategy):
    """A run that stopped before its third stage, and one that finished."""
    config = make_config(described(tiny_values(folder, strategy=strategy, **STRATEGIES[strategy])), "test")
    with stopped_in(3, monkeypatch):
        run(config, folder, folder / "stopped")
    shutil.rmtree(next((folder / "stopped" / "stages").glob(".*")))
    return config, folder / "stopped", run(config, folder, folder / "finished")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_it_leaves_what_a_run_that_stopped_there_has_and_goes_on_the_same(strategy, tmp_path, monkeypatch):
    config, stopped, finished = run_both(tmp_path, monkeypatch, strategy)
    before = files(finished)
    done = rollback(finished, "2")
    assert (done.stage, done.gone, done.unfinished) == (2, ("03-shape",), False)
    there, expected = files(finished), files(stopped)
    assert TAKEN_BACK in read_hashes(finished)["shape"] and there.pop("data.json") != expected.pop("data.json")
    assert there == expected
    [line] = journal(finished, "rollback")
    assert (line["gone"], line["tasks"]) == (["03-shape"], ["shape"])
    run(config, tmp_path, finished)
    assert files(finished) == before


def test_back_to_the_untouched_model_and_by_name(tmp_path):
    out = run_tiny(tmp_path)
    before = files(out)
    done = rollback(out, "color")
    assert done.stage == 1 and done.gone == ("02-size", "03-shape")
    assert (done.kept_in / "stages" / "03-shape" / "buffer" / "samples.parquet").is_file()
    assert (done.kept_in / "stages" / "02-size" / "buffer" / "samples.parquet").is_file()
    assert (done.kept_in / "report.html").is_file() and not (out / "report.html").exists()
    assert rollback(out, "0", delete=True).kept_in is None
    assert not (out / "buffer").exists() and [p.name for p in (out / "stages").iterdir()] == ["00-base"]
    assert [p.name for p in (out / "rolled-back").iterdir()] == ["1"]
    run_tiny(tmp_path)
    assert files(out) == before


def test_an_unfinished_stage_goes_too(tmp_path, monkeypatch):
    with stopped_in(3, monkeypatch):
        run_tiny(tmp_path)
    assert list((tmp_path / "run" / "stages").glob(".03*"))
    done = rollback(tmp_path / "run", "2", delete=True)
    assert (done.gone, done.unfinished, done.kept_in) == ((), True, None)
    assert not list((tmp_path / "run" / "stages").glob(".*")) and not (tmp_path / "run" / "rolled-back").exists()


def test_a_crash_between_the_moves_is_mended(tmp_path, monkeypatch):
    out = run_tiny(tmp_path)
    before = files(out)
    real = shutil.os.replace

    def crash(source, target):
        if "02-size" in str(target):
            raise OSError("no power")
        real(source, target)

    with monkeypatch.context() as patched:
        patched.setattr("retain.rollback.os.replace", crash)
        with pytest.raises(OSError, match="no power"):
            rollback(out, "1")
    run_tiny(tmp_path)  # the second stage is still there
    assert files(out) == before
    rollback(out, "1")
    run_tiny(tmp_path)
    assert files(out) == before


def test_the_report_forgets_the_stages_that_went(tmp_path):
    out = run_tiny(tmp_path)
    rollback(out, "1")
    lines = current(read_journal(out / "journal.jsonl"))
    assert {line["stage"] for line in lines if line["kind"] == "step"} == {1}
    assert not [line for line in lines if line["kind"] == "end"]
    assert write_report(out).is_file()


def test_without_buffers_of_its_own_it_refuses_and_changes_nothing(tmp_path):
    out = run_tiny(tmp_path, buffer={"history": False})
    assert not list(out.glob("stages/*/buffer"))
    before = files(out)
    with pytest.raises(InputError, match=r"01-color has no buffer of its own any more \(buffer.history: false\)"):
        rollback(out, "1")
    assert files(out) == before
    assert rollback(out, "0").stage == 0


def test_the_command(tmp_path):
    values = tiny_values(tmp_path)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))
    cli, out = CliRunner(), str(tmp_path / "run")
    assert cli.invoke(app, ["run", str(tmp_path / "run.yaml")]).exit_code == 0
    same = cli.invoke(app, ["rollback", out, "--to", "3"])
    assert same.exit_code == 0 and "nothing to roll back" in same.output
    for to in ("4", "-1", "colour", "", "../x", "²"):
        wrong = cli.invoke(app, ["rollback", out, "--to", to])
        assert wrong.exit_code == 2 and "is not a finished stage" in wrong.output, to
    done = cli.invoke(app, ["rollback", out, "--to", "1"])
    assert done.exit_code == 0 and "moved to" in done.output
    assert cli.invoke(app, ["run", str(tmp_path / "run.yaml")]).exit_code == 0
    assert len(json.loads((tmp_path / "run" / "results.json").read_text())["matrix"]) == 4


def test_the_adapter_is_that_of_the_stage(tmp_path):
    from safetensors.numpy import load_file

    out = run_tiny(tmp_path)
    first = load_file(out / "stages" / "01-color" / "adapter" / "adapter_model.safetensors")
    rollback(out, "1")
    run_tiny(tmp_path)
    assert same_tensors(first, load_file(out / "stages" / "01-color" / "adapter" / "adapter_model.safetensors"))


# ---- and then with other tasks -----------------------------------------------------------------------------


def other_task(folder, name="other"):
    """Two files beside those of the run, in a folder of their own, and their entry in a configuration."""
    (folder / "elsewhere").mkdir(exist_ok=True)
    for split in ("train", "test"):
        text = (folder / f"color_{split}.jsonl").read_text().replace("red", "green").replace("color", "hue")
        (folder / "elsewhere" / f"{name}_{split}.jsonl").write_text(text)
    return {"name": name, "train": f"elsewhere/{name}_train.jsonl", "test": f"elsewhere/{name}_test.jsonl"}


@pytest.fixture
def rolled_back(tmp_path):
    """A run that learned color, size and shape and went back to color; what a run of color and other would be."""
    out = run_tiny(tmp_path)
    rollback(out, "1")
    values = tiny_values(tmp_path)
    values["tasks"] = [values["tasks"][0], other_task(tmp_path)]
    expected = results(run(make_config(values, "test"), tmp_path, tmp_path / "expected"))
    return tmp_path, out, values, expected


def same_results(found, expected):
    for key in ("tasks", "matrix", "matrices", "metrics", "finished"):
        assert found[key] == expected[key], key
    assert found["costs"]["replayed_samples"] == expected["costs"]["replayed_samples"] > 0


def test_a_run_with_other_tasks_goes_on_from_there(rolled_back):
    folder, out, values, expected = rolled_back
    run(make_config(values, "test"), folder, out)
    same_results(results(out), expected)
    assert [task.name for task in load_config(out / "config.yaml").tasks] == ["color", "other"]
    values["tasks"].pop()  # what is learned binds again
    with pytest.raises(InputError, match="was run with task other too"):
        run(make_config(values, "test"), folder, out)


def test_another_task_is_added_from_there(rolled_back):
    folder, out, _, expected = rolled_back
    (folder / "elsewhere" / "task.yaml").write_text("{name: other, train: other_train.jsonl, test: other_test.jsonl}")
    same_results(add(out, folder / "elsewhere" / "task.yaml"), expected)
    assert [task.name for task in load_config(out / "config.yaml").tasks] == ["color", "other"]


def test_another_task_is_learned_from_there(rolled_back, monkeypatch):
    folder, out, values, expected = rolled_back
    monkeypatch.chdir(folder)
    options = {key: values[key] for key in ("model", "strategy", "training", "schedule", "evaluation")}
    learner = Learner(out=out, **options)
    for task in values["tasks"]:
        found = learner.learn(task)
    same_results(found, expected)


@pytest.mark.parametrize("changed", ["train", "test", "metric"])
def test_a_task_comes_back_with_other_data_and_is_scored_afresh(changed, tmp_path):
    out, values = run_tiny(tmp_path), tiny_values(tmp_path)
    rollback(out, "size")
    if changed == "metric":
        values["tasks"][2]["metric"] = "rouge_l"
    else:
        path = tmp_path / f"shape_{changed}.jsonl"
        path.write_text("".join(path.read_text().splitlines(keepends=True)[::-1][:6]).replace("round", "ball"))
    run(make_config(values, "test"), tmp_path, out)
    whole = run(make_config(values, "test"), tmp_path, tmp_path / "whole")
    same_results(results(out), results(whole))
    assert TAKEN_BACK not in json.dumps(read_hashes(out)) and read_hashes(out) == read_hashes(whole)
    for row in ("00-base", "02-size"):
        lines = [(path / "stages" / row / "predictions.jsonl").read_text() for path in (out, whole)]
        assert sorted(lines[0].splitlines()) == sorted(lines[1].splitlines()), row


def test_a_task_that_waited_binds_no_longer(tmp_path, monkeypatch):
    with stopped_in(2, monkeypatch):
        run_tiny(tmp_path)
    entry = other_task(tmp_path)
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(entry))
    with pytest.raises(InputError, match=r"size is not learned yet; .* `retain rollback .* --to 1` it need not be"):
        add(tmp_path / "run", tmp_path / "task.yaml")
    assert rollback(tmp_path / "run", "1").tasks == ("size", "shape")
    assert add(tmp_path / "run", tmp_path / "task.yaml")["tasks"] == ["color", "other"]


def test_settings_and_learned_tasks_still_bind(rolled_back):
    folder, out, values, _ = rolled_back
    with pytest.raises(InputError, match=r"training\.learning_rate: 0\.01 -> 0\.5"):
        run(make_config(values | {"training": values["training"] | {"learning_rate": 0.5}}, "test"), folder, out)
    with pytest.raises(InputError, match="was run with task color too"):
        run(make_config(values | {"tasks": values["tasks"][1:]}, "test"), folder, out)
    with pytest.raises(InputError, match=r"tasks: color -> other, color"):
        run(make_config(values | {"tasks": values["tasks"][::-1]}, "test"), folder, out)


def test_a_trainer_goes_on_from_there_with_another_task(tmp_path):
    from retain.integrations.replay import Replay, Step
    from retain.types import Sample

    def learn(task):
        replay = Replay(tmp_path / "memory", task, "mssr")
        replay.begin(8, 8, 4, 2, {})
        for step in range(2):
            again = replay.draw()
            replay.learn(Step([4 * step + k for k in range(4)], [1.0] * (4 + len(again)), [1] * (4 + len(again))))
        replay.finish(lambda folder: None, lambda one, row: Sample(one, task, f"{row}?", "!"))

    for task in ("color", "size"):
        learn(task)
    rollback(tmp_path / "memory", "1")
    learn("shape")
    assert results(tmp_path / "memory")["tasks"] == ["color", "shape"]
    rollback(tmp_path / "memory", "1")
    learn("size")
    assert results(tmp_path / "memory")["tasks"] == ["color", "size"]
    assert [task.name for task in load_config(tmp_path / "memory/config.yaml").tasks] == ["color", "size"]
