"""The named strategies: what each replays and when, where rehearsal data come from, what protects the weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError

from retain.config_errors import problem_report, problems_of
from retain.extending import Extension, given, is_import_path, named
from retain.sections import Section
from retain.strategy_options import (
    AGemOptions,
    DerOptions,
    EwcOptions,
    GemOptions,
    L2Options,
    LwfOptions,
    OLoraOptions,
    OsfOptions,
    SiOptions,
)
from retain.types import InputError

DEFAULT = "mssr"
AUTO = "auto"  # stands for the one that `retain.choosing` takes once the tasks are known


@dataclass(frozen=True, slots=True)
class Preset:
    """One way to replay: what it sets where the user's config says nothing."""

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
    "surprise": _replay(
        "experience replay at every step from the samples that were hardest to learn",
        "every",
        "constant",
        "uniform",
        "surprise",
    ),
    "mir": Preset(
        "experience replay at every step of what the new batch is about to harm most",
        defaults={
            "schedule": {"kind": "every", "ratio_form": "constant"},
            "memory": {"priority": "uniform", "candidates": 5},
            "buffer": {"admission": "reservoir"},
        },
    ),
    "loss": _replay(
        "replay when the loss of new batches rises, samples drawn uniformly", "loss", "constant", "uniform"
    ),
    "accuracy": _replay(
        "replay when a past task's validation score falls, samples drawn uniformly",
        "accuracy",
        "constant",
        "uniform",
    ),
    "forever": Preset(
        "expanding intervals in update norms instead of steps, samples drawn uniformly",
        defaults={
            "schedule": {"kind": "expanding", "ratio_form": "constant", "clock": "updates"},
            "memory": {"priority": "uniform"},
        },
    ),
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


@dataclass(frozen=True, slots=True)
class Source:
    """One way to synthesize rehearsal data: what it sets where the user's config says nothing."""

    summary: str
    defaults: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


# All but `memorization`, which the papers have not either: without it a copy of a training text could be stored.
UNFILTERED = {"heuristics": False, "perplexity": None, "consistency": None, "diversity": None}
CONCATENATED = {"kind": "concatenate", "draw": "uniform", "weight_by_confidence": False}
SOURCES: dict[str, Source] = {
    "ssr": Source("the model writes its own rehearsal data, filtered; a curriculum sets their share"),
    "ssr-paper": Source(
        "rehearsal data written by the base model from a few real ones and refined by the latest model",
        {
            "synthesis": {
                "method": "pairs",
                "samples": 0.1,
                "generator_weight": 0.0,
                "demonstrations": 20,
                "answers": "greedy",
                "temperature": 0.9,
                "top_k": 0,
                "top_p": 0.6,
                "repetition_penalty": 1.2,
            },
            "filters": {**UNFILTERED, "select": "kmeans"},
            "curriculum": CONCATENATED,
        },
    ),
    "lamol": Source(
        "rehearsal data written from a task token before each stage, with the generator trained along",
        {
            "synthesis": {
                "method": "joint",
                "prompt": "[{name}]",
                "samples": 0.2,
                "generator_weight": 0.25,
                "top_k": 20,
                "top_p": 1.0,
            },
            "filters": UNFILTERED,
            "curriculum": CONCATENATED,
            "storage": {"mode": "on-demand"},
        },
    ),
}


@dataclass(frozen=True, slots=True)
class Regularizer:
    """One method that acts on losses or gradients. `preset`: the replay it brings where none is named;
    `buffer`: it needs stored samples, replayed or not."""

    summary: str
    options: type[Section]
    preset: str | None = None
    buffer: bool = False


OWN_ADAPTERS = ("o-lora", "osf")  # they rebuild the base's weights, which need not be the same to the last bit

# The order in which they act: what sets the adapter comes first, what follows the loss's own gradient (si) before
# what adds to it, and projections last. A canonical name keeps this order.
REGULARIZERS: dict[str, Regularizer] = {
    "o-lora": Regularizer("each stage learns in a low-rank space orthogonal to the earlier ones", OLoraOptions),
    "osf": Regularizer("the largest singular directions of the weights stay as they are", OsfOptions),
    "si": Regularizer("a penalty on moving weights that lowered the past tasks' losses", SiOptions),
    "l2": Regularizer("a penalty on the distance to the last stage's weights", L2Options),
    "ewc": Regularizer("the same, weighted by how sensitive the past tasks' likelihood is to each weight", EwcOptions),
    "lwf": Regularizer("new inputs are answered as the model of the stage's start answered them", LwfOptions),
    "der++": Regularizer("replayed samples keep the logits they entered with", DerOptions, "er", True),
    "gem": Regularizer("gradients are projected so that no past task's loss rises", GemOptions, buffer=True),
    "agem": Regularizer("gradients are projected so that the past's mean loss does not rise", AGemOptions, buffer=True),
}
# Names that cannot stand together, and why.
CLASHES: dict[frozenset[str], str] = {
    frozenset(("o-lora", "osf")): "each brings an adapter of its own kind",
    **{
        frozenset(("o-lora", name)): f"o-lora freezes the weights that {name} would hold back"
        for name in ("si", "l2", "ewc")
    },
}


def regularizer(name: str) -> Regularizer | None:
    """The row of a built-in regularizer, or one made of a class of the user's own; None for another name.

    Raises InputError for an import path that leads to no such class.
    """
    if not is_import_path(name):
        return REGULARIZERS.get(name)
    found = named(name)
    if not isinstance(found, type) or not issubclass(found, Extension):
        raise InputError(f"{name!r} is not a subclass of retain.strategies.base.Strategy; only such a class is allowed")
    if not isinstance(found.Options, type) or not issubclass(found.Options, Section):
        raise InputError(f"{name!r}: its Options are no subclass of retain.sections.Section")
    return Regularizer((found.__doc__ or name).strip().partition("\n")[0], found.Options, buffer=found.needs_buffer)


NAMES: tuple[str, ...] = (*PRESETS, *SOURCES, *REGULARIZERS, AUTO)


@dataclass(frozen=True, slots=True)
class Resolved:
    """What a run does against forgetting.

    name: canonical, "ssr + mssr + ewc". replay: the row of `PRESETS` whose memory schedule replays, or None.
    source: the row of `SOURCES` that writes the rehearsal data, or None where they are stored samples; without
    `replay` its curriculum replays them. keeps_buffer: rehearsal data are kept, replayed or not.
    regularizers: name and checked options, in the order of `REGULARIZERS`.
    """

    name: str
    replay: str | None = None
    source: str | None = None
    joint: bool = False
    keeps_buffer: bool = False
    regularizers: tuple[tuple[str, Section], ...] = ()

    @property
    def replays(self) -> bool:
        """Whether past samples, stored or synthetic, are trained on again; of `auto` it is not known yet."""
        return bool(self.replay or self.source or self.name == AUTO)


def preset_of(value: Any) -> Resolved:
    """What `strategy` means: "a", "a + b", a list of these, or {"name": ..., options}.

    Raises InputError for an unknown name, an option that is unknown or out of range, names that exclude each
    other, and a name that stands twice.
    """
    parts = _checked([_named(part) for part in _parts(value)], value)
    schedule, source = (next((name for name in table if name in parts), None) for table in (PRESETS, SOURCES))
    own = [name for name in parts if is_import_path(name)]
    regularizers = tuple((name, parts[name]) for name in (*REGULARIZERS, *own) if name in parts)
    rows = [regularizer(name) for name, _ in regularizers]
    if schedule is None and source is None:
        schedule = next((row.preset for row in rows if row.preset), None)
    replay = schedule if schedule and PRESETS[schedule].replay else None
    return Resolved(
        name=" + ".join(name for name in (*SOURCES, *PRESETS, *REGULARIZERS, AUTO, *own) if name in parts),
        replay=replay,
        source=source,
        joint="joint" in parts,
        keeps_buffer=bool(replay or source) or any(row.buffer for row in rows),
        regularizers=regularizers,
    )


def resolve(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the raw config: its strategy in canonical form with every option, that one's defaults under the
    user's own keys."""
    chosen = preset_of(raw.get("strategy", DEFAULT))
    defaults = dict(PRESETS[chosen.replay].defaults) if chosen.replay else {}
    defaults |= SOURCES[chosen.source].defaults if chosen.source else {}
    if chosen.keeps_buffer and not chosen.replay and not chosen.source:
        defaults = {"buffer": PRESETS["er"].defaults["buffer"]}
    resolved = {**raw, "strategy": _spelled(chosen)}
    for section, values in defaults.items():
        own = raw.get(section, {})
        if isinstance(own, Mapping):  # anything else is for the config's own check to report
            resolved[section] = {**values, **own}
    return resolved


def spell_out(value: Any) -> Any:
    """The parts of `strategy` as a list in which each regularizer is a mapping, so that its options have keys.

    Classes and objects that a program hands over stand as their import paths and options.
    """
    parts = _parts(value)
    mapped = [_mapped(part) for part in parts]
    return value if mapped == parts else mapped


def _mapped(part: Any) -> Any:
    if isinstance(part, Extension):
        return {"name": given(type(part)), **(part.options.model_dump() if part.options else {})}
    if isinstance(part, type):
        return {"name": given(part)}
    if isinstance(part, dict) and isinstance(part.get("name"), type):
        return {**part, "name": given(part["name"])}
    by_name = isinstance(part, str) and (part in REGULARIZERS or is_import_path(part))
    return {"name": part} if by_name else part


def _spelled(chosen: Resolved) -> Any:
    """The canonical name; where there are options a list with all of them."""
    if not chosen.regularizers:
        return chosen.name
    options = dict(chosen.regularizers)
    return [
        {"name": name, **options[name].model_dump()} if name in options else name for name in chosen.name.split(" + ")
    ]


def _parts(value: Any) -> list[Any]:
    if isinstance(value, str):
        return [part.strip() for part in re.split(r"(?<!\+)\+(?!\+)", value)]  # "der++" is one name
    if isinstance(value, list | tuple):
        return [part for item in value for part in _parts(item)]
    return [value]


def _named(part: Any) -> tuple[str, Section | None]:
    """The name of one part and, for a regularizer, its options."""
    options = {"name": part} if isinstance(part, str) else part
    if not isinstance(options, Mapping) or not isinstance(options.get("name"), str):
        raise InputError(f'{part!r} is neither a name nor {{"name": ..., options}}; {_known()}')
    name = options["name"].strip()
    options = {key: value for key, value in options.items() if key != "name"}
    if name not in NAMES and not is_import_path(name):
        near = get_close_matches(name.lower(), NAMES, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise InputError(f"unknown strategy {name!r}; {hint}{_known()}")
    if row := regularizer(name):
        return name, _options(name, row.options, options)
    if options:
        sections = (
            "schedule, trigger, memory and buffer" if name in PRESETS else "synthesis, filters, curriculum and storage"
        )
        raise InputError(
            f"strategy {name!r} takes no option {str(min(options, key=str))!r}; "
            f"its settings stand in the sections {sections}"
        )
    return name, None


def _options(name: str, section: type[Section], options: dict[Any, Any]) -> Section:
    """The options of a regularizer, checked."""
    values = {str(key): value for key, value in options.items()}
    try:
        return section.model_validate(values)
    except ValidationError as error:
        raise problem_report(problems_of(error, section, values), f"options of {name!r}", {}) from None


def _checked(named: list[tuple[str, Section | None]], value: Any) -> dict[str, Section | None]:
    """The parts by name, after a look at how many stand there and which exclude each other."""
    parts = dict(named)
    if not parts:
        raise InputError(f"{value!r} names no strategy; {_known()}")
    if len(parts) < len(named):
        twice = next(name for name, _ in named if [other for other, _ in named].count(name) > 1)
        raise InputError(f"{twice!r} stands twice; name it once")
    for table, what in ((PRESETS, "replay strategies"), (SOURCES, "sources of synthetic data")):
        found = [name for name in parts if name in table]
        if len(found) > 1:
            raise InputError(f"{' + '.join(found)!r} names {len(found)} {what}; a run takes one of them")
    if AUTO in parts and len(parts) > 1:
        raise InputError("'auto' chooses the whole strategy and stands alone; leave it out to choose yourself")
    others = [name for name in parts if name not in ("none", "joint")]
    if "joint" in parts and others:
        raise InputError(f"'joint' trains all tasks in one stage and stands alone; leave out {' and '.join(others)}")
    for pair, reason in CLASHES.items():
        if pair <= parts.keys():
            names = " + ".join(name for name in REGULARIZERS if name in pair)
            raise InputError(f"{names!r} do not go together: {reason}")
    replaying = (*SOURCES, *(name for name, row in REGULARIZERS.items() if row.preset))
    rehearsing = [name for name in others if name in replaying] if "none" in parts else []
    if rehearsing:
        raise InputError(f"'none' replays nothing and {rehearsing[0]!r} does; leave one of them out")
    return {name: parts[name] for name in parts if name != "none" or not others}


def _known() -> str:
    return f"known are {', '.join(NAMES)}, and my_package.module:MyStrategy"
