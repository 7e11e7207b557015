"""Keys and values of sequences that are written side by side, a row each, all ending at the same column.

Rows of different length end together, so a step appends one column to all of them, and what lies before the start
of a row is masked, as in a left-padded batch. A row that is done makes room for another one at any time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from retain.model import LanguageModel

SPARE = 32  # columns beyond the longest row, so that rows move to the left once in as many steps at most

KeysValues = tuple[torch.Tensor, torch.Tensor]


@dataclass(slots=True)
class Prefix:
    """What a model made of P prompts: logits (P, V) behind each one's last token, its number of tokens, and the
    keys and values (P, G, T, D) of every layer, left-padded."""

    logits: torch.Tensor
    lengths: list[int]
    layers: list[KeysValues]


def prefill(lm: LanguageModel, prompts: Sequence[Sequence[int]]) -> Prefix:
    """One forward pass over prompts of any lengths."""
    lengths = [len(prompt) for prompt in prompts]
    ids = torch.tensor([[lm.pad_id] * (max(lengths) - len(p)) + list(p) for p in prompts], device=lm.device)
    mask = _ends(lengths, 0, max(lengths), lm.device)
    out = lm.model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
        past_key_values=DynamicCache(),  # without a config, so that layers with a sliding window keep all
        use_cache=True,
        logits_to_keep=1,
    )
    return Prefix(out.logits[:, -1], lengths, [(layer.keys, layer.values) for layer in out.past_key_values.layers])


def _ends(lengths: Sequence[int], start: int, end: int, device: torch.device) -> torch.Tensor:
    """Mask (rows, end - start) of the last `length` columns before `end` of each row."""
    columns = torch.arange(start, end, device=device)
    return (columns >= end - torch.tensor(lengths, device=device)[:, None]).long()


class SlotLayer(DynamicLayer):
    """One layer's keys and values (size, G, capacity, D), of which the model sees the rows and columns in use."""

    def __init__(self, slots: Slots, like: KeysValues) -> None:
        super().__init__()
        self.slots = slots
        self.stored = tuple(x.new_zeros(slots.size, x.shape[1], slots.capacity, x.shape[3]) for x in like)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> KeysValues:
        """Write the newest column; return all in use."""
        rows, start, end = len(self.slots.lengths), self.slots.start, self.slots.end
        for store, states in zip(self.stored, (key_states, value_states), strict=True):
            store[:rows, :, end] = states[:, :, 0]
        return tuple(store[:rows, :, start : end + 1] for store in self.stored)

    def get_seq_length(self) -> int:
        """Columns in use before the newest."""
        return self.slots.end - self.slots.start


class Slots:
    """Up to `size` rows of up to `longest` tokens; `lengths` holds the tokens of each row in use.

    Storage is taken once, at the first row. The rows in use are the first ones: the last takes the place of one
    that is removed. Rows must come longest prompt first, so that a new one fits behind the columns in use.
    """

    def __init__(self, size: int, longest: int) -> None:
        self.size, self.capacity, self.start, self.end = size, longest + SPARE, 0, 0
        self.lengths: list[int] = []
        self.cache = Cache(layers=[])

    def add(self, prefix: Prefix, row: int) -> None:
        """A new row that begins with row `row` of a prefix."""
        length, slot = prefix.lengths[row], len(self.lengths)
        if not self.cache.layers:
            self.cache = Cache(layers=[SlotLayer(self, like) for like in prefix.layers])
        if not self.lengths:
            self.end = length
        for layer, given in zip(self.cache.layers, prefix.layers, strict=True):
            for store, states in zip(layer.stored, given, strict=True):
                store[slot, :, self.end - length : self.end] = states[row, :, -length:]
        self._set([*self.lengths, length])

    def remove(self, row: int) -> None:
        """Give up a row; the last one takes its place."""
        last = len(self.lengths) - 1
        for store in self._stores() if row != last else ():
            store[row, :, self.start : self.end] = store[last, :, self.start : self.end]
        self.lengths[row] = self.lengths[last]
        self._set(self.lengths[:-1])

    def step(self, lm: LanguageModel, tokens: Sequence[int]) -> torch.Tensor:
        """Append a token to every row; returns the logits (rows, V) behind it."""
        if self.end == self.capacity:
            self._move_left()
        out = lm.model(
            input_ids=torch.tensor(tokens, device=lm.device)[:, None],
            attention_mask=_ends([n + 1 for n in self.lengths], self.start, self.end + 1, lm.device),
            position_ids=torch.tensor(self.lengths, device=lm.device)[:, None],
            past_key_values=self.cache,
            use_cache=True,
        )
        self.end += 1
        self._set([n + 1 for n in self.lengths])
        return out.logits[:, -1]

    def _set(self, lengths: list[int]) -> None:
        self.lengths = lengths
        self.start = self.end - max(lengths, default=0)

    def _stores(self) -> list[torch.Tensor]:
        return [store for layer in self.cache.layers for store in layer.stored]

    def _move_left(self) -> None:
        rows, width = len(self.lengths), self.end - self.start
        for store in self._stores():
            store[:rows, :, :width] = store[:rows, :, self.start : self.end].clone()
        self.start, self.end = 0, width
