"""query_rows on a GPU: the bits of reordered tensors, without the copies."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
from gpu import needs_hopper, torch
from gpu_attention_cases import Case, Part, heads_first, lists_of, random_case, random_mask
from test_gpu_dense import GROUPS, DenseCase

import chipmunk_kernels as ck

pytestmark = needs_hopper


def reordered(case: Case, rows: torch.Tensor) -> Part:
    """By hand: the queries in the order of `rows`, and the result back."""
    rest = None
    if case.rest is not None:
        rest = case.rest[0][:, :, rows.long()], case.rest[1][:, :, rows.long()]
    out, lse = replace(case, q=case.q[:, :, rows.long()].contiguous(), rest=rest).run()
    back = rows.argsort()
    return out[:, :, back], lse[:, :, back]


def by_rows(case: Case, rows: torch.Tensor, **options: object) -> Part:
    return ck.column_sparse_attention(
        case.q, case.k, case.v, case.columns, rest=case.rest, query_rows=rows, **options
    )


def assert_same_bits(got: tuple[torch.Tensor, ...], want: Part) -> None:
    assert torch.equal(got[0], want[0])
    assert torch.equal(got[1], want[1])


def permutation(n: int) -> torch.Tensor:
    return torch.randperm(n, device="cuda").int()


@pytest.mark.parametrize("seed", range(30))
def test_random_cases(seed: int) -> None:
    rng = random.Random(seed)
    torch.manual_seed(seed)
    for _ in range(20):
        case = random_case(rng)
        rows = permutation(case.q.shape[2])
        assert_same_bits(by_rows(case, rows), reordered(case, rows))


@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
@pytest.mark.parametrize("query_group", [64, 128, 192, 256])
@pytest.mark.parametrize("with_rest", [False, True])
def test_many_tiles_a_multiprocessor(query_group: int, head_dim: int, with_rest: bool) -> None:
    torch.manual_seed(0)
    b, h, n = 2, 8, 4_001
    q, k, v = (heads_first(b, h, n, head_dim, torch.bfloat16, "packed") for _ in range(3))
    for x in (q, k, v):
        x.copy_(torch.randn(x.shape, device="cuda"))
    shape = (b, h, -(-n // query_group))
    counts = torch.randint(0, 400, shape, device="cuda")
    counts[torch.rand(shape, device="cuda") < 0.2] = 0
    mask = random_mask((*shape, n), counts)
    case = Case(q, k, v, lists_of(mask, query_group), mask)
    if with_rest:
        case.rest = torch.randn_like(q), torch.randn(b, h, n, device="cuda")
    rows = permutation(n)
    want = reordered(case, rows)
    out = heads_first(b, h, n, head_dim, torch.bfloat16, "tokens first")
    out.fill_(math.nan)
    got = by_rows(case, rows, out=(out, None))
    assert got[0] is out
    assert_same_bits(got, want)
    if case.rest is not None:  # the rest may be the result
        rest = case.rest[0].clone(), case.rest[1].clone()
        case.rest = rest
        assert_same_bits(by_rows(case, rows, out=rest), want)
    ordered = ck.columns_from_mask(mask, query_group=query_group)
    case = replace(case, columns=ordered)
    if not with_rest:
        assert_same_bits(by_rows(case, rows), want)


def test_the_rows_as_they_come() -> None:
    case = random_case(random.Random(1), head_dims=(128,), query_groups=(192,))
    rows = torch.arange(case.q.shape[2], device="cuda", dtype=torch.int32)
    assert_same_bits(by_rows(case, rows), case.run())


def test_scores_that_are_weighed_again() -> None:
    """The queries are read a second time where a reference is raised: by the same rows."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 800, 64, device="cuda", dtype=torch.float16) for _ in range(3))
    k = (k * torch.linspace(0.01, 60, 800, device="cuda")[:, None]).half()
    mask = torch.ones(1, 2, 5, 800, dtype=torch.bool, device="cuda")
    case = Case(q, k, v, lists_of(mask, 192), mask)
    rows = permutation(800)
    assert_same_bits(by_rows(case, rows), reordered(case, rows))


def test_a_graph_and_a_side_stream() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 4, 3_000, 128, device="cuda").bfloat16() for _ in range(3))
    mask = random_mask((1, 4, 16, 3_000), torch.full((1, 4, 16), 500, device="cuda"))
    case = Case(q, k, v, lists_of(mask, 192), mask)
    rows = permutation(3_000)
    out = torch.empty_like(q), torch.empty(1, 4, 3_000, device="cuda")
    by_rows(case, rows, out=out)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        by_rows(case, rows, out=out)
    rows.copy_(permutation(3_000))
    graph.replay()
    torch.cuda.synchronize()
    want = reordered(case, rows)
    assert_same_bits(out, want)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        got = by_rows(case, rows)
    stream.synchronize()
    assert_same_bits(got, want)


@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
@pytest.mark.parametrize("sums_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_lse", [False, True])
def test_column_sums(head_dim: int, sums_dtype: torch.dtype, with_lse: bool) -> None:
    torch.manual_seed(0)
    for query_group in GROUPS[head_dim]:
        q = heads_first(2, 4, 700, head_dim, torch.bfloat16, "packed")
        q.copy_(torch.randn(q.shape, device="cuda"))
        k, v = (torch.randn(2, 2, 333, head_dim, device="cuda").bfloat16() for _ in range(2))
        weights = torch.randn(2, 2, 333, device="cuda")
        weights[..., ::5] = 0.0
        rows = permutation(700)
        case = DenseCase(q, k, v, query_group, None, sums_dtype, rows, weights)
        if with_lse:
            case.lse = ck.dense_attention(q, k, v)[1] + 0.2
            case.lse[..., ::7] = math.inf
        case.check()
        lse = None if case.lse is None else case.lse[:, :, rows.long()].contiguous()
        moved = DenseCase(q[:, :, rows.long()].contiguous(), k, v, query_group, lse)
        out, moved_lse, sums = moved.sums()
        got = case.sums()
        back = rows.argsort()
        assert_same_bits(got[:2], (out[:, :, back], moved_lse[:, :, back]))
        want = sums * weights.repeat_interleave(2, dim=1)[:, :, None]
        assert torch.equal(got[2], want.to(sums_dtype))


@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
def test_dense_attention_does_not_depend_on_them(head_dim: int) -> None:
    q, k, v = (torch.randn(2, 4, 700, head_dim, device="cuda").bfloat16() for _ in range(3))
    assert_same_bits(
        ck.dense_attention(q, k, v, query_rows=permutation(700)), ck.dense_attention(q, k, v)
    )
