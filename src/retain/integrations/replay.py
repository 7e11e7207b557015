"""Replay for a training loop that is not retain's own: one task, its draws, and the memory it leaves."""

from __future__ import annotations

import hashlib
import importlib.metadata
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from retain.buffer import Buffer
from retain.config import Config, dump_config, load_config, make_config
from retain.conflicts import frame_of_samples, settle_conflicts, stored_tasks
from retain.data_record import forget_task
from retain.files import write_json, write_text
from retain.gate import enforce, raise_replay, replay_factor
from retain.learner import PACKAGES, warn_of_seed
from retain.presets import preset_of
from retain.progress import clear_row
from retain.relocation import relocate
from retain.replayer import Replayer
from retain.rundir import RunDir
from retain.scheduler import plan_stage
from retain.schedules import every_steps
from retain.sections import TaskConfig
from retain.tasks import load_task
from retain.trace import MemoryTrace, merge_traces
from retain.trainer import LOWER_RATE, observe, review
from retain.types import IN_MEMORY, InputError, Sample, Task

log = logging.getLogger("retain")
RECORD = "retain_losses.safetensors"


class Step(NamedTuple):
    """What one optimizer step trained: the rows of its new samples, then loss and tokens of each new and each replayed
    sample, in that order."""

    rows: list[int]
    losses: list[float]
    tokens: list[int]


class Replay:
    """One task that a trainer learns with replay. Its memory lies in `out`, a directory as `retain run` writes it.

    task: its name; test: a file to score it by later (`retain add`, `retain report`); supersedes: earlier tasks that it
    corrects, which are not rehearsed any more. strategy and config: as in `Learner`; in a directory that exists they
    may be left out and must not differ. Which samples are replayed is a function of the seed, the step and the losses
    so far, so a stage is resumed by showing it the losses again.

    `begin`, then `draw` and `learn` for each optimizer step, then `finish`.
    """

    def __init__(
        self,
        out: str | Path,
        task: str,
        strategy: Any = None,
        *,
        test: str | None = None,
        description: str = "",
        supersedes: Sequence[str] = (),
        **config: Any,
    ) -> None:
        self.out = Path(out)
        self.given = {**config, **({} if strategy is None else {"strategy": strategy})}
        spec = {"name": task, "train": IN_MEMORY, "test": test, "description": description,
                "supersedes": supersedes if isinstance(supersedes, str) else list(supersedes)}  # fmt: skip
        self.spec = make_config({"tasks": [spec]}, "Replay", need_tasks=False).tasks[0]
        self.begun, self.steps = False, []
        self.counts: Counter[str] = Counter()
        self._losses: dict[str, float] = {}

    @property
    def weight(self) -> float:
        """Eq. 3's λ on the losses of replayed samples."""
        return self.config.schedule.replay_weight

    # ---- a stage ---------------------------------------------------------------------------------------

    def begin(
        self,
        samples: int,
        per_epoch: int,
        batch_size: int,
        steps: int,
        described: Mapping[str, Any],
        sample: Callable[[str, int], Sample] | None = None,
    ) -> None:
        """Open the directory and plan a stage of `steps` over `samples` new ones, of which an epoch takes `per_epoch`,
        `batch_size` a step.

        described: model, LoRA and training as the configuration of a new directory tells them. sample: the one with
        this id from this row of the data, for what the new data correct; without it nobody looks. Raises InputError
        for a strategy that needs retain's own loop, for a task that is learned already, and for `conflicts: error`;
        GateError where the stage before has scores and misses `gate.after_stage: stop`.
        """
        self.dir = RunDir(self.out)
        self.config = self._claim(described)
        rows = self.dir.rows()
        last = self.dir.scores(rows[-1])
        if last["scores"]:  # which `retain add` makes
            enforce(self.dir, self.config)
        self.number, self.samples = len(rows), samples
        self.first_step = self.dir.steps()
        self.dir.forget_row(self.number)  # a stopped stage is led through all its steps again
        self.buffer = self._buffer()
        self._correct(sample)
        self._digest = _digest(self.buffer)
        training = {"batch_size": batch_size, "micro_batch_size": None, "max_steps": steps}
        config = raise_replay(self.config, replay_factor(self.dir, self.config))
        config = config.model_copy(update={"training": config.training.model_copy(update=training)})
        self.plan = plan_stage(config, self.spec.name, per_epoch, len(self.buffer), self.first_step)
        self.buffer.memory.set_unit(self.plan.time_unit or 1.0, self.first_step)
        self.replayer = Replayer(self.plan, config, self.number, self.first_step, self.buffer.memory,
                                 self.buffer.confidences,
                                 last.get("last_event"), last.get("trigger"))  # fmt: skip
        self._refresh_every = every_steps(self.config.memory.refresh_every, steps)
        self.dir.log_plan(self.number, self.plan, self.first_step)
        self._scratch = ExitStack()
        self.folder = self._scratch.enter_context(self.dir.finish_row(self.number, self.spec.name))
        clear_row(self.folder)  # the trainer's own checkpoints are what a stopped stage goes on from
        self.trace = MemoryTrace(self.folder, self.number, self.buffer)
        self.trace.write(self.first_step)
        self.begun = True

    def draw(self) -> list[Sample]:
        """The samples to replay in the next optimizer step, decided now."""
        self.drawn = [self.buffer.samples[one] for one in self.replayer.draw(len(self.steps) + 1)]
        return self.drawn

    def learn(self, step: Step, seconds: float = 0.0) -> None:
        """What the step that was drawn for trained, with the losses that training computed anyway."""
        count = len(step.rows)
        new = [self._stub(row) for row in step.rows]
        losses = np.asarray(step.losses, dtype=np.float64)
        if len(losses) != count + len(self.drawn) or len(step.tokens) != len(losses):
            raise InputError(f"{len(losses)} losses for {count} new and {len(self.drawn)} replayed samples")
        self.steps.append(step)
        now = self.first_step + len(self.steps)
        if bad := [s.id for s, loss in zip(new + self.drawn, losses, strict=True) if not np.isfinite(loss)]:
            where = f"{self.spec.name}, step {len(self.steps)}"
            raise FloatingPointError(f"{where}: the loss of {', '.join(bad[:5])} is not finite; {LOWER_RATE}")
        observe(self._losses, new, losses[:count], self.config.memory.ema_beta)
        self.trace.review(now, review(self.buffer, self.drawn, losses[count:], now))
        if now % self._refresh_every == 0:
            self.buffer.memory.refresh(now)
            self.trace.write(now)
        new_loss = float(losses[:count].mean()) if count else None
        if self.replayer.trigger:
            self.replayer.trigger.saw(new_loss, None)
        line = {"new_loss": new_loss, "replay_loss": float(losses[count:].mean()) if self.drawn else None,
                "new": count, "replayed": len(self.drawn), "tokens": sum(step.tokens)}  # fmt: skip
        self.counts.update(new=count, replayed_samples=len(self.drawn), train_tokens=sum(step.tokens),
                           replayed_tokens=sum(step.tokens[count:]), train_seconds=seconds,
                           new_loss=float(losses[:count].sum()), replay_loss=float(losses[count:].sum()))  # fmt: skip
        self.dir.log("step", stage=self.number, task=self.spec.name, step=len(self.steps), global_step=now, **line,
                     seconds=round(seconds, 4))  # fmt: skip

    def audit(self, since: Mapping[str, float] | None = None) -> dict[str, float]:
        """What was replayed, in all or since an earlier copy of `counts`: the realized ratio in samples and in tokens,
        and the mean loss of both kinds of samples."""
        spent = self.counts - Counter(since or {})
        total, again = spent["new"] + spent["replayed_samples"], spent["replayed_samples"]
        found = {
            "replayed_samples": again,
            "replay_ratio_samples": again / max(total, 1),
            "replay_ratio_tokens": spent["replayed_tokens"] / max(spent["train_tokens"], 1),
        }
        if spent["new"]:
            found["new_loss"] = spent["new_loss"] / spent["new"]
        if again:
            found["replay_loss"] = spent["replay_loss"] / again
        return found

    def finish(self, save: Callable[[Path], None], sample: Callable[[str, int], Sample]) -> None:
        """End the stage: its samples enter the memory, and the directory gets its folder.

        save: writes the model's adapter into a folder. sample: the one with this id from this row of the data.
        """
        now = self.first_step + len(self.steps)
        self.buffer.memory.refresh(now)
        self.trace.write(now)
        self.trace.close()
        if preset_of(self.config.strategy).keeps_buffer:
            rows = {f"{self.spec.name}/{row}": row for row in range(self.samples)}
            self.buffer.admit([self._stub(row) for row in rows.values()], now, self._losses, self.number)
            kept = self.buffer.samples
            self.buffer.samples = {one: sample(one, rows[one]) if one in rows else kept[one] for one in kept}
        save(self.folder / "adapter")
        self.buffer.save(self.folder / "buffer")
        self.dir.log_events(self.number, self.first_step, self.replayer, self._task_of)
        costs = {key: self.counts[key] for key in ("train_seconds", "train_tokens", "replayed_samples",
                                                   "replayed_tokens")}  # fmt: skip
        self.dir.log("stage_end", stage=self.number, task=self.spec.name, step=now, truncated=0, privacy=None,
                     seconds=costs["train_seconds"], **costs)  # fmt: skip
        self._write(costs)

    # ---- resuming --------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Write the losses of all steps so far beside a checkpoint of the model."""
        flat = {name: [value for step in self.steps for value in getattr(step, name)] for name in Step._fields}
        tensors = {
            "rows": np.array(flat["rows"], dtype=np.int64),
            "losses": np.array(flat["losses"], dtype=np.float64),
            "tokens": np.array(flat["tokens"], dtype=np.int64),
            "new": np.array([len(step.rows) for step in self.steps], dtype=np.int64),
            "trained": np.array([len(step.losses) for step in self.steps], dtype=np.int64),
            "memory": self._digest,
        }
        save_file(tensors, folder / RECORD)

    def restore(self, folder: Path) -> None:
        """Take the steps of a checkpoint again, from the losses they had: the memory is then what it was, to the bit.

        Raises InputError where they are missing or belong to another memory.
        """
        path = folder / RECORD
        try:
            record = load_file(path)
        except (OSError, SafetensorError) as error:
            raise InputError(f"{path}: is missing or broken ({error}); resume from another checkpoint") from None
        if not np.array_equal(record["memory"], self._digest):
            raise InputError(f"{path}: belongs to another memory than that of {self.out}; start the task anew")
        rows = np.split(record["rows"], np.cumsum(record["new"]))
        ends = np.cumsum(record["trained"])
        losses, tokens = np.split(record["losses"], ends), np.split(record["tokens"], ends)
        for own in zip(rows[:-1], losses[:-1], tokens[:-1], strict=True):
            self.draw()
            self.learn(Step(*(values.tolist() for values in own)))

    # ---- the directory ---------------------------------------------------------------------------------

    def _claim(self, described: Mapping[str, Any]) -> Config:
        """The directory's configuration, or a new directory with one."""
        given = {**described, **self.given, "tasks": [], "output": "."}
        config = relocate(make_config(given, "Replay", need_tasks=False), Path.cwd(), self.out)
        if self.dir.config_file.exists():
            config = self._laid_over(load_config(self.dir.config_file, need_tasks=False), config)
        check_supported(config)
        free = self.dir.taken_back()
        config = config.model_copy(update={"tasks": [task for task in config.tasks if task.name not in free]})
        config = self.dir.claim(config)
        self.dir.settle()
        warn_of_seed(config)
        self._check_task(config)
        forget_task(self.dir, self.spec.name)
        self.versions = {name: importlib.metadata.version(name) for name in PACKAGES}
        if not self.dir.rows():
            self.dir.log_start(config, self.versions)
            with self.dir.finish_row(0, "base") as folder:
                costs = {"peak_memory_bytes": 0, "seconds": 0.0}
                write_json(folder / "scores.json", {"row": 0, "scores": {}, "costs": costs})
        return config

    def _laid_over(self, old: Config, asked: Config) -> Config:
        """What a directory says, with the keys that were given here as they are now."""
        values, found = old.model_dump(), asked.model_dump()
        for key, given in self.given.items():
            whole = not (isinstance(given, Mapping) and isinstance(found[key], Mapping))
            values[key] = found[key] if whole else {**values[key], **{name: found[key][name] for name in given}}
        return make_config(values, "Replay", need_tasks=False)

    def _check_task(self, config: Config) -> None:
        name, learned = self.spec.name, self.dir.learned()
        if name in learned:
            raise InputError(f"task {name!r}: {self.out} has learned it already; give this one another name")
        if name in [task.name for task in config.tasks if task.train != IN_MEMORY]:
            raise InputError(f"task {name!r}: is for `retain run` to learn in {self.out}; give this one another name")
        known = {*learned, *([config.buffer.seed.name] if config.buffer.seed else [])}
        if unknown := [old for old in self.spec.supersedes if old not in known]:
            raise InputError(f"supersedes: {unknown[0]!r} is no task that {self.out} learned before")
        if left := [task.name for task in config.tasks if task.train and task.name not in {*learned, name}]:
            command = f"`retain run {self.dir.config_file}`"
            raise InputError(f"{self.out}: {left[0]} is not learned yet; {command} goes on with it first")

    def _buffer(self) -> Buffer:
        """The buffer as the last stage left it."""
        config = self.config
        seeded = self.number == 1 and config.buffer.seed and preset_of(config.strategy).keeps_buffer
        seed = load_task(config.buffer.seed, config, self.out, needs_test=False).train if seeded else []
        buffer = self.dir.load_buffer(config, seed)
        if seed:
            self.dir.log("seed", stage=self.number, samples=len(seed), kept=len(buffer))
        return buffer

    def _correct(self, sample: Callable[[str, int], Sample] | None) -> None:
        """What newer data correct leaves the buffer, as before a stage of `retain run` (`settle_conflicts`)."""
        rows = range(self.samples) if sample and self.buffer.samples else ()
        new = [sample(self._stub(row).id, row) for row in rows]
        config = self.config.model_copy(update={"tasks": [*self.config.tasks, self.spec]})
        stages = [*stored_tasks(self.buffer, self.dir.learned()),
                  Task(self.spec.name, train=new, frame=frame_of_samples(new))]  # fmt: skip
        settle_conflicts(self.buffer, config, stages, self.dir.log)
        self._task_of = {one: sample.task for one, sample in self.buffer.samples.items()}

    def _stub(self, row: int) -> Sample:
        """The sample of a row without its texts, which only those need that the memory keeps."""
        return Sample(f"{self.spec.name}/{row}", self.spec.name, "", "")

    def _write(self, costs: Mapping[str, float]) -> None:
        """The stage's folder, the configuration with its task, and the results."""
        name = self.spec.name
        facts = {"row": self.number, "task": name, "fingerprint": f"{name}: {self.samples} rows of a trainer",
                 "samples": self.samples, "steps": len(self.steps), "last_event": self.replayer.last_event,
                 "trigger": self.replayer.trigger and self.replayer.trigger.state()}  # fmt: skip
        costs = {**costs, "seconds": costs["train_seconds"], "peak_memory_bytes": 0}
        write_json(self.folder / "scores.json", {**facts, "truncated": 0, "scores": {}, "costs": costs})
        alone = self.config.model_copy(update={"tasks": [self.spec]})
        spec: TaskConfig = relocate(alone, Path.cwd(), self.out).tasks[0]
        others = [task for task in self.config.tasks if task.name != name]  # a crash may have left its entry
        self.config = self.config.model_copy(update={"tasks": [*others, spec]})
        write_text(self.dir.config_file, dump_config(self.config))
        self._scratch.close()
        merge_traces(self.dir.rows(), self.dir.path)
        self.dir.write_results(self.config, {}, self.versions)


def check_supported(config: Config) -> None:
    """An InputError for what only retain's own loop can do, with the reason."""
    chosen, reason = preset_of(config.strategy), None
    if chosen.source or chosen.joint or (config.buffer.seed and config.buffer.seed.synthesize):
        reason = f"strategy {chosen.name!r}: only `retain run` writes synthetic data or trains all tasks at once"
    elif chosen.regularizers:
        reason = f"strategy {chosen.name!r}: regularizers act inside retain's own loop"
    elif config.memory.candidates > 1:
        reason = "memory.candidates above 1 (strategy mir) looks ahead with gradients of retain's own loop"
    elif config.schedule.kind == "accuracy" or (config.schedule.kind == "loss" and config.trigger.signal == "probe"):
        reason = f"schedule.kind: {config.schedule.kind} looks at past tasks within a stage, as retain's own loop does"
    elif config.schedule.clock != "stage":
        reason = f"schedule.clock: {config.schedule.clock} is not known to a trainer; set stage"
    elif config.privacy.dp_sgd:
        reason = "privacy.dp_sgd clips the gradient of each sample, which a trainer does not give"
    if reason:
        raise InputError(f"{reason}. With a trainer: none, fixed, er, surprise, loss, mssr-sch, mssr-spl or mssr")


def _digest(buffer: Buffer) -> np.ndarray:
    """SHA-256 of a buffer's ids and their memory, shape (32,), uint8."""
    digest = hashlib.sha256("\n".join(buffer.memory.ids).encode())
    for tensor in buffer.memory.to_tensors().values():
        digest.update(np.ascontiguousarray(tensor).tobytes())
    return np.frombuffer(digest.digest(), dtype=np.uint8)
