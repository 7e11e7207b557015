"""The file of a comparison: its cells and their configurations, and what it says of wrong ones."""

from __future__ import annotations

import pytest
import yaml
from tiny import write_tasks

from retain.comparison import load_comparison, load_data, plan_cell
from retain.presets import preset_of
from retain.types import InputError


@pytest.fixture
def write(tmp_path):
    """Write a comparison's file over three small tasks; returns its path."""
    tasks = write_tasks(tmp_path)

    def write(**values):
        run = {"model": "tiny", "tasks": tasks, "training": {"batch_size": 4}}
        path = tmp_path / "compare.yaml"
        path.write_text(yaml.safe_dump({"run": run, "strategies": ["none", "mssr"]} | values, sort_keys=False))
        return path

    return write


def labels(path, *overrides):
    return [cell.label for cell in load_comparison(path, list(overrides)).cells]


def test_cells_are_strategies_by_seeds_by_orders_by_grid(write):
    orders = [["color", "size", "shape"], ["shape", "size", "color"]]
    path = write(
        strategies=["none", "ssr + ewc"], seeds=[1, 2], orders=orders, grid={"training.epochs": [1, 2], "lora.r": [4]}
    )
    found = load_comparison(path).cells
    assert len(found) == 2 * 2 * 2 * 2
    assert found[0].label == "none-epochs=1-r=4.order1.seed1" and found[0].row == "none epochs=1 r=4"
    last = found[-1]
    assert last.label == "ssr+ewc-epochs=2-r=4.order2.seed2"
    assert (last.config.seed, last.config.training.epochs, last.config.lora.r) == (2, 2, 4)
    assert [task.name for task in last.config.tasks] == orders[1]
    assert preset_of(last.config.strategy).name == "ssr + ewc"


def test_the_simplest_file(write):
    comparison = load_comparison(write())
    assert [cell.label for cell in comparison.cells] == ["none.seed42", "mssr.seed42"]
    assert comparison.reference == "none" and comparison.out.name == "compare"
    assert comparison.cells_folder == comparison.out / "cells"
    assert all(cell.config.schedule.budget == 0.1 for cell in comparison.cells)


def test_labels_with_settings_of_their_own(write):
    strategies = {
        "mssr": None,
        "often": {"strategy": "mssr", "schedule.first_interval": 0.02, "memory": {"zeta": 2.0}},
        "strong": {"strategy": {"name": "ewc", "weight": 7.0}},
        "er": {"buffer": {"capacity": 9}},
        "both": "er + l2",
    }
    strategies["mssr"] = "mssr"
    found = {cell.row: cell.config for cell in load_comparison(write(strategies=strategies)).cells}
    assert found["often"].schedule.first_interval == 0.02 and found["often"].memory.zeta == 2.0
    assert dict(preset_of(found["strong"].strategy).regularizers)["ewc"].weight == 7.0
    assert preset_of(found["er"].strategy).name == "er" and found["er"].buffer.capacity == 9
    assert preset_of(found["both"].strategy).name == "er + l2"
    assert found["mssr"].schedule.kind == "expanding" and found["both"].schedule.kind == "every"


def test_a_grid_leaves_out_what_cannot_matter(write):
    path = write(strategies=["none", "mssr", "ssr"], grid={"schedule.eta_p": [0.2, 0.5], "synthesis.samples": [5, 6]})
    assert labels(path) == [
        "none.seed42",
        "mssr-eta_p=0.2.seed42", "mssr-eta_p=0.5.seed42",
        "ssr-eta_p=0.2-samples=5.seed42", "ssr-eta_p=0.2-samples=6.seed42",
        "ssr-eta_p=0.5-samples=5.seed42", "ssr-eta_p=0.5-samples=6.seed42",
    ]  # fmt: skip


def test_a_run_in_a_file_of_its_own(write, tmp_path):
    (tmp_path / "runs").mkdir()
    run = {"tasks": [{"name": "a", "train": "../color_train.jsonl", "test": "../color_test.jsonl"}], "output": "x"}
    (tmp_path / "runs" / "base.yaml").write_text(yaml.safe_dump(run))
    comparison = load_comparison(write(run="runs/base.yaml"))
    assert comparison.base == tmp_path / "runs"
    assert len(load_data(comparison)["mssr.seed42"][0].train) == 24


def test_a_run_of_another_comparison(write, tmp_path):
    (tmp_path / "first.yaml").write_bytes(write(run={"tasks": ["iso_date"], "training": {"epochs": 3}}).read_bytes())
    (tmp_path / "second.yaml").write_text("{run: first.yaml, strategies: [none], seeds: [9]}")
    path = write(run="second.yaml", strategies=["er"])
    (cell,) = load_comparison(path, ["run.training.batch_size=2", "run.tasks.iso_date.max_train=7"]).cells
    assert cell.label == "er.seed42"  # the other's run, and no more
    assert (cell.config.training.epochs, cell.config.training.batch_size, cell.config.tasks[0].max_train) == (3, 2, 7)
    (cell,) = load_comparison(path, ["run.training.epochs=1", "run=first.yaml"]).cells
    assert cell.config.training.epochs == 1
    with pytest.raises(InputError, match=r"override 'training.epochs=x': training.epochs: 'x' is not"):
        load_comparison(path, ["run.training.epochs=x"])
    with pytest.raises(InputError, match=r"run: 'compare.yaml' leads back to itself"):
        load_comparison(write(run="compare.yaml"))


def test_vary_changes_one_key_at_a_time(write):
    vary = {"memory.zeta": [0, 2], "schedule.eta_p": [0.1], "memory.phi": ["log"]}
    path = write(strategies=["none", "mssr"], vary=vary)
    assert labels(path) == [
        "none.seed42",
        "mssr.seed42", "mssr-zeta=0.seed42", "mssr-zeta=2.seed42", "mssr-eta_p=0.1.seed42", "mssr-phi=log.seed42",
    ]  # fmt: skip
    both = load_comparison(write(strategies=["mssr"], vary={"memory.zeta": [2]}, grid={"lora.r": [2, 4]})).cells
    assert [(cell.config.lora.r, cell.config.memory.zeta) for cell in both] == [(2, 1), (2, 2), (4, 1), (4, 2)]


def test_the_budget(write):
    planned = load_comparison(
        write(strategies=["none", "er", "mssr", "joint"], budget=0.25), ["run.training.max_steps=10"]
    )
    data = load_data(planned)
    assert {c.row: plan_cell(c, data[c.label])["replayed"] for c in planned.cells} == {
        "none": 0, "er": 20, "mssr": 20, "joint": 0,
    }  # fmt: skip
    free = load_comparison(write(match="none"))
    assert all(cell.config.schedule.budget is None for cell in free.cells)
    own = load_comparison(write(strategies={"a": {"strategy": "er", "schedule": {"budget": 0.5}}}))
    assert own.cells[0].config.schedule.budget == 0.5


def test_what_one_holds_out_none_trains_on(write):
    adaptive = {"none": {}, "adaptive": {"strategy": "ssr", "curriculum.kind": "adaptive"}}
    comparison = load_comparison(write(strategies=adaptive))
    sizes = {label: [len(task.train) for task in tasks] for label, tasks in load_data(comparison).items()}
    assert sizes == {"none.seed42": [8, 8, 8], "adaptive.seed42": [8, 8, 8]}
    alone = load_comparison(write(strategies=["none"]))
    assert [len(task.train) for task in load_data(alone)["none.seed42"]] == [24, 24, 24]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"strategies": ["mssrr"]}, "strategies.0: unknown strategy 'mssrr'; did you mean 'mssr'"),
        ({"strategies": []}, r"strategies: .*\(allowed: a list of strategies"),
        ({"strategies": ["er", "er"]}, "strategies.1: 'er' stands twice"),
        ({"strategies": [3]}, "strategies.0: 3 is neither a name"),
        ({"strategies": {"a": {"strategy": "er", "schedul.kind": 1}}}, "a: schedul: unknown key; did you mean sch"),
        ({"strategies": {"a b": "er", "a-b": "er"}}, "'a-b.seed42' would name two cells"),
        ({"seeds": [1, "2"]}, "seeds.1: '2' is not a whole number but text; remove the quotes"),
        ({"seeds": []}, "seeds"),
        ({"seeds": [1, 1]}, "'none.seed1' would name two cells"),
        ({"orders": [["color", "size"]]}, r"orders: \['color', 'size'\] does not name each of color, size, shape once"),
        ({"orders": [["color", "size", "size"]]}, "does not name each of"),
        ({"grid": {"training.epoch": [1]}}, "none epoch=1: training.epoch: unknown key"),
        ({"grid": {"training.epochs": 3}}, r"grid: .*\(allowed: a mapping from a key to a list of its values"),
        ({"vary": {"training.epochs": 3}}, r"vary: .*\(allowed: a mapping from a key to a list of its values"),
        ({"grid": {"training.epochs": [0]}}, "training.epochs: 0 is too small"),
        ({"reference": "er"}, r"reference: 'er' is no row of the table \(allowed: none, mssr\)"),
        ({"match": "tokens"}, "match: 'tokens' is not one of samples, none"),
        ({"budget": 0}, "budget: 0 is too small"),
        ({"level": 1.5}, "level: 1.5 is too large"),
        ({"sedes": [1]}, "line .*: sedes: unknown key; did you mean seeds"),
        ({"run": "missing.yaml"}, "missing.yaml"),
        ({"run": 5}, "run: 5 is not allowed"),
        ({"run": {"tasks": []}}, "run: line 2: tasks: missing or empty"),
        ({"run": {"tasks": ["product_sentiment"], "training": {"epochs": -1}}}, "run: line .*epochs: -1 is too"),
    ],
)  # fmt: skip
def test_wrong_files(write, values, message):
    with pytest.raises(InputError, match=message) as error:
        load_comparison(write(**values))
    assert "compare.yaml" in str(error.value) or "missing.yaml" in str(error.value)


def test_odd_text(tmp_path):
    for text in ("", "- a\n", "run: [\n", "run: {tasks: [a]}\nstrategies: {? [a] : b}\n", "\x00"):
        path = tmp_path / "odd.yaml"
        path.write_text(text)
        with pytest.raises(InputError, match=r"odd\.yaml"):
            load_comparison(path)


def test_an_unknown_cell(write):
    with pytest.raises(InputError, match=r"--cell: 'er' is none of none\.seed42, mssr\.seed42"):
        load_comparison(write()).cell("er")


def test_overrides(write):
    assert labels(write(), "seeds=[7]", "run.training.epochs=2") == ["none.seed7", "mssr.seed7"]
