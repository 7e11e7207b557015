"""Per-sample losses: the mean negative log-likelihood of each sample's own answer tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F

from retain.batching import ROW_TOKENS, Encoded, Row, pack, pad, split_rows
from retain.model import LanguageModel


def make_rows(
    lm: LanguageModel,
    sequences: Sequence[Encoded],
    row_tokens: int = ROW_TOKENS,
    max_members: int | None = None,
) -> Iterator[Row]:
    """The forward passes that cover `sequences`, in the model's best layout."""
    for indices in split_rows(sequences, row_tokens, max_members):
        row = pack(sequences, indices, lm.dtype) if lm.packs else pad(sequences, indices, lm.pad_id)
        yield row.to(lm.device)


def label_logits(lm: LanguageModel, row: Row) -> torch.Tensor:
    """Logits (K, V) at the K label positions of a row; the head runs on the columns that need it only."""
    out = lm.model(
        input_ids=row.input_ids,
        position_ids=row.position_ids,
        attention_mask=row.attention_mask,
        logits_to_keep=row.keep,
        use_cache=False,
    )
    return out.logits[row.rows, row.columns]


def token_losses(logits: torch.Tensor, row: Row) -> torch.Tensor:
    """Negative log-likelihood (K,) of each label token, in nats, at least float32."""
    return F.cross_entropy(logits.float() if logits.dtype.itemsize < 4 else logits, row.targets, reduction="none")


def row_losses(losses: torch.Tensor, row: Row) -> torch.Tensor:
    """Token-mean loss (B,) of each of the row's B sequences from the losses (K,) of its label tokens."""
    zeros = losses.new_zeros(len(row.members))
    counts = zeros.index_add(0, row.owners, torch.ones_like(losses))
    return zeros.index_add(0, row.owners, losses) / counts.clamp(min=1)


def sample_losses(lm: LanguageModel, sequences: Sequence[Encoded]) -> torch.Tensor:
    """Token-mean negative log-likelihood (B,) of each sequence, without gradient."""
    total = torch.zeros(len(sequences))
    with torch.no_grad():
        for row in make_rows(lm, sequences):
            total[row.members] = row_losses(token_losses(label_logits(lm, row), row), row).float().cpu()
    return total


def detect_packing(lm: LanguageModel) -> bool:
    """Whether the model computes the same losses from prefix-tree rows as from plain padded ones.

    Not every architecture honors a custom mask and positions, so the model is asked once.
    """
    words = [[5, 6, 7, 8, 9, 10], [5, 6, 7, 8, 11, 12, 13], [5, 6, 14, 15, 16]]
    vocabulary = lm.model.get_input_embeddings().num_embeddings
    probe = [Encoded.of([w % vocabulary for w in ids[:3]], [w % vocabulary for w in ids[3:]]) for ids in words]
    lm.model.eval()
    tolerance = 1e-3 if lm.dtype.itemsize >= 4 else 5e-2
    found = []
    for lm.packs in (False, True):
        try:
            found.append(sample_losses(lm, probe))
        except (TypeError, ValueError, RuntimeError, IndexError):
            return False
    return torch.allclose(*found, rtol=tolerance, atol=tolerance)
