"""`strategy: auto`: which tasks the model can write, what is chosen, and that a run does what it says."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import yaml
from test_run import journal, results
from tiny import save_tiny_model, terse, tiny_llama, tiny_values

from retain import Learner
from retain.choosing import choose, settle, unsuited, usual_tokens
from retain.config import load_config, make_config, with_strategy
from retain.config_yaml import parse_yaml
from retain.presets import Resolved, preset_of
from retain.run import run
from retain.synthesis_sections import SynthesisConfig
from retain.types import Frame, InputError, Sample, Task

DESCRIBED = "Tell whether the review of a film is good or bad."


def task(name="reviews", input="a fine film", answer="good", description=DESCRIBED, choices=(), **fields):
    samples = [Sample(f"{name}/{k}", name, f"Rate: {input}\nAnswer:\n", answer, choices=choices) for k in range(10)]
    return Task(name, samples, description=description, frame=Frame("Rate: ", "\nAnswer:\n"), **fields)


def chat(turns):
    messages = (("user", "hello there"), ("assistant", "hi")) * turns
    return Task("chat", [Sample("chat/0", "chat", "", "hi", messages=messages)], description=DESCRIBED)


# ---- which tasks suit ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (task(), None),
        (task(choices=("good", "bad")), None),
        (task(metric="rouge_l", answer="a short summary of it"), None),
        (chat(1), None),
        (chat(2), "conversations of several turns"),
        (task(description=""), "it has no description"),
        (task(description=" \n"), "it has no description"),
        (task(description="Task 1"), "its description of 2 words is too short to guide"),
        (task(description="Rate reviews of films"), None),
        (task(metric="final_answer"), "results of reasoning"),
        (task(input="word " * 95), None),  # 4/3 · 96 tokens
        (task(input="word " * 97), "inputs of about 130 tokens are longer than synthesis.max_input_tokens 128"),
        (task(input="字" * 600), "inputs of about 150 tokens"),
        (task(answer="word " * 49), "answers of about 66 tokens are longer than synthesis.max_output_tokens 64"),
        (task(answer="word " * 49, choices=("word " * 49, "b")), None),  # a label is not written
    ],
)
def test_which_tasks_the_model_can_write(given, reason):
    found = unsuited(given, SynthesisConfig())
    assert found is None if reason is None else reason in found


def test_limits_are_those_of_the_configuration():
    assert unsuited(task(input="word " * 97), SynthesisConfig(max_input_tokens=256)) is None
    assert unsuited(task(), SynthesisConfig(max_input_tokens=3))


def test_one_long_sample_in_ten_does_not_make_a_task_long():
    assert usual_tokens(["w" * 4] * 9 + ["w" * 400]) == 2  # one word: 4/3 of a token
    assert usual_tokens(["w" * 4] * 8 + ["w" * 400] * 2) == 100
    assert usual_tokens([]) == 0 and usual_tokens(["a b c"]) == 4


# ---- what is chosen --------------------------------------------------------------------------------------

SHORT, LONG, MUTE = task("short"), task("long", input="word " * 500), task("mute", description="")


@pytest.mark.parametrize(
    ("tasks", "keep_data", "strategy", "named"),
    [
        ([SHORT, LONG, MUTE], True, "mssr", ["old data may be kept"]),
        ([SHORT], False, "ssr", ["may not be kept", "every task"]),
        ([SHORT, task("other")], False, "ssr", []),
        ([SHORT, LONG], False, "ssr + ewc", ["long: inputs of about 667 tokens"]),
        ([LONG], False, "ewc", ["long: inputs of about"]),
        ([SHORT, MUTE], False, "ewc", ["mute: it has no description"]),
        ([SHORT, Task("watched", test=[Sample("x", "watched", "x", "y")])], False, "ssr", []),
    ],
)
def test_what_is_chosen(tasks, keep_data, strategy, named):
    choice = choose(tasks, keep_data, SynthesisConfig())
    assert choice.strategy == preset_of(choice.strategy).name == strategy
    assert all(words in choice.why for words in named)
    assert set(choice.unsuited) == {one.name for one in tasks} & {"long", "mute"}


def test_auto_is_a_strategy_that_stands_alone():
    assert preset_of("auto") == Resolved("auto")
    with pytest.raises(InputError, match="'auto' chooses the whole strategy and stands alone"):
        preset_of("auto + ewc")
    with pytest.raises(InputError, match="did you mean 'auto'"):
        preset_of("autoo")


def test_another_strategy_lays_its_defaults_under_the_keys_that_were_given():
    config = make_config({"tasks": ["iso_date"], "strategy": "auto", "schedule": {"eta_p": 0.7}}, "test")
    one, two = (
        with_strategy(config, "fixed"),
        make_config({"tasks": ["iso_date"], "strategy": "fixed", "schedule": {"eta_p": 0.7}}, "test"),
    )
    assert one == two and one.schedule.kind == "fixed"
    given = make_config({"tasks": ["iso_date"], "strategy": "auto", "schedule": {"kind": "every"}}, "test")
    assert with_strategy(given, "fixed").schedule.kind == "every"


def test_what_keeps_data_is_refused_where_data_may_not_be_kept():
    def complaint(**values):
        with pytest.raises(InputError, match=r"^test: keep_data: false, but ") as caught:
            make_config({"tasks": ["iso_date"], "keep_data": False, **values}, "test")
        return str(caught.value)

    assert "strategy 'mssr' keeps samples of past tasks" in complaint()
    assert "strategy 'ewc + gem' keeps" in complaint(strategy="ewc + gem")
    assert "storage.mode: hybrid" in complaint(strategy="ssr", storage={"mode": "hybrid"})
    assert "synthesis.demonstrations: 20" in complaint(strategy="ssr-paper")
    for strategy in ("auto", "ssr", "lamol", "ssr + mssr + ewc + gem", "ewc", "none", "joint"):
        assert not make_config({"tasks": ["iso_date"], "keep_data": False, "strategy": strategy}, "test").keep_data


# ---- runs and plans --------------------------------------------------------------------------------------


def values(folder, *descriptions, **changes):
    given = tiny_values(folder, **{"strategy": "auto", **changes})
    given["tasks"] = given["tasks"][: len(descriptions)]
    for one, description in zip(given["tasks"], descriptions, strict=True):
        one["description"] = description
    given["training"] |= {"max_steps": 2}
    given["synthesis"] = {"samples": 4, "max_input_tokens": 16, "max_output_tokens": 4}
    given["filters"] = {"heuristics": False, "perplexity": None, "consistency": None, "diversity": None}
    return given


def test_a_run_takes_what_suits_it_and_says_so(tmp_path, caplog):
    caplog.set_level("INFO", "retain")
    given = values(tmp_path, DESCRIBED, "Name the size of it", keep_data=False)
    given["model"] = str(save_tiny_model(tmp_path / "terse", terse(tiny_llama())))
    out = run(make_config(given, "test"), tmp_path)
    assert results(out)["strategy"] == "ssr"
    [line] = journal(out, "choice")
    assert (line["strategy"], line["unsuited"]) == ("ssr", {}) and "may not be kept" in line["why"]
    assert caplog.text.count("strategy: auto takes ssr: old data may not be kept") == 1
    assert load_config(out / "config.yaml").strategy == "ssr"
    assert (out / "stages" / "01-color" / "tasks.json").is_file()
    run(make_config(given, "test"), tmp_path)  # chooses the same, so it resumes


def test_a_settled_configuration_is_the_one_that_names_the_strategy(tmp_path):
    config = make_config(values(tmp_path, DESCRIBED, ""), "test")
    settled, tasks, choice = settle(config, tmp_path)
    assert settled == with_strategy(config, "mssr") and choice.unsuited == {"size": "it has no description"}
    assert [one.name for one in tasks] == ["color", "size"]
    named = make_config(values(tmp_path, DESCRIBED, "", strategy="er"), "test")
    assert settle(named, tmp_path)[0] is named


def test_validation_samples_are_split_off_where_the_choice_needs_them(tmp_path):
    given = values(tmp_path, DESCRIBED, keep_data=False, curriculum={"kind": "adaptive"})
    _, [chosen], _ = settle(make_config(given, "test"), tmp_path)
    assert (len(chosen.train), len(chosen.validation)) == (8, 16)
    _, [stored], _ = settle(make_config(given | {"keep_data": True}, "test"), tmp_path)
    assert (len(stored.train), len(stored.validation)) == (24, 0)


def test_what_the_choice_brings_is_checked_too(tmp_path):
    given = values(tmp_path, DESCRIBED, keep_data=False, storage={"mode": "hybrid"})
    with pytest.raises(InputError, match=r"strategy 'ssr': keep_data: false, but storage.mode: hybrid"):
        settle(make_config(given, "test"), tmp_path)


def test_the_learner_cannot_choose(tmp_path):
    with pytest.raises(InputError, match="strategy: auto looks at all tasks at once; use `retain run`"):
        Learner(strategy="auto", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "strategy: auto takes mssr: old data may be kept"),
        ({"keep_data": False}, "strategy: auto takes ewc: old data may not be kept"),
        ({"strategy": "er"}, "strategy: auto would take mssr"),
    ],
)
def test_the_plan_says_what_suits(tmp_path, changes, said):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(values(tmp_path, DESCRIBED, "", **changes)))
    command = [sys.executable, "-m", "retain", "plan", str(path)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said in shown
    assert "rehearsal by synthesis does not suit size: it has no description" in " ".join(shown.split())
    plan = json.loads(subprocess.run([*command, "--json"], capture_output=True, text=True, check=True).stdout)
    assert plan["choice"]["taken"] == ("strategy" not in changes)
    assert plan["choice"]["unsuited"] == {"size": "it has no description"}
    named = {"strategy": plan["choice"]["strategy"]} if plan["choice"]["taken"] else {}
    again = parse_yaml(path.read_text(), "run")[0] | named
    path.write_text(yaml.safe_dump(again))
    named = json.loads(subprocess.run([*command, "--json"], capture_output=True, text=True, check=True).stdout)
    assert named["stages"] == plan["stages"]
