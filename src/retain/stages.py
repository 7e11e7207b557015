"""One stage of a run, from its start or a checkpoint to its last step and what it leaves behind."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from retain.buffer import Buffer
from retain.checks import Checks
from retain.config import Config
from retain.conflicts import retired_tasks
from retain.interrupts import deferred
from retain.memory.state import MemoryState
from retain.model import LanguageModel
from retain.presets import preset_of
from retain.progress import BUFFER, StageProgress
from retain.rehearsal import CurriculumReplayer, curriculum_pools, pool, refreshed, stage_curriculum
from retain.replayer import Replayer
from retain.rundir import WRITTEN, RunDir
from retain.selfsynthesis import SelfSynthesis, check_descriptions
from retain.strategies import Context, build
from retain.strategies.mir import MostInterfered
from retain.team import Team
from retain.trace import MemoryTrace
from retain.tracking import Tracking
from retain.trainer import Stage, StageRecord, Watch, train_stage
from retain.types import Task
from retain.weights import save_weights

log = logging.getLogger("retain")


@dataclass(slots=True)
class StageRun:
    """A stage with what it needs of its run: the tasks to score, the past ones, and the buffer that it starts with.

    seed_samples: how many the buffer began with before any task. notes: lines that go into the journal before its own.
    """

    lm: LanguageModel
    accelerator: Accelerator
    config: Config
    dir: RunDir
    tasks: Sequence[Task]
    past: Sequence[Task]
    stage: Stage
    buffer: Buffer
    seed_samples: int = 0
    notes: Sequence[tuple[str, Mapping[str, Any]]] = ()
    tracking: Tracking | None = None

    @property
    def valid_past(self) -> list[Task]:
        """The past tasks that are still rehearsed."""
        retired = retired_tasks(self.config, [task.name for task in (*self.past, self.stage.task)])
        return [task for task in self.past if task.name not in retired]

    def learn(self, folder: Path) -> dict[str, Any]:
        """Train the stage, or what is left of it, into its folder; returns what its scores.json will hold."""
        stage, config, lm = self.stage, self.config, self.lm
        synthesis = self._synthesis(folder)
        progress = StageProgress(folder, stage, self.dir, config, to_the_end=synthesis is not None)
        buffer = self._buffer(progress, synthesis)
        cards = synthesis.known(stage.task, stage.number) if synthesis else {}
        context = Context(lm, buffer, self.accelerator, config.seed, stage.number, cards)
        replayer = self._replayer(buffer, synthesis, context)
        strategy = build(preset_of(config.strategy), context, config)
        if stage.number > 1:
            strategy.load(self.dir.rows()[-1], lm.device)
        trace = MemoryTrace(folder, stage.number, buffer)
        checks = Checks(lm, config, self.tasks, self.valid_past, stage, buffer, replayer, self.dir.log)
        progress.begin(buffer, trace, checks)
        if self.tracking:
            self.tracking.follow(buffer, replayer, trace)
        watch = Watch(self.dir.log, trace.write, checks, trace.review,
                      lambda parts: progress.resume({**parts, "context": context}), progress.save)  # fmt: skip
        with deferred() as progress.pending:
            record = train_stage(lm, stage, strategy, buffer, replayer, self.accelerator, config, watch)
        tasks = {name: sample.task for name, sample in buffer.samples.items()}
        check_agreement(Team.launched(), replayer.drawn, buffer.memory)
        self.dir.log_events(stage.number, stage.first_step, replayer, tasks)
        self._remember(buffer, record, trace, synthesis, folder)
        save_weights(lm, folder)
        buffer.save(folder / "buffer")
        strategy.save(folder)
        spent = Counter(probe_tokens=context.probe_tokens, generated_tokens=synthesis.tokens if synthesis else 0)
        costs = {"train_seconds": record.train_seconds, "train_tokens": record.train_tokens,
                 "replayed_samples": record.replayed_samples, "replayed_tokens": record.replayed_tokens,
                 "seconds": progress.seconds, **(checks.costs + spent)}  # fmt: skip
        return self._facts(record, costs) | {
            "last_event": replayer.last_event,
            "trigger": replayer.trigger and replayer.trigger.state(),
            "drifted": synthesis.drifted if synthesis else [],
        }

    def _facts(self, record: StageRecord, costs: dict[str, float]) -> dict[str, Any]:
        """The end of the stage as the journal and its scores.json have it."""
        stage, task = self.stage, self.stage.task
        step = stage.first_step + record.steps
        truncated = sum(self.lm.encode(sample).truncated for sample in task.train)
        if truncated:
            log.warning("%s: %d training samples are longer than max_length and were cut", task.name, truncated)
        done = map(self.dir.scores, self.dir.rows()[1:])
        privacy = record.private and record.private.account(record.steps, [row["privacy"]["spent"] for row in done])
        facts = {"truncated": truncated, "privacy": privacy, "skipped_steps": record.skipped_steps}
        self.dir.log("stage_end", stage=stage.number, task=task.name, step=step, **facts, **costs)
        return {"row": stage.number, "task": task.name, "fingerprint": task.fingerprint, "samples": len(task.train),
                "steps": record.steps, **facts, "scores": {}, "costs": costs}  # fmt: skip

    def _synthesis(self, folder: Path) -> SelfSynthesis | None:
        """What the run knows of its past tasks where their data may not be kept; None for stored rehearsal."""
        if not preset_of(self.config.strategy).source:
            return None
        check_descriptions(self.config, [self.stage.task])
        last = self.dir.rows()[-1] if self.past else None
        synthesis = SelfSynthesis(self.lm, self.config, last, self.dir.log, self.past)
        synthesis.correct([*self.past, self.stage.task])
        synthesis.check_prompt(self.stage.task)
        synthesis.scratch = folder / WRITTEN
        return synthesis

    def _buffer(self, progress: StageProgress, synthesis: SelfSynthesis | None) -> Buffer:
        """The buffer as a checkpoint has it, or at the stage's start, with what is written for this stage."""
        config, stage = self.config, self.stage
        if synthesis:
            progress.resume({"synthesis": synthesis})
        if progress.saved:
            return Buffer.load(progress.saved.folder / BUFFER, config.buffer, config.memory, config.seed)
        buffer = self.buffer
        buffer.memory.set_unit(stage.plan.time_unit or 1.0, stage.first_step)
        self._announce()
        if synthesis:
            past = [(known.name, len(known.train)) for known in self.valid_past]
            asked = pool(config, past, len(stage.task.train), self.seed_samples)
            synthesis.prepare(stage.number, asked, buffer, stage.first_step)
        return buffer

    def _replayer(
        self, buffer: Buffer, synthesis: SelfSynthesis | None, context: Context
    ) -> Replayer | CurriculumReplayer:
        stage = self.stage
        if synthesis and not preset_of(self.config.strategy).replay:
            return self._curriculum(buffer, synthesis)
        last = self.dir.scores(self.dir.rows()[-1])
        return Replayer(stage.plan, stage.config, stage.number, stage.first_step, buffer.memory, buffer.confidences,
                        last.get("last_event"), last.get("trigger"),
                        MostInterfered(context, self.config.training.learning_rate))  # fmt: skip

    def _curriculum(self, buffer: Buffer, synthesis: SelfSynthesis) -> CurriculumReplayer:
        """The replayer of a stage whose synthetic share follows α(t)."""
        stage, section, pools = self.stage, self.stage.config.curriculum, curriculum_pools(self.config, buffer)
        needed = "similarity" in (section.kind, section.split)
        similarities = synthesis.similarities(stage.task, buffer) if needed else None
        sizes = {task: len(ids) for task, ids in pools.items()}
        curriculum = stage_curriculum(stage.config, stage.plan, stage.number - 1, sizes, similarities)
        if self.dir.scores(self.dir.rows()[-1]).get("drifted") or synthesis.drifted:
            curriculum.lower(self.config.monitor.lower_by)
        drawn = {name for ids in pools.values() for name in ids}
        due = [name for name in buffer.samples if name not in drawn] if refreshed(self.config, stage.number) else []
        return CurriculumReplayer(stage.plan, stage.config, stage.number, buffer, curriculum, due)

    def _announce(self) -> None:
        stage, plan = self.stage, self.stage.plan
        for kind, fields in self.notes:
            self.dir.log(kind, **fields)
        self.dir.log_plan(stage.number, plan, stage.first_step)
        replayed = sum(event.replayed for event in plan.events)
        log.info("stage %d: %s, %d steps, %d samples to replay", stage.number, plan.task, plan.steps, replayed)

    def _remember(
        self,
        buffer: Buffer,
        record: StageRecord,
        trace: MemoryTrace,
        synthesis: SelfSynthesis | None,
        folder: Path,
    ) -> None:
        """The end of a stage: refresh what is tracked, then let the stage's own samples in, or ones written of it."""
        stage, now = self.stage, self.stage.first_step + record.steps
        buffer.memory.refresh(now)
        trace.write(now)
        trace.close()
        if synthesis:
            synthesis.remember(stage.task, stage.number, buffer, now, record.losses, folder)
        elif preset_of(self.config.strategy).keeps_buffer:
            buffer.admit(stage.task.train, now, record.losses, stage.number)


def check_agreement(team: Team, drawn: Sequence[Sequence[str]], memory: MemoryState) -> None:
    """Raises RuntimeError where processes, each of which went by its own copy of the memory, replayed differently."""
    if team.size > 1 and len(set(team.gather([digest(drawn, memory)]))) > 1:
        raise RuntimeError("the processes replayed different samples; are they of the same kind and version?")


def digest(drawn: Sequence[Sequence[str]], memory: MemoryState) -> str:
    """A checksum of what was replayed and of the memory, bit for bit."""
    state = [(name, values.tobytes()) for name, values in sorted(memory.to_tensors().items())]
    return hashlib.sha256(repr((memory.ids, list(drawn), state)).encode()).hexdigest()
