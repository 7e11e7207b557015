"""Read a run's journal, whoever wrote it: each record has the fields that its kind needs, of the right type."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from retain.reading import parse_json, read_lines
from retain.types import InputError

REQUIRED = {
    "step": ("stage", "global_step"),
    "event": ("stage", "global_step"),
    "plan": ("stage",),
    "stage_start": ("stage",),
    "evaluation": ("row", "task"),
    "synthesis": ("stage", "task"),
    "curriculum": ("stage", "step"),
    "rollback": ("stage",),
}
REDONE = ("step", "event", "synthesis", "curriculum")
MOST = {"stage": 10_000, "row": 10_000} | dict.fromkeys(
    ("step", "global_step", "steps", "buffer", "replayed", "new", "tokens", "kept", "asked"), 10**12
)
TEXTS = ("kind", "task", "time", "when", "account")
NUMBERS = (
    "ratio",
    "new_loss",
    "replay_loss",
    "old_loss",
    "time_unit",
    "seconds",
    "generated",
    "nll",
    "generated_tokens",
)


def read_journal(path: Path) -> list[dict[str, Any]]:
    """The journal's records. A torn last line (the run was killed while writing) is left out."""
    records: list[dict[str, Any]] = []
    broken: str | None = None
    for number, line in read_lines(path):
        if not line.strip():
            continue
        if broken:
            raise InputError(broken)
        try:
            record = parse_json(line)
        except ValueError as error:
            reason = str(error).replace("at line 1, column", "at column")
            broken = f"{path}, line {number}: not valid JSON ({reason}); fix or delete it"  # but for the last line
            continue
        if problem := _problem(record):
            raise InputError(f"{path}, line {number}: {problem}; fix or delete the line")
        records.append(record)
    return records


def _problem(record: Any) -> str | None:
    """What keeps a value from being a record."""
    if not isinstance(record, dict) or not isinstance(record.get("kind"), str):
        return 'not an object with a "kind"'
    kind = record["kind"][:40]
    missing = [key for key in REQUIRED.get(kind, ()) if record.get(key) is None]
    if missing:
        return f'"{kind}" lacks {", ".join(missing)}'
    events = record.get("events")
    if not isinstance(events, list | None) or not all(isinstance(event, dict) for event in events or ()):
        return f'"{kind}": events is no list of objects'
    for part in (record, *(events or ())):
        keys = part.keys() if kind in REQUIRED else part.keys() & {"stage", "row"}
        if wrong := [key for key in part if key in keys and not _fits(key, part[key])]:
            return f'"{kind}": {wrong[0]} has a value that no run writes'
    return None


def _fits(key: str, value: Any) -> bool:
    if value is None:
        return True
    if key in MOST:
        return type(value) is int and 0 <= value <= MOST[key]
    if key in TEXTS:
        return isinstance(value, str)
    if key in NUMBERS:
        return (isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300) or value != value
    if key == "by_task":
        return isinstance(value, dict) and all(_fits("replayed", count) for count in value.values())
    return True


def current(journal: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The journal without what a resumed run did over: a stage that starts again replaces its first try, and a
    rollback takes away what came after the stage it went back to."""
    kept: list[dict[str, Any]] = []
    for record in journal:
        if record["kind"] == "rollback":
            back = record["stage"]
            kept = [old for old in kept if (old.get("stage") or old.get("row") or 0) <= back and old["kind"] != "end"]
        if record["kind"] == "stage_start":
            redone = record["stage"]
            kept = [old for old in kept if old["kind"] not in REDONE or old["stage"] < redone]
        kept.append(record)
    return kept
