"""Tasks that are given to a `Learner` in Python: a `Task`, a name, a mapping, or rows in lists."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from retain.checks import require_validation
from retain.config import Config, make_config
from retain.relocation import SPLITS
from retain.sections import TaskConfig
from retain.tasks import load_task
from retain.types import IN_MEMORY, InputError, Task


def given_task(task: Task | TaskConfig | dict[str, Any] | str, config: Config, base: Path) -> tuple[Task, TaskConfig]:
    """The task with its samples, and as it stands in the configuration. Paths are relative to `base`."""
    if isinstance(task, Task):
        splits = {k: IN_MEMORY for k in ("train", "validation", "test") if getattr(task, k)}
        require_validation(config, task)
        return task, TaskConfig(name=task.name, description=task.description, **splits)
    values = task.model_dump() if isinstance(task, TaskConfig) else task
    return _with_rows(values, config, base) if isinstance(values, dict) else _of_spec(values, config, base)


def _of_spec(values: Any, config: Config, base: Path) -> tuple[Task, TaskConfig]:
    spec = make_config({"tasks": [values]}, "task", need_tasks=False).tasks[0]
    return load_task(spec, config, base, config.needs_validation, needs_test=False), spec


def _with_rows(values: dict[str, Any], config: Config, base: Path) -> tuple[Task, TaskConfig]:
    """Rows given as lists take the same way as rows in a file."""
    rows = {split: values[split] for split in SPLITS if isinstance(values.get(split), list)}
    if empty := [split for split in rows if not rows[split]]:
        raise InputError(f"task {values.get('name')!r}: {empty[0]} is an empty list")
    with tempfile.TemporaryDirectory() as folder:
        paths = {split: str(Path(folder) / f"{split}.jsonl") for split in rows}
        for split, path in paths.items():
            Path(path).write_text(_json_lines(rows[split], f"task {values.get('name')!r}: {split}"), "utf-8")
        task, spec = _of_spec({**values, **paths}, config, base)
    return task, spec.model_copy(update=dict.fromkeys(rows, IN_MEMORY))


def _json_lines(rows: list[Any], where: str) -> str:
    try:
        return "".join(json.dumps(row) + "\n" for row in rows)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: a row is not plain data ({error})") from None
