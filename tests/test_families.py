"""Every checked architecture: losses, gradients and greedy texts are those of transformers, one sequence at a time."""

import pytest
import torch
import torch.nn.functional as F
from families import FAMILIES, tiny_family
from tiny import byte_tokenizer

from retain.encoder_decoder import pair_of
from retain.generation import greedy, sample
from retain.layouts import choose_layout
from retain.losses import label_logits, make_rows, row_losses, sample_losses, token_losses
from retain.model import LanguageModel
from retain.sampling import Sampling
from retain.types import InputError, Sample

WORDS = ["red", "blue", "a", "green and yellow", "red"]
SAMPLES = [Sample("t/s", "t", "Say", "red"), Sample("t/n", "t", "Say no", "blue")] + [
    Sample(f"t/{k}", "t", f"Say the {word} twice over.\n{'x' * (3 * k)}\nAnswer:\n", word)
    for k, word in enumerate(WORDS)
]
EXPERTS = ("mixtral", "qwen2-moe", "qwen3-moe", "olmoe", "deepseek-v3", "gpt-oss")
SINGLE = ("bloom", "mpt", "gpt-neo", "gptj", "mamba")  # softmax or scan in single precision, whatever the model's own
STATEFUL = ("mamba",)
TREES = ("llama", "qwen2", "qwen3", "gemma", "phi", "phi3", "granite", "cohere", "gpt2", "qwen2-moe", "opt")


def language_model(name, dtype=torch.float64, **changes):
    lm = LanguageModel(tiny_family(name, dtype, **changes), byte_tokenizer(), max_length=128)
    choose_layout(lm)
    return lm


def alone(model, sequence):
    """What transformers makes of one sequence by itself: logits (K, V) and targets (K,) of its labels, and its loss."""
    if model.config.is_encoder_decoder:
        prompt, answer = pair_of(sequence)
        out = model(input_ids=torch.tensor([[*prompt, 1]]), labels=torch.tensor([answer]))
        return out.logits[0], torch.tensor(answer), out.loss
    ids, labels = torch.tensor([sequence.ids]), torch.tensor(sequence.labels)
    out = model(input_ids=ids, labels=torch.where(labels, ids, -100))
    return out.logits[0, :-1][labels[1:]], ids[0, 1:][labels[1:]], out.loss


@pytest.mark.parametrize("name", FAMILIES)
def test_losses_and_gradients_equal_transformers(name):
    lm, model = language_model(name), tiny_family(name, torch.float64)
    sequences = [lm.encode(one) for one in SAMPLES]
    expected = torch.stack([F.cross_entropy(*alone(model, sequence)[:2]) for sequence in sequences])
    expected.sum().backward()
    found = torch.zeros(len(SAMPLES), dtype=torch.float64)
    for row in make_rows(lm, sequences, row_tokens=200):
        losses = row_losses(token_losses(label_logits(lm, row), row), row)
        losses.sum().backward()
        found[row.members] = losses.detach().double()
    limit = 1e-5 if name in SINGLE else 1e-9
    torch.testing.assert_close(found, expected.detach().double(), rtol=limit, atol=limit)
    gradients = {key: theirs.grad for key, theirs in model.named_parameters() if theirs.grad is not None}
    largest = max(gradient.abs().max().item() for gradient in gradients.values())
    for key, expected in gradients.items():  # norms are taken in single precision, whatever the model's own
        mine = lm.model.get_parameter(key).grad
        torch.testing.assert_close(mine, expected, rtol=0, atol=(1e-4 if name in SINGLE else 1e-6) * largest)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_loss_is_the_one_that_transformers_reports(name):
    lm, model = language_model(name, torch.float32), tiny_family(name)
    model.set_attn_implementation("eager")  # attention spelled out
    sequences = [lm.encode(one) for one in SAMPLES]
    expected = torch.stack([alone(model, sequence)[2] for sequence in sequences]).detach()
    torch.testing.assert_close(sample_losses(lm, sequences), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_greedy_texts_are_those_of_transformers(name):
    lm, model = language_model(name), tiny_family(name, torch.float64)
    prompts = [lm.prompt_ids(one) for one in SAMPLES]
    expected = [generated_alone(model, prompt) for prompt in prompts]
    assert greedy(lm, prompts, 12) == expected
    if name in STATEFUL:
        with pytest.raises(InputError, match="keeps a state"):
            sample(lm, prompts, Sampling(top_k=1), 12)
    elif name == "phi3-longrope":  # a text that grows beyond the limit keeps the rotations of what came before
        longer = [k for k, prompt in enumerate(prompts) if len(prompt) > 24 or len(prompt) + 12 < 24]
        found = sample(lm, [prompts[k] for k in longer], Sampling(top_k=1), 12)
        assert longer and [text.ids for text in found] == [expected[k] for k in longer]
    else:
        assert [text.ids for text in sample(lm, prompts, Sampling(top_k=1), 12, batch_size=3)] == expected


def generated_alone(model, prompt):
    start = 1 if model.config.is_encoder_decoder else len(prompt)
    ids = torch.tensor([[*prompt, 1] if model.config.is_encoder_decoder else prompt])
    out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, num_beams=1,
                         max_new_tokens=12, pad_token_id=0, eos_token_id=1)[0, start:].tolist()  # fmt: skip
    return out[: out.index(1)] if 1 in out else out


@pytest.mark.parametrize("name", FAMILIES)
def test_the_layout_is_the_fastest_that_is_right(name):
    lm = language_model(name, torch.float32)
    config = lm.model.config
    windowed = "window" in name or getattr(config, "sliding_window", None) or getattr(config, "window_size", None)
    if name in TREES:
        assert lm.layout == "tree"
    elif name == "phi3-longrope":
        assert lm.layout == "single" and not lm.pads_left
    elif windowed:
        assert lm.layout == "padded" and lm.pads_left
    else:
        assert lm.layout in ("tree", "masked", "padded")


@pytest.mark.parametrize("name", ["mistral", "cohere2", "gemma3", "mixtral"])
def test_a_window_longer_than_every_sequence_is_none(name):
    lm = language_model(name, sliding_window=128)
    assert lm.layout == "tree"
    model = tiny_family(name, torch.float64, sliding_window=128)
    sequences = [lm.encode(one) for one in SAMPLES]
    expected = torch.stack([F.cross_entropy(*alone(model, sequence)[:2]) for sequence in sequences])
    torch.testing.assert_close(sample_losses(lm, sequences), expected.detach().float(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "without"),
    [
        ("gemma2", {"attn_logit_softcapping": None}),
        ("gemma2", {"final_logit_softcapping": None}),
        ("gemma2", {"sliding_window": 128}),
        ("mistral", {"sliding_window": 128}),
        ("cohere2", {"sliding_window": 128}),
        ("gpt-neo", {"window_size": 128}),
        ("cohere", {"logit_scale": 1.0}),
        ("granite", {"logits_scaling": 1.0}),
        ("granite", {"attention_multiplier": 1.0}),
        ("smollm3", {"no_rope_layers": [1, 1]}),
        ("phi3-longrope", {"original_max_position_embeddings": 128, "rope_parameters": None}),
    ],
)
def test_what_makes_a_family_special_matters_here(name, without):
    """Else equality would say nothing of it."""
    models = [tiny_family(name, torch.float64), tiny_family(name, torch.float64, **without)]
    lm = language_model(name)
    sequences = [lm.encode(one) for one in SAMPLES]
    losses = [torch.stack([alone(model, sequence)[2] for sequence in sequences]) for model in models]
    assert (losses[0] - losses[1]).abs().max() > 0.05


@pytest.mark.parametrize("name", EXPERTS)
def test_the_batch_does_not_change_a_loss_of_experts_nor_does_the_router(name):
    lm = language_model(name)
    sequences = [lm.encode(one) for one in SAMPLES]
    together = sample_losses(lm, sequences)
    torch.testing.assert_close(sample_losses(lm, sequences[3:5]), together[3:5], rtol=1e-6, atol=1e-6)
    if hasattr(lm.model.config, "output_router_logits"):
        lm.model.config.output_router_logits = True  # its auxiliary loss is no part of a sample's own
        torch.testing.assert_close(sample_losses(lm, sequences), together)


def test_a_model_without_the_usual_arguments_is_asked_for_all_logits():
    lm, model = language_model("llama"), tiny_family("llama", torch.float64)
    forward = lm.model.forward

    def bare(input_ids, use_cache=False):
        return forward(input_ids=input_ids, use_cache=use_cache)

    lm.model.forward = bare
    assert choose_layout(lm) == "single" and not lm.pads_left
    sequences = [lm.encode(one) for one in SAMPLES]
    expected = torch.stack([alone(model, sequence)[2] for sequence in sequences]).detach()
    torch.testing.assert_close(sample_losses(lm, sequences), expected.float(), rtol=1e-5, atol=1e-5)


def test_a_model_that_fails_is_refused():
    lm = language_model("llama")
    lm.model.forward = lambda input_ids: None
    with pytest.raises(InputError, match="model: llama cannot be trained here"):
        choose_layout(lm)
