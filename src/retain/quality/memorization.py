"""Near-verbatim overlap of generated texts with the training texts (SSR 9.9), while these are at hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from retain.memory.random import hash_ids
from retain.quality.ngrams import ngram_hashes, words

SPAN = 3  # words in a row that count as copied
LONG = 8  # words from which an answer counts as a text
TELLING = 8  # characters from which a shorter answer may tell whose it is; numbers and names of less meet by chance


class TrainingTexts:
    """Hashed word trigrams of the training texts and which text each is of; made once and asked often.

    Short answers repeat by their nature, but one of at least 8 characters that stands once in the data is `telling`.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        counts = Counter(map(_plain, texts))
        telling = [text for text, count in counts.items() if count == 1 and len(text) >= TELLING]
        self._telling = set(hash_ids(telling).tolist())
        hashes, owners = ngram_hashes(texts, SPAN)
        order = np.argsort(hashes, kind="stable")
        self._hashes, self._owners, self._count = hashes[order], owners[order], len(texts)

    def overlap(self, texts: Sequence[str]) -> np.ndarray:
        """Share of each text's words in runs of at least 3 in common with one training text, the largest, (N,).

        A text of fewer than 3 words is 1 where a training text equals it, else 0.
        """
        hashes, owners = ngram_hashes(texts, SPAN)
        begins = np.searchsorted(self._hashes, hashes, side="left")
        ends = np.searchsorted(self._hashes, hashes, side="right")
        limits = np.searchsorted(owners, np.arange(len(texts) + 1))
        return np.array([self._largest(begins[i:j], ends[i:j]) for i, j in pairwise(limits)])

    def telling(self, texts: Sequence[str]) -> list[int]:
        """Rows of the texts that are a whole training text of at least 8 characters, one that stands there once."""
        hashes = hash_ids(map(_plain, texts)).tolist()
        return [row for row, one in enumerate(hashes) if one in self._telling]

    def _largest(self, begins: np.ndarray, ends: np.ndarray) -> float:
        """The overlap of one text; the training texts with its p-th trigram stand from begins[p] to ends[p]."""
        covered = np.zeros(self._count, dtype=np.int64)
        latest = np.full(self._count, -SPAN)
        for position in np.flatnonzero(begins < ends).tolist():
            found = self._owners[begins[position] : ends[position]]
            covered[found] += np.minimum(position - latest[found], SPAN)
            latest[found] = position
        return float(covered.max(initial=0) / (len(begins) + SPAN - 1))


def _plain(text: str) -> str:
    return " ".join(words(text))
