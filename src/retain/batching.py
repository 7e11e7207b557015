"""Turn samples into token rows in which nothing is computed twice and nothing is padding.

Sequences that begin alike (the instruction of a task, the question before several choices) share
the tokens they have in common: a row is a prefix tree of tokens, laid flat. Each token attends to
its ancestors alone and its position is its depth, so every sequence sees exactly what it would see
by itself, gradients included. Models that cannot take such a mask get plain padded rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

ROW_TOKENS = 512  # attention inside a row grows with its square; wider rows stop paying off


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of one sequence and, for each, whether it is an answer token that bears loss."""

    ids: tuple[int, ...]
    labels: tuple[bool, ...]
    truncated: bool = False

    @classmethod
    def of(cls, prompt: Sequence[int], answer: Sequence[int], truncated: bool = False) -> Encoded:
        labels = (False,) * len(prompt) + (True,) * len(answer)
        return cls((*prompt, *answer), labels, truncated)

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(slots=True)
class Row:
    """What one forward pass takes, and where its labels are.

    input_ids, position_ids: (R, T). attention_mask: (R, 1, T, T) additive, or (R, T) for padded rows.
    keep: columns whose logits are needed. members: indices of the sequences in this row.
    Label k is token `targets[k]` of sequence `members[owners[k]]`; row `rows[k]`, column `keep[columns[k]]`
    predicts it.
    """

    members: list[int]

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    attention_mask: torch.Tensor
    keep: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor
    targets: torch.Tensor
    owners: torch.Tensor
    tokens: int

    def to(self, device: torch.device) -> Row:
        moved = {f: getattr(self, f) for f in self.__slots__}
        return Row(**{f: v.to(device) if torch.is_tensor(v) else v for f, v in moved.items()})


def truncate(prompt: list[int], answer: list[int], limit: int) -> tuple[list[int], list[int], bool]:
    """Fit a sequence into `limit` tokens: the prompt keeps its start, the answer its end (MSSR App. E.3).

    The prompt gives way first, but never below half of the limit.
    """
    if len(prompt) + len(answer) <= limit:
        return prompt, answer, False
    room = max(limit - len(prompt), limit // 2)
    answer = answer[-room:]
    return prompt[: limit - len(answer)], answer, True


def split_rows(
    sequences: Sequence[Encoded], row_tokens: int = ROW_TOKENS, max_members: int | None = None
) -> list[list[int]]:
    """Indices of the sequences in lexicographic order, cut where a row would exceed `row_tokens` tree nodes
    or `max_members` sequences. A longer sequence gets a row of its own."""
    order = sorted(range(len(sequences)), key=lambda i: sequences[i].ids)
    rows, size, previous = [], 0, ()
    for i in order:
        ids = sequences[i].ids
        fresh = len(ids) - common_prefix(previous, ids)
        if not rows or size + fresh > row_tokens or len(rows[-1]) == max_members:
            rows.append([])
            size, fresh = 0, len(ids)
        rows[-1].append(i)
        size, previous = size + fresh, ids
    return rows


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Number of leading tokens that a and b share."""
    n = min(len(a), len(b))
    return next((k for k in range(n) if a[k] != b[k]), n)


def pack(sequences: Sequence[Encoded], indices: Sequence[int], dtype: torch.dtype = torch.float32) -> Row:
    """One row holding the given sequences (in lexicographic order) as a prefix tree of tokens."""
    tokens: list[int] = []
    depth: list[int] = []
    paths: list[np.ndarray] = []
    path, previous = np.empty(0, dtype=np.int64), ()
    for i in indices:
        ids = sequences[i].ids
        shared = common_prefix(previous, ids)
        path = np.concatenate([path[:shared], np.arange(len(tokens), len(tokens) + len(ids) - shared)])
        tokens.extend(ids[shared:])
        depth.extend(range(shared, len(ids)))
        paths.append(path)
        previous = ids
    allowed = np.zeros((len(tokens), len(tokens)), dtype=bool)
    for path in paths:
        allowed[np.ix_(path, path)] |= np.tri(len(path), dtype=bool)
    mask = torch.full((1, 1, *allowed.shape), torch.finfo(dtype).min, dtype=dtype)
    mask.masked_fill_(torch.from_numpy(allowed), 0.0)
    where = [(0, path) for path in paths]
    return _row([tokens], [depth], mask, sequences, indices, where, len(tokens))


def pad(sequences: Sequence[Encoded], indices: Sequence[int], pad_id: int) -> Row:
    """The given sequences as ordinary right-padded rows."""
    width = max(len(sequences[i]) for i in indices)
    ids = [list(sequences[i].ids) + [pad_id] * (width - len(sequences[i])) for i in indices]
    mask = torch.tensor([[1] * len(sequences[i]) + [0] * (width - len(sequences[i])) for i in indices])
    where = [(r, np.arange(len(sequences[i]))) for r, i in enumerate(indices)]
    return _row(ids, [list(range(width))] * len(ids), mask, sequences, indices, where, int(mask.sum()))


def _row(ids, positions, mask, sequences, indices, where, tokens) -> Row:
    rows, columns, targets, owners = [], [], [], []
    for member, (i, (row, path)) in enumerate(zip(indices, where, strict=True)):
        labels = np.flatnonzero(sequences[i].labels)
        labels = labels[labels > 0]
        rows += [row] * len(labels)
        columns += path[labels - 1].tolist()
        targets += [sequences[i].ids[k] for k in labels]
        owners += [member] * len(labels)
    keep, columns = np.unique(np.asarray(columns, dtype=np.int64), return_inverse=True)
    tensors = [torch.as_tensor(x, dtype=torch.long) for x in (ids, positions, keep, rows, columns, targets, owners)]
    return Row(list(indices), tensors[0], tensors[1], mask, *tensors[2:], tokens=tokens)
