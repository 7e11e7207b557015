"""Read a data file into rows; what is wrong with the file is said with its place."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

from retain import reading
from retain.reading import parse_json, read_bytes, read_lines, read_table, regular
from retain.types import InputError

LIST_COLUMNS = ("choices", "references", "messages", "conversations")


class Row(NamedTuple):
    """A row of a file: its number from 0, its place in words, its value or what is wrong with it."""

    number: int
    place: str
    value: Any = None
    problem: str = ""


def show(value: object) -> str:
    """A value as it stands in a message: at most 60 characters, control characters escaped."""
    if isinstance(value, str):
        return repr(value[:60]) + ("…" if len(value) > 60 else "")
    text = repr(value)
    return text[:60] + ("…" if len(text) > 60 else "")


def suggest(name: str, known: list[str]) -> str:
    """A hint with the nearest of the known names, or nothing."""
    near = get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean {show(near[0])}?" if near else ""


def _line(data: bytes, offset: int) -> int:
    return data.count(b"\n", 0, offset) + 1


def decode(data: bytes, path: Path) -> str:
    """UTF-8 with or without a byte order mark; anything else is an error with its byte and line."""
    if not data.strip():
        raise InputError(f"{path}: the file is empty; it needs at least one row")
    nul = data.find(b"\0")
    if nul >= 0:
        raise InputError(
            f"{path}, line {_line(data, nul)}: a NUL byte at byte {nul}; the file is UTF-16 or "
            "no text at all; save it as UTF-8"
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        offset = error.start + (3 if data.startswith(b"\xef\xbb\xbf") else 0)
        raise InputError(
            f"{path}, line {_line(data, offset)}: byte {offset} (0x{data[offset]:02x}) is not "
            "UTF-8; save the file as UTF-8"
        ) from None


def read_jsonl(path: Path) -> Iterator[Row]:
    """Rows of a JSONL file, each with its place."""
    number = 0
    for line_number, line in enumerate(_text(path).split("\n"), 1):
        if not line.strip():
            continue
        place = f"line {line_number}"
        try:
            yield Row(number, place, parse_json(line))
        except ValueError as error:
            problem = str(error).replace("at line 1, column", "at column")
            yield Row(number, place, problem=f"{problem}: {show(line.strip())}; write one JSON object a line")
        number += 1


def _text(path: Path) -> str:
    """A file of lines, none of which is too long to be one sample."""
    return decode(b"\n".join(line for _, line in read_lines(path)), path)


def read_json(path: Path) -> Iterator[Row]:
    """Rows of a JSON list, or of the list under `data`."""
    try:
        content = parse_json(decode(read_bytes(path), path))
    except InputError:
        raise
    except ValueError as error:
        hint = "; a file with one object a line is named .jsonl" if "Extra data" in str(error) else ""
        raise InputError(f"{path}: {error}{hint}") from None
    rows = content.get("data") if isinstance(content, dict) else content
    if not isinstance(rows, list):
        raise InputError(f'{path}: found {show(content)}; expected a list of objects or {{"data": [...]}}')
    yield from (Row(number, f"row {number + 1}", value) for number, value in enumerate(rows))


def _csv_value(column: str, text: str) -> Any:
    """A cell; the list columns hold JSON lists, an empty one nothing."""
    if column not in LIST_COLUMNS:
        return text
    return parse_json(text) if text.strip() else None


def read_csv(path: Path) -> Iterator[Row]:
    """Rows of a CSV file with a header."""
    reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    limit = csv.field_size_limit(reading.MAX_LINE_BYTES)
    try:
        header = [name.strip() for name in next(reader)]
        for number, cells in enumerate(filter(None, reader)):
            place = f"line {reader.line_num}"
            if len(cells) != len(header):
                problem = f"{len(cells)} cells under {len(header)} columns; quote cells that hold a comma"
                yield Row(number, place, problem=problem)
                continue
            try:
                values = {name: _csv_value(name, cell) for name, cell in zip(header, cells, strict=True)}
                yield Row(number, place, values)
            except ValueError as error:
                yield Row(number, place, problem=f"{error}; a list in a cell is written as JSON")
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: broken CSV ({error})") from None
    finally:
        csv.field_size_limit(limit)


def read_parquet(path: Path) -> Iterator[Row]:
    """Rows of a Parquet file."""
    rows = read_table(path, hint="save it again").to_pylist()
    yield from (Row(number, f"row {number + 1}", value) for number, value in enumerate(rows))


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": read_jsonl,
    ".json": read_json,
    ".csv": read_csv,
    ".parquet": read_parquet,
}


def _folder_names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def missing(path: Path) -> str:
    """What to say of a file that is not there: the nearest name, or the folder that is missing too."""
    if not os.path.isdir(path.parent):
        return f"{path}: no such file, and the folder {path.parent} does not exist"
    return f"{path}: no such file{suggest(path.name, _folder_names(path.parent))}"


def read_file(path: Path) -> list[Row]:
    """All rows of a file by its extension."""
    if not os.path.exists(path):
        raise InputError(missing(path))
    if os.path.isdir(path):
        files = [name for name in _folder_names(path) if Path(name).suffix.lower() in READERS]
        inside = f" in it: {', '.join(files[:5])}" if files else f" ending in {', '.join(READERS)}"
        raise InputError(f"{path}: a directory; name a file{inside}")
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"{path}: unknown extension {show(path.suffix)}; use {', '.join(READERS)}")
    try:
        rows = list(reader(regular(path)))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    if not rows:
        raise InputError(f"{path}: the file has no rows; it needs at least one")
    return rows
