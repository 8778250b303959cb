"""Attention ops against the float64 reference."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from cases import (  # noqa: E402
    INT_MAX,
    AttentionCase,
    attention_cases,
    poisoned_lists,
    randn,
    rng,
    threads,
)
from numerics import assert_as_good_as_torch, largest, rounding_of_sums  # noqa: E402

import chipmunk_kernels as ck  # noqa: E402
from chipmunk_kernels import reference  # noqa: E402


def doubled(*tensors):
    return tuple(None if t is None else t.double() for t in tensors)


def rounding_of_scores(q, k, scale=None):
    k = k.float().nan_to_num(0.0).repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    scores = q.float() @ k.mT * (scale or q.shape[-1] ** -0.5)
    return rounding_of_sums(q.shape[-1], largest(scores))


def assert_parts(ours, native, exact, scores=0.0, value=0.0):
    """`scores`: their rounding; `value`: the largest in v."""
    assert ours[1].dtype == torch.float32
    assert_as_good_as_torch(ours[0], native[0], exact[0], "out", sums=scores * value)
    assert_as_good_as_torch(ours[1], native[1], exact[1], "lse", sums=scores)


@given(data=st.data())
def test_dense_attention(device, data):
    case = data.draw(attention_cases(device))
    scale = data.draw(st.sampled_from([None, 0.05, 0.3]))
    q, k, v = case.qkv(device)
    with threads(case.threads):
        ours = ck.dense_attention(q, k, v, softmax_scale=scale)
    native = reference.dense_attention(q, k, v, softmax_scale=scale)
    exact = reference.dense_attention(*doubled(q, k, v), softmax_scale=scale)
    assert ours[0].dtype == q.dtype
    assert_parts(ours, native, exact, rounding_of_scores(q, k, scale), largest(v))


@given(data=st.data())
def test_dense_attention_column_sums(device, data):
    case = data.draw(attention_cases(device)).for_sums(device)
    kind = data.draw(st.sampled_from(["exact", "previous", "with infinities"]))
    sums_dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16]))
    q, k, v = case.qkv(device)
    lse = None
    if kind != "exact":
        lse = reference.dense_attention(q * 0.9, k, v)[1]
    if kind == "with infinities":
        lse[..., ::3] = math.inf
        lse[..., 1::5] = -math.inf
    shape = (case.batch, case.heads, case.groups, case.keys)
    given_sums = torch.full(shape, math.nan, dtype=sums_dtype, device=device)
    with threads(case.threads):
        *part, sums = ck.dense_attention_column_sums(
            q, k, v, reference_lse=lse, query_group=case.query_group, out=(None, None, given_sums)
        )
    assert sums is given_sums
    options = {"query_group": case.query_group}
    *native, native_sums = reference.dense_attention_column_sums(
        q, k, v, reference_lse=lse, **options
    )
    *exact, exact_sums = reference.dense_attention_column_sums(
        *doubled(q, k, v), reference_lse=doubled(lse)[0], **options
    )
    scores = rounding_of_scores(q, k)
    assert_parts(part, native, exact, scores, largest(v))
    assert_as_good_as_torch(
        sums,
        native_sums.to(sums_dtype),
        exact_sums,
        "column_sums",
        sums=scores * largest(exact_sums),
    )


@given(data=st.data())
def test_column_sparse_attention(device, data):
    case = data.draw(attention_cases(device))
    with_rest = data.draw(st.booleans())
    q, k, v = case.qkv(device)
    mask = case.mask(device)
    case.poison_unread(mask, k, v)
    rest = case.part(device, seed=5) if with_rest else None
    columns = poisoned_lists(mask, case.query_group, layout=case.layout)
    with threads(case.threads):
        ours = ck.column_sparse_attention(q, k, v, columns, rest=rest)
    lists = (columns.indices, columns.counts, case.query_group)
    native = reference.column_sparse_attention(q, k, v, *lists, rest=rest)
    exact_rest = None if rest is None else doubled(*rest)
    exact = reference.column_sparse_attention(*doubled(q, k, v), *lists, rest=exact_rest)
    assert ours[0].dtype == q.dtype
    assert_parts(ours, native, exact, rounding_of_scores(q, k), largest(v))


@given(data=st.data())
def test_merge_attention(device, data):
    case = data.draw(attention_cases(device))
    a, b = case.part(device, seed=1), case.part(device, seed=2)
    with threads(case.threads):
        ours = ck.merge_attention(a, b)
    exact = reference.merge_attention(doubled(*a), doubled(*b))
    assert_parts(ours, reference.merge_attention(a, b), exact)


@given(data=st.data())
def test_rest_of_attention(device, data):
    case = data.draw(attention_cases(device))
    q, k, v = case.qkv(device)
    mask = case.mask(device)
    lists = (*reference.columns_from_mask(mask), case.query_group)
    whole = reference.dense_attention(q, k, v)
    selected = reference.column_sparse_attention(q, k, v, *lists)
    with threads(case.threads):
        ours = ck.rest_of_attention(whole, selected)
    native = reference.rest_of_attention(whole, selected)
    # The formula divides by what is left of the mass: compare where both agree how much that is,
    # and the merge everywhere.
    exact = reference.rest_of_attention(doubled(*whole), doubled(*selected))
    left = -torch.expm1(selected[1].double() - whole[1].double())
    clear = (left > 1e-3) | (selected[1] == -math.inf)
    for name, i in (("out", 0), ("lse", 1)):
        assert_as_good_as_torch(ours[i][clear], native[i][clear], exact[i][clear], name)
    merged = ck.merge_attention(ours, selected)
    again = reference.merge_attention(native, selected)
    assert_parts(merged, again, doubled(*whole))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
def test_a_model_sized_call(device, dtype, head_dim):
    if device == "cuda" and dtype == torch.float32:
        pytest.skip("float32 runs on the CPU only")
    case = AttentionCase(1, 2, 1, 1500, 1700, head_dim, 192, dtype, "transposed", 0.1, 7)
    q, k, v = case.qkv(device)
    columns = poisoned_lists(case.mask(device), 192)
    ours = ck.column_sparse_attention(q, k, v, columns)
    lists = (columns.indices, columns.counts, 192)
    native = reference.column_sparse_attention(q, k, v, *lists)
    exact = reference.column_sparse_attention(*doubled(q, k, v), *lists)
    assert_parts(ours, native, exact, rounding_of_scores(q, k), largest(v))


def test_all_columns_are_dense_attention(device):
    case = AttentionCase(2, 2, 2, 300, 130, 64, 128, torch.bfloat16, "contiguous", 1.0, 3)
    q, k, v = case.qkv(device)
    shape = (case.batch, case.heads, case.groups, case.keys)
    columns = ck.columns_from_mask(
        torch.ones(shape, dtype=torch.bool, device=device), query_group=128
    )
    sparse, dense = ck.column_sparse_attention(q, k, v, columns), ck.dense_attention(q, k, v)
    exact = reference.dense_attention(*doubled(q, k, v))
    assert_parts(sparse, dense, exact)


def test_empty_lists_give_zeros_and_minus_infinity(device):
    q, k, v = (torch.randn(1, 2, 70, 64, dtype=torch.bfloat16, device=device) for _ in range(3))
    columns = ck.ColumnLists(
        torch.full((1, 2, 2, 4), INT_MAX, dtype=torch.int32, device=device),
        torch.zeros(1, 2, 2, dtype=torch.int32, device=device),
        64,
    )
    out, lse = ck.column_sparse_attention(q, k, v, columns)
    assert torch.equal(out, torch.zeros_like(q))
    assert torch.equal(lse, torch.full((1, 2, 70), -math.inf, device=device))


def test_empty_lists_give_the_rest_bit_for_bit(device):
    case = AttentionCase(1, 2, 1, 130, 20, 64, 64, torch.bfloat16, "transposed", 0.0, 1)
    q, k, v = case.qkv(device)
    out, lse = case.part(device, seed=4)
    columns = poisoned_lists(torch.zeros(1, 2, 3, 20, dtype=torch.bool, device=device), 64)
    ours = ck.column_sparse_attention(q, k, v, columns, rest=(out, lse))
    empty = lse == -math.inf
    assert torch.equal(ours[0], out.masked_fill(empty[..., None], 0.0))
    assert torch.equal(ours[1], lse)


def test_rest_may_be_the_result_itself(device):
    case = AttentionCase(1, 2, 1, 200, 90, 64, 64, torch.bfloat16, "contiguous", 0.3, 2)
    q, k, v = case.qkv(device)
    columns = poisoned_lists(case.mask(device), 64)
    rest = case.part(device, seed=4)
    apart = ck.column_sparse_attention(q, k, v, columns, rest=rest)
    in_place = ck.column_sparse_attention(q, k, v, columns, rest=rest, out=rest)
    assert in_place[0] is rest[0]
    assert in_place[1] is rest[1]
    assert torch.equal(rest[0], apart[0])
    assert torch.equal(rest[1], apart[1])


def test_a_nan_in_a_selected_row_reaches_its_queries_and_no_others(device):
    q, k, v = (torch.randn(1, 1, 128, 64, dtype=torch.bfloat16, device=device) for _ in range(3))
    mask = torch.zeros(1, 1, 2, 128, dtype=torch.bool, device=device)
    mask[..., 3:40] = True
    mask[:, :, 1, 7] = False
    v[0, 0, 7, 5] = math.nan
    out, lse = ck.column_sparse_attention(q, k, v, poisoned_lists(mask, 64))
    assert out[0, 0, :64, 5].isnan().all()
    assert not out[0, 0, 64:].isnan().any()
    assert not lse.isnan().any()


def test_selected_keys_without_weight_leave_the_rest_alone():
    """Scores of -inf: what v holds there does not count where there is a rest."""
    q = torch.ones(1, 1, 70, 64)
    k, v = torch.full((1, 1, 5, 64), -math.inf), torch.full((1, 1, 5, 64), math.nan)
    columns = poisoned_lists(torch.ones(1, 1, 2, 5, dtype=torch.bool), 64)
    rest = torch.randn(1, 1, 70, 64), torch.randn(1, 1, 70)
    out, lse = ck.column_sparse_attention(q, k, v, columns, rest=rest)
    assert torch.equal(out, rest[0])
    assert torch.equal(lse, rest[1])
    assert ck.column_sparse_attention(q, k, v, columns)[0].isnan().all()


def test_large_scores_do_not_overflow(device):
    case = AttentionCase(1, 1, 1, 80, 90, 64, 64, torch.bfloat16, "contiguous", 0.5, 8)
    q, k, v = case.qkv(device, scale=40.0)
    ours = ck.dense_attention(q, k, v)
    exact = reference.dense_attention(*doubled(q, k, v))
    assert_parts(ours, reference.dense_attention(q, k, v), exact)
    sums = ck.dense_attention_column_sums(q, k, v, query_group=64)[2]
    assert_as_good_as_torch(
        sums,
        reference.dense_attention_column_sums(q, k, v, query_group=64)[2],
        reference.dense_attention_column_sums(*doubled(q, k, v), query_group=64)[2],
    )


def test_the_same_bits_every_time_and_for_any_number_of_threads(device):
    case = AttentionCase(2, 2, 1, 500, 400, 64, 192, torch.float16, "transposed", 0.2, 9)
    q, k, v = case.qkv(device)
    columns = poisoned_lists(case.mask(device), 192)
    first = ck.column_sparse_attention(q, k, v, columns)
    for count in (1, 2, 5):
        with threads(count):
            again = ck.column_sparse_attention(q, k, v, columns)
        assert torch.equal(first[0], again[0])
        assert torch.equal(first[1], again[1])


# Sizes of q and k up to where dot products of 64 elements stay finite in float32.
EXTREME_SIZES = [
    (dtype, size)
    for dtype, limit in ((torch.float32, 1e18), (torch.bfloat16, 1e18), (torch.float16, 6e4))
    for size in (1e0, 1e2, 1e3, 3e3, 1e4, 3e4, 6e4, 1e6, 1e9, 1e12, 1e15, 1e18)
    if size <= limit
]


class ExtremeCase:
    """q and k uniform in +-size, their scores in float64, and the rows whose result is certain.

    float32 dot products may put another key first where two scores are about equal. A row is
    certain where the largest of the listed scores leads by more than their rounding.
    """

    def __init__(self, dtype, size, scale, device):
        if device == "cuda" and (dtype == torch.float32 or (scale or 0) < 0):
            pytest.skip("float32 and scales below 0 run on the CPU only")
        generator = rng(11)
        q, k = (
            ((torch.rand(1, 2, 192, 64, generator=generator) * 2 - 1) * size).to(device, dtype)
            for _ in range(2)
        )
        self.qkv = q, k, randn((1, 2, 192, 64), dtype, device, generator)
        self.scores = q.double() @ k.double().mT * (0.125 if scale is None else scale)
        self.rounding = 192**0.5 * self.scores.abs().max().item() * torch.finfo(torch.float32).eps
        mask = torch.rand(1, 2, 3, 192, generator=generator) < 0.5
        self.mask = mask.to(device)
        self.listed = self.mask.repeat_interleave(64, dim=2)

    def certain(self, scores):
        first, second = scores.topk(2).values.unbind(-1)
        return first - second > 40 + 2 * self.rounding

    def check(self, ours, native, exact, scores):
        """The rule for all rows; for those that are certain, within a rounding of float64."""
        exact = exact[0], exact[1].float()  # inf where float32 rounds to it
        assert_parts(ours, native, exact, self.rounding, largest(self.qkv[2]))
        certain = self.certain(scores)
        eps = torch.finfo(ours[0].dtype).eps
        torch.testing.assert_close(
            ours[0][certain].double(), exact[0][certain], rtol=4 * eps, atol=1e-30
        )


@pytest.mark.parametrize("scale", [None, -0.5, 1e6, 1e-30])
@pytest.mark.parametrize(("dtype", "size"), EXTREME_SIZES)
def test_scores_of_any_size(device, dtype, size, scale):
    case = ExtremeCase(dtype, size, scale, device)
    q, k, v = case.qkv
    options = {"softmax_scale": scale}
    dense = ck.dense_attention(q, k, v, **options)
    exact = reference.dense_attention(*doubled(q, k, v), **options)
    case.check(dense, reference.dense_attention(q, k, v, **options), exact, case.scores)

    columns = poisoned_lists(case.mask, 64)
    lists = columns.indices, columns.counts, 64
    listed = case.scores.masked_fill(~case.listed, -math.inf)
    rest = randn(v.shape, dtype, device, rng(12)), exact[1].float().clamp(-1e38, 1e38)
    rest[1][..., ::3] *= 0.5
    for merged in (None, rest):
        ours = ck.column_sparse_attention(q, k, v, columns, rest=merged, **options)
        native = reference.column_sparse_attention(q, k, v, *lists, rest=merged, **options)
        wide = None if merged is None else doubled(*merged)
        exact = reference.column_sparse_attention(*doubled(q, k, v), *lists, rest=wide, **options)
        if merged is not None:  # the rest is one more key
            listed = torch.cat((listed, merged[1].double()[..., None]), dim=-1)
        case.check(ours, native, exact, listed)


@pytest.mark.parametrize("scale", [None, -0.5, 1e6])
@pytest.mark.parametrize(("dtype", "size"), EXTREME_SIZES)
def test_column_sums_of_scores_of_any_size(device, dtype, size, scale):
    case = ExtremeCase(dtype, size, scale, device)
    q, k, v = case.qkv
    options = {"softmax_scale": scale, "query_group": 64}
    *part, sums = ck.dense_attention_column_sums(q, k, v, **options)
    *native, native_sums = reference.dense_attention_column_sums(q, k, v, **options)
    *exact, exact_sums = reference.dense_attention_column_sums(*doubled(q, k, v), **options)
    case.check(part, native, exact, case.scores)
    assert_as_good_as_torch(sums, native_sums, exact_sums, sums=64 * case.rounding)
    certain = case.certain(case.scores).unflatten(-1, (3, 64)).all(-1)
    torch.testing.assert_close(sums[certain].double(), exact_sums[certain], rtol=1e-6, atol=1e-15)
    # Whatever the reference, exp(score - reference) is a number, 0 or inf.
    for lse in (exact[1].float(), torch.full_like(part[1], 3e38), torch.full_like(part[1], -3e38)):
        sums = ck.dense_attention_column_sums(q, k, v, reference_lse=lse, **options)[2]
        assert not sums.isnan().any()
