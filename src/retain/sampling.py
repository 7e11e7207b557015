"""From logits to a token: penalties, temperature, top-k, top-p, and a draw from what they leave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

NUCLEUS = 1024  # most likely tokens looked at first where only top-p limits them


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the model's distribution is warped before a token is drawn, in this order; 1, 1, 0 and 1 leave it be.

    repetition_penalty (CTRL, Keskar et al. 2019, section 4.1): a positive logit of a token that was seen is divided
    by it, a negative one multiplied. temperature divides the logits. top_k keeps the k most likely tokens (0: all),
    top_p (Holtzman et al. 2020) of these the fewest that hold at least that share.

    clip c bounds what a draw may tell of the model: logits are moved so that the largest is c, and those below -c
    become -c. With temperature T no token's probability then changes by more than a factor exp(4c/T), whatever the
    logits (`privacy.private_temperature`); top_k and top_p would break that bound and are ValueErrors.
    """

    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 0.95
    repetition_penalty: float = 1.0
    clip: float | None = None

    def __post_init__(self) -> None:
        if self.clip is not None and (self.top_k or self.top_p < 1):
            raise ValueError(f"clip needs top_k 0 and top_p 1, not {self.top_k} and {self.top_p}")


def draw_tokens(
    logits: torch.Tensor, sampling: Sampling, noise: torch.Tensor, seen: Sequence[Sequence[int]] = ()
) -> tuple[list[int], list[float]]:
    """A token for each row of logits (B, V), and its log-probability in nats before any warping.

    noise: (B,), uniform on (0, 1). seen: the tokens of each row that `repetition_penalty` is for.
    """
    logits = logits.float() if logits.dtype.itemsize < 4 else logits
    penalized = penalize(logits, sampling.repetition_penalty, seen) if sampling.repetition_penalty != 1 else logits
    probabilities, tokens = warp(penalized, sampling)
    chosen = draw(probabilities, noise)[:, None]
    chosen = chosen if tokens is None else tokens.gather(-1, chosen)
    log_probabilities = logits.gather(-1, chosen).squeeze(-1) - logits.logsumexp(-1)
    return chosen.squeeze(-1).tolist(), log_probabilities.tolist()


def penalize(logits: torch.Tensor, penalty: float, seen: Sequence[Sequence[int]]) -> torch.Tensor:
    """Logits (B, V), those of the tokens seen in each row divided by the penalty if positive, else multiplied."""
    rows = torch.tensor([row for row, tokens in enumerate(seen) for _ in tokens], device=logits.device)
    columns = torch.tensor([token for tokens in seen for token in tokens], device=logits.device)
    values = logits[rows, columns]
    penalized = logits.clone()
    penalized[rows, columns] = torch.where(values > 0, values / penalty, values * penalty)
    return penalized


def clip_logits(logits: torch.Tensor, clip: float) -> torch.Tensor:
    """max(z - max z + c, -c) of each row (B, V): in [-c, c], and the same softmax where nothing is cut off.

    Amin et al. 2024 (arXiv 2407.12108) clip so too: raw logits of ±c would lose the order of all above c.
    """
    return (logits - logits.amax(-1, keepdim=True) + clip).clamp(min=-clip)


def warp(logits: torch.Tensor, sampling: Sampling) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Unnormalized probabilities (B, K), float64, of K candidate tokens (B, K), or of all in order and None.

    Top-k comes first, so that no more than k tokens are sorted; top-p alone sorts as many as it needs.
    """
    if sampling.clip is not None:
        logits = clip_logits(logits, sampling.clip)
    scores = logits / sampling.temperature
    share = sampling.top_p if sampling.top_p < 1 else torch.inf  # rounded, all of them may be more than 1
    if not sampling.top_k and share > 1:
        return scores.double().softmax(-1), None
    size, vocabulary = sampling.top_k or NUCLEUS, scores.shape[-1]
    while True:
        top, tokens = scores.topk(min(size, vocabulary))
        whole = (top if sampling.top_k else scores).logsumexp(-1, keepdim=True)
        probabilities = (top.double() - whole.double()).exp()
        inside = probabilities.cumsum(-1) - probabilities < share
        if sampling.top_k or size >= vocabulary or not inside[:, -1].any():
            return probabilities * inside, tokens
        size *= 8


def draw(probabilities: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Index (B,) into each row of unnormalized probabilities (B, K), by inverting its distribution function."""
    cumulative = probabilities.cumsum(-1)
    chosen = torch.searchsorted(cumulative, noise[:, None] * cumulative[:, -1:], right=True)
    return chosen.squeeze(-1).clamp(max=probabilities.shape[-1] - 1)
