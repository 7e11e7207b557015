"""The report: complete, self-contained, escaped, readable from broken runs, and drawn by a real browser."""

from __future__ import annotations

import gzip
import html
import json
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path

import pytest
import yaml
from report_fixture import CONFIG_ATTACK, HOSTILE, HOSTILE_TEXTS, STEPS, TASKS, build_run
from rich.console import Console

from retain.buffer import Buffer
from retain.report import comparison_svg, write_comparison, write_report
from retain.report.rundata import current, read_run
from retain.report.scores import below
from retain.report.svg import Markup, clean, join, spread, tag, ticks
from retain.report.tables import compare_table, run_table
from retain.report.training import running_mean
from retain.report.words import MINUS, NOTHING, compact, cost, duration, number, signed
from retain.sections import BufferConfig, MemoryModel
from retain.types import InputError, Sample

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SECTIONS = (
    "Scores", "Replay", "Training loss", "Memory", "Replay against the plan", "Costs", "Metrics", "Config",
)  # fmt: skip
SYNTHESIS = ("Synthesis", "Drift of the generator", "Curriculum", "Synthetic samples")
EVERY_FIGURE = ("Replay timeline", "Training loss", "Memory strength")


class Page(HTMLParser):
    """The parts of a page the tests ask about."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.headings: list[str] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "link", "input"):
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        where = self._open[-1] if self._open else ""
        if where in ("h2", "summary"):
            self.headings.append(data)
        if where not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.words))

    def labels(self) -> list[str]:
        return [attributes.get("aria-label", "") for tag, attributes in self.tags if tag == "svg"]


def report(path: Path) -> Page:
    return Page(write_report(path).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def mssr(tmp_path_factory) -> Path:
    return build_run(tmp_path_factory.mktemp("runs") / "mssr", "mssr")


@pytest.fixture(scope="module")
def ssr(tmp_path_factory) -> Path:
    return build_run(tmp_path_factory.mktemp("runs") / "ssr", "ssr")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> Path:
    return build_run(tmp_path_factory.mktemp("runs") / "hostile", "mssr", HOSTILE, evaluation_only=(HOSTILE[0] + "2",))


@pytest.fixture(scope="module")
def hostile_ssr(tmp_path_factory) -> Path:
    run = build_run(tmp_path_factory.mktemp("runs") / "hostile ssr", "ssr", HOSTILE, texts=HOSTILE_TEXTS)
    review = {"id": f"{HOSTILE[0]}/synthetic/1/0", "task": HOSTILE[0], "rater": HOSTILE[1], "rating": True}
    (run / "reviews.jsonl").write_text(json.dumps(review) + "\n")
    return run


# --- contents ---------------------------------------------------------------------------------------


def test_the_sections_come_in_order_and_every_figure_is_there(mssr):
    page = report(mssr)
    assert tuple(page.headings) == SECTIONS
    for figure in EVERY_FIGURE:
        assert sum(label.startswith(figure) for label in page.labels()) == 2, "one for a screen, one for a phone"


def test_the_headline_says_where_it_ended_and_what_was_forgotten(mssr):
    results = json.loads((mssr / "results.json").read_text())
    matrix, metrics = results["matrix"], results["metrics"]
    falls = {task: matrix[i + 1][i] - matrix[-1][i] for i, task in enumerate(TASKS[:-1])}
    worst = max(falls, key=falls.get)
    text = report(mssr).text
    assert f"After 4 tasks the average score is {metrics['ACC']:.2f}, against " in text
    assert f"it lost {-metrics['BWT']:.2f} on average, most on {worst} (" in text
    assert "Never trained on: mmlu 0.31 → 0.27." in text


def test_the_title_names_strategy_model_seed_time_and_versions(mssr):
    text = report(mssr).text
    assert "mssr" in text and "smollm2-135m · seed 42 · 2026-03-01 00:01 UTC · retain 0.1.0, torch 2.13.0" in text
    assert "3 samples were longer than the limit and cut. Invalid rows left out: sst2 2." in text


def test_the_heatmap_holds_every_score_and_sets_evaluation_only_tasks_apart(mssr):
    page = write_report(mssr).read_text(encoding="utf-8")
    table = re.search(r'<div data-view="generated">.*?<table class="heat">(.*?)</table>', page, re.S)[1]
    results = json.loads((mssr / "results.json").read_text())
    written = re.findall(r"<span>([\d.]+)</span>", table)
    others = results["evaluation_only"]["matrices"]["generated"]
    expected = [f"{cell:.2f}" for row, other in zip(results["matrix"], others, strict=True) for cell in row + other]
    assert written == expected
    assert len(re.findall('class="own', table)) == len(TASKS)
    assert table.count('class="gap"') == len(TASKS) + 3  # head, base row, a row a stage, foot


def test_each_measure_has_a_view_and_only_the_first_one_shows(mssr):
    views = [attributes for tag, attributes in report(mssr).tags if "data-view" in attributes]
    assert [view["data-view"] for view in views] == ["generated", "likelihood", "likelihood_summed", "nll"]
    assert ["hidden" in view for view in views] == [False, True, True, True]


def test_a_better_nll_is_a_deeper_cell(mssr):
    page = write_report(mssr).read_text(encoding="utf-8")
    table = re.search(r'<div data-view="nll".*?<table class="heat">(.*?)</table>', page, re.S)[1]
    cells = [(float(fill), float(score)) for fill, score in re.findall(r"--fill:([\d.]+).*?<span>([\d.]+)<", table)]
    assert min(cells)[1] == max(score for _, score in cells)
    assert max(cells)[1] == min(score for _, score in cells)


def test_delivered_and_planned_replay_and_what_came_after_the_last_event(mssr):
    page = write_report(mssr).read_text(encoding="utf-8")
    row = re.search(r'<th scope="row">2 ag_news</th>.*?</tr>', page)[0]
    cells = re.findall(r'<td class="n">([^<]+)', row)
    steps = [r for r in read_run(mssr).records("step") if r["stage"] == 2]
    planned = sum(event["replayed"] for event in read_run(mssr).plans[2]["events"])
    share = planned / (planned + sum(step["new"] for step in steps))
    after = sum(step["new"] for step in steps if step["step"] > 35)  # the plan's last event
    assert cells == ["7 of 7", str(planned), str(planned), f"{share:.2f}", str(after)]
    assert after == 40 and "no buffer yet" in page


def test_replay_that_was_not_delivered_shows(tmp_path):
    run = build_run(tmp_path / "run")
    lines = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    for record in lines:
        if record["kind"] == "step" and record["stage"] == 2:
            record["replayed"] = 1
    (run / "journal.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert f"{STEPS} delivered of 121 planned" in write_report(run).read_text(encoding="utf-8")


def test_metrics_carry_their_definitions(mssr):
    explained = [a["data-tip"] for _, a in report(mssr).tags if a.get("class") == "explained"]
    assert len(explained) == 9 and any("MSSR Eq. 1)" in tip for tip in explained)


def test_nll_has_no_metric_that_takes_high_for_good(mssr):
    page = write_report(mssr).read_text(encoding="utf-8")
    row = re.search(r">Forgetting</span>.*?</tr>", page)[0]
    assert row.endswith('<td class="n">' + NOTHING + "</td></tr>")


# --- other kinds of run -----------------------------------------------------------------------------


def test_a_run_without_replay_says_so_and_draws_no_empty_chart(tmp_path):
    page = report(build_run(tmp_path / "none", "none"))
    assert "This run replayed nothing: strategy none is plain fine-tuning." in page.text
    assert "No memory was recorded in this run." in page.text
    assert "Nothing was planned, nothing was replayed." in page.text
    assert not any(label.startswith(("Replay", "Memory")) for label in page.labels())


def test_a_joint_run(tmp_path):
    page = report(build_run(tmp_path / "joint", "joint"))
    assert "After 4 tasks at once the average score is" in page.text
    assert "all tasks are trained in one stage" in page.text
    assert "Backward transfer" not in page.text and "Final average" in page.text


def test_one_task(tmp_path):
    page = report(build_run(tmp_path / "one", "mssr", ("sst2",), evaluation_only=()))
    assert "After one task the average score is" in page.text


@pytest.mark.parametrize("results", [True, False], ids=["results.json", "journal alone"])
def test_an_unfinished_run(tmp_path, results):
    page = report(build_run(tmp_path / "run", stages=2, results=results))
    assert "Unfinished: 2 of 4 stages are done. The tasks learned so far score" in page.text
    assert tuple(page.headings) == SECTIONS


def test_a_run_that_has_evaluated_nothing(tmp_path):
    run = build_run(tmp_path / "run", stages=0, results=False)
    (run / "journal.jsonl").write_text('{"kind":"start","strategy":"mssr","seed":1}\n')
    page = report(run)
    for sentence in ("Nothing has been evaluated yet.", "This run replayed nothing so far.",
                     "No training step is recorded yet.", "Costs are written when a run ends."):  # fmt: skip
        assert sentence in page.text


def test_the_journal_alone_gives_the_same_scores(tmp_path):
    whole, torn = build_run(tmp_path / "a"), build_run(tmp_path / "b", results=False)
    first, second = read_run(whole).results, read_run(torn).results
    for key in ("tasks", "matrices", "joint", "finished", "strategy", "seed"):
        assert first[key] == second[key]
    assert first["evaluation_only"]["matrices"] == second["evaluation_only"]["matrices"]


def test_many_tasks_and_many_steps_stay_small(tmp_path):
    run = build_run(tmp_path / "run", "er", tuple(f"task {index}" for index in range(15)))
    assert write_report(run).stat().st_size < 1_500_000


def test_a_diverged_run_still_gets_its_report(tmp_path):
    run = build_run(tmp_path / "run")
    text = (run / "journal.jsonl").read_text().replace('"new_loss": ', '"new_loss": NaN, "was": ')
    (run / "journal.jsonl").write_text(text)
    results = json.loads((run / "results.json").read_text())
    results["matrices"]["nll"][4][1] = float("nan")
    (run / "results.json").write_text(json.dumps(results))
    assert "nan" not in re.sub(r"<script>.*?</script>", "", write_report(run).read_text(encoding="utf-8"))


def test_a_stage_that_was_done_over_counts_once(tmp_path):
    run = build_run(tmp_path / "run")
    records = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    first_try = [record for record in records if record.get("stage") == 2 and record["kind"] != "stage_end"][:30]
    start = records.index(next(record for record in records if record.get("stage") == 2))
    resumed = [*records[:start], *first_try, {"kind": "resume", "skipped": ["sst2"]}, *records[start:]]
    kept = current(resumed)
    for kind in ("step", "event"):
        assert [r for r in kept if r["kind"] == kind] == [r for r in records if r["kind"] == kind]


# --- synthesis --------------------------------------------------------------------------------------


def with_records(run: Path, change) -> Path:
    """The run with each of its journal's records passed through `change`; None leaves one out."""
    records = [change(json.loads(line)) for line in (run / "journal.jsonl").read_text().splitlines()]
    (run / "journal.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records if record))
    return run


def section(page: str, title: str) -> str:
    return re.search(rf"<section><h2>{title}</h2>(.*?)</section>", page, re.S)[1]


def test_a_run_that_synthesizes_has_its_own_sections(ssr):
    page = report(ssr)
    assert tuple(page.headings) == (*SECTIONS[:5], *SYNTHESIS, *SECTIONS[5:])
    assert page.labels().count("Curriculum") == 2, "one for a screen, one for a phone"


def test_the_funnel_says_what_each_filter_dropped_and_what_it_cost(ssr):
    part = section(write_report(ssr).read_text(encoding="utf-8"), "Synthesis")
    row = re.search(r'<th scope="row"[^>]*>2 ag_news</th>.*?</tr>', part, re.S)[0]
    assert re.findall(r'<td class="n">([^<]+)', row) == ["195", "100", "100", "9,002", "31.5 s"]
    tip = html.unescape(re.search(r'data-tip="([^"]+)"', row.split("</th>")[1])[1])
    assert tip.splitlines() == [
        "kept: 100", "more than asked: 20", "dropped by unreadable: 3", "dropped by heuristics: 50",
        "dropped by consistency: 12", "dropped by perplexity: 8", "dropped by diversity: 2",
    ]  # fmt: skip
    assert "heuristics (&lt;i&gt;no words&lt;/i&gt; 2) dropped most." in row
    widths = [float(width) for width in re.findall(r'<rect[^>]* width="([\d.]+)"', row)]
    shares = [width + 1 for width in widths]  # a pixel between two parts
    assert shares[0] / shares[3] == pytest.approx(100 / 50, rel=0.02) and sum(shares) <= 261
    assert "kept 400" in part and f"dropped by heuristics {45 + 50 + 55 + 60}" in part


def test_the_funnel_of_a_model_that_writes_nothing(tmp_path):
    empty = {"generated": 0, "kept": 0, "dropped": {}, "account": "no candidate was generated", "drift": None}
    run = build_run(tmp_path / "run", "ssr")
    page = report(with_records(run, lambda r: {**r, **empty} if r["kind"] == "synthesis" else r))
    assert "no candidate was generated" in page.text
    assert "nothing was generated" in [a.get("data-tip") for _, a in page.tags]


def test_drift_stands_beside_the_real_samples_and_warns(ssr):
    part = section(write_report(ssr).read_text(encoding="utf-8"), "Drift of the generator")
    row = re.search(r'<th scope="row" class="loss">3 trec</th>.*?</tr>', part, re.S)[0]
    cells = re.findall(r'<td class="n">(?:<span[^>]*>)?([^<]+)', row)
    assert cells == ["43.0", "120.0", "0.31", "12.50", "0.10", "0.71", "0.93", "0.98"]
    assert 'data-tip="&lt;b&gt;good&lt;/b&gt;: 0.60\nbad: 0.40"' in row
    warnings = re.findall(r'<p class="warning">(.*?)</p>', part)
    assert len(warnings) == 1 and warnings[0].startswith("Stage 3, trec: perplexity 120.0 against 43.0 of real")
    assert "falls by 0.1" in warnings[0]


def test_what_is_not_known_of_a_drift_is_a_dash(tmp_path):
    unknown = dict.fromkeys(("perplexity_real", "unigram_divergence", "hidden_divergence"))

    def blind(record):
        return {**record, "drift": record["drift"] | unknown} if record["kind"] == "synthesis" else record

    part = section(write_report(with_records(build_run(tmp_path / "run", "ssr"), blind)).read_text(), "Drift of .*?")
    assert part.count(f'<td class="n">{NOTHING}</td>') == 3 * len(TASKS)


def test_the_curriculum_shows_what_was_planned_asked_and_mixed(ssr):
    tips = [a.get("data-tip", "") for _, a in report(ssr).tags]
    asked = next(r for r in read_run(ssr).records("event") if r["stage"] == 2)
    mixed = next(r for r in read_run(ssr).records("step") if r["global_step"] == asked["global_step"])
    share, planned = mixed["replayed"] / (mixed["replayed"] + mixed["new"]), 0.2 + 0.6 * asked["step"] / STEPS
    tip = f"step {asked['global_step']}\nasked {asked['ratio']:.2f}, mixed in {share:.2f}\nplanned {planned:.2f}"
    assert tip in tips


def test_an_adaptive_curriculum_shows_its_losses_and_no_plan(tmp_path):
    page = report(build_run(tmp_path / "run", "ssr", curriculum={"kind": "adaptive"}))
    tips = [a.get("data-tip", "") for _, a in page.tags]
    assert f"step {STEPS + 8}\nnew 1.760" in tips and f"step {STEPS + 8}\npast 0.840" in tips
    assert not any("planned" in tip and tip.startswith("step") for tip in tips)


@pytest.mark.parametrize("strategy", ["ssr + mssr", "nonsense"])
def test_a_run_whose_amounts_a_memory_schedule_sets_has_no_curriculum(tmp_path, strategy):
    run = build_run(tmp_path / "run", "ssr")
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump({**config, "strategy": strategy}))
    page = report(run)
    assert "Curriculum" not in page.headings and "Synthesis" in page.headings
    assert "falls by" not in page.text


def test_without_kept_real_samples_only_synthetic_ones_are_shown(ssr):
    part = section(write_report(ssr).read_text(encoding="utf-8"), "Synthetic samples")
    assert "No real ones stand beside them: storage mode stored keeps none" in part
    assert len(re.findall(r"\d synthetic text \d", part)) == 4 * len(TASKS) and " real " not in part.split("kept.")[1]


def test_real_samples_stand_beside_where_the_run_keeps_them(tmp_path):
    hybrid = build_run(tmp_path / "hybrid", "ssr", storage="hybrid")
    shown = build_run(tmp_path / "shown", "ssr")
    row = {"task": "trec", "input": "a shown one", "answer": "good"}
    (shown / "stages" / "04-4" / "demonstrations.jsonl").write_text(json.dumps(row) + "\n")
    text = report(hybrid).text
    assert all(len(re.findall(rf"{task} real \d", text)) == 4 for task in TASKS) and "No real ones" not in text
    assert "a shown one" in report(shown).text


def test_a_cache_is_shown_and_what_is_written_on_demand_is_not_there(tmp_path):
    cached = report(build_run(tmp_path / "cached", "ssr", storage="cached")).text
    assert re.search(r"dbpedia ?written by the model ?4 synthetic text \d", cached) and "Say:" not in cached
    page = report(build_run(tmp_path / "run", "ssr", storage="on-demand"))
    assert "There are no synthetic samples to show: storage mode on-demand keeps none." in page.text


def test_general_data_of_the_untouched_model_are_shown(tmp_path):
    run = build_run(tmp_path / "run", "mssr")
    facts = {"perplexity_real": None, "perplexity_synthetic": 9.0, "labels": {}}
    line = {"kind": "synthesis", "stage": 0, "task": "seed", "when": "start", "asked": 2, "generated": 2, "kept": 2,
            "dropped": {}, "generated_tokens": 64, "seconds": 1.5, "drift": facts}  # fmt: skip
    journal = (run / "journal.jsonl").read_text()
    (run / "journal.jsonl").write_text(json.dumps(line) + "\n" + journal)
    buffer = Buffer(BufferConfig(), MemoryModel())
    chat = (("user", "what anyone asks"), ("assistant", "what is said"))
    buffer.seed_with([Sample("seed/synthetic/0/0", "seed", "", "what is said", messages=chat)])
    buffer.admit([Sample("sst2/0", "sst2", "a real sample", "good")], 0, {}, 1)
    buffer.save(run / "buffer")
    page = report(run)
    assert "Synthesis" in page.headings and "Curriculum" not in page.headings
    assert "0 seed" in page.text and "what anyone askswhat is said" in page.text and "a real sample" not in page.text


def test_what_people_said_is_in_the_report(tmp_path):
    run = build_run(tmp_path / "run", "ssr")
    lines = [{"id": f"sst2/synthetic/1/{k}", "task": "sst2", "rater": "ada", "rating": k > 0} for k in range(4)]
    (run / "reviews.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "Approved by people: sst2 0.75 (4 of 100 samples, 1 person)." in report(run).text


def test_synthesis_of_a_stage_that_was_done_over_counts_once(tmp_path):
    run = build_run(tmp_path / "run", "ssr", curriculum={"kind": "adaptive"})
    records = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    again = [record for record in records if record.get("stage") == 4]
    kept = current([*records, *again])
    for kind in ("synthesis", "curriculum"):
        assert [r for r in kept if r["kind"] == kind] == [r for r in records if r["kind"] == kind]


def test_broken_files_of_samples_are_named(tmp_path):
    run = build_run(tmp_path / "run", "ssr")
    path = run / "stages" / "02-2" / "synthetic.jsonl.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    broken(run, r"synthetic\.jsonl\.gz: is not what a run wrote or is broken")
    path.write_bytes(gzip.compress(b'{"id": "a", "task": "b", "input": 3, "answer": ""}\n'))
    broken(run, r'line 1: no text under "input"')


# --- broken input -----------------------------------------------------------------------------------


def broken(path: Path, message: str):
    with pytest.raises(InputError) as caught:
        write_report(path)
    assert re.search(message, str(caught.value)), caught.value
    assert not (path / "report.html").exists()


def test_no_directory(tmp_path):
    broken(tmp_path / "nowhere", "nowhere: no such directory; give the output directory")


def test_not_a_run_directory(tmp_path):
    broken(tmp_path, "neither results.json nor journal.jsonl is there")


def test_broken_results(tmp_path):
    run = build_run(tmp_path / "run")
    (run / "results.json").write_text('{"tasks": ["a"],\n "matrix": [[0.1],')
    broken(run, r"results\.json: broken JSON at line 2, .* delete the file")


@pytest.mark.parametrize("text", ["[]", "{}", '{"tasks": 3}'])
def test_results_of_another_kind(tmp_path, text):
    run = build_run(tmp_path / "run")
    (run / "results.json").write_text(text)
    broken(run, r'results\.json, line 1: not an object with a list "tasks"')


@pytest.mark.parametrize(
    ("view", "rows", "message"),
    [
        ("generated", [[0.1, 0.2]], r"results\.json: matrix generated: row 0 has 2 scores for 4 tasks"),
        ("generated", [["x", 0.2, 0.1, 0.1]], r"results\.json: matrix: row 0, column 0 is 'x'"),
        ("nll", [[0.1] * 4] * 9, r"results\.json: matrix: 9 rows for 4 tasks; at most 5"),
    ],
)
def test_wrong_matrices(tmp_path, view, rows, message):
    run = build_run(tmp_path / "run")
    results = json.loads((run / "results.json").read_text())
    results["matrices"][view] = rows
    (run / "results.json").write_text(json.dumps(results))
    broken(run, message)


def test_results_in_another_encoding(tmp_path):
    run = build_run(tmp_path / "run")
    (run / "results.json").write_bytes(b'{"tasks": ["\xff"]}')
    broken(run, r"results\.json: byte 12 is not UTF-8")


@pytest.mark.parametrize("torn", [b'{"kind":"step","sta', b'{"kind":"evaluation","task":"\xe2\x82', b'{"kind"\n\n'])
def test_a_torn_last_line_is_left_out(tmp_path, torn):
    run = build_run(tmp_path / "run")
    whole = read_run(run).journal
    with (run / "journal.jsonl").open("ab") as journal:
        journal.write(torn)
    assert read_run(run).journal == whole


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{broken", r"journal\.jsonl, line 3: not valid JSON"),
        ("[1]", r'journal\.jsonl, line 3: not an object with a "kind"'),
        ('{"kind":"step","stage":1}', r'journal\.jsonl, line 3: "step" lacks global_step; fix or delete'),
    ],
)
def test_a_broken_line_in_the_middle(tmp_path, line, message):
    run = build_run(tmp_path / "run")
    lines = (run / "journal.jsonl").read_text().splitlines()
    (run / "journal.jsonl").write_text("\n".join([*lines[:2], line, *lines[2:]]))
    broken(run, message)


def test_a_broken_config(tmp_path):
    run = build_run(tmp_path / "run")
    (run / "config.yaml").write_text("model: a\ntasks: [\n")
    broken(run, r"config\.yaml, line \d, column \d: not valid YAML")


def test_a_broken_trace(tmp_path):
    run = build_run(tmp_path / "run")
    (run / "memory_trace.parquet").write_bytes(b"PAR1 not really")
    broken(run, r"memory_trace\.parquet: not a readable Parquet")


# --- safety -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", ["report", "comparison"])
def test_hostile_names_and_texts_stay_text(hostile, tmp_path, write):
    out = write_report(hostile) if write == "report" else write_comparison([hostile], tmp_path / "c.html")
    raw = out.read_text(encoding="utf-8")
    page = Page(raw)  # also checks that tags nest
    assert sum(tag == "script" for tag, _ in page.tags) == 1, "our own and no other"
    assert not [tag for tag, _ in page.tags if tag in ("img", "iframe", "object", "embed", "form", "base")]
    assert not [key for _, attributes in page.tags for key in attributes if key.startswith("on")]
    assert "\x1b" not in raw and "\u202e" not in raw
    assert HOSTILE[0] in page.text and html.escape(HOSTILE[0]) in raw
    if write == "report":
        assert CONFIG_ATTACK in page.text


def test_hostile_samples_stay_text(hostile_ssr):
    raw = write_report(hostile_ssr).read_text(encoding="utf-8")
    page = Page(raw)  # also checks that tags nest
    assert sum(tag == "script" for tag, _ in page.tags) == 1, "our own and no other"
    assert not [tag for tag, _ in page.tags if tag in ("img", "iframe", "object", "embed", "form", "base", "i")]
    assert not re.search("[\x1b\u2028\u202e\ud800]", raw)
    assert HOSTILE_TEXTS[0] in page.text and HOSTILE_TEXTS[1] in page.text and "[bold]" in page.text
    assert "x" * 399 + "…" in page.text and "x" * 400 not in page.text


def test_nothing_is_fetched_and_only_our_script_may_run(mssr, tmp_path):
    for out in (write_report(mssr), write_comparison([mssr], tmp_path / "c.html")):
        raw = out.read_text(encoding="utf-8")
        assert not re.search(r"""(?:src|href|action|url\(|@import)\s*[=(]?\s*["']?\s*(?:https?:)?//""", raw)
        policy = next(a["content"] for tag, a in Page(raw).tags if tag == "meta" and "http-equiv" in a)
        assert policy.startswith("default-src 'none'; ") and "script-src 'sha256-" in policy
        assert "'unsafe-inline'" not in policy.split("script-src")[1]


def test_a_lone_surrogate_in_a_name_does_not_stop_the_report(tmp_path):
    run = build_run(tmp_path / "run")
    for name in ("results.json", "journal.jsonl"):
        (run / name).write_text((run / name).read_text().replace("sst2", "\\ud800"))
    assert "\N{REPLACEMENT CHARACTER}" in report(run).text


def test_markup_is_escaped_unless_it_is_markup():
    assert tag("p", "<b>", Markup("<i></i>"), title='"&') == '<p title="&quot;&amp;">&lt;b&gt;<i></i></p>'
    assert join("<", None, ["&"]) == "&lt;&amp;"
    assert clean("a\x00b\x1b\u202ec") == "a\ufffdb\ufffd\ufffdc"


# --- comparison -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("compare me")
    made = [build_run(folder / name, name) for name in ("none", "mssr", "joint")]
    for run in made[:2]:
        write_report(run)
    return made


def test_the_comparison_sets_runs_side_by_side(runs):
    out = write_comparison(runs, runs[0].parent / "out" / "comparison.html")
    page = Page(out.read_text(encoding="utf-8"))
    results = [json.loads((run / "results.json").read_text())["metrics"] for run in runs]
    assert f"mssr ends at {results[1]['ACC']:.2f} on average and forgot {results[1]['forgetting']:.2f}" in page.text
    assert f"none ends at {results[0]['ACC']:.2f} on average" in page.text
    assert f"joint ends at {results[2]['ACC']:.2f} with all tasks at once" in page.text
    for metrics in results:
        assert f"{metrics['ACC']:.3f}" in page.text and f"{metrics['NLL']:.3f}" in page.text
    assert sum("right after learning" in label for label in page.labels()) == 3
    assert sum("in each run" in label for label in page.labels()) == len(TASKS)


def test_the_comparison_links_to_reports_that_exist(runs):
    out = write_comparison(runs, runs[0].parent / "out" / "comparison.html")
    links = [a["href"] for tag, a in Page(out.read_text(encoding="utf-8")).tags if tag == "a"]
    assert links == ["../none/report.html", "../mssr/report.html"]
    assert all((out.parent / link).exists() for link in links)


def test_the_best_run_is_bold_and_joint_does_not_compete(runs):
    raw = write_comparison(runs, runs[0].parent / "c.html").read_text(encoding="utf-8")
    best = re.findall(r'<td class="n best">([^<]+)', raw)
    metrics = json.loads((runs[1] / "results.json").read_text())["metrics"]
    assert best[0] == f"{metrics['ACC']:.3f}" and len(best) == 4


def test_runs_that_differ_in_more_than_the_strategy_are_flagged(runs, tmp_path):
    other = build_run(tmp_path / "other", "none", TASKS[:2], seed=7)
    text = Page(write_comparison([runs[0], other], tmp_path / "c.html").read_text(encoding="utf-8")).text
    assert "Careful: these runs differ in seed, tasks or their order too." in text
    assert "none, none" in text and "none, other" in text
    alone = Page(write_comparison(runs[:2], tmp_path / "d.html").read_text(encoding="utf-8")).text
    assert "Careful" not in alone


def test_comparing_unfinished_runs(tmp_path):
    unfinished = [build_run(tmp_path / name, name, stages=1, results=False) for name in ("none", "mssr")]
    text = Page(write_comparison(unfinished, tmp_path / "c.html").read_text(encoding="utf-8")).text
    assert "Fewer than two of these runs are finished" in text


def test_nothing_to_compare(tmp_path):
    with pytest.raises(InputError, match="no run directory given; name at least one"):
        write_comparison([], tmp_path / "c.html")


@pytest.mark.parametrize("dark", [False, True])
def test_the_picture_for_the_readme_stands_alone(runs, hostile, dark):
    for chosen in (runs[:2], [*runs, hostile]):
        picture = comparison_svg(chosen, dark=dark)
        root = ElementTree.fromstring(picture)
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert "var(" not in picture and "NaN" not in picture
        words = "".join(root.itertext())
        assert "none" in words and "dbpedia" in words
        assert not [node for node in root.iter() if node.tag.endswith("script")]


# --- the terminal -----------------------------------------------------------------------------------


def printed(table: object, width: int = 140) -> str:
    console = Console(file=StringIO(), width=width, color_system=None)
    console.print(table)
    return console.file.getvalue()


def test_the_run_table(mssr):
    results = json.loads((mssr / "results.json").read_text())
    lines = printed(run_table(results)).splitlines()
    assert lines[0].split() == [*TASKS, "(mmlu)"]
    assert lines[1].split() == ["base", "model", *(f"{cell:.2f}" for cell in results["matrix"][0]), "0.31"]
    assert lines[5].split()[:2] == ["after", "dbpedia"]
    assert f"ACC {results['metrics']['ACC']:.3f}" in printed(run_table(results))


def test_the_run_table_of_an_unfinished_run(tmp_path):
    run = build_run(tmp_path / "run", stages=1)
    results = json.loads((run / "results.json").read_text())
    del results["metrics"]["NLL"]
    assert "No metrics yet: the run is not finished." in printed(run_table(results))


def test_task_names_are_not_terminal_markup(hostile):
    results = json.loads((hostile / "results.json").read_text())
    text = printed(run_table(results), 200)
    assert "[red]" in text and "\x1b" not in text


def test_the_compare_table(runs):
    pairs = [(run.name, json.loads((run / "results.json").read_text())) for run in runs]
    lines = printed(compare_table(pairs)).splitlines()
    assert [line.split()[0] for line in lines] == ["run", "none", "mssr", "joint"]
    assert lines[3].split()[2:4] == [NOTHING, NOTHING] and "357" in lines[2] and "6 min 52 s" in lines[2]


def test_no_torch_and_no_rich_on_import():
    heavy = ("torch", "rich", "pyarrow", "yaml")
    code = f"import sys, retain.report, retain.report.tables; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- small parts ------------------------------------------------------------------------------------


def test_numbers_are_written_one_way():
    assert [number(0.8349), number(-0.001), number(None), number(float("nan"))] == [
        "0.83",
        "0.00",
        NOTHING,
        NOTHING,
    ]
    assert [signed(0.05), signed(-0.05), signed(0.001)] == ["+0.05", f"{MINUS}0.05", "0.00"]
    assert [duration(3.14), duration(412.5), duration(7260)] == ["3.1 s", "6 min 52 s", "2 h 01 min"]
    assert [cost("train_tokens", 81920), cost("peak_memory_bytes", 2**31)] == ["81,920", "2.00 GiB"]
    assert [compact(0.25), compact(30000)] == ["0.25", "30k"]


def test_ticks_are_round_and_inside():
    assert ticks(0, 1) == [0, 0.25, 0.5, 0.75, 1]
    assert ticks(0, 160, 8) == [0, 20, 40, 60, 80, 100, 120, 140, 160]
    assert ticks(3, 3) == [3]


def test_labels_move_apart_and_stay_inside():
    assert spread([10, 11, 50], 10, 0, 100) == [10, 20, 50]
    assert spread([99, 98], 10, 0, 100) == [100, 90]


def test_the_running_mean_shrinks_at_the_ends():
    assert running_mean([(1, 3.0), (2, 0.0), (3, 6.0)], 3) == [(1, 1.5), (2, 3.0), (3, 3.0)]
    assert running_mean([], 3) == []


def test_the_forgotten_area_starts_where_the_curve_crosses():
    assert below([(0, 0.5), (1, 0.7), (2, 0.3)], 0.5, 1) == [
        (0, 0.5, 0.5), (1, 0.5, 0.5), (1.5, 0.5, 0.5), (2, 0.3, 0.5),
    ]  # fmt: skip
    assert below([(0, 0.5), (1, 0.7)], 0.5, -1) == [(0, 0.5, 0.5), (1, 0.7, 0.5)]


def test_the_config_is_shown_whole(mssr):
    shown = yaml.safe_load("".join(Page(write_report(mssr).read_text(encoding="utf-8")).words).split("Config")[-1])
    assert shown == yaml.safe_load((mssr / "config.yaml").read_text())


# --- a real browser ---------------------------------------------------------------------------------

HARNESS = """<!doctype html><body><iframe id="page" src="{page}" width="{width}" height="4000"></iframe>
<pre id="found"></pre><script>
onload = () => {{
  const page = document.getElementById("page").contentDocument, view = page.defaultView, found = {{}};
  const area = (node) => {{ const box = node.getBoundingClientRect(); return box.width * box.height; }};
  found.title = page.title;
  const shapes = "polyline,polygon,rect,circle,line";
  found.drawn = [...page.querySelectorAll("svg")].filter((svg) => area(svg) > 0).map((svg) => ({{
    label: svg.getAttribute("aria-label"), width: svg.getBoundingClientRect().width,
    marks: [...svg.querySelectorAll(shapes)].filter((mark) => area(mark) > 0).length}}));
  found.overflow = page.documentElement.scrollWidth - view.innerWidth;
  found.requests = view.performance.getEntriesByType("resource").map((entry) => entry.name);
  const target = page.querySelector("table.heat td[data-tip]");
  target.dispatchEvent(new view.PointerEvent("pointermove", {{bubbles: true, clientX: 9, clientY: 9}}));
  found.tip = page.getElementById("tip").textContent;
  page.getElementById("view-nll").click();
  const views = [...page.querySelectorAll("[data-view]")];
  found.shown = views.filter((node) => area(node) > 0).map((node) => node.dataset.view);
  document.getElementById("found").textContent = JSON.stringify(found);
}};
</script></body>"""


def browse(url: str, profile: Path, *more: str) -> tuple[str, str]:
    """(the DOM after the scripts ran, what the browser logged)."""
    flags = (
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--host-resolver-rules=MAP * ~NOTFOUND",  # keeps the browser itself off the network
        "--enable-logging=stderr", "--v=0", f"--user-data-dir={profile}", *more, "--dump-dom",
    )  # fmt: skip
    done = subprocess.run([CHROMIUM, *flags, url], capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, done.stderr


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.parametrize(("width", "strategy"), [(1000, "mssr"), (390, "mssr"), (390, "ssr")])
def test_a_browser_draws_every_figure(mssr, ssr, tmp_path, width, strategy):
    page = write_report(mssr if strategy == "mssr" else ssr)
    harness = tmp_path / "harness.html"
    harness.write_text(HARNESS.format(page=page.as_uri(), width=width))
    dom, log = browse(harness.as_uri(), tmp_path / "profile", "--allow-file-access-from-files")
    assert "CONSOLE" not in log, log
    found = json.loads(html.unescape(re.search(r'<pre id="found">(.*?)</pre>', dom, re.S)[1]))
    for figure in (*EVERY_FIGURE, *(["Curriculum"] if strategy == "ssr" else [])):
        drawn = [svg for svg in found["drawn"] if svg["label"].startswith(figure)]
        assert len(drawn) == 1 and drawn[0]["marks"] > 20 and drawn[0]["width"] > 300
    assert sum(svg["label"].split(":")[0] in (*TASKS, "mmlu") for svg in found["drawn"]) == len(TASKS) + 1
    assert found["overflow"] <= 0
    assert found["requests"] == []
    assert found["tip"].startswith("sst2, base model: 0.")
    assert found["shown"] == ["nll"]


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.parametrize("kind", ["hostile", "hostile ssr", "comparison", "unfinished"])
def test_a_browser_has_nothing_to_complain_about(hostile, hostile_ssr, runs, tmp_path, kind):
    if kind.startswith("hostile"):
        page = write_report(hostile if kind == "hostile" else hostile_ssr)
    elif kind == "comparison":
        page = write_comparison([*runs, hostile], tmp_path / "c.html")
    else:
        page = write_report(build_run(tmp_path / "run", stages=1, results=False))
    dom, log = browse(page.as_uri(), tmp_path / "profile")
    assert "CONSOLE" not in log, log
    assert "owned" not in re.search(r"<title>(.*?)</title>", dom)[1]
    assert dom.count("<script>") == 1 and "<polyline" in dom
