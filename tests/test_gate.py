"""The gate: found values against limits, how sure they are, and what a run does about it."""

import json
import math

import numpy as np
import pytest
from test_run import journal, results, run_tiny
from tiny import tiny_values
from typer.testing import CliRunner

from retain.cli import app
from retain.config import diff_config, dump_config, make_config
from retain.gate import check_gate, failures, raise_replay, replay_factor, sentence
from retain.intervals import wilson_interval
from retain.run import run
from retain.rundir import RunDir
from retain.types import GateError, InputError

TASKS = [{"name": name, "train": "a.jsonl", "test": "a.jsonl"} for name in ("one", "two", "three")]
GENERAL = {"name": "general", "test": "a.jsonl"}
# Right answers of 8 by row and task.
RIGHT = {"one": [0, 8, 6, 4], "two": [2, 2, 7, 7], "three": [0, 0, 0, 8], "general": [8, 7, 6, 5]}


def make_run(folder, predictions=True, items=8, stages=3, strategy="mssr", **gate):
    """A directory with scores and predictions as a run writes them, of known values; NLL = 2 - share of right ones."""
    config = make_config({"tasks": [*TASKS, GENERAL], "strategy": strategy, "gate": gate}, "test")
    folder.mkdir()
    (folder / "config.yaml").write_text(dump_config(config))
    (folder / "journal.jsonl").write_text("")
    names = ["base", "joint"] if strategy == "joint" else ["base", *(task["name"] for task in TASKS)]
    for row, name in enumerate(names[: stages + 1]):
        place = folder / "stages" / f"{row:02d}-{name}"
        place.mkdir(parents=True)
        scores, lines = {}, []
        for task, right in RIGHT.items():
            correct = right[row] * items // 8
            mean = correct / items
            scores[task] = {"generated": mean, "nll": 2 - mean, "n": items, "metric": "exact_match", "truncated": 0}
            lines += [
                {"task": task, "id": f"{task}/test/{k}", "score": float(k < correct), "nll": 2 - float(k < correct)}
                for k in range(items)
            ]
        facts = {"row": row, "task": name, "fingerprint": "0"} if row else {"row": row}
        (place / "scores.json").write_text(json.dumps({**facts, "scores": scores, "costs": {}, "steps": 1}))
        if predictions:
            (place / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return RunDir(folder), config


def found(run_dir, config, stage=None):
    return {(one.limit, one.task): one for one in check_gate(run_dir, config, stage)}


def test_every_limit_measures_what_it_says(tmp_path):
    limits = {"forgetting": 0.1, "mean_forgetting": 0.1, "score": 0.6, "nll": 1.2, "nll_rise": 0.2, "general": 0.1}
    findings = found(*make_run(tmp_path / "run", **limits))
    values = {key: one.value for key, one in findings.items()}
    assert values == pytest.approx(
        {
            ("forgetting", "one"): 0.5, ("forgetting", "two"): 0.0, ("mean_forgetting", None): 0.25,
            ("score", "one"): 0.5, ("score", "two"): 0.875, ("score", "three"): 1.0,
            ("nll", "one"): 1.5, ("nll", "two"): 1.125, ("nll", "three"): 1.0,
            ("nll_rise", "one"): 0.5, ("nll_rise", "two"): 0.0, ("general", "general"): 0.375,
        }
    )  # fmt: skip
    missed = {key for key, one in findings.items() if one.exceeded}
    assert missed == {("forgetting", "one"), ("mean_forgetting", None), ("score", "one"), ("nll", "one"),
                      ("nll_rise", "one"), ("general", "general")}  # fmt: skip
    assert findings["forgetting", "one"].past == pytest.approx(0.4)
    assert findings["score", "one"].past == pytest.approx(0.1)


def test_the_mean_is_minus_the_backward_transfer(tmp_path):
    run_dir, config = make_run(tmp_path / "run", mean_forgetting=0.0)
    tasks = [{"name": t["name"], "stage": "train" in t, "metric": None, "skipped": 0} for t in [*TASKS, GENERAL]]
    for row in run_dir.rows():
        facts = run_dir.scores(row)
        facts["costs"]["peak_memory_bytes"] = 0
        (row / "scores.json").write_text(json.dumps(facts))
    metrics = run_dir.collect(config, tasks, {})["metrics"]
    assert found(run_dir, config)["mean_forgetting", None].value == pytest.approx(-metrics["BWT"])


def test_after_an_earlier_stage_and_limits_by_task(tmp_path):
    run_dir, config = make_run(tmp_path / "run", forgetting={"one": 0.2, "three": 0.0}, score=0.1)
    after_two = found(run_dir, config, 2)
    assert after_two["forgetting", "one"].value == 0.25 and ("forgetting", "two") not in after_two
    assert ("score", "three") not in after_two and ("score", "two") in after_two
    assert not check_gate(run_dir, make_config({"tasks": TASKS, "gate": {"forgetting": 0.1}}, "test"), 1)
    for stage in (0, 4, -1):
        with pytest.raises(InputError, match="is not finished; there are 1 to 3"):
            check_gate(run_dir, config, stage)


def test_few_items_are_told_from_many(tmp_path):
    few = found(*make_run(tmp_path / "few", forgetting=0.3, score=0.7))
    many = found(*make_run(tmp_path / "many", items=400, forgetting=0.3, score=0.7))
    for key in (("forgetting", "one"), ("score", "one")):
        assert few[key].exceeded and not few[key].certain, key
        assert many[key].exceeded and many[key].certain, key
    assert "so few test items (8)" in sentence(few["forgetting", "one"], 0.95)
    assert "so few" not in sentence(many["forgetting", "one"], 0.95)


def test_noise_may_pass(tmp_path):
    run_dir, config = make_run(tmp_path / "run", forgetting=0.3, noise="pass")
    findings = check_gate(run_dir, config)
    assert not failures(findings, config)
    assert failures(findings, make_config({"tasks": TASKS, "gate": {"forgetting": 0.3}}, "test"))


def test_without_predictions_there_is_no_interval_of_a_change(tmp_path):
    findings = found(*make_run(tmp_path / "run", predictions=False, forgetting=0.3, score=0.7, noise="pass"))
    assert findings["forgetting", "one"].low is None and findings["forgetting", "one"].certain
    assert findings["score", "one"].low is not None


def test_the_interval_of_a_change_pairs_the_items(tmp_path):
    """The same items stay right, so the fall varies as that of the items that changed."""
    one = found(*make_run(tmp_path / "run", items=80, forgetting=0.3))["forgetting", "one"]
    spread = 1.96 * math.sqrt(0.5 * 0.5 / 80)
    assert (one.low, one.high) == pytest.approx((0.5 - spread, 0.5 + spread), abs=0.02)


@pytest.mark.parametrize("mean, n, low, high", [(0.5, 10, 0.2366, 0.7634), (0.0, 10, 0.0, 0.2775), (1.0, 1, 0.2065, 1)])
def test_wilson(mean, n, low, high):
    """Brown, Cai, DasGupta 2001: the roots of (p̂ - p)² = z² p(1 - p)/n."""
    assert wilson_interval(mean, n) == pytest.approx((low, high), abs=1e-4)
    for p in wilson_interval(mean, n):
        assert (mean - p) ** 2 == pytest.approx(1.959964**2 * p * (1 - p) / n, abs=1e-6)


def test_joint_has_levels_and_general_ability_alone(tmp_path):
    run_dir, config = make_run(tmp_path / "run", strategy="joint", forgetting=0.0, score=0.0, general=0.0)
    keys = set(found(run_dir, config))
    assert keys == {("score", "one"), ("score", "two"), ("score", "three"), ("general", "general")}


# ---- the command ------------------------------------------------------------------------------------------


def gate(folder, *arguments):
    return CliRunner().invoke(app, ["gate", str(folder), *arguments])


def test_the_command_fails_with_3_and_a_table(tmp_path):
    make_run(tmp_path / "run", forgetting=0.1)
    done = gate(tmp_path / "run")
    assert done.exit_code == 3
    assert "not met: 1 of 2 limits" in done.output and "failed" in done.output and "0.400" in done.output
    assert gate(tmp_path / "run", "forgetting=0.5").exit_code == 0
    assert gate(tmp_path / "run", "gate.forgetting=0.5", "mean_forgetting=0.2").exit_code == 3
    assert gate(tmp_path / "run", "forgetting=null", "score.one=0.5").exit_code == 0
    assert gate(tmp_path / "run", "--stage", "1").exit_code == 0
    noisy = gate(tmp_path / "run", "forgetting=0.3")
    assert noisy.exit_code == 3 and "within noise" in noisy.output
    assert gate(tmp_path / "run", "forgetting=0.3", "noise=pass").exit_code == 0


def test_the_command_for_programs(tmp_path):
    make_run(tmp_path / "run", forgetting=0.1)
    done = CliRunner().invoke(app, ["gate", str(tmp_path / "run"), "--json"])
    found = json.loads(done.stdout)
    assert done.exit_code == 3 and not found["passed"]
    one = found["findings"][0]
    assert (one["limit"], one["task"], one["value"], one["failed"]) == ("forgetting", "one", 0.5, True)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((), "no limit is set; give one of forgetting"),
        (("forgetting=2",), "gate.forgetting"),
        (("score.nope=0.5",), "gate.score.nope: no task that is learned; there are one, two, three"),
        (("score.general=0.5",), "gate.score.general: no task that is learned"),
        (("general.one=0.1",), "gate.general.one: no evaluation-only task; there are general"),
        (("forgeting=0.1",), "forgetting"),
        (("forgetting",), "write key=value"),
        (("forgetting=nan",), "gate.forgetting"),
        (("level=1", "score=0.5"), "gate.level"),
        (("score=0.5", "--stage", "9"), "stage 9 is not finished"),
    ],
)
def test_wrong_input(arguments, message, tmp_path):
    make_run(tmp_path / "run")
    done = gate(tmp_path / "run", *arguments)
    assert done.exit_code == 2 and message in done.output, done.output


# ---- inside a run -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run whose second stage misses a limit that no run meets."""
    folder = tmp_path_factory.mktemp("stopped")
    values = tiny_values(folder, gate={"after_stage": "stop", "nll": {"size": 0.0}})
    with pytest.raises(GateError, match=r"gate after stage 2: nll of size is .* at most 0 is allowed") as caught:
        run(make_config(values, "test"), folder, folder / "run")
    assert "retain rollback" in str(caught.value)
    return folder, values


def test_a_stage_that_misses_the_gate_stops_the_run(stopped):
    folder, values = stopped
    out = folder / "run"
    assert len(results(out)["matrix"]) == 3
    line = journal(out, "gate")[-1]
    assert (line["stage"], line["passed"], line["failed"][0]["task"]) == (2, False, "size")
    with pytest.raises(GateError):
        run(make_config(values, "test"), folder, out)
    assert len(RunDir(out).rows()) == 3  # nothing was trained meanwhile
    assert [line["stage"] for line in journal(out, "gate")] == [1, 2]  # and nothing is told twice


def test_a_wider_limit_goes_on_as_if_it_had_never_stopped(stopped, tmp_path):
    folder, values = stopped
    wider = make_config(values | {"gate": {"after_stage": "stop", "nll": {"size": 9.0}}}, "test")
    run(wider, folder, folder / "run")
    plain = run(make_config({**values, "gate": {}}, "test"), folder, tmp_path / "plain")
    assert results(folder / "run")["matrices"] == results(plain)["matrices"]


def test_replay_is_raised_after_a_stage_that_misses_the_gate(tmp_path):
    out = run_tiny(tmp_path, gate={"after_stage": "raise_replay", "nll": 0.0, "raise_by": 2.0})
    plain = run_tiny(tmp_path, tmp_path / "plain")
    assert [line["replay_factor"] for line in journal(out, "gate")] == [2.0, 4.0, 8.0]
    ratios = [[{e["ratio"] for e in plan["events"]} for plan in journal(one, "plan")] for one in (out, plain)]
    raised, usual = ratios
    assert min(raised[1]) == pytest.approx(2 * min(usual[1]), rel=1e-3)
    assert min(raised[2]) == pytest.approx(0.9, rel=1e-3)  # 4 times 0.3 is cut
    counts = [[plan["events"][0]["replayed"] for plan in journal(one, "plan")[1:]] for one in (out, plain)]
    assert np.all(np.array(counts[0]) > np.array(counts[1]))


def test_raised_settings():
    config = make_config({"tasks": TASKS, "schedule": {"budget": 0.1, "lambda_0": 0.3, "lambda_min": 0.8}}, "test")
    raised = raise_replay(config, 2.0)
    assert (raised.schedule.lambda_0, raised.schedule.lambda_min, raised.schedule.budget) == (0.6, 0.9, 0.2)
    assert (raised.curriculum.initial, raised.curriculum.final) == (0.4, 0.95)
    assert raise_replay(config, 1.0) is config


def test_the_factor_is_a_function_of_the_finished_rows(tmp_path):
    run_dir, config = make_run(tmp_path / "run", after_stage="raise_replay", forgetting=0.3, raise_by=1.5)
    assert replay_factor(run_dir, config) == 1.5  # stage 3 alone forgets more than 0.3
    run_dir, config = make_run(tmp_path / "two", stages=2, after_stage="raise_replay", forgetting=0.2)
    assert replay_factor(run_dir, config) == 1.5
    run_dir, config = make_run(tmp_path / "off", after_stage="stop", forgetting=0.0)
    assert replay_factor(run_dir, config) == 1.0


def test_raising_needs_replay():
    with pytest.raises(InputError, match="raise_replay, and strategy 'ewc' replays nothing"):
        make_config({"tasks": TASKS, "strategy": "ewc", "gate": {"after_stage": "raise_replay"}}, "test")
    assert make_config({"tasks": TASKS, "strategy": "auto", "gate": {"after_stage": "raise_replay"}}, "test")


def test_limits_may_change_in_a_directory_unless_they_change_training():
    def one(**gate):
        return make_config({"tasks": TASKS, "gate": gate}, "test")

    assert not diff_config(one(forgetting=0.1), one(score=0.5, after_stage="stop"))
    assert diff_config(one(forgetting=0.1, after_stage="raise_replay"), one(forgetting=0.2, after_stage="raise_replay"))


def test_an_unknown_name_is_said_before_anything_is_trained(tmp_path):
    with pytest.raises(InputError, match=r"gate\.score\.nope: no task that is learned"):
        run_tiny(tmp_path, gate={"after_stage": "stop", "score": {"nope": 0.5}})
    assert not (tmp_path / "run").exists()
