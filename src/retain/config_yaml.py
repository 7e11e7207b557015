"""Read and write configuration YAML: strict, small, with the line of every key."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any, ClassVar

import yaml

from retain.types import InputError

MAX_BYTES = 1_000_000
MAX_NODES = 100_000
MAX_DEPTH = 40
SHOWN = 20  # problems of one message

KeyPath = tuple[str | int, ...]
Lines = dict[KeyPath, str]

# YAML 1.2 core schema. PyYAML's 1.1 reads `1e-3` as text, `no` as false and `1:30` as 90.
_FLOAT = (
    r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
_RESOLVERS = [
    ("tag:yaml.org,2002:null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("tag:yaml.org,2002:int", r"[-+]?(?:0|[1-9][0-9_]*(?:[eE]\+?[0-9]{1,2})?)", list("-+0123456789")),
    ("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789")),
    ("tag:yaml.org,2002:merge", r"<<", ["<"]),
]


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: ClassVar[dict] = {}


def _whole_number(loader: _Loader, node: yaml.ScalarNode) -> int:
    digits, _, exponent = node.value.replace("_", "").lower().partition("e")
    return int(digits) * 10 ** int(exponent or 0)


_Loader.add_constructor("tag:yaml.org,2002:int", _whole_number)


class _Dumper(yaml.SafeDumper):
    """Quotes whatever either YAML version would read as something else than text."""

    yaml_implicit_resolvers: ClassVar[dict] = {
        first: list(rules) for first, rules in yaml.SafeDumper.yaml_implicit_resolvers.items()
    }

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _tag, _pattern, _first in _RESOLVERS:
    _Loader.add_implicit_resolver(_tag, re.compile(rf"^(?:{_pattern})$"), _first)
    _Dumper.add_implicit_resolver(_tag, re.compile(rf"^(?:{_pattern})$"), _first)


def dump_yaml(values: dict[str, Any]) -> str:
    """YAML text that `parse_yaml` reads back as the same values."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def read_yaml(path: str | Path) -> tuple[dict[str, Any], Lines]:
    """The mapping in a YAML file and the line of each key; InputError for anything else."""
    path = Path(path)
    values, lines = parse_yaml(read_text(path, (".yaml", ".yml"), MAX_BYTES), str(path))
    if values is None:
        raise InputError(f"{path}: the file is empty; it needs at least `tasks:`")
    if not isinstance(values, dict):
        kind = "a list" if isinstance(values, list) else "a single value"
        raise InputError(f"{path}: {kind} stands at the top; write `key: value` lines such as `tasks: [...]`")
    return values, lines


def parse_yaml(text: str, source: str) -> tuple[Any, Lines]:
    """The value of one YAML document and the line of each key in it."""
    lines: Lines = {}
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None, lines
        _check_nodes(node, source, lines)
        return loader.construct_document(node), lines
    except InputError:
        raise
    except yaml.MarkedYAMLError as error:
        raise InputError(f"{source}{_at(error.problem_mark)}: {_advice(error)}") from None
    except yaml.YAMLError as error:
        raise InputError(f"{source}: not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise InputError(f"{source}: nested too deeply (allowed: {MAX_DEPTH} levels)") from None
    except ValueError as error:
        raise InputError(f"{source}: not valid YAML: {error}") from None


def apply_override(values: dict[str, Any], lines: Lines, override: str) -> None:
    """Set one `a.b.c=value` in place; list items go by index or by their `name`."""
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise InputError(f"override {override!r}: write key=value, such as training.epochs=2")
    value, _ = parse_yaml(text, f"override {override!r}")
    target: Any = values
    path: KeyPath = ()
    for part in parts[:-1]:
        step = _step(target, part, path, override)
        if isinstance(target, dict) and target.get(step) is None:
            target[step] = {}
        target, path = target[step], (*path, step)
    step = _step(target, parts[-1], path, override)
    target[step], path = value, (*path, step)
    for known in [known for known in lines if known[: len(path)] == path]:
        del lines[known]
    lines[path] = f"override {override!r}"


def nearest(name: str, names: list[str]) -> str | None:
    """The name most like `name`, if any is."""
    lowered = {known.lower(): known for known in reversed(names)}
    found = difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=0.6)
    return lowered[found[0]] if found else None


def _step(target: Any, part: str, path: KeyPath, override: str) -> str | int:
    """The key or index that `part` means inside `target`."""
    where = ".".join(map(str, path))
    if isinstance(target, dict):
        return part
    if not isinstance(target, list):
        raise InputError(f"override {override!r}: {where} is a value, not a section, so it has no {part!r}")
    names = [str(item.get("name")) if isinstance(item, dict) else "" for item in target]
    if part in names:
        return names.index(part)
    if part.isdecimal() and int(part) < len(target):
        return int(part)
    close = nearest(part, [name for name in names if name])
    hint = f"did you mean {close}?" if close else f"allowed: 0 to {len(target) - 1}" if target else "it is empty"
    named = f" or {', '.join(filter(None, names))}" if not close and any(names) else ""
    raise InputError(f"override {override!r}: {where} has no item {part!r}; {hint}{named}")


def read_text(path: str | Path, suffixes: tuple[str, ...], limit: int | None = None) -> str:
    """The UTF-8 text of a file of at most `limit` bytes; InputError says what stands in its place."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            data = file.read() if limit is None else file.read(limit + 1)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file{existing(path, suffixes)}") from None
    except IsADirectoryError:
        inside = existing(path / "?", suffixes)
        raise InputError(f"{path}: a directory, not a {suffixes[0]} file{inside}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    if limit is not None and len(data) > limit:
        raise InputError(f"{path}: larger than {limit // 1_000_000} MB, so hardly a configuration")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        byte = f"byte 0x{data[error.start]:02x}"
        raise InputError(f"{path}, line {line}: not UTF-8 text ({byte}); save the file as UTF-8") from None


def existing(path: Path, suffixes: tuple[str, ...] = ()) -> str:
    """`; did you mean ...?` with the nearest existing name, or what is there instead."""
    folder = path.parent
    if not folder.is_dir():
        return f"; there is no folder {folder} either"
    names = sorted(entry.name for entry in folder.iterdir())
    close = nearest(path.name, names)
    if close:
        return f"; did you mean {folder / close}?"
    found = [name for name in names if not suffixes or name.endswith(suffixes)][:5]
    return f"; found in {folder}: {', '.join(found) or 'nothing of the kind'}"


def _check_nodes(root: yaml.Node, source: str, lines: Lines) -> None:
    """Note the line of every key; refuse double keys, keys that are no text, and expansion bombs."""
    problems: list[str] = []
    stack: list[tuple[yaml.Node, KeyPath]] = [(root, ())]
    visited = 0
    while stack:
        node, path = stack.pop()
        visited += 1
        if visited > MAX_NODES or len(path) > MAX_DEPTH:
            raise InputError(
                f"{source}: too large once its aliases are written out "
                f"(allowed: {MAX_NODES} values, {MAX_DEPTH} levels)"
            )
        if isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                lines.setdefault((*path, index), f"line {item.start_mark.line + 1}")
                stack.append((item, (*path, index)))
        elif isinstance(node, yaml.MappingNode):
            problems += _check_keys(node, path, source, lines)
            stack += [(value, (*path, key.value)) for key, value in node.value]
    if problems:
        more = [f"{source}: and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        raise InputError("\n".join([*problems[:SHOWN], *more]))


def _check_keys(node: yaml.MappingNode, path: KeyPath, source: str, lines: Lines) -> list[str]:
    problems, seen = [], {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode) or not key.tag.endswith((":str", ":merge")):
            shown = key.value if isinstance(key, yaml.ScalarNode) else "a list or mapping"
            raise InputError(f"{source}, line {line}: key {shown!r} is not text; put it in quotes")
        if key.value in seen:
            where = ".".join(map(str, (*path, key.value)))
            problems.append(f"{source}: {where} stands twice (lines {seen[key.value]} and {line}); keep one")
        seen[key.value] = line
        lines.setdefault((*path, key.value), f"line {line}")
    return problems


def _at(mark: yaml.Mark | None) -> str:
    return f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""


def _advice(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or error.context or "syntax error"
    if "'\\t'" in problem:
        return "a tab; YAML is indented with spaces"
    if "python/" in problem or "could not determine a constructor" in problem:
        return f"{problem}; tags are not allowed"
    if "another document" in problem:
        return "a second document starts here (`---`); keep one document a file"
    return f"not valid YAML: {problem}"
