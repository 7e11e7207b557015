"""Dark experience replay (++): replayed samples keep the logits they entered with."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch

from retain.losses import row_losses
from retain.memory.random import hash_ids
from retain.strategies.base import Batch, StateError, Strategy, Tensors
from retain.types import Sample, Task


class DarkExperienceReplay(Strategy):
    """beta CE + alpha MSE(logits, stored logits) on replayed samples (Buzzega et al. 2020, arXiv 2004.07211).

    The MSE is the mean over a sample's answer tokens and over the `top_k` largest stored logits of each token:
    the source stores all, which for a vocabulary of 150,000 would be 600 kB a token; 64 are 512 bytes. Logits are
    taken when a sample has entered the buffer, at the end of its stage, where the source takes them in the middle
    of training; and both terms use the same replayed samples, where the source draws two batches.
    """

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)
        self.stored: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # by hash: logits and tokens, each (K, k)

    def begin_task(self, model: torch.nn.Module, task: Task) -> None:
        samples = list(self.context.buffer.samples.values())
        kept = {key: self.stored.get(key) for key in _keys(samples)}
        fresh = [sample for sample, entry in zip(samples, kept.values(), strict=True) if entry is None]
        self.stored = kept | self._top_logits(fresh)

    def _top_logits(self, samples: Sequence[Sample]) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
        keys, found = _keys(samples), {}
        for row in self.context.rows(samples):
            with torch.no_grad():
                logits = self.context.logits(row)
            values, tokens = logits.topk(min(self.options.top_k, logits.shape[-1]))
            for place, member in enumerate(row.members):
                mine = row.owners == place
                found[keys[member]] = (values[mine], tokens[mine].to(torch.int32))
        return found

    def losses(self, model: torch.nn.Module, batch: Batch, base: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        entries = [self.stored.get(key) for key in _keys(batch.samples)]
        replayed = [place for place, entry in enumerate(entries) if entry is not None]
        if not replayed:
            return base
        errors = logits.new_zeros(len(logits), dtype=base.dtype)
        for place in replayed:
            mine, (values, tokens) = batch.row.owners == place, entries[place]
            if int(mine.sum()) != len(values):
                raise StateError(f"logits of {len(values)} tokens for {batch.samples[place].id}, which has others")
            now = logits[mine].gather(-1, tokens.long())
            errors[mine] = (now - values).to(base.dtype).pow(2).mean(-1)
        weights = torch.ones_like(base)
        weights[replayed] = self.options.beta
        return weights * base + self.options.alpha * row_losses(errors, batch.row)

    def state_dict(self) -> Tensors:
        """All tokens of the samples that are still buffered one below the other, and how many each sample has.

        The largest logits all but spell a sample out, so those of one that may not be kept go with it.
        """
        buffered = _keys(self.context.buffer.samples.values())
        stored = {key: self.stored[key] for key in buffered if key in self.stored}
        if not stored:
            return {}
        values, tokens = zip(*stored.values(), strict=True)
        return {
            "hashes": torch.tensor(list(stored)),
            "counts": torch.tensor([len(value) for value in values]),
            "values": torch.cat(values),
            "tokens": torch.cat(tokens),
        }

    def load_state_dict(self, tensors: Mapping[str, torch.Tensor]) -> None:
        if tensors:
            counts, shapes = tensors["counts"].tolist(), [tuple(tensors[name].shape) for name in ("values", "tokens")]
            vocabulary = self.context.lm.model.get_output_embeddings().weight.shape[0]
            if shapes[0] != shapes[1] or len(shapes[0]) != 2 or not tensors["values"].is_floating_point():
                raise StateError(f"values and tokens of the shapes {shapes[0]} and {shapes[1]}")
            if not ((tensors["tokens"] >= 0) & (tensors["tokens"] < vocabulary)).all():
                raise StateError(f"tokens that are none of the model's {vocabulary}")
            parts = zip(tensors["values"].split(counts), tensors["tokens"].split(counts), strict=True)
            self.stored = dict(zip(tensors["hashes"].tolist(), parts, strict=True))


def _keys(samples: Collection[Sample]) -> list[int]:
    """The 64-bit hash of each sample's id, as a signed integer."""
    return hash_ids(sample.id for sample in samples).astype("int64").tolist()
