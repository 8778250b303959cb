"""Checked mode, CHIPMUNK_CHECK=1, which looks into the lists."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from error_cases import (  # noqa: E402
    B1,
    CACHE,
    LISTS,
    W1,
    W2T,
    K,
    Q,
    X,
    dense,
    f32,
    fc1,
    fc2,
    i32,
    lists,
    message_of,
    sparse,
    sums,
)

import chipmunk_kernels as ck  # noqa: E402

BAD_INDICES = ck.ColumnLists(i32(1, 4, 2, 5) + 50, i32(1, 4, 2) + 1, 64)
BAD_UNITS = ck.ColumnLists(i32(1, 2, 5) + 48, i32(1, 2) + 1, 128)
CHECKED = {
    "column_sparse_attention": (lambda: sparse(BAD_INDICES), "n=50, exclusive, got 50"),
    "column_sparse_fc1": (lambda: fc1(columns=BAD_UNITS), "n=48, exclusive, got 48"),
    "column_sparse_fc2": (lambda: fc2(columns=BAD_UNITS), "n=48, exclusive, got 48"),
    "column_sparse_mlp": (
        lambda: ck.column_sparse_mlp(
            X, W1, B1, W2T, BAD_UNITS, ck.MlpCache(CACHE, f32(1, 200, 16)), activation="relu"
        ),
        "n=48, exclusive, got 48",
    ),
    "dense_attention_column_sums": (
        lambda: sums(query_rows=torch.arange(100, dtype=torch.int32).clamp(max=98)),
        "query_rows: expected a permutation of 0 to queries=100, exclusive, got 98 a second time",
    ),
    "columns_to_mask": (lambda: BAD_INDICES.to_mask(50), "n=50, exclusive, got 50"),
    "columns_from_mask": (
        lambda: ck.columns_from_mask(torch.ones(2, 9, dtype=torch.bool), capacity=8),
        "mask: expected at most capacity=8 columns in a row, got 9",
    ),
}


@pytest.mark.parametrize("op", CHECKED)
def test_checked_mode_looks_into_the_lists(op, monkeypatch):
    call, message = CHECKED[op]
    monkeypatch.setenv("CHIPMUNK_CHECK", "1")
    with pytest.raises(ValueError, match=rf"^{op}: .*{message}"):
        call()


WRONG_RANKS = {
    "k": (
        lambda: sparse(k=K[0, 0]),
        "column_sparse_attention: k: expected shape [batch, kv_heads, keys, head_dim], "
        "got [50, 64]",
    ),
    "activation_cache": (
        lambda: fc1(cache=f32(5)),
        "column_sparse_fc1: activation_cache: expected shape [batch=1, hidden=48, tokens=200], "
        "got [5]",
    ),
    "w2t": (
        lambda: fc2(w2t=torch.tensor(0.0)),
        "column_sparse_fc2: w2t: expected shape [hidden, out_channels=16], got []",
    ),
    "mask": (
        lambda: ck.columns_from_mask(torch.tensor(True)),
        "columns_from_mask: mask: expected shape [*lead, groups, n], got []",
    ),
    "columns.counts": (
        lambda: sparse(lists(counts=None)),
        "column_sparse_attention: columns.counts: expected an array that DLPack can share, "
        "got NoneType",
    ),
    "shape of query_rows": (
        lambda: sparse(query_rows=i32(99)),
        "column_sparse_attention: query_rows: expected shape [queries=100], got [99]",
    ),
    "dtype of query_rows": (
        lambda: ck.dense_attention(
            Q.numpy(), K.numpy(), K.numpy(), query_rows=np.zeros(100, np.uint32)
        ),
        "dense_attention: query_rows: expected dtype int32, got uint32",
    ),
    "query_rows is a list": (
        lambda: ck.dense_attention(Q.numpy(), K.numpy(), K.numpy(), query_rows=[0]),
        "dense_attention: query_rows: expected an array that DLPack can share, got list",
    ),
    "q beside query_rows": (
        lambda: dense(q=Q[0], query_rows=i32(100)),
        "dense_attention: q: expected shape [batch, query_heads, queries, head_dim], "
        "got [4, 100, 64]",
    ),
    "dtype of mask": (
        lambda: ck.columns_from_mask(f32(2, 3) + 9),
        "columns_from_mask: mask: expected dtype bool, got float32",
    ),
}


@pytest.mark.parametrize("name", WRONG_RANKS)
def test_checked_mode_leaves_other_mistakes_to_the_op(name, monkeypatch):
    call, message = WRONG_RANKS[name]
    monkeypatch.setenv("CHIPMUNK_CHECK", "1")
    assert message_of(call) == message


def rows_with(*changes):
    """0, 1, .., 99 but for the changes, pairs (position, number)."""
    rows = torch.arange(100, dtype=torch.int32)
    for position, number in changes:
        rows[position] = number
    return rows


WRONG_ROWS = {
    "too large": (((7, 100),), "100 at [7]"),
    "negative": (((3, -1), (5, -1)), "-1 at [3]"),
    "twice": (((98, 4),), "4 a second time at [98]"),
}


@pytest.mark.parametrize("op", [dense, sums, sparse])
@pytest.mark.parametrize("kind", WRONG_ROWS)
def test_checked_mode_looks_into_query_rows(op, kind, monkeypatch):
    changes, got = WRONG_ROWS[kind]
    name = {
        dense: "dense_attention",
        sums: "dense_attention_column_sums",
        sparse: "column_sparse_attention",
    }[op]
    monkeypatch.setenv("CHIPMUNK_CHECK", "1")
    expected = "expected a permutation of 0 to queries=100, exclusive"
    message = f"{name}: query_rows: {expected}, got {got}"
    assert message_of(lambda: op(query_rows=rows_with(*changes))) == message
    reversed_rows = rows_with().flip(0)
    assert op(query_rows=reversed_rows)[0].shape == Q.shape


def test_checked_mode_looks_into_query_rows_of_numpy(monkeypatch):
    q, k = Q.numpy(), K.numpy()
    monkeypatch.setenv("CHIPMUNK_CHECK", "1")
    rows = rows_with((7, 100)).numpy()
    message = message_of(lambda: ck.dense_attention_column_sums(q, k, k, query_rows=rows))
    assert message.endswith(", got 100 at [7]")
    none = np.zeros((1, 4, 0, 64), np.float32)
    out, _ = ck.dense_attention(none, k, k, query_rows=np.zeros(0, np.int32))
    assert out.shape == none.shape


def test_checked_mode_lets_good_lists_pass(monkeypatch):
    expected = sparse()
    monkeypatch.setenv("CHIPMUNK_CHECK", "1")
    ours = sparse()
    assert torch.equal(ours[1], expected[1])
    numpy_lists = ck.ColumnLists(LISTS.indices.numpy(), LISTS.counts.numpy(), 64)
    _, lse = ck.column_sparse_attention(Q.numpy(), K.numpy(), K.numpy(), numpy_lists)
    assert np.array_equal(lse, expected[1].numpy())
