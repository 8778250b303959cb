"""What every op promises whatever it computes: array libraries, strides, empties, memory."""

from __future__ import annotations

import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from cases import LAYOUTS, laid_out, poisoned_lists  # noqa: E402

import chipmunk_kernels as ck  # noqa: E402
from chipmunk_kernels import _core  # noqa: E402


def some_attention(device="cpu", dtype=torch.bfloat16, queries=130, keys=90):
    q = torch.randn(2, 4, queries, 64, device=device).to(dtype)
    k, v = (torch.randn(2, 2, keys, 64, device=device).to(dtype) for _ in range(2))
    mask = torch.rand(2, 4, -(-queries // 64), keys, device=device) < 0.3
    return q, k, v, poisoned_lists(mask, 64)


def some_mlp(device="cpu", dtype=torch.bfloat16, tokens=200):
    def randn(*shape):
        return torch.randn(*shape, device=device).to(dtype)

    columns = poisoned_lists(torch.rand(2, -(-tokens // 128), 48, device=device) < 0.3, 128)
    cache = ck.MlpCache(randn(2, 48, tokens), randn(2, tokens, 64))
    return randn(2, tokens, 64), randn(48, 64), randn(48), randn(48, 64), columns, cache


def assert_equal(ours, expected):
    for a, b in zip(ours, expected, strict=True):
        assert torch.equal(torch.as_tensor(np.asarray(a)), b)


# --- array libraries ---


def test_numpy_alone_is_enough():
    """No other array library gets imported; ops work without any."""
    program = """
import sys
import numpy as np
import chipmunk_kernels as ck
q = np.ones((1, 2, 70, 64), np.float32)
scores = np.arange(40, dtype=np.float32).reshape(1, 2, 2, 10)
columns = ck.select_columns(scores, count=3, query_group=64)
assert columns.indices[0, 0, 0].tolist() == [7, 8, 9]
k = np.zeros((1, 2, 10, 64), np.float32)
v = k + np.arange(10, dtype=np.float32)[:, None]
out, lse = ck.column_sparse_attention(q, k, v, columns)
assert isinstance(out, np.ndarray) and abs(out - 8).max() < 1e-6, out
assert abs(lse - np.log(3)).max() < 1e-6, lse
assert not {"torch", "jax", "cupy"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_numpy_gives_what_torch_gives(dtype):
    q, k, v, columns = some_attention(dtype=dtype)
    lists = ck.ColumnLists(columns.indices.numpy(), columns.counts.numpy(), 64)
    arrays = q.numpy(), k.numpy(), v.numpy()
    ours = ck.column_sparse_attention(*arrays, lists)
    assert all(isinstance(a, np.ndarray) for a in ours)
    expected = ck.column_sparse_attention(q, k, v, columns)
    assert_equal(ours, expected)
    sums = ck.dense_attention_column_sums(*arrays, query_group=64)
    assert_equal(sums, ck.dense_attention_column_sums(q, k, v, query_group=64))
    rest = ck.rest_of_attention(ck.dense_attention(*arrays), ours)
    expected_rest = ck.rest_of_attention(ck.dense_attention(q, k, v), expected)
    assert_equal(rest, expected_rest)
    assert_equal(ck.merge_attention(rest, ours), ck.merge_attention(expected_rest, expected))


def test_the_mlp_on_numpy():
    x, w1, b1, w2t, columns, cache = some_mlp(dtype=torch.float32)
    lists = ck.ColumnLists(columns.indices.numpy(), columns.counts.numpy(), 128)
    copy = ck.MlpCache(cache.activations.numpy().copy(), cache.output.numpy().copy())
    weights = w1.numpy(), b1.numpy(), w2t.numpy()
    out = ck.column_sparse_mlp(x.numpy(), *weights, lists, copy, activation="silu")
    assert out is copy.output
    expected = ck.column_sparse_mlp(x, w1, b1, w2t, columns, cache, activation="silu")
    assert_equal((out, copy.activations), (expected, cache.activations))
    dense = ck.MlpCache.from_dense(x.numpy(), *weights, None, "silu")
    expected = ck.MlpCache.from_dense(x, w1, b1, w2t, None, "silu")
    assert_equal((dense.activations, dense.output), (expected.activations, expected.output))


def test_numpy_bfloat16():
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="numpy has no bfloat16 without ml_dtypes")
    q, k, v, columns = some_attention()
    lists = ck.ColumnLists(columns.indices.numpy(), columns.counts.numpy(), 64)
    arrays = [a.view(torch.int16).numpy().view(ml_dtypes.bfloat16) for a in (q, k, v)]
    out, lse = ck.column_sparse_attention(*arrays, lists)
    assert out.dtype == ml_dtypes.bfloat16
    expected = ck.column_sparse_attention(q, k, v, columns)
    assert_equal((out.view(np.int16), lse), (expected[0].view(torch.int16), expected[1]))


def test_jax_on_the_cpu():
    jax = pytest.importorskip("jax", reason="jax is not installed")
    q, k, v, columns = some_attention()
    to_jax = jax.dlpack.from_dlpack
    lists = ck.ColumnLists(to_jax(columns.indices), to_jax(columns.counts), 64)
    arrays = tuple(to_jax(a.contiguous()) for a in (q, k, v))
    ours = ck.column_sparse_attention(*arrays, lists)
    assert all(isinstance(a, jax.Array) for a in ours)
    assert ours[0].dtype == jax.numpy.bfloat16
    expected = ck.column_sparse_attention(q, k, v, columns)
    for a, b in zip(ours, expected, strict=True):
        assert torch.equal(torch.from_dlpack(a), b)
    chosen = ck.select_columns(jax.numpy.arange(20.0).reshape(2, 10), count=3)
    assert chosen.indices.tolist() == [[7, 8, 9], [7, 8, 9]]
    assert chosen.to_mask(10).sum() == 6


def test_what_jax_cannot_do_is_unsupported():
    jax = pytest.importorskip("jax", reason="jax is not installed")
    q = jax.numpy.zeros((1, 1, 70, 64))
    with pytest.raises(ck.UnsupportedError, match=r"q: a traced jax array has no data"):
        jax.jit(lambda x: ck.dense_attention(x, x, x))(q)
    with pytest.raises(ck.UnsupportedError, match=r"out: is updated in place, and jax arrays"):
        ck.dense_attention(q, q, q, out=q)
    with pytest.raises(ck.UnsupportedError, match=r"x: is updated in place, and jax arrays"):
        ck.MlpCache.from_dense(q[0], q[0, 0], None, q[0, 0], None, "relu")


class OldCapsules:
    """A library from before DLPack 1.0: no max_version, unversioned capsules."""

    def __init__(self, tensor):
        self.tensor = tensor

    def __dlpack__(self, stream=None):
        return self.tensor.__dlpack__()

    def __dlpack_device__(self):
        return self.tensor.__dlpack_device__()


class NewCapsules(OldCapsules):
    """DLPack 1.0 without the exchange table."""

    def __dlpack__(self, *, stream=None, max_version=None):
        assert max_version >= (1, 0)
        return self.tensor.__dlpack__(max_version=max_version)


@pytest.mark.parametrize("wrap", [OldCapsules, NewCapsules])
def test_capsules_old_and_new(wrap):
    mask = torch.rand(2, 3, 40) < 0.4
    lists = ck.ColumnLists(torch.zeros(2, 3, 40).int(), torch.zeros(2, 3).int(), 64)
    _core.columns_from_mask(wrap(mask), wrap(lists.indices), wrap(lists.counts))
    assert torch.equal(lists.to_mask(40), mask)


def test_a_host_buffer_outlives_its_export():
    buffer = _core.HostBuffer([3, 4], "float32")
    array = torch.from_dlpack(buffer)
    assert array.shape == (3, 4)
    array.fill_(2.5)
    del buffer
    assert (array == 2.5).all()
    assert array.data_ptr() % 64 == 0
    assert np.from_dlpack(_core.HostBuffer([], "int32")).shape == ()
    capsule = _core.HostBuffer([7], "bool").__dlpack__(max_version=(1, 0))
    del capsule  # never consumed
    with pytest.raises(ValueError, match=r"HostBuffer: dtype: expected .*, got float64"):
        _core.HostBuffer([1], "float64")


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
