"""Per-sample losses: the mean negative log-likelihood of each sample's own answer tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from inspect import signature

import torch
import torch.nn.functional as F

from retain.attention import Tree
from retain.batching import ROW_TOKENS, Encoded, Row, dense_mask, pack, pad, split_padded, split_rows
from retain.encoder_decoder import PairRow, pair_logits, pair_rows
from retain.model import LanguageModel


def make_rows(
    lm: LanguageModel,
    sequences: Sequence[Encoded],
    row_tokens: int = ROW_TOKENS,
    max_members: int | None = None,
) -> Iterator[Row | PairRow]:
    """The forward passes that cover `sequences`, in the model's best layout."""
    max_members = 1 if lm.layout == "single" else max_members
    if lm.is_encoder_decoder:
        yield from pair_rows(lm, sequences, row_tokens, max_members)
        return
    if lm.layout in ("padded", "single"):
        for indices in split_padded([len(sequence.inputs) for sequence in sequences], max_members, row_tokens):
            yield pad(sequences, indices, lm.pad_id).to(lm.device)
        return
    for indices in split_rows(sequences, row_tokens, max_members):
        yield pack(sequences, indices).to(lm.device)


def label_logits(lm: LanguageModel, row: Row | PairRow) -> torch.Tensor:
    """Logits (K, V) at the K label positions of a row; the head runs on the columns that need it only."""
    if lm.is_encoder_decoder:
        return pair_logits(lm, row)
    extras: dict[str, object] = {}
    if lm.layout != "single":
        extras = {"position_ids": row.position_ids, "attention_mask": row.mask}
    if lm.layout == "masked":
        extras["attention_mask"] = dense_mask(row.tree, row.tokens, lm.dtype).to(lm.device)
    elif lm.layout == "tree":
        # A mask of four dimensions is taken as it is, and tree attention does not look at it.
        extras["attention_mask"] = torch.zeros(1, 1, 1, 1, dtype=lm.dtype)
        extras["tree"] = Tree(row.tree, lm.dtype, lm.device)
    if getattr(lm.model.config, "output_router_logits", False):
        extras["output_router_logits"] = False  # an auxiliary loss of experts is no sample's own
    if keeps := _keeps_logits(getattr(lm.unwrapped.forward, "__func__", lm.unwrapped.forward)):
        extras["logits_to_keep"] = row.keep
    logits = lm.model(input_ids=row.input_ids, use_cache=False, **extras).logits
    return logits[row.rows, row.columns if keeps else row.keep[row.columns]]


@cache
def _keeps_logits(forward: Callable[..., object]) -> bool:
    """Whether a model's forward pass computes logits of chosen columns alone."""
    return "logits_to_keep" in signature(forward).parameters


def token_losses(logits: torch.Tensor, row: Row | PairRow) -> torch.Tensor:
    """Negative log-likelihood (K,) of each label token, in nats, at least float32."""
    return F.cross_entropy(logits.float() if logits.dtype.itemsize < 4 else logits, row.targets, reduction="none")


def row_losses(losses: torch.Tensor, row: Row | PairRow) -> torch.Tensor:
    """Token-mean loss (B,) of each of the row's B sequences from the losses (K,) of its label tokens."""
    zeros = losses.new_zeros(len(row.members))
    counts = zeros.index_add(0, row.owners, torch.ones_like(losses))
    return zeros.index_add(0, row.owners, losses) / counts.clamp(min=1)


def sample_losses(lm: LanguageModel, sequences: Sequence[Encoded]) -> torch.Tensor:
    """Token-mean negative log-likelihood (B,) of each sequence, without gradient and without dropout."""
    lm.model.eval()
    total = torch.zeros(len(sequences))
    with torch.no_grad():
        for row in lm.team.share(list(make_rows(lm, sequences))):
            total[row.members] = row_losses(token_losses(label_logits(lm, row), row), row).float().cpu()
    lm.team.total([total], lm.device)
    return total
