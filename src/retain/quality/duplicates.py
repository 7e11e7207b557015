"""Near duplicates among samples: at most a given similarity to what is kept, or a penalty (SSR 2, 3, 7; MATH 5).

Similarity is the cosine of embeddings, or of texts MinHash, the Jaccard similarity of token sets, or ROUGE-L.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from array import array
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import chain

import numpy as np

from retain.memory import random
from retain.metrics import ROUGE_BETA, rouge_l
from retain.quality.ngrams import ngram_hashes, words

PERMUTATIONS = 128
SHINGLE = 3
RECALL = 0.99  # of pairs just as similar as the limit that MinHash must find
BLOCK = 512
COMPARED = 128  # texts that a mean similarity of texts is taken over


def jaccard(first: str, second: str) -> float:
    """|A ∩ B|/(|A| + |B| - |A ∩ B|) of the two texts' sets of words (SSR 3); 1 where neither has any."""
    a, b = set(words(first)), set(words(second))
    return len(a & b) / len(a | b) if a | b else 1.0


class Cosine:
    """Cosine similarity of embeddings (N, D). A row that is zero or not finite is like nothing else.

    center: a vector (D,) to subtract first, or True for the rows' own mean. Hidden states of a language model share
    a large component: of 160 unrelated movie reviews a raw cosine of at most 0.9 keeps 31, and without the mean
    all (SmolLM2-135M).
    """

    def __init__(self, embeddings: np.ndarray, center: np.ndarray | bool = False) -> None:
        rows = np.array(embeddings, dtype=np.float64)
        usable = np.isfinite(rows).all(axis=1)
        if center is not False and usable.any():
            mean = rows[usable].mean(axis=0) if center is True else center
            # A small constant coordinate, so that rows that are all the mean itself are alike.
            rows = np.column_stack([rows - mean, np.full(len(rows), 0.02 * np.linalg.norm(mean))])
        rows[~usable] = 0.0
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        self.units = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0.0).astype(np.float32)

    def nearest_kept(self, limit: float) -> np.ndarray:
        """Largest cosine of each row to the rows kept before it, (N,); a row is kept where that is ≤ `limit`.

        max_{j kept} e_i·e_j (SSR 7 "Example Deduplication"; MATH 5); -1 where nothing is kept yet.
        """
        nearest = np.full(len(self.units), -1.0, dtype=np.float32)
        kept = np.empty_like(self.units)
        count = 0
        for start in range(0, len(self.units), BLOCK):
            block, found = self.units[start : start + BLOCK], nearest[start : start + BLOCK]
            if count:
                found[:] = (block @ kept[:count].T).max(axis=1)
            within = block @ block.T
            for row in range(len(block)):
                if found[row] <= limit:
                    kept[count] = block[row]
                    count += 1
                    np.maximum(found[row + 1 :], within[row, row + 1 :], out=found[row + 1 :])
        return nearest

    def means(self) -> np.ndarray:
        """Mean cosine of each row to all others, (N,): (e_i·Σ_j e_j - e_i·e_i)/(N - 1); 0 for a single row."""
        own = np.einsum("nd,nd->n", self.units, self.units)
        return (self.units @ self.units.sum(axis=0) - own) / max(len(self.units) - 1, 1)


class TextSimilarity(ABC):
    """Similarity of texts: an index that texts are added to, and how similar a text is to the added ones."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = texts
        self._added: list[int] = []

    @abstractmethod
    def add(self, one: int) -> None:
        """Take text number `one` in."""

    @abstractmethod
    def similarities(self, one: int, above: float | None = None) -> np.ndarray:
        """Similarity (K,) of text `one` to each added one in order; one that is not > `above` may come out lower."""

    def nearest_kept(self, limit: float) -> np.ndarray:
        """As `Cosine.nearest_kept`; exact where it is above `limit`."""
        nearest = np.full(len(self._texts), -1.0)
        for one in range(len(self._texts)):
            nearest[one] = self.similarities(one, limit).max(initial=-1.0)
            if nearest[one] <= limit:
                self.add(one)
        return nearest

    def means(self) -> np.ndarray:
        """Mean similarity (N,) of each text to the others, or to the same 128 of them, evenly spread."""
        spread = np.unique(np.linspace(0, len(self._texts) - 1, COMPARED).astype(np.int64)) if self._texts else []
        for one in spread:
            self.add(int(one))
        found = (self.similarities(one)[spread != one] for one in range(len(self._texts)))
        return np.array([others.mean() if len(others) else 0.0 for others in found])


class MinHash(TextSimilarity):
    """Jaccard similarity of word 3-shingles, estimated by 128 hashes (Broder 1997), with banding.

    Where only what is above a limit is asked for, only texts that share a band are compared: 128 = bands·rows
    with the most rows that find a pair at `limit` with probability 1 - (1 - limit^rows)^bands ≥ 0.99.
    """

    def __init__(self, texts: Sequence[str], limit: float, seed: int = 0) -> None:
        super().__init__(texts)
        self._signatures = minhash_signatures(texts, seed)
        rows = max(r for r in (1, 2, 4, 8, 16, 32) if r == 1 or 1 - (1 - limit**r) ** (PERMUTATIONS // r) >= RECALL)
        bands = self._signatures.reshape(len(texts), PERMUTATIONS // rows, rows).astype(np.uint64)
        keys = np.zeros(bands.shape[:2], dtype=np.uint64)
        for row in range(rows):
            keys = keys * np.uint64(0x9E3779B97F4A7C15) + bands[:, :, row]
        self._keys = keys.tolist()
        self._buckets: dict[tuple[int, int], list[int]] = defaultdict(list)

    def add(self, one: int) -> None:
        """Take text number `one` in."""
        for bucket in enumerate(self._keys[one]):
            self._buckets[bucket].append(len(self._added))
        self._added.append(one)

    def similarities(self, one: int, above: float | None = None) -> np.ndarray:
        """Share of the 128 hashes that text `one` has in common with each added one, (K,)."""
        own = self._signatures[one]
        if above is None:
            return (self._signatures[self._added] == own).mean(axis=1)
        shares = np.zeros(len(self._added))
        buckets = (self._buckets[bucket] for bucket in enumerate(self._keys[one]) if bucket in self._buckets)
        if mates := sorted(set(chain.from_iterable(buckets))):
            others = self._signatures[[self._added[mate] for mate in mates]]
            shares[mates] = (others == own).mean(axis=1)
        return shares


def minhash_signatures(texts: Sequence[str], seed: int = 0) -> np.ndarray:
    """The least hash of a text's word 3-shingles under each of 128 functions, (N, 128) uint32."""
    hashes, owners = ngram_hashes(texts, SHINGLE)
    starts = np.searchsorted(owners, np.arange(len(texts)))
    factors = random.bits(seed, hashes=np.arange(PERMUTATIONS, dtype=np.uint64)) | np.uint64(1)
    signatures = np.empty((len(texts), PERMUTATIONS), dtype=np.uint32)
    for column, factor in enumerate(factors if len(texts) else ()):
        mixed = (hashes * factor >> np.uint64(32)).astype(np.uint32)
        signatures[:, column] = np.minimum.reduceat(mixed, starts)
    return signatures


class TokenOverlap(TextSimilarity):
    """Exact Jaccard similarity of token sets, or ROUGE-L (MSSR Eq. 33, 34), by an inverted index.

    ROUGE-L is worked out only where its bound by the tokens in common is above what is asked for.
    """

    def __init__(self, texts: Sequence[str], rouge: bool = False) -> None:
        super().__init__(texts)
        self._rouge = rouge
        found = [re.findall(r"\w+", text.lower()) if rouge else words(text) for text in texts]
        self._tokens = [list(_numbered(tokens)) if rouge else list(dict.fromkeys(tokens)) for tokens in found]
        self._postings: dict[object, array] = defaultdict(lambda: array("q"))
        self._sizes = array("q")

    def add(self, one: int) -> None:
        """Take text number `one` in."""
        for token in self._tokens[one]:
            self._postings[token].append(len(self._added))
        self._added.append(one)
        self._sizes.append(len(self._tokens[one]))

    def similarities(self, one: int, above: float | None = None) -> np.ndarray:
        """Jaccard similarity or ROUGE-L of text `one` to each added one, (K,); ROUGE-L of `above` or less may be 0."""
        tokens, sizes = self._tokens[one], np.array(self._sizes, dtype=np.float64)
        found = [np.array(self._postings[token]) for token in tokens if token in self._postings]
        common = np.bincount(np.concatenate(found), minlength=len(sizes)) if found else np.zeros(len(sizes))
        both_empty = (sizes == 0) & (not tokens)
        if not self._rouge:
            union = sizes + len(tokens) - common
            return np.where(both_empty, 1.0, common / np.maximum(union, 1))
        # ROUGE-L were all common tokens in order: F = (1 + β²) LCS/(|G| + β² |R|).
        bound = (1 + ROUGE_BETA**2) * common / np.maximum(len(tokens) + ROUGE_BETA**2 * sizes, 1) + 1e-9
        scores = both_empty.astype(np.float64)
        for place in np.flatnonzero((common > 0) & (bound > (above or 0.0))).tolist():
            scores[place] = rouge_l(self._texts[one], [self._texts[self._added[place]]])
        return scores


def _numbered(tokens: Sequence[str]) -> list[tuple[str, int]]:
    """(token, its how-manieth occurrence), so that sets of these count repeated tokens."""
    seen: Counter[str] = Counter()
    numbered = []
    for token in tokens:
        numbered.append((token, seen[token]))
        seen[token] += 1
    return numbered
