"""A finished cell of a comparison as one small JSON file: all that the table and the statistics need."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from retain.comparison import Cell, Comparison
from retain.config import Config, diff_config, make_config
from retain.files import write_text
from retain.presets import preset_of
from retain.reading import foreign, read_json
from retain.rundir import RunDir
from retain.store import read_lines
from retain.trace import REVIEW_LOG, TRACE
from retain.types import InputError

FORMAT = 1
REQUIRED = ("label", "row", "seed", "order", "config", "data", "results", "items")
LEFT_BEHIND = ("scores.json", "predictions.jsonl", TRACE, REVIEW_LOG)  # what a stage's folder holds for people
DIGITS = 6


def cell_path(comparison: Comparison, label: str) -> Path:
    """Where a cell's JSON lies."""
    return comparison.cells_folder / f"{label}.json"


def collect_cell(cell: Cell, run_dir: Path, data: Mapping[str, str], shared: list[str]) -> dict[str, Any]:
    """What a finished run tells: its results, the score of each test item at the end, and how it was made.

    data: the fingerprint of each task. shared: the rows that were taken from another run of the comparison.
    """
    results = json.loads((run_dir / "results.json").read_text(encoding="utf-8"))
    results["costs"]["bytes_kept"] = bytes_kept(cell.config, run_dir)
    values = cell.config.model_dump()
    del values["output"]
    return {
        "format": FORMAT,
        "label": cell.label,
        "row": cell.row,
        "strategy": results["strategy"],
        "seed": cell.seed,
        "order": cell.order,
        "settings": dict(cell.settings),
        "config_hash": _digest(values),
        "config": values,
        "data": dict(data),
        "shared": shared,
        "results": results,
        "items": _items(RunDir(run_dir).rows()[-1] / "predictions.jsonl"),
    }


def write_cell(path: Path, content: dict[str, Any]) -> None:
    """One line a key, so that a version control shows what changed; whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{json.dumps(key)}: {json.dumps(value, allow_nan=False)}" for key, value in content.items()]
    write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")


def read_cell(path: Path) -> dict[str, Any]:
    """A finished cell. InputError for a file that is none."""
    try:
        content = read_json(path, "delete it to run the cell again")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); delete it to run the cell again") from None
    missing = [key for key in REQUIRED if not isinstance(content, dict) or key not in content]
    if missing or content.get("format") != FORMAT:
        what = f"lacks {', '.join(missing)}" if missing else f"format {content.get('format')!r}, not {FORMAT}"
        raise InputError(f"{path}: not the JSON of a finished cell ({what}); delete it to run the cell again")
    return content


def finished_cells(comparison: Comparison) -> dict[str, dict[str, Any]]:
    """The finished cells by label, in the order of the comparison. InputError where one was run with other settings."""
    found, problems = {}, []
    for cell in comparison.cells:
        path = cell_path(comparison, cell.label)
        if not path.is_file():
            continue
        content = read_cell(path)
        if changes := cell_changes(cell, content):
            more = f" and {len(changes) - 3} more" if len(changes) > 3 else ""
            problems.append(f"{path}: {'; '.join(changes[:3])}{more}")
        found[cell.label] = content
    if problems:
        count = f"{len(problems)} finished cells were" if len(problems) > 1 else "a finished cell was"
        shown = "\n  ".join(problems[:5]) + (f"\n  and {len(problems) - 5} more" if len(problems) > 5 else "")
        raise InputError(
            f"{comparison.path}: {count} run with other settings; restore these, or use --rerun to run such cells "
            f"again:\n  {shown}"
        )
    return found


def cell_changes(cell: Cell, content: Mapping[str, Any]) -> list[str]:
    """`training.epochs: 1 -> 2` for each setting that is not what the finished cell was run with.

    Keys that are younger than the cell count as their default.
    """
    try:
        with foreign("config"):
            old = make_config(dict(content["config"]), f"cell {cell.label}")
    except InputError as error:
        return [f"its configuration is not one of this version ({error})"]
    return diff_config(old, cell.config)


def data_changes(content: Mapping[str, Any], data: Mapping[str, str]) -> list[str]:
    """The tasks whose samples are not those of the finished cell."""
    return [task for task, fingerprint in data.items() if content["data"].get(task) != fingerprint]


def bytes_kept(config: Config, run_dir: Path) -> int:
    """What a strategy carries from one stage to the next beside the adapter: samples, their memory, its own tensors."""
    kept = [path for path in RunDir(run_dir).rows()[-1].iterdir() if path.is_file() and path.name not in LEFT_BEHIND]
    if preset_of(config.strategy).keeps_buffer:
        kept += [path for path in (run_dir / "buffer").glob("*") if path.is_file()]
    return sum(path.stat().st_size for path in kept)


def _items(predictions: Path) -> dict[str, dict[str, Any]]:
    """By task the scores and losses of its test items in their order, and a digest of which items they are."""
    tasks: dict[str, list[dict]] = {}
    for line in read_lines(predictions, ("task", "id")):
        tasks.setdefault(line["task"], []).append(line)
    return {
        task: {
            "ids": _digest([line["id"] for line in lines]),
            "score": [round(line["score"], DIGITS) for line in lines],
            "nll": [round(line["nll"], DIGITS) for line in lines if "nll" in line],
        }
        for task, lines in tasks.items()
    }


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
