"""General data that the untouched model writes before the first stage."""

from __future__ import annotations

import json
import re

import pyarrow.parquet as pq
import pytest
import torch
from test_losses import language_model
from test_run import adapter, journal, results, run_tiny, same_tensors
from tiny import save_tiny_model, terse, tiny_llama, tiny_t5, tiny_values

import retain.stages
from retain.cards import TaskCard
from retain.cli_views import make_plan
from retain.config import dump_config, load_config, make_config
from retain.quality.filters import Reference
from retain.run import run
from retain.synthesis.general import GeneralWriter, chat_opening, halves
from retain.types import InputError

CHAT = (
    "{% if messages[0]['role'] != 'system' %}<s>Be kind.</s>{% endif %}"
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
OPEN = {"heuristics": False, "perplexity": None, "diversity": None, "consistency": None}
SHORT = {"samples": 6, "max_input_tokens": 12, "max_output_tokens": 6, "max_joint_tokens": 16}


def values(folder, model=None, **changes):
    given = tiny_values(folder, synthesis=SHORT, filters=OPEN, buffer={"seed": {"synthesize": {"samples": 6}}})
    given |= {"model": str(save_tiny_model(folder / "terse", terse(model or tiny_llama()))), **changes}
    given["tasks"] = [{**one, "description": "Name what the text tells"} for one in given["tasks"][:2]]
    given["training"] |= {"max_steps": 3}
    return given


def start(folder, out=None, **changes):
    return run_tiny(folder, out, **values(folder, **changes))


def stored(out):
    return [row for row in pq.read_table(out / "buffer" / "samples.parquet").to_pylist() if row["task"] == "seed"]


def replayed(out, stage):
    return sum(event["by_task"].get("seed", 0) for event in journal(out, "event") if event["stage"] == stage)


# ---- what is written -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "finished", "pair"),
    [
        ("one two three four", True, ("one two", " three four")),
        ("one two three", True, ("one", " two three")),
        ("One is. Two is not. And thr", False, ("One is.", " Two is not.")),
        ("One is. Two is not. And thr", True, ("One is. Two", " is not. And thr")),
        ("no end of it", False, ("no end", " of it")),
        ("version 1.5 of it", False, ("version 1.5", " of it")),
        ("word", True, ("wo", "rd")),
        ("w", True, ("", "w")),
        ("", True, ("", "")),
    ],
)
def test_halves(text, finished, pair):
    assert halves(text, finished) == pair


def chat_model():
    lm = language_model(torch.float32, terse(tiny_llama()))
    lm.tokenizer.chat_template = CHAT
    return lm


def test_a_chat_opens_where_the_users_words_begin():
    lm = chat_model()
    assert lm.tokenizer.decode(chat_opening(lm)) == "<s>Be kind.</s><user>"
    lm.tokenizer.chat_template = "{{ messages | tojson | upper }}"
    assert chat_opening(lm) == []
    lm.tokenizer.chat_template = None
    assert chat_opening(lm) == []


def seeds(lm, **changes):
    given = {"tasks": [], "buffer": {"seed": "synthesize"}, "synthesis": SHORT, "filters": OPEN, **changes}
    writer = GeneralWriter(lm, make_config(given, "test", need_tasks=False))
    card = TaskCard("seed", "", writer.frame, Reference(), 6, 0)
    return writer, card, writer.write(card, 6, 0)


def test_a_chat_model_writes_what_a_user_says_and_answers_it(monkeypatch):
    lm, asked = chat_model(), []
    real = retain.synthesis.writer.sample
    monkeypatch.setattr(
        retain.synthesis.writer, "sample", lambda lm, prompts, *rest, **options: asked.append(prompts)
        or real(lm, prompts, *rest, **options)
    )  # fmt: skip
    _, card, written = seeds(lm)
    openings, answers = ([lm.tokenizer.decode(ids) for ids in prompts] for prompts in asked[:2])
    assert set(openings) == {"<s>Be kind.</s><user>"}
    for one in written.kept:
        assert f"<s>Be kind.</s><user>{one.input}<end><assistant>" in answers
        assert card.sample("", one.input, one.answer).messages == (("user", one.input), ("assistant", one.answer))


@pytest.mark.parametrize("model", [tiny_llama, tiny_t5])
def test_any_other_model_goes_on_from_its_beginning(model):
    lm = language_model(torch.float32, terse(model()), target_modules=None)
    writer, card, written = seeds(lm)
    assert writer.opening == [1] and not card.frame.chat and len(written.kept) == 6
    assert all(one.input and one.answer for one in written.kept)


def test_a_begin_of_text_token_is_the_opening():
    lm = language_model(torch.float32, tiny_llama())
    lm.tokenizer.add_special_tokens({"bos_token": "<pad>"})
    assert GeneralWriter(lm, make_config({"tasks": []}, "test", need_tasks=False)).opening == [0]


def test_the_filters_are_those_that_need_no_task():
    lm = language_model(torch.float32, terse(tiny_llama()))
    strict = {"heuristics": True, "perplexity": 1.5, "consistency": 1.0, "balance": True, "diversity": None}
    _, _, written = seeds(lm, filters=strict)
    assert written.kept == [] and set(written.dropped) == {"unreadable", "heuristics", "perplexity"}
    near = seeds(lm, filters=OPEN | {"diversity": 0.0, "similarity": "jaccard"})[2]
    assert near.dropped["diversity"] > 0 and near.generated > 6


# ---- in a run --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["er", "fixed", "mssr", "ssr", "ssr + mssr", "lamol"])
def test_it_is_rehearsed_from_the_first_stage_on(strategy, tmp_path):
    out = start(tmp_path, strategy=strategy)
    rows = stored(out)
    assert [row["id"] for row in rows] == [f"seed/synthetic/0/{k}" for k in range(6)]
    assert all(row["prompt"] and row["answer"] and row["confidence"] is None for row in rows)
    assert replayed(out, 1) > 0
    [line] = [one for one in journal(out, "synthesis") if one["stage"] == 0]
    assert (line["task"], line["asked"], line["kept"]) == ("seed", 6, 6)
    base = json.loads((out / "stages" / "00-base" / "scores.json").read_text())["costs"]
    answered = sum(one["generated_tokens"] for one in journal(out, "evaluation") if one["row"] == 0)
    assert base["generated_tokens"] == line["generated_tokens"] + answered > answered
    assert base["seconds"] > line["seconds"] > 0


def test_it_acts_on_the_first_stage(tmp_path):
    one = start(tmp_path, strategy="er")
    other = start(tmp_path, tmp_path / "other", strategy="er", buffer={})
    assert not same_tensors(adapter(one, 1), adapter(other, 1))
    assert [row["task"] for row in pq.read_table(other / "buffer" / "samples.parquet").to_pylist()].count("seed") == 0


def test_it_is_written_once_and_a_run_that_was_stopped_goes_on_with_it(tmp_path, monkeypatch):
    whole = start(tmp_path, tmp_path / "whole")

    def stop(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(retain.stages, "train_stage", stop)
        with pytest.raises(KeyboardInterrupt):
            start(tmp_path)
    before = stored(tmp_path / "run")
    assert len(before) == 6
    out = start(tmp_path)
    assert stored(out) == before == stored(whole)
    assert len([one for one in journal(out, "synthesis") if one["stage"] == 0]) == 1
    assert same_tensors(adapter(out), adapter(whole))


def test_a_strategy_that_keeps_nothing_writes_nothing(tmp_path, caplog):
    out = start(tmp_path, strategy="none")
    assert not stored(out) and not journal(out, "synthesis")
    said = [text for text in caplog.messages if "buffer.seed" in text]
    assert said == ["buffer.seed: strategy none keeps no buffer, so nothing of it is rehearsed"]


@pytest.mark.parametrize("written", [True, False])
def test_what_exceeds_the_capacity_is_said(written, tmp_path, caplog):
    given = values(tmp_path, strategy="fixed")
    file = {"train": "shape_train.jsonl", "max_train": 6}
    given["buffer"] = {"capacity": 4, "seed": given["buffer"]["seed"] if written else file}
    out = run_tiny(tmp_path, **given)
    said = [text for text in caplog.messages if "buffer.seed" in text]
    assert said == ["buffer.seed: 6 samples and buffer.capacity is 4; 2 are left out"]
    assert [(line["samples"], line["kept"]) for line in journal(out, "seed")] == [(6, 4)]


def test_the_scores_of_another_run_do_not_take_its_place(tmp_path):
    plain = start(tmp_path, tmp_path / "plain", strategy="none")
    config = make_config(values(tmp_path), "test")
    out = run(config, tmp_path, tmp_path / "seeded", start=[plain / "stages" / "00-base"])
    assert len(stored(out)) == 6
    assert results(out)["matrix"][0] == results(plain)["matrix"][0]


def test_similarity_knows_where_the_seed_lies(tmp_path):
    out = start(tmp_path, strategy="ssr", curriculum={"kind": "similarity", "split": "similarity"})
    assert replayed(out, 1) > 0 and replayed(out, 2) > 0


@pytest.mark.parametrize("strategy", ["mssr", "ssr"])
def test_the_plan_counts_it(strategy, tmp_path):
    given = values(tmp_path, strategy=strategy)
    seeded, plain = (
        make_plan(make_config(given | {"buffer": buffer}, "test"), tmp_path) for buffer in (given["buffer"], {})
    )
    amounts = [
        [sum(event["replayed"] for event in stage["events"]) for stage in plan["stages"]] for plan in (seeded, plain)
    ]
    assert amounts[0][0] > 0 == amounts[1][0]
    out = run_tiny(tmp_path, **given)
    happened = [sum(one["replayed"] for one in journal(out, "event") if one["stage"] == stage) for stage in (1, 2)]
    assert happened == amounts[0]


def test_where_nothing_passes_the_run_goes_on_without(tmp_path, caplog):
    out = start(tmp_path, strategy="mssr", filters=OPEN | {"perplexity": 1.1})
    assert results(out)["finished"] and not stored(out)
    assert "buffer.seed: 0 of 6 samples; 0 of 30 candidates were kept" in caplog.text


# ---- the configuration -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seed", "samples"),
    [("synthesize", 200), ({"synthesize": {}}, 200), ({"synthesize": {"samples": 9}, "name": "general"}, 9)],
)
def test_ways_to_ask_for_it(seed, samples, tmp_path):
    config = make_config({"tasks": ["iso_date"], "buffer": {"seed": seed}}, "test")
    assert config.written_seed == samples and config.buffer.seed.train is None
    (tmp_path / "run.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "run.yaml") == config


@pytest.mark.parametrize(
    ("seed", "message"),
    [
        ({"synthesize": {"sample": 3}}, "buffer.seed.synthesize.sample: unknown key; did you mean samples?"),
        ({"synthesize": {"samples": 0}}, "buffer.seed.synthesize.samples: 0 is too small"),
        ({"synthesize": 5}, "buffer.seed.synthesize: 5 is not a section"),
        ({"synthesize": {}, "train": "a.jsonl"}, "buffer.seed.synthesize: the seed is either written (synthesize) or"),
    ],
)
def test_a_wrong_seed_is_named(seed, message):
    with pytest.raises(InputError, match=re.escape(message)):
        make_config({"tasks": ["iso_date"], "buffer": {"seed": seed}}, "test")
