"""Strategies and metrics of the user's own: what a path may lead to, the example of the docs, and changed code."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from test_contract import (  # noqa: F401
    assert_base_untouched,
    difference,
    kept,
    opened,
    plain,
    run_float64,
    stopped_and_resumed,
)
from test_run import adapter, journal, results
from tiny import save_tiny_model, tiny_values, write_tasks

from retain import extending
from retain.config import diff_config, dump_config, load_config, make_config
from retain.data_record import check_code
from retain.learner import Learner
from retain.metrics import METRICS, metric
from retain.presets import preset_of, resolve
from retain.sharing import base_row_key, first_stage_key
from retain.tasks import load_tasks
from retain.types import InputError

DOCS = Path(__file__).parents[1] / "docs" / "extending.md"
BLOCKS = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.S)
EXAMPLE, METRIC = BLOCKS[0], BLOCKS[2]


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write a module that Python can import, and forget it afterwards."""
    monkeypatch.syspath_prepend(tmp_path)
    written = []

    def write(name, text):
        path = tmp_path / f"{name.replace('.', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        written.append(name)
        importlib.invalidate_caches()
        return path

    yield write
    for name in written:
        sys.modules.pop(name, None)
        for known in (METRICS, extending._GIVEN):
            for key in [key for key in known if key.startswith(f"{name}:")]:
                del known[key]


def test_the_example_has_at_most_15_lines_and_the_pages_other_lines_hold():
    assert len([line for line in EXAMPLE.splitlines() if line.strip()]) <= 15
    assert "os:system" in DOCS.read_text() and "antigravity:Strategy" in DOCS.read_text()


def test_the_example_keeps_the_contract(module, tmp_path, plain, stopped_and_resumed, opened):  # noqa: F811
    module("interpolate", EXAMPLE)
    name = "interpolate:Interpolate"
    one = run_float64(tmp_path, "one", name)
    from crash.same import differences

    assert differences(one, stopped_and_resumed(name)) == []
    assert results(one)["strategy"] == name
    cut = run_float64(tmp_path, "cut", name, micro_batch_size=1)
    assert difference(kept(cut), kept(one)) < 1e-6
    assert_base_untouched(opened[0][0])
    assert difference(adapter(one, 1), adapter(plain, 1)) == 0.0
    assert difference(adapter(one), adapter(plain)) > 1e-3
    [line] = journal(one, "code")
    assert line["parts"].keys() == {name} and len(line["parts"][name]["sha256"]) == 64


def test_it_interpolates(module, tmp_path, plain):  # noqa: F811
    """back: 1 is no learning after the first stage."""
    module("interpolate", EXAMPLE)
    values = [{"name": "interpolate:Interpolate", "back": 1.0}]
    out = tmp_path / "run"
    tasks = [{**entry, "validation": entry["test"]} for entry in write_tasks(tmp_path)]
    model = {"name": str(save_tiny_model(tmp_path / "model")), "dtype": "float64"}
    config = make_config({**tiny_values(tmp_path), "model": model, "tasks": tasks, "strategy": values}, "x")
    from retain.run import run

    run(config, tmp_path, out)
    assert difference(adapter(out, 1), adapter(out, 3)) == 0.0


def test_names_options_and_order(module):
    module("own.inner", EXAMPLE)
    chosen = preset_of(["own.inner:Interpolate", "ewc", "er"])
    assert chosen.name == "er + ewc + own.inner:Interpolate" and chosen.replay == "er"
    assert dict(chosen.regularizers)["own.inner:Interpolate"].back == 0.3
    spelled = resolve({"strategy": "own.inner:Interpolate + mssr"})["strategy"]
    assert spelled == ["mssr", {"name": "own.inner:Interpolate", "back": 0.3}]
    assert preset_of(spelled) == preset_of("mssr + own.inner:Interpolate")
    with pytest.raises(InputError, match=r"'own.inner:Interpolate': back: 1.5 .*0 to 1"):
        preset_of({"name": "own.inner:Interpolate", "back": 1.5})
    with pytest.raises(InputError, match=r"forth: .*unknown key .*back"):
        preset_of({"name": "own.inner:Interpolate", "forth": 1})
    with pytest.raises(InputError, match="stands twice"):
        preset_of("own.inner:Interpolate + own.inner:Interpolate")


def test_a_configuration_reads_back_and_differs_by_options(module, tmp_path):
    module("own.back", EXAMPLE)
    values = {"tasks": ["iso_date"], "strategy": "own.back:Interpolate"}
    (tmp_path / "c.yaml").write_text(dump_config(make_config(values, "x")))
    again = load_config(tmp_path / "c.yaml")
    assert again == make_config(values, "x")
    other = make_config({**values, "strategy": [{"name": "own.back:Interpolate", "back": 0.5}]}, "x")
    assert diff_config(again, other) == ["strategy.own.back:Interpolate.back: 0.3 -> 0.5"]


def test_a_class_that_needs_a_buffer_has_one(module):
    module("reads", EXAMPLE.replace("    class Options", "    needs_buffer = True\n\n    class Options"))
    chosen = preset_of("reads:Interpolate")
    assert chosen.keeps_buffer and not chosen.replays
    with pytest.raises(InputError, match="keep_data"):
        make_config({"tasks": ["iso_date"], "strategy": "reads:Interpolate", "keep_data": False}, "x")


BOOBY_TRAP = "raise SystemExit('it ran')\n"
HOSTILE = [
    ("os:system", "is no Python file"),
    ("shutil:rmtree", "does not import retain"),
    ("posix:system", "is no Python file"),
    ("builtins:exec", "is no Python file"),
    ("antigravity:Strategy", "does not import retain"),
    ("trap:Strategy", "does not import retain"),
    ("trapped:Nothing", "defines no Nothing; at its top are f"),
    ("trapped:os", "defines no os"),
    ("no.such.module:Name", "finds no module no.such.module"),
    ("json.decoder.deeper:Name", "finds no module"),
    ("retain.cli:main", "short name"),
    ("retain.strategies.ewc:Ewc", "short name"),
    ("__main__:main", "handed over in Python"),
    ("./trap:Strategy", "not an import path"),
    ("../x:y", "not an import path"),
    ("a:b:c", "not an import path"),
    (":", "not an import path"),
    ("trap:Strategy()", "not an import path"),
    ("trap:__import__('os')", "not an import path"),
    ("tráp:Strategy", "not an import path"),
    ("a" * 300 + ":b", "not an import path"),
    ("a\x00b:c", "not an import path"),
    ("broken:Name", "cannot be read as Python"),
    ("wrong:Plain", "not a subclass of retain.strategies.base.Strategy"),
    ("wrong:function", "not a subclass"),
]


@pytest.mark.parametrize(("path", "reason"), HOSTILE)
def test_a_hostile_path_runs_nothing(path, reason, module, tmp_path):
    module("trap", BOOBY_TRAP)
    module("trapped", "def f(): import retain\n" + BOOBY_TRAP)
    module("broken", "import retain\nclass Name(:\n")
    module("wrong", "import retain\nclass Plain: pass\ndef function(): raise SystemExit('called')\n")
    before = set(sys.modules)
    with pytest.raises(InputError, match=re.escape(reason)) as caught:
        make_config({"tasks": ["iso_date"], "strategy": path}, "config.yaml")
    assert "strategy: " in str(caught.value)
    config = make_config({"tasks": [{"builtin": "iso_date", "metric": path}]}, "config.yaml")
    with pytest.raises(InputError, match="metric: "):
        load_tasks(config, tmp_path)
    assert {"trap", "antigravity", "trapped", "broken"} & (set(sys.modules) - before) == set()


def test_no_package_around_a_hostile_path_runs(module):
    module("around.__init__", BOOBY_TRAP)
    module("around.inner", "x = 1\n")
    with pytest.raises(InputError, match="does not import retain"):
        preset_of("around.inner:x")


def test_exit_code_and_message_of_the_command(tmp_path):
    (tmp_path / "c.yaml").write_text(yaml.dump({"tasks": [{"builtin": "iso_date", "metric": "os:system"}]}))
    done = subprocess.run(
        [sys.executable, "-m", "retain", "plan", str(tmp_path / "c.yaml")], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "metric: 'os:system': os is no Python file" in done.stderr and "Traceback" not in done.stderr


def test_a_module_that_fails_says_why(module):
    module("fails", "import retain\nclass Mine: pass\nraise RuntimeError('no license')\n")
    with pytest.raises(InputError, match=r"importing fails failed \(RuntimeError: no license\)"):
        preset_of("fails:Mine")


def test_a_metric_of_the_docs_scores(module, tmp_path):
    module("scores", METRIC)
    config = make_config({"tasks": [{"builtin": "iso_date", "metric": "scores:first_word"}]}, "x")
    [task] = load_tasks(config, tmp_path)
    score = METRICS[task.metric]
    assert [score(answer, ["Yes"]) for answer in ("yes, sure", "no", "")] == [1.0, 0.0, 0.0]


def test_a_metric_needs_the_decorator(module, tmp_path):
    module("bare", METRIC.replace("@metric\n", ""))
    config = make_config({"tasks": [{"builtin": "iso_date", "metric": "bare:first_word"}]}, "x")
    with pytest.raises(InputError, match="does not have the decorator"):
        load_tasks(config, tmp_path)


def odd(prediction, references):
    """A metric whose score is what the first reference says."""
    return eval(references[0])


@pytest.mark.parametrize("wrong", ["1.5", "-0.1", "float('nan')", "None", "'1'", "1 / 0"])
def test_a_score_is_a_number_from_0_to_1(wrong):
    assert metric(odd) is odd
    scored = METRICS.pop(f"{__name__}:odd")
    assert scored("x", ["1"]) == 1.0 and type(scored("x", ["True"])) is float
    with pytest.raises(InputError, match=rf"metric {__name__}:odd: .* for the answer 'x'"):
        scored("x", [wrong])


def test_a_nameless_metric_is_refused():
    with pytest.raises(InputError, match="has no name of its own in a module"):
        metric(lambda prediction, references: 1.0)


def test_python_hands_over_a_class_and_a_function(tmp_path, module):
    """What `Learner` takes directly, under the names that a configuration would use."""
    mine = importlib.import_module("mine") if module("mine", EXAMPLE + METRIC) else None
    values = tiny_values(tmp_path)
    entry = {**values["tasks"][0], "metric": mine.first_word}
    entry |= {split: str(tmp_path / entry[split]) for split in ("train", "test")}
    for number, strategy in enumerate(
        [mine.Interpolate, mine.Interpolate(mine.Interpolate.Options(back=0.5)), ["er", {"name": mine.Interpolate}]]
    ):
        learner = Learner(
            values["model"], strategy=strategy, out=tmp_path / f"run{number}", training=values["training"]
        )
        expected = {"name": "mine:Interpolate", "back": 0.5 if number == 1 else 0.3}
        assert learner.config.strategy == (["er", expected] if number == 2 else [expected])
    found = learner.learn(entry)
    assert found["task_metrics"] == {"color": "mine:first_word"}
    assert [*journal(tmp_path / "run2", "code")[-1]["parts"]] == ["mine:Interpolate", "mine:first_word"]


def test_changed_code_is_told(module, tmp_path, caplog):
    path = module("changing", EXAMPLE)
    values = {**tiny_values(tmp_path), "strategy": "changing:Interpolate"}

    learner = Learner(**{key: values[key] for key in ("model", "strategy", "training")}, out=tmp_path / "out")
    check_code(learner.dir, learner.config)
    assert len(journal(tmp_path / "out", "code")) == 1 and not caplog.records
    path.write_text(EXAMPLE + "# another thought\n")
    check_code(learner.dir, learner.config)
    assert "the code of changing:Interpolate changed since the run began" in caplog.text
    lines = journal(tmp_path / "out", "code")
    assert [line["changed"] for line in lines] == [[], ["changing:Interpolate"]]
    assert len({line["parts"]["changing:Interpolate"]["sha256"] for line in lines}) == 2


def test_rows_are_not_shared_between_sources(module, tmp_path):
    path = module("shared", EXAMPLE)
    values = {**tiny_values(tmp_path), "strategy": "shared:Interpolate"}
    config = make_config(values, "x")
    tasks = load_tasks(config, tmp_path)
    before = [base_row_key(config, tasks), first_stage_key(config, tasks)]
    assert before == [base_row_key(config, tasks), first_stage_key(config, tasks)]
    path.write_text(EXAMPLE + "# another thought\n")
    after = [base_row_key(config, tasks), first_stage_key(config, tasks)]
    assert before[0] != after[0] and before[1] != after[1]


def test_dp_sgd_takes_no_strategy_of_the_users_own(module):
    module("reader", EXAMPLE)
    values = {"tasks": ["iso_date"], "strategy": "reader:Interpolate", "privacy": {"dp_sgd": {"epsilon": 8.0}}}
    with pytest.raises(InputError, match=r"strategy: 'reader:Interpolate' may look at real samples"):
        make_config(values, "x")
