"""Good arguments of every op, and calls that take wrong ones beside them."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import chipmunk_kernels as ck  # noqa: E402


def f32(*shape):
    return torch.zeros(*shape)


def i32(*shape):
    return torch.zeros(*shape, dtype=torch.int32)


Q, K = f32(1, 4, 100, 64), f32(1, 2, 50, 64)
LISTS = ck.ColumnLists(i32(1, 4, 2, 5), i32(1, 4, 2), 64)
PART = (f32(1, 4, 100, 64), f32(1, 4, 100))
X, W1, B1, W2T = f32(1, 200, 32), f32(48, 32), f32(48), f32(48, 16)
MLP_LISTS = ck.ColumnLists(i32(1, 2, 5), i32(1, 2), 128)
CACHE = f32(1, 48, 200)
DELTA = f32(1, 2, 5, 128)


def dense(q=Q, k=K, v=K, **options):
    return ck.dense_attention(q, k, v, **options)


def sums(**options):
    return ck.dense_attention_column_sums(Q, K, K, **options)


def sparse(columns=LISTS, q=Q, k=K, v=K, **options):
    return ck.column_sparse_attention(q, k, v, columns, **options)


def lists(indices=LISTS.indices, counts=LISTS.counts, query_group=64):
    return ck.ColumnLists(indices, counts, query_group)


def fc1(x=X, w1=W1, b1=B1, columns=MLP_LISTS, cache=CACHE, activation="gelu", **options):
    return ck.column_sparse_fc1(x, w1, b1, columns, cache, activation=activation, **options)


def fc2(delta=DELTA, w2t=W2T, columns=MLP_LISTS, out=None):
    return ck.column_sparse_fc2(delta, w2t, columns, f32(1, 200, 16) if out is None else out)


def mlp(cache=None, w2t=W2T, columns=MLP_LISTS):
    cache = ck.MlpCache(CACHE, f32(1, 200, 16)) if cache is None else cache
    return ck.column_sparse_mlp(X, W1, B1, w2t, columns, cache, activation="gelu")


def from_dense(b2=None, w2t=W2T, x=X):
    return ck.MlpCache.from_dense(x, W1, B1, w2t, b2, "gelu")


def select(scores=None, **options):
    return ck.select_columns(f32(2, 3, 20) if scores is None else scores, **options)


SHARED = torch.zeros(4 * 100 * 64 * 2)
READ_ONLY = np.zeros((1, 4, 100, 64), np.float32)
READ_ONLY.flags.writeable = False
KNOWN = "gelu_tanh, gelu, silu, relu, swiglu, geglu"


def message_of(call):
    """That of the ValueError which the call must raise."""
    with pytest.raises(ValueError, match=r": expected ") as error:
        call()
    return str(error.value)
