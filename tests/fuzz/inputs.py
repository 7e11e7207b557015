"""What the fuzzer writes: valid files, and strategies that damage them as text, as bytes or as values."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

NASTY = (
    "", " ", "\0", "\x1b[31m", "\u202egnp.exe", "\u2066", "\ud800", "\u2028", "\ufeff", "../../etc/passwd",
    "/etc/passwd",
    "..", ".", "~", "CON", "a/b", "a\\b", "%s%n", "{0.__class__}", "{input}", "<script>alert(1)</script>", "'; --",
    "]]>",
    "!!python/object/apply:os.system [id]", "&a", "*a", "<<", "NaN", "1e999", "-0", "null", "true", "x" * 5000,
    "é" * 70,
    "builtin:", "builtin:../x", "in-memory", "/dev/zero", "/dev/stdin", "https://example.com/x", "smollm2-135m",
    "synthesize",
)  # fmt: skip
NUMBERS = (
    0, -1, 1, 2, 10**9, 2**31, 2**63, 2**64, -(2**63), 10**30, 10**400, 0.0, -0.0, 5e-324, 1e-300, 0.5, 1.5, 1e18,
    1e300,
    float("nan"), float("inf"), float("-inf"),
)  # fmt: skip

texts = st.one_of(st.sampled_from(NASTY), st.text(max_size=40))
numbers = st.one_of(st.sampled_from(NUMBERS), st.integers(), st.floats())
scalars = st.one_of(st.none(), st.booleans(), numbers, texts)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=4)),
    max_leaves=8,
)


def deep(levels: int) -> Any:
    """A list in a list in a list, or objects."""
    value: Any = 0
    for level in range(levels):
        value = {"a": value} if level % 2 else [value]
    return value


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """The path to every part of a value."""
    found = [path]
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        found += places(child, (*path, key))
    return found


def put(value: Any, path: tuple, new: Any) -> Any:
    """A copy of a value with another part at `path`."""
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = put(copy[path[0]], path[1:], new)
    return copy


@st.composite
def damaged_value(draw: st.DrawFn, whole: Any) -> Any:
    """A valid value with some of its parts replaced, removed, doubled, renamed or nested deeply."""
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        spots = places(whole)
        path = spots[draw(st.integers(0, len(spots) - 1))]
        parent = whole
        for key in path[:-1]:
            parent = parent[key]
        act = draw(st.integers(0, 9))
        if act == 0 and path and isinstance(parent, dict):
            whole = put(whole, path[:-1], {key: child for key, child in parent.items() if key != path[-1]})
        elif act == 1 and path and isinstance(parent, dict):
            whole = put(whole, path[:-1], {**parent, draw(texts): parent[path[-1]]})
        elif act == 2 and path and isinstance(parent, list):
            whole = put(whole, path[:-1], [*parent, parent[path[-1]]])
        elif act == 3:
            whole = put(whole, path, deep(draw(st.sampled_from([5, 90, 150, 900]))))
        elif act == 4:
            whole = put(whole, path, draw(values))
        else:
            whole = put(whole, path, draw(scalars))
    return whole


@st.composite
def damaged_bytes(draw: st.DrawFn, whole: bytes) -> bytes:
    """A valid file cut, overwritten, with bits turned, with a part repeated or with something put into it."""
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        at = draw(st.integers(0, max(len(whole) - 1, 0)))
        act = draw(st.integers(0, 5))
        if act == 0:
            whole = whole[:at]
        elif act == 1 and whole:
            whole = whole[:at] + bytes([whole[at] ^ (1 << draw(st.integers(0, 7)))]) + whole[at + 1 :]
        elif act == 2:
            whole = whole[:at] + draw(st.binary(max_size=12)) + whole[at + draw(st.integers(0, 12)) :]
        elif act == 3:
            whole = whole[:at] + whole[at : at + 200] * draw(st.sampled_from([2, 50])) + whole[at:]
        elif act == 4:
            whole = whole[:at] + draw(texts).encode("utf-8", errors="surrogatepass") + whole[at:]
        else:
            whole = whole[:at] + draw(st.sampled_from([b"[", b"{", b'"', b"- ", b"\t", b"\r"])) * 300 + whole[at:]
    return whole


def dump_json(value: Any) -> bytes:
    """JSON as Python writes it, NaN and halves of surrogate pairs included."""
    return json.dumps(value).encode()
