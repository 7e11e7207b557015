"""The weights that a stage leaves in its folder: an adapter in PEFT's format, or a whole model in transformers'."""

from __future__ import annotations

from pathlib import Path

import peft
import torch
from safetensors import SafetensorError

from retain.model import LanguageModel
from retain.types import InputError

ADAPTER_FOLDER, MODEL_FOLDER = "adapter", "model"


def save_weights(lm: LanguageModel, row: Path) -> None:
    """Write what is trained into a stage's folder: `adapter/`, or under full fine-tuning `model/` with a tokenizer."""
    if isinstance(lm.model, peft.PeftModel):
        lm.save_adapter(row / ADAPTER_FOLDER)
        return
    lm.model.save_pretrained(row / MODEL_FOLDER)
    lm.tokenizer.save_pretrained(row / MODEL_FOLDER)


def load_weights(lm: LanguageModel, row: Path) -> None:
    """Put the weights of a stage's folder in place of the current ones. Raises InputError for broken or other ones."""
    if isinstance(lm.model, peft.PeftModel):
        lm.load_adapter(row / ADAPTER_FOLDER)
        return
    folder, hint = row / MODEL_FOLDER, "restore it, or start anew with --out"
    if not weight_files(row):
        raise InputError(f"{folder}: no weights in it; {hint}")
    try:
        found, report = type(lm.model).from_pretrained(folder, dtype=lm.dtype, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise InputError(f"{folder}: its weights are broken ({' '.join(str(error).split())[:200]}); {hint}") from None
    if odd := sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"], *report["unexpected_keys"]])):
        raise InputError(f"{folder}: not the weights of this model ({odd[0][:200]}); {hint}")
    if not all(bool(torch.isfinite(parameter).all()) for parameter in found.parameters()):
        raise InputError(f"{folder}: its weights are not finite; {hint}")
    try:
        lm.model.load_state_dict(found.state_dict())
    except RuntimeError as error:
        raise InputError(f"{folder}: not the weights of this model ({str(error)[:200]}); {hint}") from None


def weight_files(row: Path) -> list[Path]:
    """The files of a row's weights; none of the untouched model."""
    return sorted(file for name in (ADAPTER_FOLDER, MODEL_FOLDER) for file in (row / name).glob("*.safetensors"))
