"""The table, the sentences and the page of a comparison, from cells with known effects."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from comparison_fixture import ACCURACY, cell, cells
from rich.console import Console

from retain.report.differences import caveat, differences
from retain.report.methods import cost_table, csv_table, difference_table, gap_closed, method_rows, score_table
from retain.report.methods_files import write_files
from retain.report.methods_page import mean_run
from retain.types import InputError


def accuracies(found, measure="ACC"):
    return {entry["row"]: entry for entry in found if entry["measure"] == measure}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("out")
    return write_files(cells(), folder, reference="fixed", level=0.95), folder


def test_rows_are_means_over_runs():
    rows = {row["row"]: row for row in method_rows(cells())}
    assert list(rows) == list(ACCURACY)
    own = [each["results"]["metrics"]["ACC"] for each in cells() if each["row"] == "mssr"]
    assert rows["mssr"]["scores"]["ACC"] == {
        "mean": pytest.approx(np.mean(own)), "deviation": pytest.approx(np.std(own, ddof=1)), "count": 3,
    }  # fmt: skip
    assert rows["joint"]["scores"]["forgetting"]["mean"] is None
    assert rows["mssr"]["costs"]["bytes_kept"] == 40_000


def test_the_gap_between_none_and_joint():
    rows = {row["row"]: row["scores"] for row in method_rows(cells())}
    low, high = rows["none"]["ACC"]["mean"], rows["joint"]["ACC"]["mean"]
    assert rows["none"]["gap_closed"]["mean"] == 0.0 and rows["joint"]["gap_closed"]["mean"] == 1.0
    assert rows["er"]["gap_closed"]["mean"] == pytest.approx((rows["er"]["ACC"]["mean"] - low) / (high - low))
    without = [each for each in cells() if each["row"] != "joint"]
    assert gap_closed(without, without[:3]) is None
    worse = cells(rows={"none": 0.8, "fixed": 0.7, "joint": 0.5})
    assert gap_closed(worse, worse[3:6]) is None


def test_the_gap_uses_seeds_that_all_three_have():
    some = [each for each in cells() if not (each["row"] == "joint" and each["seed"] == 3)]
    own = [each for each in some if each["row"] == "er"]
    acc = {(c["row"], c["seed"]): c["results"]["metrics"]["ACC"] for c in some}
    low, high, value = (np.mean([acc[row, seed] for seed in (1, 2)]) for row in ("none", "joint", "er"))
    assert gap_closed(some, own) == pytest.approx((value - low) / (high - low))


def test_the_gap_of_a_setting_is_between_runs_with_that_setting():
    made = []
    for rate, shift in ((0.1, 0.0), (0.2, 0.1)):
        for each in cells(rows={row: ACCURACY[row] + shift for row in ("none", "mssr", "joint")}):
            each = {**each, "row": f"{each['row']} {rate}", "settings": {"rate": rate}}
            made.append(each)
    rows = {row["row"]: row["scores"]["gap_closed"]["mean"] for row in method_rows(made)}
    assert rows["none 0.1"] == rows["none 0.2"] == 0.0 and rows["joint 0.1"] == rows["joint 0.2"] == 1.0


def test_differences_are_paired_and_say_what_they_know():
    found = accuracies(differences(cells(), "fixed", 0.95))
    assert set(found) == {"none", "er", "mssr", "joint"}
    for row, entry in found.items():
        acc = {(c["row"], c["seed"]): c["results"]["metrics"]["ACC"] for c in cells()}
        expected = [acc[row, seed] - acc["fixed", seed] for seed in (1, 2, 3)]
        assert [pair["difference"] for pair in entry["pairs"]] == pytest.approx(expected)
        assert entry["difference"] == pytest.approx(np.mean(expected))
        assert np.mean(list(entry["tasks"].values())) == pytest.approx(entry["difference"])
        assert entry["low"] <= entry["difference"] <= entry["high"]
        assert entry["p"] <= entry["p_holm"] and sum(entry["items"].values()) == 150
    assert found["joint"]["apart"] and found["none"]["apart"] and not found["er"]["apart"]
    assert re.fullmatch(
        r"The data do not tell er and fixed apart: difference in ACC \S+, 95 % interval −\S+ to \S+\.",
        found["er"]["sentence"],
    )
    assert found["joint"]["sentence"].startswith("joint has a higher ACC than fixed, by 0.")
    own = accuracies(differences(cells(), "fixed", 0.95, "own"))
    assert own["mssr"]["high"] - own["mssr"]["low"] > 1.1 * (found["mssr"]["high"] - found["mssr"]["low"])
    assert "after Holm's correction for 4 comparisons" in found["joint"]["sentence"]


def test_lower_is_better_for_losses():
    entry = accuracies(differences(cells(), "fixed", 0.95), "NLL")["joint"]
    assert entry["difference"] < 0 and entry["items"]["better"] > entry["items"]["worse"]
    assert "lower NLL" in entry["sentence"]


def test_one_seed_is_said():
    found = differences(cells(seeds=(1,)), "fixed", 0.9)
    assert accuracies(found)["mssr"]["over"] == ("items",)
    assert "One seed" in caveat(found)
    assert "90 % interval" in accuracies(found)["er"]["sentence"]
    forgetting = accuracies(found, "forgetting")["mssr"]
    assert forgetting["low"] is None and "there is no interval" in forgetting["sentence"]


def test_three_seeds_need_no_caveat():
    assert caveat(differences(cells(), "fixed", 0.95)) is None


def test_what_holm_takes_back_is_said():
    rows = {"fixed": 0.60, **{f"m{k}": 0.60 for k in range(12)}, "close": 0.655}
    many = differences(cells(rows=rows, seeds=(1,)), "fixed", 0.95)
    alone = differences(cells(rows={"fixed": 0.60, "close": 0.655}, seeds=(1,)), "fixed", 0.95)
    one, other = accuracies(many)["close"], accuracies(alone)["close"]
    assert one["p"] == other["p"] and one["p_holm"] > other["p_holm"] == other["p"]
    if one["low"] > 0 and not one["apart"]:
        assert "taken alone" in one["sentence"] and "among 13 comparisons (Holm)" in one["sentence"]


def test_task_orders_of_a_seed_are_no_seeds_of_their_own():
    both = [*cells(seeds=(1,)), *(cell(row, 1, accuracy, order=2) for row, accuracy in ACCURACY.items())]
    entry = accuracies(differences(both, "fixed", 0.95))["mssr"]
    assert len(entry["pairs"]) == 2 and entry["over"] == ("items",)


def test_only_runs_with_a_pair_are_compared():
    some = [each for each in cells() if not (each["row"] == "fixed" and each["seed"] == 2)]
    entry = accuracies(differences(some, "fixed", 0.95))["mssr"]
    assert [pair["seed"] for pair in entry["pairs"]] == [1, 3]
    alone = [each for each in cells() if each["row"] != "fixed" or each["seed"] == 9]
    assert differences(alone, "fixed", 0.95) == []


def test_other_test_items_are_refused():
    made = cells()
    made[-1]["items"]["trec"]["ids"] = "others"
    with pytest.raises(InputError, match="task 'trec': scored on other test items"):
        differences(made, "fixed", 0.95)


def test_files(written):
    summary, folder = written
    assert json.loads((folder / "comparison.json").read_text()) == json.loads(json.dumps(summary))
    lines = list(csv.DictReader(io.StringIO((folder / "comparison.csv").read_text())))
    assert [line["method"] for line in lines] == list(ACCURACY)
    assert float(lines[1]["ACC"]) == summary["rows"][1]["scores"]["ACC"]["mean"]
    markdown = (folder / "comparison.md").read_text().splitlines()
    assert len(markdown) == 2 + len(ACCURACY) and len({line.count(" | ") for line in markdown}) == 1
    assert "ACC against fixed (95 %)" in markdown[0]


def test_terminal_tables(written):
    summary, _ = written
    console = Console(file=io.StringIO(), width=200)
    for table in (score_table(summary["rows"]), cost_table(summary["rows"]), difference_table(summary)):
        console.print(table)
    shown = console.file.getvalue()
    for word in ("mssr", "gap closed", "± ", "replayed samples", "40 kB", "1 min 30 s", "p (Holm)"):
        assert word in shown


class Balanced(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.open, self.tags = [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag not in ("meta", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_escapes_what_it_shows(written, tmp_path):
    _, folder = written
    page = (folder / "comparison.html").read_text()
    parsed = Balanced(page)
    assert parsed.open == [] and parsed.tags.count("svg") == 2 + len(ACCURACY)
    assert "The data do not tell er and fixed apart" in page and "Which method keeps" in page
    hostile = "<script>alert(1)</script>|x\u202e"
    write_files(cells(rows={"fixed": 0.6, hostile: 0.7}), tmp_path, reference="fixed", level=0.95, missing=2)
    shown = (tmp_path / "comparison.html").read_text()
    assert "<script>alert" not in shown and "\u202e" not in shown and "2 cells are missing" in shown
    markdown = (tmp_path / "comparison.md").read_text()
    assert r"\|x" in markdown and "\u202e" not in markdown


def test_one_method_alone_has_a_page(tmp_path):
    write_files(cells(rows={"mssr": 0.7}, seeds=(1,)), tmp_path, reference="mssr", level=0.95)
    assert Balanced((tmp_path / "comparison.html").read_text()).open == []


def test_panels_show_means_over_seeds():
    own = [each for each in cells() if each["row"] == "mssr"]
    matrix = mean_run(own).results["matrices"]["generated"]
    assert matrix[-1] == pytest.approx(np.mean([each["results"]["matrix"][-1] for each in own], axis=0).tolist())


def test_no_best_where_all_are_equal():
    rows = method_rows(cells(rows={"a": 0.6}, seeds=(1, 2)))
    assert "nan" not in csv_table(rows) and math.isfinite(rows[0]["scores"]["ACC"]["mean"])
