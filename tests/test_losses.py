"""Losses and gradients are the ones transformers computes sequence by sequence, whatever the layout."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from tiny import byte_tokenizer, tiny_llama, tiny_values
from transformers import GPT2Config, GPT2LMHeadModel

from retain.adapters import attach_adapter
from retain.config import make_config
from retain.layouts import choose_layout
from retain.losses import label_logits, make_rows, row_losses, sample_losses, token_losses
from retain.model import LanguageModel
from retain.strategies.base import Strategy
from retain.trainer import Optimization
from retain.types import Sample

SAMPLES = [
    Sample(f"t/{k}", "t", f"Say the {word}.\n{'x' * k}\nAnswer:\n", word)
    for k, word in enumerate(["red", "blue", "a", "green and yellow", "red"])
]


def language_model(dtype=torch.float32, model=None, **lora):
    model = model or tiny_llama(dtype)
    adapted = attach_adapter(model, make_config({"lora": lora, "seed": 1}, "test", need_tasks=False))
    with torch.random.fork_rng():
        torch.manual_seed(7)
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:  # zero at the start, which would hide wrong gradients
                torch.nn.init.normal_(parameter, std=0.1)
    return LanguageModel(adapted.to(dtype), byte_tokenizer(), max_length=128)


def reference(lm):
    """Each sample alone, loss by transformers itself (which reduces in float32)."""
    losses = []
    for sample in SAMPLES:
        sequence = lm.encode(sample)
        ids = torch.tensor([sequence.ids])
        labels = torch.where(torch.tensor([sequence.labels]), ids, -100)
        losses.append(lm.model(input_ids=ids, labels=labels).loss)
    return torch.stack(losses)


def gradients(lm):
    found = torch.cat([p.grad.flatten() for p in lm.parameters()])
    lm.model.zero_grad()
    return found


@pytest.mark.parametrize("layout", ["tree", "masked", "padded"])
def test_losses_and_gradients_equal_transformers(layout):
    lm = language_model(torch.float64)
    expected = reference(lm)
    expected.sum().backward()
    expected_gradients = gradients(lm)
    lm.use_layout(layout)
    sequences = [lm.encode(sample) for sample in SAMPLES]
    found = torch.zeros(len(SAMPLES), dtype=torch.float64)
    for row in make_rows(lm, sequences, max_members=2):
        losses = row_losses(token_losses(label_logits(lm, row), row), row)
        losses.sum().backward()
        found[row.members] = losses.detach()
    torch.testing.assert_close(found.float(), expected.detach(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradients(lm), expected_gradients, rtol=1e-5, atol=2e-6)


def test_choose_layout_accepts_llama_and_gpt2():
    assert choose_layout(language_model()) == "tree"
    gpt2 = GPT2LMHeadModel(
        GPT2Config(vocab_size=258, n_positions=64, n_embd=32, n_layer=2, n_head=2, eos_token_id=1, bos_token_id=1)
    )
    assert choose_layout(language_model(model=gpt2, target_modules=["c_attn"])) == "tree"


def test_choose_layout_refuses_a_model_that_ignores_the_mask():
    lm = language_model()
    forward = lm.model.forward

    def without_mask(*args, attention_mask=None, tree=None, **kwargs):
        return forward(*args, attention_mask=None, **kwargs)

    lm.model.forward = without_mask
    assert choose_layout(lm) == "padded"


def test_prompt_bears_no_loss_and_the_end_does():
    lm = language_model()
    sequence = lm.encode(SAMPLES[0])
    answer = [i for i, label in zip(sequence.ids, sequence.labels, strict=True) if label]
    assert lm.tokenizer.decode(answer[:-1]) == "red"
    assert answer[-1] == lm.tokenizer.eos_token_id


def chat_model():
    lm = language_model()
    lm.tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% if m.role == 'assistant' %}<end>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    return lm


def test_chat_bears_loss_on_assistant_turns_only():
    lm = chat_model()
    turns = (("user", "Hi"), ("assistant", "Hello"), ("user", "Bye"), ("assistant", "Ciao"))
    sequence = lm.encode(Sample("c/0", "c", "", "Ciao", messages=turns))
    trained = [i for i, label in zip(sequence.ids, sequence.labels, strict=True) if label]
    assert lm.tokenizer.decode(trained) == "Hello<end>Ciao<end>"
    assert lm.tokenizer.decode(lm.prompt_ids(Sample("c/0", "c", "", "Ciao", messages=turns))).endswith("Bye[assistant]")


@pytest.mark.parametrize("micro", [1, 2, 5, None])
def test_a_step_does_not_depend_on_micro_batches(micro, tmp_path):
    outcomes = []
    for size in (micro, 3):
        lm = language_model(torch.float64)
        lm.use_layout("tree")
        training = make_config(tiny_values(tmp_path), "test").training.model_copy(update={"micro_batch_size": size})
        optimization = Optimization(lm, Strategy(), Accelerator(), training, steps=4)
        for _ in range(4):
            losses = optimization.step(SAMPLES, np.array([1.0, 1.0, 1.0, 0.5, 0.5]))
        outcomes.append((losses, torch.cat([p.detach().flatten() for p in lm.parameters()])))
    np.testing.assert_allclose(outcomes[0][0], outcomes[1][0], rtol=1e-9)
    torch.testing.assert_close(outcomes[0][1], outcomes[1][1], rtol=1e-6, atol=1e-6)


def test_sample_losses_keep_the_order():
    lm = language_model()
    lm.use_layout("tree")
    sequences = [lm.encode(sample) for sample in SAMPLES]
    torch.testing.assert_close(sample_losses(lm, sequences), reference(lm).detach(), rtol=1e-4, atol=1e-5)


def test_a_long_chat_keeps_its_start_and_its_last_answer():
    lm = chat_model()
    lm.max_length = 40
    turns = (("user", "u" * 100), ("assistant", "Hello"), ("user", "v" * 100), ("assistant", "Ciao"))
    sequence = lm.encode(Sample("c/0", "c", "", "Ciao", messages=turns))
    trained = [i for i, label in zip(sequence.ids, sequence.labels, strict=True) if label]
    assert len(sequence) == 40 and sequence.truncated
    assert lm.tokenizer.decode(trained) == "Ciao<end>"
    assert lm.tokenizer.decode(sequence.ids).startswith("[user]uuu")


def test_a_chat_answer_ends_as_it_was_trained():
    lm = chat_model()
    sample = Sample("c/0", "c", "", "Ciao", messages=(("user", "Hi"), ("assistant", "Ciao")))
    trained = lm.encode(sample)
    assert (*lm.prompt_ids(sample), *lm.answer_ids(sample, "Ciao")) == trained.ids
