"""Attention over a prefix-tree row: each run of fresh tokens looks at its own ancestors and nothing else.

A dense mask costs the square of the row; this costs what the sequences would cost by themselves. It is an
attention function of transformers like any other; outside of rows it is plain scaled-dot-product attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "retain_tree"


class Segment(NamedTuple):
    """Tokens start..stop of a row, and the spans of tokens they may look at: ancestors, then themselves."""

    start: int
    stop: int
    spans: tuple[tuple[int, int], ...]

    @property
    def ancestors(self) -> int:
        """Number of tokens before the segment on its path."""
        return sum(stop - start for start, stop in self.spans) - (self.stop - self.start)

    def allowed(self) -> torch.Tensor:
        """Boolean mask (fresh, path): all ancestors, and itself causally."""
        fresh = self.stop - self.start
        return torch.ones(fresh, self.ancestors + fresh, dtype=torch.bool).tril(self.ancestors)


def tree_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    tree: Sequence[tuple[Segment, torch.Tensor]] | None = None,
    **extras: object,
) -> tuple[torch.Tensor, None]:
    """Attention (1, T, H, D) of one row. query: (1, H, T, D); key, value: (1, G, T, D), G divides H.

    Raises ValueError for what it does not know, such as soft-capping: the model then gets another layout.
    """
    if tree is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **extras
        )
    if unknown := [name for name in ("softcap", "s_aux", "sliding_window") if extras.get(name) is not None]:
        raise ValueError(f"tree attention has no {unknown[0]}")
    parts = []
    for segment, allowed in tree:
        keys, values = (torch.cat([x[:, :, a:b] for a, b in segment.spans], dim=2) for x in (key, value))
        parts.append(
            F.scaled_dot_product_attention(
                query[:, :, segment.start : segment.stop],
                keys,
                values,
                attn_mask=allowed,
                dropout_p=dropout,
                scale=scaling,
                enable_gqa=query.shape[1] != key.shape[1],
            )
        )
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, tree_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
