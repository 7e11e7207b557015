"""Files that are there whole or as they were before: written beside and renamed, and lines of JSON."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any


def drop_torn_line(path: Path) -> None:
    """Cut off the last line of a file of JSON lines, if there is one and a crash left it half-written."""
    if path.exists() and not (whole := path.read_bytes()).endswith(b"\n"):
        os.truncate(path, whole.rfind(b"\n") + 1)


def append_line(path: Path, value: dict[str, Any]) -> None:
    """Append a value to a file of JSON lines; where the disk is full the file stays as it was."""
    with open(path, "ab", buffering=0) as file:
        start = file.seek(0, os.SEEK_END)
        try:
            content = (json.dumps(value, ensure_ascii=False) + "\n").encode("utf-8", errors="backslashreplace")
            if file.write(content) != len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        except OSError:
            file.truncate(start)
            raise


def cut_lines(path: Path, again: Callable[[dict[str, Any]], bool], start: int = 0) -> None:
    """Take the objects that are written `again` out of a file of JSON lines, from byte `start` on."""
    if not path.exists():
        return
    whole = path.read_bytes()
    lines = whole[start:].splitlines(keepends=True)
    kept = [line for line in lines if not again(_object(line))]
    if len(kept) < len(lines):
        write_bytes(path, whole[:start] + b"".join(kept))


def _object(line: bytes) -> dict[str, Any]:
    """The object of a line; an empty one for a line that holds something else, which is not for us to judge."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make sure that what was renamed in a folder is so on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write a file whole or not at all."""
    scratch = path.with_name(path.name + ".tmp")
    try:
        with open(scratch, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    except OSError:
        scratch.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
