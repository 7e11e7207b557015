"""What experiment trackers hear of a run, through Accelerate: curves, replay, the memory, and every score."""

from __future__ import annotations

import importlib.util
import logging
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from retain.buffer import Buffer
from retain.config import Config
from retain.files import append_line, drop_torn_line
from retain.presets import preset_of
from retain.reading import foreign, read_json
from retain.rehearsal import CurriculumReplayer
from retain.replayer import Replayer
from retain.rundir import SCORES, TRACKED, RunDir
from retain.sections import TrackingConfig
from retain.store import read_lines
from retain.trace import MemoryTrace
from retain.types import InputError

log = logging.getLogger("retain")

PACKAGES = {"tensorboard": ("tensorboard", "tensorboardX"), "wandb": ("wandb",), "mlflow": ("mlflow",),
            "trackio": ("trackio",)}  # fmt: skip
CURVES = ("new_loss", "replay_loss", "new", "replayed", "tokens", "update_norm")
SECTIONS = ("schedule", "memory", "buffer", "training", "lora", "curriculum")  # no text of the user stands in them
QUANTILES = (0.05, 0.5, 0.95)


def check_trackers(config: TrackingConfig) -> None:
    """An InputError for a tracker whose package is not installed."""
    for name in config.trackers:
        if not any(importlib.util.find_spec(package) for package in PACKAGES[name]):
            raise InputError(f"tracking.trackers: {name} is not installed; run `pip install 'retain[{name}]'`")


def memory_summary(buffer: Buffer, step: int, theta: float) -> dict[str, float]:
    """Strengths m of the buffer at global `step`, and the mean-field hazard h̄ = E[h] and stability S̄ = E[S] (App. B.1).

    `below_threshold` is the share of samples whose m is below θ; `time_to_threshold` is τ* = ln(1/θ)/h̄ in ticks
    (Eq. 22), left out where h̄ is 0.
    """
    state = buffer.memory.snapshot(step, buffer.confidences)
    strength, hazard = np.exp(state["log_strength"]), float(state["hazard"].mean())
    found = {"strength_mean": strength.mean(), "below_threshold": (strength < theta).mean(),
             "hazard_mean": hazard, "stability_mean": state["stability"].mean(), "samples": len(strength)}  # fmt: skip
    for share, value in zip(QUANTILES, np.quantile(strength, QUANTILES), strict=True):
        found[f"strength_p{share * 100:02.0f}"] = value
    if hazard > 0:
        found["time_to_threshold"] = -np.log(theta) / hazard
    return {f"memory/{name}": float(value) for name, value in found.items()}


class Tracking:
    """Passes the lines of a run's journal on to trackers, each step and score once.

    What was told stands in `tracking.jsonl` of the run's directory, so a run that is resumed goes on in the same run of
    each tracker; its steps are those it had taken, so what was told of them stays true. A tracker that fails while
    the run goes on is left alone from then on.
    """

    def __init__(self, config: Config, folder: Path) -> None:
        self.config, self.folder, self.file = config, folder, folder / TRACKED
        self._trackers: list[Any] | None = None  # made when there is something to tell
        self._stage: tuple[Buffer, Replayer | CurriculumReplayer, MemoryTrace] | None = None
        self._read()

    @classmethod
    def of(cls, config: Config, run_dir: RunDir, rank: int = 0) -> Tracking | None:
        """One that listens to a run's journal, where the configuration names any tracker, on process number 0 alone."""
        if rank or not config.tracking.trackers:
            return None
        tracking = cls(config, run_dir.path)
        run_dir.listener = tracking.take
        return tracking

    def _read(self) -> None:
        """What was told before: the last step of each row, its scored tasks, and the names of the trackers' runs."""
        self._steps, self._scored, self._ids = {0: 0}, set(), {}
        drop_torn_line(self.file)
        with foreign(self.file):
            for line in read_lines(self.file, ()) if self.file.exists() else ():
                if "ids" in line:
                    self._ids = dict(line["ids"])
                elif "task" in line:
                    self._scored.add((int(line["row"]), str(line["task"])))
                else:
                    self._steps[int(line["row"])] = int(line["step"])

    def follow(self, buffer: Buffer, replayer: Replayer | CurriculumReplayer, trace: MemoryTrace) -> None:
        """The steps to come are of the stage that has these parts."""
        self._stage = buffer, replayer, trace

    def take(self, line: Mapping[str, Any]) -> None:
        """A line of the journal; of the kinds `start`, `step`, `evaluation` and `end`."""
        kind = line["kind"]
        if kind == "start":  # the journal was empty, so nothing that was told holds
            self.file.unlink(missing_ok=True)
            self._read()
        elif kind == "step" and line["global_step"] > max(self._steps.values()):
            self._steps[line["stage"]] = line["global_step"]
            self._tell(self._of_step(line), line["global_step"], {"row": line["stage"], "step": line["global_step"]})
        elif kind == "evaluation" and (line["row"], line["task"]) not in self._scored:
            self._scored.add((line["row"], line["task"]))
            values = {f"{name}/{line['task']}": line[name] for name in SCORES}
            step = max(step for row, step in self._steps.items() if row <= line["row"])
            self._tell(values, step, {"row": line["row"], "task": line["task"]})
        elif kind == "end" and self._trackers:
            metrics = read_json(self.folder / "results.json")["metrics"]
            self._tell({f"metrics/{name}": value for name, value in metrics.items()}, max(self._steps.values()))
            self.close()

    def close(self) -> None:
        """End the trackers' runs; what comes later opens them again."""
        trackers, self._trackers = self._trackers or [], None
        for tracker in trackers:
            tracker.finish()

    def _of_step(self, line: Mapping[str, Any]) -> dict[str, float | None]:
        """A step's curves; λ and Δt_r of an event that fired at it; the memory where it was refreshed."""
        values = {f"train/{name}": line.get(name) for name in CURVES}
        if self._stage:
            buffer, replayer, trace = self._stage
            if replayer.events and replayer.events[-1].step == line["step"]:
                before = replayer.events[-2].step if len(replayer.events) > 1 else 0
                event = replayer.events[-1]
                values |= {"replay/lambda": event.ratio, "replay/samples": event.replayed,
                           "replay/interval": event.step - before}  # fmt: skip
            if trace.last == line["global_step"]:
                values |= memory_summary(buffer, line["global_step"], self.config.memory.theta)
        return values

    def _tell(self, values: Mapping[str, float | None], step: int, mark: Mapping[str, Any] | None = None) -> None:
        known = {name: value for name, value in values.items() if value is not None}
        if self._trackers is None:
            self._trackers = self._open()
        try:
            for tracker in self._trackers:
                tracker.log(known, step=step)
        except Exception as error:  # of a service or a disk that is not the run's
            log.warning("tracking stops here, the run goes on: %s: %s", type(error).__name__, error)
            self._trackers = []
        if mark and self._trackers:
            append_line(self.file, dict(mark))

    def _open(self) -> list[Any]:
        """The trackers, in the runs they had. InputError where one cannot start."""
        new = not self._ids
        name = self.config.tracking.run or self.folder.resolve().name
        self._ids.setdefault("run", f"{re.sub(r'[^A-Za-z0-9_-]', '-', name)[:48]}-{secrets.token_hex(4)}")
        trackers = []
        for each in dict.fromkeys(self.config.tracking.trackers):
            fresh = new or each not in self._ids
            try:
                trackers.append(self._start(each, name))
                if fresh:
                    trackers[-1].store_init_configuration(hyperparameters(self.config))
            except Exception as error:
                reason = " ".join(str(error).split())[:300]
                raise InputError(
                    f"tracking.trackers: {each} could not start ({type(error).__name__}: {reason}); set it up, or "
                    "leave it out of tracking.trackers"
                ) from None
            self._ids.setdefault(each, self._ids["run"])
        append_line(self.file, {"ids": self._ids})
        return trackers

    def _start(self, each: str, name: str) -> Any:
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        if each not in LOGGER_TYPE_TO_CLASS:
            raise InputError("this version of accelerate does not know it")
        identity = self._ids["run"]
        own: dict[str, Any] = {
            "tensorboard": {"logging_dir": str(self.folder)},
            "wandb": {"name": name, "id": identity, "resume": "allow"},
            "mlflow": {"run_name": name, "run_id": self._ids.get("mlflow")},
            "trackio": {"name": identity, "resume": "allow"},
        }[each]
        project = "tensorboard" if each == "tensorboard" else self.config.tracking.project  # there a folder's name
        tracker = LOGGER_TYPE_TO_CLASS[each](project, **own | self.config.tracking.options.get(each, {}))
        tracker.start()
        if each == "mlflow":
            self._ids["mlflow"] = tracker.tracker.info.run_id
        return tracker


def hyperparameters(config: Config) -> dict[str, bool | int | float | str]:
    """What a tracker is told of the configuration: numbers and names, no path, description or template."""
    values = {"strategy": preset_of(config.strategy).name, "seed": config.seed, "data_seed": config.data_seed,
              "model": Path(config.model.name).name if config.model.name.startswith((".", "/", "~")) else
              config.model.name, "tasks": ", ".join(spec.name for spec in config.tasks)}  # fmt: skip
    for section in SECTIONS:
        fields = getattr(config, section).model_dump(exclude={"seed"} if section == "buffer" else None)
        values |= {f"{section}.{name}": value for name, value in fields.items()}
    return {name: value if isinstance(value, bool | int | float | str) else str(value)
            for name, value in values.items()}  # fmt: skip
