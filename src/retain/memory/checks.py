"""What the memory accepts. Every message starts with the argument it is about."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np

from retain.config_yaml import nearest
from retain.sections import MemoryModel
from retain.types import InputError

LAST_STEP = 2**53
"""Steps stay exact as float64."""
SMALLEST, LARGEST = 1e-50, 1e50
"""Beyond these magnitudes a product of parameters could overflow."""


def shown(value: Any) -> str:
    """A short display of any value for a message."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 200:
        return f"an integer of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def hint(name: Any, known: Collection[str]) -> str:
    """The nearest known name, if one is near, and all of them."""
    close = nearest(str(name), list(known))
    return f"{f'did you mean {close}? ' if close else ''}Allowed: {', '.join(known)}"


def is_number(value: Any) -> bool:
    """A real number that is no truth value."""
    return isinstance(value, Real) and not isinstance(value, (bool, np.bool_))


def check_step(step: Any, latest: int) -> int:
    """An integer step that does not go back."""
    if not isinstance(step, Integral) or isinstance(step, bool):
        raise InputError(f"step = {shown(step)}: must be an integer from 0 to 2**53.")
    if not 0 <= step <= LAST_STEP:
        raise InputError(f"step = {shown(step)}: must be from 0 to 2**53.")
    if step < latest:
        raise InputError(f"step = {step}: comes before step {latest}, which has been. Steps must not go back.")
    return int(step)


def check_count(name: str, value: Any) -> int:
    """An integer that is not negative."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 0:
        raise InputError(f"{name} = {shown(value)}: must be an integer of at least 0.")
    return int(value)


def check_unit(time_unit: Any) -> float:
    """The length of a tick in steps."""
    if not is_number(time_unit) or not SMALLEST <= time_unit <= LARGEST:
        raise InputError(f"time_unit = {shown(time_unit)}: must be a number above 0 (steps per tick, 1e-50 to 1e50).")
    return float(time_unit)


def check_ids(ids: Iterable[str]) -> list[str]:
    """Ids that are strings, each once."""
    if isinstance(ids, (str, bytes)) or not isinstance(ids, Iterable):
        raise InputError(f"ids = {shown(ids)}: must be a list of strings.")
    ids = list(ids)
    seen: set[str] = set()
    for position, one in enumerate(ids):
        if not isinstance(one, str):
            raise InputError(f"ids[{position}] = {shown(one)}: must be a string.")
        if one in seen:
            raise InputError(f"ids[{position}] = {shown(one)}: is twice in one call. Give each id once.")
        seen.add(one)
    return ids


def check_losses(losses: Sequence[float | None], count: int, missing: bool = False) -> np.ndarray:
    """Finite losses, as many as ids, shape (count,); with `missing`, None or NaN stands for no loss."""
    if isinstance(losses, (str, bytes)) or not isinstance(losses, Iterable):
        raise InputError(f"losses = {shown(losses)}: must be a list of numbers, one for each id.")
    losses = list(losses)
    if len(losses) != count:
        raise InputError(f"losses: has {len(losses)} entries for {count} ids. Give one loss for each id.")
    return np.array([_loss(one, place, missing) for place, one in enumerate(losses)], dtype=np.float64)


def _loss(value: Any, position: int, missing: bool) -> float:
    if missing and value is None:
        return math.nan
    try:
        number = float(value) if is_number(value) else math.inf
    except OverflowError:
        number = math.inf
    if math.isinf(number) or (math.isnan(number) and not missing):
        raise InputError(f"losses[{position}] = {shown(value)}: must be a finite number.")
    return number


def parameter_problems(config: MemoryModel) -> list[str]:
    """Parameters whose products could overflow; empty when all is well."""
    problems = []
    if config.s_min < SMALLEST:
        problems.append(f"s_min = {config.s_min}: must be at least {SMALLEST}.")
    for name in MemoryModel.model_fields:
        value = getattr(config, name)
        if is_number(value) and abs(value) > LARGEST:
            problems.append(f"{name} = {value}: must be at most {LARGEST} in magnitude.")
    return problems
