"""Which finished rows two runs have in common: those that nothing in their configurations can tell apart."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from retain.config import Config
from retain.data_record import own_code
from retain.presets import AUTO, OWN_ADAPTERS, preset_of
from retain.types import Task

# What acts on replayed samples or on their draw, and so on nothing while the buffer is empty. A kind or clock that
# keeps a state of its own from the first stage on is none of these.
STATELESS_KINDS = ("expanding", "fixed", "geometric", "explicit", "every", "threshold")
STATELESS_CLOCKS = ("stage", "global")
REPLAY_ONLY_MEMORY = ("theta", "time_unit", "priority", "zeta", "beta_m", "rho_m", "staleness_cap")


def base_row_key(config: Config, tasks: Sequence[Task]) -> str:
    """What the scores of the untouched model depend on, hashed: model, data and evaluation, and no seed."""
    values = config.model_dump()
    facts = {name: values[name] for name in ("model", "tasks", "template", "on_invalid", "data_seed", "evaluation")}
    facts |= {name: values["training"][name] for name in ("method", "precision", "max_length")}
    adapters = [name for name, _ in preset_of(config.strategy).regularizers if name in OWN_ADAPTERS]
    return _digest("base", facts, tasks, adapters=adapters, **_code(config))


def first_stage_key(config: Config, tasks: Sequence[Task]) -> str | None:
    """What the first stage depends on, hashed; None where it is never shared.

    Methods that replay stored samples differ only in when and which they replay, and in the first stage there is
    nothing to replay. A method that acts on losses or gradients keeps its name and options in the key, for it leaves
    a state of its own.
    """
    chosen = preset_of(config.strategy)
    if chosen.joint or chosen.source or config.buffer.seed or chosen.name == AUTO or config.privacy.dp_sgd:
        return None
    values = config.model_dump(exclude={"output", "checkpoint", "gate"})
    options = {name: section.model_dump() for name, section in chosen.regularizers}
    values["strategy"] = {"keeps_buffer": chosen.keeps_buffer, "regularizers": options}
    if config.schedule.kind in STATELESS_KINDS and config.schedule.clock in STATELESS_CLOCKS:
        del values["schedule"]
        for name in REPLAY_ONLY_MEMORY:
            del values["memory"][name]
    return _digest("stage", values, tasks, **_code(config))


class SharedRows:
    """A folder of finished rows by key. Writing and reading may race: a row is there whole or not at all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, key: str | None) -> Path | None:
        """The row of this key, with its buffer, if it is there."""
        return next(iter(sorted((self.folder / key).glob("[0-9]*"))), None) if key else None

    def publish(self, key: str | None, row: Path, buffer: Path | None = None) -> None:
        """Copy a finished row, with the buffer as it left it, to where other runs find it."""
        if not key or (self.folder / key).exists():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".", dir=self.folder))
        shutil.copytree(row, scratch / row.name)
        if buffer and buffer.is_dir():
            shutil.copytree(buffer, scratch / row.name / "buffer", dirs_exist_ok=True)
        try:
            os.replace(scratch, self.folder / key)
        except OSError:  # another run was first
            shutil.rmtree(scratch)


def _code(config: Config) -> dict[str, Any]:
    """The source of strategies and metrics of the user's own, where there are any."""
    return {"code": own} if (own := own_code(config)) else {}


def _digest(what: str, values: Mapping[str, Any], tasks: Sequence[Task], **more: Any) -> str:
    versions = {name: importlib.metadata.version(name) for name in ("retain", "torch", "transformers", "peft")}
    facts = [what, values, [task.fingerprint for task in tasks], versions, more]
    text = json.dumps(facts, sort_keys=True, ensure_ascii=True)
    return f"{what}-{hashlib.sha256(text.encode()).hexdigest()[:20]}"
