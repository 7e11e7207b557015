"""Sampling in slots: the right distribution, the same text whatever the batch, nothing computed twice, no leaks."""

import itertools

import numpy as np
import pytest
import torch
from test_encoder_decoder import tiny_bart
from test_losses import language_model
from test_sampling import theirs
from tiny import tiny_llama, tiny_t5
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from retain import slots
from retain.device import peak_memory
from retain.generation import greedy, merged, sample
from retain.sampling import Sampling
from retain.types import InputError

PROMPTS = [[10, 11, 12], [20] * 7, [30, 31], [40, 41, 42], [10, 11, 12], [50]] * 4
WARPED = Sampling(temperature=0.7, top_k=20, top_p=0.9, repetition_penalty=1.2)


def sharp(lm, factor=10.0):
    """A random model is nearly indifferent between tokens; this one has opinions."""
    lm.model.get_input_embeddings().weight.data.mul_(factor)
    return lm


@pytest.fixture
def lm():
    return sharp(language_model(torch.float64))


@pytest.fixture(params=["llama", "t5", "bart"])
def family(request):
    """One model of each family."""
    if request.param == "llama":
        return sharp(language_model(torch.float64))
    model, targets = {"t5": (tiny_t5, ["q", "v"]), "bart": (tiny_bart, ["q_proj", "v_proj"])}[request.param]
    return sharp(language_model(torch.float64, model=model().double(), target_modules=targets), 1.5)


def alone(lm, prompt, ids):
    """log p(ids | prompt) by one plain forward pass."""
    with torch.no_grad():
        if lm.is_encoder_decoder:
            start, end = lm.model.config.decoder_start_token_id, lm.tokenizer.eos_token_id
            given = {"input_ids": [[*prompt, end]], "decoder_input_ids": [[start, *ids]]}
            logits = lm.model(**{name: torch.tensor(value) for name, value in given.items()}).logits[0]
        else:
            logits = lm.model(input_ids=torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 :]
    return float(sum(logits.log_softmax(-1)[k, token] for k, token in enumerate(ids)))


def test_texts_follow_the_models_distribution():
    """All 36 two-token texts over six tokens, against probabilities by transformers' warpers and plain passes."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = LlamaForCausalLM(
            LlamaConfig(vocab_size=6, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
        )
    lm = sharp(language_model(model=model), 40)
    sampling = Sampling(temperature=1.5, top_k=5, top_p=0.9)
    prompt, count = [3, 4], 6000
    with torch.no_grad():
        starts = torch.tensor([[*prompt, a] for a in range(6)])
        first = theirs(lm.model(input_ids=torch.tensor([prompt])).logits[:, -1], sampling)[0]
        exact = (first[:, None] * theirs(lm.model(input_ids=starts).logits[:, -1], sampling)).double()
    texts = sample(lm, [prompt] * count, sampling, 2, batch_size=500, seed=(7,), stop=())
    counts = torch.zeros(6, 6)
    for text in texts:
        counts[tuple(text.ids)] += 1
    possible = exact > 0
    assert 10 < possible.sum() < 30 and not counts[~possible].any()
    statistic = float(((counts - count * exact)[possible] ** 2 / (count * exact)[possible]).sum())
    assert statistic < 58.3  # chi-square, 29 degrees of freedom at most, 0.999


def test_the_most_likely_token_alone_is_greedy_decoding(family):
    texts = sample(family, PROMPTS, Sampling(top_k=1), 20, batch_size=5)
    assert [text.ids for text in texts] == greedy(family, PROMPTS, 20)


@pytest.mark.parametrize("stop", [(), tuple(range(60, 90))])
def test_a_text_does_not_depend_on_batch_or_slot(family, stop, monkeypatch):
    reference = sample(family, PROMPTS, WARPED, 25, batch_size=1, seed=(3, 1), stop=stop)
    assert (len({len(text.ids) for text in reference}) > 3) == bool(stop)
    for size, spare in ((2, 2), (7, 32), (100, 1)):
        monkeypatch.setattr(slots, "SPARE", spare)
        texts = sample(family, PROMPTS, WARPED, 25, batch_size=size, seed=(3, 1), stop=stop)
        assert [t.ids for t in texts] == [t.ids for t in reference]
        assert [t.finished for t in texts] == [t.finished for t in reference]
        np.testing.assert_allclose(
            [t.log_probability for t in texts], [t.log_probability for t in reference], rtol=1e-9
        )


def test_seeds_and_places_differ(lm):
    texts = {tuple(t.ids) for s in (1, 2) for t in sample(lm, [[10, 11]] * 8, Sampling(), 12, seed=(s,))}
    assert len(texts) == 16


def test_no_global_generator_is_read_or_moved(lm):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        first = sample(lm, PROMPTS, Sampling(), 5)
        torch.manual_seed(2)
        before = torch.random.get_rng_state()
        assert sample(lm, PROMPTS, Sampling(), 5) == first
        assert torch.random.get_rng_state().equal(before)


def test_log_probabilities_are_those_of_a_plain_pass(family):
    stop = range(60, 90)
    for prompt, text in zip(PROMPTS, sample(family, PROMPTS, WARPED, 25, batch_size=4, stop=stop), strict=True):
        assert text.tokens == len(text.ids) + text.finished
        if not text.finished:
            assert len(text.ids) == 25
            assert text.log_probability == pytest.approx(alone(family, prompt, text.ids), rel=1e-9)


def test_the_ending_token_counts_and_is_left_out(family):
    everything = range(258)
    for prompt, text in zip(PROMPTS, sample(family, PROMPTS, Sampling(top_k=1), 5, stop=everything), strict=True):
        [first] = greedy(family, [prompt], 1)
        assert text.finished and text.ids == [] and text.tokens == 1
        assert text.log_probability == pytest.approx(alone(family, prompt, first), rel=1e-9)


def test_a_model_that_only_ends(lm):
    calls = []
    head = lm.model.get_output_embeddings()
    head.register_forward_hook(lambda m, i, out: out.index_fill(-1, torch.tensor([1]), 1e4))
    lm.model.register_forward_hook(lambda *_: calls.append(1))
    texts = sample(lm, PROMPTS * 10, Sampling(), 50, batch_size=4)
    assert all(t.finished and not t.ids and t.log_probability == 0 for t in texts)
    assert len(calls) <= 2  # prompts only


def test_equal_prompts_are_computed_once(lm):
    seen = []
    lm.model.register_forward_pre_hook(lambda m, args, kwargs: seen.append(kwargs["input_ids"].shape), with_kwargs=True)
    sample(lm, [[10, 11, 12]] * 40 + [[20, 21]] * 40, Sampling(), 4, batch_size=8, stop=())
    assert [shape for shape in seen if shape[1] > 1] == [(2, 3)]
    assert len(seen) == 1 + 80 * 3 // 8


def test_lengths_are_bounded(lm):
    """By the positions that the model has, not by the length it is trained on."""
    lm.max_length, lm.model.config.max_position_embeddings = 4, 10
    texts = sample(lm, [[9] * 3, [9] * 9, [9] * 10, [9] * 30], Sampling(), 5, stop=())
    assert [len(t.ids) for t in texts] == [5, 1, 0, 0]
    assert [t.finished for t in texts] == [False] * 4
    assert sample(lm, [], Sampling(), 5) == []
    assert sample(lm, [[9]], Sampling(), 0)[0].ids == []


def test_an_encoder_and_a_decoder_are_bounded_apart():
    lm = language_model(model=tiny_t5(), target_modules=["q", "v"])
    lm.max_length = 10
    texts = sample(lm, [[9] * 3, [9] * 9, [9] * 30], Sampling(), 50, stop=())
    assert [len(t.ids) for t in texts] == [10, 10, 10]
    assert sample(lm, [[8], [8], [9] * 10], Sampling(), 50, stop=())[2].ids == texts[2].ids


def test_the_penalty_is_for_what_the_decoder_saw(family):
    """As in transformers: the prompt counts, but not one that an encoder reads."""
    family.model.eval()
    for prompt, text in zip(PROMPTS, sample(family, PROMPTS, Sampling(1, 1, 1, 3.0), 8, stop=()), strict=True):
        ids = torch.tensor([[*prompt, *[1] * family.is_encoder_decoder]])
        out = family.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            repetition_penalty=3.0,
            max_new_tokens=8,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert text.ids == out[0, -8:].tolist()


def test_an_encoder_may_read_nothing():
    lm = language_model(torch.float64, model=tiny_t5().double(), target_modules=["q", "v"])
    [text, *others] = sample(lm, [[], [1], [9]], Sampling(), 5, stop=())
    assert text.log_probability == pytest.approx(alone(lm, [], text.ids))
    assert len(others) == 2


def test_an_empty_prompt_is_an_error(lm):
    with pytest.raises(ValueError, match=r"prompts\[1\] is empty"):
        sample(lm, [[5], []], Sampling(), 5)


MODELS = {
    "llama": (tiny_llama, ["q_proj", "v_proj"]),
    "positions learned": (
        lambda: GPT2LMHeadModel(GPT2Config(vocab_size=258, n_positions=64, n_embd=32, n_layer=2, n_head=2)),
        ["c_attn"],
    ),
    "sliding window": (
        lambda: MistralForCausalLM(
            MistralConfig(
                vocab_size=258,
                hidden_size=32,
                intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                sliding_window=6,
            )
        ),
        ["q_proj", "v_proj"],
    ),
    "positions by distance": (
        lambda: BloomForCausalLM(BloomConfig(vocab_size=258, hidden_size=32, n_layer=2, n_head=4)),
        ["query_key_value"],
    ),
}


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("layout", ["tree", "padded"])
def test_architectures(kind, layout):
    make, targets = MODELS[kind]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        lm = sharp(language_model(model=make(), target_modules=targets), 3)  # Bloom cannot mask in float64
    lm.use_layout(layout)
    for prompt, text in zip(PROMPTS, sample(lm, PROMPTS, Sampling(), 12, batch_size=5, stop=()), strict=True):
        assert text.log_probability == pytest.approx(alone(lm, prompt, text.ids), rel=1e-4)


def test_a_recurrent_model_is_refused():
    model = MambaForCausalLM(MambaConfig(vocab_size=258, hidden_size=16, num_hidden_layers=1))
    with pytest.raises(InputError, match="model: mamba keeps a state"):
        sample(language_model(model=model, target_modules=["in_proj"]), PROMPTS, Sampling(), 5)


def test_the_adapter_is_merged_and_comes_back_bit_for_bit(lm):
    before = {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}
    storage = {name: p.data_ptr() for name, p in lm.model.named_parameters()}
    probe = torch.tensor([[10, 11, 12]])
    with torch.no_grad():
        expected = lm.model(input_ids=probe).logits
        with pytest.raises(KeyError), merged(lm):
            torch.testing.assert_close(lm.model(input_ids=probe).logits, expected)
            assert any(not p.equal(before[name]) for name, p in lm.model.state_dict().items())
            raise KeyError
        assert lm.model(input_ids=probe).logits.equal(expected)
    sample(lm, PROMPTS, Sampling(), 5)
    assert all(tensor.equal(before[name]) for name, tensor in lm.model.state_dict().items())
    assert {name: p.data_ptr() for name, p in lm.model.named_parameters()} == storage
    lm.model(input_ids=probe).logits.sum().backward()
    assert all(p.grad is not None for p in lm.parameters())


def test_the_base_model_writes_inside_its_block(lm):
    adapted = sample(lm, PROMPTS, Sampling(), 12)
    with lm.base():
        plain = sample(lm, PROMPTS, Sampling(), 12, stop=())
        expected = [alone(lm, prompt, text.ids) for prompt, text in zip(PROMPTS, plain, strict=True)]
    assert [t.ids for t in plain] != [t.ids for t in adapted]
    np.testing.assert_allclose([t.log_probability for t in plain], expected, rtol=1e-9)


def test_memory_stays_flat_over_ten_thousand_samples():
    lm = sharp(language_model())
    stop = range(10, 258, 4)

    def write(count):
        return sample(lm, [[10, 11, 12]] * count, Sampling(), 24, batch_size=100, stop=stop)

    write(1000)
    before = peak_memory()
    texts = write(10_000)
    assert len({len(t.ids) for t in texts}) > 10
    assert peak_memory() - before < 32e6


def test_prompts_take_no_more_memory_than_a_batch(lm, monkeypatch):
    """Keys and values of waiting prompts are computed when their turn is near."""
    seen = []
    lm.model.register_forward_pre_hook(lambda m, args, kwargs: seen.append(kwargs["input_ids"].shape), with_kwargs=True)
    prompts = [list(pair) for pair in itertools.product(range(10, 20), range(10, 20))]
    sample(lm, prompts, Sampling(), 3, batch_size=10, stop=())
    assert [shape for shape in seen if shape[1] > 1] == [(10, 2)] * 10
    assert seen.index((10, 2)) == 0 and seen[1:3] == [(10, 1), (10, 1)]


def test_a_text_ends_after_given_tokens(family):
    """The texts are those without them, cut behind the first place where they stand."""
    whole = sample(family, PROMPTS, WARPED, 12, seed=(5,))
    until = whole[0].ids[2:4]
    cut = sample(family, PROMPTS, WARPED, 12, seed=(5,), until=until, batch_size=5)
    places = [[k for k in range(2, len(one.ids) + 1) if one.ids[k - 2 : k] == until] for one in whole]
    assert places[0] and not all(places)
    expected = [one.ids[: at[0]] if at else one.ids for one, at in zip(whole, places, strict=True)]
    assert [one.ids for one in cut] == expected
