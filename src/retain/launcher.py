"""What a launcher (`accelerate launch`, `torchrun`) told this process before anything is connected."""

from __future__ import annotations

import os


def processes() -> int:
    """How many processes the launcher started; 1 without one."""
    return _number("WORLD_SIZE", 1) if "MASTER_ADDR" in os.environ else 1


def rank() -> int:
    """The number of this process, from 0."""
    return _number("RANK", 0) if processes() > 1 else 0


def wants_sharding() -> bool:
    """Whether the launcher was asked for FSDP (`accelerate launch --use_fsdp`)."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def wants_deepspeed() -> bool:
    """Whether the launcher was asked for DeepSpeed (`accelerate launch --use_deepspeed`)."""
    return os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"


def _number(name: str, otherwise: int) -> int:
    value = os.environ.get(name, "")
    return int(value) if value.isdecimal() else otherwise
