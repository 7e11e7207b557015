"""Keys and values of sequences that are written side by side, a row each, all ending at the same column.

Rows of different length end together, so a step appends one column to all of them, and what lies before the start
of a row is masked, as in a left-padded batch. A row that is done makes room for another one at any time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from retain.encoder_decoder import encoder_input, read_prompts
from retain.model import LanguageModel

SPARE = 32  # columns beyond the longest row, so that rows move to the left once in as many steps at most

KeysValues = tuple[torch.Tensor, torch.Tensor]


@dataclass(slots=True)
class Prefix:
    """What a model made of P prompts: logits (P, V) behind the last token of each, the number of tokens read, and
    the keys and values (P, G, T, D) of every layer, left-padded.

    Of an encoder-decoder all that is the decoder's, which has read its start token alone; `cross` holds what its
    layers take from the encoder, and `mask` (P, W) the columns of that which are no padding.
    """

    logits: torch.Tensor
    lengths: list[int]
    layers: list[KeysValues]
    cross: Sequence[KeysValues] = ()
    mask: torch.Tensor | None = None


def prefill(lm: LanguageModel, prompts: Sequence[Sequence[int]]) -> Prefix:
    """One forward pass over prompts of any lengths."""
    if lm.is_encoder_decoder:
        return _prefill_decoder(lm, prompts)
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
    return Prefix(out.logits[:, -1], lengths, _content(out.past_key_values))


def _prefill_decoder(lm: LanguageModel, prompts: Sequence[Sequence[int]]) -> Prefix:
    ids, mask = encoder_input(lm, prompts)
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    out = lm.model(
        encoder_outputs=BaseModelOutput(last_hidden_state=read_prompts(lm, ids, mask)),
        attention_mask=mask,
        decoder_input_ids=torch.full((len(ids), 1), lm.decoder_start_id, device=lm.device),
        past_key_values=cache,
        use_cache=True,
    )
    layers, cross = _content(cache.self_attention_cache), _content(cache.cross_attention_cache)
    return Prefix(out.logits[:, -1], [1] * len(ids), layers, cross, mask)


def _content(cache: Cache) -> list[KeysValues]:
    return [(layer.keys, layer.values) for layer in cache.layers]


def _ends(lengths: Sequence[int], start: int, end: int, device: torch.device) -> torch.Tensor:
    """Mask (rows, end - start) of the last `length` columns before `end` of each row."""
    columns = torch.arange(start, end, device=device)
    return (columns >= end - torch.tensor(lengths, device=device)[:, None]).long()


class SlotLayer(DynamicLayer):
    """One layer's keys and values (size, G, capacity, D), of which the model sees the rows and columns in use."""

    def __init__(self, slots: Slots, like: KeysValues) -> None:
        super().__init__()
        self.slots, self.stored = slots, _storage(slots.size, slots.capacity, like)

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


class CrossLayer(DynamicLayer):
    """What one decoder layer takes from the encoder: keys and values (size, G, W, D), of which the model sees the
    rows in use."""

    def __init__(self, slots: Slots, like: KeysValues) -> None:
        super().__init__()
        self.stored = _storage(slots.size, like[0].shape[2], like)
        self.show(slots.size)

    def show(self, rows: int) -> None:
        """Let the model see the first rows."""
        self.keys, self.values = (store[:rows] for store in self.stored)
        self.is_initialized = True


def _storage(rows: int, columns: int, like: KeysValues) -> KeysValues:
    """Zeros, because what is masked must be finite all the same."""
    return tuple(x.new_zeros(rows, x.shape[1], columns, x.shape[3]) for x in like)


class Slots:
    """Up to `size` rows of up to `longest` tokens; `lengths` holds the tokens of each row in use.

    Storage is taken once, at the first row. The rows in use are the first ones: the last takes the place of one
    that is removed. Rows must come longest prompt first, so that a new one fits behind the columns in use.
    """

    def __init__(self, size: int, longest: int) -> None:
        self.size, self.capacity, self.start, self.end = size, longest + SPARE, 0, 0
        self.lengths: list[int] = []
        self.layers: list[SlotLayer] = []
        self.cross: list[CrossLayer] = []

    def add(self, prefix: Prefix, row: int) -> None:
        """A new row that begins with row `row` of a prefix."""
        length, slot = prefix.lengths[row], len(self.lengths)
        if not self.layers:
            self._allocate(prefix)
        if not self.lengths:
            self.end = length
        for layer, given in zip(self.layers, prefix.layers, strict=True):
            for store, states in zip(layer.stored, given, strict=True):
                store[slot, :, self.end - length : self.end] = states[row, :, -length:]
        for layer, given in zip(self.cross, prefix.cross, strict=True):
            for store, states in zip(layer.stored, given, strict=True):
                store[slot, :, : states.shape[2]] = states[row]
        if self.cross:
            self.mask[slot] = 0
            self.mask[slot, : prefix.mask.shape[1]] = prefix.mask[row]
        self._set([*self.lengths, length])

    def remove(self, row: int) -> None:
        """Give up a row; the last one takes its place."""
        last = len(self.lengths) - 1
        if row != last:
            for store in _stores(self.layers):
                store[row, :, self.start : self.end] = store[last, :, self.start : self.end]
            for store in _stores(self.cross):
                store[row] = store[last]
            if self.cross:
                self.mask[row] = self.mask[last]
        self.lengths[row] = self.lengths[last]
        self._set(self.lengths[:-1])

    def step(self, lm: LanguageModel, tokens: Sequence[int]) -> torch.Tensor:
        """Append a token to every row; returns the logits (rows, V) behind it."""
        if self.end == self.capacity:
            self._move_left()
        ids = torch.tensor(tokens, device=lm.device)[:, None]
        seen = _ends([n + 1 for n in self.lengths], self.start, self.end + 1, lm.device)
        out = lm.model(past_key_values=self.cache, use_cache=True, **self._inputs(ids, seen))
        self.end += 1
        self._set([n + 1 for n in self.lengths])
        return out.logits[:, -1]

    def _inputs(self, ids: torch.Tensor, seen: torch.Tensor) -> dict[str, object]:
        if not self.cross:
            positions = torch.tensor(self.lengths, device=ids.device)[:, None]
            return {"input_ids": ids, "attention_mask": seen, "position_ids": positions}
        rows = len(self.lengths)
        for layer in self.cross:
            layer.show(rows)
        read = self.layers[0].stored[0].new_zeros(()).expand(rows, self.mask.shape[1], 1)  # only its shape is looked at
        return {
            "encoder_outputs": BaseModelOutput(last_hidden_state=read),
            "attention_mask": self.mask[:rows],
            "decoder_input_ids": ids,
            "decoder_attention_mask": seen,
        }

    def _allocate(self, prefix: Prefix) -> None:
        self.layers = [SlotLayer(self, like) for like in prefix.layers]
        self.cross = [CrossLayer(self, like) for like in prefix.cross]
        self.cache = Cache(layers=self.layers)
        if self.cross:
            self.mask = prefix.mask.new_zeros(self.size, prefix.mask.shape[1])
            self.cache = EncoderDecoderCache(self.cache, Cache(layers=self.cross))

    def _set(self, lengths: list[int]) -> None:
        self.lengths = lengths
        self.start = self.end - max(lengths, default=0)

    def _move_left(self) -> None:
        rows, width = len(self.lengths), self.end - self.start
        for store in _stores(self.layers):
            store[:rows, :, :width] = store[:rows, :, self.start : self.end].clone()
        self.start, self.end = 0, width


def _stores(layers: Sequence[SlotLayer | CrossLayer]) -> list[torch.Tensor]:
    return [store for layer in layers for store in layer.stored]
