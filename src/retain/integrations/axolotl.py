"""Replay in Axolotl: `plugins: [retain.integrations.axolotl.RetainPlugin]` and a section `retain` in its YAML.

Only Axolotl imports this. Its trainer is a transformers Trainer, so `replayify` gives it replay; the plugin reads the
section and hands the class over.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import partialmethod
from typing import Any

from pydantic import BaseModel, field_validator

from retain.config import make_config
from retain.integrations.replay import Replay, check_supported
from retain.types import InputError

try:
    from axolotl.integrations.base import BasePlugin
except ModuleNotFoundError:  # to read the documentation, say
    BasePlugin = object

TRAINER = "axolotl.core.trainers.base.AxolotlTrainer"
OTHERS = ("rl", "reward_model", "process_reward_model")  # kinds of training that are not supervised fine-tuning


class RetainArgs(BaseModel):
    """The plugin's part of Axolotl's configuration: the arguments of `Replay` by name.

    `out` and `task` are needed; the rest is checked as `Replay` and the configuration do, before a model is loaded.
    """

    retain: dict[str, Any]

    @field_validator("retain")
    @classmethod
    def _is_known(cls, section: dict[str, Any]) -> dict[str, Any]:
        check_supported(make_config({**replay_of(section).given, "tasks": []}, "retain", need_tasks=False))
        return section


class RetainPlugin(BasePlugin):
    """Adds replay to Axolotl's supervised fine-tuning (its interface of `axolotl.integrations.base.BasePlugin`)."""

    def get_input_args(self) -> str:
        """The path of the model that checks the section `retain`."""
        return f"{__name__}.RetainArgs"

    def get_trainer_cls(self, cfg: Mapping[str, Any]) -> type:
        """The trainer that Axolotl would take (`trainer_cls`, or its own), with replay.

        Raises InputError for training that is not supervised fine-tuning.
        """
        from retain.integrations.transformers import replayify

        if other := next((key for key in OTHERS if cfg.get(key)), None):
            raise InputError(f"{other}: replay is for supervised fine-tuning; leave out the plugin or {other}")
        module, _, name = (cfg.get("trainer_cls") or TRAINER).rpartition(".")
        trainer = replayify(getattr(importlib.import_module(module), name))
        replay = replay_of(_plain(cfg["retain"]))
        return type(trainer.__name__, (trainer,), {"__init__": partialmethod(trainer.__init__, replay=replay)})


def replay_of(section: Mapping[str, Any]) -> Replay:
    """The task with replay that a section `retain` describes. Raises InputError."""
    if missing := [key for key in ("out", "task") if not isinstance(section.get(key), str)]:
        raise InputError(f"retain.{missing[0]}: {section.get(missing[0])!r} is no text; it names the directory of the "
                         "memory (out), or the task (task)")  # fmt: skip
    return Replay(**section)


def _plain(value: Any) -> Any:
    """Dictionaries and lists of Axolotl's own kind as Python's."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value
