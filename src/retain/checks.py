"""What a run looks at inside a stage: scores every n steps, early stopping, triggers of replay, adaptive curricula."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from retain.buffer import Buffer, balanced_choice
from retain.config import Config
from retain.evaluate import TaskScores, evaluate_task
from retain.losses import sample_losses
from retain.model import LanguageModel
from retain.rehearsal import CurriculumReplayer, curriculum_pools
from retain.replayer import Replayer
from retain.schedules import every_steps
from retain.trainer import Stage
from retain.triggers import Accuracy
from retain.types import InputError, Sample, Task

PROBE = 32  # synthetic samples whose loss an adaptive curriculum looks at
VALIDATE_EVERY = 0.1  # of a stage, for early stopping


class Checks:
    """Called after each step of one stage; answers whether the stage should end. `costs` is what it took.

    Call `begin` once before the first step.
    """

    def __init__(
        self,
        lm: LanguageModel,
        config: Config,
        tasks: Sequence[Task],
        past: Sequence[Task],
        stage: Stage,
        buffer: Buffer,
        replayer: Replayer | CurriculumReplayer,
        log: Callable[..., None],
    ) -> None:
        self.lm, self.config, self.tasks, self.stage, self.log = lm, config, tasks, stage, log
        self.costs: Counter[str] = Counter()
        self._best, self._worse = float("inf"), 0
        adaptive = isinstance(replayer, CurriculumReplayer) and config.curriculum.kind == "adaptive"
        self._trigger, self._past = replayer.trigger, past
        stored, size = list(buffer.samples.values()), config.trigger.probe
        if adaptive:
            drawn = {name for ids in curriculum_pools(config, buffer).values() for name in ids}
            stored, size = [sample for sample in stored if sample.id in drawn], PROBE
        self._curriculum = replayer.curriculum if adaptive and stored else None
        self._probe = [buffer.samples[name] for name in balanced_choice(stored, size, config.seed)]

    def begin(self) -> None:
        """The looks at the stage's start."""
        if self._curriculum:
            self._adapt(0)
        self._look(0)

    def progress(self) -> dict[str, Any]:
        """The costs so far, and what early stopping knows; triggers and curricula are the replayer's."""
        return {"costs": dict(self.costs), "best": self._best, "worse": self._worse}

    def resume(self, progress: Mapping[str, Any]) -> None:
        """Go on where `progress` was taken, instead of `begin`."""
        self.costs = Counter(progress["costs"])
        self._best, self._worse = progress["best"], progress["worse"]

    def __call__(self, step: int, new_loss: float | None = None, update_norm: float | None = None) -> bool:
        """After local `step`, given the mean loss of its new samples and the norm of its update: True if the
        validation loss has not improved `patience` times in a row."""
        if self._trigger:
            self._trigger.saw(new_loss, update_norm)
        self._look(step)
        if self._curriculum and self._curriculum.check_due(step):
            self._adapt(step)
        if self.config.evaluation.after != "stage" and step % self.config.evaluation.after == 0:
            self._score(step)
        due = every_steps(VALIDATE_EVERY, self.stage.plan.steps)
        return self.config.training.patience is not None and step % due == 0 and self._stop(step)

    def _look(self, step: int) -> None:
        """Show a trigger that asks for it the past tasks' validation scores, or the loss of its probe."""
        if not self._trigger or not self._probe or not self._trigger.check_due(step):
            return
        if isinstance(self._trigger, Accuracy):
            found = {task.name: self._score_validation(task, step) for task in self._past}
        else:
            found = self._loss(self._probe, "probe_tokens")
            self.log("probe", stage=self.stage.number, step=step, loss=found)
        self._trigger.check(step, found)

    def _score_validation(self, task: Task, step: int) -> tuple[float, int]:
        """A past task's score on its validation samples, and how many these are."""
        if not task.validation:
            raise InputError(f"task {task.name!r}: has no validation samples, which schedule.kind: accuracy scores")
        found, _ = evaluate_task(self.lm, replace(task, test=task.validation), self.config.evaluation)
        self.log("past", stage=self.stage.number, step=step, task=task.name, score=found.generated, n=found.n)
        self._spent(found)
        return found.generated, found.n

    def _spent(self, found: TaskScores) -> None:
        self.costs.update(
            eval_tokens=found.eval_tokens, generated_tokens=found.generated_tokens, eval_seconds=found.seconds
        )

    def _adapt(self, step: int) -> None:
        """Show the curriculum the new task's validation loss and the past tasks' on a few of their samples."""
        new, old = (self._loss(samples, "probe_tokens") for samples in (self.stage.task.validation, self._probe))
        self._curriculum.observe(step, new, old)
        self.log("curriculum", stage=self.stage.number, **self._curriculum.history[-1])

    def _score(self, step: int) -> None:
        for task in self.tasks:
            found, _ = evaluate_task(self.lm, task, self.config.evaluation)
            self.log("check", stage=self.stage.number, step=step, task=task.name, **found.to_dict())
            self._spent(found)

    def _stop(self, step: int) -> bool:
        loss = self._loss(self.stage.task.validation, "eval_tokens")
        self._best, self._worse = (loss, 0) if loss < self._best else (self._best, self._worse + 1)
        self.log("validation", stage=self.stage.number, step=step, task=self.stage.task.name, loss=loss)
        return self._worse >= self.config.training.patience

    def _loss(self, samples: Sequence[Sample], cost: str) -> float:
        sequences = [self.lm.encode(sample) for sample in samples]
        self.costs.update({cost: sum(map(len, sequences))})
        return float(sample_losses(self.lm, sequences).mean())


def require_validation(config: Config, task: Task) -> None:
    """An InputError where a task given in Python lacks the validation samples that something looks at."""
    looks = config.model_copy(update={"hold_out": False}).needs_validation
    if task.is_stage and not task.validation and looks:
        raise InputError(
            f"task {task.name!r}: no validation samples, which training.patience, curriculum.kind: adaptive and "
            "strategy accuracy look at; add some"
        )
