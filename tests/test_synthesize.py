"""Samples of a finished run's task in a file, and the gate that stops a run until people have looked at its samples."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
from report_fixture import HOSTILE_TEXTS
from tiny import tiny_values

import retain.learner
from retain import cli
from retain.config import load_config, make_config
from retain.device import open_model
from retain.quality.filters import Candidate
from retain.reviews import Review, add_review, synthetic_rows
from retain.run import run as run_config
from retain.rundir import RunDir
from retain.selfsynthesis import check_descriptions, sample_row
from retain.store import read_lines, write_lines
from retain.synthesis.scores import perplexities
from retain.synthesis.writer import Writer, Written
from retain.synthesize import synthesize
from retain.tasks import load_tasks
from retain.types import GateError, InputError

FEW = {"samples": 8, "max_input_tokens": 12, "max_output_tokens": 6}
OPEN = {"heuristics": False, "perplexity": None, "consistency": None, "diversity": None}


def values(folder: Path, strategy: str, **changes) -> dict:
    """Two tiny tasks, and synthesis with filters that a random model's noise passes."""
    made = tiny_values(folder, strategy=strategy, **{"synthesis": FEW, "filters": OPEN, **changes})
    return made | {"tasks": made["tasks"][:2]}


@pytest.fixture(scope="module")
def ssr(tmp_path_factory) -> Path:
    """A run that stopped at its gate, was reviewed, and went on to its end; its training data are gone."""
    folder = tmp_path_factory.mktemp("ssr")
    made = values(folder, "ssr", filters=OPEN | {"human": True, "human_above": 4, "human_samples": 3})
    for task in made["tasks"]:
        task["description"] = f"Name the {task['name']} that the text tells."
    config = make_config(made, "test")
    with pytest.raises(GateError, match=r"of color 0 of 3 are rated\); run `retain review .*run --task color`, then"):
        run_config(config, folder)
    run = folder / "run"
    assert len(RunDir(run).rows()) == 2, "the first stage is done and the second has not begun"
    for verdict, row in zip([True, True, False], synthetic_rows(run)["color"], strict=False):
        add_review(run, Review(row["id"], "color", "ada", verdict))
    with pytest.raises(
        GateError, match=r"the approval rate is 0\.67 for color \(3 ratings\) and must be at least 0\.8"
    ):
        run_config(config, folder)
    for row in synthetic_rows(run)["color"][2:]:
        add_review(run, Review(row["id"], "color", "ada", True))
    run_config(config, folder)
    assert json.loads((run / "results.json").read_text())["finished"]
    for file in folder.glob("*_train.jsonl"):
        file.unlink()
    return run


@pytest.fixture(scope="module")
def mssr(tmp_path_factory) -> Path:
    """A run that stores real samples and has no descriptions."""
    folder = tmp_path_factory.mktemp("mssr")
    return run_config(make_config(values(folder, "mssr"), "test"), folder)


@pytest.fixture
def command(monkeypatch, capsys):
    """`retain synthesize` in this process: the exit code, standard output and standard error."""

    def command(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["retain", "synthesize", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        return stopped.value.code or 0, *capsys.readouterr()

    return command


# --- what is written --------------------------------------------------------------------------------


def test_samples_with_their_scores_from_a_run_without_its_data(ssr, tmp_path, command):
    out = tmp_path / "new" / "color.jsonl.gz"
    code, printed, err = command(ssr, "--task", "color", "-n", "6", "--out", out)
    assert "filters.memorization: without the training data copies of them cannot be told" in err
    rows = list(read_lines(out))
    assert code == 0 and f"6 samples: {out}" in printed
    assert "generated" in printed and "dropped by unreadable" in printed and "candidates were kept" in printed
    assert [row["id"] for row in rows] == [f"color/synthesized/2/{k}" for k in range(6)]
    assert {row["task"] for row in rows} == {"color"} and {row["answer"] for row in rows} <= {"red", "blue"}
    assert all(0 < row["consistency"] <= 1 and row["votes"] is None for row in rows)
    lm, _ = open_model(load_config(ssr / "config.yaml", need_tasks=False), ssr)
    lm.load_adapter(RunDir(ssr).rows()[2] / "adapter")
    expected = perplexities(lm, [f"{row['input']} {row['answer']}" for row in rows])
    assert [row["perplexity"] for row in rows] == pytest.approx(expected.tolist(), rel=1e-5)
    assert list(out.parent.iterdir()) == [out], "no scratch file is left"


def test_the_same_command_writes_the_same_and_not_what_the_run_wrote(ssr, tmp_path):
    first, second, earlier = (tmp_path / f"{name}.jsonl" for name in "abc")
    for out, stage in ((first, None), (second, 2), (earlier, 1)):
        synthesize(ssr, "color", 8, out, stage=stage)
    assert first.read_bytes() == second.read_bytes()
    own = {row["input"] for row in synthetic_rows(ssr)["color"]}
    for out in (first, earlier):
        assert not own & {row["input"] for row in read_lines(out)}
    assert next(read_lines(earlier))["id"] == "color/synthesized/1/0"


def test_stored_rehearsal_makes_the_card_of_the_data(mssr, tmp_path):
    out = tmp_path / "size.jsonl.zst"
    about = "tasks.size.description=Say how big the thing in the text is."
    with pytest.raises(InputError, match=r'task size: no description, .* add description: "\.\.\." to the task'):
        synthesize(mssr, "size", 4, out)
    written = synthesize(mssr, "size", 4, out, overrides=[about])
    assert written.dropped["memorization"] == 0, "the training data are at hand, so it was looked for"
    assert len(list(read_lines(out))) == 4


def test_demonstrations_are_shown(mssr, tmp_path, monkeypatch):
    seen = []
    original = Writer.write

    def write(self, card, count, stage, demonstrations=(), number=0):
        seen.append((self.synthesis.method, list(demonstrations)))
        return original(self, card, count, stage, demonstrations, number)

    monkeypatch.setattr(Writer, "write", write)
    given = [("a b", "red"), ("c\u2028d", "blue")]
    file = write_lines(tmp_path / "shown.jsonl", [{"input": i, "answer": a} for i, a in given])
    about = ["tasks.color.description=Name the color."]
    synthesize(mssr, "color", 2, tmp_path / "a.jsonl", overrides=about, demonstrations=file)
    own = ["synthesis.method=in-context", "synthesis.demonstrations=2"]
    synthesize(mssr, "color", 2, tmp_path / "b.jsonl", overrides=about + own)
    config = load_config(mssr / "config.yaml", need_tasks=False)
    real = [(task.frame.input_of(s), s.answer) for task in load_tasks(config, mssr)[:1] for s in task.train[:2]]
    assert seen == [("in-context", given), ("in-context", real)]


def test_the_run_s_own_demonstrations_are_shown_and_none_is_an_error(ssr, tmp_path):
    with pytest.raises(InputError, match=r"in-context shows real samples, and .* keeps none of color; give some with"):
        synthesize(ssr, "color", 2, tmp_path / "a.jsonl", overrides=["synthesis.method=in-context"])
    kept = RunDir(ssr).rows()[-1] / "demonstrations.jsonl"
    write_lines(kept, [{"task": "color", "input": "a", "answer": "red"}])
    try:
        assert synthesize(ssr, "color", 2, tmp_path / "a.jsonl", overrides=["synthesis.method=in-context"]).kept
    finally:
        kept.unlink()


def test_a_yield_of_nothing_is_an_empty_file_and_an_account(ssr, tmp_path, command):
    out = tmp_path / "none.jsonl"
    code, printed, _ = command(ssr, "--task", "size", "-n", "4", "--out", out, "filters.consistency=1.0")
    assert code == 0 and out.read_text() == "" and "0 samples: " in printed
    assert "To keep more, lower filters.consistency" in " ".join(printed.split())


def test_hostile_texts_come_back_as_they_were_written(ssr, tmp_path, monkeypatch, command):
    kept = [Candidate(text, "red", 3.0, 0.5) for text in HOSTILE_TEXTS]
    written = Written("color", 4, kept, 9, dropped={"heuristics": 5}, account="[bold]4[/bold] of 9\x1b[31m")
    monkeypatch.setattr(Writer, "write", lambda *_: written)
    monkeypatch.setattr(Writer, "score", lambda *_: None)
    code, printed, _ = command(ssr, "--task", "color", "--out", tmp_path / "a.jsonl.gz")
    assert code == 0 and "[bold]4[/bold]" in printed
    assert [row["input"] for row in read_lines(tmp_path / "a.jsonl.gz")] == list(HOSTILE_TEXTS)


def test_an_infinite_perplexity_is_null():
    row = sample_row("a", "t", Candidate("x", "y", perplexity=math.inf, consistency=0.5))
    assert row == {"id": "a", "task": "t", "input": "x", "answer": "y", "perplexity": None, "consistency": 0.5,
                   "votes": None}  # fmt: skip


# --- what is refused --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.csv", r"--out: '.*a\.csv'; its name must end in one of \.jsonl, \.jsonl\.gz, \.jsonl\.zst"),
        ("a.gz", "its name must end"),
        ("folder.jsonl", r"folder\.jsonl is a directory; name a file in it"),
        ("there.jsonl", r"there\.jsonl is there already; .*--force"),
        ("there.jsonl/a.jsonl", r"--out: .*a\.jsonl cannot be written: (File exists|Not a directory)"),
    ],
)
def test_wrong_files(ssr, tmp_path, command, name, message):
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "there.jsonl").write_text("mine")
    with pytest.raises(InputError, match=message):
        synthesize(ssr, "color", 2, tmp_path / name)
    assert (tmp_path / "there.jsonl").read_text() == "mine"


def test_force_overwrites(ssr, tmp_path, command):
    (tmp_path / "there.jsonl").write_text("mine")
    assert command(ssr, "--task", "color", "-n", "1", "--out", tmp_path / "there.jsonl")[0] == 2
    assert command(ssr, "--task", "color", "-n", "1", "--out", tmp_path / "there.jsonl", "--force")[0] == 0
    assert len(list(read_lines(tmp_path / "there.jsonl"))) == 1


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("nope", {}, "--task: 'nope' is not learned after stage 2 of .*; color, size are"),
        ("size", {"stage": 1}, "--task: 'size' is not learned after stage 1 of .*; color are"),
        ("color", {"stage": 3}, "stage: .* has 2 finished stages; 3 is none of them"),
        ("color", {"overrides": ["lora.r=4"]}, "lora.r: 8 -> 4: the run was trained with the old value; what may"),
        ("color", {"overrides": ["synthesis.temperatur=2"]}, "did you mean temperature"),
        ("color", {"overrides": ["privacy.epsilon_per_token=1"]}, "would break the bound of privacy.epsilon_per_token"),
    ],
)
def test_wrong_questions(ssr, tmp_path, task, options, message):
    with pytest.raises(InputError, match=message):
        synthesize(ssr, task, 2, tmp_path / "a.jsonl", **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "--demonstrations: .* is empty"),
        ('{"input": "a"}\n', r'd\.jsonl: .*line 1: no text under "answer"'),
        ('{"input": "a", "answer": "b"}\n{', r"d\.jsonl: .*line 2: broken JSON"),
        (None, r"d\.jsonl: no such file"),
    ],
)
def test_wrong_demonstrations(ssr, tmp_path, text, message):
    if text is not None:
        (tmp_path / "d.jsonl").write_text(text)
    with pytest.raises(InputError, match=message):
        synthesize(ssr, "color", 2, tmp_path / "a.jsonl", demonstrations=tmp_path / "d.jsonl")


@pytest.mark.parametrize("mode", ["cached", "on-demand"])
def test_people_cannot_look_at_what_is_written_inside_a_stage(mode):
    config = make_config(
        {"strategy": "ssr", "filters": {"human": True}, "storage": {"mode": mode}}, "t", need_tasks=False
    )
    with pytest.raises(InputError, match=f"filters.human: storage.mode {mode} writes samples inside a stage"):
        check_descriptions(config, [])


def test_a_learner_goes_on_after_its_gate(tmp_path, monkeypatch):
    """`learn` of a task that the gate stopped is not taken for learned."""
    asked = []

    def gate(run_dir, config):
        asked.append(len(RunDir(run_dir).rows()))
        if len(asked) == 2:
            raise GateError("look at them")

    monkeypatch.setattr(retain.learner, "require_approval", gate)
    made = values(tmp_path, "none")
    monkeypatch.chdir(tmp_path)
    first, second = made.pop("tasks")
    learner = retain.Learner(made.pop("model"), made.pop("strategy"), made.pop("output"), **made)
    learner.learn(first)
    with pytest.raises(GateError):
        learner.learn(second)
    assert learner.learn(second)["finished"] and len(learner.dir.rows()) == 3
    learner.learn(second)
    assert asked == [1, 2, 2], "no stage is gated once it is learned"
