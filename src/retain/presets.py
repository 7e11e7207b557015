"""The named strategies: rows of defaults for when, how much and which to replay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from retain.types import InputError

DEFAULT = "mssr"


@dataclass(frozen=True, slots=True)
class Preset:
    """One named strategy: what it sets where the user's config says nothing."""

    summary: str
    replay: bool = True
    joint: bool = False
    defaults: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def _replay(summary: str, kind: str, ratio_form: str, priority: str, admission: str | None = None) -> Preset:
    defaults = {"schedule": {"kind": kind, "ratio_form": ratio_form}, "memory": {"priority": priority}}
    if admission:
        defaults["buffer"] = {"admission": admission}
    return Preset(summary, defaults=defaults)


PRESETS: dict[str, Preset] = {
    "none": Preset("plain fine-tuning, no replay: the lower bound", replay=False),
    "fixed": _replay("replay at equal intervals, samples drawn uniformly", "fixed", "constant", "uniform"),
    "er": _replay("experience replay at every step from a reservoir", "every", "constant", "uniform", "reservoir"),
    "mssr-sch": _replay(
        "expanding intervals and a falling ratio, samples drawn uniformly",
        "expanding",
        "interpolated",
        "uniform",
    ),
    "mssr-spl": _replay("equal intervals, samples drawn by memory strength", "fixed", "constant", "retention"),
    "mssr": _replay(
        "expanding intervals, a falling ratio, samples drawn by memory strength",
        "expanding",
        "interpolated",
        "retention",
    ),
    "joint": Preset("all tasks in one stage: the upper bound", replay=False, joint=True),
}


def parse_strategy(value: Any) -> list[tuple[str, dict[str, Any]]]:
    """(name, options) of each part of `strategy`: "a", "a + b", a list of these, or {"name": ..., options}.

    Raises InputError for an unknown name, or more than one replay strategy.
    """
    parts = [_named(part) for part in _parts(value)]
    if not parts:
        raise InputError(f"{value!r} names no strategy; {_known()}")
    if len(parts) > 1:
        names = " + ".join(name for name, _ in parts)
        raise InputError(f"{names!r} names {len(parts)} replay strategies; a run takes one of them")
    return parts


def preset_of(value: Any) -> Preset:
    """The preset that `strategy` names."""
    [(name, _)] = parse_strategy(value)
    return PRESETS[name]


def resolve(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the raw config with its strategy by name and that one's defaults under the user's own keys."""
    [(name, _)] = parse_strategy(raw.get("strategy", DEFAULT))
    resolved = {**raw, "strategy": name}
    for section, defaults in PRESETS[name].defaults.items():
        own = raw.get(section, {})
        if isinstance(own, Mapping):  # anything else is for the config's own check to report
            resolved[section] = {**defaults, **own}
    return resolved


def _parts(value: Any) -> list[Any]:
    if isinstance(value, str):
        return [part.strip() for part in value.split("+")]
    if isinstance(value, list | tuple):
        return [part for item in value for part in _parts(item)]
    return [value]


def _named(part: Any) -> tuple[str, dict[str, Any]]:
    options = {"name": part} if isinstance(part, str) else part
    if not isinstance(options, Mapping) or not isinstance(options.get("name"), str):
        raise InputError(f'{part!r} is neither a name nor {{"name": ..., options}}; {_known()}')
    name = options["name"].strip()
    if name not in PRESETS:
        near = get_close_matches(name.lower(), PRESETS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise InputError(f"unknown strategy {name!r}; {hint}{_known()}")
    extra = sorted(str(key) for key in options if key != "name")
    if extra:
        raise InputError(
            f"strategy {name!r} takes no option {extra[0]!r}; "
            "its settings stand in the sections schedule, memory and buffer"
        )
    return name, {}


def _known() -> str:
    return f"known are {', '.join(PRESETS)}"
