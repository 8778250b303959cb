"""Messages about arrays, dtypes and shapes through Python."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from error_cases import (  # noqa: E402
    CACHE,
    LISTS,
    PART,
    W1,
    W2T,
    K,
    Q,
    X,
    dense,
    f32,
    fc1,
    fc2,
    from_dense,
    i32,
    lists,
    message_of,
    mlp,
    select,
    sparse,
    sums,
)

import chipmunk_kernels as ck  # noqa: E402

ERRORS = {
    # not an array of a known kind
    "list": (
        lambda: dense([1.0]),
        "dense_attention: q: expected a torch, numpy, cupy or jax array, got list",
    ),
    "mixed libraries": (
        lambda: dense(k=K.numpy()),
        "dense_attention: k: expected a torch.Tensor, got numpy.ndarray",
    ),
    "no DLPack": (
        lambda: ck.dense_attention(Q.numpy(), K.numpy(), "v"),
        "dense_attention: v: expected an array that DLPack can share, got str",
    ),
    "DLPack that refuses": (
        lambda: ck.dense_attention(Q.numpy(), K.numpy(), K.numpy().astype(">f4")),
        "dense_attention: v: expected an array that DLPack can share, got numpy.ndarray (DLPack "
        "only supports native byte order.)",
    ),
    "masked array": (
        lambda: ck.dense_attention(Q.numpy(), K.numpy(), np.ma.masked_array(K.numpy())),
        "dense_attention: v: expected an array without a mask, got MaskedArray",
    ),
    "masked q": (
        lambda: ck.dense_attention(np.ma.masked_array(Q.numpy()), K.numpy(), K.numpy()),
        "dense_attention: q: expected an array without a mask, got MaskedArray",
    ),
    # dtypes
    "float64": (
        lambda: dense(Q.double()),
        "dense_attention: q: expected dtype float32 or bfloat16 or float16, got float64",
    ),
    "int64 lists": (
        lambda: sparse(lists(counts=LISTS.counts.long())),
        "column_sparse_attention: columns.counts: expected dtype int32, got int64",
    ),
    "double lse": (
        lambda: sums(reference_lse=PART[1].double()),
        "dense_attention_column_sums: reference_lse: expected dtype float32, got float64",
    ),
    "double column_sums": (
        lambda: sums(out=(None, None, f32(1, 4, 1, 50).double())),
        "dense_attention_column_sums: column_sums: expected dtype float32 or bfloat16, got float64",
    ),
    "float lists": (
        lambda: sparse(lists(indices=LISTS.indices.float())),
        "column_sparse_attention: columns.indices: expected dtype int32, got float32",
    ),
    "int q": (
        lambda: dense(Q.int()),
        "dense_attention: q: expected dtype float32 or bfloat16 or float16, got int32",
    ),
    "mixed dtypes": (
        lambda: dense(v=K.half()),
        "dense_attention: v: expected dtype float32 as q, got float16",
    ),
    "complex": (
        lambda: dense(Q.to(torch.complex64)),
        "dense_attention: q: expected dtype float32 or bfloat16 or float16, got complex64",
    ),
    "float8": (
        lambda: dense(Q.to(torch.float8_e4m3fn)),
        "dense_attention: q: expected dtype float32 or bfloat16 or float16, "
        "got 8 bits of DLPack type 10",
    ),
    "uint8 mask": (
        lambda: ck.columns_from_mask(torch.zeros(2, 3, dtype=torch.uint8)),
        "columns_from_mask: mask: expected dtype bool, got uint8",
    ),
    "int mask": (
        lambda: ck.columns_from_mask(i32(2, 3)),
        "columns_from_mask: mask: expected dtype bool, got int32",
    ),
    "lse dtype": (
        lambda: sparse(rest=(PART[0], PART[1].half())),
        "column_sparse_attention: rest.lse: expected dtype float32, got float16",
    ),
    # ranks and shapes
    "rank of q": (
        lambda: dense(Q[0]),
        "dense_attention: q: expected shape [batch, query_heads, queries, head_dim], "
        "got [4, 100, 64]",
    ),
    "scalar q": (
        lambda: dense(torch.tensor(0.0)),
        "dense_attention: q: expected shape [batch, query_heads, queries, head_dim], got []",
    ),
    "nine dimensions": (
        lambda: ck.columns_from_mask(torch.zeros((1,) * 9, dtype=torch.bool)),
        "columns_from_mask: mask: expected at most 8 dimensions, got 9",
    ),
    "v unlike k": (
        lambda: dense(v=K[:, :, :49]),
        "dense_attention: v: expected shape [batch=1, kv_heads=2, keys=50, head_dim=64], "
        "got [1, 2, 49, 64]",
    ),
    "heads": (
        lambda: dense(k=f32(1, 3, 50, 64), v=f32(1, 3, 50, 64)),
        "dense_attention: k: expected kv_heads that divide query_heads=4, got 3",
    ),
    "head_dim": (
        lambda: dense(Q[..., :60].contiguous(), K[..., :60].contiguous(), K[..., :60].contiguous()),
        "dense_attention: q: expected a head_dim that is a multiple of 8, from 8 to 256, got 60",
    ),
    "groups": (
        lambda: sparse(lists(query_group=128)),
        "column_sparse_attention: columns.indices: expected shape [batch=1, query_heads=4, "
        "groups=1, capacity], got [1, 4, 2, 5]",
    ),
    "counts": (
        lambda: sparse(lists(counts=i32(1, 4, 3))),
        "column_sparse_attention: columns.counts: expected shape [batch=1, query_heads=4, "
        "groups=2], got [1, 4, 3]",
    ),
    "rest": (
        lambda: sparse(rest=(PART[0][:, :, :99], PART[1])),
        "column_sparse_attention: rest.out: expected shape [batch=1, heads=4, queries=100, "
        "head_dim=64], got [1, 4, 99, 64]",
    ),
    "rest is no pair": (
        lambda: sparse(rest=PART[0]),
        "column_sparse_attention: rest: expected a pair (out, lse), got torch.Tensor",
    ),
    "rest without out": (
        lambda: sparse(rest=(None, PART[1])),
        "column_sparse_attention: rest.out: expected an array that DLPack can share, got NoneType",
    ),
    "k is missing": (
        lambda: dense(k=None),
        "dense_attention: k: expected an array that DLPack can share, got NoneType",
    ),
    "columns is no ColumnLists": (
        lambda: sparse((LISTS.indices, LISTS.counts)),
        "column_sparse_attention: columns: expected ColumnLists, got tuple",
    ),
    "merge": (
        lambda: ck.merge_attention(PART, (PART[0], PART[1][:, :3])),
        "merge_attention: b.lse: expected shape [batch=1, heads=4, queries=100], got [1, 3, 100]",
    ),
    "rest_of": (
        lambda: ck.rest_of_attention((PART[0][0], PART[1]), PART),
        "rest_of_attention: whole.out: expected shape [batch, heads, queries, head_dim], "
        "got [4, 100, 64]",
    ),
    "key_weights": (
        lambda: sums(key_weights=f32(1, 4, 50)),
        "dense_attention_column_sums: key_weights: expected shape [batch=1, kv_heads=2, keys=50], "
        "got [1, 4, 50]",
    ),
    "key_weights' dtype": (
        lambda: sums(key_weights=f32(1, 2, 50).double()),
        "dense_attention_column_sums: key_weights: expected dtype float32, got float64",
    ),
    "query_rows": (
        lambda: sparse(query_rows=i32(99)),
        "column_sparse_attention: query_rows: expected shape [queries=100], got [99]",
    ),
    "query_rows' dtype": (
        lambda: sparse(query_rows=torch.arange(100)),
        "column_sparse_attention: query_rows: expected dtype int32, got int64",
    ),
    "query_rows' stride": (
        lambda: dense(query_rows=i32(200)[::2]),
        "dense_attention: query_rows: expected a contiguous last dimension (stride 1), "
        "got stride 2",
    ),
    "reference_lse": (
        lambda: sums(reference_lse=PART[1][..., :7]),
        "dense_attention_column_sums: reference_lse: expected shape [batch=1, query_heads=4, "
        "queries=100], got [1, 4, 7]",
    ),
    "device of query_rows": (
        lambda: sparse(query_rows=i32(100).to("meta")),
        "column_sparse_attention: query_rows: expected device cpu as q, got meta",
    ),
    "query_rows of another library": (
        lambda: sparse(query_rows=i32(100).numpy()),
        "column_sparse_attention: query_rows: expected a torch.Tensor, got numpy.ndarray",
    ),
    "dtype of key_weights": (
        lambda: sums(key_weights=f32(1, 2, 50).bfloat16()),
        "dense_attention_column_sums: key_weights: expected dtype float32, got bfloat16",
    ),
    "device of key_weights": (
        lambda: sums(key_weights=f32(1, 2, 50).to("meta")),
        "dense_attention_column_sums: key_weights: expected device cpu as q, got meta",
    ),
    "strides of key_weights": (
        lambda: sums(key_weights=f32(1, 2, 100)[..., ::2]),
        "dense_attention_column_sums: key_weights: expected a contiguous last dimension "
        "(stride 1), got stride 2",
    ),
    "w1": (
        lambda: fc1(w1=f32(48, 31)),
        "column_sparse_fc1: w1: expected shape [hidden, channels=32], got [48, 31]",
    ),
    "gated w1": (
        lambda: fc1(w1=f32(47, 32), activation="swiglu"),
        "column_sparse_fc1: w1: expected shape [2 * hidden, channels=32], got [47, 32]",
    ),
    "b1": (
        lambda: fc1(b1=f32(47)),
        "column_sparse_fc1: b1: expected shape [hidden=48], got [47]",
    ),
    "cache": (
        lambda: fc1(cache=f32(1, 200, 48)),
        "column_sparse_fc1: activation_cache: expected shape [batch=1, hidden=48, tokens=200], "
        "got [1, 200, 48]",
    ),
    "packed_delta": (
        lambda: fc2(f32(1, 2, 4, 128)),
        "column_sparse_fc2: packed_delta: expected shape [batch=1, groups=2, capacity=5, "
        "query_group=128], got [1, 2, 4, 128]",
    ),
    "w2t": (
        lambda: fc2(w2t=f32(48, 17)),
        "column_sparse_fc2: w2t: expected shape [hidden, out_channels=16], got [48, 17]",
    ),
    "b2": (
        lambda: from_dense(f32(1)),
        "from_dense: b2: expected shape [out_channels=16], got [1]",
    ),
    "b2's dtype": (
        lambda: from_dense(f32(16).half()),
        "from_dense: b2: expected dtype float32 as x, got float16",
    ),
    "b2's device": (
        lambda: from_dense(f32(16).to("meta")),
        "from_dense: b2: expected device cpu as x, got meta",
    ),
    "b2 is a list": (
        lambda: ck.MlpCache.from_dense(
            X.numpy(), W1.numpy(), None, W2T.numpy(), [0.0] * 16, "gelu"
        ),
        "from_dense: b2: expected an array that DLPack can share, got list",
    ),
    "w2t of the dense MLP": (
        lambda: from_dense(w2t=f32(40, 16)),
        "column_sparse_mlp: w2t: expected shape [hidden=48, out_channels], got [40, 16]",
    ),
    "w2t unlike w1": (
        lambda: mlp(w2t=f32(40, 16)),
        "column_sparse_mlp: w2t: expected shape [hidden=48, out_channels], got [40, 16]",
    ),
    "output unlike w2t": (
        lambda: mlp(w2t=f32(48, 17)),
        "column_sparse_mlp: cache.output: expected shape [batch=1, tokens=200, out_channels=17], "
        "got [1, 200, 16]",
    ),
    "lists are lists": (
        lambda: ck.column_sparse_fc1(
            X.numpy(),
            W1.numpy(),
            None,
            ck.ColumnLists([[[1]]], [[1]], 128),
            CACHE.numpy(),
            activation="gelu",
        ),
        "column_sparse_fc1: columns.indices: expected an array that DLPack can share, got list",
    ),
    "k is a list": (
        lambda: ck.dense_attention_column_sums(Q.numpy(), [1.0], K.numpy()),
        "dense_attention_column_sums: k: expected an array that DLPack can share, got list",
    ),
    "out is no ColumnLists": (
        lambda: select(count=3, out=LISTS.indices),
        "select_columns: out: expected ColumnLists, got torch.Tensor",
    ),
    "an array of counts without max_count": (
        lambda: select(count=i32(2, 3)),
        "select_columns: max_count: expected a number, as an array for count gives no capacity, "
        "got None",
    ),
    "counts of another library": (
        lambda: select(count=np.zeros((2, 3), np.int32), max_count=5),
        "select_columns: count_per_list: expected a torch.Tensor, got numpy.ndarray",
    ),
    "counts that are fractions": (
        lambda: select(count=f32(2, 3), max_count=5),
        "select_columns: count_per_list: expected an integer dtype, got float32",
    ),
    "fractions that are integers": (
        lambda: select(mass=i32(2, 3), max_count=5),
        "select_columns: mass_per_list: expected a floating-point dtype, got int32",
    ),
    "shape of counts": (
        lambda: select(count=i32(3, 2), max_count=5),
        "select_columns: count_per_list: expected a shape that broadcasts to columns.counts "
        "[2, 3], got [3, 2]",
    ),
    "order": (
        lambda: sparse(ck.ColumnLists(LISTS.indices, LISTS.counts, 64, i32(3, 7))),
        "column_sparse_attention: columns.order: expected shape [3, lists=8], got [3, 7]",
    ),
    "dtype of an order": (
        lambda: sparse(ck.ColumnLists(LISTS.indices, LISTS.counts, 64, i32(3, 8).long())),
        "column_sparse_attention: columns.order: expected dtype int32, got int64",
    ),
    "always": (
        lambda: select(count=3, always=torch.zeros(19, dtype=torch.bool)),
        "select_columns: always: expected a shape that broadcasts to scores [2, 3, 20], got [19]",
    ),
    "scores": (
        lambda: select(f32(20), count=3),
        "select_columns: scores: expected shape [*lead, groups, n], got [20]",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_message(name):
    call, message = ERRORS[name]
    assert message_of(call) == message
