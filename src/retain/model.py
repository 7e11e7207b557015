"""Load a language model and its tokenizer, attach LoRA, save and restore adapters."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, PreTrainedModel

from retain import attention
from retain.adapters import attach_adapter, drawn_from, other_weights, quantization
from retain.batching import Encoded, common_prefix, truncate
from retain.chat import check_tokenizer, render
from retain.config import Config
from retain.embedded import ALIASES, embedded_model
from retain.linear import mkl_is_slow, use_onednn
from retain.sections import ModelConfig
from retain.team import Team
from retain.types import InputError, Sample

log = logging.getLogger("retain")

MAX_RANK = 10_000
ADAPTER = "default"  # PEFT's name of the adapter that is trained, saved and loaded


@dataclass
class LanguageModel:
    """A model with LoRA attached, its tokenizer, and the few facts the engine needs about them.

    A plain transformers model will do too: all its weights are trained then. `read_untouched` reads its untouched form
    again, where there is any to read.

    `layout` is how sequences are laid out in a forward pass: "tree", "masked", "padded" or "single" (see
    `layouts.choose_layout`). `pads_left`: whether prompts of different lengths may be written on side by side.
    `team`: the processes among which is dealt out what is computed without gradients.
    `max_length` is the longest sequence in tokens; what is longer is truncated. In an encoder-decoder the
    encoder reads the prompt and the decoder writes the answer, so each has `max_length` tokens of its own.
    """

    model: peft.PeftModel | PreTrainedModel
    tokenizer: object
    max_length: int
    read_untouched: Callable[[], PreTrainedModel] | None = field(default=None, repr=False)
    layout: str = "padded"
    pads_left: bool = True
    team: Team = field(default_factory=Team)
    _attention: str = field(default="sdpa", repr=False)  # the model's own, while a layout has taken its place
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
    def is_encoder_decoder(self) -> bool:
        return bool(self.model.config.is_encoder_decoder)

    @property
    def decoder_start_id(self) -> int:
        """What the decoder reads before the first token of an answer; T5's is its padding."""
        given = getattr(self.model.config, "decoder_start_token_id", None)
        return self.pad_id if given is None else given

    @property
    def answer_limit(self) -> int:
        """Tokens an answer may have at most in a prediction, so that enough of its prompt is left."""
        return self.max_length if self.is_encoder_decoder else self.max_length // 2

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer."""
        extra = self.model.generation_config.eos_token_id
        extra = extra if isinstance(extra, list) else [extra]
        return tuple(sorted({i for i in [self.tokenizer.eos_token_id, *extra] if i is not None}))

    @property
    def unwrapped(self) -> PreTrainedModel:
        """The transformers model itself; adapters act in it."""
        return self.model.get_base_model() if isinstance(self.model, peft.PeftModel) else self.model

    @property
    def positions(self) -> int:
        """The most tokens the model can read: `max_length` bounds what it is trained on, not what it writes from."""
        return max(self.max_length, getattr(self.model.config, "max_position_embeddings", None) or 0)

    def use_layout(self, layout: str) -> None:
        """Take a layout, and the attention function that goes with it."""
        base = self.unwrapped
        current = base.config._attn_implementation
        if layout == "tree" and current != attention.NAME:
            self._attention = current
            base.set_attn_implementation(attention.NAME)
        elif layout != "tree" and current == attention.NAME:
            base.set_attn_implementation(self._attention)
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

    def forget(self) -> None:
        """Let go of the samples that were encoded, and their texts."""
        self._encoded.clear()

    def prompt_ids(self, sample: Sample) -> list[int]:
        """Tokens up to where the (last) answer begins."""
        if sample.messages:
            return self._render(sample.messages[:-1], add_generation_prompt=True)
        return list(self.tokenizer(sample.prompt).input_ids)

    def cut_prompt(self, prompt: Sequence[int], room: int) -> Sequence[int]:
        """The start of a prompt that leaves `room` tokens for its answer, in an encoder one for end-of-text."""
        return prompt[: self.max_length - (1 if self.is_encoder_decoder else room)]

    def answer_ids(self, sample: Sample, text: str) -> list[int]:
        """Tokens of `text` as an answer to the sample, with what closes an answer."""
        if not sample.messages:
            return [*self.tokenizer(text, add_special_tokens=False).input_ids, self.tokenizer.eos_token_id]
        turns = (*sample.messages[:-1], ("assistant", text))
        whole, prompt = self._render(turns, False), self.prompt_ids(sample)
        if whole[: len(prompt)] == prompt:
            return whole[len(prompt) :]
        # The template or the tokenizer joins prompt and answer otherwise than they are written apart.
        told, opening = render(self.tokenizer, turns, False), render(self.tokenizer, turns[:-1], True)
        return list(self.tokenizer(told[common_prefix(told, opening) :], add_special_tokens=False).input_ids)

    def sequence(self, prompt: list[int], answer: list[int], labels: Sequence[bool] | None = None) -> Encoded:
        """A prompt and its answer within `max_length`. `labels`: which prompt tokens bear loss too.

        In an encoder-decoder prompt and answer are cut apart, each to `max_length`: the prompt, its end-of-text
        included, keeps its start and the answer its end (MSSR App. E.3). The prompt bears no loss.
        """
        if self.is_encoder_decoder:
            closed = prompt[-1:] == [self.tokenizer.eos_token_id]
            cut = len(prompt) - closed >= self.max_length or len(answer) > self.max_length
            return Encoded.of(self.cut_prompt(prompt, 0), answer[-self.max_length :], cut)
        labels = labels or [False] * len(prompt)
        prompt, answer, cut = truncate(prompt, answer, self.max_length)
        return Encoded((*prompt, *answer), (*labels[: len(prompt)], *[True] * len(answer)), cut)

    def _conversation(self, sample: Sample) -> tuple[list[int], list[bool]]:
        """Tokens of a chat before its last answer, and which of them belong to earlier answers.

        Some templates tell an earlier answer otherwise than the last one (without its reasoning, say). What was
        gathered up to there is told anew then, and bears no loss.
        """
        ids: list[int] = []
        labels: list[bool] = []

        def grow(messages: tuple[tuple[str, str], ...], add_generation_prompt: bool, label: bool) -> None:
            whole = self._render(messages, add_generation_prompt)
            if whole[: len(ids)] != ids:
                ids.clear()
                labels.clear()
                label = False
            labels.extend([label] * (len(whole) - len(ids)))
            ids.extend(whole[len(ids) :])

        for turn, (role, _) in enumerate(sample.messages):
            if role == "assistant":
                grow(sample.messages[:turn], True, False)
                if turn + 1 < len(sample.messages):
                    grow(sample.messages[: turn + 1], False, True)
        return ids, labels

    def _render(self, messages: tuple[tuple[str, str], ...], add_generation_prompt: bool) -> list[int]:
        text = render(self.tokenizer, messages, add_generation_prompt)
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def save_adapter(self, folder: Path) -> None:
        """Write the adapter in PEFT's format."""
        self.model.save_pretrained(folder, safe_serialization=True)

    def load_adapter(self, folder: Path) -> None:
        """Put the weights of a saved adapter in place of the current ones."""
        if not (folder / "adapter_model.safetensors").is_file():
            raise InputError(f"{folder}: no adapter_model.safetensors in it; restore it, or start anew with --out")
        try:
            weights = peft.load_peft_weights(str(folder), device=str(self.device))
        except SafetensorError as error:
            raise InputError(
                f"{folder}: its weights are broken ({error}); restore it, or start anew with --out"
            ) from None
        if not all(bool(torch.isfinite(tensor).all()) for tensor in weights.values()):
            raise InputError(f"{folder}: its weights are not finite; restore it, or start anew with --out")
        own = {name: tensor.shape for name, tensor in peft.get_peft_model_state_dict(self.model).items()}
        ranks = {len(tensor) for name, tensor in weights.items() if "lora_A" in name and tensor.ndim}
        same = own == {name: tensor.shape for name, tensor in weights.items()}
        if not same and (len(ranks) > 1 or max(ranks, default=0) > MAX_RANK):
            raise InputError(f"{folder}: not an adapter of this model (ranks {', '.join(map(str, sorted(ranks)))})")
        try:
            if not same and ranks - {getattr(self.model.peft_config[ADAPTER], "r", None)}:
                self.put_adapter(ADAPTER, *ranks, weights)
                self.activate()
            outcome = peft.set_peft_model_state_dict(self.model, weights)
        except (RuntimeError, KeyError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{folder}: not an adapter of this model ({reason})") from error
        if outcome.unexpected_keys:
            raise InputError(f"{folder}: not an adapter of this model ({outcome.unexpected_keys[0][:200]})")

    def adapter_weights(self, name: str = ADAPTER) -> dict[str, torch.Tensor]:
        """A copy of an adapter's tensors under PEFT's names for them."""
        weights = peft.get_peft_model_state_dict(self.model, adapter_name=name)
        return {key: tensor.detach().clone() for key, tensor in weights.items()}

    def put_adapter(
        self,
        name: str,
        rank: int,
        weights: dict[str, torch.Tensor] | None = None,
        dropout: bool = True,
        seed: int = 0,
    ) -> None:
        """A LoRA adapter of any rank at the run's own scale, in place of one of that name.

        Without weights it is an empty one (B is 0) whose A is drawn from `seed`.
        """
        settings = copy.deepcopy(self.model.peft_config[ADAPTER])
        settings.lora_alpha, settings.r = settings.lora_alpha / settings.r * rank, rank
        settings.lora_dropout = settings.lora_dropout if dropout else 0.0
        if name in self.model.peft_config:
            self.model.delete_adapter(name)
        with drawn_from(seed):
            self.model.add_adapter(name, settings)
        if weights is not None:
            peft.set_peft_model_state_dict(self.model, weights, adapter_name=name)

    def activate(self, trained: str = ADAPTER, *frozen: str) -> None:
        """Which adapters take part in the forward pass, and which one of them is trained."""
        self.model.base_model.set_adapter([trained, *frozen])
        self.model.base_model.set_requires_grad(list(frozen), False)

    @contextmanager
    def base(self) -> Iterator[None]:
        """The untouched model inside this block: the adapter is off, or the weights are those at the source.

        Raises InputError where there is neither an adapter nor a source.
        """
        if isinstance(self.model, peft.PeftModel):
            with self.model.disable_adapter():
                yield
        elif self.read_untouched is None:
            raise InputError("model: it has no adapter, so training changes it and its untouched form is not at hand")
        else:
            with other_weights(self.model, self.read_untouched()):
                yield


def load_model(config: Config, base: Path = Path()) -> LanguageModel:
    """Load model and tokenizer; attach LoRA with weights drawn from the run's seed, or train all weights.

    base: the folder that a relative path is relative to.
    """
    source = locate(config.model, base)
    options = {
        "trust_remote_code": config.model.trust_remote_code,
        "revision": config.model.revision or "main",
    }
    read = partial(_read_model, config, source, options)
    try:
        tokenizer, model = AutoTokenizer.from_pretrained(source, **options), read()
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise InputError(
            f"model.name: {config.model.name!r} cannot be loaded: {reason}. Give one of "
            f"{', '.join(ALIASES)}, a folder with config.json, or a Hub name that is cached or reachable"
        ) from error
    check_tokenizer(tokenizer, config.model, base)
    limit = getattr(model.config, "max_position_embeddings", None) or config.training.max_length
    if limit < config.training.max_length:
        log.warning("training.max_length %d is cut to the model's %d positions", config.training.max_length, limit)
    full = config.training.method == "full"
    trained = model if full else attach_adapter(model, config)
    if mkl_is_slow():
        use_onednn(trained)
    longest = min(limit, config.training.max_length)
    return LanguageModel(trained, tokenizer, longest, read_untouched=read if full else None)


def _read_model(config: Config, source: str, options: Mapping[str, Any]) -> PreTrainedModel:
    """The model as it lies at its source, in the run's precision."""
    settings = AutoConfig.from_pretrained(source, **options)
    kind = AutoModelForSeq2SeqLM if settings.is_encoder_decoder else AutoModelForCausalLM
    dtype = torch.float32 if config.model.dtype == "auto" else getattr(torch, config.model.dtype)
    quantized = quantization() if config.training.method == "qlora" else {}
    model = kind.from_pretrained(source, dtype=dtype, **quantized, **options)
    if dtype == torch.float64 and hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")  # the others know no doubles
    return model


def locate(config: ModelConfig, base: Path) -> str:
    """What transformers loads a model from: the embedded one's folder, a folder, or a Hub name. Raises InputError."""
    if config.name in ALIASES:
        return str(embedded_model())
    local = base / Path(config.name).expanduser()
    if local.exists() and not (local / "config.json").is_file():
        raise InputError(f"model.name: {config.name!r} exists but holds no config.json of a transformers model")
    return str(local) if local.exists() else config.name
