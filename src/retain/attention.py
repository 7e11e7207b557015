"""Attention over a prefix-tree row: each run of fresh tokens looks at its own ancestors and nothing else.

A dense mask costs the square of the row; this costs what the sequences would cost by themselves. It is an
attention function of transformers like any other; outside of rows it is plain scaled-dot-product attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
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


class Tree:
    """The segments of a row, ready for attention: what every layer needs is made once.

    A row is split at every place where a span begins or ends, so that a path is a list of whole pieces: the
    gradient of one split is one concatenation, that of many slices as many buffers of the row's full size.
    """

    def __init__(self, segments: Sequence[Segment], dtype: torch.dtype, device: torch.device) -> None:
        cuts = sorted({edge for segment in segments for span in segment.spans for edge in span})
        places = {edge: piece for piece, edge in enumerate(cuts)}
        self.pieces = [stop - start for start, stop in pairwise(cuts)]
        self.fresh = [segment.stop - segment.start for segment in segments]
        self.paths = [[p for a, b in segment.spans for p in range(places[a], places[b])] for segment in segments]
        self.longest = max(segment.ancestors + segment.stop - segment.start for segment in segments)
        self.masks = [torch.zeros(segment.allowed().shape, dtype=dtype) for segment in segments]
        for mask, segment in zip(self.masks, segments, strict=True):
            mask.masked_fill_(~segment.allowed(), -torch.inf)
        self.masks = [mask.to(device) for mask in self.masks]


def tree_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    tree: Tree | None = None,
    **extras: object,
) -> tuple[torch.Tensor, None]:
    """Attention (1, T, H, D) of one row. query: (1, H, T, D); key, value: (1, G, T, D), G divides H.

    Raises ValueError for what it does not know, such as soft-capping: the model then gets another layout.
    """
    if tree is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **extras
        )
    if unknown := [name for name in ("softcap", "s_aux", "position_bias") if extras.get(name) is not None]:
        raise ValueError(f"tree attention has no {unknown[0]}")
    if (window := extras.get("sliding_window")) is not None and window < tree.longest:
        raise ValueError(f"tree attention has no window of {window} tokens")
    keys, values = key.split(tree.pieces, dim=2), value.split(tree.pieces, dim=2)
    parts = [
        F.scaled_dot_product_attention(
            queries,
            torch.cat([keys[piece] for piece in path], dim=2),
            torch.cat([values[piece] for piece in path], dim=2),
            attn_mask=mask.to(query.dtype),  # autocast changes the dtype, elsewhere nothing happens
            dropout_p=dropout,
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        for queries, path, mask in zip(query.split(tree.fresh, dim=2), tree.paths, tree.masks, strict=True)
    ]
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, tree_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
