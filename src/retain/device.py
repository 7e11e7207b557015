"""Put a model on the machine it runs on: device, precision, layout, memory."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import huggingface_hub
import torch
import transformers
from accelerate import Accelerator, PartialState
from accelerate.utils import patch_environment

from retain import launcher
from retain.config import Config
from retain.embedded import ALIASES, embedded_model
from retain.layouts import choose_layout
from retain.model import LanguageModel, load_model
from retain.sharding import check_shardable, shard
from retain.team import Team
from retain.types import InputError


def connect() -> Team:
    """The processes that a launcher started, which find each other here; this one alone without a launcher.
    Raises InputError."""
    if launcher.wants_deepspeed():
        raise InputError("DeepSpeed: retain does not train through its engine; launch with --multi_gpu or --use_fsdp")
    if launcher.processes() > 1:
        PartialState()
    return Team.launched()


def open_model(config: Config, base: Path) -> tuple[LanguageModel, Accelerator]:
    """The model of a configuration on its device, in its fastest layout; a relative path is relative to `base`."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    huggingface_hub.logging.set_verbosity_error()
    try:
        with patch_environment(accelerate_use_fsdp="false"):  # it would shard what is trained too
            accelerator = Accelerator(mixed_precision=precision_of(config))
    except ValueError as error:
        raise InputError("training.precision: this Python process already uses another one") from error
    team = Team.launched()
    if team.size > 1 and config.model.name in ALIASES:
        with team.first():
            embedded_model()  # one converts it, where nobody has
    lm = load_model(config, base)
    if launcher.wants_sharding() and team.size > 1:
        check_shardable(config)
        shard(lm, accelerator.device)
    else:
        lm.team = team
        lm.model.to(accelerator.device)
    choose_layout(lm)
    return lm, accelerator


def peak_memory() -> int:
    """The most memory this process has held so far, in bytes: on the GPU where there is one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def precision_of(config: Config) -> str:
    """Accelerate's name of the precision; `auto` is bfloat16 or float16 on a GPU and float32 on a CPU."""
    if config.training.precision != "auto":
        return {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}[config.training.precision]
    if not torch.cuda.is_available():
        return "no"
    if torch.cuda.is_bf16_supported():
        return "bf16"
    return "no" if config.privacy.dp_sgd else "fp16"  # its scaled gradients would be clipped
