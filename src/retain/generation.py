"""Greedy continuation of prompts."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from retain.model import LanguageModel


@torch.no_grad()
def greedy(lm: LanguageModel, prompts: Sequence[list[int]], max_new_tokens: int) -> list[list[int]]:
    """The most likely continuation of each prompt, up to and without the token that ends it.

    Prompts are token ids of any lengths; they are left-padded into one batch.
    """
    width = max(len(p) for p in prompts)
    ids = torch.tensor([[lm.pad_id] * (width - len(p)) + p for p in prompts], device=lm.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=lm.device)
    out = lm.model.generate(
        input_ids=ids,
        attention_mask=mask,
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        eos_token_id=list(lm.stop_ids),
        pad_token_id=lm.pad_id,
    )
    return [until_stop(row, lm.stop_ids) for row in out[:, width:].tolist()]


def until_stop(ids: list[int], stop_ids: Sequence[int]) -> list[int]:
    """The tokens before the first stop token."""
    end = next((k for k, token in enumerate(ids) if token in stop_ids), len(ids))
    return ids[:end]
