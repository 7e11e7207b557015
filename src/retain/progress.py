"""A stage that can be stopped anywhere: what it saves between two steps, and what the run that resumes it finds."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from signal import SIGTERM
from typing import Any

from retain.buffer import Buffer
from retain.checkpoint import Checkpoints, Resumable, write_state
from retain.checks import Checks
from retain.config import Config
from retain.files import remove
from retain.interrupts import Pending
from retain.rundir import CHECKPOINTS, PREDICTIONS, UNFINISHED, UNSCORED, WRITTEN, RunDir
from retain.sealed import checksums, read_sealed, write_sealed
from retain.team import Team
from retain.trace import MemoryTrace
from retain.trainer import Stage
from retain.types import InputError

log = logging.getLogger("retain")

BUFFER, TRACE = "buffer", "trace"


class StageProgress:
    """One stage in its scratch folder. `saved` is the checkpoint it goes on from, None at its start.

    `to_the_end`: a checkpoint after the last step too, for something slow follows.
    """

    def __init__(self, folder: Path, stage: Stage, run_dir: RunDir, config: Config, to_the_end: bool) -> None:
        self.dir, self.stage, self.to_the_end = run_dir, stage, to_the_end
        self.checkpoints = Checkpoints(folder / CHECKPOINTS, config.checkpoint)
        self.saved = self.checkpoints.newest()
        if self.saved and self.saved.state["stage"]["fingerprint"] != stage.task.fingerprint:
            self.saved = None  # its data have changed since, and `check_data` was told to accept that
        self.parts: dict[str, Resumable] = {}
        self.pending, self.team = Pending(), Team.launched()
        self._started = time.perf_counter()
        self._known = self.saved.state["stage"] if self.saved else {"seconds": 0.0, "journal": 0}
        if not self.saved:
            clear_row(folder)
        run_dir.forget_row(stage.number, self._known["journal"])
        if self.saved or self.checkpoints.broken:
            step = self.saved.step if self.saved else 0
            log.info("stage %d: %s goes on after step %d", stage.number, stage.task.name, step)
            run_dir.log("resume", into=stage.task.name, after_step=step, broken=self.checkpoints.broken)

    @property
    def seconds(self) -> float:
        """Wall-clock time that the stage took so far, whoever ran it; what was lost and done again counts once."""
        return self._known["seconds"] + time.perf_counter() - self._started

    def begin(self, buffer: Buffer, trace: MemoryTrace, checks: Checks) -> None:
        """What is left to begin with: the first looks, or where the checkpoint has these."""
        self.buffer, self.trace, self._started = buffer, trace, time.perf_counter()
        self.resume({"checks": checks})
        if self.saved:
            trace.resume(self.saved.folder / TRACE)
        else:
            trace.write(self.stage.first_step)
            checks.begin()

    def resume(self, parts: Mapping[str, Resumable]) -> None:
        """These parts change from now on, from where the checkpoint has them. InputError where it has not."""
        self.parts |= parts
        for name, part in parts.items() if self.saved else ():
            try:
                part.resume(self.saved.state[name])
            except (LookupError, AttributeError, TypeError, ValueError, RuntimeError) as error:
                raise InputError(
                    f"{self.saved.folder}: no checkpoint of this stage ({name}: {error!r}); delete this folder"
                ) from None

    def save(self, step: int) -> None:
        """After each step: a checkpoint if it is time for one, and a stop if a signal asks for it."""
        caught, last = self.team.any(bool(self.pending.caught)), self.to_the_end and self.parts["record"].ended
        if not self.team.rank and (caught or last or self.checkpoints.due(step)):
            self.checkpoints.save(step, self._write)
        if caught:
            self.team.any(True)  # a launcher ends all as soon as one ends, and number 0 may still be writing
            self.pending.caught = self.pending.caught or SIGTERM  # another process was asked
            self.pending.heed()

    def _write(self, folder: Path) -> None:
        facts = {"fingerprint": self.stage.task.fingerprint, "journal": self.dir.journal_size(),
                 "seconds": self.seconds}  # fmt: skip
        self.buffer.save(folder / BUFFER)
        self.trace.save(folder / TRACE)
        write_state(folder, {"stage": facts, **{name: part.progress() for name, part in self.parts.items()}})


def clear_row(folder: Path) -> None:
    """Remove what an earlier try left in a row's scratch folder, but for what it had written for a task."""
    for path in folder.iterdir():
        if path.name != WRITTEN:
            remove(path)


def row_checksums(folder: Path) -> dict[str, str]:
    """The checksums of what a row keeps beside its scores."""
    return checksums(folder, skip=(*UNFINISHED, PREDICTIONS))


def seal_row(folder: Path, files: Mapping[str, str], facts: Mapping[str, Any]) -> None:
    """Say that a row's weights are final; `facts` is what its scores.json will hold, with the scores so far."""
    write_sealed(folder / UNSCORED, {"files": files, "facts": facts})


def sealed_row(folder: Path) -> dict[str, Any] | None:
    """The facts of a row whose weights are final and whole; None where there is none."""
    found = read_sealed(folder / UNSCORED)
    return found["facts"] if found and found["files"] == row_checksums(folder) else None
