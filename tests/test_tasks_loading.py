import json
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from retain.config import Config
from retain.sections import TaskConfig
from retain.tasks import hub, load_task, load_tasks
from retain.types import InputError


def rows(count: int, word: str = "q", **more) -> list[dict]:
    return [{"instruction": "Say it.", "input": f"{word}{i}", "output": f"a{i}"} | more for i in range(count)]


def save(path: Path, content: list) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in content))
    return path.name


@pytest.fixture
def files(tmp_path) -> Path:
    save(tmp_path / "train.jsonl", rows(40))
    save(tmp_path / "test.jsonl", rows(10, "t"))
    return tmp_path


def task(**fields) -> TaskConfig:
    return TaskConfig(**({"name": "one", "train": "train.jsonl", "test": "test.jsonl"} | fields))


def load(base: Path, split_validation: bool = False, config: dict | None = None, **fields):
    return load_tasks(Config(tasks=[task(**fields)], **(config or {})), base, split_validation)[0]


def message(base: Path, split_validation: bool = False, config: dict | None = None, **fields) -> str:
    with pytest.raises(InputError) as caught:
        load(base, split_validation, config, **fields)
    return str(caught.value)


def test_a_task_and_the_shuffle_by_data_seed(files):
    loaded = load(files, max_train=5, description="d")
    order = np.random.default_rng(42).permutation(40)[:5]
    assert [s.id for s in loaded.train] == [f"one/{i}" for i in order]
    assert [s.prompt for s in loaded.train] == [f"Say it.\nq{i}\nAnswer:\n" for i in order]
    assert {s.id for s in loaded.test} == {f"one/test/{i}" for i in range(10)}
    assert (loaded.name, loaded.description, loaded.skipped, loaded.is_stage) == ("one", "d", 0, True)
    assert {s.task for s in loaded.train} == {"one"}
    other = load(files, max_train=5, config={"data_seed": 7})
    assert [s.id for s in other.train] != [s.id for s in loaded.train]
    assert len(load(files, max_test=3).test) == 3


def test_the_fingerprint_is_of_the_rows_used(files):
    first = load(files)
    assert first.fingerprint == load(files).fingerprint and len(first.fingerprint) == 64
    assert first.fingerprint != load(files, max_train=39).fingerprint
    assert first.fingerprint != load(files, template="{input}").fingerprint
    changed = rows(10, "t")
    changed[3]["output"] = "other"
    save(files / "test.jsonl", changed)
    assert first.fingerprint != load(files).fingerprint


def test_templates_of_the_run_and_of_the_task(files):
    assert load(files, config={"template": "Q {input}"}).test[0].prompt.startswith("Q t")
    assert load(files, template="T {input}", config={"template": "Q {input}"}).test[0].prompt.startswith("T t")
    assert load(files, template="chat").test[0].messages[0][1].startswith("Say it.\nt")
    assert "task 'one': template: unknown placeholder {x}" in message(files, template="{x}")


def test_evaluation_only(files):
    loaded = load(files, train=None)
    assert not loaded.is_stage and len(loaded.test) == 10


def test_validation_is_given_or_split_off(files):
    save(files / "validation.jsonl", rows(7, "v"))
    given = load(files, True, validation="validation.jsonl", max_validation=4)
    assert len(given.validation) == 4 and given.validation[0].id.startswith("one/validation/")
    assert len(given.train) == 40
    assert load(files).validation == []
    split = load(files, True)
    assert (len(split.train), len(split.validation)) == (24, 16)
    assert {s.id for s in split.train} | {s.id for s in split.validation} == {f"one/{i}" for i in range(40)}
    assert split == load(files, True)
    save(files / "train.jsonl", rows(1000))
    assert (len(load(files, True).train), len(load(files, True).validation)) == (950, 50)
    assert (len(load(files, True, max_train=500).train)) == 475
    assert "train: 16 samples are too few to split 16 off for validation; give a validation file" in message(
        files, True, max_train=16
    )
    assert len(load(files, True, max_train=17).train) == 1


def test_no_test_and_nothing_at_all(files):
    assert "task 'one': train without test, so nothing could be scored; add test:" in message(files, test=None)
    assert "task 'one': neither train nor test; name a file, builtin:NAME or a Hub name" in message(
        files, train=None, test=None
    )
    seed = load_task(task(test=None), Config(tasks=[]), files, needs_test=False)
    assert len(seed.train) == 40


def test_repeated_names(files):
    with pytest.raises(InputError) as caught:
        load_tasks(Config(tasks=[task(name="a"), task(name="b"), task(name="A")]), files)
    assert str(caught.value) == "task 'A': name: task 1 has it already; names must differ"


BAD = [*rows(2), {"instruction": "i", "output": ""}, "{broken\n", *rows(2, "z")]


def test_invalid_rows_are_errors_with_their_place(files):
    save(files / "train.jsonl", BAD)
    assert message(files).splitlines() == [
        "task 'one': train: train.jsonl, line 3: \"output\" is ''; it must not be empty",
        "task 'one': train: train.jsonl, line 4: broken JSON at column 2 (Expecting property name "
        "enclosed in double quotes): '{broken'; write one JSON object a line "
        "(correct the rows, or set on_invalid: skip to leave them out)",
    ]


def test_invalid_rows_are_skipped_and_counted(files):
    save(files / "train.jsonl", BAD)
    for loaded in (load(files, on_invalid="skip"), load(files, config={"on_invalid": "skip"})):
        assert loaded.skipped == 2
        assert {s.id for s in loaded.train} == {"one/0", "one/1", "one/4", "one/5"}
    assert "line 3" in message(files, on_invalid="error", config={"on_invalid": "skip"})


def test_skipping_everything_is_an_error(files):
    save(files / "train.jsonl", rows(3, output=""))
    assert "train.jsonl, line 1: \"output\" is ''" in message(files, on_invalid="skip")


def test_many_invalid_rows_are_summed_up(files):
    save(files / "train.jsonl", rows(20, output=" "))
    lines = message(files).splitlines()
    assert len(lines) == 6 and lines[-1].startswith("task 'one': train: train.jsonl: 15 more invalid rows")


def test_rows_that_do_not_fit_the_first(files):
    save(files / "train.jsonl", [*rows(1), {"prompt": "p", "completion": "c"}])
    assert "line 2: \"output\" is missing; found 'prompt', 'completion'" in message(files)


def test_missing_columns_and_a_missing_header(files):
    save(files / "train.jsonl", [{"text": "x"}])
    assert "train: train.jsonl: found the columns 'text'; needed: messages (chat); or" in message(files)
    (files / "train.csv").write_text("Say it.,x,y\nSay it.,z,w\n")
    assert "found the columns 'Say it.', 'x', 'y'" in message(files, train="train.csv")
    assert "the first line of a CSV file names the columns" in message(files, train="train.csv")
    save(files / "train.jsonl", ["[]\n"])
    assert "train.jsonl, line 1: found []; a row must be an object" in message(files)
    save(files / "train.jsonl", ["{\n"])
    assert "train.jsonl, line 1: broken JSON" in message(files)


def test_labels_beside_the_file(files):
    save(files / "sub/train.jsonl", rows(3, output="x"))
    save(files / "sub/test.jsonl", rows(2, "t", output="y", choices=["y", "z"]))
    (files / "sub/labels.json").write_text('["x", "y"]')
    loaded = load(files, train="sub/train.jsonl", test="sub/test.jsonl")
    assert loaded.train[0].choices == ("x", "y") and loaded.test[0].choices == ("y", "z")
    for content, expected in [
        ("{", "labels.json: broken JSON"),
        ('["x"]', "labels.json: ['x']; expected a list of at least two different texts"),
        ('["x", "x"]', "expected a list of at least two"),
        ('["x", 1]', "expected a list of at least two"),
        ('{"x": 1}', "expected a list of at least two"),
        ('["y", "z"]', "line 1: the answer 'x' is not among the choices (y, z)"),
    ]:
        (files / "sub/labels.json").write_text(content)
        assert expected in message(files, train="sub/train.jsonl", test="sub/test.jsonl")


@pytest.mark.parametrize(
    ("extra", "metric"),
    [
        ({"output": "x", "choices": ["x", "y"], "answer": "1"}, "exact_match"),
        ({"output": "one two three four five", "answer": "5"}, "final_answer"),
        ({"output": "so\n#### 5"}, "final_answer"),
        ({"output": "so $\\boxed{5}$"}, "final_answer"),
        ({"references": ["x", "y"]}, "squad_f1"),
        ({"output": "one two three"}, "exact_match"),
        ({"output": "one two three four"}, "rouge_l"),
    ],
)
def test_the_metric_that_fits(files, extra, metric):
    save(files / "test.jsonl", rows(5, "t", **extra))
    assert load(files).metric == metric


def test_one_odd_row_does_not_decide_the_metric(files):
    save(files / "test.jsonl", [*rows(4, "t"), *rows(1, "u", output="\\boxed{5}", references=["x"])])
    assert load(files).metric == "exact_match"


def test_final_answers_are_the_references(files):
    save(files / "test.jsonl", rows(2, "t", output="1 + 1 is 2", answer="2"))
    assert load(files).test[0].accepted == ("2",)
    assert load(files, metric="rouge_l").test[0].accepted == ("1 + 1 is 2",)


def test_a_metric_by_name(files):
    assert load(files, metric="bleu").metric == "bleu"
    assert "task 'one': metric: unknown metric 'rogue_l'; did you mean 'rouge_l'?; there are exact_match," in message(
        files, metric="rogue_l"
    )


def test_all_problems_of_all_tasks_at_once(files):
    bad = [
        task(name="ab", metric="x", template="{x}"),
        task(name="ok"),
        task(name="c", train="no.jsonl", test="nope.csv"),
    ]
    with pytest.raises(InputError) as caught:
        load_tasks(Config(tasks=bad), files)
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0] for line in lines] == ["task 'ab'", "task 'ab'", "task 'c'", "task 'c'"]
    assert "train: " in lines[2] and "no.jsonl: no such file" in lines[2] and "nope.csv: no such file" in lines[3]


def test_test_rows_that_are_also_trained_on(files, caplog):
    with caplog.at_level(logging.WARNING, logger="retain"):
        load(files)
        assert not caplog.records
        save(files / "test.jsonl", [*rows(3), *rows(2, "t")])
        load(files)
    assert caplog.messages == ["task one: 3 of 5 test samples are also in train"]


def test_hostile_texts_come_through(files):
    text = "{input}{0}%s\x00\u202e'\"\\ <script>"
    save(files / "test.jsonl", [{"instruction": text, "input": text, "output": text}])
    loaded = load(files)
    assert loaded.test[0].prompt == f"{text}\n{text}\nAnswer:\n" and loaded.test[0].answer == text


def test_builtin_tasks(tmp_path):
    loaded = load(tmp_path, train="builtin:iso_date", test="builtin:iso_date", max_train=30)
    assert (len(loaded.train), len(loaded.test), loaded.metric) == (30, 100, "exact_match")
    assert "ISO 8601" in loaded.description
    assert "no built-in task 'iso_dat'; did you mean 'iso_date'?; there are support_routing," in message(
        tmp_path, train="builtin:iso_dat", test="builtin:iso_date"
    )


def test_hub_names():
    for name in ("squad", "owner/name", "owner/name/config", "owner/name:train", "o/n/c:test", "a.b-c/d_e"):
        assert hub.is_hub_name(name), name
    for name in ("", "/etc/x", "./a", "~/a", "a/b/c/d", "a b", "a\\b", "a/", ":train", "a/../b", "a\n"):
        assert not hub.is_hub_name(name), name


def test_a_hub_data_set(tmp_path, monkeypatch):
    import datasets

    calls = []

    def load_dataset(*names, split):
        calls.append((*names, split))
        return rows(3, split)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    loaded = load(tmp_path, train="owner/name", test="owner/name/config:dev")
    assert calls == [("owner/name", "train"), ("owner/name", "config", "dev")]
    assert len(loaded.train) == 3 and "dev" in loaded.test[0].prompt


def test_a_hub_that_cannot_be_reached(tmp_path, monkeypatch):
    import datasets

    def fail(*names, split):
        raise ConnectionError("Couldn't reach 'owner/name' on the Hub\nmore")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    expected = "task 'one': train: 'owner/name' is neither an existing file nor reachable on the Hub ("
    assert message(tmp_path, train="owner/name", test=None).splitlines()[-1].startswith(expected + "Couldn't reach")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert expected + "HF_HUB_OFFLINE is set); check the spelling, or download it" in message(
        tmp_path, train="owner/name", test=None
    )


def test_a_missing_file_is_not_looked_for_on_the_hub(files, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets, "load_dataset", lambda *names, split: pytest.fail("asked the Hub"))
    assert "did you mean 'train.jsonl'?" in message(files, train="trian.jsonl")
    for path in ("data/train.json", "./nothing", "~nobody/x", "x" * 5000, "a\x00b"):
        assert "no such file" in message(files, train=path)


def test_loading_needs_no_torch():
    code = "import sys, retain.tasks; print({'torch', 'datasets', 'pyarrow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
