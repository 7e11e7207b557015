"""A stand-in for vLLM on the CPU: the part of its interface (0.11 to 0.33) that retain uses, over a transformers model.

It is strict where vLLM is: what that refuses, or does otherwise without a word, is an error here. It knows nothing of
speed, memory and 16 bits: whatever `dtype` is asked for, it computes in float32. Texts are drawn one after another by
a sampler of its own.
"""

from __future__ import annotations

import copy
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import peft
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

ENGINES: list[LLM] = []  # in the order in which they were opened


@dataclass
class Logprob:
    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass
class CompletionOutput:
    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None
    logprobs: list[dict[int, Logprob]] | None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


@dataclass
class RequestOutput:
    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool = True


@dataclass(frozen=True)
class LoRARequest:
    lora_name: str
    lora_int_id: int
    lora_path: str

    def __post_init__(self):
        if self.lora_int_id < 1 or not self.lora_path:
            raise ValueError(f"id must be > 0 and a path is needed, not {self.lora_int_id} and {self.lora_path!r}")


@dataclass
class SamplingParams:
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: list[str] = field(default_factory=list)
    stop_token_ids: list[int] = field(default_factory=list)
    ignore_eos: bool = False
    max_tokens: int | None = 16
    logprobs: int | None = None
    detokenize: bool = True
    include_stop_str_in_output: bool = False

    def __post_init__(self):
        if 0 < self.temperature < 0.01:
            raise ValueError(f"temperature {self.temperature} would be raised to 0.01")
        bounds = {
            "temperature": 0 <= self.temperature <= 2,
            "top_p": 0 < self.top_p <= 1,
            "top_k": type(self.top_k) is int and self.top_k >= -1,
            "repetition_penalty": self.repetition_penalty > 0,
            "max_tokens": type(self.max_tokens) is int and self.max_tokens >= 1,
            "seed": type(self.seed) is int and 0 <= self.seed < 2**63,
            "stop": all(self.stop) and (self.detokenize or not self.stop),
            "stop_token_ids": all(type(token) is int for token in self.stop_token_ids),
        }
        if wrong := [name for name, right in bounds.items() if not right]:
            raise ValueError(f"{wrong[0]}: {getattr(self, wrong[0])}")


class LLM:
    """One base model and the adapter that was read last; `requests` are those it got, `nights` its times asleep."""

    def __init__(
        self,
        model: str,
        *,
        revision: str | None = None,
        tokenizer_revision: str | None = None,
        trust_remote_code: bool = False,
        dtype: str = "auto",
        max_model_len: int | None = None,
        gpu_memory_utilization: float = 0.9,
        enable_lora: bool = False,
        max_loras: int = 1,
        max_lora_rank: int = 16,
        enable_sleep_mode: bool = False,
        logprobs_mode: str = "raw_logprobs",
        generation_config: str = "auto",
    ):
        self.base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        if dtype not in ("float16", "bfloat16"):
            raise AssertionError("assert inputs.dtype in [torch.float16, torch.bfloat16]")
        if max_lora_rank not in (8, 16, 32, 64, 128, 256, 320, 512):
            raise ValueError(f"max_lora_rank {max_lora_rank}")
        if max_model_len > self.base.config.max_position_embeddings:
            raise ValueError(f"max_model_len {max_model_len} is greater than the derived max_model_len")
        if gpu_memory_utilization > 0.8:
            raise RuntimeError("Engine core initialization failed. See root cause above.")
        if logprobs_mode not in ("raw_logprobs", "processed_logprobs", "raw_logits", "processed_logits"):
            raise ValueError(f"logprobs_mode {logprobs_mode}")
        self.length, self.rank, self.mode = max_model_len, max_lora_rank if enable_lora else 0, logprobs_mode
        self.sleeps = False if enable_sleep_mode else None
        self.adapter: tuple[int, peft.PeftModel] | None = None
        self.dtype, self.requests, self.nights = dtype, [], 0
        ENGINES.append(self)

    def sleep(self, level: int = 1) -> None:
        if self.sleeps is not False or level != 1:
            raise RuntimeError("asleep already, no sleep mode, or a level that forgets the weights")
        self.sleeps, self.nights = True, self.nights + 1

    def wake_up(self, tags: list[str] | None = None) -> None:
        if not self.sleeps:
            raise RuntimeError("not asleep")
        self.sleeps = False

    def generate(self, prompts, sampling_params=None, *, use_tqdm=True, lora_request=None) -> list[RequestOutput]:
        if self.sleeps:
            raise RuntimeError("an engine that sleeps has no weights")
        if len(prompts) != len(sampling_params):
            raise ValueError("The lengths of prompts and sampling_params must be the same.")
        model, done = self._model(lora_request), []
        for number, (prompt, params) in enumerate(zip(prompts, sampling_params, strict=True)):
            ids = prompt["prompt_token_ids"]
            if len(ids) >= self.length:
                raise ValueError(f"The decoder prompt (length {len(ids)}) is longer than {self.length}")
            self.requests.append((ids, params, lora_request))
            done.append(RequestOutput(str(number), None, ids, [self._complete(model, ids, params)]))
        return done

    def _model(self, request):
        if request is None:
            return self.base
        settings = json.loads((Path(request.lora_path) / "adapter_config.json").read_text())
        if settings["r"] > self.rank or settings.get("use_dora") or settings.get("modules_to_save"):
            raise ValueError(f"adapter of rank {settings['r']} with max_lora_rank {self.rank}")
        if self.adapter is None or self.adapter[0] != request.lora_int_id:  # a number that is known is not read again
            adapted = peft.PeftModel.from_pretrained(copy.deepcopy(self.base), request.lora_path)
            self.adapter = (request.lora_int_id, adapted.eval())
        return self.adapter[1]

    @torch.no_grad()
    def _complete(self, model, prompt, params) -> CompletionOutput:
        generator = torch.Generator().manual_seed(params.seed)
        cache, read, ids, places, reason, text = None, prompt, [], [], None, ""
        while reason is None:
            out = model(input_ids=torch.tensor([read]), past_key_values=cache, use_cache=True)
            logits, cache = out.logits[0, -1], out.past_key_values
            warped = warp(logits, params, [*prompt, *ids])
            token = int((warped / torch.empty_like(warped).exponential_(generator=generator)).argmax())
            logs = (logits if self.mode == "raw_logprobs" else warped.log()).log_softmax(-1)
            places.append({token: Logprob(float(logs[token]))})
            ids, read = [*ids, token], [token]
            text = self.tokenizer.decode(ids, skip_special_tokens=True) if params.detokenize else ""
            reason = self._reason(ids, prompt, params, text)
        total = sum(place[token].logprob for token, place in zip(ids, places, strict=True))
        return CompletionOutput(0, text, ids, total, places if params.logprobs is not None else None, *reason)

    def _reason(self, ids, prompt, params, text):
        if ids[-1] == self.tokenizer.eos_token_id and not params.ignore_eos:
            return "stop", None
        if ids[-1] in params.stop_token_ids:
            return "stop", ids[-1]
        if found := [stop for stop in params.stop if stop in text]:
            return "stop", found[0]
        full = len(ids) == params.max_tokens or len(prompt) + len(ids) == self.length
        return ("length", None) if full else None


def warp(logits, params, seen):
    """Probabilities of all tokens, by sorting."""
    scores = logits.double().clone()
    for token in set(seen):
        scores[token] *= params.repetition_penalty if scores[token] < 0 else 1 / params.repetition_penalty
    scores /= params.temperature
    order = scores.argsort(descending=True, stable=True)
    if params.top_k > 0:
        scores[order[params.top_k :]] = -torch.inf
    probabilities = scores.softmax(-1)
    before = probabilities[order].cumsum(-1) - probabilities[order]
    probabilities[order[before >= params.top_p]] = 0.0
    return probabilities


def install(monkeypatch, folder: Path, version: str = "0.33.0") -> list[LLM]:
    """Put the stand-in where `import vllm` finds it; returns the engines that will be opened."""
    package, lora, request = (ModuleType(name) for name in ("vllm", "vllm.lora", "vllm.lora.request"))
    package.LLM, package.SamplingParams, request.LoRARequest = LLM, SamplingParams, LoRARequest
    for module in (package, lora, request):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    about = folder / "site" / f"vllm-{version}.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")
    monkeypatch.syspath_prepend(str(about.parent))
    ENGINES.clear()
    return ENGINES
