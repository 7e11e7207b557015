"""What a configuration may name by import path, `my_package.module:Name`: a strategy or a metric of the user's own.

A configuration may come from a stranger, so a path is followed only to a module that Python can import already, that
imports retain and that defines the name; its source is read for that before any of it runs.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import inspect
import re
import sys
from importlib import metadata
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any, ClassVar

from retain.sections import Section
from retain.types import InputError

IMPORT_PATH = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)
LONGEST_PATH = 200
LARGEST_SOURCE = 1_000_000
FORM = "write my_package.module:Name"
_GIVEN: dict[str, Any] = {}  # classes and functions of the running program, by import path


class Extension:
    """What a strategy's class descends from, so that a configuration may name it.

    `Options` says which options it takes; `needs_buffer` that it reads stored samples, replayed or not.
    """

    Options: ClassVar[type[Section]] = Section
    needs_buffer: ClassVar[bool] = False


def is_import_path(name: object) -> bool:
    """Whether a name is meant as an import path; whether it leads anywhere `named` tells."""
    return isinstance(name, str) and ":" in name


def given(thing: Any) -> str:
    """The import path of a class or function that a program hands over, which stays known until it ends."""
    name = f"{getattr(thing, '__module__', '')}:{getattr(thing, '__qualname__', '')}"
    if not _well_formed(name):
        raise InputError(f"{thing!r} has no name of its own in a module; define it at a module's top")
    _GIVEN[name] = thing
    return name


def named(path: str) -> Any:
    """What an import path leads to. Raises InputError, before anything of the module runs where its source tells."""
    if path in _GIVEN:
        return _GIVEN[path]
    if not _well_formed(path):
        raise InputError(f"{path[:LONGEST_PATH]!r} is not an import path; {FORM}, letters, digits and _ only")
    module, _, name = path.partition(":")
    _check_source(module, name)
    try:
        found = vars(importlib.import_module(module)).get(name)
    except Exception as error:  # whatever the user's module raises
        reason = " ".join(str(error).split())
        raise InputError(f"{path!r}: importing {module} failed ({type(error).__name__}: {reason})") from error
    if found is None:
        raise InputError(f"{path!r}: {module} has no {name} once it is imported")
    return found


def code_of(path: str) -> dict[str, str | None]:
    """The version of the package that an import path leads into and the SHA-256 of its module's source; None where
    that is not known."""
    found = named(path)
    module = sys.modules.get(found.__module__)
    try:
        source = inspect.getsource(found if found.__module__ == "__main__" else module)
    except (OSError, TypeError):
        source = None
    packages = metadata.packages_distributions().get(path.partition(":")[0].partition(".")[0])
    return {
        "version": metadata.version(packages[0]) if packages else None,
        "sha256": source and hashlib.sha256(source.encode("utf-8", "surrogatepass")).hexdigest(),
    }


def _well_formed(path: str) -> bool:
    return len(path) <= LONGEST_PATH and IMPORT_PATH.fullmatch(path) is not None


def _check_source(module: str, name: str) -> None:
    """An InputError unless the module's source imports retain and defines the name at its top."""
    path = f"{module}:{name}"
    if module.partition(".")[0] == "retain":
        raise InputError(f"{path!r}: what retain brings goes by its short name; {FORM} for a class of your own")
    if module == "__main__":
        raise InputError(f"{path!r} was handed over in Python; hand it over again, or put it into a module and {FORM}")
    spec = _find(module)
    if spec is None:
        raise InputError(f"{path!r}: Python finds no module {module}; install it, or put its folder on PYTHONPATH")
    source = Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None
    if source is None or not source.is_file() or source.stat().st_size > LARGEST_SOURCE:
        raise InputError(f"{path!r}: {module} is no Python file of at most {LARGEST_SOURCE // 10**6} MB")
    try:
        tree = ast.parse(source.read_bytes())
    except (SyntaxError, ValueError, RecursionError, MemoryError, OSError) as error:
        raise InputError(f"{path!r}: {source} cannot be read as Python ({error})") from None
    if not any(_imports_retain(node) for node in ast.walk(tree)):
        raise InputError(f"{path!r}: {module} does not import retain, so it holds nothing for it; name another module")
    tops = [node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    if name not in tops:
        raise InputError(f"{path!r}: {module} defines no {name}; at its top are {', '.join(tops) or 'no names'}")


def _imports_retain(node: ast.AST) -> bool:
    names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
    if isinstance(node, ast.ImportFrom) and not node.level:
        names = [node.module or ""]
    return any(name.partition(".")[0] == "retain" for name in names)


def _find(module: str) -> ModuleSpec | None:
    """Where Python would find a module. `importlib.util.find_spec` would run the packages around it."""
    spec, folders, parts = None, None, module.split(".")
    for end in range(1, len(parts) + 1):
        name = ".".join(parts[:end])
        finders = (finder.find_spec for finder in sys.meta_path if hasattr(finder, "find_spec"))
        spec = next(filter(None, (find(name, folders) for find in finders)), None)
        if spec is None or (end < len(parts) and spec.submodule_search_locations is None):
            return None
        folders = spec.submodule_search_locations
    return spec
