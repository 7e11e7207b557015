"""Per-sample losses: the mean negative log-likelihood of each sample's own answer tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

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
    if lm.is_encoder_decoder:
        yield from pair_rows(lm, sequences, row_tokens, max_members)
        return
    if lm.layout == "padded":
        for indices in split_padded([len(sequence.inputs) for sequence in sequences], max_members, row_tokens):
            yield pad(sequences, indices, lm.pad_id).to(lm.device)
        return
    for indices in split_rows(sequences, row_tokens, max_members):
        yield pack(sequences, indices).to(lm.device)


def label_logits(lm: LanguageModel, row: Row | PairRow) -> torch.Tensor:
    """Logits (K, V) at the K label positions of a row; the head runs on the columns that need it only."""
    if lm.is_encoder_decoder:
        return pair_logits(lm, row)
    if lm.layout == "tree":
        # A mask of four dimensions is taken as it is, and tree attention does not look at it.
        extras = {"tree": Tree(row.tree, lm.dtype, lm.device)}
        mask = torch.zeros(1, 1, 1, 1, dtype=lm.dtype)
    else:
        extras = {}
        mask = dense_mask(row.tree, row.tokens, lm.dtype).to(lm.device) if lm.layout == "masked" else row.mask
    out = lm.model(
        input_ids=row.input_ids,
        position_ids=row.position_ids,
        attention_mask=mask,
        logits_to_keep=row.keep,
        use_cache=False,
        **extras,
    )
    return out.logits[row.rows, row.columns]


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


def choose_layout(lm: LanguageModel) -> str:
    """Set and return the fastest layout in which the model computes the losses it computes from padded rows.

    Not every architecture honors trees, masks and positions, so the model is asked once, on three short
    sequences. Many small products do not suit a GPU, so trees are for the CPU. A sliding window shorter than the
    longest sequence would be lost in either, so such a model keeps padded rows. So does an encoder-decoder.
    """
    if lm.is_encoder_decoder:
        return lm.layout
    words = [[5, 6, 7, 8, 9, 10], [5, 6, 7, 8, 11, 12, 13], [5, 6, 14, 15, 16]]
    vocabulary = lm.model.get_input_embeddings().num_embeddings
    probe = [Encoded.of([w % vocabulary for w in ids[:3]], [w % vocabulary for w in ids[3:]]) for ids in words]
    tolerance = 1e-3 if lm.dtype.itemsize >= 4 else 5e-2
    window = getattr(lm.model.config, "sliding_window", None)
    lm.use_layout("padded")
    expected = sample_losses(lm, probe)
    for layout in ["tree"] * (lm.device.type == "cpu") + ["masked"]:
        try:
            lm.use_layout(layout)
            if torch.allclose(sample_losses(lm, probe), expected, rtol=tolerance, atol=tolerance):
                break
        except (TypeError, ValueError, RuntimeError, IndexError):
            continue
    else:
        lm.use_layout("padded")
    if window is not None and window < lm.max_length:
        lm.use_layout("padded")
    return lm.layout
