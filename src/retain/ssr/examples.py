"""Examples, and the batches that they come in."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from retain.config_errors import show
from retain.model import LanguageModel
from retain.types import InputError

Pair = tuple[str, str]
INPUTS = ("input", "input_text", "inputs", "text", "prompt", "question", "source", "sentence", "instruction")
TARGETS = ("output", "target_text", "target", "targets", "outputs", "answer", "completion", "response", "label")
NO_LOSS = -100  # the label of a token that bears none, in transformers and torch


@dataclass(slots=True)
class SyntheticExample:
    """A written example of a task. confidence: its consistency in [0, 1], once a filter has set it."""

    input_text: str
    target_text: str
    task_id: Hashable
    confidence: float = 1.0


class Batch(NamedTuple):
    """The pairs of a batch, and whether it held token ids, whose inputs are whole prompts."""

    pairs: list[Pair]
    tokens: bool


def read_batch(batch: Any, lm: LanguageModel, where: str, columns: bool = False) -> Batch:
    """The (input, target) pairs of a batch in any of the forms that `SSRModel.train_task` takes.

    columns: a sequence holds a column of inputs and one of targets. `where` begins the errors.
    """
    if isinstance(batch, Mapping) and "input_ids" in batch:
        return Batch(_decoded(batch, lm, where), True)
    if isinstance(batch, Mapping):
        found = _fields(batch, where)
        rows = [found] if isinstance(found[0], str) else _zipped(found, where)
    elif isinstance(batch, str) or not isinstance(batch, Sequence):
        raise InputError(f"{where}: {type(batch).__name__} is no batch; give a list of pairs, or a mapping of lists")
    else:
        rows = _zipped(batch, where) if columns else [_row(one, f"{where}, row {k}") for k, one in enumerate(batch)]
    for k, row in enumerate(rows):
        for what, text in zip(("input", "target"), row, strict=True):
            if not isinstance(text, str) or not text.strip():
                raise InputError(f"{where}, row {k}: the {what} {show(text)} is not a text with words in it")
    if not rows:
        raise InputError(f"{where}: it is empty")
    return Batch(rows, False)


def _row(row: Any, where: str) -> Pair:
    if isinstance(row, SyntheticExample):
        return row.input_text, row.target_text
    if isinstance(row, Mapping):
        return _fields(row, where)
    if isinstance(row, list | tuple) and len(row) == 2:
        return tuple(row)
    raise InputError(f"{where}: {show(row)} is neither an (input, target) pair nor a mapping nor a SyntheticExample")


def _fields(values: Mapping[str, Any], where: str) -> tuple[Any, Any]:
    """What stands under the first known name of an input and of a target."""
    found = []
    for what, names in (("input", INPUTS), ("target", TARGETS)):
        name = next((name for name in names if name in values), None)
        if name is None:
            has = ", ".join(map(str, values)) or "nothing"
            raise InputError(f"{where}: no {what} in it, it has {has}; name it one of {', '.join(names)}")
        found.append(values[name])
    return tuple(found)


def _zipped(columns: Sequence[Any], where: str) -> list[Pair]:
    try:
        inputs, targets = columns
        return list(zip(inputs, targets, strict=True))
    except (TypeError, ValueError):
        raise InputError(f"{where}: inputs and targets must be two lists of the same length") from None


def _decoded(batch: Mapping[str, Any], lm: LanguageModel, where: str) -> list[Pair]:
    """The texts of token ids (B, T) and labels: (B, U) of an encoder-decoder, else (B, T) with -100 on the prompt."""
    try:
        ids, labels = (torch.as_tensor(batch[name]) for name in ("input_ids", "labels"))
        mask = torch.as_tensor(batch.get("attention_mask", torch.ones_like(ids))).bool()
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{where}: input_ids and labels must be tensors of token ids ({error})") from None
    same = len(ids) == len(labels) if lm.is_encoder_decoder else ids.shape == labels.shape
    if ids.ndim != 2 or labels.ndim != 2 or mask.shape != ids.shape or not same:
        shapes = f"{tuple(ids.shape)} and {tuple(labels.shape)}"
        raise InputError(f"{where}: input_ids and labels of shapes {shapes} are not rows of the same texts")
    pairs = []
    for k, (row, seen, label) in enumerate(zip(ids, mask, labels, strict=True)):
        prompt = row[seen] if lm.is_encoder_decoder else row[seen & (label == NO_LOSS)]
        pair = tuple(lm.tokenizer.decode(part, skip_special_tokens=True) for part in (prompt, label[label != NO_LOSS]))
        if not all(text.strip() for text in pair):
            raise InputError(f"{where}, row {k}: no prompt or no answer in it; labels are -100 on the prompt alone")
        pairs.append(pair)
    return pairs
