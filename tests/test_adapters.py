"""Any adapter that PEFT can attach: it acts, comes back from its folder, is drawn by the seed, and the base stays."""

import importlib.util

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from families import WIDE, tiny_family
from peft.tuners.tuners_utils import BaseTunerLayer
from test_families import SAMPLES
from tiny import save_tiny_model

from retain import model
from retain.adapters import four_bits, quantization
from retain.config import make_config
from retain.generation import merged
from retain.layouts import choose_layout
from retain.losses import sample_losses
from retain.model import load_model
from retain.sections import TrainingConfig
from retain.strategies.base import Strategy
from retain.trainer import Optimization
from retain.types import InputError

VARIANTS = {
    "all-linear": {"target_modules": "all-linear"},
    "pattern": {"target_modules": r".*\.(gate|up)_proj"},
    "rslora": {"use_rslora": True, "r": 16},
    "dora": {"use_dora": True},
    "both": {"use_dora": True, "use_rslora": True, "target_modules": "all-linear", "exclude_modules": "k_proj"},
    "ranks": {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"v_proj": 4.0}},
    "one layer": {"layers_to_transform": [1]},
    "head": {"modules_to_save": ["lm_head"]},
    "drawn": {"init_lora_weights": "gaussian"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model"), tiny_family("qwen3").to(torch.float64))


def opened(folder, **lora):
    config = {"model": {"name": str(folder), "dtype": "float64"}, "lora": lora, "training": {"max_length": 128}}
    lm = load_model(make_config(config, "test", need_tasks=False))
    choose_layout(lm)
    return lm


def losses(lm):
    return sample_losses(lm, [lm.encode(one) for one in SAMPLES[:3]])


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_trains_and_comes_back_and_leaves_the_base(name, folder, tmp_path):
    lm, twin = opened(folder, **VARIANTS[name]), opened(folder, **VARIANTS[name])
    assert all(a.equal(b) for a, b in zip(lm.parameters(), twin.parameters(), strict=True)), "drawn by the seed"
    with lm.base():
        before = losses(lm)
    optimizer = torch.optim.SGD(lm.parameters(), lr=0.05)
    for _ in range(2):
        lm.model.train()
        ids = torch.tensor([lm.encode(SAMPLES[2]).ids])
        lm.model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    trained = losses(lm)
    assert (trained - before).abs().max() > 1e-3, "does not act"
    with lm.base():
        torch.testing.assert_close(losses(lm), before, rtol=0, atol=0)
    with merged(lm):
        torch.testing.assert_close(losses(lm), trained)
    torch.testing.assert_close(losses(lm), trained, rtol=0, atol=0)
    lm.save_adapter(tmp_path)
    twin.load_adapter(tmp_path)
    torch.testing.assert_close(losses(twin), trained, rtol=0, atol=0)


def test_rslora_scales_by_the_root_of_the_rank(folder):
    lm = opened(folder, r=16, alpha=8.0, use_rslora=True)
    layers = [module for module in lm.model.modules() if isinstance(module, BaseTunerLayer)]
    [scale] = {layer.scaling["default"] for layer in layers}
    assert scale == 8.0 / 4.0


def test_all_linear_leaves_the_head_out(folder):
    lm = opened(folder, target_modules="all-linear")
    names = {name.split(".")[-4] for name, _ in lm.model.named_parameters() if "lora_A" in name}
    assert names == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_experts_by_their_parameters(tmp_path):
    save_tiny_model(tmp_path, tiny_family("qwen3-moe"))
    lm = opened(tmp_path, target_parameters=["experts.gate_up_proj"])
    parameters = {name: parameter for name, parameter in lm.model.named_parameters() if parameter.requires_grad}
    experts = [parameter for name, parameter in parameters.items() if "experts" in name]
    assert experts
    before = losses(lm)
    with torch.no_grad():
        for parameter in experts:
            parameter.add_(0.02)
    trained = losses(lm)
    assert (trained - before).abs().max() > 1e-3
    with lm.base():
        torch.testing.assert_close(losses(lm), before, rtol=0, atol=0)
    with merged(lm):
        torch.testing.assert_close(losses(lm), trained)
    torch.testing.assert_close(losses(lm), trained, rtol=0, atol=0)


def test_ranks_of_another_pattern_are_refused(folder, tmp_path):
    opened(folder, rank_pattern={"v_proj": 2}).save_adapter(tmp_path)
    with pytest.raises(InputError, match=r"not an adapter of this model \(ranks 2, 8\)"):
        opened(folder).load_adapter(tmp_path)


def test_a_layer_that_is_not_there(folder):
    with pytest.raises(InputError, match=r"lora.target_modules: query and value projections not found.*q_proj"):
        opened(folder, layers_to_transform=[7])


def test_a_combination_that_peft_refuses(folder):
    with pytest.raises(InputError, match=r"lora: PEFT refuses this combination .*layers_pattern"):
        opened(folder, layers_pattern="layers")


def test_qlora_needs_its_package_and_a_gpu(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"training.method: qlora needs the package bitsandbytes; `pip install"):
        quantization()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"training.method: qlora needs a GPU, and PyTorch finds none here; set lora"):
        quantization()


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
def test_qlora_trains_an_adapter_beside_weights_of_four_bits(tmp_path, monkeypatch):
    """On a CPU, without the kernels for inference there, which pass no gradient on."""
    monkeypatch.setattr(model, "quantization", lambda: {"quantization_config": four_bits(torch.float32)})
    save_tiny_model(tmp_path / "model", tiny_family("qwen3", **WIDE, initializer_range=0.1))

    def four_bit_model():
        config = {"model": str(tmp_path / "model"), "training": {"method": "qlora", "max_length": 128}}
        lm = load_model(make_config(config, "test", need_tasks=False))
        for module in lm.model.modules():
            if type(module).__name__ == "Linear4bit":
                module.support_avx512bf16_for_cpu = False
        choose_layout(lm)
        return lm

    lm = four_bit_model()
    assert "Linear4bit" in {type(module).__name__ for module in lm.model.modules()}
    before = losses(lm)
    plain = load_model(make_config({"model": str(tmp_path / "model")}, "test", need_tasks=False))
    assert 0 < (before - losses(plain)).abs().max() < 0.5, "four bits are near the weights, and not equal to them"
    strategy, training = Strategy(), TrainingConfig(learning_rate=1e-2, max_length=128)
    optimization = Optimization(lm, strategy, Accelerator(), training, steps=3)
    for _ in range(3):
        optimization.step(SAMPLES[:3], np.ones(3))
    trained = losses(lm)
    assert (before - trained).min() > 0.05, "it learns"
    with lm.base():
        torch.testing.assert_close(losses(lm), before, rtol=0, atol=0)
    lm.save_adapter(tmp_path / "adapter")
    again = four_bit_model()
    again.load_adapter(tmp_path / "adapter")
    torch.testing.assert_close(losses(again), trained, rtol=0, atol=0)
