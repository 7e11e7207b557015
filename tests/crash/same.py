"""Whether two run directories hold the same but for times: every file, and the journal line by line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

CLOCKED = {"time", "seconds", "train_seconds", "eval_seconds", "peak_memory_bytes"}
SKIPPED = {".lock", ".holder.json", "report.html"}  # the page shows times


def contents(out: Path) -> dict[str, Any]:
    """What lies in a run's directory, by relative path, without times, its own path and what says it was resumed."""
    files = sorted(path for path in out.rglob("*") if path.is_file() and path.name not in SKIPPED)
    return {path.relative_to(out).as_posix(): _content(path, out) for path in files}


def differences(one: Path, other: Path) -> list[str]:
    """The files that only one of two run directories has, or that differ, and where."""
    a, b = contents(one), contents(other)
    return [_difference(name, a.get(name), b.get(name)) for name in sorted({*a, *b}) if a.get(name) != b.get(name)]


def _content(path: Path, out: Path) -> Any:
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    content = path.read_bytes().replace(str(out).encode(), b"").replace(str(out.parent).encode(), b"")
    if path.suffix == ".json":
        return _timeless(json.loads(content))
    if path.suffix == ".jsonl":
        lines = [_timeless(json.loads(line)) for line in content.splitlines()]
        return [line for line in lines if line.get("kind") not in ("resume", "stopped")]
    return content


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(one) for key, one in value.items() if key not in CLOCKED}
    return [_timeless(one) for one in value] if isinstance(value, list) else value


def _difference(name: str, one: Any, other: Any) -> str:
    if one is None or other is None:
        return f"{name}: only in {'the second' if one is None else 'the first'}"
    if isinstance(one, list) and isinstance(other, list):
        row = next((k for k, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
        return f"{name}: {len(one)} and {len(other)} rows, from {row} on {one[row : row + 1]} {other[row : row + 1]}"
    return f"{name}: differs"
