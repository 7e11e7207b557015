"""The learner: where data, model, memory, training and scores of a run meet."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import math
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from retain.config import Config, make_config
from retain.conflicts import settle_conflicts
from retain.data_record import check_code, check_data, check_stage
from retain.device import connect, open_model, peak_memory
from retain.evaluate import evaluate_task
from retain.files import write_json
from retain.following import follow
from retain.gate import enforce, raise_replay, replay_factor
from retain.intake import given_task
from retain.model import LanguageModel
from retain.modelcard import write_cards
from retain.presets import AUTO, preset_of
from retain.privacy import check_installed
from retain.progress import clear_row, row_checksums, seal_row, sealed_row
from retain.relocation import relocate
from retain.report import write_report
from retain.reviews import require_approval
from retain.rundir import PREDICTIONS, RunDir
from retain.scheduler import plan_run
from retain.sections import TaskConfig
from retain.selfsynthesis import check_demonstrations
from retain.stages import StageRun
from retain.synthesis.general import write_seed
from retain.tasks import load_task
from retain.trace import merge_traces
from retain.tracking import Tracking, check_trackers
from retain.trainer import LOWER_RATE, Stage
from retain.types import InputError, Task
from retain.vllm_engine import check_engine
from retain.weights import load_weights

log = logging.getLogger("retain")
PACKAGES = ("retain", "torch", "transformers", "peft", "accelerate", "numpy")


def warn_of_seed(config: Config) -> None:
    """Say so where a strategy keeps no buffer that `buffer.seed` could stand in."""
    chosen = preset_of(config.strategy)
    if config.buffer.seed and not chosen.keeps_buffer:
        log.warning("buffer.seed: strategy %s keeps no buffer, so nothing of it is rehearsed", chosen.name)


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
        self._team = connect()
        check_installed(config.privacy)
        check_trackers(config.tracking)
        chosen = preset_of(config.strategy)
        check_demonstrations(config)
        by_vllm = config.synthesis.engine == "vllm" and bool(chosen.source or config.written_seed)
        if by_vllm:
            check_engine(config)
        if chosen.name == AUTO:
            raise InputError("strategy: auto looks at all tasks at once; use `retain run`, or name a strategy")
        self.started = time.perf_counter()
        self.base, self.accept_changed_data, self.changed_data = base, False, set()
        self.tasks, self.stages = list(tasks or []), []
        with self._team.first():
            self.dir = follow(out) if self._team.rank else RunDir(out)
            self.config = self.dir.claim(relocate(config, base, self.dir.path), adopt_tasks=tasks is None)
            self.tracking = Tracking.of(self.config, self.dir, self._team.rank)
            self.dir.settle()
        self._lm: LanguageModel | None = None
        seed = config.buffer.seed
        warn_of_seed(config)
        self._seed = load_task(seed, config, base, needs_test=False).train if seed and not seed.synthesize else []
        self._versions = {name: importlib.metadata.version(name) for name in PACKAGES + ("vllm",) * by_vllm}
        self._versions["python"] = ".".join(map(str, sys.version_info[:3]))
        self._log_start()

    def _log_start(self) -> None:
        """The journal's first line, again where a claim by another configuration emptied the journal."""
        if not self.dir.begun:
            self.dir.log_start(self.config, self._versions, self._team.size)
        check_code(self.dir, self.config)

    @property
    def lm(self) -> LanguageModel:
        """The model, loaded when first needed, with the newest adapter."""
        if self._lm is None:
            self._lm, self._accelerator = open_model(self.config, self.dir.path)
            if len(self.dir.rows()) > 1:
                load_weights(self._lm, self.dir.rows()[-1])
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
        self.changed_data |= check_data(self.dir, [task], self.accept_changed_data)
        if before is None:
            self.tasks.append(task)
        if task.is_stage and task.name not in [stage.name for stage in self.stages]:
            self.train(task)
        return self.evaluate()

    def _load(self, task: Task | TaskConfig | dict[str, Any] | str) -> Task:
        """The task with its samples, after adding it to the run's configuration."""
        loaded, spec = given_task(task, self.config, self.base)
        if spec.name not in [known.name for known in self.config.tasks]:
            spec = relocate(self.config.model_copy(update={"tasks": [spec]}), self.base, self.dir.path).tasks[0]
            self.config = self.config.model_copy(update={"tasks": [*self.config.tasks, spec]})
            self.dir.claim(self.config)
            self._log_start()
        return loaded

    def train(self, task: Task) -> None:
        """Train the next stage, or skip it where it is finished already."""
        self._score_base()
        number, rows = len(self.stages) + 1, self.dir.rows()
        if number == len(rows):
            require_approval(self.dir.path, self.config)
            enforce(self.dir, self.config)
        self.stages.append(task)
        if number < len(rows):
            check_stage(self.dir, rows[number], task, self.changed_data)
            log.info("stage %d (%s) is finished already; skipped", number, task.name)
            if number == len(rows) - 1:  # a crash may have come before it
                merge_traces(rows, self.dir.path)
            return
        with self.dir.finish_row(number, task.name) as folder:
            found = sealed_row(folder)
            if found and found["fingerprint"] == task.fingerprint:
                self._go_on(folder, found, task)
            else:
                found = self._stage_run(number, task).learn(folder)
            self._score(folder, found)
        merge_traces(self.dir.rows(), self.dir.path)
        self._write_results()

    def _go_on(self, folder: Path, found: dict[str, Any], task: Task) -> None:
        """The weights of a stage that was trained to its end and not scored to its end."""
        log.info("stage %d (%s): trained already; its scores go on", found["row"], task.name)
        self.dir.log("resume", into=task.name, scored=list(found["scores"]))
        load_weights(self.lm, folder)

    def _stage_run(self, number: int, task: Task) -> StageRun:
        """The next stage with the buffer that it starts with, after what newer data correct was retired."""
        buffer, notes = self.dir.load_buffer(self.config, self._seed), []
        if number == 1 and self._seed and buffer.samples:
            notes.append(("seed", {"stage": 1, "samples": len(self._seed), "kept": len(buffer)}))
        settle_conflicts(buffer, self.config, self.stages, lambda kind, **fields: notes.append((kind, fields)))
        stage = self._stage(number, task, len(buffer))
        return StageRun(self.lm, self._accelerator, self.config, self.dir, self.tasks, self.stages[:-1], stage, buffer,
                        len(self._seed), notes, self.tracking)  # fmt: skip

    def _stage(self, number: int, task: Task, buffered: int) -> Stage:
        sizes = [(stage.name, len(stage.train)) for stage in self.stages]
        joint = preset_of(self.config.strategy).joint
        config = raise_replay(self.config, replay_factor(self.dir, self.config))
        plans = plan_run(config, sizes if not joint else [(task.name, len(task.train))], len(self._seed), buffered)
        return Stage(number, task, plans[number - 1], self.dir.steps(), config)

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
        return [task for task in self.tasks if task.is_scored and task not in later]

    def _score_base(self) -> None:
        if not self.dir.rows():
            with self.dir.finish_row(0, "base") as folder, self.lm.base():
                found = sealed_row(folder)
                if not found:
                    clear_row(folder)
                    self.dir.forget_row(0)
                    costs = write_seed(self.lm, self.config, folder / "buffer", self.dir.log)
                    found = {"row": 0, "scores": {}, "costs": costs}
                self._score(folder, found)

    def _score(self, folder: Path, found: dict[str, Any]) -> None:
        """Score the tasks with the model as it is now, into scores.json and predictions.jsonl.

        found: what scores.json will hold, with the scores that a run that was stopped had got.
        """
        row, scores, costs = found["row"], found["scores"], found["costs"]
        self.dir.forget_unscored(folder, row, scores)
        files = row_checksums(folder)
        seal_row(folder, files, found)
        for task in self._scored(row):
            if task.name not in scores:
                scores[task.name] = self._score_task(folder, row, task, costs)
                seal_row(folder, files, found)
        costs["peak_memory_bytes"] = peak_memory()
        write_json(folder / "scores.json", found)
        marks = [f"{name} {score['generated']:.2f}" for name, score in scores.items()]
        log.info("%s  %s", "untouched model:" if row == 0 else f"after stage {row}:", "  ".join(marks))

    def _score_task(self, folder: Path, row: int, task: Task, costs: dict[str, float]) -> dict[str, Any]:
        found, predictions = evaluate_task(self.lm, task, self.config.evaluation)
        if found.nll is not None and not math.isfinite(found.nll):
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
            with open(folder / PREDICTIONS, "a", encoding="utf-8") as file:
                file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in predictions)
        return scores

    def _score_again(self, row: int, folder: Path, missing: set[str]) -> None:
        """Fill in tasks that were not known when this row was scored, with the row's own weights."""
        known = self.dir.scores(folder)
        self.dir.forget_unscored(folder, row, known["scores"])
        newest = self.dir.rows()[-1]
        if row:
            load_weights(self.lm, folder)
        with self.lm.base() if row == 0 else nullcontext():
            for task in self.tasks:
                if task.name in missing:
                    known["scores"][task.name] = self._score_task(folder, row, task, known["costs"])
                    write_json(folder / "scores.json", known)
        if row:
            load_weights(self.lm, newest)

    def _write_results(self) -> dict[str, Any]:
        skipped = {task.name: task.skipped for task in self.tasks}
        results = self.dir.write_results(self.config, skipped, self._versions)
        write_cards(self.dir, self.config, results)
        return results
