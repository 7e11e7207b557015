"""The training loop: new samples in a fixed order, replay on top, and what their losses do to the memory."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from tqdm import tqdm
from transformers import get_scheduler

from retain.batching import Row
from retain.buffer import Buffer
from retain.checkpoint import Resumable
from retain.config import Config
from retain.dp_sgd import PrivateGradient
from retain.encoder_decoder import PairRow
from retain.faults import TRAINING_ADVICE, memory_advice
from retain.losses import label_logits, make_rows, row_losses, token_losses
from retain.memory.dynamics import ema
from retain.model import LanguageModel
from retain.plans import StagePlan
from retain.rehearsal import CurriculumReplayer
from retain.replayer import Replayer
from retain.schedules import every_steps, round_amount
from retain.sections import TrainingConfig
from retain.sharding import is_sharded
from retain.strategies.base import Batch, Strategy, check_training, trained
from retain.team import Team
from retain.types import Sample, Task

log = logging.getLogger("retain")
LEAST_WEIGHT = 1e-12  # of a loss: a strategy that adds a term of a weight of its own divides by it
LOWER_RATE = "lower training.learning_rate or set training.precision: float32"


@dataclass(frozen=True, slots=True)
class Stage:
    """One task's turn: its number from 1, its plan, the global step before its first, and the settings that hold in
    it."""

    number: int
    task: Task
    plan: StagePlan
    first_step: int
    config: Config | None = None


@dataclass(slots=True)
class Watch:
    """What a caller may do during a stage: keep a log, look at the memory, evaluate and end the stage, put its parts
    where they were saved before the first step, and save them after each one."""

    log: Callable[..., None] = lambda kind, **fields: None
    refreshed: Callable[[int], None] = lambda step: None
    after_step: Callable[[int, float | None, float | None], bool] = lambda step, new_loss, update_norm: False
    reviewed: Callable[[int, dict[str, float]], None] = lambda step, losses: None
    resume: Callable[[Mapping[str, Resumable]], None] = lambda parts: None
    save: Callable[[int], None] = lambda step: None


@dataclass(slots=True)
class StageRecord:
    """What a stage cost, and the running loss of each of its own samples."""

    losses: dict[str, float] = field(default_factory=dict)
    steps: int = 0
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    train_tokens: int = 0
    replayed_samples: int = 0
    replayed_tokens: int = 0
    train_seconds: float = 0.0
    ended: bool = False
    private: PrivateGradient | None = None

    def progress(self) -> dict[str, Any]:
        """All but what DP-SGD keeps, which is a function of its seed and the step."""
        return asdict(replace(self, private=None))

    def resume(self, progress: Mapping[str, Any]) -> None:
        """Go on where `progress` was taken."""
        for name, value in progress.items():
            if name != "private":
                setattr(self, name, value)


def new_batches(samples: Sequence[Sample], plan: StagePlan, seed: int, stage: int) -> Iterator[list[Sample]]:
    """The new samples of each step: every epoch has a shuffle by (seed, stage, epoch), under any strategy."""
    epoch, order = 0, []
    for size in plan.new_per_step:
        if not order:
            generator = np.random.default_rng([seed, stage, epoch])
            epoch, order = epoch + 1, generator.permutation(len(samples)).tolist()
        batch, order = order[:size], order[size:]
        yield [samples[i] for i in batch]


class Optimization:
    """One stage's optimizer and learning-rate schedule, and the one place where weights change."""

    def __init__(
        self,
        lm: LanguageModel,
        strategy: Strategy,
        accelerator: Accelerator,
        config: TrainingConfig,
        steps: int,
        seed: tuple[int, ...] = (0,),
        private: PrivateGradient | None = None,
        measure_updates: bool = False,
    ) -> None:
        self.lm, self.strategy, self.accelerator, self.config = lm, strategy, accelerator, config
        self.team, self.sharded = Team.launched(), is_sharded(lm)
        self.private, self.measure_updates = private, measure_updates
        self.update_norm: float | None = None
        self.skipped = False  # whether the last step left the weights as they were
        self.seed, self.done = seed, 0
        adamw = torch.optim.AdamW(
            lm.parameters(), lr=config.learning_rate, betas=(0.9, 0.999), weight_decay=config.weight_decay
        )
        self.optimizer = accelerator.prepare_optimizer(adamw)
        warmup = round_amount(config.warmup * steps)
        self.schedule = get_scheduler(config.schedule, adamw, num_warmup_steps=warmup, num_training_steps=steps)

    def progress(self) -> dict[str, Any]:
        """The trained weights, and the state of all that changes them."""
        scaler = self.accelerator.scaler
        moments = self.optimizer.state_dict()
        return {
            "done": self.done,
            "weights": {name: weight.detach() for name, weight in trained(self.lm.model).items()},
            "moments": {str(index): values for index, values in moments["state"].items()},
            "groups": moments["param_groups"],
            "schedule": self.schedule.state_dict(),
            "scaler": scaler.state_dict() if scaler else {},
        }

    def resume(self, progress: Mapping[str, Any]) -> None:
        """Go on where `progress` was taken."""
        self.done, moments = progress["done"], progress["moments"]
        check_training(self.lm.model, progress["weights"], moments)
        with torch.no_grad():
            for name, weight in trained(self.lm.model).items():
                weight.copy_(progress["weights"][name])
        state = {int(index): values for index, values in moments.items()}
        self.optimizer.load_state_dict({"state": state, "param_groups": progress["groups"]})
        self.schedule.load_state_dict(progress["schedule"])
        if self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(progress["scaler"])

    @memory_advice("training", TRAINING_ADVICE)
    def step(self, samples: Sequence[Sample], weights: np.ndarray, new: int | None = None) -> np.ndarray:
        """One optimizer step on the weighted mean of the samples' losses; returns each loss (B,).

        The result does not depend on how the batch is cut into rows (but for dropout). The first `new` samples (all
        by default) are those that DP-SGD protects, one row each. Where a loss or the gradient is not finite nothing
        is updated and `skipped` is true.
        """
        new = len(samples) if new is None else new
        losses = torch.zeros(len(samples), dtype=torch.float64)
        weights = torch.as_tensor(weights, device=self.lm.device).clamp(min=LEAST_WEIGHT)
        parts = 1 if self.private else len(samples)
        self.skipped, read = False, self._read()
        self.lm.model.train()
        with self._dropout_noise():
            for row in self._rows(samples):
                with self.accelerator.autocast():
                    logits = label_logits(self.lm, row)
                    base = row_losses(token_losses(logits, row), row)
                    batch = Batch([samples[m] for m in row.members], row, weights[row.members])
                    each = self.strategy.losses(self.lm.model, batch, base, logits)
                self.accelerator.backward((each * (weights[row.members] / parts).to(each.dtype)).sum())
                losses[row.members] = base.detach().double().cpu()
                self.skipped |= not bool(torch.isfinite(each).all())
                if self.private:
                    self.private.take(clip=row.members[0] < new)
        self._add_up(losses, self._read() - read)
        if self.private:
            self.private.release(len(samples) - new, self.done)
        self._update()
        return losses.numpy()

    def _rows(self, samples: Sequence[Sample]) -> Iterator[Row | PairRow]:
        """The forward passes of this process: its share of the batch, dealt out by length."""
        sequences = [self.lm.encode(sample) for sample in samples]
        places = self.team.share(sorted(range(len(samples)), key=lambda place: -len(sequences[place])))
        most = 1 if self.private else self.config.micro_batch_size
        taken = 0
        for row in make_rows(self.lm, [sequences[place] for place in places], max_members=most):
            row.members = [places[member] for member in row.members]
            taken += 1
            yield row
        if self.sharded:
            for _ in range(self.team.most(taken) - taken):
                (row,) = make_rows(self.lm, sequences[:1])
                self.accelerator.backward(0 * label_logits(self.lm, row).sum())  # others need this process's weights

    def _read(self) -> int:
        """Tokens that the stage's methods read so far."""
        return self.strategy.context.probe_tokens if self.strategy.context else 0

    def _add_up(self, losses: torch.Tensor, read: int) -> None:
        """The batch as all processes computed it: its losses (B,), its gradient, and the tokens its methods read."""
        if self.team.size == 1:
            return
        parameters = self.lm.parameters()
        facts = torch.tensor([self.skipped, read, *(p.grad is not None for p in parameters)], dtype=torch.float64)
        self.team.total([losses, facts], self.lm.device)
        skipped, read_by_all, *has_gradient = facts.tolist()
        self.skipped = skipped > 0
        if self.strategy.context:
            self.strategy.context.probe_tokens += round(read_by_all) - read
        if self.private:
            self.team.total(self.private.sums)
        for parameter, found in zip(parameters, has_gradient, strict=True):
            if found and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self.team.total([parameter.grad for parameter in parameters if parameter.grad is not None])

    @contextmanager
    def _dropout_noise(self) -> Iterator[None]:
        """Torch's generators as a function of (seed, stage, step) and the process, and as they were afterwards."""
        self.done += 1
        key = (*self.seed, self.done, self.team.rank) if self.team.rank else (*self.seed, self.done)
        with torch.random.fork_rng():
            torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))
            yield

    def _update(self) -> None:
        if not self.skipped:
            self.accelerator.unscale_gradients(self.optimizer)  # strategies and clipping see the gradient itself
            self.skipped = not self._has_finite_gradient()
        if self.skipped:
            self.update_norm = 0.0 if self.measure_updates else None
        else:
            self._change_weights()
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", "Detected call of `lr_scheduler.step", UserWarning
            )  # a first step skipped
            self.schedule.step()
        self.optimizer.zero_grad()

    def _has_finite_gradient(self) -> bool:
        """Under float16 the gradient scaler looks itself: overflows are how it finds its scale."""
        gradients = [parameter.grad for parameter in self.lm.parameters() if parameter.grad is not None]
        return self.accelerator.scaler is not None or bool(torch.nn.utils.get_total_norm(gradients).isfinite())

    def _change_weights(self) -> None:
        self.strategy.adjust_gradients(self.lm.model)
        if self.config.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(self.lm.parameters(), self.config.max_grad_norm)
        before = [p.detach().clone() for p in self.lm.parameters()] if self.measure_updates else []
        self.optimizer.step()
        if before:
            changes = [p.detach() - old for p, old in zip(self.lm.parameters(), before, strict=True)]
            self.update_norm = torch.nn.utils.get_total_norm(changes).item()


def train_stage(
    lm: LanguageModel,
    stage: Stage,
    strategy: Strategy,
    buffer: Buffer,
    replayer: Replayer | CurriculumReplayer,
    accelerator: Accelerator,
    config: Config,
    watch: Watch,
) -> StageRecord:
    """Train one task with replay on top. The memory learns only from losses that training computes anyway."""
    task, plan, record = stage.task, stage.plan, StageRecord()
    seed = (config.seed, stage.number)
    strategy.begin_task(lm.model, task)
    if config.privacy.dp_sgd:
        record.private = PrivateGradient(lm.parameters(), config.privacy, plan, len(task.train), stage.number)
        batches = record.private.batches(task.train, plan.steps)
    else:
        batches = new_batches(task.train, plan, *seed)
    measured = config.schedule.clock == "updates"
    optimization = Optimization(lm, strategy, accelerator, config.training, plan.steps, seed, record.private, measured)
    refresh_every = every_steps(config.memory.refresh_every, plan.steps)
    watch.resume({"record": record, "optimization": optimization, "strategy": strategy, "replayer": replayer})
    for step, new in enumerate(_bar(batches, task, plan, record), start=record.steps + 1):
        now, started = stage.first_step + step, time.perf_counter()
        # --------------------------------------------------------------------------------------
        replayed = [buffer.samples[i] for i in replayer.draw(step, new)]
        losses = optimization.step(new + replayed, replayer.weights(len(new), replayed), len(new))
        if not optimization.skipped:
            observe(record.losses, new, losses[: len(new)], config.memory.ema_beta)
            watch.reviewed(now, review(buffer, replayed, losses[len(new) :], now))
        if now % refresh_every == 0:
            buffer.memory.refresh(now)
            watch.refreshed(now)
        # --------------------------------------------------------------------------------------
        line = _account(record, lm, new, replayed, losses, time.perf_counter() - started)
        line |= {"update_norm": optimization.update_norm} if measured else {}
        bad = count_skipped(record, optimization.skipped, losses, new + replayed)
        line |= {"skipped": bad} if bad else {}
        watch.log("step", stage=stage.number, task=task.name, step=step, global_step=now, **line)
        record.ended = watch.after_step(step, line["new_loss"], optimization.update_norm) or step == plan.steps
        if bad:
            _warn_or_stop(record, config.training.max_skipped_steps, bad, f"{task.name}, step {step}")
        watch.save(step)
        if record.ended:
            break
    if not all(torch.isfinite(parameter).all() for parameter in lm.parameters()):
        raise FloatingPointError(f"{task.name}: the last update left weights that are not finite; {LOWER_RATE}")
    strategy.end_task(lm.model, task)
    return record


def _bar(batches: Iterator[list[Sample]], task: Task, plan: StagePlan, record: StageRecord) -> tqdm:
    """The steps that are left to take, under a progress bar that shows only on a terminal, and where the stage takes
    longer than two seconds."""
    done = record.steps
    left = () if record.ended else islice(batches, done, None)
    return tqdm(left, f"train {task.name}", plan.steps, initial=done, unit="step", delay=2, leave=False, disable=None)


def observe(running: dict[str, float], samples: Sequence[Sample], losses: np.ndarray, beta: float) -> None:
    """Enter each sample's loss into its own running mean (MSSR Eq. 13)."""
    for sample, loss in zip(samples, losses.tolist(), strict=True):
        running[sample.id] = ema(running[sample.id], loss, beta) if sample.id in running else loss


def review(buffer: Buffer, samples: Sequence[Sample], losses: np.ndarray, step: int) -> dict[str, float]:
    """Tell the memory which samples were replayed, each once, with its mean loss; returns these losses by id."""
    seen: dict[str, list[float]] = {}
    for sample, loss in zip(samples, losses.tolist(), strict=True):
        seen.setdefault(sample.id, []).append(loss)
    means = {one: sum(values) / len(values) for one, values in seen.items()}
    if means:
        buffer.memory.review(list(means), list(means.values()), step)
    return means


def _account(
    record: StageRecord,
    lm: LanguageModel,
    new: list[Sample],
    replayed: list[Sample],
    losses: np.ndarray,
    seconds: float,
) -> dict[str, float | int | None]:
    """Add one step to the stage's costs; returns the step's own line for the log."""
    again = sum(len(lm.encode(sample)) for sample in replayed)
    tokens = again + sum(len(lm.encode(sample)) for sample in new)
    record.steps += 1
    record.train_tokens += tokens
    record.replayed_tokens += again
    record.replayed_samples += len(replayed)
    record.train_seconds += seconds
    return {
        "new_loss": _mean(losses[: len(new)]),
        "replay_loss": _mean(losses[len(new) :]),
        "new": len(new),
        "replayed": len(replayed),
        "tokens": tokens,
        "seconds": round(seconds, 4),
    }


def _mean(losses: np.ndarray) -> float | None:
    """None for no losses, and where one of them is not finite."""
    return float(losses.mean()) if len(losses) and np.isfinite(losses).all() else None


def count_skipped(record: StageRecord, skipped: bool, losses: np.ndarray, batch: Sequence[Sample]) -> list[str]:
    """Enter a step into the stage's account of skipped ones; returns the ids at fault.

    These are the samples whose loss is not finite; where only the gradient is not, the whole batch.
    """
    record.skipped_steps += skipped
    record.skipped_in_a_row = record.skipped_in_a_row + 1 if skipped else 0
    if not skipped:
        return []
    ids = dict.fromkeys(sample.id for sample, loss in zip(batch, losses, strict=True) if not np.isfinite(loss))
    return list(ids or dict.fromkeys(sample.id for sample in batch))


def _warn_or_stop(record: StageRecord, limit: int, bad: Sequence[str], where: str) -> None:
    shown = ", ".join(bad[:5]) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
    what = f"{where}: the loss or its gradient is not finite with {shown}"
    if record.skipped_in_a_row >= limit:
        raise FloatingPointError(
            f"{what}; {record.skipped_in_a_row} steps in a row were skipped (training.max_skipped_steps), none of "
            f"which changed the weights; look at these samples, or {LOWER_RATE}"
        )
    log.warning("%s; the step is skipped", what)
