"""Linear layers by oneDNN compute what PyTorch's do, gradients included."""

import copy

import pytest
import torch
from tiny import save_tiny_model

from retain import model as loading
from retain.config import make_config
from retain.linear import OneDnnLinear, use_onednn


def both(dtype=torch.float32, bias=True):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        plain = torch.nn.Linear(7, 4, bias=bias, dtype=dtype)
    fast = copy.deepcopy(plain)
    use_onednn(fast)
    assert type(fast) is OneDnnLinear
    return plain, fast


@pytest.mark.parametrize("shape", [(3, 5, 7), (64, 7), (7,), (0, 7), (2, 0, 7)])
@pytest.mark.parametrize("bias", [True, False])
def test_products_and_gradients(shape, bias):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    outcomes = []
    for layer in both(bias=bias):
        given = x.clone().requires_grad_()
        result = layer(given)
        (result**2).sum().backward()
        outcomes.append([result, given.grad, *(p.grad for p in layer.parameters())])
    for expected, found in zip(*outcomes, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


def test_a_transposed_input_and_a_frozen_weight():
    plain, fast = both()
    fast.requires_grad_(False)
    x = torch.randn(7, 6, generator=torch.Generator().manual_seed(3), requires_grad=True)
    torch.testing.assert_close(fast(x.t()), plain(x.t()))
    fast(x.t()).sum().backward()
    assert x.grad is not None and fast.weight.grad is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions_go_their_old_way(dtype):
    plain, fast = both(dtype)
    x = torch.randn(3, 7, dtype=dtype)
    assert fast(x).equal(plain(x)) and fast(x).dtype == dtype


def test_autocast_goes_its_old_way():
    plain, fast = both()
    x = torch.randn(3, 7)
    with torch.autocast("cpu", torch.bfloat16):
        assert fast(x).equal(plain(x)) and fast(x).dtype == torch.bfloat16


@pytest.mark.parametrize("slow", [True, False])
def test_models_take_it_where_mkl_is_slow(slow, tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "mkl_is_slow", lambda: slow)
    config = make_config({"model": str(save_tiny_model(tmp_path))}, "test", need_tasks=False)
    lm = loading.load_model(config)
    assert any(type(m) is OneDnnLinear for m in lm.model.modules()) == slow
    lm.save_adapter(tmp_path / "adapter")
    lm.load_adapter(tmp_path / "adapter")
