"""Paths of a configuration as they read from another folder."""

from __future__ import annotations

import os
from pathlib import Path

from retain.config import Config
from retain.embedded import ALIASES
from retain.sections import TaskConfig
from retain.tasks.harness import is_file
from retain.tasks.loading import SPLITS


def relocate(config: Config, base: Path, folder: Path) -> Config:
    """The same configuration with its local paths rewritten from `base` to `folder`, where it will lie."""

    def move(source: str | None) -> str | None:
        local = source and (base / source).exists()
        return os.path.relpath((base / source).resolve(), folder.resolve()) if local else source

    def moved(task: TaskConfig | None) -> TaskConfig | None:
        harness = {"lm_eval": move(task.lm_eval)} if task and task.lm_eval and is_file(task.lm_eval) else {}
        return task and task.model_copy(update={split: move(getattr(task, split)) for split in SPLITS} | harness)

    name = config.model.name if config.model.name in ALIASES else move(config.model.name)
    model = config.model.model_copy(update={"name": name, "chat_template": move(config.model.chat_template)})
    return config.model_copy(
        update={
            "model": model,
            "tasks": [moved(task) for task in config.tasks],
            "buffer": config.buffer.model_copy(update={"seed": moved(config.buffer.seed)}),
            "output": ".",
        }
    )
