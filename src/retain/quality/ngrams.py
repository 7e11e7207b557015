"""Words and word n-grams of many texts as arrays of hashes."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from retain.memory.random import hash_ids

# Chinese and Japanese are written without spaces, so each of their characters is a word.
_CHARACTERS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
WORD = re.compile(f"[{_CHARACTERS}]|[^\\W{_CHARACTERS}]+")
_BASE = np.uint64(0x9E3779B97F4A7C15)


def words(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation."""
    return WORD.findall(text.lower())


def ngram_hashes(texts: Sequence[str], n: int) -> tuple[np.ndarray, np.ndarray]:
    """64-bit hashes (G,) of all word n-grams in order, and which text each is of (G,) int64, ascending.

    A text of fewer than n words is one n-gram, its words; one without words is one too, its characters. So
    every text has at least one, and short texts match where they are equal.
    """
    number: dict[str, int] = {"": 0}
    rows = [words(text) or [text] for text in texts]
    padded = [row + [""] * (n - len(row)) for row in rows]
    lengths = np.array([len(row) for row in padded], dtype=np.int64)
    ids = np.fromiter((number.setdefault(word, len(number)) for row in padded for word in row), np.int64)
    hashes = hash_ids(number)[ids]
    count = max(len(hashes) - n + 1, 0)
    rolled = np.zeros(count, dtype=np.uint64)
    for offset in range(n):
        rolled = rolled * _BASE + hashes[offset : offset + count]
    owners = np.repeat(np.arange(len(rows)), lengths)
    inside = owners[:count] == owners[n - 1 : n - 1 + count]
    return rolled[inside], owners[:count][inside]
