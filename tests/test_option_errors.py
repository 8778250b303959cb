"""Messages about options, memory and devices through Python, and the types of the errors."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")

from error_cases import (  # noqa: E402
    CACHE,
    KNOWN,
    LISTS,
    MLP_LISTS,
    PART,
    READ_ONLY,
    SHARED,
    W1,
    W2T,
    K,
    Q,
    X,
    dense,
    f32,
    fc1,
    i32,
    lists,
    message_of,
    mlp,
    select,
    sparse,
    sums,
)

import chipmunk_kernels as ck  # noqa: E402
from chipmunk_kernels import _core  # noqa: E402

ERRORS = {
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
    text = message_of(call)
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
