"""Texts by vLLM in place of transformers (`synthesis.engine: vllm`), under the contract of `generation.sample`.

It keeps to what vLLM's documentation and source say of its interface; docs/engines.md tells what was tested.
"""

from __future__ import annotations

import gc
import importlib.metadata
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from packaging.specifiers import SpecifierSet
from peft.tuners.tuners_utils import BaseTunerLayer

from retain import launcher
from retain.batching import Encoded
from retain.config import Config
from retain.generation import Generated
from retain.losses import sample_losses
from retain.memory.random import bits
from retain.model import ADAPTER, LanguageModel
from retain.presets import preset_of
from retain.sampling import Sampling
from retain.types import InputError

VERSIONS = ">=0.11,<0.34"  # as the extra `vllm` says
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM takes as max_lora_rank
COLDEST, HOTTEST = 0.01, 2.0  # vLLM raises a lower temperature to 0.01, later versions refuse a higher one
MANY = ("o-lora", "osf")  # strategies whose model is not a base with one LoRA adapter
# Settings of PEFT's LoraConfig that vLLM refuses or does not look at.
UNREAD = ("use_dora", "bias", "modules_to_save", "rank_pattern", "alpha_pattern", "trainable_token_indices")
CHECKED = 4  # texts of each call whose log-probabilities are computed here too
TOLERANCE = 0.1  # nats a token, to tell other weights from weights rounded to 16 bits; chosen, not measured

Draw = Callable[..., list[Generated]]


class Engine:
    """An engine of vLLM, and a number for each adapter that it is handed: it never reads one number twice."""

    def __init__(self, **options: Any) -> None:
        from vllm import LLM

        self.length, self.numbers, self.asleep = options["max_model_len"], count(1), False
        self.llm = LLM(
            **options,
            enable_lora=True,
            max_loras=1,
            enable_sleep_mode=True,
            logprobs_mode="raw_logprobs",
            generation_config="vllm",
        )

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Inside this block the engine holds its weights on the GPU, outside it they are in main memory."""
        torch.cuda.empty_cache()
        if self.asleep:
            self.llm.wake_up()
            self.asleep = False
        try:
            yield
        finally:
            self.llm.sleep(level=1)
            self.asleep = True


@contextmanager
def writing(lm: LanguageModel, config: Config) -> Iterator[Draw | None]:
    """Inside this block: what draws texts in place of `generation.sample`, or None where that is to do it.

    vLLM's engine is opened when it is first needed, once in a process for one base model, and is awake inside such
    blocks only. It reads the adapter as it is when the block begins. Raises InputError.
    """
    if config.synthesis.engine != "vllm":
        yield None
        return
    check_engine(config, lm)
    from vllm.lora.request import LoRARequest

    engine = _open(**_options(lm, config))
    with tempfile.TemporaryDirectory(prefix="retain-") as folder, engine.awake():
        lm.save_adapter(Path(folder))
        number = next(engine.numbers)
        yield partial(_sample, engine, LoRARequest(f"adapter-{number}", number, folder))


def check_engine(config: Config, lm: LanguageModel | None = None) -> None:
    """An InputError where vLLM is asked for and cannot write with this configuration, machine or model."""
    obstacles = chain(_obstacles(config), _model_obstacles(lm) if lm else ())
    if config.synthesis.engine == "vllm" and (reason := next(obstacles, None)):
        raise _refused(reason)


def sees_gpu() -> bool:
    """Whether PyTorch sees a GPU (CUDA or ROCm)."""
    return torch.cuda.is_available()


def _refused(reason: str) -> InputError:
    return InputError(f"synthesis.engine: vllm {reason}; or set synthesis.engine: transformers")


def _obstacles(config: Config) -> Iterator[str]:
    """Why vLLM cannot write with this configuration on this machine."""
    if config.privacy.epsilon_per_token is not None:
        yield "does not clip logits before a draw, which privacy.epsilon_per_token needs; leave that out"
    if found := [name for name, _ in preset_of(config.strategy).regularizers if name in MANY]:
        yield f"writes with the base model and one LoRA adapter, which strategy {found[0]} is not; leave that out"
    if config.training.method != "lora" or config.lora.variants:
        what = next(iter(config.lora.variants), config.training.method)
        yield f"writes with plain LoRA adapters beside the base model, and not under {what}; leave that out"
    if not COLDEST <= config.synthesis.temperature <= HOTTEST:
        yield f"takes a synthesis.temperature of {COLDEST} to {HOTTEST}, not {config.synthesis.temperature:g}"
    if launcher.processes() > 1:
        yield "writes in one process only; start retain without a launcher"
    try:
        version = importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        yield "is not installed; pip install 'retain[vllm]'"
    if not SpecifierSet(VERSIONS).contains(version, prereleases=True):
        yield f"{version} is installed, and this works with {VERSIONS}; pip install 'vllm{VERSIONS}'"
    if not sees_gpu():
        yield "needs a GPU, and PyTorch sees none; use a machine that has one"


def _model_obstacles(lm: LanguageModel) -> Iterator[str]:
    """Why vLLM cannot write with this model."""
    if lm.is_encoder_decoder:
        yield f"writes with decoders only, and {lm.model.config.model_type} is an encoder-decoder; use another model"
    adapters = getattr(lm.model, "peft_config", {})
    if list(adapters) != [ADAPTER] or adapters[ADAPTER].peft_type != "LORA":
        yield "writes with the base model and one LoRA adapter, which this model has not; train one"
    if found := [key for key in UNREAD if getattr(adapters[ADAPTER], key, None) not in (None, False, "none", {}, [])]:
        yield f"does not read {', '.join(found)} of an adapter; leave it out"
    if adapters[ADAPTER].r > RANKS[-1]:
        yield f"takes adapters of rank {RANKS[-1]} at most, not {adapters[ADAPTER].r}; lower lora.r"
    if getattr(lm.unwrapped.config, "quantization_config", None):
        yield "would load the weights of this model that are not quantized; do not quantize it"


def _options(lm: LanguageModel, config: Config) -> dict[str, Any]:
    """What an engine is opened with; its LoRA kernels take 16 bits only, so a model of 32 is rounded."""
    limits = config.synthesis
    longest = max(limits.max_input_tokens, limits.max_output_tokens, limits.max_joint_tokens)
    wide = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return {
        "model": lm.unwrapped.name_or_path,
        "revision": config.model.revision,
        "tokenizer_revision": config.model.revision,
        "trust_remote_code": config.model.trust_remote_code,
        "dtype": str(lm.dtype if lm.dtype.itemsize == 2 else wide).removeprefix("torch."),
        "max_model_len": config.vllm.max_model_len or min(lm.positions, lm.max_length + longest),
        "gpu_memory_utilization": config.vllm.gpu_memory_utilization,
        "max_lora_rank": next(rank for rank in RANKS if rank >= lm.model.peft_config[ADAPTER].r),
    }


@lru_cache(maxsize=1)  # runs of one model that are compared share it
def _open(**options: Any) -> Engine:
    """The engine with these options; one with others ends before, for a GPU has no room for two."""
    _open.cache_clear()
    gc.collect()
    torch.cuda.empty_cache()
    try:
        return Engine(**options)
    except Exception as error:  # of any class: most come out of the engine's own process
        reason = " ".join(str(error).split())[:300]
        raise _refused(
            f"does not open {options['model']} ({reason}); vllm.gpu_memory_utilization is the share of "
            "the GPU's memory that it takes beside the model, vllm.max_model_len the longest sequence"
        ) from error


def _sample(
    engine: Engine,
    adapter: Any,
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    max_new_tokens: int,
    *,
    batch_size: int = 32,
    seed: tuple[int, ...] = (0,),
    stop: Sequence[int] | None = None,
    until: Sequence[int] = (),
) -> list[Generated]:
    """`generation.sample` by an engine that is awake, with `adapter` unless it is off in `lm`; it batches by itself.

    The seed of a text is a function of (seed, index of its prompt). `until` ends a text by its characters, however
    they are cut into tokens.
    """
    stop, until = sorted(lm.stop_ids if stop is None else stop), list(until)
    limits = [_room(engine, lm, i, prompt, max_new_tokens) for i, prompt in enumerate(prompts)]
    seeds = bits(*seed, hashes=np.arange(len(prompts), dtype=np.uint64)) >> np.uint64(1)  # vLLM's are signed
    asked = [i for i, limit in enumerate(limits) if limit > 0]
    outputs = engine.llm.generate(
        [{"prompt_token_ids": list(prompts[i])} for i in asked],
        [_parameters(lm, sampling, limits[i], int(seeds[i]), stop, until) for i in asked],
        use_tqdm=False,
        lora_request=None if _is_off(lm) else adapter,
    )
    _check_probabilities(lm, outputs)
    found = [Generated() for _ in prompts]
    for i, output in zip(asked, outputs, strict=True):
        found[i] = _read(output.outputs[0], stop, until)
    return found


def _room(engine: Engine, lm: LanguageModel, index: int, prompt: Sequence[int], max_new_tokens: int) -> int:
    """The most tokens a text may have behind its prompt; an InputError where the engine leaves less than the model."""
    if not prompt:
        raise ValueError(f"prompts[{index}] is empty; a text needs at least one token to begin from")
    limit = min(max_new_tokens, lm.positions - len(prompt))
    if 0 < limit > engine.length - len(prompt):
        raise InputError(
            f"vllm.max_model_len: {engine.length} is too little for a prompt of {len(prompt)} tokens and a "
            f"text of {limit}; the model's own limit is {lm.positions}"
        )
    return limit


def _is_off(lm: LanguageModel) -> bool:
    """Whether the adapter takes no part in the model's forward pass (`LanguageModel.base`)."""
    return any(module.disable_adapters for module in lm.model.modules() if isinstance(module, BaseTunerLayer))


def _parameters(
    lm: LanguageModel, sampling: Sampling, limit: int, seed: int, stop: Sequence[int], until: Sequence[int]
) -> Any:
    """vLLM's parameters of one text: the same order of penalty, temperature, top-k and top-p as `draw_tokens`."""
    from vllm import SamplingParams

    if sampling.clip is not None:
        raise ValueError("vLLM does not clip logits before a draw")
    ending = {"stop": [lm.tokenizer.decode(until)], "include_stop_str_in_output": True} if until else {}
    return SamplingParams(
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        repetition_penalty=sampling.repetition_penalty,
        max_tokens=limit,
        seed=seed,
        logprobs=0,  # that of the token drawn and of no other
        ignore_eos=True,  # `stop` says which tokens end a text
        stop_token_ids=list(stop),
        detokenize=bool(until),
        **ending,
    )


def _log_probabilities(output: Any) -> list[float]:
    return [place[token].logprob for token, place in zip(output.token_ids, output.logprobs, strict=True)]


def _read(output: Any, stop: Sequence[int], until: Sequence[int]) -> Generated:
    """A completion of vLLM; its tokens hold the one that ended it."""
    ids, size = list(output.token_ids), len(until)
    cut = next((end for end in range(size, len(ids)) if size and ids[end - size : end] == until), len(ids))
    ids, finished = ids[:cut], bool(ids[:cut]) and ids[cut - 1] in stop
    return Generated(ids[:-1] if finished else ids, sum(_log_probabilities(output)[:cut]), finished)


def _check_probabilities(lm: LanguageModel, outputs: Sequence[Any]) -> None:
    """A FloatingPointError where vLLM gives texts other probabilities than `lm`, as with other weights."""
    some = [(output.prompt_token_ids, output.outputs[0]) for output in outputs if output.outputs[0].token_ids][:CHECKED]
    losses = sample_losses(lm, [Encoded.of(prompt, text.token_ids) for prompt, text in some])
    tokens = torch.tensor([len(text.token_ids) for _, text in some])
    theirs = torch.tensor([sum(_log_probabilities(text)) for _, text in some])
    apart = float((theirs + losses * tokens).sum() / tokens.sum().clamp(min=1))
    if not abs(apart) <= TOLERANCE:
        raise FloatingPointError(
            f"vLLM gives its texts log-probabilities that are {apart:+.3f} nats a token off the model's own, so it "
            "writes with other weights; set synthesis.engine: transformers"
        )
