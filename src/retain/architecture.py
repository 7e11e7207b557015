"""A model's shape without its weights: its modules on the meta device, from its configuration alone."""

from __future__ import annotations

import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig
from transformers.pytorch_utils import Conv1D

from retain.adapters import attach_adapter
from retain.cache import cache_folder
from retain.chat import check_tokenizer
from retain.config import Config
from retain.costs import Shape
from retain.model import ALIASES, LanguageModel, locate
from retain.sections import ModelConfig
from retain.types import InputError

CHARACTERS_A_TOKEN = 4  # of English prose
# config.json of models that the recipes name, so that a plan needs no download. From the model pages on the Hub.
KNOWN: dict[str, dict[str, Any]] = {
    "smollm2-135m": dict(
        model_type="llama", hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, vocab_size=49152, max_position_embeddings=8192, tie_word_embeddings=True,
    ),
    "Qwen/Qwen2.5-7B": dict(
        model_type="qwen2", hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28,
        num_key_value_heads=4, vocab_size=152064, max_position_embeddings=131072, tie_word_embeddings=False,
    ),
    "meta-llama/Llama-3.1-8B": dict(
        model_type="llama", hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, vocab_size=128256, max_position_embeddings=131072, tie_word_embeddings=False,
    ),
    "mistralai/Mistral-7B-v0.3": dict(
        model_type="mistral", hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, vocab_size=32768, max_position_embeddings=32768, sliding_window=None,
        tie_word_embeddings=False,
    ),
    "google/gemma-2-9b": dict(
        model_type="gemma2", hidden_size=3584, intermediate_size=14336, num_hidden_layers=42, num_attention_heads=16,
        num_key_value_heads=8, head_dim=256, vocab_size=256000, max_position_embeddings=8192,
    ),
}  # fmt: skip


class Pieces:
    """Stands in for a tokenizer that is not at hand: a token is four characters."""

    eos_token_id = pad_token_id = 0
    chat_template = "plain"

    def __call__(self, text: str, add_special_tokens: bool = True) -> SimpleNamespace:
        """The text's pieces as numbers that differ where the pieces do."""
        starts = range(0, len(text), CHARACTERS_A_TOKEN)
        pieces = (text[start : start + CHARACTERS_A_TOKEN].encode("utf-8", "surrogatepass") for start in starts)
        return SimpleNamespace(input_ids=[1 + zlib.crc32(piece) for piece in pieces])

    def apply_chat_template(self, chat: list[dict[str, str]], **options: Any) -> str:
        """The turns one after another."""
        return "".join(f"<{turn['role']}>\n{turn['content']}\n" for turn in chat)


def outline(config: Config, base: Path) -> tuple[LanguageModel, bool]:
    """The configuration's model without weights, its adapter attached, and whether its own tokenizer counts.

    A Hub name's files are asked for only where they are not on this machine. Raises InputError.
    """
    name = config.model.name
    options = {"trust_remote_code": config.model.trust_remote_code, "revision": config.model.revision or "main"}
    try:
        source = str(cache_folder() / name) if name in ALIASES else locate(config.model, base)
        settings = _known(name) or AutoConfig.from_pretrained(source, **options)
        if settings.is_encoder_decoder:
            raise InputError(f"--device: {name!r} is an encoder-decoder; estimates are for decoders")
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(settings, dtype=torch.float32)
            model = model if config.training.method == "full" else attach_adapter(model, config)
    except InputError:
        raise
    except (OSError, ValueError, ImportError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"model.name: the shape of {name!r} is not known ({reason}); give a folder that holds its config.json"
        ) from None
    tokenizer = _tokenizer(source, options, config.model, base)
    limit = getattr(settings, "max_position_embeddings", None) or config.training.max_length
    return LanguageModel(model, tokenizer or Pieces(), min(limit, config.training.max_length)), tokenizer is not None


def shape_of(lm: LanguageModel) -> Shape:
    """The dimensions of a decoder, with or without weights."""
    settings, base = lm.unwrapped.config.get_text_config(), lm.unwrapped
    heads = settings.num_attention_heads
    experts = _first(settings, 1, "num_local_experts", "num_experts", "n_routed_experts")
    share = _first(settings, 1, "num_experts_per_tok") / experts
    adapter = {id(p) for name, p in lm.model.named_parameters() if "lora_" in name}
    active, head = 0.0, base.get_output_embeddings()
    for name, module in base.named_modules():
        products = (isinstance(module, torch.nn.Linear | Conv1D) and module is not head) or "experts" in name
        own = [p for p in module.parameters(recurse=False) if id(p) not in adapter and p.ndim > 1] if products else []
        if ".lora_" not in name:
            active += sum(p.numel() for p in own) * (share if "experts" in name else 1.0)
    return Shape(
        weights=sum(p.numel() for p in lm.model.parameters() if id(p) not in adapter),
        active=int(active),
        trained=sum(p.numel() for p in lm.parameters()),
        layers=settings.num_hidden_layers,
        hidden=settings.hidden_size,
        heads=heads,
        head_width=_first(settings, settings.hidden_size // heads, "head_dim"),
        key_value_heads=_first(settings, heads, "num_key_value_heads"),
        intermediate=_intermediate(settings),
        vocabulary=settings.vocab_size,
    )


def _intermediate(settings: PretrainedConfig) -> int:
    """Numbers a token has inside the MLP, of a mixture of experts in all that it passes."""
    wide = _first(settings, 4 * settings.hidden_size, "moe_intermediate_size", "intermediate_size", "n_inner")
    return wide * _first(settings, 1, "num_experts_per_tok")


def _first(settings: PretrainedConfig, default: int, *names: str) -> int:
    """The first of these settings that is there."""
    return next((value for name in names if (value := getattr(settings, name, None))), default)


def _known(name: str) -> PretrainedConfig | None:
    values = KNOWN.get(name)
    return AutoConfig.for_model(**values) if values else None


def _tokenizer(source: str, options: dict[str, Any], config: ModelConfig, base: Path) -> Any:
    """The model's own tokenizer if it is on this machine and a run could take it."""
    try:
        found = AutoTokenizer.from_pretrained(source, local_files_only=True, **options)
        check_tokenizer(found, config, base)
    except (OSError, ValueError, ImportError):
        return None
    return found
