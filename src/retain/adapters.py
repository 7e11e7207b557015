"""What of a model is trained: an adapter of PEFT beside its weights, 4-bit ones too, or the weights themselves."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import peft
import torch
from transformers import BitsAndBytesConfig

from retain.config import Config
from retain.presets import preset_of
from retain.types import InputError

# What models call the query and value projections.
QUERY_AND_VALUE = (("q_proj", "v_proj"), ("q", "v"), ("query", "value"))


def attach_adapter(model: torch.nn.Module, config: Config) -> peft.PeftModel:
    """The model with its adapter, drawn from the run's seed: LoRA or one of its variants, or PEFT's OSF."""
    lora, osf = config.lora, dict(preset_of(config.strategy).regularizers).get("osf")
    where = {
        "target_modules": lora.target_modules or _query_and_value(model),
        "task_type": "SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM",
    }
    shape = {"r": lora.r, "lora_alpha": lora.alpha, "lora_dropout": lora.dropout, **lora.variants}
    try:
        settings = peft.OSFConfig(effective_rank=osf.preserved, **where) if osf else peft.LoraConfig(**shape, **where)
    except (ValueError, TypeError, ImportError) as error:
        raise InputError(f"lora: PEFT refuses this combination ({' '.join(str(error).split())[:200]})") from error
    with drawn_from(config.seed), warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")  # PEFT asks the old way
        try:
            return peft.get_peft_model(model, settings)
        except (ValueError, TypeError) as error:
            linear = {n.rsplit(".", 1)[-1] for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
            wanted = lora.target_modules or "query and value projections"
            reason = f" ({' '.join(str(error).split())[:200]})" if lora.variants else ""
            raise InputError(
                f"lora.target_modules: {wanted} not found in this model{reason}; it has {', '.join(sorted(linear))}"
            ) from error


@contextmanager
def drawn_from(seed: int) -> Iterator[None]:
    """Torch's generator as a function of `seed`, and as it was afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _query_and_value(model: torch.nn.Module) -> list[str] | None:
    """The query and value projections (MSSR Table 11) under the model's own names; None leaves it to PEFT."""
    names = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules()}
    return next((list(pair) for pair in QUERY_AND_VALUE if names.issuperset(pair)), None)


def quantization() -> dict[str, Any]:
    """How transformers loads the weights of QLoRA on the GPU: `four_bits` computed in half precision.

    Raises InputError without bitsandbytes, and without a GPU: on a CPU its layers, once evaluated, pass no gradient on.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError(
            "training.method: qlora needs the package bitsandbytes; `pip install 'retain[qlora]'`, or set lora"
        )
    if not torch.cuda.is_available():
        raise InputError("training.method: qlora needs a GPU, and PyTorch finds none here; set lora")
    half = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return {"quantization_config": four_bits(half), "device_map": {"": torch.cuda.current_device()}}


def four_bits(computed: torch.dtype) -> BitsAndBytesConfig:
    """NF4 with double quantization (Dettmers et al. 2023, arXiv 2305.14314); products in `computed`."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=computed,
    )


@contextmanager
def other_weights(model: torch.nn.Module, other: torch.nn.Module) -> Iterator[None]:
    """The model with the weights of another one of its kind inside this block; its own wait on the CPU."""
    device, given = next(model.parameters()).device, dict(other.named_parameters())
    kept = {name: parameter.data.cpu() for name, parameter in model.named_parameters()}
    try:
        for name, parameter in model.named_parameters():
            parameter.data = given[name].data.to(device)
        yield
    finally:
        for name, parameter in model.named_parameters():
            parameter.data = kept[name].to(device)
