"""Write texts: greedy continuation, and sampling in a batch whose slots are filled again as texts end."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby, islice

import numpy as np
import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from retain.batching import split_padded
from retain.encoder_decoder import close_prompt, continue_greedily
from retain.faults import SYNTHESIS_ADVICE, memory_advice
from retain.memory.random import uniform
from retain.model import LanguageModel
from retain.sampling import Sampling, draw_tokens
from retain.sharding import is_sharded
from retain.slots import Prefix, Slots, prefill
from retain.types import InputError


@torch.no_grad()
def greedy(
    lm: LanguageModel, prompts: Sequence[list[int]], max_new_tokens: int, begun: Sequence[list[int]] | None = None
) -> list[list[int]]:
    """The most likely answer to each prompt, up to and without the token that ends it.

    Prompts are token ids of any lengths; they are left-padded into one batch. `begun`: what each answer begins with;
    it is part of the result and of `max_new_tokens`.
    """
    pairs = lm.team.share(list(zip(prompts, begun or [[]] * len(prompts), strict=True)))
    return lm.team.gather(_greedy(lm, *zip(*pairs, strict=True), max_new_tokens) if pairs else [])


def _greedy(
    lm: LanguageModel, prompts: Sequence[list[int]], begun: Sequence[list[int]], max_new_tokens: int
) -> list[list[int]]:
    if not lm.pads_left and len(prompts) > 1:
        alone = zip(prompts, begun, strict=True)
        return [text for prompt, ids in alone for text in _greedy(lm, [prompt], [ids], max_new_tokens)]
    if lm.is_encoder_decoder:
        return [until_stop(ids, lm.stop_ids) for ids in continue_greedily(lm, prompts, begun, max_new_tokens)]
    prompts = [prompt + ids for prompt, ids in zip(prompts, begun, strict=True)]
    width = max(len(p) for p in prompts)
    ids = torch.tensor([[lm.pad_id] * (width - len(p)) + p for p in prompts], device=lm.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=lm.device)
    out = lm.model.generate(
        input_ids=ids,
        attention_mask=mask,
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_new_tokens - min(map(len, begun)),
        eos_token_id=list(lm.stop_ids),
        pad_token_id=lm.pad_id,
    )
    written = [ids + row for ids, row in zip(begun, out[:, width:].tolist(), strict=True)]
    return [until_stop(ids, lm.stop_ids)[:max_new_tokens] for ids in written]


def until_stop(ids: list[int], stop_ids: Sequence[int]) -> list[int]:
    """The tokens before the first stop token."""
    end = next((k for k, token in enumerate(ids) if token in stop_ids), len(ids))
    return ids[:end]


@dataclass(slots=True)
class Generated:
    """A text that was written: its tokens without the one that ended it, and whether one did.

    log_probability: log p(text | prompt) in nats under the unwarped distribution, the ending token included.
    """

    ids: list[int] = field(default_factory=list)
    log_probability: float = 0.0
    finished: bool = False

    @property
    def tokens(self) -> int:
        """Number of tokens drawn, the ending one included."""
        return len(self.ids) + self.finished


@dataclass(slots=True)
class _Request:
    index: int
    prompt: tuple[int, ...]
    limit: int
    until: tuple[int, ...] = ()
    text: Generated = field(default_factory=Generated)

    @property
    def done(self) -> bool:
        ids, until = self.text.ids, self.until
        return self.text.finished or len(ids) == self.limit or (bool(until) and tuple(ids[-len(until) :]) == until)


@memory_advice("synthesis", SYNTHESIS_ADVICE)
def sample(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    max_new_tokens: int,
    *,
    batch_size: int = 32,
    seed: tuple[int, ...] = (0,),
    stop: Collection[int] | None = None,
    until: Sequence[int] = (),
) -> list[Generated]:
    """A text drawn for each prompt (token ids), of at most `max_new_tokens` and what `lm.positions` leaves.

    A text ends with a token of `stop` (default: `lm.stop_ids`), or after the tokens `until`. Texts that end make room
    for others, equal prompts are computed once. The noise of a token is a function of (seed, index of its prompt,
    place in the text), so a text does not depend on batch size, slot or order (but for rounding in batched matrix
    products). Several processes write a share each.
    """
    if getattr(lm.unwrapped, "_is_stateful", False):
        raise InputError(f"model: {lm.model.config.model_type} keeps a state and no keys and values; it cannot write")
    stop, batch_size = frozenset(lm.stop_ids if stop is None else stop), batch_size if lm.pads_left else 1
    shared = lm.team.share(list(enumerate(prompts)))
    requests = [_request(lm, i, prompt, max_new_tokens, tuple(until)) for i, prompt in shared]
    waiting = sorted((r for r in requests if r.limit > 0), key=lambda r: (-len(r.prompt), r.prompt))
    longest = max((r.limit + (1 if lm.is_encoder_decoder else len(r.prompt)) for r in waiting), default=0)
    batch = _Batch(lm, sampling, seed, stop, Slots(min(batch_size, len(waiting)), longest))
    lm.model.eval()
    with torch.inference_mode(), merged(lm):
        source = _prefilled(lm, waiting, batch_size)
        batch.fill(source)
        while batch.active:
            batch.step()
            if not batch.active or _rows_may_differ(lm):
                batch.fill(source)
    return lm.team.gather([request.text for request in requests])


def _request(
    lm: LanguageModel, index: int, prompt: Sequence[int], max_new_tokens: int, until: tuple[int, ...]
) -> _Request:
    if lm.is_encoder_decoder:
        return _Request(index, close_prompt(lm, lm.cut_prompt(prompt, 0)), min(max_new_tokens, lm.max_length), until)
    if not prompt:
        raise ValueError(f"prompts[{index}] is empty; a text needs at least one token to begin from")
    return _Request(index, tuple(prompt), min(max_new_tokens, lm.positions - len(prompt)), until)


def _rows_may_differ(lm: LanguageModel) -> bool:
    """Whether rows of a batch may differ in length: not where a decoder counts positions from the first column."""
    return not lm.is_encoder_decoder or hasattr(lm.model.config, "relative_attention_num_buckets")


def _prefilled(lm: LanguageModel, requests: Sequence[_Request], at_once: int) -> Iterator[tuple[_Request, Prefix, int]]:
    """Each request and where the keys and values of its prompt are. Equal prompts must be neighbors."""
    groups = [list(group) for _, group in groupby(requests, key=lambda r: r.prompt)]
    for indices in split_padded([len(group[0].prompt) for group in groups], at_once):
        prefix = prefill(lm, [groups[i][0].prompt for i in indices])
        for row, i in enumerate(indices):
            for request in groups[i]:
                yield request, prefix, row


@dataclass(slots=True)
class _Batch:
    """The requests that are being written, one a slot."""

    lm: LanguageModel
    sampling: Sampling
    seed: tuple[int, ...]
    stop: frozenset[int]
    slots: Slots
    active: list[_Request] = field(default_factory=list)

    def fill(self, source: Iterator[tuple[_Request, Prefix, int]]) -> None:
        """Give free slots to new requests, and draw the first token of each."""
        while new := list(islice(source, self.slots.size - len(self.active))):
            for request, prefix, row in new:
                self.slots.add(prefix, row)
                self.active.append(request)
            self._draw(torch.stack([prefix.logits[row] for _, prefix, row in new]), len(self.active) - len(new))

    def step(self) -> None:
        """Draw the next token of each request."""
        self._draw(self.slots.step(self.lm, [request.text.ids[-1] for request in self.active]), 0)

    def _draw(self, logits: torch.Tensor, first: int) -> None:
        """A token for each request from `first` on; who is done leaves."""
        requests = self.active[first:]
        places = np.array([(r.index << 32) + len(r.text.ids) for r in requests], dtype=np.uint64)
        noise = torch.from_numpy(uniform(*self.seed, hashes=places)).to(logits.device)
        begin = (self.lm.decoder_start_id,) if self.lm.is_encoder_decoder else None
        seen = [(*(begin or r.prompt), *r.text.ids) for r in requests]
        tokens, log_probabilities = draw_tokens(logits, self.sampling, noise, seen)
        for request, token, log_probability in zip(requests, tokens, log_probabilities, strict=True):
            request.text.log_probability += log_probability
            if token in self.stop:
                request.text.finished = True
            else:
                request.text.ids.append(token)
        for row in reversed(range(first, len(self.active))):
            if self.active[row].done:
                self.slots.remove(row)
                self.active[row] = self.active[-1]
                self.active.pop()


@contextmanager
def merged(lm: LanguageModel) -> Iterator[None]:
    """Inside this block the adapter is part of the weights, which makes every product cheaper.

    The weights are merged copies; afterwards the model has its own tensors back, not one bit changed.
    """
    layers = [module for module in lm.model.modules() if isinstance(module, BaseTunerLayer)]
    bases = [layer.get_base_layer() for layer in layers]
    kept = [(parameter, parameter.data) for base in bases for parameter in base.parameters()]
    as_they_are = any(layer.disable_adapters or layer.merged for layer in layers) or is_sharded(lm)
    if as_they_are or not layers or not all(data.is_floating_point() for _, data in kept):
        yield
        return
    try:
        for parameter, data in kept:
            parameter.data = data.clone()
        lm.model.merge_adapter()
        yield
    finally:
        for layer in layers:
            layer.merged_adapters.clear()
        for parameter, data in kept:
            parameter.data = data
