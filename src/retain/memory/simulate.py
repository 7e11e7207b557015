"""The memory model alone, driven by a trace of operations (DESIGN, "Interfaces")."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from pydantic import ValidationError

from retain.config_errors import problems_of
from retain.memory.checks import check_step, check_unit, hint, parameter_problems, shown
from retain.memory.state import MemoryState
from retain.sections import MemoryModel
from retain.types import InputError

OPERATIONS = {
    "add": {"ids": True, "step": True, "losses": False},
    "observe": {"ids": True, "losses": True},
    "refresh": {"step": True},
    "review": {"ids": True, "losses": True, "step": True},
    "remove": {"ids": True},
    "unit": {"time_unit": True, "step": True},
    "query": {"step": True},
}
"""The keys of each operation, and whether it needs them."""


def simulate(trace: dict[str, Any]) -> dict[str, Any]:
    """Run a trace and answer its queries.

    trace: {"config": memory fields with a number as `time_unit`, "ops": [{"op": name, ...}, ...]}.
    Returns {"queries": [{"step", "samples": {id: fields}}]}, None for no loss and for a weight of 0.
    Raises InputError, naming the operation and the field.
    """
    _check_keys("trace", trace, {"config": True, "ops": True})
    config = parse_config(trace["config"])
    if not isinstance(trace["ops"], list):
        raise InputError(f"ops = {shown(trace['ops'])}: must be a list of operations.")
    state = MemoryState(config, time_unit=config.time_unit)
    queries, latest = [], 0
    for position, operation in enumerate(trace["ops"]):
        name = _check_operation(f"ops[{position}]", operation)
        values = {key: value for key, value in operation.items() if key != "op"}
        try:
            if "step" in values:
                latest = check_step(values["step"], latest)
            if name == "query":
                queries.append({"step": latest, "samples": _samples(state, latest)})
            else:
                method = state.set_unit if name == "unit" else getattr(state, name)
                method(**values)
        except InputError as error:
            raise InputError(f"ops[{position}].{error}") from None
    return {"queries": queries}


def parse_config(config: Any) -> MemoryModel:
    """The memory fields of a trace. Raises InputError with all that is wrong with them."""
    if not isinstance(config, dict):
        raise InputError(f"config = {shown(config)}: must be an object of memory fields.")
    problems = _unit_problems(config)
    try:
        model = MemoryModel.model_validate({**config, "time_unit": 1.0})
    except ValidationError as error:
        problems += [f"{'.'.join(map(str, path))}: {text}" for path, text in problems_of(error, MemoryModel, config)]
    else:
        problems += parameter_problems(model)
        if model.priority == "confidence":
            problems.append("priority = 'confidence': needs confidences, which a trace does not have.")
        if model.sigma_s > 0:
            problems.append(f"sigma_s = {model.sigma_s}: must be 0; a trace has no seed for the noise.")
    if problems:
        raise InputError("\n".join(f"config.{problem}" for problem in problems))
    return model.model_copy(update={"time_unit": float(config["time_unit"])})


def _unit_problems(config: dict[str, Any]) -> list[str]:
    if "time_unit" not in config:
        return ["time_unit: is missing; a simulation needs a number (steps per tick)."]
    try:
        check_unit(config["time_unit"])
    except InputError as error:
        return [str(error)]
    return []


def _check_operation(place: str, operation: Any) -> str:
    if not isinstance(operation, dict):
        raise InputError(f"{place} = {shown(operation)}: must be an object with the key 'op'.")
    if "op" not in operation:
        raise InputError(f"{place}.op: is missing. Allowed: {', '.join(OPERATIONS)}.")
    name = operation["op"]
    if not isinstance(name, str) or name not in OPERATIONS:
        raise InputError(f"{place}.op = {shown(name)}: is unknown; {hint(name, OPERATIONS)}.")
    _check_keys(place, operation, {"op": True, **OPERATIONS[name]})
    for key in ("ids", "losses"):
        value = operation.get(key, [])
        if not isinstance(value, list):
            raise InputError(f"{place}.{key} = {shown(value)}: must be a list.")
    if name == "add":
        _refuse_nan(place, operation.get("losses", []))
    return name


def _refuse_nan(place: str, losses: list[Any]) -> None:
    """In Python NaN may stand for no loss; a trace says null."""
    for position, loss in enumerate(losses):
        if isinstance(loss, float) and math.isnan(loss):
            raise InputError(f"{place}.losses[{position}] = nan: must be a finite number, or null for none.")


def _check_keys(place: str, value: Any, keys: dict[str, bool]) -> None:
    if not isinstance(value, dict):
        raise InputError(f"{place} = {shown(value)}: must be an object with {', '.join(keys)}.")
    for key in value:
        if key not in keys:
            raise InputError(f"{place}: has the unknown key {shown(key)}; {hint(key, keys)}.")
    for key, needed in keys.items():
        if needed and key not in value:
            raise InputError(f"{place}.{key}: is missing; needed: {', '.join(k for k, v in keys.items() if v)}.")


def _samples(state: MemoryState, step: int) -> dict[str, dict[str, Any]]:
    columns = {name: _plain(column) for name, column in state.snapshot(step).items()}
    ids = columns.pop("id")
    return {
        one: dict(zip(columns, values, strict=True))
        for one, values in zip(ids, zip(*columns.values(), strict=True), strict=True)
    }


def _plain(column: np.ndarray) -> list[Any]:
    """Python values; None for NaN and for minus infinity."""
    values = column.tolist()
    if column.dtype == np.float64:
        return [value if math.isfinite(value) else None for value in values]
    return values
