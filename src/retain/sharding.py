"""A frozen model spread over the processes by FSDP, and the adapter that is trained whole on each of them."""

from __future__ import annotations

import torch

from retain.config import Config
from retain.model import LanguageModel
from retain.presets import preset_of
from retain.team import Team
from retain.types import InputError

UNEVEN = {"lwf": "its second pass", "synthesis": "the writing of samples", "dp_sgd": "one pass for each sample"}


def shard(lm: LanguageModel, device: torch.device) -> None:
    """Keep 1/P of the frozen weights on each of P processes, and gather a block's only while it computes.

    The trained parameters stay ordinary tensors, so what a strategy does to weights and gradients is done as without
    sharding, and their gradients are summed as without it. All processes must make the same forward passes, so
    evaluation and probes are not split over them.
    """
    from torch.distributed.device_mesh import init_device_mesh  # not every build of torch has them
    from torch.distributed.fsdp import fully_shard

    trained = set(lm.parameters())
    for parameter in trained:
        parameter.data = parameter.data.to(device)
    mesh = init_device_mesh(device.type, (Team.launched().size,))
    names = set(lm.unwrapped._no_split_modules or ())
    for block in [module for module in lm.unwrapped.modules() if type(module).__name__ in names]:
        fully_shard(block, mesh=mesh, ignored_params=trained)
    fully_shard(lm.unwrapped, mesh=mesh, ignored_params=trained)


def is_sharded(lm: LanguageModel) -> bool:
    """Whether each process keeps a part of the frozen weights only."""
    return any(hasattr(parameter, "device_mesh") for parameter in lm.model.parameters())


def check_shardable(config: Config) -> None:
    """Raises InputError for what makes passes of its own, other ones on each process, which would wait for ever."""
    if config.training.method != "lora":
        raise InputError(
            f"training.method: {config.training.method} does not work with a model sharded by FSDP, which is a frozen "
            "one with an adapter; set lora, or start without --use_fsdp"
        )
    chosen = preset_of(config.strategy)
    used = {name for name, _ in chosen.regularizers} | ({"synthesis"} if chosen.source else set())
    used |= {"synthesis"} if config.buffer.seed and config.buffer.seed.synthesize else set()
    used |= {"dp_sgd"} if config.privacy.dp_sgd else set()
    if refused := sorted(used & UNEVEN.keys()):
        what = ", ".join(f"{name} ({UNEVEN[name]})" for name in refused)
        raise InputError(
            f"strategy: {what} does not work with a model sharded by FSDP; start without --use_fsdp, so that each "
            "process keeps the whole model"
        )
