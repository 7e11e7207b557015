"""Turn samples into token rows in which nothing is computed twice and nothing is padding.

Sequences that begin alike (the instruction of a task, the question before several choices) share
the tokens they have in common: a row is a prefix tree of tokens, laid flat. Each token attends to
its ancestors alone and its position is its depth, so every sequence sees exactly what it would see
by itself, gradients included. Models that cannot be taught this get plain padded rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from retain.attention import Segment

ROW_TOKENS = 512  # more in one pass costs memory and gains nothing on a CPU


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

    @property
    def inputs(self) -> tuple[int, ...]:
        """What the model reads: all but the last token, which is only ever predicted."""
        return self.ids[:-1] or self.ids

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(slots=True)
class Row:
    """What one forward pass takes, and where its labels are.

    input_ids, position_ids: (R, T). mask: (R, T) for padded rows, else None and `tree` says who sees whom.
    keep: columns whose logits are needed. members: indices of the sequences in this row.
    Label k is token `targets[k]` of sequence `members[owners[k]]`; row `rows[k]`, column `keep[columns[k]]`
    predicts it.
    """

    members: list[int]
    input_ids: torch.Tensor
    position_ids: torch.Tensor
    keep: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor
    targets: torch.Tensor
    owners: torch.Tensor
    mask: torch.Tensor | None
    tree: list[Segment]
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
    order = sorted(range(len(sequences)), key=lambda i: sequences[i].inputs)
    rows, size, previous = [], 0, ()
    for i in order:
        ids = sequences[i].inputs
        fresh = len(ids) - common_prefix(previous, ids)
        if not rows or size + fresh > row_tokens or len(rows[-1]) == max_members:
            rows.append([])
            size, fresh = 0, len(ids)
        rows[-1].append(i)
        size, previous = size + fresh, ids
    return rows


def split_padded(
    lengths: Sequence[int], max_members: int | None = None, row_tokens: int = ROW_TOKENS
) -> list[list[int]]:
    """Indices of sequences of the given lengths, longest first, cut where a padded batch would exceed `row_tokens`
    tokens or `max_members` sequences. A longer sequence gets a batch of its own."""
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        full = batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] > row_tokens
        if not batches or full or len(batches[-1]) == max_members:
            batches.append([])
        batches[-1].append(i)
    return batches


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Number of leading tokens that a and b share."""
    n = min(len(a), len(b))
    return next((k for k in range(n) if a[k] != b[k]), n)


def pack(sequences: Sequence[Encoded], indices: Sequence[int]) -> Row:
    """One row holding the given sequences (in lexicographic order) as a prefix tree of tokens."""
    tokens: list[int] = []
    depth: list[int] = []
    paths: list[np.ndarray] = []
    tree: list[Segment] = []
    spans: tuple[tuple[int, int], ...] = ()
    previous: Sequence[int] = ()
    for i in indices:
        ids = sequences[i].inputs
        shared = common_prefix(previous, ids)
        start, stop = len(tokens), len(tokens) + len(ids) - shared
        spans = _first(spans, shared)
        if stop > start:
            spans = (*spans, (start, stop))
            tree.append(Segment(start, stop, spans))
        tokens.extend(ids[shared:])
        depth.extend(range(shared, len(ids)))
        paths.append(np.concatenate([np.arange(*span) for span in spans]))
        previous = ids
    return _row([tokens], [depth], None, tree, sequences, indices, [(0, path) for path in paths], len(tokens))


def _first(spans: Sequence[tuple[int, int]], count: int) -> tuple[tuple[int, int], ...]:
    """The spans cut to their first `count` tokens."""
    kept = []
    for start, stop in spans:
        if count > 0:
            kept.append((start, min(stop, start + count)))
            count -= stop - start
    return tuple(kept)


def dense_mask(tree: Sequence[Segment], tokens: int, dtype: torch.dtype) -> torch.Tensor:
    """The tree as an additive mask (1, 1, T, T), for models that attend in their own way."""
    mask = torch.full((1, 1, tokens, tokens), torch.finfo(dtype).min, dtype=dtype)
    for segment in tree:
        columns = torch.cat([torch.arange(*span) for span in segment.spans])
        block = mask.new_zeros(segment.stop - segment.start, len(columns))
        block.masked_fill_(~segment.allowed(), torch.finfo(dtype).min)
        mask[0, 0, segment.start : segment.stop, columns] = block
    return mask


def pad(sequences: Sequence[Encoded], indices: Sequence[int], pad_id: int) -> Row:
    """The given sequences as ordinary right-padded rows."""
    read = [sequences[i].inputs for i in indices]
    width = max(map(len, read))
    ids = [[*tokens, *[pad_id] * (width - len(tokens))] for tokens in read]
    mask = torch.tensor([[1] * len(tokens) + [0] * (width - len(tokens)) for tokens in read])
    where = [(r, np.arange(len(tokens))) for r, tokens in enumerate(read)]
    return _row(ids, [list(range(width))] * len(ids), mask, [], sequences, indices, where, int(mask.sum()))


def _row(ids, positions, mask, tree, sequences, indices, where, tokens) -> Row:
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
    return Row(list(indices), *tensors, mask=mask, tree=tree, tokens=tokens)
