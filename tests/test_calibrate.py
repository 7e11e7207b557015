"""`retain calibrate` and `retain fit` on runs of the tiny model, from the records to the tables."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from tiny import tiny_values

import retain.assessment
import retain.calibrate
import retain.calibration
from retain import cli
from retain.assessment import assess_fit
from retain.calibrate import calibrate, change, fit, probe
from retain.config import load_config, make_config
from retain.device import open_model
from retain.history import follow, read_history
from retain.losses import sample_losses
from retain.report.calibration import sentence
from retain.run import run
from retain.tasks import load_tasks
from retain.types import InputError


def run_tiny(folder: Path, **changes) -> Path:
    return run(make_config(tiny_values(folder, **changes), "test"), folder, folder / "run")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """Three tasks; calibrated runs keep their probes, so the model is asked once."""
    return run_tiny(tmp_path_factory.mktemp("finished"), training={"learning_rate": 3e-2, "batch_size": 4})


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    fresh = shutil.ignore_patterns("calibration.*")
    return Path(shutil.copytree(finished.parent, tmp_path / "all", ignore=fresh)) / "run"


@pytest.fixture
def mild(monkeypatch, finished):
    """The tiny model forgets little: half of what it stored counts as forgotten."""
    history = read_history(finished)
    probes = probe(history)
    changes = [change(one, probes) for one in follow(history).intervals]
    monkeypatch.setattr(retain.calibration, "FORGOTTEN_ABOVE", float(np.median(changes)))
    return probes


def log_of(path: Path) -> list[dict]:
    return pq.read_table(path / "memory_reviews.parquet").to_pylist()


# ---- the history ----------------------------------------------------------------------------------------


def test_every_stored_sample_is_observed_once_a_stage(finished):
    found, log = follow(read_history(finished)), log_of(finished)
    reviewed = {(row["stage"], row["id"]) for row in log}
    assert len(found.ends) == 24 + 48
    assert (
        {(one.stage, one.id) for one in found.firsts} == {(o.stage, o.id) for o in found.ends if o.reviewed} == reviewed
    )
    assert len(found.log) == len(log) > len(reviewed) / 2
    pairs = [(one.stage, one.id) for one in found.intervals]
    assert len(pairs) == len(set(pairs)) == 72
    first = {}
    for row in log:
        first.setdefault((row["stage"], row["id"]), (row["step"], row["loss"]))
    assert {(o.stage, o.id): (o.step, o.loss) for o in found.firsts} == first


def test_strengths_are_those_that_the_run_recorded(finished):
    """The trace holds each stage's start and end; the memory led through the reviews again must pass both."""
    trace = {
        (row["stage"], row["step"], row["id"]): row
        for row in pq.read_table(finished / "memory_trace.parquet").to_pylist()
    }
    for one in follow(read_history(finished)).ends:
        end = trace[one.stage, one.step, one.id]
        start = trace[one.stage, one.step - one.elapsed, one.id]
        assert np.exp([one.log_start, one.log_strength]) == pytest.approx([start["strength"], end["strength"]])
        assert one.elapsed == 6 and one.task == end["task"]


def test_the_time_since_a_review_and_the_last_loss(finished):
    log = log_of(finished)
    for one in follow(read_history(finished)).ends:
        own = [row for row in log if row["id"] == one.id and row["step"] <= one.step]
        entry = 6 if one.task == "color" else 12
        assert one.reviews == len(own)
        assert one.waited == one.step - (own[-1]["step"] if own else entry)
        if own:
            assert one.last_loss == own[-1]["loss"]


def test_a_history_that_was_tampered_with_is_told(copy):
    rows = log_of(copy)
    rows[0]["step"] += 1
    rows[0]["loss"] += 5
    rows = [row for row in rows if row is rows[0] or (row["step"], row["id"]) != (rows[0]["step"], rows[0]["id"])]
    schema = pq.read_schema(copy / "memory_reviews.parquet")
    pq.write_table(pa.Table.from_pylist(rows, schema), copy / "memory_reviews.parquet")
    with pytest.raises(InputError, match=r"memory_trace.parquet: stage \d, sample '.*' ended at strength .* lead to"):
        follow(read_history(copy))


# ---- the probe ------------------------------------------------------------------------------------------


def test_probes_are_the_losses_of_each_stages_weights(finished, mild):
    config = load_config(finished / "config.yaml")
    lm, _ = open_model(config, finished)
    samples = {sample.id: sample for task in load_tasks(config, finished) for sample in task.train}
    assert {row: len(losses) for row, losses in mild.items()} == {1: 24, 2: 48, 3: 48}
    for row, name in ((1, "01-color"), (3, "03-shape")):
        lm.load_adapter(finished / "stages" / name / "adapter")
        for one in ("color/3", "color/17"):
            assert mild[row][one] == pytest.approx(float(sample_losses(lm, [lm.encode(samples[one])])[0]), abs=1e-5)


def test_what_is_measured_is_not_measured_again(copy, mild, monkeypatch):
    measured = []
    real = retain.calibrate.sample_losses

    def counted(lm, sequences):
        measured.append(len(sequences))
        return real(lm, sequences)

    monkeypatch.setattr(retain.calibrate, "sample_losses", counted)
    history = read_history(copy)
    assert probe(history) == mild and measured == []
    (copy / "probes" / "02-size.parquet").unlink()
    assert probe(history)[2] == pytest.approx(mild[2], abs=1e-5)
    assert measured == [48]
    path = copy / "probes" / "03-shape.parquet"  # stopped before all were there
    pq.write_table(pq.read_table(path).slice(0, 40), path)
    assert probe(history)[3] == pytest.approx(mild[3], abs=1e-5)
    assert measured == [48, 8]
    adapters = [copy / "stages" / name / "adapter/adapter_model.safetensors" for name in ("01-color", "03-shape")]
    shutil.copyfile(adapters[0], adapters[1])  # other weights than those that were measured
    assert probe(history)[3] != pytest.approx(mild[3], abs=1e-5)
    assert measured == [48, 8, 48]
    path.write_bytes(b"PAR1 not really")
    with pytest.raises(
        InputError, match=r"03-shape.parquet: not a readable Parquet file .* delete it to measure again"
    ):
        probe(history)


def test_samples_that_left_the_buffer_and_a_seed_are_measured_too(tmp_path, monkeypatch):
    tiny_values(tmp_path)
    seed = {"name": "before", "train": "shape_train.jsonl", "max_train": 10}
    buffer = {"capacity": 12, "seed": seed}
    tasks = [
        {"name": n, "train": f"{n}_train.jsonl", "test": f"{n}_test.jsonl", "max_test": 2} for n in ("color", "size")
    ]
    out = run_tiny(tmp_path, buffer=buffer, tasks=tasks)
    history = read_history(out)
    kept = set(pq.read_table(out / "buffer/samples.parquet")["id"].to_pylist())
    stored = [set(stage.losses) for stage in history.stages]
    assert [len(ids) for ids in stored] == [10, 12] and not set().union(*stored) <= kept
    found = probe(history)
    assert {row: set(losses) for row, losses in found.items()} == {0: stored[0], 1: stored[0] | stored[1], 2: stored[1]}
    lm, _ = open_model(history.config, out)
    one = next(iter(stored[0]))
    text = retain.calibrate._texts(history, {one})[one]
    with lm.base():
        assert found[0][one] == pytest.approx(float(sample_losses(lm, [lm.encode(text)])[0]), abs=1e-5)
    shutil.rmtree(out / "probes")
    with open(tmp_path / "color_train.jsonl", "a") as file:
        file.write('{"instruction": "Another", "input": "row", "output": "red", "choices": ["red", "blue"]}\n')
    with pytest.raises(InputError, match=r"task 'color': its data are not those .* was trained on"):
        probe(history)


# ---- the numbers ----------------------------------------------------------------------------------------


def test_calibration_is_counted_from_the_records(finished, mild, monkeypatch):
    found = calibrate(finished)
    assert found == json.loads((finished / "calibration.json").read_text())
    above = retain.calibration.FORGOTTEN_ABOVE
    observed = follow(read_history(finished)).unreviewed
    rise = np.array([mild[one.stage][one.id] - mild[one.stage - 1][one.id] for one in observed])
    group = found["groups"]["unreviewed"]
    assert (group["observations"], group["forgotten"]) == (len(rise), (rise > above).sum())
    hazard = np.array([one.log_start - one.log_strength for one in observed])
    gone, kept = hazard[rise > above], hazard[rise <= above]
    pairs = (gone[:, None] > kept).mean() + (gone[:, None] == kept).mean() / 2
    value, low, high = group["measures"]["retention"]["auc"]
    assert value == pytest.approx(pairs, abs=1e-6) and low <= value <= high
    bins = group["reliability"]["bins"]
    assert sum(one["count"] for one in bins) == len(rise)
    assert sum(one["count"] * one["predicted"] for one in bins) == pytest.approx(np.exp(-hazard).sum(), abs=1e-3)
    assert sum(row["observations"] for row in group["by_task"]) == len(rise)
    assert {(row["stage"], row["task"]) for row in group["by_task"]} == {(2, "color"), (3, "color"), (3, "size")}
    assert found["groups"]["stored"]["reliability"] is None and "retention" not in found["groups"]["stored"]["measures"]


def test_the_page_stands_alone(finished, mild):
    calibrate(finished)
    page = (finished / "calibration.html").read_text()
    assert page.count("<svg") == 5 and "Reliability" in page and "ROC" in page
    assert "http" not in page.split("</head>")[1] and "nan" not in page.split("</head>")[1]


def test_a_fit_gives_lines_for_a_configuration(finished, mild, monkeypatch):
    monkeypatch.setattr(retain.assessment, "EVENTS", 4)
    found = fit([finished])
    assert found["observations"] == 72 and set(found["parameters"]) == {"alpha", "gamma_d", "time_unit", "eta_s", "rho"}
    memory = make_config(
        yaml.safe_load(found["yaml"]) | {"tasks": [{"name": "a", "train": "a", "test": "b"}]}, "x"
    ).memory
    assert {name: getattr(memory, name) for name in found["parameters"]} == found["parameters"]
    told = found["log_likelihood"]
    assert told["fitted"] > told["own"]
    assert found["held_out"]["samples"]["against_own"][0] == pytest.approx(
        found["held_out"]["samples"]["fitted"] - found["held_out"]["samples"]["own"], abs=1e-6
    )


def test_runs_are_fitted_together(finished, copy, mild, monkeypatch):
    monkeypatch.setattr(retain.assessment, "EVENTS", 30)  # enough for the unit of time, too few for the stability
    both, one = fit([finished, copy]), fit([finished])
    assert both["observations"] == 2 * one["observations"]
    assert both["log_likelihood"]["own"] == pytest.approx(2 * one["log_likelihood"]["own"])
    assert both["parameters"] == pytest.approx(one["parameters"], rel=0.02)
    assert one["kept_as_it_was"] == both["kept_as_it_was"] == ["eta_s", "rho"]


def test_runs_must_have_in_common_what_is_not_fitted():
    base = {"tasks": [{"name": "a", "train": "a", "test": "b"}]}
    runs = [make_config(base | {"memory": {"beta_s": one}}, "test") for one in (0.5, 0.6)]
    with pytest.raises(InputError, match=r"memory.beta_s: the runs differ \(0.5 and 0.6\)"):
        assess_fit(runs, None, None)


# ---- what is refused ------------------------------------------------------------------------------------


@pytest.fixture
def command(monkeypatch, capsys):
    def command(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["retain", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        out, err = capsys.readouterr()
        return stopped.value.code or 0, out, err

    return command


def test_the_commands_print_tables_and_json(command, finished, mild, monkeypatch):
    code, out, _ = command("calibrate", finished)
    assert code == 0 and "memory: retention" in out and "calibration.html" in out and "[0." in out
    code, out, _ = command("calibrate", finished, "--json")
    assert code == 0 and json.loads(out)["groups"]["unreviewed"]["observations"]
    code, _, err = command("fit", finished)
    assert code == 0 or "a fit needs 20" in err
    monkeypatch.setattr(retain.assessment, "EVENTS", 4)
    code, out, _ = command("fit", finished)
    assert code == 0 and "memory:\n  alpha: " in out and "held out: other samples" in out


def break_results(path: Path) -> None:
    results = json.loads((path / "results.json").read_text())
    (path / "results.json").write_text(json.dumps(results | {"finished": False}))


def set_strategy(path: Path) -> None:
    text = (path / "config.yaml").read_text()
    (path / "config.yaml").write_text(text.replace("strategy: mssr", "strategy: none"))


def empty_trace(path: Path) -> None:
    table = pq.read_table(path / "memory_trace.parquet")
    pq.write_table(table.slice(0, 0), path / "memory_trace.parquet")


@pytest.mark.parametrize("name", ["calibrate", "fit"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: (path / "memory_trace.parquet").unlink(), "memory_trace.parquet: is missing"),
        (lambda path: (path / "memory_reviews.parquet").unlink(), "memory_reviews.parquet: is missing"),
        (lambda path: (path / "memory_trace.parquet").write_bytes(b"no"), "memory_trace.parquet: not a readable"),
        (lambda path: pq.write_table(pa.table({"a": [1]}), path / "memory_reviews.parquet"), "its columns are a;"),
        (lambda path: (path / "results.json").unlink(), "the run is not finished; `retain run`"),
        (break_results, "the run is not finished; `retain run`"),
        (set_strategy, "strategy none replays nothing"),
        (empty_trace, "nothing was stored before the last stage"),
        (lambda path: None, "none of 72 observations of stored samples was forgotten"),
    ],
)
def test_what_cannot_be_calibrated_is_said_and_is_exit_2(command, copy, mild, monkeypatch, name, damage, message):
    monkeypatch.setattr(retain.calibration, "FORGOTTEN_ABOVE", 50.0)
    damage(copy)
    code, out, err = command(name, copy)
    assert code == 2 and message in err and err.startswith("error: ") and "Traceback" not in err
    assert not out and not (copy / "calibration.json").exists()


def test_all_forgotten_is_one_class_too(command, copy, mild, monkeypatch):
    monkeypatch.setattr(retain.calibration, "FORGOTTEN_ABOVE", -50.0)
    code, _, err = command("calibrate", copy)
    assert code == 2 and "every one of 72 observations" in err and "forgets less" in err


def test_too_few_outcomes_for_a_fit(command, finished, mild, monkeypatch):
    monkeypatch.setattr(retain.assessment, "EVENTS", 60)
    code, _, err = command("fit", finished)
    assert code == 2 and "a fit needs 60 forgotten and 60 kept ones: give more runs" in err


def test_a_run_named_twice_is_refused(command, finished):
    code, _, err = command("fit", finished, f"{finished}/")
    assert code == 2 and "stands twice" in err


def test_no_directory(command, tmp_path):
    assert command("fit", tmp_path / "nothing")[0] == 2
    code, _, err = command("calibrate", tmp_path)
    assert code == 2 and "not the directory of a run" in err


@pytest.mark.parametrize(
    ("within", "said"),
    [
        ([0.51, 0.39, 0.62], "it does not tell them from the kept ones (AUC 0.51, 0.39 to 0.62)"),
        ([0.70, 0.60, 0.80], "it tells them from the kept ones"),
        ([0.30, 0.20, 0.40], "it points the wrong way"),
        ([None, None, None], None),
    ],
)
def test_the_headline_tells_skill_over_stages_from_skill_in_one(within, said):
    measures = {"retention": {"auc": [0.59, 0.53, 0.67], "auc_within": within}, "waited": {"auc": [0.5, 0.4, 0.6]}}
    scores = {"log_loss": 0.17, "log_loss_constant": 0.14}
    group = {"observations": 654, "forgotten": 20, "measures": measures, "reliability": scores}
    headline = sentence({"groups": {"unreviewed": group}})
    assert "Over all stages the memory tells them from the kept ones (AUC 0.59, 0.53 to 0.67)" in headline
    assert ("Within a stage" in headline) == bool(said) and (said or "") in headline and "`" not in headline
