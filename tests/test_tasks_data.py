"""The real tasks that lie beside the checkout, where they do."""

import os
from pathlib import Path

import pytest

from retain.config import Config
from retain.metrics import METRICS
from retain.sections import TaskConfig
from retain.tasks import load_tasks

DATA = Path(os.environ.get("RETAIN_DATA") or Path(__file__).parents[1].parent / "shared" / "data")
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="no real data here; set RETAIN_DATA to its folder")

CHOICES = ["ag_news", "arc_challenge", "banking77", "boolq", "dbpedia", "emotion", "mmlu", "sciq", "sms_spam",
           "sst2", "trec"]  # fmt: skip
WORKED = ["gsm8k", "math_l1", "math_l2", "math_l3", "math_l4", "math_l5"]
EXPECTED = {
    **dict.fromkeys(CHOICES, "exact_match"),
    **dict.fromkeys(WORKED, "final_answer"),
    **dict.fromkeys(["alpaca_demo", "paraphrase", "translation_en_es"], "rouge_l"),
    "squad": "squad_f1",
}


@pytest.fixture(scope="module")
def tasks():
    fields = [TaskConfig(name=n, train=f"{n}/train.jsonl", test=f"{n}/test.jsonl") for n in EXPECTED]
    return {task.name: task for task in load_tasks(Config(tasks=fields), DATA)}


def test_all_of_them_load_with_the_metric_that_fits(tasks):
    assert len(tasks) == 21
    assert {name: task.metric for name, task in tasks.items()} == EXPECTED
    assert all(task.skipped == 0 and len(task.train) >= 250 and len(task.test) >= 100 for task in tasks.values())


def test_every_row_is_there(tasks):
    for name, task in tasks.items():
        for split in ("train", "test"):
            assert len(getattr(task, split)) == (DATA / name / f"{split}.jsonl").read_bytes().count(b"\n"), name


def test_choices_and_references(tasks):
    assert len(tasks["banking77"].test[0].choices) == 77
    assert all(task.test[0].choices for name, task in tasks.items() if name in CHOICES)
    assert any(len(sample.accepted) > 1 for sample in tasks["squad"].test)
    assert all(len(sample.references) == 1 for sample in tasks["gsm8k"].test)


def test_the_right_answer_scores_full_marks(tasks):
    for name, task in tasks.items():
        score = METRICS[task.metric]
        right = sum(score(sample.answer, sample.accepted) for sample in task.test) / len(task.test)
        assert right == 1.0, name
        wrong = sum(score("zzz", sample.accepted) for sample in task.test) / len(task.test)
        assert wrong == 0.0, name
