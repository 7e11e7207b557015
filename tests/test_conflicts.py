"""Changed truth: old answers that newer data correct are found before training, and are not taught again."""

import json

import pytest
from test_erase import wide_llama
from test_run import journal, results
from tiny import save_tiny_model, stopped_in
from typer.testing import CliRunner

from retain.buffer import read_samples
from retain.cli import app
from retain.config import dump_config, make_config
from retain.conflicts import find_conflicts, retired_tasks, settle_conflicts
from retain.run import run
from retain.scheduler import plan_run
from retain.types import Frame, InputError, Sample, Task

LONG = " ".join(f"{first}{second}" for first in "bcdf" for second in ("an", "el", "ir", "ok", "up", "ys"))  # 24 words


def sample(task, k, prompt, answer, **fields):
    return Sample(f"{task}/{k}", task, prompt, answer, **fields)


def tasks_of(*tasks, frame=Frame()):  # noqa: B008
    return [
        Task(name, [sample(name, k, *pair) for k, pair in enumerate(pairs)], frame=frame)
        for name, pairs in tasks
    ]  # fmt: skip


def conflicts(stored, tasks, similarity=0.9):
    frames = {task.name: task.frame for task in tasks}
    return [(one.stored, one.newer) for one in find_conflicts(stored, tasks, frames, similarity)]


# ---- what is one ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "old, new, is_one",
    [
        (("capital of Australia?", "Sydney"), ("capital of Australia?", "Canberra"), True),
        (("Capital of  AUSTRALIA", "Sydney"), ("capital of Australia?", "Canberra"), True),  # Norm
        (("capital of Australia?", "canberra."), ("capital of Australia?", "Canberra"), False),
        (("capital of Austria?", "Vienna"), ("capital of Australia?", "Canberra"), False),
        (("2 + 2?", "1,000"), ("2 + 2?", "1000.0"), False),
        (("a b c d e f g h i j", "x"), ("a b c d e f g h i k", "y"), False),  # 7 of 9 shingles are shared
        ((f"{LONG} late", "x"), (f"{LONG} late!", "y"), True),
        ((f"{LONG} in time", "x"), (f"{LONG} in times", "y"), True),
        ((f"{LONG} in time", "x"), (f"{LONG} in times", "X"), False),
        ((f"{LONG} by number 17", "x"), (f"{LONG} by number 18", "y"), False),  # another order
    ],
)
def test_the_same_question_with_another_answer(old, new, is_one):
    first, second = tasks_of(("old", [old]), ("new", [new]))
    assert conflicts(first.train, [second]) == ([("old/0", "new/0")] if is_one else [])


def test_near_is_by_the_inputs_of_one_instruction_alone():
    frame = Frame("Decide with great care which of the two colors is meant by the following line.\n", "\nAnswer:\n")
    one, other = frame.sample("old/0", "old", "a b", "x"), frame.sample("new/0", "new", "c d", "y")
    assert not conflicts([one], [Task("new", [other], frame=frame), Task("old", frame=frame)])
    text = LONG
    for own, is_one in ((frame, True), (Frame("Say who it is from.\n"), False)):
        stored = own.sample("old/0", "old", f"{text} it", "x")
        tasks = [Task("old", frame=own), Task("new", [frame.sample("new/0", "new", f"{text} them", "y")], frame=frame)]
        assert conflicts([stored], tasks) == ([("old/0", "new/0")] if is_one else []), own
        assert not conflicts([stored], tasks, None)


@pytest.mark.parametrize("n, is_one", [(30, False), (160, True)])
def test_near_agrees_with_shingles_counted_by_hand(n, is_one):
    """Of two texts that differ in one word in the middle 3 of n - 2 shingles differ: J = (n - 5)/(n + 1)."""
    assert ((n - 5) / (n + 1) >= 0.9) == is_one
    text = [f"w{chr(97 + k % 26)}{chr(97 + k // 26)}" for k in range(n)]
    changed = [*text[: n // 2], "else", *text[n // 2 + 1 :]]
    first, second = tasks_of(("old", [(" ".join(text), "x")]), ("new", [(" ".join(changed), "y")]))
    assert bool(conflicts(first.train, [second])) == is_one


def test_chats_by_all_turns_but_the_last():
    turns = (("user", "who rules?"), ("assistant", "the king"), ("user", "sure?"))
    old = Sample("old/0", "old", "", "yes", messages=(*turns, ("assistant", "yes")))
    new = Sample("new/0", "new", "", "no", messages=(*turns, ("assistant", "no")))
    other = Sample("new/1", "new", "", "no", messages=(turns[2], ("assistant", "no")))
    assert conflicts([old], [Task("new", [new])]) == [("old/0", "new/0")]
    assert conflicts([old], [Task("new", [other])]) == []


def test_the_newest_task_that_knows_the_question_is_right():
    tasks = tasks_of(("a", [("q", "1")]), ("b", [("q", "2"), ("q", "3")]), ("c", [("q", "1")]))
    stored = [one for task in tasks for one in task.train]
    assert conflicts(stored, tasks) == [("b/0", "c/0"), ("b/1", "c/0")]
    assert conflicts(stored, tasks[:2]) == [("a/0", "b/0"), ("c/0", "b/0")]  # c is not among the tasks: older
    assert conflicts([sample("a", 1, "q", "3")], tasks[:2]) == []  # one of the answers


def test_accepted_answers_agree():
    new = sample("new", 0, "q", "Paris", references=("Paris", "City of Paris"))
    for answer, agrees in (("city of paris", True), ("Paris", True), ("Lyon", False)):
        assert bool(conflicts([sample("old", 0, "q", answer)], [Task("new", [new])])) != agrees


# ---- what is done -----------------------------------------------------------------------------------------


def settled(tmp_path, **changes):
    from retain.buffer import Buffer

    config = make_config({"tasks": [{"name": "old", "train": "x"}, {"name": "new", "train": "x"}], **changes}, "test")
    old, new = tasks_of(("old", [("q", "1"), ("p", "1")]), ("new", [("q", "2")]))
    buffer, lines = Buffer(config.buffer, config.memory), []
    buffer.admit(old.train, 1, {}, 1)
    settle_conflicts(buffer, config, [old, new], lambda kind, **fields: lines.append((kind, fields)))
    return buffer, lines


def test_newest_retires_the_old_one_and_says_so(tmp_path, caplog):
    buffer, [(kind, line)] = settled(tmp_path)
    assert list(buffer.samples) == ["old/1"] and buffer.memory.ids == ["old/1"]
    assert kind == "conflicts" and line["ids"] == [["old/0", "new/0", 1.0]]
    assert (line["found"], line["near"], line["by_task"], line["policy"]) == (1, 0, {"old": 1}, "newest")
    assert "answered otherwise" in caplog.text


def test_keep_and_error(tmp_path):
    buffer, [(_, line)] = settled(tmp_path, conflicts="keep")
    assert len(buffer) == 2 and line["found"] == 1
    with pytest.raises(InputError, match=r"conflicts: error, and 1 stored samples .*old/0 by new/0"):
        settled(tmp_path, conflicts="error")


def test_superseded_and_outlived_tasks():
    def config(**second):
        tasks = [
            {"name": "a", "train": "x", "valid_until": "c"},
            {"name": "b", "train": "x"},
            {"name": "c", "train": "x"},
        ]
        tasks[2] |= second
        return make_config({"tasks": tasks}, "test")

    assert retired_tasks(config(), ["a", "b"]) == set()
    assert retired_tasks(config(), ["a", "b", "c"]) == {"a"}
    assert retired_tasks(config(supersedes=["b"]), ["a", "b", "c"]) == {"a", "b"}


def test_the_plan_counts_what_is_retired_as_gone():
    tasks = [{"name": name, "train": "x"} for name in "abc"]
    sizes = [("a", 40), ("b", 40), ("c", 40)]
    plain = plan_run(make_config({"tasks": tasks}, "test"), sizes)
    tasks[1]["supersedes"] = ["a"]
    changed = plan_run(make_config({"tasks": tasks}, "test"), sizes)
    assert [plan.buffer_size for plan in plain] == [0, 40, 80]
    assert [plan.buffer_size for plan in changed] == [0, 0, 40]
    assert changed[1].events == [] and changed[1].time_unit is None
    assert plan_run(make_config({"tasks": tasks}, "test"), sizes, buffered=7)[2].buffer_size == 7


@pytest.mark.parametrize(
    "change, message",
    [
        ({"supersedes": ["c"]}, r"'c' is no task that is learned before \(there are a\)"),
        ({"supersedes": ["b"]}, "'b' is no task that is learned before"),
        ({"supersedes": "a"}, "supersedes"),
        ({"valid_until": "a"}, r"'a' is no task that is learned after \(there are c\)"),
        ({"valid_until": "2026-01-01"}, "is no task that is learned after"),
    ],
)
def test_wrong_names(change, message):
    tasks = [{"name": name, "train": "x"} for name in "abc"]
    with pytest.raises(InputError, match=message):
        make_config({"tasks": [tasks[0], tasks[1] | change, tasks[2]]}, "test")


# ---- in a run ---------------------------------------------------------------------------------------------

FACTS = 8


def write_facts(folder):
    """Offices and who holds them; the second task corrects half of them; the third is about something else."""
    holders = ["Ada", "Bob", "Cleo", "Dan"]
    rows = {
        "old": [(f"Who holds office {k}?", holders[k % 2]) for k in range(FACTS)],
        "new": [(f"Who holds office {k}?", holders[2 + k % 2]) for k in range(0, FACTS, 2)],
        "other": [(f"Say {k}", str(k)) for k in range(FACTS)],
    }
    rows["still"] = rows["new"]
    for name, pairs in rows.items():
        lines = [json.dumps({"instruction": question, "output": answer}) + "\n" for question, answer in pairs]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    return [
        {"name": name, "train": f"{name}.jsonl", "test": f"{name}.jsonl", "description": f"Answer what {name} says now"}
        for name in ("old", "new", "other")
    ]


def facts_config(folder, **changes):
    values = {
        "model": str(save_tiny_model(folder / "model")),
        "tasks": write_facts(folder),
        "training": {"learning_rate": 0.02, "batch_size": 4, "max_length": 64, "epochs": 60, "schedule": "constant"},
        "lora": {"r": 16, "target_modules": ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"]},
        "schedule": {"kind": "every", "lambda_0": 0.6, "lambda_min": 0.6, "max_mix": 0.7},
        "evaluation": {"save_predictions": False},
        "output": "run",
    }
    return make_config(values | changes, "test")


@pytest.mark.parametrize("policy", ["newest", "keep"])
def test_the_corrected_answer_survives_later_stages(policy, tmp_path):
    out = run(facts_config(tmp_path, conflicts=policy), tmp_path)
    after_new, after_other = (row[1] for row in results(out)["matrix"][2:])
    assert journal(out, "conflicts")[0]["found"] == FACTS // 2
    stored = {one.id for one in read_samples(out / "buffer" / "samples.parquet")}
    old_ones = {old for old, _, _ in journal(out, "conflicts")[0]["ids"]}
    if policy == "newest":
        assert after_new >= 0.75 and after_other >= 0.75
        assert not stored & old_ones
    else:
        assert after_other <= 0.5  # the buffer holds both answers, and one of each two is wrong
        assert stored >= old_ones


def short_run(tmp_path, **changes):
    return facts_config(tmp_path, training={"batch_size": 4, "max_length": 512}, **changes)


def test_error_stops_before_the_stage(tmp_path):
    config = short_run(tmp_path, conflicts="error")
    with pytest.raises(InputError, match=r"old/\d by new/\d"):
        run(config, tmp_path)
    assert len(results(tmp_path / "run")["matrix"]) == 2
    assert not journal(tmp_path / "run", "stage_start")[1:]


def test_a_task_that_supersedes_and_one_that_ends(tmp_path):
    tasks = write_facts(tmp_path)
    tasks[1]["supersedes"] = ["old"]
    tasks[1]["valid_until"] = "other"
    out = run(short_run(tmp_path, tasks=tasks), tmp_path)
    assert {one.task for one in read_samples(out / "buffer" / "samples.parquet")} == {"other"}
    assert [line["superseded"] for line in journal(out, "conflicts")] == [{"old": FACTS}, {"new": FACTS // 2}]
    assert not journal(out, "event")  # nothing was left to replay, and nothing planned
    (tmp_path / "run.yaml").write_text(dump_config(short_run(tmp_path, tasks=tasks)))
    done = CliRunner().invoke(app, ["plan", str(tmp_path / "run.yaml"), "--json"])
    assert json.loads(done.stdout)["totals"]["replayed"] == 0, done.output


def test_a_resumed_run_ends_the_same(tmp_path, monkeypatch):
    config = short_run(tmp_path)
    with stopped_in(3, monkeypatch):
        run(config, tmp_path, tmp_path / "stopped")
    one, other = run(config, tmp_path, tmp_path / "stopped"), run(config, tmp_path, tmp_path / "whole")
    assert results(one)["matrices"] == results(other)["matrices"]
    assert (one / "buffer/samples.parquet").read_bytes() == (other / "buffer/samples.parquet").read_bytes()


def test_written_samples_and_demonstrations_are_corrected_too(tmp_path, monkeypatch):
    """The model is made to write the old answers again and again, and shows what it is shown."""
    import retain.selfsynthesis as module
    from retain.quality.filters import Candidate
    from retain.synthesis.writer import Written

    prompts = []

    def write(writer, card, count, stage, shown, *rest):
        prompts.append((card.name, stage, list(shown)))
        olds = [Candidate(f"Who holds office {k}?", "Ada", consistency=1.0) for k in (0, 1)]
        return Written(card.name, count, olds[:count])

    monkeypatch.setattr(module.Writer, "write", write)
    monkeypatch.setattr(module, "watch", lambda *rest: {})
    monkeypatch.setattr(module, "drifted", lambda *rest: None)
    config = short_run(
        tmp_path,
        model=str(save_tiny_model(tmp_path / "wide", wide_llama())),
        strategy="ssr",
        schedule={},
        synthesis={"samples": 2, "method": "in-context", "demonstrations": 4, "every": 1},
        curriculum={"kind": "constant", "initial": 0.5},
        filters={"perplexity": None},
    )
    out = run(config, tmp_path)
    assert {one.id.split("/")[0] for one in read_samples(out / "buffer/samples.parquet")} >= {"new", "other"}
    held = [one for one in read_samples(out / "buffer/samples.parquet") if one.task == "old"]
    assert [one.prompt for one in held] == ["Who holds office 1?\nAnswer:\n"]  # office 0 is Cleo's now
    shown = {(name, stage): pairs for name, stage, pairs in prompts}
    first, later = shown["old", 1], shown["old", 3]
    kept = [pair for pair in first if pair[1] == "Bob"]
    assert 0 < len(kept) < len(first) == 4 and later == kept


def test_what_asks_nothing_is_in_no_conflict():
    texts = [Sample(f"{task}/{k}", task, "", f"A whole text, {task} {k}") for task in ("old", "new") for k in (0, 1)]
    assert find_conflicts(texts[:2], [Task("old"), Task("new", train=texts[2:])], {}, 0.9) == []


# ---- beside a trainer and in an export --------------------------------------------------------------------


def stage_of(folder, name, pairs, steps=2, **options):
    """A stage of a trainer over (question, answer) pairs; returns the ids that it replayed."""
    from retain.integrations.replay import Replay, Step

    replay = Replay(folder / "memory", name, **options)
    samples = lambda one, row: Sample(one, name, *pairs[row])  # noqa: E731
    replay.begin(len(pairs), len(pairs), 4, steps, {}, samples)
    again = []
    for _ in range(steps):
        drawn = [sample.id for sample in replay.draw()]
        again += drawn
        count = 4 + len(drawn)
        replay.learn(Step([0, 1, 2, 3], [1.0] * count, [1] * count))
    replay.finish(lambda folder: None, samples)
    return again


OFTEN = {"strategy": "mssr", "schedule": {"kind": "every", "lambda_0": 0.7, "max_mix": 0.9}}
NEWS = [(f"Who holds office {k}?", "Cleo") for k in range(4)]
FIRST = [(f"Who holds office {k}?", "Ada") for k in range(8)]


@pytest.mark.parametrize("policy", ["newest", "keep", "error"])
def test_a_trainer_retires_what_newer_data_correct(policy, tmp_path, caplog):
    stage_of(tmp_path, "old", FIRST, **OFTEN, conflicts=policy)
    if policy == "error":
        with pytest.raises(InputError, match=r"conflicts: error, and 4 stored samples .*old/0 by new/0"):
            stage_of(tmp_path, "new", NEWS)
        return
    again = stage_of(tmp_path, "new", NEWS)
    [line] = journal(tmp_path / "memory", "conflicts")
    assert (line["stage"], line["found"], line["by_task"], line["policy"]) == (2, 4, {"old": 4}, policy)
    assert [old for old, _, _ in line["ids"]] == [f"old/{k}" for k in range(4)]
    assert "stored samples are answered otherwise by it" in caplog.text
    stored = {one.id for one in read_samples(tmp_path / "memory" / "buffer" / "samples.parquet")}
    gone = {f"old/{k}" for k in range(4)}
    assert again and bool(gone & set(again)) == (policy == "keep") and bool(gone & stored) == (policy == "keep")
    plan = journal(tmp_path / "memory", "plan")[-1]
    assert plan["buffer"] == (8 if policy == "keep" else 4)


def test_a_trainers_task_supersedes_another(tmp_path):
    stage_of(tmp_path, "old", FIRST, **OFTEN)
    with pytest.raises(InputError, match=r"supersedes: 'odd' is no task that .* learned before"):
        stage_of(tmp_path, "other", [(f"Say {k}", "x") for k in range(4)], supersedes=["odd"])
    assert stage_of(tmp_path, "other", [(f"Say {k}", "x") for k in range(4)], supersedes=["old"]) == []
    assert stage_of(tmp_path, "third", [(f"Tell {k}", "x") for k in range(4)])
    assert {one.task for one in read_samples(tmp_path / "memory/buffer/samples.parquet")} == {"other", "third"}


def test_a_trainer_finds_what_a_run_finds(tmp_path):
    """The same data by either way: the same samples are retired."""
    out = run(short_run(tmp_path), tmp_path)
    rows = {name: [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
            for name in ("old", "new")}  # fmt: skip
    for name, found in rows.items():
        pairs = [(f"{row['instruction']}\nAnswer:\n", row["output"]) for row in found]
        stage_of(tmp_path, name, pairs, strategy="mssr")
    mine, theirs = (journal(path, "conflicts")[0] for path in (tmp_path / "memory", out))
    assert sorted(mine["ids"]) == sorted(theirs["ids"]) and mine["found"] == theirs["found"] == FACTS // 2


def test_a_gate_beside_a_trainer(tmp_path):
    """Without scores it says nothing; once there are some it raises replay or stops, as in a run."""
    from retain.types import GateError

    limits = {"after_stage": "stop", "nll": 0.5}
    stage_of(tmp_path, "old", FIRST, **OFTEN, gate=limits)
    stage_of(tmp_path, "new", NEWS)
    assert not journal(tmp_path / "memory", "gate")
    path = tmp_path / "memory/stages/02-new/scores.json"
    facts = json.loads(path.read_text())
    facts["scores"] = {"new": {"generated": 0.0, "nll": 2.0, "n": 8, "metric": "exact_match", "truncated": 0}}
    path.write_text(json.dumps(facts))
    with pytest.raises(GateError, match=r"nll of new is 2\.000, at most 0\.5 is allowed"):
        stage_of(tmp_path, "third", NEWS)
    file = tmp_path / "memory" / "config.yaml"
    file.write_text(file.read_text().replace("after_stage: stop", "after_stage: raise_replay"))
    stage_of(tmp_path, "third", [(f"Tell {k}", "x") for k in range(4)])
    ratios = [{event["ratio"] for event in line["events"]} for line in journal(tmp_path / "memory", "plan")[1:]]
    assert [max(found) for found in ratios] == pytest.approx([0.7, 0.9], abs=1e-3)


def test_an_export_has_nothing_that_is_retired(tmp_path):
    from retain.exporting import export

    stage_of(tmp_path, "old", FIRST, **OFTEN)
    rows = [{"instruction": question, "output": answer} for question, answer in NEWS]
    (tmp_path / "new.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    entry = {"name": "new", "train": "new.jsonl", "template": "{instruction}"}
    for name, more in (("conflicts", {}), ("superseded", {"supersedes": ["old"]})):
        (tmp_path / "task.yaml").write_text(json.dumps(entry | more))
        data, _ = export(tmp_path / "memory", "llamafactory", tmp_path / name, tmp_path / "task.yaml")
        found = json.loads(data.read_text())
        old = [row["instruction"] for row in found if row["output"] == "Ada"]
        assert bool(old) == (name == "conflicts") and not set(old) & {question for question, _ in NEWS}
    file = tmp_path / "memory" / "config.yaml"
    file.write_text(file.read_text().replace("valid_until: null", "valid_until: old"))  # as if a later stage ended it
    assert [path.name for path in export(tmp_path / "memory", "jsonl", tmp_path / "all")] == ["README.md"]
