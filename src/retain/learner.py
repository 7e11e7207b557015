"""The learner: where data, model, memory, training and scores of a run meet."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import math
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from retain.buffer import Buffer
from retain.checks import Checks, require_validation
from retain.config import Config, make_config
from retain.data_record import check_data, check_stage
from retain.device import open_model, peak_memory
from retain.evaluate import evaluate_task
from retain.model import LanguageModel
from retain.presets import AUTO, preset_of
from retain.privacy import check_installed
from retain.rehearsal import CurriculumReplayer, curriculum_pools, pool, refreshed, stage_curriculum
from retain.relocation import SPLITS, relocate
from retain.report import write_report
from retain.reviews import require_approval
from retain.rundir import RunDir, write_json
from retain.scheduler import Replayer, plan_run
from retain.sections import TaskConfig
from retain.selfsynthesis import SelfSynthesis, check_demonstrations, check_descriptions
from retain.strategies import Context, build
from retain.strategies.mir import MostInterfered
from retain.synthesis.general import write_seed
from retain.tasks import load_task
from retain.trace import MemoryTrace, merge_traces
from retain.trainer import LOWER_RATE, Stage, StageRecord, Watch, train_stage
from retain.types import IN_MEMORY, InputError, Task

log = logging.getLogger("retain")
PACKAGES = ("retain", "torch", "transformers", "peft", "accelerate", "numpy")


class Learner:
    """Learns one task after another in one directory, and keeps what it learned before.

    `learn` trains a stage and scores every task known so far; `retain run` does the same for the tasks of a
    file. Made again on the same directory it goes on after the last finished stage.
    """

    def __init__(
        self,
        model: str | dict[str, Any] = "smollm2-135m",
        strategy: Any = "mssr",
        out: str | Path = "runs/my-run",
        **config: Any,
    ) -> None:
        values = {"model": model, "strategy": strategy, "output": str(out), **config}
        self._open(make_config(values, "Learner", need_tasks=False), Path.cwd(), Path(out), None)

    @classmethod
    def of(cls, config: Config, base: Path, out: Path, tasks: Sequence[Task]) -> Learner:
        """A learner for a checked configuration whose `tasks` are loaded; paths are relative to `base`."""
        learner = cls.__new__(cls)
        learner._open(config, base, out, tasks)
        return learner

    def _open(self, config: Config, base: Path, out: Path, tasks: Sequence[Task] | None) -> None:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise InputError("training on several processes is not supported yet; start retain without a launcher")
        check_installed(config.privacy)
        chosen = preset_of(config.strategy)
        check_demonstrations(config)
        if chosen.name == AUTO:
            raise InputError("strategy: auto looks at all tasks at once; use `retain run`, or name a strategy")
        self.started = time.perf_counter()
        self.base, self.dir, self.changed_data = base, RunDir(out), set()
        self.tasks, self.stages = list(tasks or []), []
        self.config = self.dir.claim(relocate(config, base, out), adopt_tasks=tasks is None)
        self.dir.settle_buffer()
        self._lm: LanguageModel | None = None
        seed = config.buffer.seed
        self._seed = load_task(seed, config, base, needs_test=False).train if seed and not seed.synthesize else []
        self._versions = {name: importlib.metadata.version(name) for name in PACKAGES}
        self._versions["python"] = ".".join(map(str, sys.version_info[:3]))
        if not self.dir.rows():
            self.dir.log("start", strategy=chosen.name, seed=config.seed, model=config.model.name,
                         versions=self._versions)  # fmt: skip

    @property
    def lm(self) -> LanguageModel:
        """The model, loaded when first needed, with the newest adapter."""
        if self._lm is None:
            self._lm, self._accelerator = open_model(self.config, self.dir.path)
            if len(self.dir.rows()) > 1:
                self._lm.load_adapter(self.dir.rows()[-1] / "adapter")
        return self._lm

    # ---- learning ------------------------------------------------------------------------------------

    def learn(self, task: Task | TaskConfig | dict | str | list | None = None, **fields: Any) -> dict[str, Any]:
        """Learn one task and score all; without `train` it is only scored from here on, without `test` only learned.

        task: a `Task`, or what stands under `tasks` in the YAML (name, train, test, description, ...), where
        `train` and `test` may also be lists of rows. `learn(rows, name=...)` and `learn(name=..., train=...)`
        say the same by keywords. Returns the results so far, as in results.json.
        """
        if fields or isinstance(task, list):
            task = {**({} if task is None else {"train": task}), **fields}
        if isinstance(task, dict) and "data" in task:
            task = {"train": task["data"], **{key: value for key, value in task.items() if key != "data"}}
        if preset_of(self.config.strategy).joint:
            raise InputError("strategy: joint trains all tasks in one stage; use it with `retain run`")
        task = self._load(task)
        before = {known.name: known for known in self.tasks}.get(task.name)
        if before and before.fingerprint != task.fingerprint:
            raise InputError(f"task {task.name!r}: learned already, from other data; give this one another name")
        self.changed_data |= check_data(self.dir, [task])
        if before is None:
            self.tasks.append(task)
        if task.is_stage and task.name not in [stage.name for stage in self.stages]:
            self.train(task)
        return self.evaluate()

    def _load(self, task: Task | TaskConfig | dict[str, Any] | str) -> Task:
        """The task with its samples, after adding it to the run's configuration."""
        if isinstance(task, Task):
            splits = {k: IN_MEMORY for k in ("train", "validation", "test") if getattr(task, k)}
            loaded, spec = task, TaskConfig(name=task.name, description=task.description, **splits)
            require_validation(self.config, task)
        else:
            values = task.model_dump() if isinstance(task, TaskConfig) else task
            loaded, spec = self._load_rows(values) if isinstance(values, dict) else self._load_spec(values)
        if spec.name not in [known.name for known in self.config.tasks]:
            spec = relocate(self.config.model_copy(update={"tasks": [spec]}), self.base, self.dir.path).tasks[0]
            self.config = self.config.model_copy(update={"tasks": [*self.config.tasks, spec]})
            self.dir.claim(self.config)
        return loaded

    def _load_spec(self, values: Any) -> tuple[Task, TaskConfig]:
        spec = make_config({"tasks": [values]}, "task", need_tasks=False).tasks[0]
        return load_task(spec, self.config, self.base, self.config.needs_validation, needs_test=False), spec

    def _load_rows(self, values: dict[str, Any]) -> tuple[Task, TaskConfig]:
        """Rows given as lists take the same way as rows in a file."""
        rows = {split: values[split] for split in SPLITS if isinstance(values.get(split), list)}
        if empty := [split for split in rows if not rows[split]]:
            raise InputError(f"task {values.get('name')!r}: {empty[0]} is an empty list")
        with tempfile.TemporaryDirectory() as folder:
            paths = {split: str(Path(folder) / f"{split}.jsonl") for split in rows}
            for split, path in paths.items():
                Path(path).write_text(_json_lines(rows[split], f"task {values.get('name')!r}: {split}"), "utf-8")
            task, spec = self._load_spec({**values, **paths})
        return task, spec.model_copy(update=dict.fromkeys(rows, IN_MEMORY))

    def train(self, task: Task) -> None:
        """Train the next stage, or skip it where it is finished already."""
        self._score_base()
        number, rows = len(self.stages) + 1, self.dir.rows()
        if number == len(rows):
            require_approval(self.dir.path, self.config)
        self.stages.append(task)
        if number < len(rows):
            check_stage(self.dir, rows[number], task, self.changed_data)
            log.info("stage %d (%s) is finished already; skipped", number, task.name)
            return
        stage = self._stage(number, task)
        buffer, lm = self._buffer(), self.lm
        synthesis = self._synthesis(task)
        buffer.memory.set_unit(stage.plan.time_unit or 1.0, stage.first_step)
        self._announce(stage)
        with self.dir.finish_row(number, task.name) as folder:
            if synthesis:
                synthesis.prepare(number, self._pool(stage), buffer, stage.first_step)
            trace = MemoryTrace(folder, number, buffer)
            trace.write(stage.first_step)
            cards = synthesis.known(task, number) if synthesis else {}
            context = Context(lm, buffer, self._accelerator, self.config.seed, number, cards)
            replayer = self._replayer(stage, buffer, synthesis, context)
            strategy = build(preset_of(self.config.strategy), context, self.config)
            if number > 1:
                strategy.load(self.dir.rows()[-1], lm.device)
            checks = Checks(lm, self.config, self.tasks, self.stages[:-1], stage, buffer, replayer, self.dir.log)
            watch = Watch(self.dir.log, trace.write, checks, trace.review)
            started = time.perf_counter()
            record = train_stage(lm, stage, strategy, buffer, replayer, self._accelerator, self.config, watch)
            self._log_events(stage, replayer, buffer)
            self._remember(stage, buffer, record, trace, synthesis, folder)
            lm.save_adapter(folder / "adapter")
            buffer.save(folder / "buffer")
            strategy.save(folder)
            costs = {"train_seconds": record.train_seconds, "train_tokens": record.train_tokens,
                     "replayed_samples": record.replayed_samples, "replayed_tokens": record.replayed_tokens,
                     "seconds": time.perf_counter() - started}  # fmt: skip
            spent = checks.costs + Counter(probe_tokens=context.probe_tokens)
            costs |= spent + Counter(generated_tokens=synthesis.tokens if synthesis else 0)
            truncated = sum(lm.encode(sample).truncated for sample in task.train)
            if truncated:
                log.warning("%s: %d training samples are longer than max_length and were cut", task.name, truncated)
            done = map(self.dir.scores, self.dir.rows()[1:])
            privacy = record.private and record.private.account(record.steps, [row["privacy"]["spent"] for row in done])
            self.dir.log("stage_end", stage=number, task=task.name, step=stage.first_step + record.steps,
                         truncated=truncated, privacy=privacy, skipped_steps=record.skipped_steps, **costs)  # fmt: skip
            self._score(folder, number, costs, task=task.name, fingerprint=task.fingerprint, truncated=truncated,
                        last_event=replayer.last_event, trigger=replayer.trigger and replayer.trigger.state(),
                        steps=record.steps, skipped_steps=record.skipped_steps, privacy=privacy,
                        drifted=synthesis.drifted if synthesis else [])  # fmt: skip
        merge_traces(self.dir.rows(), self.dir.path)
        self._write_results()

    def _stage(self, number: int, task: Task) -> Stage:
        sizes = [(stage.name, len(stage.train)) for stage in self.stages]
        joint = preset_of(self.config.strategy).joint
        plans = plan_run(self.config, sizes if not joint else [(task.name, len(task.train))], len(self._seed))
        done = sum(self.dir.scores(row)["steps"] for row in self.dir.rows()[1:number])
        return Stage(number, task, plans[number - 1], done)

    def _synthesis(self, task: Task) -> SelfSynthesis | None:
        """What the run knows of its past tasks where their data may not be kept; None for stored rehearsal."""
        if not preset_of(self.config.strategy).source:
            return None
        check_descriptions(self.config, [task])
        past = self.stages[:-1]
        synthesis = SelfSynthesis(self.lm, self.config, self.dir.rows()[-1] if past else None, self.dir.log, past)
        synthesis.check_prompt(task)
        return synthesis

    def _pool(self, stage: Stage) -> dict[str, int]:
        past = [(known.name, len(known.train)) for known in self.stages[: stage.number - 1]]
        return pool(self.config, past, len(stage.task.train), len(self._seed))

    def _replayer(
        self, stage: Stage, buffer: Buffer, synthesis: SelfSynthesis | None, context: Context
    ) -> Replayer | CurriculumReplayer:
        if synthesis and not preset_of(self.config.strategy).replay:
            return self._curriculum(stage, buffer, synthesis)
        confidences = {
            name: 1.0 if sample.confidence is None else sample.confidence for name, sample in buffer.samples.items()
        }
        last = self.dir.scores(self.dir.rows()[-1])
        return Replayer(stage.plan, self.config, stage.number, stage.first_step, buffer.memory, confidences,
                        last.get("last_event"), last.get("trigger"),
                        MostInterfered(context, self.config.training.learning_rate))  # fmt: skip

    def _curriculum(self, stage: Stage, buffer: Buffer, synthesis: SelfSynthesis) -> CurriculumReplayer:
        """The replayer of a stage whose synthetic share follows α(t)."""
        section, pools = self.config.curriculum, curriculum_pools(self.config, buffer)
        needed = "similarity" in (section.kind, section.split)
        similarities = synthesis.similarities(stage.task, buffer) if needed else None
        sizes = {task: len(ids) for task, ids in pools.items()}
        curriculum = stage_curriculum(self.config, stage.plan, stage.number - 1, sizes, similarities)
        if self.dir.scores(self.dir.rows()[-1]).get("drifted") or synthesis.drifted:
            curriculum.lower(self.config.monitor.lower_by)
        drawn = {name for ids in pools.values() for name in ids}
        due = [name for name in buffer.samples if name not in drawn] if refreshed(self.config, stage.number) else []
        return CurriculumReplayer(stage.plan, self.config, stage.number, buffer, curriculum, due)

    def _announce(self, stage: Stage) -> None:
        plan = stage.plan
        events = [event.to_dict() for event in plan.events]
        self.dir.log("plan", stage=stage.number, task=plan.task, steps=plan.steps, time_unit=plan.time_unit,
                     buffer=plan.buffer_size, events=events)  # fmt: skip
        self.dir.log("stage_start", stage=stage.number, task=plan.task, step=stage.first_step)
        replayed = sum(event.replayed for event in plan.events)
        log.info("stage %d: %s, %d steps, %d samples to replay", stage.number, plan.task, plan.steps, replayed)

    def _buffer(self) -> Buffer:
        """The buffer as the last stage left it."""
        if self.dir.buffer.is_dir() or self.dir.rows()[1:]:
            return Buffer.load(self.dir.buffer, self.config.buffer, self.config.memory, self.config.seed)
        buffer = Buffer(self.config.buffer, self.config.memory, self.config.seed)
        if self._seed and preset_of(self.config.strategy).keeps_buffer:
            buffer.seed_with(self._seed)
        return buffer

    def _remember(
        self,
        stage: Stage,
        buffer: Buffer,
        record: StageRecord,
        trace: MemoryTrace,
        synthesis: SelfSynthesis | None,
        folder: Path,
    ) -> None:
        """The end of a stage: refresh what is tracked, then let the stage's own samples in, or ones written of it."""
        now = stage.first_step + record.steps
        buffer.memory.refresh(now)
        trace.write(now)
        trace.close()
        if synthesis:
            synthesis.remember(stage.task, stage.number, buffer, now, record.losses, folder)
        elif preset_of(self.config.strategy).keeps_buffer:
            buffer.admit(stage.task.train, now, record.losses, stage.number)

    def _log_events(self, stage: Stage, replayer: Replayer, buffer: Buffer) -> None:
        for event, ids in zip(replayer.events, replayer.drawn, strict=True):
            by_task = Counter(buffer.samples[i].task for i in ids)
            self.dir.log("event", stage=stage.number, step=event.step, global_step=stage.first_step + event.step,
                         ratio=event.ratio, replayed=event.replayed, by_task=dict(by_task))  # fmt: skip

    # ---- scores --------------------------------------------------------------------------------------

    def evaluate(self) -> dict[str, Any]:
        """Score what has not been scored yet: every row of every task. Returns the results."""
        for number, folder in enumerate(self.dir.rows()):
            missing = {task.name for task in self._scored(number)} - self.dir.scores(folder)["scores"].keys()
            if missing:
                self._score_again(number, folder, missing)
        return self._write_results()

    def report(self) -> Path:
        """Write report.html and return its path."""
        self._write_results()
        return write_report(self.dir.path)

    def _scored(self, row: int) -> list[Task]:
        """The tasks that a row scores: all that have a test, or with `unseen: false` none before its own stage."""
        everything = row == 0 or self.config.evaluation.unseen or preset_of(self.config.strategy).joint
        later = [] if everything else [task for task in self.tasks if task.is_stage][row:]
        return [task for task in self.tasks if task.test and task not in later]

    def _score_base(self) -> None:
        if not self.dir.rows():
            with self.dir.finish_row(0, "base") as folder, self.lm.base():
                self._score(folder, 0, write_seed(self.lm, self.config, folder / "buffer", self.dir.log))

    def _score(self, folder: Path, row: int, costs: dict[str, float], **facts: Any) -> None:
        """Score the tasks with the model as it is now, into scores.json and predictions.jsonl."""
        costs = dict(costs)
        scores = {task.name: self._score_task(folder, row, task, costs) for task in self._scored(row)}
        costs["peak_memory_bytes"] = peak_memory()
        write_json(folder / "scores.json", {"row": row, **facts, "scores": scores, "costs": costs})
        marks = [f"{name} {score['generated']:.2f}" for name, score in scores.items()]
        log.info("%s  %s", "untouched model:" if row == 0 else f"after stage {row}:", "  ".join(marks))

    def _score_task(self, folder: Path, row: int, task: Task, costs: dict[str, float]) -> dict[str, Any]:
        found, predictions = evaluate_task(self.lm, task, self.config.evaluation)
        if not math.isfinite(found.nll):
            raise FloatingPointError(f"{task.name}: its held-out loss is not finite; {LOWER_RATE}")
        scores = found.to_dict()
        if found.truncated and row == 0:
            log.warning("%s: %d test prompts are longer than max_length and were cut", task.name, found.truncated)
        self.dir.log("evaluation", row=row, task=task.name, **scores)
        for key in ("eval_tokens", "generated_tokens"):
            costs[key] = costs.get(key, 0) + scores.pop(key)
        seconds = scores.pop("seconds")
        costs["eval_seconds"] = costs.get("eval_seconds", 0.0) + seconds
        costs["seconds"] += seconds
        if self.config.evaluation.save_predictions:
            with open(folder / "predictions.jsonl", "a", encoding="utf-8") as file:
                file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in predictions)
        return scores

    def _score_again(self, row: int, folder: Path, missing: set[str]) -> None:
        """Fill in tasks that were not known when this row was scored, with the row's own weights."""
        known = self.dir.scores(folder)
        newest = self.dir.rows()[-1]
        if row:
            self.lm.load_adapter(folder / "adapter")
        with self.lm.base() if row == 0 else nullcontext():
            for task in self.tasks:
                if task.name in missing:
                    known["scores"][task.name] = self._score_task(folder, row, task, known["costs"])
        write_json(folder / "scores.json", known)
        if row:
            self.lm.load_adapter(newest / "adapter")

    def _write_results(self) -> dict[str, Any]:
        rows = self.dir.rows()
        known = self.dir.scores(rows[0])["scores"] if rows else {}
        loaded = {task.name: task for task in self.tasks}
        tasks = [
            {
                "name": spec.name,
                "stage": spec.train is not None,
                "metric": known.get(spec.name, {}).get("metric"),
                "skipped": loaded[spec.name].skipped if spec.name in loaded else 0,
            }
            for spec in self.config.tasks
        ]
        results = self.dir.collect(self.config, tasks, self._versions)
        write_json(self.dir.path / "results.json", results)
        return results


def _json_lines(rows: list[Any], where: str) -> str:
    try:
        return "".join(json.dumps(row) + "\n" for row in rows)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: a row is not plain data ({error})") from None
