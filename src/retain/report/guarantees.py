"""What a run guarantees of privacy, and what not, in sentences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def privacy_sentences(facts: Mapping[str, Any] | None) -> list[str]:
    """The part `privacy` of results.json in words; nothing where there is none."""
    facts = facts or {}
    said = [*_training(facts.get("training") or {}), *_writing(facts.get("writing") or {})]
    if said and facts.get("noise_seed_is_known"):
        said.append("The noise has a known seed (privacy.noise_seed): nothing of this holds for who knows it.")
    return said


def _training(facts: Mapping[str, Any]) -> list[str]:
    tasks = facts.get("tasks") or {}
    if not tasks:
        return []
    options, last = facts.get("dp_sgd") or {}, list(tasks.values())[-1]
    each = ", ".join(f"{name} ε = {_epsilon(task.get('epsilon'))}" for name, task in tasks.items())
    return [
        f"DP-SGD at δ = {options.get('delta')}: {each}; ε = {_epsilon(last.get('epsilon_over_all_tasks'))} for someone "
        "with a sample in every task.",
        f"Noise multiplier {options.get('noise_multiplier')}, clipping norm {options.get('max_grad_norm')}, Poisson "
        "sampling of each task's samples, opacus's Rényi accountant, one sample added or removed. It holds for the "
        "adapters and what is written with them, not for the training losses of this run, and takes the number of "
        "samples, the labels and the common instruction for public.",
    ]


def _writing(facts: Mapping[str, Any]) -> list[str]:
    if not facts:
        return []
    filters = facts.get("chosen_outside_the_bound_by") or []
    outside = f" Which of them are kept is outside it: {', '.join(map(str, filters))} choose." if filters else ""
    return [
        f"Samples are drawn with ε = {_epsilon(facts.get('epsilon_per_token'))} a token (logits clipped to "
        f"±{facts.get('clip')}, temperature {facts.get('temperature')}), so at most "
        f"{_epsilon(facts.get('epsilon_per_sample'))} a sample; over several samples it adds up.{outside}"
    ]


def _epsilon(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else "∞"
