"""The loss of each sample of a batch, read from the outputs of a forward pass that training makes anyway."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from retain.types import InputError

TOKENS_AT_ONCE = 256
IGNORED = -100  # the label of a token that bears no loss


class SampleLosses(NamedTuple):
    """Token-mean loss (B,) and tokens (B,) of each sample of a forward pass."""

    losses: torch.Tensor
    tokens: torch.Tensor


@torch.no_grad()
def losses_of_samples(inputs: Mapping[str, Any], output: Any, samples: int, shifted: bool) -> SampleLosses:
    """The loss that Eq. 13 smooths: the mean of -log p over a sample's label tokens, in nats, from a pass of training.

    Rows are samples; in one row without padding (padding-free) a sample begins where `position_ids` is 0. `shifted`:
    the label of a token is predicted by the one before. Raises InputError for batches and outputs of another form.
    """
    labels = inputs.get("shift_labels", inputs.get("labels"))
    if labels is None:
        raise InputError("the data collator gives no labels, so a sample has no loss to remember")
    owners, tokens = owners_of(inputs, labels, samples, shifted)
    if shifted and "shift_labels" not in inputs:
        labels, owners = labels[:, 1:], owners[:, 1:]
    counted = labels != IGNORED
    if getattr(output, "log_probs", None) is not None:  # TRL's fused head
        each = -output.log_probs[counted]
    elif getattr(output, "logits", None) is not None:
        each = token_losses(output.logits, labels.to(output.logits.device), counted.to(output.logits.device))
    else:
        raise InputError("the model's output has no logits (a fused loss, as Liger's, hides them); switch it off")
    size = max(samples, int(owners.max()) + 1)
    owner = owners[counted]
    sums = each.new_zeros(size).index_add(0, owner.to(each.device), each)
    counts = torch.bincount(owner, minlength=size).to(each.device)
    if counts[samples:].any():
        raise InputError(f"a batch of {samples} rows holds {size} samples; packed rows are not supported")
    return SampleLosses((sums / counts.clamp(min=1))[:samples], tokens[:samples].to(each.device))


def token_losses(logits: torch.Tensor, labels: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """-log p of the labels that count, (K,), from logits (B, T, V), labels and mask (B, T or less).

    In parts, for a second copy of all logits would take more memory than training does, and most of the time.
    """
    places = [place.split(TOKENS_AT_ONCE) for place in (*counted.nonzero(as_tuple=True), labels[counted])]
    parts = []
    for row, column, target in zip(*places, strict=True):
        part = logits[row, column]
        part = part.float() if part.dtype.itemsize < 4 else part
        parts.append(F.cross_entropy(part, target, reduction="none"))
    return torch.cat(parts)


def owners_of(inputs: Mapping[str, Any], labels: torch.Tensor, samples: int, shifted: bool) -> tuple:
    """Which sample of the batch each token belongs to, of the labels' shape, and how many tokens each has."""
    positions, mask = inputs.get("position_ids"), inputs.get("attention_mask")
    if len(labels) == samples and (mask is not None or samples > 1 or positions is None):
        owners = torch.arange(samples, device=labels.device)[:, None].expand(labels.shape)
        tokens = mask.sum(1) if mask is not None else torch.full((samples,), labels.shape[1], device=labels.device)
        return owners, tokens if shifted else tokens + (labels != IGNORED).sum(1)
    if positions is None or len(labels) != 1:
        raise InputError(f"the data collator makes {len(labels)} rows of {samples} samples and no position_ids of them")
    owners = (positions == 0).cumsum(1) - 1
    return owners, torch.bincount(owners[0], minlength=samples)
