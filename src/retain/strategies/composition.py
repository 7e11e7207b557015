"""The strategies of a run as one, and what they keep from one stage to the next."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from retain.strategies.base import Batch, Context, StateError, Strategy, Tensors, prefixed, under
from retain.types import InputError, Task

STATE_FILE = "strategy.safetensors"
RESTORE = "restore it, or start anew with --out"


class Combined(Strategy):
    """Several strategies, by name, in the order in which they act; a stage's end goes the other way round."""

    def __init__(self, parts: Mapping[str, Strategy], context: Context | None = None) -> None:
        super().__init__(None, context)
        self.parts = dict(parts)
        self.source: Path | None = None  # the file of the state that was taken over

    def begin_task(self, model: torch.nn.Module, task: Task) -> None:
        with self._of_source():
            for part in self.parts.values():
                part.begin_task(model, task)

    def losses(self, model: torch.nn.Module, batch: Batch, base: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        with self._of_source():
            for part in self.parts.values():
                base = part.losses(model, batch, base, logits)
        return base

    @contextmanager
    def _of_source(self) -> Iterator[None]:
        try:
            yield
        except StateError as error:
            raise InputError(f"{self.source}: missing or broken ({error}); {RESTORE}") from None

    def adjust_gradients(self, model: torch.nn.Module) -> None:
        for part in self.parts.values():
            part.adjust_gradients(model)

    def end_task(self, model: torch.nn.Module, task: Task) -> None:
        for part in reversed(self.parts.values()):
            part.end_task(model, task)

    def state_dict(self) -> Tensors:
        states = [prefixed(name, part.state_dict()) for name, part in self.parts.items()]
        return {name: tensor for state in states for name, tensor in state.items()}

    def load_state_dict(self, tensors: Mapping[str, torch.Tensor]) -> None:
        for name, part in self.parts.items():
            part.load_state_dict(under(name, tensors))

    def progress(self) -> dict[str, Any]:
        return {name: part.progress() for name, part in self.parts.items()}

    def resume(self, progress: Mapping[str, Any]) -> None:
        for name, part in self.parts.items():
            part.resume(progress[name])

    def save(self, folder: Path) -> None:
        """Write what the next stage needs into a stage's folder; nothing where there are no strategies."""
        if self.parts:
            save_file({name: value.contiguous() for name, value in self.state_dict().items()}, folder / STATE_FILE)

    def load(self, folder: Path, device: torch.device) -> None:
        """Take over what `save` wrote; a missing or broken file is an InputError."""
        if not self.parts:
            return
        self.source = folder / STATE_FILE
        try:
            self.load_state_dict(load_file(self.source, device=str(device)))
        except (OSError, SafetensorError, LookupError, TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"{self.source}: missing or broken ({error}); {RESTORE}") from None
