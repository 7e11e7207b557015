"""Prefix-tree rows: nothing is lost, nothing is computed twice, and every sequence sees only itself."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retain.batching import Encoded, common_prefix, dense_mask, pack, pad, split_rows, truncate

TOKENS = st.lists(st.integers(0, 3), min_size=2, max_size=8)


def encoded(ids, answer=1):
    return Encoded.of(ids[:-answer], ids[-answer:])


def test_shared_prefix_is_stored_once():
    sequences = [encoded([1, 2, 3, 7, 0]), encoded([1, 2, 3, 9, 9, 0])]
    row = pack(sequences, split_rows(sequences)[0])
    assert row.input_ids.tolist() == [[1, 2, 3, 7, 9, 9]]  # and the last tokens are only predicted
    assert row.position_ids.tolist() == [[0, 1, 2, 3, 3, 4]]
    allowed = dense_mask(row.tree, row.tokens, torch.float32)[0, 0] == 0
    assert allowed[3].tolist() == [True, True, True, True, False, False]
    assert allowed[5].tolist() == [True, True, True, False, True, True]
    assert row.tokens == 6


@given(st.lists(TOKENS, min_size=1, max_size=6))
@settings(deadline=None)
def test_every_path_through_the_tree_is_its_sequence(lists):
    sequences = [encoded(ids) for ids in lists]
    seen = []
    for indices in split_rows(sequences, row_tokens=12):
        row = pack(sequences, indices)
        allowed = (dense_mask(row.tree, row.tokens, torch.float32)[0, 0] == 0).numpy()
        for k, (member, target) in enumerate(zip(row.owners.tolist(), row.targets.tolist(), strict=True)):
            node = int(row.keep[row.columns[k]])
            path = np.flatnonzero(allowed[node])
            path = path[np.argsort(row.position_ids[0, path].numpy())]
            ids = sequences[row.members[member]].ids
            assert tuple(row.input_ids[0, path].tolist()) == ids[: len(path)]
            assert target == ids[len(path)]
        seen += row.members
    assert sorted(seen) == list(range(len(lists)))


def test_rows_respect_the_token_limit_and_the_member_limit():
    sequences = [encoded([k, k, k, k, 9]) for k in range(6)]
    assert [len(r) for r in split_rows(sequences, row_tokens=8)] == [2, 2, 2]
    assert [len(r) for r in split_rows(sequences, row_tokens=99, max_members=4)] == [4, 2]
    assert split_rows(sequences, row_tokens=1) == [[k] for k in range(6)]


def test_padded_rows_mark_padding():
    sequences = [encoded([1, 2, 3, 6]), encoded([4, 5, 6])]
    row = pad(sequences, [0, 1], pad_id=0)
    assert row.input_ids.tolist() == [[1, 2, 3], [4, 5, 0]]
    assert row.mask.tolist() == [[1, 1, 1], [1, 1, 0]]
    assert row.tokens == 5
    assert [(int(row.rows[k]), int(row.keep[row.columns[k]]), int(row.targets[k])) for k in range(2)] == [
        (0, 2, 6),
        (1, 1, 6),
    ]


@pytest.mark.parametrize(
    ("prompt", "answer", "limit", "kept"),
    [
        ([1, 2, 3], [7, 8], 5, ([1, 2, 3], [7, 8], False)),
        ([1, 2, 3, 4, 5], [7, 8], 5, ([1, 2, 3], [7, 8], True)),  # the prompt keeps its start
        ([1, 2], [5, 6, 7, 8, 9], 5, ([1, 2], [7, 8, 9], True)),  # the answer keeps its end
        ([1, 2, 3, 4], [5, 6, 7, 8], 4, ([1, 2], [7, 8], True)),  # both long: half each
    ],
)
def test_truncation(prompt, answer, limit, kept):
    assert truncate(prompt, answer, limit) == kept


def test_common_prefix():
    assert [common_prefix(a, b) for a, b in [((), (1,)), ((1, 2), (1, 3)), ((1, 2), (1, 2, 3))]] == [0, 1, 2]


def test_the_dense_mask_is_additive_and_finite():
    row = pack([encoded([1, 2, 3])], [0])
    mask = dense_mask(row.tree, row.tokens, torch.float64)
    assert mask.dtype == torch.float64 and torch.isfinite(mask).all()
    assert mask[0, 0].tolist() == [[0.0, torch.finfo(torch.float64).min], [0.0, 0.0]]
