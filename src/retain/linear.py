"""Linear layers by oneDNN where PyTorch's own choice, MKL, is slow.

MKL takes its slower kernels on CPUs of AMD. oneDNN, which PyTorch carries as well, does the same float32 products
there in half the time or less, forwards and backwards.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F


def mkl_is_slow() -> bool:
    """Whether float32 products of this PyTorch go through MKL on a CPU of AMD, and oneDNN is there instead."""
    try:
        vendor = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return "AuthenticAMD" in vendor and torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()


class _Product(torch.autograd.Function):
    """x Wᵀ + b."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        return _onednn(x, weight, bias)

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        rows = grad.reshape(-1, grad.shape[-1])
        return (
            _onednn(grad, weight.t()) if ctx.needs_input_grad[0] else None,
            _onednn(rows.t(), x.reshape(-1, x.shape[-1]).t()) if ctx.needs_input_grad[1] else None,
            rows.sum(0) if ctx.needs_input_grad[2] else None,
        )


def _onednn(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class OneDnnLinear(torch.nn.Linear):
    """A linear layer that multiplies by oneDNN on a CPU in float32, and as ever elsewhere."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) -> (..., out)."""
        single = x.dtype == self.weight.dtype == torch.float32 and x.device.type == "cpu"
        if not single or not x.numel() or torch.is_autocast_enabled("cpu"):
            return F.linear(x, self.weight, self.bias)
        return _Product.apply(x, self.weight, self.bias)


def use_onednn(model: torch.nn.Module) -> None:
    """Let every plain linear layer of a model multiply by oneDNN."""
    for module in model.modules():
        if type(module) is torch.nn.Linear:
            module.__class__ = OneDnnLinear
