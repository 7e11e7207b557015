"""What a field allows, in words, and validation errors as one line each."""

from __future__ import annotations

import re
import sys
import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from retain.config_yaml import KeyPath, Lines, nearest
from retain.types import InputError

SHOWN = 20  # problems of one message
Problem = tuple[KeyPath, str]


def allowed(annotation: Any, metadata: tuple | list = ()) -> str:
    """The values a field takes: `0 to 0.9`, `one of a, b`, `a whole number of at least 1, or null`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        field = FieldInfo.from_annotation(annotation)
        return field.description or allowed(field.annotation, field.metadata)
    if origin in (Union, types.UnionType):
        return ", or ".join(allowed(argument) for argument in arguments)
    if origin is Literal:
        names = [str(one).lower() if isinstance(one, bool) else str(one) for one in arguments]
        return f"one of {', '.join(names)}" if len(names) > 1 else names[0]
    if annotation in (int, float):
        return _bounds(annotation, metadata)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"a section with the keys {', '.join(annotation.model_fields)}"
    if origin is list:
        item = "" if arguments == (Any,) else f" of {allowed(arguments[0])}"
        return f"a list{item}"
    names = {bool: "true or false", str: "text", type(None): "null"}
    return names.get(annotation, "a mapping")


def allowed_in(model: type[BaseModel], name: str) -> str:
    """What field `name` of a section allows."""
    field = model.model_fields[name]
    return field.description or allowed(field.annotation, field.metadata)


def problems_of(error: ValidationError, model: type[BaseModel], values: Any) -> list[Problem]:
    """One line for each wrong or unknown key in a pydantic error, in the order of the fields."""
    grouped: dict[KeyPath, list[dict]] = {}
    for detail in error.errors():
        path, _, _ = _locate(model, detail["loc"])
        if detail["type"] in ("extra_forbidden", "missing"):
            path = detail["loc"]
        grouped.setdefault(path, []).append(detail)
    return [(path, _describe(path, details, model, values)) for path, details in grouped.items()]


def problem_report(problems: list[Problem], source: str, lines: Lines) -> InputError:
    """All problems as one error: a line each, with the file and the line or override they stand in."""
    placed = sorted(((_place(path, lines), path, text) for path, text in problems), key=_line_number)
    shown = [f"{place}{_name(path)}{text}" for place, path, text in placed[:SHOWN]]
    if len(placed) == 1:
        return InputError(f"{source}: {shown[0]}")
    more = [f"and {len(placed) - SHOWN} more"] if len(placed) > SHOWN else []
    return InputError("\n  ".join([f"{source}: {len(placed)} problems", *shown, *more]))


def _name(path: KeyPath) -> str:
    name = ".".join(str(part) if len(str(part)) <= 80 else f"{str(part)[:77]}..." for part in path)
    return f"{name}: " if name else ""


def show(value: Any) -> str:
    """A value as YAML would write it, shortened."""
    text = {True: "true", False: "false", None: "null"}[value] if _is_constant(value) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _is_constant(value: Any) -> bool:
    return value is None or isinstance(value, bool)


def _place(path: KeyPath, lines: Lines) -> str:
    for length in range(len(path), 0, -1):
        if path[:length] in lines:
            return f"{lines[path[:length]]}: "
    return ""


def _line_number(problem: tuple[str, KeyPath, str]) -> int:
    place = problem[0]
    return int(place[5:-2]) if place.startswith("line ") else sys.maxsize


def _bounds(kind: type, metadata: tuple | list) -> str:
    limits = {
        name: getattr(item, name)
        for item in metadata
        for name in ("ge", "gt", "le", "lt")
        if getattr(item, name, None) is not None
    }
    prefix = "a whole number" if kind is int else ""
    if not limits:
        return prefix or "a number"
    if "ge" in limits and "le" in limits:
        return f"{prefix}{', ' if prefix else ''}{limits['ge']:g} to {limits['le']:.10g}"
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    text = " and ".join(f"{words[name]} {limit:g}" for name, limit in limits.items())
    return f"{prefix} of {text}" if prefix else text


def _locate(model: type[BaseModel], location: tuple) -> tuple[KeyPath, type[BaseModel], FieldInfo | None]:
    """The part of a pydantic location that names keys, the last section on it, and the last field."""
    path: KeyPath = ()
    field = None
    for part in location:
        if isinstance(part, int):
            path = (*path, part)
            continue
        if part not in model.model_fields:
            break
        field, path = model.model_fields[part], (*path, part)
        section = _section(field.annotation)
        if section is None and get_origin(field.annotation) is not list:
            break
        model = section or model
    return path, model, field


def _section(annotation: Any) -> type[BaseModel] | None:
    """The section behind `Section`, `Section | None` or `list[Section]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = [_section(argument) for argument in get_args(annotation)]
    return next(filter(None, found), None)


def _describe(path: KeyPath, details: list[dict], model: type[BaseModel], values: Any) -> str:
    detail = details[0]
    kind = detail["type"]
    if not path:
        return "a key holds half of a surrogate pair, which is not valid Unicode; write the character"
    if kind == "extra_forbidden":
        return _unknown_key(str(path[-1]), _locate(model, path[:-1])[1], model)
    if kind == "missing":
        return "missing; it has no default"
    if kind == "value_error":
        return str(detail["ctx"]["error"])
    _, section, field = _locate(model, path)
    value = _value_at(values, path)
    if kind == "model_type":
        return f"{show(value)} is not a section; write its keys below it: {', '.join(section.model_fields)}"
    rule = field.description or allowed(field.annotation, field.metadata) if field else "another type"
    if isinstance(path[-1], int) and field is not None:
        rule = allowed(_item(field.annotation))
    return _wrong_value(value, {detail["type"] for detail in details}, rule, field)


def _item(annotation: Any) -> Any:
    return get_args(annotation)[0] if get_origin(annotation) is list else annotation


def _wrong_value(value: Any, kinds: set[str], rule: str, field: FieldInfo | None) -> str:
    names = _choices(field.annotation) if field else []
    close = nearest(value, names) if isinstance(value, str) else None
    if kinds == {"literal_error"}:
        hint = f"; did you mean {close}?" if close else ""
        return f"{show(value)} is not {rule}{hint}"
    reason = "is not allowed"
    if "finite_number" in kinds:
        reason = "is not a finite number"
    elif kinds <= {"less_than", "less_than_equal"}:
        reason = "is too large"
    elif kinds <= {"greater_than", "greater_than_equal"}:
        reason = "is too small"
    elif kinds in ({"int_type"}, {"float_type"}):
        reason = "is not a whole number" if kinds == {"int_type"} else "is not a number"
        if isinstance(value, str) and re.fullmatch(r"[-+.\deE]*\d[-+.\deE]*", value):
            reason += " but text; remove the quotes"
    elif kinds == {"string_type"}:
        reason = "is not text; put it in quotes" if isinstance(value, (int, float)) else "is not text"
    hint = f"; did you mean {close}?" if close else ""
    return f"{show(value)} {reason} (allowed: {rule}){hint}"


def _choices(annotation: Any) -> list[str]:
    """Every word a field takes."""
    if get_origin(annotation) is Literal:
        return [str(argument) for argument in get_args(annotation)]
    return [name for argument in get_args(annotation) for name in _choices(argument)]


def _unknown_key(key: str, section: type[BaseModel], root: type[BaseModel]) -> str:
    sections = {f"{name}.": _section(field.annotation) for name, field in root.model_fields.items()}
    found = [
        f"{prefix}{key}"
        for prefix, other in {"": root, **sections}.items()
        if other and other is not section and key in other.model_fields
    ]
    close = " or ".join(found) or nearest(key, list(section.model_fields))
    if close:
        return f"unknown key; did you mean {close}?"
    return f"unknown key (allowed: {', '.join(section.model_fields)})"


def _value_at(values: Any, path: KeyPath) -> Any:
    for part in path:
        if isinstance(values, list) and isinstance(part, int):
            values = values[part]
        elif isinstance(values, dict):
            values = values.get(part)
        else:
            return values
    return values
