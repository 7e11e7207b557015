"""What people say of synthetic samples: on the terminal, in the file, in two raters' agreement, and at the gate."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path

import pytest
from report_fixture import HOSTILE_TEXTS, TASKS, build_run

from retain import cli, reviews
from retain.cli_review import LONGEST, visible
from retain.config import load_config
from retain.quality.human import CRITERIA
from retain.reviews import Review, add_review, agreements, chosen, read_reviews, require_approval, synthetic_rows
from retain.store import write_lines
from retain.types import GateError, InputError

TASK = TASKS[0]


@pytest.fixture
def run(tmp_path) -> Path:
    """A run of strategy ssr with 100 synthetic samples of each of four tasks."""
    return build_run(tmp_path / "run", "ssr")


@pytest.fixture
def review(monkeypatch, capsys):
    """`retain review` with piped answers: the exit code, standard output and standard error."""

    def review(run: Path, answers: str, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["retain", "review", str(run), "--rater", "ada", *arguments])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(answers.encode()), encoding="utf-8"))
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        return stopped.value.code or 0, *capsys.readouterr()

    return review


def lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "reviews.jsonl").read_text().splitlines()]


def config(run: Path, **filters):
    loaded = load_config(run / "config.yaml", need_tasks=False)
    return loaded.model_copy(update={"filters": loaded.filters.model_copy(update={"human": True, **filters})})


def rate(run: Path, approved: list[bool], rater: str = "ada", task: str = TASK) -> None:
    for row, verdict in zip(synthetic_rows(run)[task], approved, strict=False):
        add_review(run, Review(row["id"], task, rater, verdict))


# --- the command ------------------------------------------------------------------------------------


def test_piped_answers_become_lines_of_a_file(run, review):
    code, out, err = review(run, "y\nn\n YES \nno\ny\n", "--task", TASK, "--count", "5")
    assert (code, err.count("\n")) == (3, 1)
    assert "the approval rate is 0.60 for sst2 (5 ratings) and must be at least 0.8" in err
    found = lines(run)
    assert [line["rating"] for line in found] == [True, False, True, False, True]
    assert {line["rater"] for line in found} == {"ada"} and {line["task"] for line in found} == {TASK}
    ids = [line["id"] for line in found]
    assert ids == [row["id"] for row in chosen(synthetic_rows(run)[TASK], 5, 42)] != sorted(ids)
    assert f"{TASK}, 1 of 5" in out and "labels" in out and "1 synthetic text" in out
    assert out.split()[-5:] == [TASK, "100", "5", "1", "0.60"]


def test_enough_approval_is_exit_0(run, review):
    assert review(run, "y\n" * 4 + "n\n", "--task", TASK, "--count", "5")[0] == 0


def test_what_this_rater_has_rated_is_not_asked_again(run, review):
    review(run, "y\ny\nq\n", "--task", TASK, "--count", "4")
    code, out, _ = review(run, "y\ny\n", "--task", TASK, "--count", "4")
    assert code == 0
    assert f"{TASK}, 3 of 4" in out and f"{TASK}, 2 of 4" not in out
    assert len({line["id"] for line in lines(run)}) == 4
    code, out, _ = review(run, "", "--task", TASK, "--count", "4")
    assert code == 0 and "ada has rated all of them" in out and "good enough" not in out
    review(run, "y\n" * 9, "--task", TASK, "--count", "5")
    assert len(lines(run)) == 5


@pytest.mark.parametrize("answers", ["y\nq\nn\n", "y\n", "y\nQ", "y\nwhat\n\n"])
def test_quitting_and_the_end_of_the_input_keep_what_was_said(run, review, answers):
    code, out, _ = review(run, answers, "--task", TASK)
    assert code == 0 and [line["rating"] for line in lines(run)] == [True]
    assert ("'what' is none of y, yes, n, no, q" in out) == ("what" in answers)


def test_quitting_at_once_is_no_verdict(run, review):
    code, out, err = review(run, "q\n")
    assert (code, err) == (0, "") and not (run / "reviews.jsonl").exists()
    assert all(task in out for task in TASKS)


def test_the_scale_asks_for_each_criterion(run, review):
    answers = "5\n4\n6\n3\n3\n" + "5\n5\n5\n2\n" + "1\n1\nq\n"
    code, out, _ = review(run, answers, "--task", TASK, "--scale")
    assert code == 3
    assert [line["rating"] for line in lines(run)] == [
        dict(zip(CRITERIA, (5, 4, 3, 3), strict=True)), dict(zip(CRITERIA, (5, 5, 5, 2), strict=True)),
    ], "what was said of a sample before q is not kept"  # fmt: skip
    assert "'6' is none of 1, 2, 3, 4, 5, q" in out and "label correctness 1-5" in out
    assert out.split()[-9:] == [TASK, "100", "2", "1", "0.50", "5.0", "4.5", "4.0", "2.5"]


def test_two_raters_see_the_same_samples_and_their_agreement_is_shown(run, review):
    review(run, "y\ny\nn\nn\n", "--task", TASK, "--count", "4")
    code, out, _ = review(run, "y\nn\nn\nn\n", "--task", TASK, "--count", "4", "--rater", "bo")
    assert code == 3
    assert out.split()[-6:] == ["ada", "and", "bo", "4", "0.75", "0.50"]  # p_e = ½·¼ + ½·¾ = ½, κ = (¾ - ½)/½


def test_every_task_is_asked_about_by_default(run, review):
    review(run, "y\n" * 99, "--count", "2")
    assert [line["task"] for line in lines(run)] == [task for task in TASKS for _ in range(2)]


def test_without_a_name_the_account_is_the_rater(run, monkeypatch, capsys):
    monkeypatch.setenv("LOGNAME", "grace")
    monkeypatch.setattr(sys, "argv", ["retain", "review", str(run)])
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    with pytest.raises(SystemExit):
        cli.main()
    assert lines(run)[0]["rater"] == "grace"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--task", "nope"), "--task: .* has no synthetic samples of 'nope'; it has some of sst2, ag_news"),
        (("--rater", " "), "--rater: empty; give a name"),
    ],
)
def test_wrong_arguments(run, review, arguments, message):
    code, _, err = review(run, "", *arguments)
    assert code == 2
    assert re.search(message, err)


@pytest.mark.parametrize(("strategy", "storage"), [("mssr", "stored"), ("ssr", "on-demand"), ("ssr", "cached")])
def test_a_run_without_samples_in_files(tmp_path, review, strategy, storage):
    code, _, err = review(build_run(tmp_path / "run", strategy, storage=storage), "")
    assert code == 2 and "no synthetic samples to review" in err
    assert ("keeps none in files" in err) == (storage != "stored")


# --- hostile texts ----------------------------------------------------------------------------------


def test_hostile_texts_are_shown_as_text(tmp_path, review):
    run = build_run(tmp_path / "run", "ssr", texts=HOSTILE_TEXTS)
    code, out, _ = review(run, "y\n" * 4, "--task", TASK)
    assert code == 0 and len(lines(run)) == 4
    assert HOSTILE_TEXTS[0] in out and "[bold]<U+001B>[31mred<U+001B>[0m <U+202E>gnp.exe<U+202C>" in out
    assert "<U+2028> <U+D800>" in out and not set(out) & set("\x1b\u202e\u2028\ud800")
    assert out.count("x") < LONGEST + 200 and "and 97,000 more characters" in " ".join(out.split())


@pytest.mark.parametrize("char", "\x00\x07\x1b\x7f\x9b\r\u061c\u200b\u200e\u202a\u202e\u2066\u2069\ufeff\U000e0041")
def test_what_cannot_be_seen_is_spelled_out(char):
    assert visible(f"a{char}b") == f"a<U+{ord(char):04X}>b"


@pytest.mark.parametrize("text", ["two\nlines\tand é 漢字 🙂", "می‌خواهم", "👩‍🔬", "[red]not markup[/red] :smile:"])
def test_what_people_write_stays(text):
    assert visible(text) == text


def test_odd_answers_are_asked_again(run, review):
    code, out, _ = review(run, "\x1b[31m\n[red]\n" + "z" * 9999 + "\n\u202e\ny\n", "--task", TASK)
    assert code == 0 and len(lines(run)) == 1
    assert "\x1b" not in out and "<U+001B>[31m" in out and "[red]" in out


def test_answers_that_are_not_utf8_are_asked_again(run, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["retain", "review", str(run)])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe\ny\n"), encoding="utf-8"))
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert not stopped.value.code and len(lines(run)) == 1


# --- the file ---------------------------------------------------------------------------------------


def test_reviews_are_read_back(run):
    graded = dict.fromkeys(CRITERIA, 4)
    for review in (Review("a", "t", "ada\u202e", True), Review("b\ud800", "t", "bo", graded)):
        add_review(run, review)
        assert read_reviews(run)[-1] == review


def test_of_two_reviews_by_one_rater_the_last_counts(run):
    for verdict in (True, False):
        add_review(run, Review("a", "t", "ada", verdict))
    assert [review.rating for review in read_reviews(run)] == [False]


def test_a_torn_last_line_is_left_out_and_the_next_one_is_whole(run):
    rate(run, [True, False])
    with (run / "reviews.jsonl").open("a") as file:
        file.write('{"id": "x", "ta')
    assert len(read_reviews(run)) == 2
    rate(run, [True], rater="bo")
    assert len(read_reviews(run)) == 3


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{oops", r"reviews\.jsonl: .*line 1: broken JSON at column 2"),
        ('["a"]', 'line 1: no text under "id"'),
        ('{"id": "a", "task": "t", "rater": "r", "rating": 4}', "review 1: rating 4; it must be true, false, or"),
        ('{"id": "a", "task": "t", "rater": "r", "rating": {"fluency": 4}}', "review 1: rating"),
        (json.dumps({"id": "", "task": "", "rater": "", "rating": dict.fromkeys(CRITERIA, 6)}), "from 1 to 5"),
        (json.dumps({"id": "", "task": "", "rater": "", "rating": dict.fromkeys(CRITERIA, True)}), "from 1 to 5"),
    ],
)
def test_a_broken_line_is_named(run, line, message):
    (run / "reviews.jsonl").write_text(line + "\n")
    with pytest.raises(InputError, match=message):
        read_reviews(run)


def test_samples_written_anew_take_the_place_of_the_old_and_their_reviews_lapse(run):
    rate(run, [True] * 5)
    anew = [{"id": f"{TASK}/synthetic/4/{k}", "task": TASK, "input": f"anew {k}", "answer": "good"} for k in range(3)]
    kept = synthetic_rows(run)[TASKS[3]]
    write_lines(run / "stages" / "04-4" / "synthetic.jsonl", [*kept, *anew], "gzip")
    assert synthetic_rows(run)[TASK] == anew and len(synthetic_rows(run)[TASKS[1]]) == 100
    assert [one.samples for one in reviews.summarize(synthetic_rows(run), read_reviews(run))] == [0, 0, 0, 0]


def test_the_samples_to_look_at_depend_on_their_ids_alone():
    rows = [{"id": str(k)} for k in range(200)]
    few = chosen(rows, 20, 42)
    assert chosen(rows[::-1], 20, 42) == few == chosen(rows, 40, 42)[:20]
    assert chosen(rows, 20, 43) != few and len(chosen(rows, 999, 42)) == 200


def test_raters_agree_on_what_both_rated_and_on_no_more():
    graded = dict.fromkeys(CRITERIA, 5)
    found = agreements(
        [Review("a", "t", "ada", True), Review("b", "t", "ada", graded), Review("c", "t", "ada", False),
         Review("b", "t", "bo", graded | {"label": 1}), Review("a", "t", "bo", True), Review("z", "t", "cy", True)]
    )  # fmt: skip
    [one] = found
    assert (one.raters, one.samples, one.share) == (("ada", "bo"), 2, 0.5)
    assert one.criteria["fluency"] is None and one.criteria["label"] == pytest.approx(0.0)


# --- the gate ---------------------------------------------------------------------------------------


def test_nothing_is_asked_where_the_gate_is_off_or_little_was_written(run):
    require_approval(run, config(run, human=False, human_above=0))
    require_approval(run, config(run, human_above=100))
    with pytest.raises(GateError):
        require_approval(run, config(run, human_above=99))


def test_the_gate_names_what_to_do(run):
    rate(run, [True] * 3)
    with pytest.raises(GateError) as caught:
        require_approval(run, config(run, human_above=0, human_samples=10))
    message = str(caught.value)
    assert "of sst2 3 of 10, of ag_news 0 of 10" in message and "then the same command again" in message
    assert f"`retain review {run} --task sst2`" in message and "\n" not in message


def test_the_gate_opens_with_enough_approving_reviews(run):
    for task in TASKS:
        rate(run, [True] * 8 + [False] * 2, task=task)
    require_approval(run, config(run, human_above=0, human_samples=10))
    with pytest.raises(GateError, match=r"0\.80 for sst2 \(10 ratings\), 0\.80 for ag_news .* must be at least 0\.81"):
        require_approval(run, config(run, human_above=0, human_samples=10, human_required=0.81))
    with pytest.raises(GateError, match="of sst2 10 of 11"):
        require_approval(run, config(run, human_above=0, human_samples=11))


def test_all_samples_are_enough_where_there_are_few(tmp_path):
    run = build_run(tmp_path / "run", "ssr", texts=("one", "two", "three"))
    for task in TASKS:
        rate(run, [True] * 3, task=task)
    require_approval(run, config(run, human_above=2))


def test_one_rater_twice_over_is_not_two_samples(run):
    for rater in ("ada", "bo"):
        rate(run, [True] * 5, rater=rater)
    with pytest.raises(GateError, match="of sst2 5 of 10"):
        require_approval(run, config(run, human_above=0, human_samples=10))
