"""Every message through Python: op, argument, what was expected, what came."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import chipmunk_kernels as ck  # noqa: E402
from chipmunk_kernels import _core  # noqa: E402


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
    # dtypes
    "float64": (
        lambda: dense(Q.double()),
        "dense_attention: q: expected dtype float32, bfloat16, float16, int32 or bool, got float64",
    ),
    "int64 lists": (
        lambda: sparse(lists(counts=LISTS.counts.long())),
        "column_sparse_attention: columns.counts: expected dtype float32, bfloat16, float16, int32 "
        "or bool, got int64",
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
        "dense_attention: q: expected dtype float32, bfloat16, float16, int32 or bool, "
        "got complex64",
    ),
    "float8": (
        lambda: dense(Q.to(torch.float8_e4m3fn)),
        "dense_attention: q: expected dtype float32, bfloat16, float16, int32 or bool, "
        "got 8 bits of DLPack type 10",
    ),
    "uint8 mask": (
        lambda: ck.columns_from_mask(torch.zeros(2, 3, dtype=torch.uint8)),
        "columns_from_mask: mask: expected dtype float32, bfloat16, float16, int32 or bool, "
        "got uint8",
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
    "reference_lse": (
        lambda: sums(reference_lse=PART[1][..., :7]),
        "dense_attention_column_sums: reference_lse: expected shape [batch=1, query_heads=4, "
        "queries=100], got [1, 4, 7]",
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
    "always": (
        lambda: select(count=3, always=torch.zeros(19, dtype=torch.bool)),
        "select_columns: always: expected a shape that broadcasts to scores [2, 3, 20], got [19]",
    ),
    "scores": (
        lambda: select(f32(20), count=3),
        "select_columns: scores: expected shape [*lead, groups, n], got [20]",
    ),
    # options
    "count and mass": (
        lambda: select(count=3, mass=0.5),
        "select_columns: count: expected exactly one of count and mass, got both",
    ),
    "neither": (
        lambda: select(),
        "select_columns: count: expected exactly one of count and mass, got neither",
    ),
    "negative count": (
        lambda: select(count=-1),
        "select_columns: count: expected a number of columns >= 0, got -1",
    ),
    "negative max_count": (
        lambda: select(count=1, max_count=-2),
        "select_columns: max_count: expected a number of columns >= 0, got -2",
    ),
    "min above max": (
        lambda: select(count=1, min_count=5, max_count=4),
        "select_columns: min_count: expected at most max_count=4, got 5",
    ),
    "mass": (
        lambda: select(mass=1.5),
        "select_columns: mass: expected a fraction from 0 to 1, got 1.500000",
    ),
    "NaN mass": (
        lambda: select(mass=math.nan),
        "select_columns: mass: expected a fraction from 0 to 1, got nan",
    ),
    "NaN random_fraction": (
        lambda: select(count=1, random_fraction=math.nan, seed=1),
        "select_columns: random_fraction: expected a fraction from 0 to 1, got nan",
    ),
    "capacity": (
        lambda: ck.columns_from_mask(torch.zeros(2, 3, dtype=torch.bool), capacity=-1),
        "columns_from_mask: capacity: expected a number of columns >= 0, got -1",
    ),
    "a fraction as count": (
        lambda: select(count=2.5),
        "select_columns: count: expected a number of columns >= 0, got 2.5",
    ),
    "negative n": (
        lambda: LISTS.to_mask(-1),
        "columns_to_mask: n: expected a number of columns >= 0, got -1",
    ),
    "query_group": (
        lambda: sums(query_group=0),
        "dense_attention_column_sums: query_group: expected a positive number, got 0",
    ),
    "large query_group": (
        lambda: sums(query_group=2**40),
        "dense_attention_column_sums: query_group: expected a positive number below 2^31, "
        "got 1099511627776",
    ),
    "large query_group of lists": (
        lambda: sparse(lists(query_group=2**31)),
        "column_sparse_attention: columns.query_group: expected a positive number below 2^31, "
        "got 2147483648",
    ),
    "softmax_scale": (
        lambda: dense(softmax_scale=math.inf),
        "dense_attention: softmax_scale: expected a finite number, got inf",
    ),
    "activation": (
        lambda: fc1(activation="tanh"),
        f"column_sparse_fc1: activation: expected one of {KNOWN}, got tanh",
    ),
    "query_group of the MLP": (
        lambda: fc1(columns=ck.ColumnLists(i32(1, 2, 5), i32(1, 2), 192)),
        "column_sparse_fc1: columns.query_group: expected 128, got 192",
    ),
    # memory
    "last dimension": (
        lambda: dense(f32(1, 4, 64, 100).mT),
        "dense_attention: q: expected a contiguous last dimension (stride 1), got stride 100",
    ),
    "out dtype": (
        lambda: dense(out=PART[0].half()),
        "dense_attention: out: expected dtype float32 as q, got float16",
    ),
    "out shape": (
        lambda: dense(out=(PART[0], f32(1, 4, 99))),
        "dense_attention: lse: expected shape [batch=1, heads=4, queries=100], got [1, 4, 99]",
    ),
    "out tuple": (
        lambda: sums(out=PART),
        "dense_attention_column_sums: out: expected an array or a tuple of 3, got a tuple of 2",
    ),
    "read-only out": (
        lambda: ck.dense_attention(Q.numpy(), K.numpy(), K.numpy(), out=READ_ONLY),
        "dense_attention: out: expected a writable array, got a read-only one",
    ),
    "expanded out": (
        lambda: dense(out=f32(1, 1, 100, 64).expand(1, 4, 100, 64)),
        "dense_attention: out: expected distinct elements at distinct addresses, got a view that "
        "overlaps itself",
    ),
    "out is q": (
        lambda: dense(out=Q),
        "dense_attention: out: expected memory apart from q, got memory that overlaps it",
    ),
    "out overlaps q": (
        lambda: dense(
            SHARED[: Q.numel()].view(Q.shape), out=SHARED[64 : 64 + Q.numel()].view(Q.shape)
        ),
        "dense_attention: out: expected memory apart from q, got memory that overlaps it",
    ),
    "packed_delta is the cache": (
        lambda: fc1(
            f32(1, 128, 32),
            columns=ck.ColumnLists(i32(1, 1, 48), i32(1, 1), 128),
            cache=SHARED[: 48 * 128].view(1, 48, 128),
            out=SHARED[: 48 * 128].view(1, 1, 48, 128),
        ),
        "column_sparse_fc1: packed_delta: expected memory apart from activation_cache, got memory "
        "that overlaps it",
    ),
    "activations and output overlap": (
        lambda: mlp(
            ck.MlpCache(
                SHARED[: 48 * 200].view(1, 48, 200), SHARED[4000 : 4000 + 3200].view(1, 200, 16)
            )
        ),
        "column_sparse_mlp: cache.output: expected memory apart from cache.activations, got memory "
        "that overlaps it",
    ),
    "w2t in the activations": (
        lambda: mlp(ck.MlpCache(CACHE, f32(1, 200, 16)), w2t=CACHE.view(-1)[:768].view(48, 16)),
        "column_sparse_mlp: cache.activations: expected memory apart from w2t, got memory that "
        "overlaps it",
    ),
    "lists in the output": (
        lambda: mlp(
            ck.MlpCache(CACHE, SHARED[:3200].view(1, 200, 16)),
            columns=ck.ColumnLists(SHARED[:10].view(torch.int32).view(1, 2, 5), i32(1, 2), 128),
        ),
        "column_sparse_mlp: cache.output: expected memory apart from columns.indices, got memory "
        "that overlaps it",
    ),
    "read-only activations": (
        lambda: ck.column_sparse_mlp(
            X.numpy(),
            W1.numpy(),
            None,
            W2T.numpy(),
            ck.ColumnLists(MLP_LISTS.indices.numpy(), MLP_LISTS.counts.numpy(), 128),
            ck.MlpCache(READ_ONLY.reshape(-1)[: 48 * 200].reshape(1, 48, 200), f32(1, 200, 16)),
            activation="gelu",
        ),
        "column_sparse_mlp: cache.activations: expected a writable array, got a read-only one",
    ),
    "cache is no MlpCache": (
        lambda: mlp((CACHE, f32(1, 200, 16))),
        "column_sparse_mlp: cache: expected an MlpCache, got tuple",
    ),
    # devices
    "meta k": (
        lambda: dense(k=K.to("meta")),
        "dense_attention: k: expected device cpu as q, got meta",
    ),
    "meta lists": (
        lambda: sparse(LISTS.to("meta")),
        "column_sparse_attention: columns.indices: expected device cpu as q, got meta",
    ),
    "meta straight into the extension": (
        lambda: _core.columns_to_mask(
            LISTS.indices.to("meta"), LISTS.counts, torch.zeros(1, 4, 2, 9, dtype=torch.bool)
        ),
        "columns_to_mask: columns.indices: expected an array that DLPack can share, got Tensor",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_message(name):
    call, message = ERRORS[name]
    with pytest.raises(ValueError, match=r": expected ") as error:
        call()
    text = str(error.value)
    assert text.startswith(message) if name.startswith("meta straight") else text == message


def test_nothing_is_written_before_an_error():
    out, lse = torch.full_like(Q, 7.0), torch.full((1, 4, 100), 7.0)
    with pytest.raises(ValueError, match=r"columns\.counts"):
        sparse(lists(counts=i32(1, 4, 3)), out=(out, lse))
    assert (out == 7).all()
    assert (lse == 7).all()


def test_errors_have_the_promised_types():
    assert issubclass(ck.UnsupportedError, NotImplementedError)
    assert issubclass(ck.CudaError, RuntimeError)
    assert ck.UnsupportedError.__module__ == "chipmunk_kernels"
    assert "cannot serve" in (ck.UnsupportedError.__doc__ or "")


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
    "dtype of mask": (
        lambda: ck.columns_from_mask(f32(2, 3) + 9),
        "columns_from_mask: mask: expected dtype bool, got float32",
    ),
}


@pytest.mark.parametrize("name", WRONG_RANKS)
def test_checked_mode_leaves_other_mistakes_to_the_op(name, monkeypatch):
    call, message = WRONG_RANKS[name]
    monkeypatch.setenv("CHIPMUNK_CHECK", "1")
    with pytest.raises(ValueError, match=r": expected ") as error:
        call()
    assert str(error.value) == message


def test_checked_mode_lets_good_lists_pass(monkeypatch):
    expected = sparse()
    monkeypatch.setenv("CHIPMUNK_CHECK", "1")
    ours = sparse()
    assert torch.equal(ours[1], expected[1])
    numpy_lists = ck.ColumnLists(LISTS.indices.numpy(), LISTS.counts.numpy(), 64)
    _, lse = ck.column_sparse_attention(Q.numpy(), K.numpy(), K.numpy(), numpy_lists)
    assert np.array_equal(lse, expected[1].numpy())


def test_an_unknown_instruction_set_is_named():
    """CHIPMUNK_CPU_ISA is read once, so in a process of its own."""
    run = subprocess.run(
        [sys.executable, "-c", "import chipmunk_kernels"],
        env={**os.environ, "CHIPMUNK_CPU_ISA": "mmx"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode != 0
    assert "mmx" in run.stderr
