"""How far synthetic samples are from the real ones: the generator's drift (SSR 8, 9.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from retain.cards import TaskCard
from retain.quality.drift import distinct_n, gaussian_divergence, label_distance, label_shares, unigram_divergence
from retain.quality.filters import Candidate
from retain.synthesis.prompts import Pair
from retain.synthesis.writer import Writer
from retain.synthesis_sections import MonitorConfig

NO_LABEL = "(none of them)"
MOST = 200  # samples of each kind that are compared


def watch(writer: Writer, card: TaskCard, kept: Sequence[Candidate], real: Sequence[Pair] = ()) -> dict[str, Any]:
    """Statistics of the kept samples beside the real ones, where these are at hand; None: not known.

    Perplexities are medians: a single odd text would carry a mean away.
    """
    pairs = [(one.input, one.answer) for one in kept[:MOST]]
    real = real[:MOST]
    facts: dict[str, Any] = {
        "perplexity_real": _median(writer, real) if real else card.perplexity,
        "perplexity_synthetic": _median(writer, pairs) if pairs else None,
        "unigram_divergence": None,
        "hidden_divergence": None,
        **{f"distinct_{n}": distinct_n([input for input, _ in pairs], n) for n in (1, 2, 3)},
    }
    if real and pairs:
        texts, known = [input for input, _ in pairs], [input for input, _ in real]
        facts["unigram_divergence"] = unigram_divergence(texts, known)
        facts["hidden_divergence"] = gaussian_divergence(writer.embed(texts), writer.embed(known))
    if card.labels and pairs:
        # An answer that is none of them may be any text, and this is written down.
        facts["labels"] = label_shares(one.answer if one.answer in card.labels else NO_LABEL for one in kept)
        facts["label_distance"] = label_distance(facts["labels"], card.reference.target)
    return facts


def drifted(facts: dict[str, Any], config: MonitorConfig) -> str | None:
    """In words, what is above its limit; None where nothing is."""
    real, synthetic = facts["perplexity_real"], facts["perplexity_synthetic"]
    if config.perplexity_ratio and real and synthetic and synthetic > config.perplexity_ratio * real:
        limit = f"monitor.perplexity_ratio {config.perplexity_ratio:g}"
        return f"perplexity {synthetic:.1f} against {real:.1f} of real samples is above {limit}"
    divergence = facts["unigram_divergence"]
    if config.divergence and divergence is not None and divergence > config.divergence:
        return f"divergence {divergence:.2f} of the words is above monitor.divergence {config.divergence:g}"
    return None


def real_perplexities(writer: Writer, real: Sequence[Pair]) -> dict[str, float | None]:
    """Median and 95th percentile of the perplexity of real samples, as a card keeps them."""
    values = writer.perplexities(real[:MOST])
    values = values[np.isfinite(values)]
    if not len(values):
        return {}
    return {"perplexity": float(np.median(values)), "perplexity_limit": float(np.quantile(values, 0.95))}


def _median(writer: Writer, pairs: Sequence[Pair]) -> float | None:
    values = writer.perplexities(pairs)
    values = values[np.isfinite(values)]
    return float(np.median(values)) if len(values) else None
