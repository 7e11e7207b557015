"""Rehearsal without old data: what is written for which task, when, and what stays of it (SSR 3, 5, 7, 9)."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from retain.buffer import Buffer, balanced_choice
from retain.cards import CARDS_FILE, TaskCard, label_set, read_cards, texts_of, write_cards
from retain.choosing import LEAST_DESCRIPTION
from retain.config import Config
from retain.conflicts import find_conflicts, retired_tasks, settle_conflicts
from retain.model import LanguageModel
from retain.presets import preset_of
from retain.quality.filters import Candidate
from retain.quality.ngrams import words
from retain.rehearsal import samples_asked
from retain.sealed import read_sealed, write_sealed
from retain.store import DEMONSTRATIONS, NAME, read_lines, write_lines
from retain.synthesis.prompts import SHOWING, Pair, prompts, writing_prompt
from retain.synthesis.watch import drifted, real_perplexities, watch
from retain.synthesis.writer import Writer, Written
from retain.types import Frame, InputError, Sample, Task
from retain.vllm_engine import check_engine

log = logging.getLogger("retain")

Log = Callable[..., None]


class SelfSynthesis:
    """The synthetic side of a run: cards of the tasks so far, demonstrations, and a writer for the current weights.

    `folder`: that of the last finished stage, which says what is known. `past`: the tasks learned before, as far as
    their data are at hand. In storage mode `on-demand` nothing that was written outlives a stage, in `cached` at most
    `cache_size` samples do, and what a stage lacks is written again at its start, by the model as the last stage left
    it. What was written without a look at its task's training texts is not kept: it might be a copy of one.
    `scratch`: where what is written for a task lies until the row is finished, so that it is not written again.
    """

    def __init__(
        self, lm: LanguageModel, config: Config, folder: Path | None, log: Log, past: Sequence[Task] = ()
    ) -> None:
        check_engine(config, lm)
        self.lm, self.config, self.log = lm, config, log
        self.at_hand = {task.name: task for task in past if task.train}
        self.cards: dict[str, TaskCard] = {}
        self.demonstrations: dict[str, list[Pair]] = {}
        if folder:
            self.cards = {card.name: card for card in read_cards(folder)}
            if lost := [task.name for task in past if task.name not in self.cards]:
                raise InputError(
                    f"{folder / CARDS_FILE}: says nothing of task {', '.join(lost)}; restore it, or start anew with "
                    "--out"
                )
            if config.synthesis.kept_demonstrations:
                for row in read_lines(folder / DEMONSTRATIONS, ("task", "input", "answer")):
                    self.demonstrations.setdefault(row["task"], []).append((row["input"], row["answer"]))
        self.drifted: list[str] = []
        self.tokens = 0
        self.scratch: Path | None = None
        self.retired: set[str] = set()
        self._stages: list[Task] = list(past)
        self._passing: set[str] = set()  # ids of samples that live for this stage alone

    def progress(self) -> dict[str, Any]:
        """What `prepare` left here."""
        return {"drifted": self.drifted, "tokens": self.tokens, "passing": sorted(self._passing)}

    def resume(self, progress: Mapping[str, Any]) -> None:
        """Take over what `prepare` left, instead of it."""
        self.drifted, self.tokens, self._passing = progress["drifted"], progress["tokens"], set(progress["passing"])

    def known(self, task: Task, stage: int) -> dict[str, TaskCard]:
        """The cards of the past tasks and, without statistics of its own, of the one that is being learned."""
        return {**self.cards, task.name: TaskCard.of(task, stage, private=True)}

    def correct(self, stages: Sequence[Task]) -> None:
        """Write nothing of tasks that are retired by the last of `stages`, and show no sample that a later one of them
        answers otherwise."""
        self.retired = retired_tasks(self.config, [task.name for task in stages])
        self.demonstrations = {task: self._valid(task, pairs, stages) for task, pairs in self.demonstrations.items()}
        self._stages = list(stages)

    def _valid(self, name: str, pairs: list[Pair], stages: Sequence[Task]) -> list[Pair]:
        """The pairs of a task that are still true by `conflicts`."""
        if self.config.conflicts != "newest" or name not in self.cards:
            return pairs
        frames = {task.name: task.frame for task in stages} | {name: self.cards[name].frame}
        samples = [frames[name].sample(str(place), name, *pair) for place, pair in enumerate(pairs)]
        wrong = {one.stored for one in find_conflicts(samples, stages, frames, self.config.conflict_similarity)}
        return [pair for place, pair in enumerate(pairs) if str(place) not in wrong]

    def _drop_untrue(self, buffer: Buffer) -> None:
        """Drop what was written just now and a later task's data answer otherwise; the model may know it no better."""
        if self._stages and self.config.conflicts != "keep":
            config = self.config.model_copy(update={"conflicts": "newest"})
            settle_conflicts(buffer, config, self._stages, self.log)

    def check_prompt(self, task: Task) -> None:
        """An InputError where the prompt that is to write the task's samples leaves no room for one."""
        synthesis, shown = self.config.synthesis, real_pairs(task)
        if synthesis.demonstrations_from == "kept":
            shown = shown[: synthesis.demonstrations]
        prompt = prompts(synthesis, TaskCard.of(task, 0, private=True), [None], shown, (0,))[0]
        tokens = len(self.lm.tokenizer(prompt).input_ids)
        if tokens >= self.lm.positions and not self.lm.is_encoder_decoder:
            raise InputError(
                f"task {task.name}: the prompt that is to write its samples has {tokens} tokens, and the model's "
                f"{self.lm.positions} leave no room for one; shorten the description or the demonstrations"
            )

    def prepare(self, stage: int, asked: Mapping[str, int], buffer: Buffer, step: int) -> None:
        """Before a stage: write what the buffer lacks of the `asked` samples of each past task (cached, on-demand)."""
        if not self.config.storage.writes_at_start:
            return
        for task, count in asked.items():
            missing = count - buffer.tasks.get(task, 0)
            if missing > 0 and task in self.cards:
                samples = self._write(self.cards[task], missing, stage, "start").samples(self.cards[task], stage)
                buffer.admit(samples, step, {}, stage)
                self._passing |= {sample.id for sample in samples}
        self._drop_untrue(buffer)

    def similarities(self, task: Task, buffer: Buffer) -> dict[str, float]:
        """Cosine of the task's mean embedding to that of each past one in the buffer, under the untouched model.

        What seeds the buffer has no card; its own samples tell where it lies.
        """
        writer = Writer(self.lm, self.config)
        centers = {name: card.reference.center for name, card in self.cards.items()}
        for name in buffer.tasks.keys() - centers.keys():
            own = [sample for sample in buffer.samples.values() if sample.task == name]
            centers[name] = _mean(writer, own, Frame(chat=bool(own[0].messages)))
        mean = _mean(writer, task.train, task.frame)
        return {name: _cosine(mean, center) for name, center in centers.items()}

    def remember(
        self, task: Task, stage: int, buffer: Buffer, step: int, losses: Mapping[str, float], folder: Path
    ) -> None:
        """At a stage's end: write its task's samples (all tasks' every k stages) and keep what may be kept."""
        writer = Writer(self.lm, self.config)
        real = [] if self.config.privacy.dp_sgd else real_pairs(task)
        card = self.cards[task.name] = learned_card(writer, task, stage, real)
        self.at_hand[task.name] = task
        self.demonstrations[task.name] = real[: self.config.synthesis.kept_demonstrations]
        rows: list[dict[str, Any]] = []
        for one in self._due(card, stage, task):
            asked = samples_asked(self.config.synthesis.samples, one.size)
            written = self._write(one, asked, stage, "end", real if one.name == task.name else ())
            samples = written.samples(one, stage)
            old = [s.id for s in buffer.samples.values() if s.task == one.name and s.confidence is not None]
            replaced = old[: max(0, len(old) + len(samples) - asked)]  # what could not be written anew stays
            buffer.drop(replaced)
            self._passing -= set(replaced)
            buffer.admit(samples, step, {}, stage)
            rows += [sample_row(sample.id, one.name, kept) for sample, kept in zip(samples, written.kept, strict=True)]
        self._drop_untrue(buffer)
        self._forget(task, buffer, step, losses, stage)
        self._save(folder, rows)

    def _due(self, card: TaskCard, stage: int, task: Task) -> list[TaskCard]:
        """The cards of the tasks to write at a stage's end, with the training texts that no sample may copy.

        A model may say of one task what it learned of another, so these are the texts of all tasks at hand.
        """
        every = self.config.synthesis.every
        if self.config.storage.mode == "on-demand":
            return []
        known = [one for one in self.cards.values() if one.name not in self.retired]
        due = known if every and stage % every == 0 else [card]
        shows = self.config.synthesis.demonstrations_from == "training"
        if self.config.privacy.dp_sgd or (self.config.filters.memorization is None and not shows):
            return due
        if unknown := [one.name for one in due if one.name not in self.at_hand]:
            log.warning("%s: not written anew, for without their data copies could not be told", ", ".join(unknown))
        texts = texts_of(self.at_hand.values())
        return [one.with_texts(texts) for one in due if one.name in self.at_hand]

    def _write(self, card: TaskCard, count: int, stage: int, when: str, real: Sequence[Pair] = ()) -> Written:
        """Write samples of one task, watch the drift, and log the account."""
        if not (found := self._written_before(when, card)):
            found = self._write_anew(card, count, stage, real)
            self._keep(when, card, *found)
        written, facts = found
        drift = drifted(facts, self.config.monitor)
        if drift:
            by = 0.0 if preset_of(self.config.strategy).replay else self.config.monitor.lower_by
            then = f"; the synthetic share is lowered by {by:g}" if by else ""
            log.warning("%s: the generator drifts: %s%s", card.name, drift, then)
            self.drifted.append(card.name)
        if len(written.kept) < count:
            log.warning("%s: %d of %d synthetic samples; %s", card.name, len(written.kept), count, written.account)
        self.tokens += written.tokens
        self.log("synthesis", stage=stage, task=card.name, when=when, **written.facts(), drift=facts, drifted=drift)
        return written

    def _write_anew(self, card: TaskCard, count: int, stage: int, real: Sequence[Pair]) -> tuple[Written, dict]:
        """New samples of a task, and how far they are from its real ones."""
        writer = Writer(self.lm, self.config)
        if self.config.synthesis.demonstrations_from == "training":
            shown = self._valid(card.name, real_pairs(self.at_hand[card.name]), self._stages)
        else:
            shown = self.demonstrations.get(card.name, [])
        written = writer.write(card, count, stage, shown)
        return written, watch(writer, card, written.kept, real)

    def _written_before(self, when: str, card: TaskCard) -> tuple[Written, dict] | None:
        """What a run that was stopped had written of the task with these very weights."""
        found = self.scratch and read_sealed(self.scratch / f"{when}-{card.name}.jsonl")
        if not found or found["weights"] != _digest(self.lm):
            return None
        kept = [Candidate(**one) for one in found["written"].pop("kept")]
        return Written(**found["written"], kept=kept), found["drift"]

    def _keep(self, when: str, card: TaskCard, written: Written, drift: dict) -> None:
        if self.scratch:
            self.scratch.mkdir(exist_ok=True)
            content = {"weights": _digest(self.lm), "written": asdict(written), "drift": drift}
            write_sealed(self.scratch / f"{when}-{card.name}.jsonl", content)

    def _forget(self, task: Task, buffer: Buffer, step: int, losses: Mapping[str, float], stage: int) -> None:
        """Cut the buffer to what the storage mode keeps; `hybrid` lets some real samples in."""
        mode = self.config.storage.mode
        synthetic = [sample for sample in buffer.samples.values() if sample.confidence is not None]
        if self.config.storage.writes_at_start:
            room = self.config.storage.cache_size if mode == "cached" else 0
            lasting = [sample for sample in synthetic if sample.id not in self._passing]
            kept = set(balanced_choice(lasting, room, self.config.seed))
            buffer.drop(sample.id for sample in synthetic if sample.id not in kept)
        if mode == "hybrid":
            old = [s for s in buffer.samples.values() if s.confidence is None and s.task in self.cards]
            kept = set(balanced_choice([*old, *task.train], self.config.storage.real_samples, self.config.seed))
            buffer.drop(sample.id for sample in old if sample.id not in kept)
            buffer.admit([sample for sample in task.train if sample.id in kept], step, losses, stage)

    def _save(self, folder: Path, rows: list[dict[str, Any]]) -> None:
        self.cards = {name: card.with_texts(None) for name, card in self.cards.items()}
        write_cards(folder, list(self.cards.values()))
        if self.config.synthesis.kept_demonstrations:
            shown = [
                {"task": task, "input": input, "answer": answer}
                for task, pairs in self.demonstrations.items()
                for input, answer in pairs
            ]
            write_lines(folder / DEMONSTRATIONS, shown)
        if rows and self.config.storage.mode in ("stored", "hybrid"):
            write_lines(folder / NAME, rows, self.config.storage.compression)


def check_demonstrations(config: Config) -> None:
    """An InputError where a method shows samples in its prompt and is given none."""
    synthesis, shows = config.synthesis, preset_of(config.strategy).source and config.synthesis.method in SHOWING
    if shows and synthesis.demonstrations_from == "kept" and not synthesis.demonstrations:
        raise InputError(
            f"synthesis.method: {synthesis.method} shows real samples in its prompt, and synthesis.demonstrations is "
            "0; say how many, such as 4, or set synthesis.method: two-stage"
        )


def check_descriptions(config: Config, tasks: Sequence[Task]) -> None:
    """Every task that is learned needs a description (a short one is a warning), people something to look at.

    Raises InputError.
    """
    missing = [task.name for task in tasks if task.is_stage and not task.description.strip()]
    if (missing and "{description}" in config.synthesis.prompt) or (missing and config.synthesis.method != "joint"):
        raise InputError(
            f"task {', '.join(missing)}: no description, and synthesis writes samples from it; add "
            'description: "..." to the task (what comes in, what should come out, in which style)'
        )
    if config.filters.human and config.storage.writes_at_start:
        raise InputError(
            f"filters.human: storage.mode {config.storage.mode} writes samples inside a stage, where nobody can look "
            "at them; set storage.mode: stored or hybrid, or filters.human: false"
        )
    for task in tasks:
        if task.is_stage and task.description and len(words(task.description)) < LEAST_DESCRIPTION:
            log.warning(
                "task %s: the description %r is too short to guide synthesis; say what comes in and what should "
                "come out",
                task.name,
                task.description,
            )
        if task.is_stage and not label_set(task):
            if config.filters.balance:
                raise InputError(
                    f"task {task.name}: filters.balance needs a label set, and its samples have none in common; give "
                    "each row the same `choices`, or set filters.balance: false"
                )
            if config.synthesis.class_conditioned:
                log.warning("task %s: no label set, so synthesis.class_conditioned does nothing for it", task.name)


def real_pairs(task: Task) -> list[Pair]:
    """Input and answer of each training sample."""
    return [(task.frame.input_of(sample), sample.answer) for sample in task.train]


def learned_card(writer: Writer, task: Task, stage: int, real: Sequence[Pair]) -> TaskCard:
    """The card of a task whose samples, `real`, are at hand, with the writer's view of them."""
    private = writer.config.privacy.dp_sgd is not None
    prompt = writing_prompt(writer.synthesis, TaskCard.of(task, stage, private=True)).strip()
    card = TaskCard.of(task, stage, [prompt], writer.embed, private)
    return replace(card, **({} if private else real_perplexities(writer, real)))


def sample_row(name: str, task: str, kept: Candidate) -> dict[str, Any]:
    """A written sample with its scores as a line of a file; an infinite perplexity is null."""
    finite = kept.perplexity is not None and math.isfinite(kept.perplexity)
    return {
        "id": name,
        "task": task,
        "input": kept.input,
        "answer": kept.answer,
        "perplexity": kept.perplexity if finite else None,
        "consistency": kept.consistency,
        "votes": kept.votes,
    }


def _digest(lm: LanguageModel) -> str:
    """SHA-256 of the parameters that are trained, in hexadecimal."""
    found = hashlib.sha256()
    for parameter in lm.parameters():
        found.update(parameter.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().data)
    return found.hexdigest()


def _mean(writer: Writer, samples: Sequence[Sample], frame: Frame) -> np.ndarray:
    return writer.embed([frame.input_of(sample) for sample in samples[:200]]).mean(axis=0)


def _cosine(one: np.ndarray, other: np.ndarray | None) -> float:
    if other is None:
        return 0.0
    scale = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other) / scale if scale else 0.0
