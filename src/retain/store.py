"""Synthetic samples and demonstrations on disk: compressed JSON lines in a stage's folder."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from retain.types import InputError

SUFFIXES = {"gzip": ".gz", "zstd": ".zst"}
NAME = "synthetic.jsonl"


def write_lines(path: Path, rows: Iterable[dict[str, Any]], compression: str | None = None) -> Path:
    """Write rows as JSON lines; the compression's suffix is added to the name. Returns the path."""
    path = path.with_name(path.name + SUFFIXES.get(compression, ""))
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    with pa.output_stream(str(path), compression=compression) as stream:
        stream.write(text.encode("utf-8", errors="surrogatepass"))
    return path


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file of JSON lines, decompressed by its suffix; a broken file is an InputError."""
    compression = {suffix: name for name, suffix in SUFFIXES.items()}.get(path.suffix)
    try:
        with pa.input_stream(str(path), compression=compression) as stream:
            lines = stream.read().decode("utf-8", errors="surrogatepass").splitlines()
        yield from (json.loads(line) for line in lines)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError, pa.ArrowException) as error:
        raise InputError(f"{path}: is not what a run wrote or is broken ({error})") from None


def synthetic_file(folder: Path) -> Path | None:
    """The file of the samples written at a stage's end, if there is one."""
    return next((path for suffix in SUFFIXES.values() if (path := folder / f"{NAME}{suffix}").is_file()), None)
