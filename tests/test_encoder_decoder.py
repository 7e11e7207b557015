"""Encoder-decoder models: every figure is the one transformers computes one pair at a time, and whole runs work."""

import json
import os
import subprocess
import sys
from functools import partial
from itertools import pairwise

import numpy as np
import peft
import pytest
import torch
import yaml
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file
from test_contract import difference, strategy
from test_losses import chat_model, gradients, language_model
from tiny import byte_tokenizer, save_tiny_model, stopped_in, tiny_t5, tiny_values
from transformers import (
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedConfig,
    T5Tokenizer,
)

from retain import Learner
from retain.adapters import attach_adapter
from retain.batching import Encoded
from retain.config import make_config
from retain.encoder_decoder import pair_of, pair_rows, split_pairs
from retain.evaluate import evaluate_task
from retain.generation import greedy
from retain.layouts import choose_layout
from retain.losses import label_logits, make_rows, row_losses, sample_losses, token_losses
from retain.model import LanguageModel, load_model
from retain.presets import REGULARIZERS
from retain.run import evaluate, run
from retain.sections import EvaluationConfig
from retain.strategies.base import Strategy
from retain.tasks import load_tasks
from retain.trainer import Optimization
from retain.types import InputError, Sample, Task

CHOICES = ("red", "blue", "green and yellow")
SAMPLES = [
    Sample(f"t/{k}", "t", f"Say the {word}.\n{'x' * (k % 3)}\nAnswer:\n", word)
    for k, word in enumerate(["red", "blue", "a", "green and yellow", "red", "blue"])
]
CHOICE_TASK = Task(
    "c", test=[Sample(f"c/{k}", "c", f"Pick {'x' * k}:\n", CHOICES[k % 3], choices=CHOICES) for k in range(7)]
)
OPEN_TASK = Task("o", test=[Sample(f"o/{k}", "o", f"Say {k}:\n", f"word {k}") for k in range(5)], metric="rouge_l")


def tiny_bart(dtype=torch.float32, **changes):
    """Counts its positions absolutely, and starts its answers with another token than T5."""
    sides = {f"{side}_{key}": size for side in ("encoder", "decoder") for key, size in
             {"layers": 2, "ffn_dim": 64, "attention_heads": 4}.items()}  # fmt: skip
    ends = {"pad_token_id": 0, "bos_token_id": 5, "eos_token_id": 1, "decoder_start_token_id": 6, "init_std": 0.4}
    config = BartConfig(
        vocab_size=258, d_model=32, max_position_embeddings=128, forced_eos_token_id=None, **sides, **ends, **changes
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return BartForConditionalGeneration(config).to(dtype)


KINDS = {"t5": partial(tiny_t5, initializer_factor=2.0), "bart": tiny_bart}  # large weights: answers that vary


@pytest.fixture(params=sorted(KINDS))
def kind(request):
    return request.param


def pair_model(kind, dtype=torch.float32, **changes):
    model = KINDS[kind](dtype, **changes)
    lm = language_model(dtype, model, target_modules=None)
    lm.model.eval()
    return lm


def alone(lm, sequence):
    """One pair without batching: the model's own loss, its attention spelled out."""
    base = lm.model.get_base_model()
    implementation = base.config._attn_implementation
    base.set_attn_implementation("eager")
    prompt, answer = pair_of(sequence)
    out = lm.model(input_ids=torch.tensor([[*prompt, 1]]), labels=torch.tensor([answer]))
    base.set_attn_implementation(implementation)
    return out


def alone_logs(lm, prompt, text):
    """Log-probabilities of the tokens of an answer."""
    answer = [*lm.tokenizer(text).input_ids, 1]
    with torch.no_grad():
        logits = alone(lm, Encoded.of(prompt, answer)).logits[0].log_softmax(-1)
    return [float(logits[k, token]) for k, token in enumerate(answer)]


def generated_alone(lm, prompt, count):
    out = lm.model.generate(
        input_ids=torch.tensor([[*prompt, 1]]), do_sample=False, num_beams=1, max_new_tokens=count, eos_token_id=1
    )[0, 1:].tolist()
    return out[: out.index(1)] if 1 in out else out


def written(lm, ids):
    return lm.tokenizer.decode(ids, skip_special_tokens=True).strip()


# ---- losses ----------------------------------------------------------------------------------------------


def test_losses_and_gradients_equal_transformers(kind):
    lm = pair_model(kind, torch.float64)
    sequences = [lm.encode(sample) for sample in SAMPLES]
    expected = torch.stack([alone(lm, sequence).loss for sequence in sequences])
    expected.sum().backward()
    expected_gradients = gradients(lm)
    found = torch.zeros(len(SAMPLES), dtype=torch.float64)
    for row in make_rows(lm, sequences, max_members=4):
        losses = row_losses(token_losses(label_logits(lm, row), row), row)
        losses.sum().backward()
        found[row.members] = losses.detach()
    torch.testing.assert_close(found, expected.detach(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(gradients(lm), expected_gradients, rtol=1e-7, atol=1e-9)
    assert expected_gradients.abs().max() > 1e-3


def test_losses_in_single_precision(kind):
    lm = pair_model(kind)
    sequences = [lm.encode(sample) for sample in SAMPLES]
    expected = torch.stack([alone(lm, sequence).loss for sequence in sequences])
    torch.testing.assert_close(sample_losses(lm, sequences), expected.detach(), rtol=1e-5, atol=1e-5)


def test_the_answer_with_its_end_bears_loss_and_the_prompt_does_not():
    lm = pair_model("t5")
    prompt, answer = pair_of(lm.encode(SAMPLES[0]))
    assert lm.tokenizer.decode(answer) == "red<end>"
    assert lm.tokenizer.decode(prompt) == SAMPLES[0].prompt


def test_text_without_a_prompt_is_scored_from_its_first_token_on(kind):
    lm = pair_model(kind)
    text = lm.tokenizer("plain text").input_ids
    for sequence in (Encoded.of([], text), lm.sequence([], text)):
        [row] = make_rows(lm, [sequence])
        assert row.input_ids.tolist() == [[1]] and row.targets.tolist() == text
        assert row.decoder_ids[0, 0] == (0 if kind == "t5" else 6)
        expected = lm.model(input_ids=torch.tensor([[1]]), labels=torch.tensor([text])).loss
        torch.testing.assert_close(sample_losses(lm, [sequence])[0], expected.detach(), rtol=1e-5, atol=1e-5)


def test_perplexities_of_a_batch_equal_one_by_one():
    lm = pair_model("t5")
    texts = [Encoded.of([], lm.tokenizer(text).input_ids) for text in ("a", "two words", "something longer")]
    together = sample_losses(lm, texts)
    torch.testing.assert_close(together, torch.cat([sample_losses(lm, [text]) for text in texts]), rtol=1e-5, atol=1e-5)


def test_the_encoder_sees_each_prompt_once_and_the_head_sees_labels_only():
    lm = pair_model("t5")
    prompts = [lm.prompt_ids(sample) for sample in CHOICE_TASK.test[:2]]
    sequences = [lm.sequence(prompt, lm.answer_ids(SAMPLES[0], text)) for prompt in prompts for text in CHOICES]
    base, seen = lm.model.get_base_model(), []
    base.encoder.block[0].register_forward_hook(lambda _, inputs, out: seen.append(inputs[0].shape[:2]))
    base.lm_head.register_forward_hook(lambda _, inputs, out: seen.append(out.shape))
    [row] = make_rows(lm, sequences)
    logits = label_logits(lm, row)
    labels = 2 * sum(len(text) + 1 for text in CHOICES)
    assert seen == [(2, len(prompts[1]) + 1), (labels, 258)] and logits.shape == (labels, 258)
    assert row.tokens == sum(len(prompt) + 1 for prompt in prompts) + labels


def test_an_adapter_on_the_head_changes_no_shape():
    lm = language_model(torch.float64, tiny_t5(torch.float64), target_modules=["q", "lm_head"])
    lm.model.eval()
    sequences = [lm.encode(sample) for sample in SAMPLES]
    expected = torch.stack([alone(lm, sequence).loss for sequence in sequences])
    torch.testing.assert_close(sample_losses(lm, sequences), expected.detach().float())


PAIRS = st.lists(
    st.tuples(st.lists(st.integers(0, 1), max_size=5).map(tuple), st.lists(st.integers(0, 1), max_size=4).map(tuple)),
    max_size=12,
)


@given(PAIRS, st.integers(1, 40), st.none() | st.integers(1, 5))
@settings(deadline=None)
def test_rows_hold_every_pair_once_and_no_more_than_they_may(pairs, limit, most):
    rows = split_pairs(pairs, limit, most)
    assert sorted(i for row in rows for i in row) == list(range(len(pairs)))

    def size(row):
        prompts = {pairs[i][0] for i in row}
        return len(prompts) * (max(map(len, prompts)) + 1) + len(row) * max(1, *(len(pairs[i][1]) for i in row))

    for row in rows:
        assert row and len(row) <= (most or len(row))
        assert size(row) <= limit or len(row) == 1
    for row, after in pairwise(rows):
        assert len(row) == most or size([*row, after[0]]) > limit, "a row is as full as it may be"


def test_rows_of_nothing():
    lm = pair_model("t5")
    assert list(pair_rows(lm, [])) == []
    [row] = pair_rows(lm, [Encoded.of([5, 6], [])])
    assert row_losses(token_losses(label_logits(lm, row), row), row).tolist() == [0.0]


@pytest.mark.parametrize(
    ("prompt", "answer", "kept"),
    [
        (7, 8, (7, 8, False)),
        (8, 8, (7, 8, True)),  # end-of-text has its place in the encoder
        (30, 3, (7, 3, True)),
        (3, 30, (3, 8, True)),
        (30, 30, (7, 8, True)),
    ],
)
def test_prompt_and_answer_are_cut_apart(prompt, answer, kept):
    lm = pair_model("t5")
    lm.max_length = 8
    sequence = lm.sequence(list(range(prompt)), list(range(100, 100 + answer)))
    first, last = pair_of(sequence)
    assert (len(first), len(last), sequence.truncated) == kept
    assert first == tuple(range(len(first))), "the prompt keeps its start"
    assert last == tuple(range(100 + answer - len(last), 100 + answer)), "the answer keeps its end"
    assert next(pair_rows(lm, [sequence])).input_ids.shape[1] <= 8


def test_a_prompt_that_is_closed_already_is_not_closed_again():
    lm = pair_model("t5")
    lm.max_length = 8
    for length, kept in ((7, (8, False)), (8, (8, True))):
        sequence = lm.sequence([*range(20, 20 + length), 1], [5, 1])
        [row] = pair_rows(lm, [sequence])
        assert (row.input_ids.shape[1], sequence.truncated) == kept
        assert row.input_ids[0].tolist() == [*range(20, 27), 1]


def test_earlier_answers_of_a_chat_belong_to_the_prompt():
    lm = pair_model("t5")
    lm.tokenizer.chat_template = chat_model().tokenizer.chat_template
    turns = (("user", "Hi"), ("assistant", "Hello"), ("user", "Bye"), ("assistant", "Ciao"))
    prompt, answer = pair_of(lm.encode(Sample("c/0", "c", "", "Ciao", messages=turns)))
    assert lm.tokenizer.decode(answer) == "Ciao<end>"
    assert lm.tokenizer.decode(prompt) == "[user]Hi[assistant]Hello<end>[user]Bye[assistant]"


# ---- steps -----------------------------------------------------------------------------------------------


def trained(tmp_path, micro, dropout):
    lm = pair_model("t5", torch.float64, dropout_rate=dropout)
    training = make_config(tiny_values(tmp_path), "test").training.model_copy(update={"micro_batch_size": micro})
    optimization = Optimization(lm, Strategy(), Accelerator(), training, steps=4)
    for _ in range(4):
        losses = optimization.step(SAMPLES, np.array([1.0, 1.0, 1.0, 1.0, 0.5, 0.5]))
    return losses, torch.cat([p.detach().flatten() for p in lm.parameters()])


def test_a_step_does_not_depend_on_micro_batches(tmp_path):
    losses, weights = trained(tmp_path, 3, 0.0)
    for micro in (1, 2, None):
        other_losses, other_weights = trained(tmp_path, micro, 0.0)
        np.testing.assert_allclose(other_losses, losses, rtol=1e-9)
        torch.testing.assert_close(other_weights, weights, rtol=1e-6, atol=1e-6)


def test_the_models_own_dropout_is_noise_of_the_step(tmp_path):
    state = torch.random.get_rng_state()
    (one, first), (two, second) = (trained(tmp_path, None, 0.1) for _ in range(2))
    assert np.array_equal(one, two) and first.equal(second)
    assert state.equal(torch.random.get_rng_state())
    assert not np.allclose(one, trained(tmp_path, None, 0.0)[0])


def test_scores_know_no_dropout():
    lm = pair_model("t5")
    lm.model.train()
    first, _ = evaluate_task(lm, CHOICE_TASK, EvaluationConfig())
    lm.model.train()
    again, _ = evaluate_task(lm, CHOICE_TASK, EvaluationConfig())
    assert first.nll == again.nll
    lm.model.train()
    sequences = [lm.encode(sample) for sample in SAMPLES]
    assert sample_losses(lm, sequences).equal(sample_losses(lm, sequences))


def test_the_base_model_is_the_untouched_one():
    lm, untouched = pair_model("t5"), KINDS["t5"]().eval()
    sequences = [lm.encode(sample) for sample in SAMPLES]
    with lm.base(), torch.no_grad():
        found = sample_losses(lm, sequences)
        answers = greedy(lm, [lm.prompt_ids(sample) for sample in SAMPLES], 6)
        for k, (prompt, answer) in enumerate(map(pair_of, sequences)):
            expected = untouched(input_ids=torch.tensor([[*prompt, 1]]), labels=torch.tensor([answer])).loss
            assert float(found[k]) == pytest.approx(float(expected), abs=1e-5)
            assert answers[k] == generated_alone(lm, prompt, 6)
    assert not torch.allclose(found, sample_losses(lm, sequences))


# ---- scores ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [3, 32])
def test_likelihood_and_nll_equal_the_slow_way(kind, batch):
    lm = pair_model(kind)
    scores, records = evaluate_task(lm, CHOICE_TASK, EvaluationConfig(batch_size=batch))
    by_mean, by_sum, nll = [], [], []
    for one in CHOICE_TASK.test:
        logs = {text: alone_logs(lm, lm.prompt_ids(one), text) for text in CHOICES}
        by_mean.append(max(CHOICES, key=lambda text: np.mean(logs[text])))
        by_sum.append(max(CHOICES, key=lambda text: np.sum(logs[text])))
        nll.append(-np.mean(logs[one.answer]))
    right = [sample.answer for sample in CHOICE_TASK.test]
    assert [r["choice"] for r in records] == by_mean
    assert scores.likelihood == np.mean([a == b for a, b in zip(by_mean, right, strict=True)])
    assert scores.likelihood_summed == np.mean([a == b for a, b in zip(by_sum, right, strict=True)])
    assert [r["nll"] for r in records] == pytest.approx(nll, rel=1e-5, abs=1e-5)
    assert scores.nll == pytest.approx(np.mean(nll), rel=1e-5)


@pytest.mark.parametrize("task", [CHOICE_TASK, OPEN_TASK], ids=["choices", "open"])
def test_predictions_are_what_generate_writes_one_by_one(kind, task):
    lm = pair_model(kind)
    scores, records = evaluate_task(lm, task, EvaluationConfig(batch_size=4, max_new_tokens=6))
    expected = [generated_alone(lm, lm.prompt_ids(sample), 6) for sample in task.test]
    assert [r["prediction"] for r in records] == [written(lm, ids) for ids in expected]
    assert len({tuple(ids) for ids in expected}) > 1, "the answer depends on the prompt"
    assert max(len(set(ids)) for ids in expected) > 1, "and on what is written already"
    assert scores.eval_tokens > 0 and scores.generated_tokens > 0


def test_an_answer_goes_on_from_where_it_was_begun(kind):
    lm = pair_model(kind)
    prompts = [[10, 11, 12, 13], [20], [], [10, 11, 12, 13], [30, 31]]
    begun = [[7], [], [40, 41, 42], [7, 8, 9, 10, 11], [5, 5]]
    expected = []
    for prompt, ids in zip(prompts, begun, strict=True):
        ids = list(ids)
        while len(ids) < 6 and 1 not in ids:  # without a cache, one token at a time
            with torch.no_grad():
                ids.append(int(alone(lm, Encoded.of(prompt, [*ids, 0])).logits[0, -1].argmax()))
        expected.append(ids[: ids.index(1)] if 1 in ids else ids)
    assert greedy(lm, prompts, 6, begun) == expected


def test_an_answer_ends_at_a_stop_token(monkeypatch):
    lm = pair_model("t5")
    prompts = [lm.prompt_ids(sample) for sample in OPEN_TASK.test]
    whole = greedy(lm, prompts, 8)
    stop = next(after for ids in whole for before, after in pairwise(ids) if before != after)
    monkeypatch.setattr(LanguageModel, "stop_ids", (stop,))
    assert greedy(lm, prompts, 8) == [ids[: ids.index(stop)] if stop in ids else ids for ids in whole]


def test_begun_answers_of_a_causal_model():
    lm = language_model()
    [whole] = greedy(lm, [[10, 11, 12]], 6)
    assert greedy(lm, [[10, 11, 12]] * 3, 6, [[], whole[:2], whole[:5]]) == [whole] * 3


def test_a_long_prompt_does_not_crowd_out_the_answer():
    lm = pair_model("t5")
    lm.max_length = 16
    task = Task("long", test=[Sample("l/0", "long", "p" * 60, "a" * 12, choices=("a" * 12, "b"))])
    _, records = evaluate_task(lm, task, EvaluationConfig())
    prompt = lm.tokenizer("p" * 15).input_ids
    assert records[0]["nll"] == pytest.approx(-np.mean(alone_logs(lm, prompt, "a" * 12)), rel=1e-5)
    assert records[0]["prediction"] == written(lm, generated_alone(lm, prompt, 13))


# ---- loading ---------------------------------------------------------------------------------------------


def config(model, **sections):
    return make_config({"model": str(model), **sections}, "test", need_tasks=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("t5"), tiny_t5())


def test_t5_loads_with_adapters_on_its_own_projections(folder):
    lm = load_model(config(folder))
    assert lm.is_encoder_decoder and lm.max_length == 2048 and choose_layout(lm) == "padded"
    assert adapted(lm) == {"q", "v"}
    assert lm.model.peft_config["default"].task_type == "SEQ_2_SEQ_LM"


def test_layers_that_t5_does_not_have_are_an_error(folder):
    with pytest.raises(InputError, match=r"lora.target_modules: \['q_proj', 'v_proj'\] not found.*it has .*q, v"):
        load_model(config(folder, lora={"target_modules": ["q_proj", "v_proj"]}))


def adapted(lm):
    return {name.split(".lora_A")[0].rsplit(".", 1)[-1] for name, _ in lm.model.named_parameters() if "lora_A" in name}


def test_default_layers_of_other_families(tmp_path):
    gpt2 = GPT2Config(vocab_size=258, n_positions=64, n_embd=32, n_layer=1, n_head=2, eos_token_id=1, bos_token_id=1)
    folder = save_tiny_model(tmp_path / "gpt2", GPT2LMHeadModel(gpt2))
    assert adapted(load_model(config(folder))) == {"c_attn"}  # PEFT knows that one
    lm = load_model(config(save_tiny_model(tmp_path / "bart", tiny_bart())))
    assert adapted(lm) == {"q_proj", "v_proj"} and lm.max_length == 128  # BART has so many positions
    assert adapted(load_model(config(save_tiny_model(tmp_path / "llama")))) == {"q_proj", "v_proj"}


def test_a_model_without_projections_that_anybody_knows():
    class Odd(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.config = PreTrainedConfig(is_encoder_decoder=False)
            self.mixer = torch.nn.Linear(2, 2)

    with pytest.raises(InputError, match=r"query and value projections not found in this model; it has mixer"):
        attach_adapter(Odd(), make_config({}, "test", need_tasks=False))


def test_a_decoder_without_a_start_token_starts_with_padding(tmp_path):
    path = save_tiny_model(tmp_path, tiny_t5())
    settings = json.loads((path / "config.json").read_text())
    del settings["decoder_start_token_id"]
    (path / "config.json").write_text(json.dumps(settings))
    (path / "generation_config.json").unlink()
    assert load_model(config(path)).decoder_start_id == 0


def test_a_t5_tokenizer_needs_no_sentencepiece(tmp_path, monkeypatch):
    words = [("▁Say", -1.0), ("▁red", -1.0), ("▁", -2.0), *[(letter, -3.0) for letter in "Saydre:"]]
    tokenizer = T5Tokenizer(vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *words], extra_ids=0)
    tiny_t5().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert (tmp_path / "tokenizer.json").is_file()
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    lm = load_model(config(tmp_path))
    assert AutoTokenizer.from_pretrained(tmp_path)("Say red").input_ids[-1] == 1
    sample = Sample("t/0", "t", "Say red", "red")
    assert lm.prompt_ids(sample) == [3, 4, 1] and lm.answer_ids(sample, "red") == [4, 1]
    [row] = make_rows(lm, [lm.encode(sample)])
    assert row.input_ids.tolist() == [[3, 4, 1]] and row.decoder_ids.tolist() == [[0, 4]]
    assert row.targets.tolist() == [4, 1], "the end stands once on either side"
    assert lm.tokenizer.decode([4, 1], skip_special_tokens=True).strip() == "red"


@pytest.mark.parametrize("model", [tiny_t5, tiny_bart])
def test_a_folder_without_a_tokenizer(tmp_path, model):
    model().save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"model\.name: no tokenizer in .*tokenizer\.json"):
        load_model(config(tmp_path))


def test_the_adapter_is_a_peft_adapter(folder, tmp_path):
    lm = load_model(config(folder))
    for parameter in lm.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(5))
    lm.save_adapter(tmp_path)
    other = LanguageModel(peft.PeftModel.from_pretrained(tiny_t5(), tmp_path), byte_tokenizer(), 2048)
    sequences = [lm.encode(sample) for sample in SAMPLES]
    torch.testing.assert_close(sample_losses(other, sequences), sample_losses(lm, sequences), rtol=1e-5, atol=1e-5)


# ---- whole runs ------------------------------------------------------------------------------------------


def t5_values(folder, **changes):
    values = tiny_values(folder, **changes)
    return values | {"model": str(save_tiny_model(folder / "t5", tiny_t5()))}


def run_t5(folder, out=None, **changes):
    return run(make_config(t5_values(folder, **changes), "test"), folder, out or folder / "run")


def results(out):
    return json.loads((out / "results.json").read_text())


def adapter(out, stage=-1):
    folder = sorted((out / "stages").glob("[0-9]*-*"))[stage]
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def same_tensors(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return run_t5(tmp_path_factory.mktemp("finished"))


def test_a_run_learns_replays_and_reports(finished):
    found = results(finished)
    nll = np.array(found["matrices"]["nll"])
    assert found["finished"] and nll.shape == (4, 3) and nll[-1].mean() < nll[0].mean()
    assert np.array(found["matrices"]["likelihood"]).shape == (4, 3)
    assert found["costs"]["replayed_samples"] > 0 and found["costs"]["replayed_tokens"] > 0
    assert (finished / "report.html").read_text().startswith("<!doctype html>")
    assert yaml.safe_load((finished / "config.yaml").read_text())["lora"]["target_modules"] is None


def test_a_stopped_run_resumes_to_the_same_bits(finished, tmp_path, monkeypatch):
    with stopped_in(2, monkeypatch):
        run_t5(tmp_path)
    out = run_t5(tmp_path)
    assert same_tensors(adapter(out), adapter(finished))
    assert results(out)["matrices"] == results(finished)["matrices"]
    memory = "buffer/memory.safetensors"
    assert same_tensors(load_file(out / memory), load_file(finished / memory))


def test_replay_acts(finished, tmp_path):
    plain = run_t5(tmp_path, strategy="none")
    assert same_tensors(adapter(plain, 1), adapter(finished, 1)), "the first stage has nothing to replay"
    assert not same_tensors(adapter(plain), adapter(finished))
    assert results(plain)["costs"]["replayed_samples"] == 0


def test_a_saved_adapter_gives_the_same_scores_again(finished):
    for stage in (0, 2, 3):
        scores, row = evaluate(finished, stage)["scores"], results(finished)
        for kind, key in (("generated", "generated"), ("likelihood", "likelihood"), ("nll", "nll")):
            assert [scores[task][key] for task in row["tasks"]] == row["matrices"][kind][stage]


def test_the_learner_gives_what_the_run_gives(finished, tmp_path):
    values = t5_values(tmp_path)
    tasks = load_tasks(make_config(values, "test"), tmp_path)
    sections = {key: values[key] for key in ("model", "strategy", "training", "schedule", "evaluation")}
    learner = Learner(out=tmp_path / "out", **sections)
    for task in tasks:
        learner.learn(task)
    assert same_tensors(adapter(tmp_path / "out"), adapter(finished))
    assert learner.evaluate()["matrices"] == results(finished)["matrices"]
    assert learner.report().is_file()


@pytest.fixture(scope="module")
def unprotected(tmp_path_factory):
    return run_short(tmp_path_factory.mktemp("none"), "none")


def run_short(folder, name):
    """Three stages without dropout, in float64."""
    model = save_tiny_model(folder / "t5", tiny_t5(dropout_rate=0.0))
    values = tiny_values(folder, strategy=strategy(name), model={"name": str(model), "dtype": "float64"})
    return run(make_config(values, "test"), folder, folder / "run")


@pytest.mark.parametrize("name", REGULARIZERS)
def test_every_regularizer_acts(name, tmp_path, unprotected):
    out = run_short(tmp_path, name)
    assert results(out)["finished"]
    assert difference(adapter(out), adapter(unprotected)) > 1e-3


@pytest.mark.parametrize("name", ["ssr + mssr", "ssr-paper", "lamol"])
def test_it_writes_its_own_rehearsal_data(name, tmp_path):
    values = t5_values(tmp_path, strategy=name)
    values["tasks"] = [task | {"description": f"Name the {task['name']} of a thing."} for task in values["tasks"][:2]]
    values["synthesis"] = {"samples": 8, "max_input_tokens": 8, "batch_size": 8}
    values["filters"] = {"heuristics": False, "perplexity": None, "consistency": None, "diversity": None}
    out = run(make_config(values, "test"), tmp_path, tmp_path / "run")
    costs = results(out)["costs"]
    assert costs["generated_tokens"] > 0
    assert costs["replayed_samples"] > 0 or name == "lamol"  # noise holds no "Output:" to part an answer from an input


def test_truncation_is_counted(tmp_path):
    out = run_t5(tmp_path, training={"batch_size": 4, "max_length": 30, "max_steps": 1})
    assert results(out)["truncated"] > 0


def test_the_command_line(tmp_path):
    def retain_command(*arguments):
        command = [sys.executable, "-m", "retain", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})

    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(t5_values(tmp_path)))
    for name in ("none", "mssr"):
        ran = retain_command("run", path, "--out", tmp_path / name, f"strategy={name}")
        assert ran.returncode == 0, ran.stderr
        assert "ACC" in ran.stdout
    scored = retain_command("evaluate", tmp_path / "mssr", "--stage", 2)
    assert scored.returncode == 0 and "color" in scored.stdout
    wrong = retain_command("run", path, "--out", tmp_path / "wrong", "lora.target_modules=[q_proj]")
    assert wrong.returncode == 2 and "it has" in wrong.stderr and "Traceback" not in wrong.stderr
