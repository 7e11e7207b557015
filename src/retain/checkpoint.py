"""The state of a stage between two steps on disk: folders of safetensors, Parquet and JSON, sealed by checksums."""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save

from retain.files import sync_folder, write_bytes, write_text
from retain.sealed import checksums, read_sealed, write_sealed
from retain.sections import CheckpointConfig

log = logging.getLogger("retain")

PLAIN, TENSORS, SEAL = "state.json", "state.safetensors", "checksums.json"


class Resumable(Protocol):
    """A part of a stage that changes from step to step."""

    def progress(self) -> dict[str, Any]:
        """What changed since the stage's start: plain JSON values, and tensors, in dictionaries."""

    def resume(self, progress: Mapping[str, Any]) -> None:
        """Take over what `progress` said, as a part that is at the stage's start."""


@dataclass(frozen=True, slots=True)
class Saved:
    """A whole checkpoint: the local step it was written after, and each part's progress."""

    folder: Path
    step: int
    state: dict[str, Any]


class Checkpoints:
    """The last `keep` checkpoints of one stage, a folder each; `broken` names those that were found not whole."""

    def __init__(self, folder: Path, config: CheckpointConfig) -> None:
        self.folder, self.config, self.broken = folder, config, []
        self._written = time.monotonic()

    def newest(self) -> Saved | None:
        """The newest checkpoint that is whole. What is broken is said and removed."""
        for folder in reversed(self._folders()):
            if read_sealed(folder / SEAL) == checksums(folder, skip=[SEAL]):
                return Saved(folder, int(folder.name), read_state(folder))
            self.broken.append(folder.name)
            log.warning("%s: broken, its checksums differ; the checkpoint before it is used, if there is one", folder)
            shutil.rmtree(folder)
        return None

    def due(self, step: int) -> bool:
        """Whether it is time for one after local `step`."""
        every, minutes = self.config.every, self.config.minutes
        waited = time.monotonic() - self._written
        return (every is not None and step % every == 0) or (minutes is not None and waited >= 60 * minutes)

    def save(self, step: int, write: Callable[[Path], None]) -> None:
        """A checkpoint whose files `write` puts into a folder. Where the disk refuses, the run goes on without it."""
        scratch, target = self.folder / f".{step:08d}", self.folder / f"{step:08d}"
        self._written = time.monotonic()
        try:
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir(parents=True)
            write(scratch)
            write_sealed(scratch / SEAL, checksums(scratch))
            os.replace(scratch, target)
            sync_folder(self.folder)
        except OSError as error:
            shutil.rmtree(scratch, ignore_errors=True)
            log.warning("no checkpoint after step %d (%s); the run goes on", step, error.strerror or error)
        for old in self._folders()[: -self.config.keep]:
            shutil.rmtree(old)

    def _folders(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("[0-9]*") if path.is_dir())


def write_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Nested dictionaries as a JSON file of what is plain and a safetensors file of the tensors, by their paths."""
    tensors: dict[str, torch.Tensor] = {}
    plain = _without_tensors(state, "", tensors)
    write_text(folder / PLAIN, json.dumps(plain))
    write_bytes(folder / TENSORS, save({name: tensor.contiguous() for name, tensor in tensors.items()}))


def read_state(folder: Path) -> dict[str, Any]:
    """What `write_state` wrote; tuples are lists, keys are texts, tensors lie on the CPU."""
    state = json.loads((folder / PLAIN).read_text(encoding="utf-8"))
    for path, tensor in load_file(folder / TENSORS).items():
        *parents, name = path.split("/")
        place = state
        for parent in parents:
            place = place[parent]
        place[name] = tensor
    return state


def _without_tensors(value: Any, path: str, tensors: dict[str, torch.Tensor]) -> Any:
    if not isinstance(value, Mapping):
        return value
    plain = {}
    for name, one in value.items():
        if torch.is_tensor(one):
            tensors[f"{path}{name}"] = one.detach().cpu()
        else:
            plain[name] = _without_tensors(one, f"{path}{name}/", tensors)
    return plain
