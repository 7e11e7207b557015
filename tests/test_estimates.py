"""What a plan says a run will cost: operations against a counter, tokens against a run, and the command's options."""

from __future__ import annotations

import json

import pytest
import torch
from test_cli import command  # noqa: F401
from test_run import results, run_tiny
from tiny import byte_tokenizer, save_tiny_model, tiny_llama, tiny_t5, tiny_values
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM

from retain import costs
from retain.adapters import attach_adapter
from retain.architecture import KNOWN, Pieces, outline, shape_of
from retain.config import make_config
from retain.config_yaml import dump_yaml
from retain.costs import DEVICES, Device, Hardware, Passes, Shape
from retain.estimates import estimate
from retain.model import LanguageModel
from retain.scheduler import plan_run
from retain.tasks import load_tasks
from retain.types import InputError

ADAPTED = make_config({"tasks": ["iso_date"], "lora": {"r": 4}, "seed": 1}, "test")


def counted(model, tokens=64, labels=4, backward=True):
    """What torch counts for one pass, and what it keeps for the backward pass, in bytes."""
    getattr(model, "get_base_model", lambda: model)().set_attn_implementation("eager")  # the CPU's other is not counted
    kept, weights = {}, {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    mask = torch.zeros(1, 1, tokens, tokens)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), FlopCounterMode(display=False) as flops:
        out = model(
            input_ids=torch.zeros(1, tokens, dtype=torch.long),
            attention_mask=mask,
            use_cache=False,
            logits_to_keep=torch.arange(labels),
        )
        if backward:
            out.logits.float().logsumexp(-1).sum().backward()
    return flops.get_total_flops(), sum(kept.values())


@pytest.fixture(params=["adapter", "full"])
def lm(request):
    model = tiny_llama()
    if request.param == "adapter":
        model = attach_adapter(model, ADAPTED)
    return LanguageModel(model, byte_tokenizer(), 128)


def test_operations_are_those_that_torch_counts(lm):
    """Exact forward; backward to the part that needs no gradient, the first layer's input."""
    shape, passes = shape_of(lm), Passes(64, 64**2, 4)
    lm.model.train()
    assert counted(lm.model, backward=False)[0] == costs.forward_flops(shape, passes)
    ratio = costs.training_flops(shape, passes) / counted(lm.model)[0]
    assert 1.0 <= ratio < 1.12


def test_kept_activations_are_near_those_that_torch_keeps():
    """In 16 bits norms keep float32 copies too, which the count allows for, and attention written out keeps one more
    matrix; in 32 bits the count is above."""
    for dtype, low, high in ((torch.bfloat16, 0.7, 1.5), (torch.float32, 1.0, 2.0)):
        model = attach_adapter(tiny_llama(dtype), ADAPTED).train()
        shape, logits = shape_of(LanguageModel(model, byte_tokenizer(), 128)), 4 * 258 * 4
        for tokens in (32, 128):
            expected, _ = costs.activation_bytes(shape, tokens, dtype.itemsize)
            assert low < expected / (counted(model, tokens)[1] - logits) < high


def test_a_mixture_counts_the_experts_that_a_token_passes():
    config = MixtralConfig(
        vocab_size=258, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=1, max_position_embeddings=256,
    )  # fmt: skip
    model = MixtralForCausalLM(config)
    shape = shape_of(LanguageModel(model, byte_tokenizer(), 128))
    experts, attention, router = 2 * 3 * 32 * 64, 2 * (32 * 32 * 2 + 32 * 16 * 2), 2 * 32 * 4
    assert attention + experts <= shape.active <= attention + experts + router
    assert shape.intermediate == 64


@pytest.mark.parametrize("family", ["gpt2", "phi", "qwen2", "gemma2", "mistral"])
def test_other_families_count_forward(family):
    names = {"gpt2": dict(n_embd=32, n_layer=2, n_head=4, n_positions=128)}
    sizes = dict(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, max_position_embeddings=128,
    )  # fmt: skip
    config = AutoConfig.for_model(
        family, vocab_size=258, pad_token_id=0, bos_token_id=0, eos_token_id=0, **names.get(family, sizes)
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    shape = shape_of(LanguageModel(model, byte_tokenizer(), 128))
    expected = costs.forward_flops(shape, Passes(64, 64**2, 4))
    assert expected == pytest.approx(counted(model, backward=False)[0], rel=0.02)


PUBLISHED = {
    "smollm2-135m": 134_515_008,
    "Qwen/Qwen2.5-7B": 7_615_616_512,
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
    "mistralai/Mistral-7B-v0.3": 7_248_023_552,
    "google/gemma-2-9b": 9_241_705_984,
}


@pytest.mark.parametrize("name", KNOWN)
def test_known_shapes_have_the_published_number_of_weights(name, tmp_path, monkeypatch):
    monkeypatch.setenv("RETAIN_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    lm, own = outline(make_config({"model": name, "tasks": ["iso_date"]}, "x"), tmp_path)
    assert shape_of(lm).weights == PUBLISHED[name]
    assert own or isinstance(lm.tokenizer, Pieces)


def planned(folder, on, **changes):
    values = tiny_values(folder, **changes)
    config = make_config(values, "x")
    tasks = load_tasks(config, folder)
    plans = plan_run(config, [(task.name, len(task.train)) for task in tasks if task.is_stage])
    return estimate(config, folder, tasks, plans, on)


@pytest.mark.parametrize("strategy", ["none", "er", "joint"])
def test_tokens_are_those_of_a_finished_run(strategy, tmp_path):
    settings = {"training": {"learning_rate": 1e-3, "batch_size": 4, "epochs": 2, "max_length": 128}}
    out = run_tiny(tmp_path, tmp_path / "run", strategy=strategy, **settings)
    spent = results(out)["costs"]
    found = planned(tmp_path, Hardware("cpu"), strategy=strategy, **settings)["tokens"]
    exact = strategy != "er"  # what er draws is not known before
    assert found["training"] == (spent["train_tokens"] if exact else pytest.approx(spent["train_tokens"], rel=0.03))
    assert found["evaluation"] == spent["eval_tokens"]
    assert found["written_at_most"] >= spent["generated_tokens"]
    assert 0 < found["training_computed"] < found["training"]


def test_a_tokenizer_that_is_not_here_is_told(tmp_path):
    whole = planned(tmp_path, Hardware("a100"))
    for path in (tmp_path / "model").glob("token*"):
        path.unlink()
    config = make_config(
        {"model": str(tmp_path / "model"), "tasks": [{"builtin": "iso_date", "max_train": 40, "max_test": 10}]}, "x"
    )
    tasks = load_tasks(config, tmp_path)
    found = estimate(config, tmp_path, tasks, plan_run(config, [("iso_date", 40)]), Hardware("a100"))
    assert (whole["counted_by"], found["counted_by"]) == ("tokenizer", "characters")
    characters = sum(len(sample.prompt) + len(sample.answer) for sample in tasks[0].train)
    assert characters / 4 < found["tokens"]["training"] < characters / 4 + 3 * 40


SHAPE = Shape(10_000, 8_000, 100, 2, 32, 4, 8, 2, 64, 258)


def test_time_and_memory_follow_the_hardware():
    device = Device(1e12, 1e9, 1e9)
    assert costs.decoding_seconds(SHAPE, 10, 1, 2, device, 0.5) == pytest.approx(10 * 20_000 / 1e9)
    slow = Device(1e6, 1e9, 1e9)
    products = 2 * (8_000 + 100) + 2 * 32 * 258
    assert costs.decoding_seconds(SHAPE, 10, 3, 2, slow, 0.5) == pytest.approx(10 * 3 * products / 5e5)
    assert costs.cache_bytes(SHAPE, 3, 5, 2) == 2 * 2 * 16 * 2 * 3 * 5
    kept, checkpointed = costs.activation_bytes(SHAPE, 100, 2)
    assert checkpointed < kept
    assert all(device.peak > 0 and device.bandwidth > 0 for device in DEVICES.values())


def test_processes_share_the_work_and_not_the_memory(tmp_path):
    one, eight = (planned(tmp_path, Hardware("h100", processes, 0.5)) for processes in (1, 8))
    assert eight["hours"]["total"] == pytest.approx(one["hours"]["total"] / 8)
    assert eight["flops"] == one["flops"] and eight["memory_bytes"] == one["memory_bytes"]
    assert planned(tmp_path, Hardware("h100", 1, 0.25))["hours"]["training"] == 2 * one["hours"]["training"]


def test_the_command(tmp_path, command):  # noqa: F811
    (tmp_path / "run.yaml").write_text(dump_yaml(tiny_values(tmp_path)))
    plain = json.loads(command("plan", tmp_path / "run.yaml", "--json")[1])
    with_device = json.loads(command("plan", tmp_path / "run.yaml", "--json", "--device", "cpu")[1])
    assert with_device.pop("estimate")["device"] == "cpu" and with_device == plain
    _, text, _ = command("plan", tmp_path / "run.yaml", "--device", "l4", "--processes", "2", "--mfu", "0.5")
    assert "on 2 x l4" in text and "memory a device" in text and "50% of the peak" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--device", "abacus"], "--device: 'abacus' is not known; one of cpu, t4"),
        (["--processes", "2"], "--device: missing"),
        (["--device", "cpu", "--processes", "0"], "--processes: 0; allowed: a whole number, 1 to 100000"),
        (["--device", "cpu", "--mfu", "nan"], "--mfu: nan; allowed: above 0 and at most 1"),
        (["--device", "cpu", "--mfu", "1.5"], "--mfu: 1.5; allowed"),
    ],
)
def test_wrong_options(options, message, tmp_path, command):  # noqa: F811
    (tmp_path / "run.yaml").write_text("tasks: [iso_date]\n")
    code, _, err = command("plan", tmp_path / "run.yaml", *options)
    assert code == 2 and message in err


def test_an_encoder_decoder_is_refused(tmp_path):
    with pytest.raises(InputError, match="estimates are for decoders"):
        save_tiny_model(tmp_path / "t5", tiny_t5())
        outline(make_config({"model": str(tmp_path / "t5"), "tasks": ["iso_date"]}, "x"), tmp_path)
