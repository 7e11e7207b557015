"""Who works in a run's directory: a lock that ends with its process, and a record that outlives a violent end."""

from __future__ import annotations

import json
import os
import socket
import weakref
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from retain.types import InputError

LOCK, HOLDER = ".lock", ".holder.json"
TAIL = 1 << 16  # bytes of a journal that hold its last lines
LESS_MEMORY = "training.micro_batch_size or evaluation.batch_size (these two may change in a directory)"


def hold(folder: Path) -> tuple[FileLock, dict[str, Any] | None]:
    """Lock a run's directory for this process, and the record of a last one that ended without taking it back.

    The operating system drops the lock of a process that ends in whatever way, so a stale lock never blocks; the
    record goes at a normal end, so one that is still there tells of another. InputError where a process holds it.
    """
    lock = FileLock(folder / LOCK, is_singleton=True)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(
            f"output: {folder} is in use by another process{_who(folder)}; wait for it, or use --out"
        ) from None
    if lock.lock_counter > 1:  # by this process
        return lock, None
    left = read_holder(folder)
    record = {"pid": os.getpid(), "host": socket.gethostname(), "boot": _boot(), "since": _now()}
    (folder / HOLDER).write_text(json.dumps(record) + "\n", encoding="utf-8")
    weakref.finalize(lock, _take_back, folder.absolute() / HOLDER, os.getpid())
    return lock, left


def read_holder(folder: Path) -> dict[str, Any] | None:
    """The record of the process that holds or held a directory; None where there is none that can be read."""
    try:
        with open(folder / HOLDER, "rb") as file:
            found = json.loads(file.read(TAIL))
        pid, host, since = found["pid"], found["host"], found["since"]
        good = isinstance(pid, int) and isinstance(host, str) and isinstance(since, str)
        return {"pid": pid, "host": host[:100], "since": since[:40], "boot": found.get("boot")} if good else None
    except (OSError, ValueError, TypeError, KeyError, RecursionError, AttributeError):
        return None


def explain_end(left: dict[str, Any], journal: Path) -> tuple[str, dict[str, Any]] | None:
    """What to say of a process that ended without a word, and where it was; None if its run had ended before."""
    place = last_place(journal)
    if place is None:
        return None
    where = f"at step {place['step']} of stage {place['stage']}" if place.get("step") else "outside of training"
    who = f"process {left['pid']} on {left['host']}, since {left['since']}"
    text = f"the last run here ({who}) stopped without a word {where}; what was finished is kept"
    if left["host"] == socket.gethostname() and left["boot"] != _boot():
        return f"{text}. The machine has been started again since", place
    return f"{text}. If the system's memory killer ended it (`dmesg` tells), lower {LESS_MEMORY}", place


def last_place(journal: Path) -> dict[str, Any] | None:
    """{"stage", "step"} of the last step that a journal tells of, empty between stages; None after its end."""
    try:
        with open(journal, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
            lines = file.read(TAIL).split(b"\n")
    except OSError:
        return {}
    for line in reversed(lines):
        try:
            record = json.loads(line)
            kind = record["kind"]
        except (ValueError, TypeError, KeyError, RecursionError):
            continue  # torn, or cut by the limit
        if kind == "end":
            return None
        if kind in ("step", "stage_start"):
            return {"stage": record.get("stage"), "step": record.get("step") if kind == "step" else 0}
        if kind in ("stage_end", "start"):
            return {}
    return {}


def _who(folder: Path) -> str:
    record = read_holder(folder)
    return f" ({record['pid']} on {record['host']}, since {record['since']})" if record else ""


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _boot() -> str | None:
    """What tells one start of the machine from the next, where the system says it."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return None


def _take_back(path: Path, pid: int) -> None:
    if os.getpid() == pid:  # a forked child runs this too
        path.unlink(missing_ok=True)
