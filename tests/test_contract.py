"""What every op promises whatever it computes: strides, empties, memory."""

from __future__ import annotations

import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from cases import LAYOUTS, laid_out, some_attention, some_mlp  # noqa: E402

import chipmunk_kernels as ck  # noqa: E402

# --- strides ---


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("out_layout", LAYOUTS)
def test_any_strides_in_and_out(device, layout, out_layout):
    q, k, v, columns = some_attention(device)
    expected = ck.column_sparse_attention(q, k, v, columns)
    out = laid_out(torch.zeros_like(q), out_layout)
    lse = laid_out(torch.zeros_like(expected[1]), "sparse_rows")
    ours = ck.column_sparse_attention(
        *(laid_out(a, layout) for a in (q, k, v)), columns, out=(out, lse)
    )
    assert ours[0] is out
    assert ours[1] is lse
    assert torch.equal(out, expected[0])
    assert torch.equal(lse, expected[1])


def test_outputs_are_laid_out_like_q(device):
    """A [B, N, H, D] model gets its output back without a copy."""
    q, k, v, _ = some_attention(device)
    as_bnhd = laid_out(q, "transposed")
    out, _ = ck.dense_attention(as_bnhd, k, v)
    assert out.stride() == as_bnhd.stride()
    if device == "cpu":
        array = as_bnhd.float().numpy()
        out, _ = ck.dense_attention(array, k.float().numpy(), v.float().numpy())
        assert out.strides == array.strides


def test_broadcast_inputs(device):
    """Strides of 0: one key head for all batches, one list for all heads."""
    q, k, v, columns = some_attention(device)
    k, v = (a[:1].expand_as(a) for a in (k, v))
    q = q[:, :1].expand_as(q)
    indices = columns.indices[:1, :1].expand_as(columns.indices)
    counts = columns.counts[:1, :1].expand_as(columns.counts)
    ours = ck.column_sparse_attention(q, k, v, ck.ColumnLists(indices, counts, 64))
    copies = ck.ColumnLists(indices.contiguous(), counts.contiguous(), 64)
    expected = ck.column_sparse_attention(q.contiguous(), k.contiguous(), v.contiguous(), copies)
    assert torch.equal(ours[0], expected[0])
    assert torch.equal(ours[1], expected[1])
    if device == "cpu":
        array = np.broadcast_to(np.ones((1, 1, 70, 64), np.float32), (2, 3, 70, 64))
        out, _ = ck.dense_attention(array, array, array)
        assert abs(out - 1).max() < 1e-6


def test_negative_strides():
    """Only numpy has them."""
    q, k, v, _ = some_attention(dtype=torch.float32)
    arrays = [a.numpy()[:, ::-1, ::-1] for a in (q, k, v)]
    ours = ck.dense_attention(*arrays)
    expected = ck.dense_attention(*(np.ascontiguousarray(a) for a in arrays))
    for a, b in zip(ours, expected, strict=True):
        np.testing.assert_array_equal(a, b)
    mask = np.random.default_rng(0).random((3, 50)) < 0.3
    lists = ck.columns_from_mask(mask[::-1, ::-1])
    np.testing.assert_array_equal(lists.to_mask(50), mask[::-1, ::-1])


def test_slices_of_one_packed_projection(device):
    """q, k and v side by side in one buffer, and the output in a fourth part of it."""
    packed = torch.randn(2, 100, 4, 2, 64, device=device).to(torch.bfloat16)
    q, k, v, out = (packed[:, :, i].transpose(1, 2) for i in range(4))
    expected = ck.dense_attention(q.contiguous(), k.contiguous(), v.contiguous())
    before = packed[:, :, :3].clone()
    ck.dense_attention(q, k, v, out=out)
    assert torch.equal(out, expected[0])
    assert torch.equal(packed[:, :, :3], before)


# --- empties ---

SIZES = [  # batch, heads, queries, keys
    (0, 2, 5, 5),
    (2, 0, 5, 5),
    (2, 2, 0, 5),
    (2, 2, 5, 0),
    (0, 0, 0, 0),
]


@pytest.mark.parametrize(("batch", "heads", "queries", "keys"), SIZES)
@pytest.mark.parametrize("library", ["torch", "numpy"])
def test_empty_attention(batch, heads, queries, keys, library):
    def zeros(*shape, dtype="float32"):
        array = np.zeros(shape, dtype)
        return array if library == "numpy" else torch.from_numpy(array)

    q, k = zeros(batch, heads, queries, 64), zeros(batch, heads, keys, 64)
    groups = -(-queries // 64)
    lists = ck.ColumnLists(
        zeros(batch, heads, groups, 3, dtype="int32"),
        zeros(batch, heads, groups, dtype="int32"),
        64,
    )
    whole = ck.dense_attention(q, k, k)
    sums = ck.dense_attention_column_sums(q, k, k, query_group=64)
    selected = ck.column_sparse_attention(q, k, k, lists)
    rest = ck.rest_of_attention(whole, selected)
    for out, lse in (whole, sums[:2], selected, rest, ck.merge_attention(selected, rest)):
        assert tuple(out.shape) == (batch, heads, queries, 64)
        assert tuple(lse.shape) == (batch, heads, queries)
        assert np.all(np.asarray(out) == 0)
        if keys == 0:
            assert np.all(np.asarray(lse) == -math.inf)
    assert tuple(sums[2].shape) == (batch, heads, groups, keys)
    assert tuple(ck.select_columns(sums[2], count=2).indices.shape[:-1]) == (batch, heads, groups)
    assert tuple(lists.to_mask(keys).shape) == (batch, heads, groups, keys)


@pytest.mark.parametrize(
    ("batch", "tokens", "channels", "hidden", "out_channels"),
    [(0, 5, 8, 8, 8), (1, 0, 8, 8, 8), (1, 5, 0, 8, 8), (1, 5, 8, 0, 8), (1, 5, 8, 8, 0)],
)
def test_empty_mlp(device, batch, tokens, channels, hidden, out_channels):
    def ones(*shape):
        return torch.ones(*shape, device=device, dtype=torch.bfloat16)

    x, w1, w2t = ones(batch, tokens, channels), ones(hidden, channels), ones(hidden, out_channels)
    cache = ck.MlpCache.from_dense(x, w1, ones(hidden), w2t, ones(out_channels), "relu")
    assert cache.activations.shape == (batch, hidden, tokens)
    assert (cache.activations == channels + 1).all()
    assert cache.output.shape == (batch, tokens, out_channels)
    assert (cache.output == 1 + hidden * (channels + 1)).all()


def test_capacity_zero(device):
    q, k, v, _ = some_attention(device)
    lists = ck.columns_from_mask(
        torch.zeros(2, 4, 3, 90, dtype=torch.bool, device=device), query_group=64, capacity=0
    )
    out, lse = ck.column_sparse_attention(q, k, v, lists)
    assert (out == 0).all()
    assert (lse == -math.inf).all()
    x, w1, b1, w2t, _, cache = some_mlp(device)
    before = cache.activations.clone(), cache.output.clone()
    lists = ck.columns_from_mask(
        torch.zeros(2, 2, 48, dtype=torch.bool, device=device), query_group=128, capacity=0
    )
    ck.column_sparse_mlp(x, w1, b1, w2t, lists, cache, activation="gelu")
    assert torch.equal(cache.activations, before[0])
    assert torch.equal(cache.output, before[1])


# --- memory ---


def test_inputs_keep_their_bits(device):
    q, k, v, columns = some_attention(device)
    rest = ck.dense_attention(q, k, v)
    inputs = [q, k, v, columns.indices, columns.counts, *rest]
    copies = [a.clone() for a in inputs]
    ck.column_sparse_attention(q, k, v, columns, rest=rest)
    ck.dense_attention_column_sums(q, k, v, reference_lse=rest[1], query_group=64)
    ck.rest_of_attention(rest, rest)
    ck.merge_attention(rest, rest)
    columns.to_mask(90)
    for a, b in zip(inputs, copies, strict=True):
        assert torch.equal(a, b)


def test_read_only_inputs_are_fine():
    q, k, v, _ = some_attention(dtype=torch.float32)
    arrays = [a.numpy() for a in (q, k, v)]
    expected = ck.dense_attention(*arrays)
    for array in arrays:
        array.flags.writeable = False
    np.testing.assert_array_equal(ck.dense_attention(*arrays)[0], expected[0])


def test_nothing_around_an_output_is_written(device):
    """Outputs in the middle of a buffer of sentinels."""
    q, k, v, columns = some_attention(device)
    buffer = torch.full((2, 4, 134, 80), 7.0, dtype=q.dtype, device=device)
    lse_buffer = torch.full((2, 4, 140), 7.0, device=device)
    out, lse = buffer[:, :, 2:132, 8:72], lse_buffer[..., 3:133]
    ck.column_sparse_attention(q, k, v, columns, out=(out, lse))
    assert not (out == 7).all()
    out.fill_(7.0)
    lse.fill_(7.0)
    assert (buffer == 7).all()
    assert (lse_buffer == 7).all()


def test_rows_past_a_count_of_packed_delta_are_left_alone(device):
    x, w1, b1, _, columns, cache = some_mlp(device)
    delta = torch.full((*columns.indices.shape, 128), 7.0, dtype=x.dtype, device=device)
    given = ck.column_sparse_fc1(
        x, w1, b1, columns, cache.activations, activation="relu", out=delta
    )
    assert given is delta
    past = torch.arange(delta.shape[2], device=device) >= columns.counts[..., None]
    assert (delta[past] == 7).all()


def test_what_lies_past_the_count_of_new_lists_does_not_matter(device):
    scores = torch.rand(2, 3, 50, device=device)
    lists = ck.select_columns(scores, mass=0.4, query_group=64)
    mask = lists.to_mask(50)
    past = torch.arange(lists.indices.shape[-1], device=device) >= lists.counts[..., None]
    lists.indices[past] = 2**31 - 1
    assert torch.equal(lists.to_mask(50), mask)


def test_many_python_threads_at_once(device):
    """The GIL is released and ops share no state."""
    q, k, v, columns = some_attention(device)
    expected = ck.column_sparse_attention(q, k, v, columns)

    def run(_):
        return ck.column_sparse_attention(q, k, v, columns)

    with ThreadPoolExecutor(8) as pool:
        for out, lse in pool.map(run, range(64)):
            assert torch.equal(out, expected[0])
            assert torch.equal(lse, expected[1])


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS is Linux's")
def test_fewer_threads_will_do():
    """Where the system gives no thread: too little address space for another one's stack."""
    program = """
import resource
import numpy as np
from chipmunk_kernels import _core
q = np.random.default_rng(0).normal(size=(1, 4, 600, 64)).astype(np.float32)
outs = [(np.zeros_like(q), np.zeros(q.shape[:-1], np.float32)) for _ in range(2)]
_core.dense_attention(q, q, q, None, None, *outs[0], 1)
with open("/proc/self/statm") as file:
    size = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + (6 << 20),) * 2)
_core.dense_attention(q, q, q, None, None, *outs[1], 3)
assert np.array_equal(outs[0][0], outs[1][0])
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("library", ["torch", "numpy"])
def test_arguments_are_let_go(library):
    """No op keeps a reference to an array."""
    *qkv, columns = some_attention(dtype=torch.float32)
    arrays = [*qkv, columns.indices, columns.counts]
    if library == "numpy":
        arrays = [a.numpy() for a in arrays]
    before = [sys.getrefcount(a) for a in arrays]
    for _ in range(3):
        ck.column_sparse_attention(*arrays[:3], ck.ColumnLists(*arrays[3:], 64))
    assert [sys.getrefcount(a) for a in arrays] == before


def test_info_tells_the_truth():
    info = ck.info()
    assert info.version == ck.__version__
    assert info.cpu_isa in info.cpu_isas
    assert info.cpu_threads >= 1
    assert (info.cuda_toolkit > 0) == info.cuda_compiled
    text = str(info)
    assert text.startswith(f"chipmunk_kernels {info.version}\n")
    assert info.cpu_isa in text
    assert ("not compiled in" in text) == (not info.cuda_compiled)
