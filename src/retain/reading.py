"""Read files of any origin: regular ones only, of bounded size, and whatever is wrong with them is an InputError."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from retain.types import InputError

if TYPE_CHECKING:
    import pyarrow

MAX_BYTES = 1 << 30  # of a file that is read whole, and of what a compressed one may unfold to
MAX_LINE_BYTES = 10_000_000
MAX_DEPTH = 100  # levels of lists and objects in one another
BATCH_ROWS = 1024
Odd = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


@contextmanager
def foreign(source: object) -> Iterator[None]:
    """Turn what goes wrong inside, on values that `source` holds, into an InputError that names it: no run wrote such
    files."""
    try:
        yield
    except InputError as error:
        if str(source) in str(error):
            raise
        raise InputError(f"{source}: {error}") from error
    except Odd as error:
        text = " ".join(str(error).split())[:200]
        raise InputError(
            f"{source}: is not what a run wrote ({type(error).__name__}: {text}); restore it, or run it anew"
        ) from error


def regular(path: Path) -> Path:
    """The path, if a plain file is there: a pipe or a device may never end. InputError, FileNotFoundError."""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        what = "a directory" if stat.S_ISDIR(mode) else "a pipe or a device"
        raise InputError(f"{path}: {what}, not a file")
    return path


def check_links(folder: Path) -> None:
    """InputError where a link in a run's directory leads out of it, or where a pipe or a device lies in it.

    Who unpacks a run that somebody sent would else read, overwrite or delete other files through it.
    """
    root = folder.resolve()
    for place, folders, files in os.walk(root):
        for path in (Path(place) / name for name in (*folders, *files)):
            try:
                mode = os.lstat(path).st_mode
            except FileNotFoundError:  # by a run that is at work there
                continue
            if stat.S_ISLNK(mode) and not path.resolve().is_relative_to(root):
                raise InputError(f"{path}: a link that leads out of {folder}; put what it points to in its place")
            if not (stat.S_ISLNK(mode) or stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
                raise InputError(f"{path}: a pipe or a device, which no run makes; remove it")


def read_bytes(path: Path, limit: int | None = None) -> bytes:
    """The content of a file of at most `limit` bytes (MAX_BYTES by default). InputError; OSError as it comes."""
    with open(regular(path), "rb") as file:
        return read_stream(file, path, limit)


def read_stream(stream: IO[bytes], source: object, limit: int | None = None) -> bytes:
    """What a stream still holds, at most `limit` bytes. InputError where it is more."""
    limit = MAX_BYTES if limit is None else limit
    data = stream.read(limit + 1)
    if len(data) > limit:
        raise InputError(f"{source}: more than {limit:,} bytes; it is not read")
    return data


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(number from 1, line without its end) of a file; a line of more than MAX_LINE_BYTES is an InputError.

    Such a line is passed over in parts, so its length is told and never held.
    """
    with open(regular(path), "rb") as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line.rstrip(b"\n")) > MAX_LINE_BYTES:
                length = len(line)
                while not line.endswith(b"\n") and (line := file.readline(MAX_LINE_BYTES)):
                    length += len(line)
                length -= line.endswith(b"\n")
                raise InputError(
                    f"{path}, line {number}: {length:,} bytes in one line, at most "
                    f"{MAX_LINE_BYTES:,} are allowed; write one sample a line"
                )
            yield number, line.rstrip(b"\n")


def parse_json(text: str | bytes) -> Any:
    """json.loads with every failure as a ValueError in plain words, nesting of more than MAX_DEPTH levels included."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"broken JSON at line {error.lineno}, column {error.colno} ({error.msg})") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is not UTF-8") from None
    except RecursionError:
        raise ValueError("broken JSON (nested too deeply)") from None
    except ValueError:
        raise ValueError("broken JSON (a number with too many digits)") from None
    if is_deep(value):
        raise ValueError("broken JSON (nested too deeply)")
    return value


def is_deep(value: Any) -> bool:
    """Whether a value has more than MAX_DEPTH levels."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for parent in level
            if isinstance(parent, dict | list)
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, dict | list)
        ]
        if not level:
            return False
    return True


def read_json(path: Path, hint: str = "restore it") -> Any:
    """The value in a JSON file. InputError; OSError as it comes."""
    try:
        return parse_json(read_bytes(path))
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{path}: {error}; {hint}") from None


def read_table(
    path: Path,
    schema: pyarrow.Schema | None = None,
    hint: str = "restore it",
    columns: Sequence[str] | None = None,
) -> pyarrow.Table:
    """The rows of a Parquet file, at most MAX_BYTES of them once decoded. InputError; FileNotFoundError as it comes.

    schema: the columns it must have, of these types; None takes any. columns: those to read, where they are there.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(regular(path)) as file:
            if schema is not None and not file.schema_arrow.equals(schema):
                raise InputError(f"{path}: its columns are {', '.join(file.schema_arrow.names)[:200]}; {hint}")
            batches, size = [], 0
            for batch in file.iter_batches(BATCH_ROWS, columns=list(columns) if columns else None):
                batches.append(batch)
                size += batch.nbytes
                if size > MAX_BYTES:
                    raise InputError(f"{path}: more than {MAX_BYTES:,} bytes once decoded; it is not read")
            table = pyarrow.Table.from_batches(batches, None if batches else file.schema_arrow)
            table.validate(full=True)
            return table
    except (InputError, FileNotFoundError):
        raise
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError, NotImplementedError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise InputError(f"{path}: not a readable Parquet file ({reason}); {hint}") from None
