"""Whole runs on the tiny model: what lies in the directory, resuming, and the Learner."""

import json
import os
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from safetensors.numpy import load_file
from tiny import stopped_in, tiny_values

from retain import Learner
from retain.config import make_config
from retain.run import evaluate, run
from retain.rundir import RunDir
from retain.tasks import load_tasks
from retain.types import InputError


def run_tiny(folder, out=None, **changes):
    return run(make_config(tiny_values(folder, **changes), "test"), folder, out or folder / "run")


def results(out):
    return json.loads((out / "results.json").read_text())


def journal(out, kind):
    lines = map(json.loads, (out / "journal.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == kind]


def adapter(out, stage=-1):
    folder = sorted((out / "stages").glob("[0-9]*-*"))[stage]
    return load_file(next(folder.glob("*/*model.safetensors")))


def same_tensors(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return run_tiny(tmp_path_factory.mktemp("finished"))


def test_results(finished):
    found = results(finished)
    assert found["tasks"] == ["color", "size", "shape"]
    assert np.array(found["matrix"]).shape == (4, 3)
    assert set(found["matrices"]) == {"generated", "likelihood", "likelihood_summed", "nll"}
    assert found["matrix"] == found["matrices"]["generated"]
    assert {"ACC", "BWT", "FWT", "MAA", "forgetting", "forgetting_final", "retention", "NLL"} <= found["metrics"].keys()
    assert found["metrics"]["NLL"] == pytest.approx(np.mean(found["matrices"]["nll"][-1]))
    assert found["finished"] and found["strategy"] == "mssr" and found["seed"] == 42
    nll = np.array(found["matrices"]["nll"])
    assert nll[-1].mean() < nll[0].mean()


def test_costs_add_up(finished):
    costs, steps = results(finished)["costs"], journal(finished, "step")
    assert costs["replayed_samples"] == sum(line["replayed"] for line in steps) > 0
    assert costs["train_tokens"] == sum(line["tokens"] for line in steps)
    assert costs["train_seconds"] == pytest.approx(sum(line["seconds"] for line in steps), abs=0.01)
    assert costs["seconds"] >= costs["train_seconds"] + costs["eval_seconds"] > 0
    assert costs["peak_memory_bytes"] > 1e8


def test_what_was_planned_was_replayed(finished):
    for plan in journal(finished, "plan"):
        events = [e for e in journal(finished, "event") if e["stage"] == plan["stage"]]
        assert [(e["step"], e["replayed"]) for e in events] == [(e["step"], e["replayed"]) for e in plan["events"]]
        steps = [s["replayed"] for s in journal(finished, "step") if s["stage"] == plan["stage"]]
        assert sum(steps) == sum(e["replayed"] for e in plan["events"])
        assert sum(sum(e["by_task"].values()) for e in events) == sum(steps)


def test_predictions_are_stored(finished):
    lines = [json.loads(x) for x in (finished / "stages/03-shape/predictions.jsonl").read_text().splitlines()]
    assert len(lines) == 24
    mine = [line["score"] for line in lines if line["task"] == "size"]
    assert np.mean(mine) == results(finished)["matrix"][3][1]


def test_memory_trace_has_a_row_a_refresh_and_sample(finished):
    trace = pq.read_table(finished / "memory_trace.parquet").to_pydict()
    assert set(trace["stage"]) == {2, 3}  # nothing is tracked in the first stage
    for stage, step in {*zip(trace["stage"], trace["step"], strict=True)}:
        ids = [i for i, s, t in zip(trace["id"], trace["stage"], trace["step"], strict=True) if (s, t) == (stage, step)]
        assert len(ids) == len(set(ids)) == 24 * (stage - 1)
    assert all(0 <= m <= 1 for m in trace["strength"]) and min(trace["stability"]) >= 1


def test_each_review_is_logged_with_its_loss(finished):
    trace = pq.read_table(finished / "memory_trace.parquet").to_pylist()
    log = pq.read_table(finished / "memory_reviews.parquet").to_pylist()
    assert len(log) == results(finished)["costs"]["replayed_samples"]  # no sample comes twice in one of these steps
    fresh = {(row["step"], row["id"]) for row in trace if row["strength"] == 1.0 and row["stability"] > 1}
    assert {(row["step"], row["id"]) for row in log} >= fresh
    first = {stage: min(row["step"] for row in trace if row["stage"] == stage) for stage in (2, 3)}
    assert first == {2: 6, 3: 12}  # the trace begins as the stage does
    for step in {row["step"] for row in log}:
        mean = next(line["replay_loss"] for line in journal(finished, "step") if line["global_step"] == step)
        assert np.mean([row["loss"] for row in log if row["step"] == step]) == pytest.approx(mean)


def test_a_finished_run_is_left_as_it_is(finished, caplog):
    before = {path: path.read_bytes() for path in finished.rglob("*.safetensors")}
    caplog.set_level("INFO", logger="retain")
    run_tiny(finished.parent)
    assert "finished already" in caplog.text
    assert before == {path: path.read_bytes() for path in finished.rglob("*.safetensors")}


def test_a_stopped_run_resumes_to_the_same_end(finished, tmp_path, monkeypatch):
    with stopped_in(2, monkeypatch):
        run_tiny(tmp_path)
    assert sorted(p.name for p in (tmp_path / "run/stages").glob("[0-9]*")) == ["00-base", "01-color"]
    out = run_tiny(tmp_path)
    assert same_tensors(adapter(out), adapter(finished))
    assert results(out)["matrices"] == results(finished)["matrices"]
    memory = "buffer/memory.safetensors"
    assert same_tensors(load_file(out / memory), load_file(finished / memory))
    assert journal(out, "resume")[0]["skipped"] == ["01-color"]


def test_a_crash_between_stage_and_buffer_is_mended(finished, tmp_path):
    out = run_tiny(tmp_path)
    (out / "buffer").rename(out / "stages" / "03-shape" / "buffer")
    run_tiny(tmp_path)
    assert (out / "buffer" / "samples.parquet").is_file()


def test_a_torn_journal_line_is_cut_off(tmp_path):
    out = run_tiny(tmp_path)
    with open(out / "journal.jsonl", "a") as file:
        file.write('{"kind": "st')
    run_tiny(tmp_path)
    assert journal(out, "resume")


def test_another_config_in_the_directory(finished):
    with pytest.raises(InputError, match=r"holds another run.*training.learning_rate: 0.01 -> 0.02.*--out"):
        run_tiny(finished.parent, training={"learning_rate": 0.02, "batch_size": 4, "max_length": 128})


def test_changed_data_are_noticed(tmp_path):
    run_tiny(tmp_path)
    config = make_config(tiny_values(tmp_path), "test")
    path = tmp_path / "color_train.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(InputError, match=r"other data than the run began with: color"):
        run(config, tmp_path, tmp_path / "run")


def test_a_directory_with_something_else_in_it(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "letter.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty and not a run"):
        run_tiny(tmp_path, tmp_path / "out")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="is a file, not a directory"):
        run_tiny(tmp_path, tmp_path / "file")


def test_the_learner_gives_what_the_run_gives(finished, tmp_path):
    values = tiny_values(tmp_path)
    tasks = load_tasks(make_config(values, "test"), tmp_path)
    sections = {key: values[key] for key in ("model", "strategy", "training", "schedule", "evaluation")}
    learner = Learner(out=tmp_path / "out", **sections)
    for task in tasks:
        learner.learn(task)
    assert same_tensors(adapter(tmp_path / "out"), adapter(finished))
    assert learner.evaluate()["matrices"] == results(finished)["matrices"]  # the upper triangle too
    again = Learner(out=tmp_path / "out", **sections)
    for task in tasks:
        again.learn(task)
    assert again.evaluate()["matrices"] == results(finished)["matrices"]
    assert again.report().read_text().startswith("<!doctype html>")


def test_the_learner_takes_rows(tmp_path):
    values = tiny_values(tmp_path)
    learner = Learner(values["model"], "mssr", tmp_path / "out", training={"max_length": 128})
    rows = [{"instruction": "Say", "input": str(k), "output": "yes"} for k in range(8)]
    found = learner.learn({"name": "yes", "train": rows, "test": rows[:2], "description": "Says yes."})
    assert found["tasks"] == ["yes"] and len(found["matrix"]) == 2
    with pytest.raises(InputError, match="output"):
        learner.learn({"name": "no", "train": [{"instruction": "Say", "input": "x", "output": ""}], "test": rows})


def test_a_task_by_keywords_and_without_a_test(tmp_path):
    values = tiny_values(tmp_path)
    learner = Learner(values["model"], "mssr", tmp_path / "out", training={"max_length": 128})
    rows = [{"instruction": "Say", "input": str(k), "output": "yes"} for k in range(8)]
    assert learner.learn(rows, name="one", description="Says yes.")["matrix"] == [[None], [None]]
    found = learner.learn(name="two", data=rows, test=rows[:2])
    assert np.array(found["matrix"], dtype=float).shape == (3, 2)
    assert found["matrices"]["nll"][0][1] > found["matrices"]["nll"][2][1]


def test_an_evaluation_only_task_has_a_column_of_its_own(tmp_path):
    values = tiny_values(tmp_path)
    del values["tasks"][1]["train"]
    out = run(make_config(values, "test"), tmp_path, tmp_path / "run")
    found = results(out)
    assert found["tasks"] == ["color", "shape"] and np.array(found["matrix"]).shape == (3, 2)
    guard = found["evaluation_only"]
    assert guard["tasks"] == ["size"] and np.array(guard["matrices"]["nll"]).shape == (3, 1)
    assert guard["change"]["size"] == guard["matrices"]["generated"][-1][0] - guard["matrices"]["generated"][0][0]


def test_joint_has_a_first_and_a_last_row(tmp_path):
    found = results(run_tiny(tmp_path, strategy="joint"))
    assert found["joint"] and np.array(found["matrix"]).shape == (2, 3)
    assert found["metrics"]["BWT"] is None and found["metrics"]["ACC"] == pytest.approx(np.mean(found["matrix"][1]))
    assert sum(line["new"] for line in journal(tmp_path / "run", "step")) == 72


def test_evaluate_scores_any_stage_again(finished):
    for stage in (0, 2, None):
        row = results(finished)["matrices"]["nll"][3 if stage is None else stage]
        scores = evaluate(finished, stage)["scores"]
        assert [scores[task]["nll"] for task in results(finished)["tasks"]] == pytest.approx(row)
    with pytest.raises(InputError, match="0 to 3"):
        evaluate(finished, 4)


def test_a_seed_is_rehearsed_from_the_first_stage_on(tmp_path):
    values = tiny_values(tmp_path)
    values["buffer"] = {"seed": {"name": "old", "train": "size_train.jsonl"}}
    values["tasks"] = values["tasks"][:1]
    out = run(make_config(values, "test"), tmp_path, tmp_path / "run")
    assert all(event["by_task"] == {"old": event["replayed"]} for event in journal(out, "event"))
    assert sum(event["replayed"] for event in journal(out, "event")) > 0


@pytest.fixture(scope="module")
def impatient(tmp_path_factory):
    """A run whose rate is so high that patience ends its stages early."""
    folder = tmp_path_factory.mktemp("impatient")
    training = {"learning_rate": 0.9, "batch_size": 4, "max_length": 128, "patience": 1, "epochs": 6}
    values = tiny_values(folder, training=training)
    for task in values["tasks"]:
        task["validation"] = task["test"]
    return run(make_config(values, "test"), folder, folder / "run")


def test_patience_ends_a_stage_early(impatient):
    planned = sum(plan["steps"] for plan in journal(impatient, "plan"))
    assert len(journal(impatient, "step")) < planned
    assert journal(impatient, "validation")


def test_evaluation_every_n_steps(tmp_path):
    out = run_tiny(tmp_path, evaluation={"batch_size": 4, "after": 3})
    checks = journal(out, "check")
    assert {(c["stage"], c["step"]) for c in checks} == {(s, k) for s in (1, 2, 3) for k in (3, 6)}


def test_truncation_is_counted(tmp_path):
    out = run_tiny(tmp_path, training={"batch_size": 4, "max_length": 30})
    assert results(out)["truncated"] > 0
    assert set(results(out)["truncated_test"].values()) == {8}  # every test prompt, too


def test_two_processes_cannot_share_a_directory(tmp_path):
    values = tiny_values(tmp_path)
    first = Learner(values["model"], out=tmp_path / "run")
    program = f"from retain.rundir import RunDir; RunDir(__import__('pathlib').Path({str(tmp_path / 'run')!r})).lock()"
    second = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "in use by another process" in second.stderr
    assert first.dir.path.is_dir()  # and holds the lock until here


def test_evaluate_leaves_a_live_run_alone(finished):
    live = finished / "stages" / ".04-live"
    live.mkdir()
    evaluate(finished, 0)
    assert live.is_dir()
    live.rmdir()


def test_the_users_own_config_is_not_taken_for_a_run(tmp_path):
    (tmp_path / "run").mkdir()
    mine = tmp_path / "run" / "config.yaml"
    mine.write_text("# mine\ntasks: [support_routing]\n")
    with pytest.raises(InputError, match="not empty and not a run"):
        run_tiny(tmp_path)
    assert mine.read_text().startswith("# mine")


def test_a_run_that_never_trained_does_not_block_its_directory(tmp_path):
    with pytest.raises(InputError, match="target_modules"):
        run_tiny(tmp_path, lora={"target_modules": ["nope"]})
    assert results(run_tiny(tmp_path))["finished"]


def test_a_place_that_cannot_be_written(tmp_path):
    with pytest.raises(InputError, match=r"output: .* cannot be written"):
        run_tiny(tmp_path, tmp_path / "model" / "config.json" / "x")


def test_dropout_is_deterministic(tmp_path):
    lora = {"dropout": 0.3}
    one, two = (run_tiny(tmp_path, tmp_path / name, lora=lora) for name in ("one", "two"))
    assert same_tensors(adapter(one), adapter(two))
    assert not same_tensors(adapter(one), adapter(run_tiny(tmp_path, tmp_path / "plain")))


def test_the_global_step_counts_steps_that_were_taken(impatient):
    steps = [line["global_step"] for line in journal(impatient, "step")]
    assert steps == list(range(1, len(steps) + 1))


def test_a_task_learned_twice(tmp_path):
    values = tiny_values(tmp_path)
    learner = Learner(values["model"], "mssr", tmp_path / "out", training={"max_length": 128})
    rows = [{"instruction": "Say", "input": str(k), "output": "yes"} for k in range(8)]
    first = learner.learn({"name": "yes", "train": rows, "test": rows[:2]})
    assert learner.learn({"name": "yes", "train": rows, "test": rows[:2]})["matrices"] == first["matrices"]
    with pytest.raises(InputError, match="learned already, from other data"):
        learner.learn({"name": "yes", "train": rows[:4], "test": rows[:2]})
    with pytest.raises(InputError, match="empty list"):
        learner.learn({"name": "no", "train": [], "test": rows[:2]})
    with pytest.raises(InputError, match="not plain data"):
        learner.learn({"name": "no", "train": [{"instruction": object()}], "test": rows[:2]})


def test_a_divergence_at_the_last_step_is_said(tmp_path):
    training = {"learning_rate": 1e30, "batch_size": 4, "max_length": 128, "max_steps": 1, "warmup": 0.0}
    with pytest.raises(FloatingPointError, match=r"not finite; lower training\.learning_rate"):
        run_tiny(tmp_path, training=training)


def test_a_missing_adapter(tmp_path):
    out = run_tiny(tmp_path)
    (out / "stages/03-shape/adapter/adapter_model.safetensors").unlink()
    with pytest.raises(InputError, match=r"no adapter_model\.safetensors"):
        evaluate(out)


def test_more_than_a_hundred_rows_keep_their_order(tmp_path):
    folder = RunDir(tmp_path)
    for k in range(103):
        (folder.stages / f"{k:02d}-t").mkdir(parents=True)
        (folder.stages / f"{k:02d}-t" / "scores.json").write_text("{}")
    assert [p.name for p in folder.rows()][-1] == "102-t" and len(folder.rows()) == 103


def test_equal_ways_to_name_a_strategy(finished):
    run_tiny(finished.parent, strategy={"name": "mssr"})
    assert results(finished)["strategy"] == "mssr"


def retain_command(*arguments):
    command = [sys.executable, "-m", "retain", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})


def test_the_command_line_from_config_to_report(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(tiny_values(tmp_path)))
    ran = retain_command("run", config, "--out", tmp_path / "out", "training.epochs=2")
    assert ran.returncode == 0, ran.stderr
    assert "ACC" in ran.stdout and str(tmp_path / "out") in ran.stdout
    plan = json.loads(retain_command("plan", config, "training.epochs=2", "--json").stdout)
    assert plan["totals"]["replayed"] == results(tmp_path / "out")["costs"]["replayed_samples"]
    assert plan["totals"]["steps"] == len(journal(tmp_path / "out", "step")) == 36
    scored = retain_command("evaluate", tmp_path / "out", "--stage", 1)
    assert scored.returncode == 0 and "color" in scored.stdout
    assert retain_command("report", tmp_path / "out").returncode == 0
    again = retain_command("run", config, "--out", tmp_path / "out", "training.epochs=2")
    assert again.returncode == 0 and "finished already" in again.stderr
    other = retain_command("run", config, "--out", tmp_path / "out")
    assert other.returncode == 2 and "training.epochs: 2 -> 1" in other.stderr and "Traceback" not in other.stderr


# ---- seeds and the base model ---------------------------------------------------------------------------


def test_another_seed_gives_another_run(tmp_path):
    one = run_tiny(tmp_path, tmp_path / "one")
    two = run_tiny(tmp_path, tmp_path / "two", seed=7)
    assert not same_tensors(adapter(one), adapter(two))


def test_the_base_model_stays_as_it_was(tmp_path):
    values = tiny_values(tmp_path)
    learner = Learner(values["model"], "mssr", tmp_path / "out", training={"max_length": 128})
    before = {name: value.clone() for name, value in learner.lm.model.named_parameters() if "lora" not in name}
    for task in load_tasks(make_config(values, "test"), tmp_path):
        learner.learn(task)
    for name, value in learner.lm.model.named_parameters():
        assert "lora" in name or value.equal(before[name])


def test_tasks_yet_to_come_are_left_out_where_they_are_not_asked_for(tmp_path, finished):
    out = run_tiny(tmp_path, evaluation={"batch_size": 4, "max_new_tokens": 4, "unseen": False})
    sparse, full = results(out), results(finished)
    for kind, matrix in full["matrices"].items():
        kept = [
            [score if row == 0 or task < row else None for task, score in enumerate(scores)]
            for row, scores in enumerate(matrix)
        ]
        assert sparse["matrices"][kind] == kept and None in kept[1]
    same = {name: value for name, value in full["metrics"].items() if name not in ("FWT", "normalized_score")}
    assert sparse["metrics"].items() >= same.items() and sparse["metrics"]["FWT"] is None
    assert sparse["finished"] and sparse["costs"]["eval_tokens"] < full["costs"]["eval_tokens"]
    assert "FWT" not in (out / "report.html").read_text()
