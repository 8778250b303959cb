"""The reference against loops over single numbers, and the properties it promises."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from chipmunk_kernels import reference as ref  # noqa: E402

INF = math.inf
INT_MAX = 2**31 - 1


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def random_mask(*shape: int, density: float, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < density


def loop_attention(q, k, v, keys_of, scale):
    """Rows one at a time; keys_of(b, h, i) lists the keys of row i."""
    out, lse = torch.zeros_like(q), torch.full(q.shape[:-1], -INF, dtype=q.dtype)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            kv = h // (q.shape[1] // k.shape[1])
            for i in range(q.shape[2]):
                keys = keys_of(b, h, i)
                scores = [scale * float(q[b, h, i] @ k[b, kv, j]) for j in keys]
                total = sum(math.exp(s) for s in scores)
                if total > 0:
                    lse[b, h, i] = math.log(total)
                for s, j in zip(scores, keys, strict=True):
                    out[b, h, i] += math.exp(s) / total * v[b, kv, j]
    return out, lse


SHAPES = [
    # batch, query heads, kv heads, queries, keys, head dim, query group
    (1, 1, 1, 5, 7, 8, 4),
    (2, 4, 2, 9, 6, 16, 3),
    (1, 2, 1, 8, 8, 8, 8),
    (1, 3, 3, 1, 13, 8, 64),
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [None, 0.3])
def test_dense_attention(shape, scale):
    batch, heads, kv_heads, queries, keys, dim, _ = shape
    q, k, v = randn(batch, heads, queries, dim), *randn(2, batch, kv_heads, keys, dim, seed=1)
    out, lse = ref.dense_attention(q, k, v, softmax_scale=scale)
    expected = loop_attention(q, k, v, lambda *_: range(keys), scale or dim**-0.5)
    torch.testing.assert_close((out, lse), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_column_sums(shape):
    batch, heads, kv_heads, queries, keys, dim, group = shape
    q, k, v = randn(batch, heads, queries, dim), *randn(2, batch, kv_heads, keys, dim, seed=1)
    reference = randn(batch, heads, queries, seed=2)
    reference[0, 0, 0] = INF
    out, lse, sums = ref.dense_attention_column_sums(
        q, k, v, reference_lse=reference, query_group=group
    )
    torch.testing.assert_close((out, lse), ref.dense_attention(q, k, v))
    expected = torch.zeros(batch, heads, -(-queries // group), keys, dtype=q.dtype)
    for b in range(batch):
        for h in range(heads):
            for i in range(queries):
                for j in range(keys):
                    score = float(q[b, h, i] @ k[b, h // (heads // kv_heads), j]) * dim**-0.5
                    expected[b, h, i // group, j] += math.exp(score - float(reference[b, h, i]))
    torch.testing.assert_close(sums, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_column_sums_by_query_rows_and_key_weights(shape):
    batch, heads, kv_heads, queries, keys, dim, group = shape
    q, k, v = randn(batch, heads, queries, dim), *randn(2, batch, kv_heads, keys, dim, seed=1)
    weights = randn(batch, kv_heads, keys, seed=3)
    rows = torch.randperm(queries, generator=torch.Generator().manual_seed(4)).int()
    out, lse, sums = ref.dense_attention_column_sums(
        q, k, v, key_weights=weights, query_rows=rows, query_group=group
    )
    torch.testing.assert_close((out, lse), ref.dense_attention(q, k, v))
    expected = torch.zeros(batch, heads, -(-queries // group), keys, dtype=q.dtype)
    for b in range(batch):
        for h in range(heads):
            kv = h // (heads // kv_heads)
            for position, i in enumerate(rows.tolist()):
                for j in range(keys):
                    score = float(q[b, h, i] @ k[b, kv, j]) * dim**-0.5
                    probability = math.exp(score - float(lse[b, h, i]))
                    expected[b, h, position // group, j] += probability * float(weights[b, kv, j])
    torch.testing.assert_close(sums, expected, rtol=1e-12, atol=1e-12)


def test_exact_column_sums_of_a_group_add_up_to_its_rows():
    q, k, v = randn(1, 2, 10, 8), *randn(2, 1, 2, 7, 8, seed=1)
    sums = ref.dense_attention_column_sums(q, k, v, query_group=4)[2]
    rows = torch.tensor([4.0, 4.0, 2.0], dtype=torch.float64).expand(1, 2, 3)
    torch.testing.assert_close(sums.sum(-1), rows)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("density", [0.0, 0.4, 1.0])
def test_column_sparse_attention(shape, density):
    batch, heads, kv_heads, queries, keys, dim, group = shape
    q, k, v = randn(batch, heads, queries, dim), *randn(2, batch, kv_heads, keys, dim, seed=1)
    mask = random_mask(batch, heads, -(-queries // group), keys, density=density)
    indices, counts = ref.columns_from_mask(mask)
    past = torch.arange(keys) >= counts[..., None]
    indices = torch.where(past, INT_MAX, indices)
    out, lse = ref.column_sparse_attention(q, k, v, indices, counts, group)

    def keys_of(b, h, i):
        return mask[b, h, i // group].nonzero()[:, 0].tolist()

    expected = loop_attention(q, k, v, keys_of, dim**-0.5)
    torch.testing.assert_close((out, lse), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("with_rest", [False, True])
def test_column_sparse_attention_by_query_rows(shape, with_rest):
    batch, heads, kv_heads, queries, keys, dim, group = shape
    q, k, v = randn(batch, heads, queries, dim), *randn(2, batch, kv_heads, keys, dim, seed=1)
    mask = random_mask(batch, heads, -(-queries // group), keys, density=0.4)
    lists = *ref.columns_from_mask(mask), group
    rows = torch.randperm(queries, generator=torch.Generator().manual_seed(4)).int()
    position = {row: at for at, row in enumerate(rows.tolist())}

    def keys_of(b, h, i):
        return mask[b, h, position[i] // group].nonzero()[:, 0].tolist()

    expected = loop_attention(q, k, v, keys_of, dim**-0.5)
    rest = None
    if with_rest:
        rest = randn(*q.shape, seed=5), randn(*q.shape[:-1], seed=6)
        expected = ref.merge_attention(expected, rest)
    ours = ref.column_sparse_attention(q, k, v, *lists, query_rows=rows, rest=rest)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


def test_unselected_keys_do_not_reach_the_output():
    q, k, v = randn(1, 1, 6, 8), *randn(2, 1, 1, 9, 8, seed=1)
    mask = random_mask(1, 1, 2, 9, density=0.5)
    mask[..., 4] = False
    indices, counts = ref.columns_from_mask(mask)
    clean = ref.column_sparse_attention(q, k, v, indices, counts, 3)
    k[0, 0, 4], v[0, 0, 4] = math.nan, math.nan
    poisoned = ref.column_sparse_attention(q, k, v, indices, counts, 3)
    assert torch.equal(clean[0], poisoned[0])
    assert torch.equal(clean[1], poisoned[1])


def test_no_keys_at_all():
    q, empty = randn(1, 2, 5, 8), torch.zeros(1, 2, 0, 8, dtype=torch.float64)
    for out, lse in (
        ref.dense_attention(q, empty, empty),
        ref.column_sparse_attention(
            q, empty, empty, torch.zeros(1, 2, 1, 3).int(), torch.zeros(1, 2, 1).int()
        ),
    ):
        assert torch.equal(out, torch.zeros_like(q))
        assert torch.equal(lse, torch.full((1, 2, 5), -INF, dtype=torch.float64))


def test_no_queries():
    q, k = torch.zeros(1, 1, 0, 8), torch.zeros(1, 1, 4, 8)
    lists = torch.zeros(1, 1, 0, 4).int(), torch.zeros(1, 1, 0).int()
    assert ref.column_sparse_attention(q, k, k, *lists)[0].shape == (1, 1, 0, 8)
    assert ref.dense_attention_column_sums(q, k, k)[2].shape == (1, 1, 0, 4)


@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
def test_selected_and_rest_make_the_whole(density):
    q, k, v = randn(2, 2, 10, 8), *randn(2, 2, 2, 12, 8, seed=1)
    mask = random_mask(2, 2, 3, 12, density=density)
    selected = ref.column_sparse_attention(q, k, v, *ref.columns_from_mask(mask), 4)
    others = ref.column_sparse_attention(q, k, v, *ref.columns_from_mask(~mask), 4)
    whole = ref.dense_attention(q, k, v)
    torch.testing.assert_close(ref.merge_attention(selected, others), whole)
    rest = ref.rest_of_attention(whole, selected)
    some = others[1] > -INF  # where nothing is left, rest holds the rounding of the two passes
    torch.testing.assert_close(rest[0][some], others[0][some], rtol=1e-9, atol=1e-9)
    assert (rest[1][~some] < whole[1][~some] - 30).all()
    torch.testing.assert_close(ref.merge_attention(selected, rest), whole)
    merged = ref.column_sparse_attention(q, k, v, *ref.columns_from_mask(mask), 4, rest=rest)
    torch.testing.assert_close(merged, whole)


def test_empty_parts_are_not_looked_at():
    part = randn(1, 1, 3, 4), randn(1, 1, 3, seed=1)
    empty = torch.full((1, 1, 3, 4), math.nan).double(), torch.full((1, 1, 3), -INF).double()
    for merged in (ref.merge_attention(part, empty), ref.merge_attention(empty, part)):
        assert torch.equal(merged[0], part[0])
        assert torch.equal(merged[1], part[1])
    both = ref.merge_attention(empty, empty)
    assert torch.equal(both[0], torch.zeros(1, 1, 3, 4).double())
    assert torch.equal(both[1], empty[1])


def test_rest_of_identical_parts_is_empty():
    whole = randn(1, 1, 3, 4), randn(1, 1, 3, seed=1)
    out, lse = ref.rest_of_attention(whole, whole)
    assert torch.equal(out, torch.zeros(1, 1, 3, 4).double())
    assert torch.equal(lse, torch.full((1, 1, 3), -INF).double())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_rest_with_little_mass_does_not_amplify_rounding(dtype):
    """One ulp between the outputs of the dense and of the sparse kernel must stay one ulp."""
    whole = torch.ones(1, 1, 1, 4, dtype=dtype), torch.full((1, 1, 1), 8.0)
    ulp = torch.finfo(dtype).eps
    selected = torch.full((1, 1, 1, 4), 1 + ulp, dtype=dtype), torch.full((1, 1, 1), 8.0 - 2e-6)
    out, lse = ref.rest_of_attention(whole, selected)
    assert (out.double() - 1).abs().max() <= 0.2
    assert lse.item() == pytest.approx(8 + math.log(2e-6), abs=0.5)


def scalar_activation(z: float, name: str) -> float:
    if name == "gelu_tanh":
        return 0.5 * z * (1 + math.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))
    if name == "gelu":
        return 0.5 * z * (1 + math.erf(z / math.sqrt(2)))
    return max(z, 0.0) if name == "relu" else z / (1 + math.exp(-z))


@pytest.mark.parametrize("activation", ["gelu_tanh", "gelu", "silu", "relu", "swiglu", "geglu"])
@pytest.mark.parametrize("bias", [True, False])
def test_hidden_units(activation, bias):
    gates = {"swiglu": "silu", "geglu": "gelu"}
    gated = activation in gates
    hidden, x = 4, randn(2, 3, 5)
    w1, b1 = randn(hidden * (1 + gated), 5, seed=1), randn(hidden * (1 + gated), seed=2)
    units = ref.hidden_units(x, w1, b1 if bias else None, activation)
    for b in range(2):
        for f in range(hidden):
            for m in range(3):
                z = float(x[b, m] @ w1[f]) + (float(b1[f]) if bias else 0)
                if gated:
                    gate = float(x[b, m] @ w1[hidden + f]) + (float(b1[hidden + f]) if bias else 0)
                    expected = z * scalar_activation(gate, gates[activation])
                else:
                    expected = scalar_activation(z, activation)
                assert float(units[b, f, m]) == pytest.approx(expected, abs=1e-12)


def test_unknown_activation():
    with pytest.raises(ValueError, match="unknown 'tanh'"):
        ref.hidden_units(randn(1, 2, 3), randn(4, 3), None, "tanh")


@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_column_sparse_mlp(density, dtype):
    batch, tokens, channels, hidden, outputs = 2, 200, 6, 11, 5
    x0, x1 = randn(2, batch, tokens, channels).to(dtype)
    w1, b1 = randn(hidden, channels, seed=1).to(dtype), randn(hidden, seed=2).to(dtype)
    w2t, b2 = randn(hidden, outputs, seed=3).to(dtype), randn(outputs, seed=4).to(dtype)
    old, out = ref.dense_mlp(x0, w1, b1, w2t, b2, "gelu_tanh")
    new, dense = ref.dense_mlp(x1, w1, b1, w2t, b2, "gelu_tanh")
    mask = random_mask(batch, 2, hidden, density=density)
    indices, counts = ref.columns_from_mask(mask)
    indices = torch.where(torch.arange(hidden) >= counts[..., None], INT_MAX, indices)
    cache, before = old.clone(), out.clone()
    result = ref.column_sparse_mlp(
        x1, w1, b1, w2t, indices, counts, cache, out, activation="gelu_tanh"
    )
    assert result is out
    per_token = mask.repeat_interleave(128, dim=1)[:, :tokens].transpose(1, 2)  # [B, F, M]
    assert torch.equal(cache, torch.where(per_token, new, old))
    delta = (cache.double() - old.double()).to(dtype).double()
    expected = before.double() + delta.transpose(1, 2) @ w2t.double()
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(out.double(), expected, rtol=eps, atol=8 * eps)
    if density == 1:
        torch.testing.assert_close(out, dense, rtol=8 * eps, atol=64 * eps)


def test_packed_delta_layout():
    x, w1 = randn(1, 130, 3), randn(7, 3, seed=1)
    cache = randn(1, 7, 130, seed=2)
    old = cache.clone()
    indices = torch.tensor([[[0, 2, 6], [5, INT_MAX, INT_MAX]]], dtype=torch.int32)
    counts = torch.tensor([[3, 1]], dtype=torch.int32)
    packed = ref.column_sparse_fc1(x, w1, None, indices, counts, cache, activation="relu")
    assert packed.shape == (1, 2, 3, 128)
    delta = ref.hidden_units(x, w1, None, "relu") - old
    assert torch.equal(packed[0, 0], delta[0, [0, 2, 6], :128])
    assert torch.equal(packed[0, 1, 0, :2], delta[0, 5, 128:])
    assert torch.equal(packed[0, 1, 0, 2:], torch.zeros(126, dtype=torch.float64))


def test_fc2_does_not_read_past_the_count():
    packed, w2t = randn(1, 1, 3, 128), randn(7, 4, seed=1)
    packed[0, 0, 2] = math.nan
    indices = torch.tensor([[[1, 4, INT_MAX]]], dtype=torch.int32)
    out = randn(1, 100, 4, seed=2)
    expected = out + packed[0, 0, :2, :100].T @ w2t[[1, 4]]
    ref.column_sparse_fc2(packed, w2t, indices, torch.tensor([[2]]).int(), out)
    torch.testing.assert_close(out, expected)
