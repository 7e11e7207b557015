"""Every recipe parses, says what it is, plans what it is meant to, and finds data in the form that is read."""

from __future__ import annotations

import importlib.util
import io
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
from tiny import save_tiny_model

from retain.cells import read_cell
from retain.compare import run_cell
from retain.comparison import load_comparison, load_data, plan_cell
from retain.config import Config, load_config, make_config
from retain.config_yaml import read_yaml
from retain.presets import preset_of
from retain.tasks import load_tasks

FOLDER = Path(__file__).parents[1] / "recipes"
FILES = sorted(FOLDER.glob("*.yaml"))
NAMES = [path.name for path in FILES]
COMPARISONS = [path.name for path in FILES if "run" in read_yaml(path)[0]]
SHARED = "../../shared/data/"


def prepare_data():
    spec = importlib.util.spec_from_file_location("prepare_data", FOLDER / "prepare_data.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["prepare_data"] = module
    spec.loader.exec_module(module)
    return module


PREPARE = prepare_data()


def configs_of(path) -> list[Config]:
    if path.name in COMPARISONS:
        return [cell.config for cell in load_comparison(path).cells]
    return [load_config(path)]


def sources(path) -> set[str]:
    tasks = [task for config in configs_of(path) for task in config.tasks]
    return {source for task in tasks for source in (task.train, task.test) if source}


def head_of(name: str) -> str:
    """The comment a recipe begins with, as one line a paragraph."""
    lines = re.match(r"(?:#.*\n)+", (FOLDER / name).read_text())
    return re.sub(r"\n# (?! )", " ", lines[0]) if lines else ""


USES_SHARED = [name for name in NAMES if all(source.startswith(SHARED) for source in sources(FOLDER / name))]
FULL_SIZE = [name for name in NAMES if name not in USES_SHARED]


@pytest.fixture(scope="module")
def beside_data(shared_data, tmp_path_factory):
    """The recipes where their paths lead to the real tasks."""
    folder = tmp_path_factory.mktemp("beside")
    (folder / "shared").mkdir()
    (folder / "shared" / "data").symlink_to(shared_data, target_is_directory=True)
    return shutil.copytree(FOLDER, folder / "checkout" / "recipes")


@pytest.mark.parametrize("name", NAMES)
def test_it_parses_and_its_first_lines_say_what_it_is(name):
    assert configs_of(FOLDER / name)
    head = head_of(name)
    assert re.search(rf"^#   .*retain (compare|run) recipes/{re.escape(name)}", head, re.M), "no command"
    assert "Needs" in head or "About" in head
    assert re.search(r"minute|hour|\d (h|min)|day|not run here|docs/results", head), "no time"


def test_every_small_one_runs_on_the_shared_data_and_every_full_one_has_a_small_one():
    assert {name for name in NAMES if name.endswith("-small.yaml")} <= set(USES_SHARED)
    assert {name.replace(".yaml", "-small.yaml") for name in FULL_SIZE} <= set(NAMES)


def test_the_table_of_the_readme_names_the_files():
    rows = re.findall(r"^\| \[(.+?)\]\((.+?)\) \|(?:.+?\|){3}\s*(\S.*?) \|$", (FOLDER / "README.md").read_text(), re.M)
    assert sorted(row[0] for row in rows) == NAMES
    assert all(text == link for text, link, _ in rows)
    for name, _, verified in rows:
        assert ("not run here" not in head_of(name).lower()) or verified == "no", name


@pytest.mark.parametrize("name", [name for name in USES_SHARED if name in COMPARISONS])
def test_a_comparison_plans_equal_replay(beside_data, name):
    comparison = load_comparison(beside_data / name)
    data = load_data(comparison)
    for cell in comparison.cells:
        plan, chosen = plan_cell(cell, data[cell.label]), preset_of(cell.config.strategy)
        replays = bool(chosen.replay or chosen.source)
        assert (plan["replayed"] > 0) == replays, cell.label
        if comparison.file.match == "samples" and replays and not plan["projected"]:
            later = [task for task in data[cell.label] if task.is_stage][1:]
            new = [len(task.train) * cell.config.training.epochs for task in later]
            assert plan["replayed"] == sum(int(comparison.file.budget * count + 0.5) for count in new), cell.label


@pytest.mark.parametrize("name", [name for name in USES_SHARED if name not in COMPARISONS])
def test_the_data_of_a_run_load(beside_data, name):
    config = load_config(beside_data / name)
    assert all(task.train and task.test for task in load_tasks(config, beside_data))


@pytest.mark.parametrize("name", FULL_SIZE)
def test_prepare_data_writes_what_a_recipe_names(name):
    base = next(name for name in (FOLDER / name, FOLDER / "paper11.yaml") if "prepare_data" in name.read_text())
    named = " ".join(re.findall(r"prepare_data\.py ([\w -]+)", base.read_text())).split()
    chosen = [one for one in named if one in {*PREPARE.SETS, "olora", "trace"}]
    written = {task for one in chosen for task in PREPARE.jobs(one, Path("archive"))}
    used = {source.removeprefix("../data/").rpartition("/")[0] for source in sources(FOLDER / name)}
    assert used and used <= written


def test_the_candidates_of_the_paper():
    """Tables 9 and 10: the listed values and the default, which is the row `mssr`."""
    table9 = {
        "alpha": {0, 0.005, 0.01, 0.02, 0.05}, "gamma_d": {0.05, 0.1, 0.2, 0.3, 0.5}, "phi_k": {5, 10, 20},
        "phi_c": {0.4, 0.5, 0.6}, "ema_beta": {0.9, 0.95, 0.97, 0.99}, "eta_s": {0.01, 0.02, 0.05, 0.1, 0.2},
        "beta_s": {0.5, 0.75, 1.0}, "rho": {0, 0.005, 0.01, 0.02, 0.05}, "gamma_s": {0.5, 1.0, 2.0},
        "s_max": {5, 10, 20}, "phi": {"sigmoid", "identity", "power", "log"},
    }  # fmt: skip
    table10 = {
        "first_interval": {50, 100, 200, 500}, "theta": {0.3, 0.5, 0.7}, "eta_p": {0.1, 0.3, 0.5, 0.7, 1.0},
        "rho_p": {0.01, 0.03, 0.05, 0.1}, "lambda_0": {0.1, 0.3, 0.5}, "lambda_min": {0, 0.01, 0.05, 0.1},
        "beta_r": {5e-6, 1e-5, 2e-5}, "zeta": {0, 0.5, 1.0, 2.0},
    }  # fmt: skip
    for name, table in (("paper-memory.yaml", table9), ("paper-schedule.yaml", table10)):
        comparison = load_comparison(FOLDER / name)
        keys = [cell.config.memory.model_dump() | cell.config.schedule.model_dump() for cell in comparison.cells]
        assert {key: {values[key] for values in keys} for key in table} == table
        small = load_comparison(FOLDER / name.replace(".yaml", "-small.yaml")).file.vary
        assert small.keys() <= comparison.file.vary.keys()


def test_the_settings_of_the_paper():
    """Tables 10 to 12."""
    config = load_comparison(FOLDER / "paper11.yaml").cell("mssr.seed42").config
    assert [task.name for task in config.tasks if not task.train] == ["mmlu"] and len(config.tasks) == 12
    assert (config.training.batch_size, config.training.max_steps, config.training.learning_rate) == (256, 2000, 2e-4)
    assert (config.schedule.first_interval, config.memory.refresh_every, config.buffer.capacity) == (100, 50, 1024)
    assert (config.lora.r, config.lora.alpha, config.lora.target_modules) == (8, 16, ["q_proj", "v_proj"])
    for other in ("paper3.yaml", "paper-buffer.yaml"):
        same = load_comparison(FOLDER / other).cells[-1].config
        assert (same.training, same.lora) == (config.training, config.lora)


def test_a_small_comparison_from_end_to_end(beside_data, tmp_path):
    short = [f"run.tasks.{name}.max_train=8" for name in ("alpaca_demo", "gsm8k", "math_l3")]
    short += [f"run.tasks.{name}.max_test=2" for name in ("alpaca_demo", "gsm8k", "math_l3", "mmlu")]
    model = save_tiny_model(tmp_path / "model")
    short += [f"run.model={model}", "run.training.max_length=96", "run.evaluation.max_new_tokens=4", "cells="]
    comparison = load_comparison(beside_data / "paper3-small.yaml", short, out=tmp_path / "out")
    found = {cell.row: read_cell(run_cell(comparison, cell)) for cell in comparison.cells}
    replayed = {row: cell["results"]["costs"]["replayed_samples"] for row, cell in found.items()}
    assert replayed == {"none": 0, "fixed": 4, "mssr": 4}
    assert found["mssr"]["results"]["tasks"] == ["alpaca_demo", "gsm8k", "math_l3"]
    assert found["mssr"]["shared"] and len(found["none"]["items"]["mmlu"]["score"]) == 2


# prepare_data.py: rows as their sources have them, made up


PASSAGE = {"context": "C {}", "question": "Q", "answers": ["a", "b"], "key": "k"}
PAPER = {"article": "A {}", "abstract": "H"}
MADE_UP = {
    "vicgalle/alpaca-gpt4": {"instruction": "Name {} fruits.", "input": "", "output": "Apples {}."},
    "fancyzhx/ag_news": {"text": "News {}", "label": 3},
    "rajpurkar/squad": PASSAGE | {"answers": {"text": ["a {}", "a {}"], "answer_start": [0, 0]}},
    "allenai/sciq": {"question": "Q {}", "correct_answer": "right"}
    | {f"distractor{k}": f"wrong {k}" for k in (1, 2, 3)},
    "google/boolq": {"passage": "P {}", "question": "is it", "answer": True},
    "allenai/ai2_arc": {
        "question": "Q {}",
        "choices": {"text": ["x", "right", "y"], "label": ["1", "2", "3"]},
        "answerKey": "2",
    },
    "openai/gsm8k": {"question": "Q {}", "answer": "2+2 = <<2+2=4>>4\n#### 4"},
    "EleutherAI/hendrycks_math": {"problem": "P {}", "level": "Level 3", "type": "Algebra", "solution": "\\boxed{5}"},
    "cais/mmlu": {"question": "Q {}", "subject": "s", "choices": ["x", "y", "right", "z"], "answer": 2},
    "stanfordnlp/sst2": {"sentence": "S {}", "label": 1},
    "mteb/banking77": {"text": "T {}", "label": 0, "label_text": "top_up {}"},
    "dair-ai/emotion": {"text": "T {}", "label": 1},
    "ucirvine/sms_spam": {"sms": "S {}", "label": 0},
    "lucadiliello/newsqa": PASSAGE,
    "lucadiliello/naturalquestionsshortqa": PASSAGE,
    "lucadiliello/triviaqa": PASSAGE,
    "lucadiliello/hotpotqa": PASSAGE,
    "abisee/cnn_dailymail": {"article": "A {}", "highlights": "H"},
    "EdinburghNLP/xsum": {"document": "A {}", "summary": "H"},
    "ctr4si/reddit_tifu": {"documents": "A {}", "tldr": "H"},
    "ccdv/arxiv-summarization": PAPER,
    "ccdv/pubmed-summarization": PAPER,
}
CLASSES = {
    "fancyzhx/ag_news": ("label", ["World", "Sports", "Business", "Sci/Tech"]),
    "cais/mmlu": ("answer", ["A", "B", "C", "D"]),
    "stanfordnlp/sst2": ("label", ["negative", "positive"]),
    "dair-ai/emotion": ("label", ["sadness", "joy"]),
    "ucirvine/sms_spam": ("label", ["ham", "spam"]),
}


def numbered(value, number):
    if isinstance(value, str):
        return value.replace("{}", str(number))
    if isinstance(value, dict):
        return {key: numbered(inner, number) for key, inner in value.items()}
    return [numbered(inner, number) for inner in value] if isinstance(value, list) else value


@pytest.fixture
def made_up(monkeypatch):
    """`datasets.load_dataset` and the network with ten made-up rows of each source."""
    import datasets

    def load_dataset(name, config, split, revision, data_dir):
        start = {"train": 1, "validation": 50, "test": 90}[split]
        table = datasets.Dataset.from_list([numbered(MADE_UP[name], start + k) for k in range(10)])
        column, names = CLASSES.get(name, (None, None))
        return table.cast_column(column, datasets.ClassLabel(names=names)) if column else table

    def urlopen(address):
        rows = [{"label": "ab"[k % 2], "sentence": f"{address} {k}"} for k in range(10)]
        return io.BytesIO(json.dumps(rows).encode())

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr("urllib.request.urlopen", urlopen)


def trace_archive(folder):
    for name in PREPARE.TRACE.values():
        (folder / name).mkdir(parents=True)
        for split in ("train", "test"):
            answer = "B\nBecause A is wrong." if name == "ScienceQA" else "dovish"
            rows = [{"prompt": f"{split} {k}", "answer": answer} for k in range(10)]
            (folder / name / f"{split}.json").write_text(json.dumps(rows))
    return folder


def prepared(folder, chosen, monkeypatch):
    """The tasks of a set as `retain` loads what the script writes."""
    arguments = ["prepare_data.py", chosen, "--out", str(folder), "--source", str(folder / "archive")]
    monkeypatch.setattr(sys, "argv", arguments)
    PREPARE.main()
    names = [path.parent.relative_to(folder).as_posix() for path in sorted(folder.rglob("test.jsonl"))]
    entries = [
        {"name": name.replace("/", "_"), "train": f"{name}/train.jsonl", "test": f"{name}/test.jsonl"} for name in names
    ]
    return {task.name: task for task in load_tasks(make_config({"tasks": entries}, "test"), folder)}


def test_prepared_multiple_choice_reading_and_math(made_up, tmp_path, monkeypatch):
    names = [name for name in PREPARE.SETS["paper11"] if not re.match("math_l[1245]", name)]
    monkeypatch.setattr(PREPARE, "SETS", {"one": names})
    tasks = prepared(tmp_path, "one", monkeypatch)
    assert tasks.keys() == {"ag_news", "squad", "sciq", "boolq", "arc_challenge", "gsm8k", "math_l3", "mmlu"}
    news = tasks["ag_news"].test[0]
    assert news.answer == "Science or Technology" and news.answer in news.choices and "Business" in news.prompt
    for name in ("sciq", "arc_challenge", "mmlu"):
        answers = {sample.answer for sample in tasks[name].train}
        assert all(re.fullmatch(r"[A-D]\. right", answer) for answer in answers)
        assert all(sample.answer in sample.prompt for sample in tasks[name].train)
    assert len({sample.answer for sample in tasks["sciq"].train}) > 1  # shuffled, by the question
    assert tasks["boolq"].train[0].answer == "yes" and tasks["boolq"].train[0].choices == ("yes", "no")
    assert tasks["squad"].train[0].references == (tasks["squad"].train[0].answer,)
    assert tasks["gsm8k"].train[0].answer == "2+2 = 4\n#### 4" and tasks["gsm8k"].metric == "final_answer"
    assert len(tasks["math_l3"].train) == 10 * len(PREPARE.SUBJECTS) and tasks["math_l3"].metric == "final_answer"
    assert not PREPARE.math(2)(MADE_UP["EleutherAI/hendrycks_math"], [])


@pytest.mark.parametrize("chosen", ["ssr-classification", "ssr-qa", "ssr-summarization", "paper3", "olora", "trace"])
def test_what_is_prepared_loads(made_up, tmp_path, monkeypatch, chosen, capsys):
    trace_archive(tmp_path / "archive")
    tasks = prepared(tmp_path, chosen, monkeypatch)
    assert len(tasks) == {"paper3": 4, "olora": 15, "trace": 8}.get(chosen, 5)
    for task in tasks.values():
        assert task.train and task.test
        assert not {sample.prompt for sample in task.train} & {sample.prompt for sample in task.test}, task.name
    if chosen == "trace":
        assert {sample.answer for sample in tasks["trace_scienceqa"].train} == {"B"}
    if chosen == "ssr-classification":
        assert tasks["banking77"].train[0].answer.startswith("top up ")
        assert len(tasks["sms_spam"].test) == 2  # a fifth of what is held out of
    capsys.readouterr()
    PREPARE.main()
    assert capsys.readouterr().out.count("there already") == len(tasks)
