"""Counter-based noise: a pure function of (seed, counters, sample id), whatever the storage order."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB


def hash_ids(ids: Iterable[str]) -> np.ndarray:
    """64-bit BLAKE2b of each id, shape (N,), uint64."""
    digests = b"".join(hashlib.blake2b(one.encode("utf-8", "surrogatepass"), digest_size=8).digest() for one in ids)
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def bits(seed: int, *counters: int, hashes: np.ndarray) -> np.ndarray:
    """64 random bits for each hash, shape (N,), uint64; different hashes never share a value.

    The seed and the counters are folded into a key by SplitMix64 (Steele, Lea, Flood 2014);
    two keyed rounds of its finalizer, a bijection, then scatter the hashes.
    """
    key = 0
    for counter in (seed, *counters):
        key = _mix_integer((key + _GOLDEN + int(counter)) & _MASK)
    folded = np.uint64(key)
    return _mix(_mix(hashes ^ folded) + folded)


def uniform(seed: int, *counters: int, hashes: np.ndarray) -> np.ndarray:
    """Uniform on the open interval (0, 1), shape (N,)."""
    return to_uniform(bits(seed, *counters, hashes=hashes))


def gumbel(seed: int, *counters: int, hashes: np.ndarray) -> np.ndarray:
    """Standard Gumbel noise, -log(-log u), shape (N,)."""
    return to_gumbel(bits(seed, *counters, hashes=hashes))


def normal(seed: int, *counters: int, hashes: np.ndarray) -> np.ndarray:
    """Standard normal noise by Box and Muller, √(-2 log u₁) cos(2π u₂), shape (N,)."""
    radius = np.sqrt(-2.0 * np.log(uniform(seed, *counters, 0, hashes=hashes)))
    return radius * np.cos(2.0 * np.pi * uniform(seed, *counters, 1, hashes=hashes))


def to_uniform(random_bits: np.ndarray) -> np.ndarray:
    """(⌊bits / 2¹²⌋ + ½) / 2⁵²: never 0 and never 1."""
    return ((random_bits >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


def to_gumbel(random_bits: np.ndarray) -> np.ndarray:
    """-log(-log u), increasing in the bits."""
    return -np.log(-np.log(to_uniform(random_bits)))


def _mix(values: np.ndarray) -> np.ndarray:
    values = (values ^ (values >> np.uint64(30))) * np.uint64(_FIRST)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(_SECOND)
    return values ^ (values >> np.uint64(31))


def _mix_integer(value: int) -> int:
    value = ((value ^ (value >> 30)) * _FIRST) & _MASK
    value = ((value ^ (value >> 27)) * _SECOND) & _MASK
    return value ^ (value >> 31)
