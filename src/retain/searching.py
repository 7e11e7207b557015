"""Find a text in whatever a run's directory holds: JSON, Parquet, compressed lines, pages, and plain bytes."""

from __future__ import annotations

import html
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from retain.quality.ngrams import words
from retain.store import COMPRESSIONS
from retain.types import InputError

IDENTIFIERS = ("id", "task", "kind", "metric")  # what these hold are names, not texts
PLAIN = (".yaml", ".md", ".txt", ".csv", ".jinja", ".tmp")
LEAST_BYTES = 8  # of a text that is looked for in files of numbers, where fewer bytes would meet by chance
CHUNK = 1 << 24


def fold(text: str) -> str:
    """The text with Unicode NFKC, case and runs of white space made one."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


@dataclass(frozen=True)
class Sought:
    """What is looked for: `literal` texts, folded; `phrases`, words in a row; and what counts where it is the `whole`.

    raw: the first two as they are written, for files of bytes.
    """

    literal: frozenset[str]
    phrases: frozenset[str]
    whole: frozenset[str]
    raw: tuple[bytes, ...]

    @classmethod
    def of(cls, literal: Iterable[str] = (), phrases: Iterable[str] = (), whole: Iterable[str] = ()) -> Sought:
        """The texts to look for; those that are blank are none."""
        literal, phrases = list(literal), list(phrases)
        raw = (text.encode("utf-8", "surrogatepass") for text in literal + phrases)
        kept = (frozenset(filter(None, map(how, texts))) for how, texts in
                ((fold, literal), (_phrase, phrases), (_phrase, whole)))  # fmt: skip
        return cls(*kept, tuple(one for one in raw if len(one) >= LEAST_BYTES))

    def is_in(self, text: str) -> bool:
        """Whether the text holds what is sought."""
        if self.literal and any(one in fold(text) for one in self.literal):
            return True
        phrase = _phrase(text) if self.phrases or self.whole else ""
        return phrase in self.whole or any(one in phrase for one in self.phrases)

    def is_in_value(self, value: Any) -> bool:
        """Whether any text in a plain value does; identifiers are not looked at."""
        return any(map(self.is_in, texts_of_value(value)))

    def is_in_file(self, path: Path) -> bool:
        """Whether any text of a file does. A file that cannot be read as what its name says is read as bytes."""
        try:
            texts = texts_of_file(path)
            return self._is_in_bytes(path) if texts is None else any(map(self.is_in, texts))
        except (ValueError, OSError, pa.ArrowException, RecursionError):
            return self._is_in_bytes(path)

    def _is_in_bytes(self, path: Path) -> bool:
        longest, tail = max(map(len, self.raw), default=1), b""
        with open(path, "rb") as file:
            while chunk := file.read(CHUNK):
                if any(one in tail + chunk for one in self.raw):
                    return True
                tail = chunk[1 - longest :] if longest > 1 else b""
        return False


def _phrase(text: str) -> str:
    """The words of a text between spaces, so that a phrase in it begins and ends where words do."""
    found = words(unicodedata.normalize("NFKC", text)) or fold(text).split()
    return f" {' '.join(found)} " if found else ""


def texts_of_value(value: Any) -> Iterator[str]:
    """Every text in a plain value at any depth, but for identifiers; keys of an object are texts too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield str(key)
            if key not in IDENTIFIERS or not isinstance(item, str):
                yield from texts_of_value(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from texts_of_value(item)


def texts_of_file(path: Path) -> Iterator[str] | None:
    """The texts of a file by its name; None for one that holds no text, such as tensors. Raises what reading raises."""
    name = path.name.removesuffix(".tmp").removesuffix(".part")
    inner = Path(name).with_suffix("") if Path(name).suffix in COMPRESSIONS else Path(name)
    match inner.suffix:
        case ".parquet":
            return (text for row in parquet_rows(path) for text in texts_of_value(row))
        case ".jsonl":
            return (text for line in lines_of(path, Path(name).suffix) for text in texts_of_value(value_of(line)))
        case ".json":
            return texts_of_value(json.loads(path.read_text(encoding="utf-8")))
        case ".html":
            page = re.split(r"<[^>]*>", path.read_text(encoding="utf-8"))
            return (html.unescape(text) for text in page)
        case suffix if suffix in PLAIN or not suffix:
            text = path.read_text(encoding="utf-8")
            return iter([text, *text.splitlines()])
    return None


def lines_of(path: Path, suffix: str) -> list[str]:
    """The lines of a file that may be compressed, without what ends them. A broken file is an InputError."""
    try:
        with pa.input_stream(str(path), compression=COMPRESSIONS.get(suffix)) as stream:
            return stream.read().decode("utf-8", errors="surrogatepass").split("\n")
    except (OSError, ValueError, pa.ArrowException) as error:
        raise InputError(f"{path}: is broken ({error}); restore or delete it") from None


def value_of(line: str) -> Any:
    """The value of a line of JSON; a line that is none is a text itself."""
    try:
        return json.loads(line) if line.strip() else None
    except (ValueError, RecursionError):
        return line


def parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet file with their text columns alone."""
    file = pq.ParquetFile(path)
    texts = [field.name for field in file.schema_arrow if not pa.types.is_primitive(field.type)]
    columns = [name for name in texts if name not in IDENTIFIERS]
    for batch in file.iter_batches(columns=columns) if columns else ():
        yield from batch.to_pylist()
