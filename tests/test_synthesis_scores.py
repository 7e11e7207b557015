"""Perplexity, consistency and embeddings of a batch equal those of one text at a time."""

import math

import numpy as np
import pytest
import torch
from test_losses import chat_model, language_model
from tiny import tiny_t5
from tokenizers.processors import TemplateProcessing

from retain.synthesis.scores import consistencies, embeddings, perplexities
from retain.types import Sample

TEXTS = ["a fine film\npositive", "x", "", "dull , dull , dull\nnegative", "ünï ¢ödé \x00\x1b[31m", "a fine", "z" * 90]
CHOICES = ("positive", "negative", "so so")
LABELED = [Sample(f"s/{k}", "s", f"{'film ' * k}\nAnswer:\n", CHOICES[k % 3], choices=CHOICES) for k in range(7)]
FREE = [Sample(f"f/{k}", "f", f"Say {'it ' * k}:\n", "word " * (k % 4 + 1)) for k in range(7)]


@pytest.fixture(params=["tree", "masked", "padded", "t5"])
def lm(request):
    if request.param == "t5":
        return language_model(model=tiny_t5(), target_modules=["q", "v"])
    model = language_model()
    model.use_layout(request.param)
    return model


def begin_texts_with(tokenizer, token):
    """As tokenizers of Llama do."""
    identity = tokenizer.convert_tokens_to_ids(token)
    tokenizer._tokenizer.post_processor = TemplateProcessing(single=f"{token} $A", special_tokens=[(token, identity)])


def plain_losses(lm, prompt, answer):
    """-log p of each answer token by one plain pass; without a prompt the first has none, but in a decoder."""
    with torch.no_grad():
        if lm.is_encoder_decoder:
            given = {"input_ids": torch.tensor([[*prompt, 1]]), "decoder_input_ids": torch.tensor([[0, *answer]])}
            logits = lm.model(**given).logits[0].double().log_softmax(-1)
            return [-float(logits[k, token]) for k, token in enumerate(answer)]
        logits = lm.model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0].double().log_softmax(-1)
    return [-float(logits[len(prompt) + k - 1, t]) for k, t in enumerate(answer) if len(prompt) + k]


def test_perplexity_equals_one_plain_pass_a_text(lm):
    found = perplexities(lm, TEXTS)
    for text, value in zip(TEXTS, found, strict=True):
        ids = lm.tokenizer(text).input_ids
        expected = math.exp(np.mean(plain_losses(lm, [], ids))) if len(ids) > (not lm.is_encoder_decoder) else math.inf
        assert value == pytest.approx(expected, rel=1e-5)
    one_by_one = [perplexities(lm, [text])[0] for text in TEXTS]
    np.testing.assert_allclose(found, one_by_one, rtol=1e-5)


def test_the_first_token_counts_behind_a_begin_of_text_token():
    lm = language_model()
    begin_texts_with(lm.tokenizer, "<pad>")
    found = perplexities(lm, TEXTS)
    for text, value in zip(TEXTS, found, strict=True):
        ids = lm.tokenizer(text, add_special_tokens=False).input_ids
        expected = math.exp(np.mean(plain_losses(lm, [0], ids))) if ids else math.inf
        assert value == pytest.approx(expected, rel=1e-5)


def test_perplexity_under_the_base_model(lm):
    with lm.base():
        expected = perplexities(lm, TEXTS)
    np.testing.assert_array_equal(perplexities(lm, TEXTS, base=True), expected)
    assert (perplexities(lm, TEXTS) != expected)[np.isfinite(expected)].all()


def test_a_text_longer_than_the_model_is_scored_all_the_same(lm):
    assert np.isfinite(perplexities(lm, ["word " * 2000])).all()


def test_consistency_of_labels_is_their_share(lm):
    found = consistencies(lm, LABELED)
    for sample, value in zip(LABELED, found, strict=True):
        prompt = lm.prompt_ids(sample)
        logs = {c: -sum(plain_losses(lm, prompt, lm.answer_ids(sample, c))) for c in CHOICES}
        expected = math.exp(logs[sample.answer]) / sum(map(math.exp, logs.values()))
        assert value == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(found, [consistencies(lm, [sample])[0] for sample in LABELED], rtol=1e-5)


def test_consistency_of_free_text_is_its_mean_token_probability(lm):
    found = consistencies(lm, FREE)
    for sample, value in zip(FREE, found, strict=True):
        losses = plain_losses(lm, lm.prompt_ids(sample), lm.answer_ids(sample, sample.answer))
        assert value == pytest.approx(math.exp(-np.mean(losses)), rel=1e-5)
    np.testing.assert_allclose(found, [consistencies(lm, [sample])[0] for sample in FREE], rtol=1e-5)


def test_an_answer_that_is_no_choice_is_inconsistent(lm):
    assert consistencies(lm, [Sample("s", "s", "film:\n", "superb", choices=CHOICES)]).tolist() == [0.0]


def test_consistency_of_chats():
    lm = chat_model()
    samples = [
        Sample(f"c/{k}", "c", "", "yes", choices=("yes", "no"), messages=(("user", "Hi" * k), ("assistant", "yes")))
        for k in range(1, 4)
    ]
    found = consistencies(lm, samples)
    assert ((found > 0) & (found < 1)).all()
    np.testing.assert_allclose(found, [consistencies(lm, [sample])[0] for sample in samples], rtol=1e-5)


def test_embeddings_are_mean_hidden_states(lm):
    found = embeddings(lm, TEXTS)
    assert found.shape == (len(TEXTS), 32) and found.dtype == np.float32
    for text, row in zip(TEXTS, found, strict=True):
        ids = lm.tokenizer(text).input_ids
        if not ids:
            assert not row.any()
            continue
        model = lm.model.get_base_model()
        with torch.no_grad():
            body = model.encoder if lm.is_encoder_decoder else model
            states = body(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0]
        np.testing.assert_allclose(row, states.mean(0), rtol=1e-4, atol=1e-5)


def test_t5s_own_tokenizer_closes_an_empty_prompt():
    """What it puts around nothing is its end-of-text, not a token of the text."""
    lm = language_model(model=tiny_t5(), target_modules=["q", "v"])
    expected = perplexities(lm, TEXTS)
    post = TemplateProcessing(single="$A <end>", special_tokens=[("<end>", 1)])
    lm.tokenizer._tokenizer.post_processor = post
    np.testing.assert_array_equal(perplexities(lm, TEXTS), expected)


def test_nothing_to_score(lm):
    assert perplexities(lm, []).shape == consistencies(lm, []).shape == (0,)
    assert perplexities(lm, ["", ""]).tolist() == [math.inf] * 2
    assert embeddings(lm, []).shape == (0, 32)
