"""Scores equal what one gets the slow way: one sequence at a time, one token at a time."""

import math

import pytest
import torch
from test_losses import language_model

from retain.evaluate import draft, evaluate_task
from retain.generation import greedy, until_stop
from retain.likelihood import Candidate, choice_ids, cut_prompts, score_answers
from retain.sections import EvaluationConfig
from retain.types import Sample, Task

CHOICES = ("red", "blue", "green")
CHOICE_TASK = Task(
    "c", test=[Sample(f"c/{k}", "c", f"Pick {'x' * k}:\n", CHOICES[k % 3], choices=CHOICES) for k in range(7)]
)
OPEN_TASK = Task("o", test=[Sample(f"o/{k}", "o", f"Say {k}:\n", f"word {k}") for k in range(5)], metric="rouge_l")


def alone(lm, prompt, answer):
    """Log-probabilities of the answer's tokens, computed without any batching."""
    sequence = lm.sequence(prompt, [*lm.tokenizer(answer).input_ids, lm.tokenizer.eos_token_id])
    with torch.no_grad():
        logits = lm.model(input_ids=torch.tensor([sequence.ids])).logits[0].log_softmax(-1)
    start = len(prompt)
    return [float(logits[k - 1, sequence.ids[k]]) for k in range(start, len(sequence.ids))]


@pytest.fixture(params=["tree", "masked", "padded"])
def lm(request):
    model = language_model()
    model.use_layout(request.param)
    return model


def test_likelihood_and_nll_equal_the_slow_way(lm):
    scores, records = evaluate_task(lm, CHOICE_TASK, EvaluationConfig(batch_size=3))
    by_mean, by_sum, nll = [], [], []
    for sample in CHOICE_TASK.test:
        logs = {text: alone(lm, lm.prompt_ids(sample), text) for text in CHOICES}
        by_mean.append(max(CHOICES, key=lambda text: sum(logs[text]) / len(logs[text])) == sample.answer)
        by_sum.append(max(CHOICES, key=lambda text: sum(logs[text])) == sample.answer)
        nll.append(-sum(logs[sample.answer]) / len(logs[sample.answer]))
    assert scores.likelihood == sum(by_mean) / 7
    assert scores.likelihood_summed == sum(by_sum) / 7
    assert scores.nll == pytest.approx(sum(nll) / 7, rel=1e-4)
    assert [r["nll"] for r in records] == pytest.approx(nll, rel=1e-4)
    assert scores.n == 7


@pytest.mark.parametrize("task", [CHOICE_TASK, OPEN_TASK])
def test_predictions_are_the_greedy_answers(lm, task):
    _, records = evaluate_task(lm, task, EvaluationConfig(batch_size=4, max_new_tokens=6))
    expected = [greedy(lm, [lm.prompt_ids(sample)], 6)[0] for sample in task.test]
    assert [r["prediction"] for r in records] == [lm.tokenizer.decode(ids).strip() for ids in expected]


def test_a_task_without_choices_has_no_likelihood(lm):
    scores, records = evaluate_task(lm, OPEN_TASK, EvaluationConfig())
    assert scores.likelihood is None and scores.likelihood_summed is None
    assert "choice" not in records[0] and math.isfinite(scores.nll)


def candidate(targets, best):
    return Candidate(targets, None, best)


def test_a_draft_follows_the_tree_until_the_answer_ends_or_leaves_it():
    end = 9
    tree = [candidate([1, 2, end], [1, 3, end]), candidate([1, 3, end], [1, 3, end])]
    assert draft(tree, [end], limit=5) == ([1, 3], True)
    assert draft(tree, [end], limit=1) == ([1], True)
    assert draft([candidate([1, end], [4, 4])], [end], limit=5) == ([4], False)
    assert draft([candidate([1, end], [1, 4])], [end], limit=5) == ([1, 4], False)


def test_generation_stops_at_the_end_token(lm):
    assert until_stop([5, 6, 1, 7], [1]) == [5, 6]
    prompts = [[10, 11, 12, 13, 14], [20]]
    together = greedy(lm, prompts, 5)
    assert together == [greedy(lm, [prompt], 5)[0] for prompt in prompts]


@pytest.mark.parametrize("limit", [10, 40, 64, 200])
def test_a_long_answer_limit_leaves_the_prompt_in_place(lm, limit):
    lm.max_length = 64
    _, records = evaluate_task(lm, OPEN_TASK, EvaluationConfig(max_new_tokens=limit))
    expected = [greedy(lm, [lm.prompt_ids(sample)], min(limit, 32))[0] for sample in OPEN_TASK.test]
    assert [r["prediction"] for r in records] == [lm.tokenizer.decode(ids).strip() for ids in expected]


def test_choices_of_different_length_are_compared_behind_one_prompt(lm):
    lm.max_length = 32
    sample = Sample("c/0", "c", "p" * 60, "a", choices=("a", "b" * 12))
    [prompt] = cut_prompts(lm, [sample], limit=13)
    [candidates], _ = score_answers(lm, [prompt], [choice_ids(lm, sample)])
    assert len(prompt) == 32 - 13
    assert [len(c.targets) for c in candidates] == [2, 13]
