"""Arrays of every library that DLPack reaches: torch, numpy, jax, old and new capsules, devices."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from cases import some_attention, some_mlp  # noqa: E402

import chipmunk_kernels as ck  # noqa: E402
from chipmunk_kernels import _core  # noqa: E402


def assert_equal(ours, expected):
    for a, b in zip(ours, expected, strict=True):
        assert torch.equal(torch.as_tensor(np.asarray(a)), b)


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


def test_query_rows_and_key_weights_of_numpy():
    q, k, v, columns = some_attention(dtype=torch.float32)
    lists = ck.ColumnLists(columns.indices.numpy(), columns.counts.numpy(), 64)
    arrays = q.numpy(), k.numpy(), v.numpy()
    rows, weights = torch.randperm(130).int(), torch.randn(2, 2, 90)
    ours = ck.column_sparse_attention(*arrays, lists, query_rows=rows.numpy())
    assert_equal(ours, ck.column_sparse_attention(q, k, v, columns, query_rows=rows))
    dense = ck.dense_attention(*arrays, query_rows=rows.numpy())
    assert_equal(dense, ck.dense_attention(q, k, v, query_rows=rows))
    sums = ck.dense_attention_column_sums(
        *arrays, query_rows=rows.numpy(), key_weights=weights.numpy()
    )
    expected = ck.dense_attention_column_sums(q, k, v, query_rows=rows, key_weights=weights)
    assert_equal(sums, expected)


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
    rows = torch.randperm(130).int()
    ours = ck.column_sparse_attention(*arrays, lists, query_rows=to_jax(rows))
    expected = ck.column_sparse_attention(q, k, v, columns, query_rows=rows)
    for a, b in zip(ours, expected, strict=True):
        assert torch.equal(torch.from_dlpack(a), b)
    chosen = ck.select_columns(jax.numpy.arange(20.0).reshape(2, 10), count=3)
    assert chosen.indices.tolist() == [[7, 8, 9], [7, 8, 9]]
    assert chosen.to_mask(10).sum() == 6


def test_numbers_and_budgets_of_jax():
    jax = pytest.importorskip("jax", reason="jax is not installed")
    scores = jax.numpy.arange(60.0).reshape(2, 3, 10)
    per_list = ck.select_columns(scores, count=jax.numpy.array([1, 2, 3]), max_count=5)
    assert per_list.counts.tolist() == [[1, 2, 3]] * 2
    by_mass = ck.select_columns(scores, mass=jax.numpy.array([[0.01], [1.0]]), max_count=8)
    assert by_mass.counts.tolist() == [[1] * 3, [8] * 3]
    one = ck.select_columns(scores, count=jax.numpy.array(4), seed=jax.numpy.array(3))
    assert (one.counts == 4).all()


def test_what_jax_cannot_do_is_unsupported():
    jax = pytest.importorskip("jax", reason="jax is not installed")
    q = jax.numpy.zeros((1, 1, 70, 64))
    with pytest.raises(ck.UnsupportedError, match=r"q: a traced jax array has no data"):
        jax.jit(lambda x: ck.dense_attention(x, x, x))(q)
    with pytest.raises(ck.UnsupportedError, match=r"out: is updated in place, and jax arrays"):
        ck.dense_attention(q, q, q, out=q)
    with pytest.raises(ck.UnsupportedError, match=r"x: is updated in place, and jax arrays"):
        ck.MlpCache.from_dense(q[0], q[0, 0], None, q[0, 0], None, "relu")


def test_jax_in_checked_mode(monkeypatch):
    jax = pytest.importorskip("jax", reason="jax is not installed")
    monkeypatch.setenv("CHIPMUNK_CHECK", "1")
    mask = jax.numpy.ones((2, 9), bool)
    assert ck.columns_from_mask(mask).to_mask(9).sum() == 18
    with pytest.raises(ValueError, match="mask: expected at most capacity=8 columns in a row"):
        ck.columns_from_mask(mask, capacity=8)


def test_a_jax_array_of_another_dtype_is_named():
    jax = pytest.importorskip("jax", reason="jax is not installed")
    q = jax.numpy.zeros((1, 1, 70, 64))
    with pytest.raises(ValueError, match=r"dense_attention: q: expected dtype .* got int8"):
        ck.dense_attention(q.astype("int8"), q, q)


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
    _core.columns_from_mask(wrap(mask), 64, wrap(lists.indices), wrap(lists.counts), None)
    assert torch.equal(lists.to_mask(40), mask)


def test_a_host_buffer_outlives_its_export():
    buffer = _core.HostBuffer([3, 4], "float32")
    assert buffer.shape == (3, 4)
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


class FromAnotherWorld:
    """An array on a device that nobody here has."""

    def __dlpack_device__(self):
        return (10, 0)  # ROCm

    def __dlpack__(self, **options):
        raise AssertionError


class FakeCuda(FromAnotherWorld):
    """Says that it is on a GPU, and whether it was told which stream to order its work before."""

    stream: object = "not asked"

    def __dlpack_device__(self):
        return (2, 0)

    def __dlpack__(self, *, stream=None, **options):
        self.stream = stream
        raise BufferError("no such memory")


def test_other_devices_are_unsupported():
    with pytest.raises(ck.UnsupportedError) as error:
        _core.validate_columns(FromAnotherWorld(), torch.zeros(1, dtype=torch.int32), 3)
    assert str(error.value) == (
        "validate_columns: columns.indices: arrays on DLPack device type 10 are not supported; "
        "expected the CPU or a CUDA device"
    )


@pytest.mark.parametrize(("given", "asked"), [(None, 1), (0, 1), (12345, 12345)])
def test_capsules_are_asked_for_with_the_stream(given, asked):
    """DLPack's own number for the legacy default stream is 1."""
    array = FakeCuda()
    with pytest.raises(ValueError, match=r"got FakeCuda \(no such memory\)"):
        _core.columns_to_mask(
            array, torch.zeros(1, dtype=torch.int32), torch.zeros(1, dtype=torch.int32), 0, given
        )
    assert array.stream == asked


def test_other_exceptions_of_a_producer_pass_through():
    class Interrupted(FromAnotherWorld):
        def __dlpack_device__(self):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _core.validate_columns(Interrupted(), torch.zeros(1, dtype=torch.int32), 3)
