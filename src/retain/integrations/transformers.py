"""Replay inside transformers' Trainer and what is built on it, such as TRL's SFTTrainer.

The trainer stays the user's: its data order, loss, optimizer and checkpoints. Before each optimizer step the memory
says which old samples come on top; they get forward passes of their own, of at most `per_device_train_batch_size`
samples, so a step needs no more memory than before. Each sample's loss is read from the outputs of the passes that
training makes anyway.
"""

from __future__ import annotations

import inspect
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint

from retain.integrations.replay import Replay, Step
from retain.integrations.sample_losses import IGNORED, losses_of_samples
from retain.integrations.trainer_facts import check_trainer, described, longest, replay_fields, texts_of
from retain.model import LanguageModel
from retain.trainer import LEAST_WEIGHT
from retain.types import InputError, Sample

__all__ = ["Replay", "ReplayMixin", "newest_adapter", "replayify"]

log = logging.getLogger("retain")
ROWS, STEP = "retain_rows", "retain_step"  # what a batch carries besides the model's inputs


def replayify(trainer: type[Trainer]) -> type[Trainer]:
    """The trainer class with replay: it takes one more argument, `replay=Replay(directory, task=name)`."""
    if not (inspect.isclass(trainer) and issubclass(trainer, Trainer)):
        raise InputError(f"replayify: {trainer!r} is no subclass of transformers.Trainer")
    if issubclass(trainer, ReplayMixin):
        return trainer
    return type(f"Replay{trainer.__name__}", (ReplayMixin, trainer), {"__doc__": f"{trainer.__name__} with replay."})


def newest_adapter(out: str | Path) -> Path | None:
    """The adapter of a directory's last finished stage, for `PeftModel.from_pretrained`; None before the first."""
    found = sorted(Path(out).glob("stages/[0-9]*-*/adapter/adapter_model.safetensors"))
    return found[-1].parent if found else None


class Numbered(torch.utils.data.Dataset):
    """A data set whose items come with their row."""

    column_names = None  # which Axolotl's trainer asks for

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> tuple[int, Any]:
        return row, self.rows[row]

    def __getitems__(self, rows: list[int]) -> list[tuple[int, Any]]:
        read = getattr(self.rows, "__getitems__", None)
        return list(zip(rows, read(rows) if read else map(self.rows.__getitem__, rows), strict=True))


class NumberedCollator:
    """A collator of numbered items: the user's own batch, and the rows it is made of."""

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self.collate = collate

    def __call__(self, items: list[tuple[int, Any]]) -> Any:
        batch = self.collate([features for _, features in items])
        batch[ROWS] = [row for row, _ in items]
        return batch


class ReplayMixin:
    """Put before a Trainer class: `class MyTrainer(ReplayMixin, SFTTrainer)`. See `replayify`."""

    def __init__(self, *args: Any, replay: Replay, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        check_trainer(self)
        self._fields = replay_fields(self)
        self.replay = replay
        self._checkpoint: str | None = None
        self._reported: Counter[str] = Counter()
        self._hook, self._inputs, self._seen = None, None, []

    # ---- what the trainer calls ------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: Any = None, trial: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Train the task and leave it in the memory. With a checkpoint the stage goes on as if never stopped."""
        if trial is not None:
            raise InputError("hyperparameter search: each trial would be a stage; search first, then train with replay")
        if self.replay.begun:
            raise InputError(f"task {self.replay.spec.name!r}: was trained by this trainer already; make a new one")
        found = get_last_checkpoint(self.args.output_dir) if resume_from_checkpoint is True else resume_from_checkpoint
        self._checkpoint = found or None
        try:
            output = super().train(resume_from_checkpoint, trial, *args, **kwargs)
        finally:
            if self._hook:
                self._hook.remove()
        self._begin()  # a checkpoint of the last step trains nothing
        self.replay.finish(self._save_adapter, self._sample)
        return output

    def get_train_dataloader(self) -> Any:
        """The trainer's own, whose batches say which rows they are made of."""
        data, collator = self.train_dataset, self.data_collator
        self.train_dataset = Numbered(data)
        self.data_collator = NumberedCollator(self._get_collator_with_removed_columns(collator, "training"))
        try:
            return super().get_train_dataloader()
        finally:
            self.train_dataset, self.data_collator = data, collator

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        rows = train_dataset.rows if isinstance(train_dataset, Numbered) else train_dataset
        return super()._get_train_sampler(rows)

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: Any) -> tuple[list, Any]:
        """The micro-batches of one optimizer step; the last one brings what is replayed in it, drawn now."""
        new = list(islice(epoch_iterator, num_batches))
        if not new:
            return super().get_batch_samples(iter(()), 0, device)
        self._begin()
        drawn = self.replay.draw()
        size = self.args.per_device_train_batch_size
        parts = [drawn[first : first + size] for first in range(0, len(drawn), size)]
        again = [(self.data_collator(list(map(self._features, part))), len(part)) for part in parts]
        whole = [*new, *(batch for batch, _ in again)]
        _, items = super().get_batch_samples(iter(whole), len(whole), device)
        self._started = time.perf_counter()
        new[-1][STEP] = [row for batch in new for row in batch[ROWS]], again
        return new, items

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """The loss of a micro-batch, after its gradient; with the last one comes that of the replayed samples."""
        rows, last = inputs.pop(ROWS), inputs.pop(STEP, None)
        loss = self._pass(model, inputs, num_items_in_batch, len(rows))
        if last is None:
            return loss
        rows, again = last
        weight = max(self.replay.weight, LEAST_WEIGHT)
        for batch, size in again:
            loss = loss + self._pass(model, batch, num_items_in_batch / weight, size)
            self.current_flos += float(self.floating_point_ops(batch))
            getattr(self, "_track_num_input_tokens", lambda batch: None)(batch)  # newer than the oldest version
        losses, tokens = (torch.cat(parts).tolist() for parts in zip(*self._seen, strict=True))
        self._seen.clear()
        self.replay.learn(Step(rows, losses, tokens), time.perf_counter() - self._started)
        return loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """The trainer's own line, and what was replayed since the last one, at the end in all."""
        if "loss" in logs:
            logs.update(self.replay.audit(self._reported))
            self._reported = Counter(self.replay.counts)
        elif "train_loss" in logs:
            logs.update(self.replay.audit())
        super().log(logs, *args, **kwargs)

    def _save_checkpoint(self, model: Any, trial: Any, *args: Any, **kwargs: Any) -> None:
        folder = Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        folder.mkdir(parents=True, exist_ok=True)
        self.replay.save(folder)  # first: a checkpoint with a trainer's state has its losses
        super()._save_checkpoint(model, trial, *args, **kwargs)

    # ---- what it adds ----------------------------------------------------------------------------------

    def _begin(self) -> None:
        """At the first step, when the trainer knows how many there are: plan the stage, or take it up again."""
        if self.replay.begun:
            return
        args, samples = self.args, len(self.train_dataset)
        dropped = samples % args.per_device_train_batch_size if args.dataloader_drop_last else 0
        batch = args.per_device_train_batch_size * args.gradient_accumulation_steps
        self._lm = LanguageModel(self.model, self.processing_class, longest(self))
        self.replay.begin(samples, samples - dropped, batch, self.state.max_steps, described(self, batch), self._text)
        self._inexact = 0
        if self._checkpoint:
            self.replay.restore(Path(self._checkpoint))
            self._reported = Counter(self.replay.counts)
        self._hook = self.model.register_forward_hook(self._watch, with_kwargs=True)

    def _pass(self, model: Any, inputs: Any, items: Any, samples: int) -> torch.Tensor:
        """One forward and backward pass; the hook notes the loss of each of its `samples`."""
        self._inputs, before = (inputs, samples), len(self._seen)
        try:
            loss = super().training_step(model, inputs, items)
        finally:
            self._inputs = None
        if len(self._seen) == before:
            raise InputError("the model's forward pass was not seen; train with replay without compiling the model")
        del self._seen[before + 1 :]  # a loss of its own may take a second pass
        return loss

    def _watch(self, module: Any, args: Any, kwargs: Any, output: Any) -> None:
        if self._inputs:
            inputs, samples = self._inputs
            shifted = not self._lm.is_encoder_decoder
            self._seen.append(losses_of_samples(inputs, output, samples, shifted))

    def _features(self, sample: Sample) -> dict[str, list[int]]:
        """A stored sample in the form in which this trainer's rows come to its collator."""
        encoded = self._lm.encode(sample)
        labels = [token if bears else IGNORED for token, bears in zip(encoded.ids, encoded.labels, strict=True)]
        ids, prompt = list(encoded.ids), encoded.labels.count(False)
        if self._lm.is_encoder_decoder:
            ids, labels = ids[:prompt], labels[prompt:]
        features = {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}
        return {name: features[name] for name in self._fields}

    def _sample(self, identity: str, row: int) -> Sample:
        """A row of the training data as the memory keeps it: text that gives its tokens again, where there is one."""
        row = self.train_dataset[row]
        candidates = list(texts_of(row, self._lm, identity, self.replay.spec.name))
        self._lm.forget()
        if "input_ids" not in row:
            return candidates[0]
        wanted = {"input_ids": list(row["input_ids"]), "labels": list(row.get("labels", row["input_ids"]))}
        for sample in candidates:
            features = self._features(sample)
            if all(features[name] == wanted[name] for name in features.keys() & wanted.keys()):
                return sample
        self._inexact += 1
        if self._inexact == 1:
            log.warning("%s: when replayed its tokens will differ from the row's (its labels or its end)", identity)
        return candidates[0]

    def _text(self, identity: str, row: int) -> Sample:
        """A row as it reads, whatever its tokens."""
        return next(texts_of(self.train_dataset[row], self._lm, identity, self.replay.spec.name))

    def _save_adapter(self, folder: Path) -> None:
        model = self.accelerator.unwrap_model(self.model)
        if isinstance(model, PeftModel):
            model.save_pretrained(folder)
