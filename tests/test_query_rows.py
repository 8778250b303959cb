"""Groups that query_rows makes up, and key_weights, against the reference and reordered inputs."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from cases import (  # noqa: E402
    LAYOUTS,
    AttentionCase,
    attention_cases,
    laid_out,
    poisoned_lists,
    rng,
    some_attention,
    threads,
)
from numerics import assert_as_good_as_torch, largest  # noqa: E402
from test_attention import assert_parts, doubled, rounding_of_scores  # noqa: E402

import chipmunk_kernels as ck  # noqa: E402
from chipmunk_kernels import reference  # noqa: E402


def permutation(n, device, seed=0):
    return torch.randperm(n, generator=rng(seed)).int().to(device)


def by(rows, *tensors):
    """The tensors `[B, H, Nq, ..]` in the order of `rows`."""
    return tuple(None if t is None else t[:, :, rows.long()] for t in tensors)


def assert_same_bits(ours, expected):
    for a, b in zip(ours, expected, strict=True):
        assert torch.equal(a, b)


def random_weights(case, device):
    """Factors of both signs, every third 0; rows apart in memory."""
    weights = torch.randn(case.batch, case.kv_heads, case.keys, generator=rng(case.seed + 8))
    weights[..., ::3] = 0.0
    return laid_out(weights.to(device), case.layout)


@given(data=st.data())
def test_column_sparse_attention(device, data):
    case = data.draw(attention_cases(device))
    with_rest = data.draw(st.booleans())
    q, k, v = case.qkv(device)
    mask = case.mask(device)
    case.poison_unread(mask, k, v)
    rest = case.part(device, seed=5) if with_rest else None
    columns = poisoned_lists(mask, case.query_group, layout=case.layout)
    rows = permutation(case.queries, device, case.seed)
    with threads(case.threads):
        ours = ck.column_sparse_attention(q, k, v, columns, rest=rest, query_rows=rows)

    lists = (columns.indices, columns.counts, case.query_group)
    options = {"rest": rest, "query_rows": rows}
    native = reference.column_sparse_attention(q, k, v, *lists, **options)
    if rest is not None:
        options["rest"] = doubled(*rest)
    exact = reference.column_sparse_attention(*doubled(q, k, v), *lists, **options)
    assert_parts(ours, native, exact, rounding_of_scores(q, k), largest(v))

    moved_rest = None if rest is None else by(rows, *rest)
    moved = ck.column_sparse_attention(*by(rows, q), k, v, columns, rest=moved_rest)
    assert_same_bits(ours, by(rows.argsort(), *moved))


@given(data=st.data())
def test_dense_attention_column_sums(device, data):
    case = data.draw(attention_cases(device)).for_sums(device)
    sums_dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16]))
    q, k, v = case.qkv(device)
    lse = None
    if data.draw(st.booleans()):
        lse = reference.dense_attention(q * 0.9, k, v)[1]
        lse[..., ::3] = math.inf
    rows = permutation(case.queries, device, case.seed)
    weights = random_weights(case, device) if data.draw(st.booleans()) else None
    shape = (case.batch, case.heads, case.groups, case.keys)
    sums = torch.full(shape, math.nan, dtype=sums_dtype, device=device)
    options = {"query_group": case.query_group, "query_rows": rows, "key_weights": weights}
    with threads(case.threads):
        *part, _ = ck.dense_attention_column_sums(
            q, k, v, reference_lse=lse, out=(None, None, sums), **options
        )

    *native, native_sums = reference.dense_attention_column_sums(
        q, k, v, reference_lse=lse, **options
    )
    *exact, exact_sums = reference.dense_attention_column_sums(
        *doubled(q, k, v), reference_lse=doubled(lse)[0], **options
    )
    scores = rounding_of_scores(q, k)
    assert_parts(part, native, exact, scores, largest(v))
    rounding = scores * largest(exact_sums)
    native_sums = native_sums.to(sums_dtype)
    assert_as_good_as_torch(sums, native_sums, exact_sums, "column_sums", sums=rounding)

    moved_q, moved_lse = by(rows, q, lse)
    *moved, plain = ck.dense_attention_column_sums(
        moved_q, k, v, reference_lse=moved_lse, query_group=case.query_group
    )
    if weights is not None:
        plain = plain * weights.repeat_interleave(case.heads_per_kv, dim=1)[:, :, None]
    assert torch.equal(sums, plain.to(sums_dtype))
    assert_same_bits(part, by(rows.argsort(), *moved))


def test_rows_as_they_come_give_the_bits_of_none(device):
    q, k, v, columns = some_attention(device)
    rows = torch.arange(130, dtype=torch.int32, device=device)
    assert_same_bits(
        ck.column_sparse_attention(q, k, v, columns, query_rows=rows),
        ck.column_sparse_attention(q, k, v, columns),
    )
    assert_same_bits(
        ck.dense_attention_column_sums(q, k, v, query_rows=rows),
        ck.dense_attention_column_sums(q, k, v),
    )


def test_dense_attention_does_not_depend_on_them(device):
    q, k, v, _ = some_attention(device)
    rows = permutation(130, device)
    assert_same_bits(ck.dense_attention(q, k, v, query_rows=rows), ck.dense_attention(q, k, v))


def test_every_row_attends_to_the_list_of_its_group(device):
    """By hand: two groups of which one lists key 0 alone, the other key 1 alone."""
    q = torch.randn(1, 2, 130, 64, device=device).bfloat16()
    k, v = (torch.randn(1, 2, 2, 64, device=device).bfloat16() for _ in range(2))
    indices = torch.tensor([0, 1, 0], dtype=torch.int32, device=device)
    columns = ck.ColumnLists(
        indices.reshape(1, 1, 3, 1).repeat(1, 2, 1, 1),
        torch.ones(1, 2, 3, dtype=torch.int32, device=device),
        64,
    )
    rows = permutation(130, device)
    out, _ = ck.column_sparse_attention(q, k, v, columns, query_rows=rows)
    second = torch.zeros(130, dtype=torch.bool, device=device)
    second[rows[64:128].long()] = True
    assert torch.equal(out, torch.where(second[:, None], v[:, :, 1:], v[:, :, :1]))


@pytest.mark.parametrize("query_group", [256, 450])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_groups_of_several_tiles(query_group, dtype):
    """A tile of the CPU has at most 192 rows."""
    case = AttentionCase(2, 1, 2, 600, 90, 64, query_group, dtype, "transposed", 0.4, 3)
    q, k, v = case.qkv("cpu")
    columns, rest = poisoned_lists(case.mask("cpu"), query_group), case.part("cpu", seed=4)
    rows = permutation(600, "cpu")
    ours = ck.column_sparse_attention(q, k, v, columns, rest=rest, query_rows=rows)
    moved = ck.column_sparse_attention(*by(rows, q), k, v, columns, rest=by(rows, *rest))
    assert_same_bits(ours, by(rows.argsort(), *moved))
    lse = ck.dense_attention(q, k, v)[1] + torch.randn(2, 2, 600)
    options = {"query_group": query_group}
    *part, sums = ck.dense_attention_column_sums(
        q, k, v, reference_lse=lse, query_rows=rows, **options
    )
    moved_q, moved_lse = by(rows, q, lse)
    *moved, want = ck.dense_attention_column_sums(moved_q, k, v, reference_lse=moved_lse, **options)
    assert torch.equal(sums, want)
    assert_same_bits(part, by(rows.argsort(), *moved))


def test_the_result_may_be_the_rest(device):
    case = AttentionCase(1, 2, 1, 200, 90, 64, 64, torch.bfloat16, "transposed", 0.3, 2)
    q, k, v = case.qkv(device)
    columns, rest = poisoned_lists(case.mask(device), 64), case.part(device, seed=4)
    rows = permutation(200, device)
    apart = ck.column_sparse_attention(q, k, v, columns, rest=rest, query_rows=rows)
    ck.column_sparse_attention(q, k, v, columns, rest=rest, query_rows=rows, out=rest)
    assert_same_bits(rest, apart)


def test_no_queries():
    q, k, v, _ = some_attention(queries=0)
    rows = torch.zeros(0, dtype=torch.int32)
    columns = ck.ColumnLists(torch.zeros(2, 4, 0, 3).int(), torch.zeros(2, 4, 0).int(), 64)
    out, lse = ck.column_sparse_attention(q, k, v, columns, query_rows=rows)
    assert (out.shape, lse.shape) == ((2, 4, 0, 64), (2, 4, 0))
    assert ck.dense_attention_column_sums(q, k, v, query_rows=rows)[2].shape == (2, 4, 0, 90)


# --- key_weights ---


@pytest.mark.parametrize("layout", LAYOUTS)
def test_key_weights_are_factors(device, layout):
    q, k, v, _ = some_attention(device)
    weights = torch.randn(2, 2, 90, device=device)
    weights[..., :5] = torch.tensor([0.0, -1.0, 1.0, 2.0, -0.5], device=device)
    *part, plain = ck.dense_attention_column_sums(q, k, v, query_group=64)
    *same, sums = ck.dense_attention_column_sums(
        q, k, v, query_group=64, key_weights=laid_out(weights, layout)
    )
    assert_same_bits(same, part)
    assert (sums[..., 0] == 0).all()
    assert torch.equal(sums[..., 1], -plain[..., 1])
    assert torch.equal(sums[:, :2], plain[:, :2] * weights[:, :1, None])
    assert torch.equal(sums[:, 2:], plain[:, 2:] * weights[:, 1:, None])


def test_key_weights_come_before_the_rounding(device):
    q, k, v, _ = some_attention(device)
    weights = torch.rand(2, 2, 90, device=device) * 1.7
    plain = ck.dense_attention_column_sums(q, k, v, query_group=64)[2]
    want = (plain * weights.repeat_interleave(2, dim=1)[:, :, None]).bfloat16()
    assert not torch.equal(want, (plain.bfloat16() * weights[:, [0, 0, 1, 1], None]).bfloat16())
    sums = torch.empty_like(plain, dtype=torch.bfloat16)
    ck.dense_attention_column_sums(
        q, k, v, query_group=64, key_weights=weights, out=(None, None, sums)
    )
    assert torch.equal(sums, want)


def test_key_weights_that_are_not_finite():
    q, k, v, _ = some_attention()
    weights = torch.ones(2, 2, 90)
    weights[..., 3], weights[..., 4], weights[..., 5] = math.inf, -math.inf, math.nan
    sums = ck.dense_attention_column_sums(q, k, v, key_weights=weights)[2]
    assert (sums[..., 3] == math.inf).all()
    assert (sums[..., 4] == -math.inf).all()
    assert sums[..., 5].isnan().all()
    assert sums[..., 6:].isfinite().all()


# --- torch.compile; opcheck is in test_torch_library.py ---


def by_rows(q, k, v, columns, rows, weights):
    whole = ck.dense_attention(q, k, v, query_rows=rows)
    _, _, sums = ck.dense_attention_column_sums(
        q, k, v, query_rows=rows, key_weights=weights, query_group=64
    )
    return *whole, sums, *ck.column_sparse_attention(q, k, v, columns, query_rows=rows, rest=whole)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(device, dynamic):
    compiled = torch.compile(by_rows, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for queries, keys in ((130, 90), (200, 77)):
        args = some_attention(device, queries=queries, keys=keys)
        rows, weights = permutation(queries, device), torch.rand(2, 2, keys, device=device)
        assert_same_bits(compiled(*args, rows, weights), by_rows(*args, rows, weights))


def test_compile_refuses_a_wrong_shape():
    q, k, v, columns = some_attention()
    rows, weights = permutation(130, "cpu"), torch.rand(2, 2, 90)
    compiled = torch.compile(by_rows, fullgraph=True, backend="aot_eager")
    with pytest.raises(Exception, match=r"query_rows: expected shape \[queries=130\], got \[129\]"):
        compiled(q, k, v, columns, rows[1:], weights)
    with pytest.raises(Exception, match=r"key_weights: expected shape \[batch=2, kv_heads=2, keys"):
        compiled(q, k, v, columns, rows, weights[..., 1:])
