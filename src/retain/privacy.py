"""Differential privacy: of what the model writes, token by token, and of training; what excludes what, and why.

docs/privacy.md derives the bounds and says what they do not cover.
"""

from __future__ import annotations

import importlib.util
import secrets
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from retain.config_errors import Problem
from retain.extending import is_import_path
from retain.presets import DEFAULT, preset_of
from retain.synthesis_sections import PrivacyConfig
from retain.types import InputError

if TYPE_CHECKING:
    from retain.config import Config

# Filters that look at the tuned model, at training texts or at their statistics, so that what they keep is not bounded.
CHOOSING = ("memorization", "consistency", "perplexity", "self_consistency", "keep_ratio", "diversity", "balance")

# What a draw with a bound needs; whatever else warps or skips the draw would break the bound.
BOUNDED = {"sampling": "single", "answers": "sample", "top_k": 0, "top_p": 1.0}


def private_temperature(epsilon: float, clip: float) -> float:
    """T = 4c/ε: softmax(u/T) of logits u in [-c, c] is then ε-private (docs/privacy.md).

    The exponential mechanism exp(εu/(2Δ)) of McSherry and Talwar (2007) with utility u, Δ = max |u - u'| = 2c.
    """
    return 4.0 * clip / epsilon


def lay_private_decoding(values: Mapping[str, Any]) -> dict[str, Any]:
    """The raw config with what `privacy.epsilon_per_token` asks of `synthesis` under the user's own keys."""
    needed, own = _decoding(values), values.get("synthesis", {})
    return {**values, "synthesis": {**needed, **own}} if needed and isinstance(own, Mapping) else dict(values)


def privacy_problems(values: Mapping[str, Any]) -> list[Problem]:
    """Keys of the raw config that would break a guarantee which `privacy` asks for."""
    return _decoding_problems(values) + _training_problems(values)


def _decoding(values: Mapping[str, Any]) -> dict[str, Any]:
    section = values.get("privacy")
    if not isinstance(section, Mapping):
        return {}
    epsilon, clip = section.get("epsilon_per_token"), section.get("clip", PrivacyConfig().clip)
    if not all(isinstance(one, int | float) and one > 0 for one in (epsilon, clip)):
        return {}  # off, or for the config's own check to report
    return {**BOUNDED, "temperature": private_temperature(epsilon, clip)}


def _decoding_problems(values: Mapping[str, Any]) -> list[Problem]:
    given = values.get("synthesis", {})
    return [
        (
            ("synthesis", key),
            f"{given[key]!r} would break the bound of privacy.epsilon_per_token, which needs {needed!r}; leave it out",
        )
        for key, needed in _decoding(values).items()
        if isinstance(given, Mapping) and given.get(key, needed) != needed
    ]


def _training_problems(values: Mapping[str, Any]) -> list[Problem]:
    """What looks at real samples beside DP-SGD, so that its ε would not be true."""
    section = values.get("privacy")
    if not isinstance(section, Mapping) or section.get("dp_sgd") is None:
        return []
    try:
        chosen = preset_of(values.get("strategy", DEFAULT))
    except InputError:  # reported elsewhere
        return []
    parts = {
        name: section if isinstance(section := values.get(name), Mapping) else {}
        for name in ("storage", "synthesis", "curriculum", "training", "schedule", "trigger", "memory")
    }
    synthesis, curriculum = parts["synthesis"], parts["curriculum"]
    watches = chosen.replay and parts["schedule"].get("kind") == "loss" and parts["trigger"].get("signal") != "probe"
    found = {
        ("strategy",): chosen.keeps_buffer
        and not chosen.source
        and f"{chosen.name!r} reads stored samples again and again, which DP-SGD does not account for; use none, or "
        "a source of synthetic data such as ssr",
        ("storage", "mode"): parts["storage"].get("mode") == "hybrid" and "hybrid keeps real samples",
        ("synthesis", "method"): synthesis.get("method") in ("in-context", "pairs")
        and f"{synthesis.get('method')} shows real samples",
        ("synthesis", "demonstrations"): bool(synthesis.get("demonstrations")) and "demonstrations are real samples",
        ("curriculum", "kind"): curriculum.get("kind") == "similarity" and "similarity compares real samples",
        ("curriculum", "split"): curriculum.get("split") == "similarity" and "similarity compares real samples",
        ("schedule", "kind"): watches
        and "loss watches the losses of new samples; use trigger.signal: probe, which looks at synthetic ones",
        ("memory", "candidates"): chosen.replay
        and parts["memory"].get("candidates", 1) != 1
        and "candidates are compared under a step on new samples without noise",
        ("training", "precision"): parts["training"].get("precision") == "float16"
        and "float16 scales the gradients before they are clipped; use bfloat16 or float32",
    }
    if own := [name for name, _ in chosen.regularizers if is_import_path(name)]:
        found["strategy",] = f"{own[0]!r} may look at real samples without noise"
    ewc = "ewc" in dict(chosen.regularizers)
    problems = [(path, f"{reason} (privacy.dp_sgd)") for path, reason in found.items() if reason]
    why = "'ewc' measures its Fisher information on real samples without noise; use l2 or si (privacy.dp_sgd)"
    return [*problems, (("strategy",), why)] if ewc else problems


def privacy_facts(config: Config, stages: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """What a run says of its guarantees; None where it gives none. stages: what DP-SGD spent on each task."""
    facts: dict[str, Any] = {}
    if config.privacy.epsilon_per_token is not None:
        synthesis, bound = config.synthesis, config.privacy.epsilon_per_token
        joint = synthesis.method == "joint"
        tokens = synthesis.max_joint_tokens if joint else synthesis.max_input_tokens + synthesis.max_output_tokens
        facts["writing"] = {
            "epsilon_per_token": bound,
            "clip": config.privacy.clip,
            "temperature": synthesis.temperature,
            "epsilon_per_sample": bound * tokens,
            "chosen_outside_the_bound_by": _choosing(config),
        }
    if stages:
        facts["training"] = {"dp_sgd": config.privacy.dp_sgd.model_dump(), "tasks": dict(stages)}
    return {**facts, "noise_seed_is_known": config.privacy.noise_seed is not None} if facts else None


def _choosing(config: Config) -> list[str]:
    values = {name: getattr(config.filters, name) for name in CHOOSING}
    if config.privacy.dp_sgd:  # no training text is looked at
        del values["memorization"]
    return [name for name, value in values.items() if value is not None and value is not False]


def noise_seed(privacy: PrivacyConfig) -> int:
    """`noise_seed`, or 64 bits of the operating system's that are written nowhere: noise protects while secret."""
    return secrets.randbits(64) if privacy.noise_seed is None else privacy.noise_seed


def check_installed(privacy: PrivacyConfig) -> None:
    """An InputError where `dp_sgd` is asked for and opacus, whose accountant says ε, is not installed."""
    if privacy.dp_sgd and not importlib.util.find_spec("opacus"):
        raise InputError("privacy.dp_sgd: the package opacus is not installed; pip install 'retain[privacy]'")
