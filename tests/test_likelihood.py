"""A task's labels: their distribution equals the slow way, and draws follow it."""

import numpy as np
import pytest
import torch
from test_losses import language_model
from tiny import tiny_t5

from retain.likelihood import choice_ids, cut_prompts, draw_labels, label_distribution, normalize, score_answers
from retain.types import Sample

LABELS = ("red", "blue", "green and yellow")


@pytest.fixture(params=["tree", "masked", "padded", "t5"])
def lm(request):
    if request.param == "t5":
        return language_model(torch.float64, model=tiny_t5().double(), target_modules=["q", "v"])
    model = language_model(torch.float64)
    model.use_layout(request.param)
    return model


def slow(lm, prompt, label):
    """log p(label, end | prompt) by one plain pass."""
    ids = [*lm.tokenizer(label).input_ids, lm.tokenizer.eos_token_id]
    logits = plain_logits(lm, prompt, ids).log_softmax(-1)
    return sum(float(logits[k, token]) for k, token in enumerate(ids))


def plain_logits(lm, prompt, answer):
    """Logits before each token of the answer, by one plain pass."""
    with torch.no_grad():
        if lm.is_encoder_decoder:
            given = {"input_ids": torch.tensor([[*prompt, 1]]), "decoder_input_ids": torch.tensor([[0, *answer[:-1]]])}
            return lm.model(**given).logits[0]
        return lm.model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]


def prompts_of(lm, count=7):
    return [lm.tokenizer(f"Pick {'x' * k}:\n").input_ids for k in range(count)]


def labels_of(lm):
    return [lm.answer_ids(Sample("", "", "", ""), label) for label in LABELS]


def test_label_distribution_equals_the_slow_way(lm):
    prompts = prompts_of(lm)
    found = label_distribution(lm, prompts, labels_of(lm))
    logs = np.array([[slow(lm, prompt, label) for label in LABELS] for prompt in prompts])
    expected = np.exp(logs) / np.exp(logs).sum(axis=1, keepdims=True)
    assert found.shape == (7, 3)
    np.testing.assert_allclose(np.exp(found), expected, rtol=1e-6)
    one_by_one = np.concatenate([label_distribution(lm, [prompt], labels_of(lm)) for prompt in prompts])
    np.testing.assert_allclose(found, one_by_one, rtol=1e-9)


def test_all_labels_stand_behind_the_same_cut_prompt(lm):
    lm.max_length = 24
    [long] = label_distribution(lm, [[9] * 50], labels_of(lm))
    [cut] = label_distribution(lm, [lm.cut_prompt([9] * 50, len(LABELS[2]) + 1)], labels_of(lm))
    np.testing.assert_allclose(long, cut, rtol=1e-9)


def test_no_prompts_have_no_distribution(lm):
    assert label_distribution(lm, [], labels_of(lm)).shape == (0, 3)
    assert draw_labels(np.zeros((0, 3)), (1,)).tolist() == []


def test_normalize_does_not_underflow():
    found = normalize(np.array([[-2000.0, -2001.0], [-np.inf, 0.0]]))
    np.testing.assert_allclose(np.exp(found), [[0.731058579, 0.268941421], [0.0, 1.0]])


def test_draws_follow_the_distribution_and_do_not_depend_on_each_other():
    probabilities = np.array([0.6, 0.3, 0.1])
    logs = np.log(np.tile(probabilities, (10_000, 1)))
    drawn = draw_labels(logs, (3, 4))
    counts = np.bincount(drawn, minlength=3)
    assert (((counts - 10_000 * probabilities) ** 2) / (10_000 * probabilities)).sum() < 13.8  # chi-square, 2, 0.999
    assert draw_labels(logs[:100], (3, 4)).tolist() == drawn[:100].tolist()
    assert draw_labels(logs, (3, 5)).tolist() != drawn.tolist()


def test_candidates_carry_what_the_model_would_write(lm):
    sample = Sample("c/0", "c", "Pick:\n", "red", choices=LABELS)
    [prompt] = cut_prompts(lm, [sample])
    [candidates], tokens = score_answers(lm, [prompt], [choice_ids(lm, sample)])
    assert tokens > len(prompt)
    for candidate, label in zip(candidates, LABELS, strict=True):
        assert candidate.best == plain_logits(lm, prompt, candidate.targets).argmax(-1).tolist()
        assert candidate.losses.sum() == pytest.approx(-slow(lm, prompt, label))
