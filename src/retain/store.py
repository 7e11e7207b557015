"""Synthetic samples and demonstrations on disk: compressed JSON lines in a stage's folder."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from retain.reading import parse_json, read_stream, regular
from retain.types import InputError

SUFFIXES = {"gzip": ".gz", "zstd": ".zst"}
COMPRESSIONS = {suffix: name for name, suffix in SUFFIXES.items()}
NAME = "synthetic.jsonl"
DEMONSTRATIONS = "demonstrations.jsonl"


def write_lines(path: Path, rows: Iterable[dict[str, Any]], compression: str | None = None) -> Path:
    """Write rows as JSON lines; the compression's suffix is added to the name. Returns the path."""
    path = path.with_name(path.name + SUFFIXES.get(compression, ""))
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    with pa.output_stream(str(path), compression=compression) as stream:
        stream.write(text.encode("utf-8", errors="surrogatepass"))
    return path


def read_lines(path: Path, texts: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """The rows of a file of JSON lines, decompressed by its suffix; each has a text under every key of `texts`.

    An InputError names a broken file, and the line.
    """
    try:
        with pa.input_stream(str(regular(path)), compression=COMPRESSIONS.get(path.suffix)) as stream:
            text = read_stream(stream, path).decode("utf-8", errors="surrogatepass")
        lines = text.split("\n")  # U+2028 ends no line
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield _row(line, number, texts)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except InputError:
        raise
    except (OSError, ValueError, pa.ArrowException) as error:
        raise InputError(f"{path}: is not what a run wrote or is broken ({error})") from None


def _row(line: str, number: int, texts: Sequence[str]) -> dict[str, Any]:
    try:
        row = parse_json(line)
    except ValueError as error:
        reason = str(error).replace("at line 1, column", "at column")
        raise ValueError(f"line {number}: {reason}") from None
    lacks = [key for key in texts if not isinstance(row, dict) or not isinstance(row.get(key), str)]
    if lacks:
        raise ValueError(f'line {number}: no text under "{lacks[0]}"')
    return row


def synthetic_file(folder: Path) -> Path | None:
    """The file of the samples written at a stage's end, if there is one."""
    return next((path for suffix in SUFFIXES.values() if (path := folder / f"{NAME}{suffix}").is_file()), None)
