"""Whole comparisons on the tiny model: what is shared, what is kept, and what a second call does."""

from __future__ import annotations

import json
import os
import sys

import pytest
import yaml
from test_run import adapter, journal, same_tensors
from tiny import tiny_values
from typer.testing import CliRunner

from retain.cells import cell_path, finished_cells, read_cell
from retain.cli import app
from retain.compare import drop_changed, local, run_all, run_cell
from retain.comparison import load_comparison
from retain.run import run
from retain.types import InputError

EVERY = ["none", "fixed", "er", "ewc", "agem", "der++", "mssr", "joint"]
TIMES = ("seconds", "train_seconds", "eval_seconds", "peak_memory_bytes")


def write(folder, **changes):
    run = {key: value for key, value in tiny_values(folder).items() if key not in ("strategy", "output")}
    run["buffer"] = {"capacity": 20}
    values = {"run": run, "strategies": ["none", "mssr"], "seeds": [1], "out": "out"} | changes
    (folder / "compare.yaml").write_text(yaml.safe_dump(values))
    return folder / "compare.yaml"


def run_in_process(comparison, **options):
    return {cell.label: read_cell(run_cell(comparison, cell, **options)) for cell in comparison.cells}


def without_times(cell):
    costs = {key: value for key, value in cell["results"]["costs"].items() if key not in TIMES}
    return {**cell, "results": {**cell["results"], "costs": costs}, "shared": None}


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Every kind of strategy, with rows that are shared and without."""
    folder = tmp_path_factory.mktemp("both")
    file = write(folder, strategies=EVERY)
    shared = load_comparison(file)
    alone = load_comparison(file, out=folder / "alone")
    return (shared, run_in_process(shared, keep_run=True)), (alone, run_in_process(alone, keep_run=True, share=False))


def test_a_shared_cell_ends_as_one_that_shares_nothing(both):
    (shared, cells), (alone, others) = both
    assert cells.keys() == others.keys() and len(cells) == len(EVERY)
    for label, cell in cells.items():
        assert without_times(cell) == without_times(others[label]), label
        one, two = (comparison.out / "runs" / label for comparison in (shared, alone))
        for stage in range(1, len(list((one / "stages").iterdir()))):
            assert same_tensors(adapter(one, stage), adapter(two, stage)), f"{label}, stage {stage}"
        for name in ("buffer.safetensors", "strategy.safetensors"):
            assert [path.read_bytes() for path in sorted(one.rglob(name))] == [
                path.read_bytes() for path in sorted(two.rglob(name))
            ]


def test_what_is_shared(both):
    (shared, cells), (_, others) = both
    taken = {label.removesuffix(".seed1"): cell["shared"] for label, cell in cells.items()}
    assert not any(cell["shared"] for cell in others.values())
    assert taken["none"] == []
    assert all("00-base" in rows for name, rows in taken.items() if name != "none")
    assert [name for name, rows in taken.items() if "01-color" in rows] == ["mssr"]  # from fixed
    assert len(list((shared.out / "shared").iterdir())) == 1 + 6  # the base row, and every first stage but joint's
    lines = journal(shared.out / "runs" / "mssr.seed1", "adopted")
    assert [line["folder"] for line in lines] == ["00-base", "01-color"]


def test_a_cell_holds_what_the_table_needs(both):
    (_, cells), _ = both
    cell = cells["mssr.seed1"]
    assert cell["strategy"] == "mssr" and cell["seed"] == 1 and cell["row"] == "mssr"
    assert cell["results"]["matrix"] and cell["results"]["versions"]["retain"]
    assert set(cell["items"]) == {"color", "size", "shape"}
    for task, items in cell["items"].items():
        assert len(items["score"]) == len(items["nll"]) == 8
        column = cell["results"]["tasks"].index(task)
        assert sum(items["score"]) / 8 == pytest.approx(cell["results"]["matrix"][-1][column])
    kept = {label.removesuffix(".seed1"): each["results"]["costs"]["bytes_kept"] for label, each in cells.items()}
    assert kept["none"] == kept["joint"] == 0 < kept["mssr"]
    assert kept["ewc"] > 0


def test_matched_methods_replay_the_same(both):
    (_, cells), _ = both
    replayed = {cell["row"]: cell["results"]["costs"]["replayed_samples"] for cell in cells.values()}
    assert {
        replayed[name] for name in ("fixed", "er", "der++", "mssr-sch", "mssr", "lwf + mssr") if name in replayed
    } == {4}
    assert replayed["none"] == replayed["ewc"] == 0


def test_a_finished_cell_is_not_run_again(tmp_path, monkeypatch):
    comparison = load_comparison(write(tmp_path, strategies=["none"]))
    path = run_cell(comparison, comparison.cells[0])
    assert not (comparison.out / "runs" / "none.seed1").exists()
    before = path.read_bytes()
    monkeypatch.setattr("retain.compare.run", lambda *_: pytest.fail("run again"))
    assert run_cell(comparison, comparison.cells[0]).read_bytes() == before


def test_a_changed_cell_is_refused_and_run_again_on_request(tmp_path):
    file = write(tmp_path, strategies=["none"])
    comparison = load_comparison(file)
    run_cell(comparison, comparison.cells[0])
    changed = load_comparison(file, ["run.training.learning_rate=0.02"])
    message = r"training.learning_rate: 0.01 -> 0.02"
    for refused in (
        lambda: run_cell(changed, changed.cells[0]),
        lambda: run_all(changed),
        lambda: finished_cells(changed),
    ):
        with pytest.raises(InputError, match=message) as error:
            refused()
        assert "--rerun" in str(error.value)
    ran = []
    run_all(changed, rerun=True, engine=lambda commands, *_: ran.extend(label for label, _ in commands) or iter([]))
    assert ran == ["none.seed1"] and not cell_path(changed, "none.seed1").exists()


def test_a_run_begun_with_other_settings_makes_room_on_request(tmp_path):
    file = write(tmp_path, strategies=["none"])
    comparison = load_comparison(file)
    folder = comparison.out / "runs" / "none.seed1"
    run(comparison.cells[0].config, comparison.base, folder)
    drop_changed(comparison)
    assert folder.exists()
    drop_changed(load_comparison(file, ["run.training.learning_rate=0.02"]))
    assert not folder.exists()


def test_every_row_gets_its_first_seed_before_any_gets_its_second(tmp_path):
    comparison = load_comparison(write(tmp_path, seeds=[5, 1]))
    ran = []
    run_all(comparison, engine=lambda commands, *_: ran.extend(label for label, _ in commands) or iter([]))
    assert ran == ["none.seed5", "mssr.seed5", "none.seed1", "mssr.seed1"]


def test_changed_data_are_refused(tmp_path):
    comparison = load_comparison(write(tmp_path, strategies=["none"]))
    run_cell(comparison, comparison.cells[0])
    rows = (tmp_path / "size_test.jsonl").read_text().splitlines()
    (tmp_path / "size_test.jsonl").write_text("\n".join(rows[:-1]) + "\n")
    with pytest.raises(InputError, match="other data of size"):
        run_all(comparison)
    with pytest.raises(InputError, match="data of size"):
        run_cell(comparison, comparison.cells[0])
    assert finished_cells(comparison)  # the table needs no data


def test_an_older_cell_lacks_keys_that_came_later(tmp_path):
    comparison = load_comparison(write(tmp_path, strategies=["none"]))
    path = run_cell(comparison, comparison.cells[0])
    content = json.loads(path.read_text())
    del content["config"]["schedule"]["replay_weight"], content["config"]["hold_out"]
    path.write_text(json.dumps(content))
    assert finished_cells(comparison).keys() == {"none.seed1"}


def command(*arguments):
    return CliRunner().invoke(app, ["compare", *map(str, arguments)])


def test_the_command_runs_cells_in_processes_and_resumes(tmp_path):
    file = write(tmp_path, strategies=["none", "fixed"])
    comparison = load_comparison(file)
    run_cell(comparison, comparison.cells[0])
    planned = command(file, "--plan")
    assert planned.exit_code == 0 and "2 cells, 1 to run; compared with none" in planned.output, planned.output
    done = command(file, "--jobs", "2")
    assert done.exit_code == 0, done.output
    assert "The data do not tell fixed and none apart" in done.output and "One seed" in done.output
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files >= {"cells", "comparison.json", "comparison.csv", "comparison.md", "comparison.html"}
    assert read_cell(cell_path(comparison, "fixed.seed1"))["shared"] == ["00-base"]

    os.rename(tmp_path / "model", tmp_path / "away")  # the table needs neither model nor data
    (tmp_path / "color_train.jsonl").unlink()
    shown = command(file, "--report-only")
    assert shown.exit_code == 0 and "fixed" in shown.output, shown.output


def test_the_table_tells_what_is_missing(tmp_path):
    file = write(tmp_path, strategies=["none", "fixed"])
    nothing = command(file, "--report-only")
    assert nothing.exit_code == 2 and "no finished cell" in nothing.output
    comparison = load_comparison(file)
    run_cell(comparison, comparison.cells[0])
    shown = command(file, "--report-only")
    assert shown.exit_code == 0 and "1 of 2 cells are missing: fixed.seed1" in shown.output


def test_a_failed_cell_is_named(tmp_path, monkeypatch):
    file = write(tmp_path)
    monkeypatch.setattr("retain.compare.local", lambda commands, *_: ((label, 1) for label, _ in commands))
    comparison = load_comparison(file)
    assert run_all(comparison) == ["none.seed1", "mssr.seed1"]
    run_cell(comparison, comparison.cells[0])
    failed = command(file)
    assert failed.exit_code == 1 and "1 cells failed: mssr.seed1" in failed.output


def test_a_failing_process_is_reported(tmp_path):
    commands = [("good", [sys.executable, "-c", "import os; print(os.environ['OMP_NUM_THREADS'])"]),
                ("bad", [sys.executable, "-c", "raise SystemExit(3)"])]  # fmt: skip
    assert dict(local(commands, tmp_path, 2)) == {"good": 0, "bad": 3}
    assert (tmp_path / "good.log").read_text().strip().isdecimal()
