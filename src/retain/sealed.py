"""Files that tell whether they are whole: SHA-256 checksums, and nothing that is half-written."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from retain.files import write_text


def checksums(folder: Path, skip: Collection[str] = ()) -> dict[str, str]:
    """SHA-256 of every file below a folder by its relative path, after each one is safely on the disk.

    What stands in the folder itself under a name in `skip` is left out.
    """
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder)
        if name.parts[0] not in skip:
            with open(path, "rb") as file:
                os.fsync(file.fileno())
                found[name.as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def write_sealed(path: Path, value: Any) -> None:
    """A value as a line of JSON below a line with its checksum, whole or not at all."""
    text = json.dumps(value)
    write_text(path, f"{json.dumps({'sha256': _digest(text)})}\n{text}\n")


def read_sealed(path: Path) -> Any | None:
    """The value that `write_sealed` wrote; None where there is none or its checksum is another."""
    try:
        seal, text = path.read_text(encoding="utf-8").splitlines()
        return json.loads(text) if json.loads(seal)["sha256"] == _digest(text) else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
