"""column_sparse_attention on a GPU against float64, and what a kernel must not get wrong."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
from gpu import needs_hopper, torch
from gpu_attention_cases import (
    Case,
    Part,
    assert_within_rule,
    lists_of,
    random_case,
    random_mask,
)

import chipmunk_kernels as ck

pytestmark = needs_hopper


def plain_case(
    shape: tuple[int, int, int, int],
    counts: int,
    *,
    keys: int | None = None,
    query_group: int = 192,
    dtype: torch.dtype = torch.bfloat16,
    scale: float = 1.0,
) -> Case:
    b, h, n, d = shape
    keys = n if keys is None else keys
    q, k, v = (
        torch.randn(b, h, m, d, device="cuda").mul(s).to(dtype)
        for m, s in ((n, scale), (keys, 1.0), (keys, 1.0))
    )
    rows = (b, h, -(-n // query_group))
    mask = random_mask((*rows, keys), torch.full(rows, counts, device="cuda"))
    return Case(q, k, v, lists_of(mask, query_group), mask)


def same_bits(a: Part, b: Part) -> bool:
    return torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


@pytest.mark.parametrize("seed", range(40))
def test_random_cases(seed: int) -> None:
    rng = random.Random(seed)
    torch.manual_seed(seed)
    for _ in range(50):
        case = random_case(rng)
        assert_within_rule(case, case.run())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
@pytest.mark.parametrize("query_group", [64, 128, 192, 256])
def test_many_tiles_a_multiprocessor(query_group: int, head_dim: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    case = plain_case((2, 8, 4_001, head_dim), 300, query_group=query_group, dtype=dtype)
    case.mask &= torch.rand(case.mask.shape[:3], device="cuda")[..., None] > 0.3  # empty ones too
    case.columns = lists_of(case.mask, query_group)
    assert_within_rule(case, case.run())


@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
@pytest.mark.parametrize("query_group", [64, 128, 192])
def test_lists_of_every_length_up_to_two_tiles(query_group: int, head_dim: int) -> None:
    """A ragged tile's spare slots count for nothing; a score of 0 would outweigh all keys."""
    torch.manual_seed(0)
    keys, lengths = 300, 258  # a tile holds at most 128 keys
    case = plain_case(
        (1, 1, lengths * query_group, head_dim), 0, keys=keys, query_group=query_group
    )
    case.q.abs_()
    case.k.abs_().neg_()
    case.mask = random_mask((1, 1, lengths, keys), torch.arange(lengths, device="cuda")[None, None])
    case.columns = lists_of(case.mask, query_group)
    assert_within_rule(case, case.run())


@pytest.mark.parametrize("scale", [8.0, 64.0, 1e3])
def test_scores_of_any_size(scale: float) -> None:
    """The maximum climbs from tile to tile, so that old sums must be scaled down."""
    torch.manual_seed(0)
    case = plain_case((1, 2, 400, 128), 700, keys=900, scale=scale)
    case.k.mul_(torch.linspace(0.1, 1.0, 900, device="cuda")[:, None])
    assert_within_rule(case, case.run())


@pytest.mark.parametrize("query_group", [64, 128, 192])
def test_a_scale_of_a_power_of_two_is_that_of_the_queries(query_group: int) -> None:
    torch.manual_seed(0)
    case = plain_case((1, 2, 400, 64), 150, keys=900, query_group=query_group)
    for scale in (2.0**-6, 0.5):
        got = ck.column_sparse_attention(case.q, case.k, case.v, case.columns, softmax_scale=scale)
        scaled = replace(case, q=case.q * (scale * 64**0.5))
        assert_within_rule(scaled, got)
        assert same_bits(scaled.run(), got)


@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
@pytest.mark.parametrize("query_group", [64, 128, 192])
@pytest.mark.parametrize("scale", [0.0, 1e-45])
def test_a_scale_of_nothing_weighs_all_keys_alike(
    scale: float, query_group: int, head_dim: int
) -> None:
    torch.manual_seed(0)
    case = plain_case((1, 2, 400, head_dim), 150, keys=900, query_group=query_group)
    got = ck.column_sparse_attention(case.q, case.k, case.v, case.columns, softmax_scale=scale)
    assert_within_rule(replace(case, q=torch.zeros_like(case.q)), got)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
@pytest.mark.parametrize("query_group", [64, 128, 192])
def test_scores_that_leave_the_first_tile_far_behind(
    query_group: int, head_dim: int, dtype: torch.dtype
) -> None:
    """Weights by the first tile's maximum would overflow, by a little, by far, or to infinity."""
    torch.manual_seed(0)
    shape = (1, 8, 12_300, head_dim)  # every multiprocessor has several tiles
    case = plain_case(shape, 300, keys=512, query_group=query_group, dtype=dtype)
    for head, factor in ((1, 10.0), (3, 30.0), (5, 100.0), (7, 1e4)):
        case.k[:, head, 400:] *= factor
    case.rest = (torch.randn_like(case.q), torch.randn(case.q.shape[:3], device="cuda") * 40)
    for rest in (None, case.rest):
        case.rest = rest
        got = case.run()
        assert_within_rule(case, got)
        assert same_bits(case.run(), got)


@pytest.mark.parametrize("one_in", [3, 24])
@pytest.mark.parametrize("query_group", [64, 128, 192, 256])
def test_long_lists_among_short_ones(query_group: int, one_in: int) -> None:
    """Long tiles are dealt out first; at one in three of 64 rows there are too many to do so."""
    torch.manual_seed(0)
    shape = (1, 8, 14_000, 128)
    case = plain_case(shape, 20, keys=1_500, query_group=query_group)
    groups = case.mask.shape[2]
    numbers = torch.arange(groups, device="cuda") + torch.arange(8, device="cuda")[:, None]
    case.mask |= (numbers % one_in == 0)[None, ..., None]
    case.mask &= (numbers % 31 != 30)[None, ..., None]  # empty ones
    case.columns = lists_of(case.mask, query_group)
    case.rest = (torch.randn_like(case.q), torch.randn(case.q.shape[:3], device="cuda") * 3)
    for rest in (case.rest, None):
        case.rest = rest
        got = case.run()
        assert_within_rule(case, got)
        assert same_bits(case.run(), got)


@pytest.mark.parametrize("head_dim", [128, 256])
@pytest.mark.parametrize("more", [0, 1, 60, 67, 88, 89])
def test_last_rounds_of_any_length(more: int, head_dim: int) -> None:
    """Tiles that leave many multiprocessors idle in the last round are split."""
    torch.manual_seed(0)
    tiles = 2 * torch.cuda.get_device_properties("cuda").multi_processor_count + more
    case = plain_case((1, 1, 192 * tiles - 50, head_dim), 250, keys=300)
    case.rest = (torch.randn_like(case.q), torch.randn(case.q.shape[:3], device="cuda") * 3)
    for rest in (case.rest, None):
        case.rest = rest
        assert_within_rule(case, case.run())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("queries", [1, 64, 65, 128, 192, 250, 384, 192 * 350 - 100])
def test_rows_that_warpgroups_share(queries: int, dtype: torch.dtype) -> None:
    """Head dim 256 in groups of 192: 64 rows of a tile have their keys dealt to two warpgroups."""
    torch.manual_seed(0)
    case = plain_case((1, 2, queries, 256), 1, keys=500, dtype=dtype)
    rest = (torch.randn_like(case.q), torch.randn(case.q.shape[:3], device="cuda") * 3)
    for count in (1, 80, 81, 160, 161, 240, 400, 401):
        counts = torch.full(case.mask.shape[:3], count, device="cuda")
        case.mask = random_mask(case.mask.shape, counts)
        case.columns = lists_of(case.mask, 192)
        for case.rest in (None, rest):
            got = case.run()
            assert_within_rule(case, got)
            assert same_bits(case.run(), got)
        same = (rest[0].clone(), rest[1].clone())
        ck.column_sparse_attention(case.q, case.k, case.v, case.columns, rest=same, out=same)
        assert same_bits(same, got)


def test_a_rest_far_above_or_below() -> None:
    torch.manual_seed(0)
    case = plain_case((1, 2, 400, 128), 250)
    for level in (-200.0, -20.0, 20.0, 200.0):
        rest_out = torch.randn_like(case.q)
        case.rest = (rest_out, torch.full(case.q.shape[:3], level, device="cuda"))
        assert_within_rule(case, case.run())


def test_the_rest_may_be_the_result() -> None:
    torch.manual_seed(0)
    rng = random.Random(0)
    for _ in range(40):
        case = random_case(rng)
        if case.rest is None:
            continue
        want = case.run()
        rest = case.rest
        got = ck.column_sparse_attention(case.q, case.k, case.v, case.columns, rest=rest, out=rest)
        assert same_bits(got, want)


def test_offsets_past_two_to_the_thirty_one() -> None:
    """Rows of one tensor whose elements are more than 2^31 apart."""
    heads, n, d = 136, 128 * 1024, 128
    assert heads * n * d > 2**31
    torch.manual_seed(0)
    k = torch.empty(1, heads, n, d, device="cuda", dtype=torch.bfloat16)
    v = torch.empty_like(k)
    ends = [0, 1, heads - 2, heads - 1]
    k[:, ends] = torch.randn(1, 4, n, d, device="cuda").bfloat16()
    v[:, ends] = torch.randn(1, 4, n, d, device="cuda").bfloat16()
    q = torch.randn(1, heads, 192, d, device="cuda").bfloat16()
    mask = random_mask((1, 4, 1, n), torch.full((1, 4, 1), 500, device="cuda"))
    counts = torch.zeros(1, heads, 1, dtype=torch.int32, device="cuda")
    few = lists_of(mask, 192)
    indices = torch.zeros(1, heads, 1, few.indices.shape[-1], dtype=torch.int32, device="cuda")
    counts[:, ends], indices[:, ends] = few.counts, few.indices
    out, lse = ck.column_sparse_attention(q, k, v, ck.ColumnLists(indices, counts, 192))
    case = Case(q[:, ends], k[:, ends], v[:, ends], few, mask)
    assert_within_rule(case, (out[:, ends], lse[:, ends]))
    assert (out[:, 2 : heads - 2] == 0).all()


def test_repeats_are_the_same_bits() -> None:
    torch.manual_seed(0)
    case = plain_case((1, 24, 4_608, 128), 400)
    want = case.run()
    for _ in range(200):
        assert same_bits(case.run(), want)


def test_soak() -> None:
    """Ten thousand launches whose results would show a rare race."""
    torch.manual_seed(0)
    case = plain_case((1, 4, 3_000, 128), 333)
    case.rest = (torch.randn_like(case.q), torch.zeros(case.q.shape[:3], device="cuda"))
    want = case.run()
    different = torch.zeros((), device="cuda", dtype=torch.int64)
    for _ in range(10_000):
        out, lse = case.run()
        different += (out != want[0]).any() | (lse != want[1]).any()
    assert int(different) == 0


def test_a_captured_graph_follows_its_lists() -> None:
    torch.manual_seed(0)
    case = plain_case((1, 6, 2_000, 128), 200)
    capacity = 512
    indices = torch.zeros(*case.columns.indices.shape[:3], capacity, device="cuda").int()
    counts = torch.zeros_like(case.columns.counts)
    live = ck.ColumnLists(indices, counts, 192)
    out = ck.column_sparse_attention(case.q, case.k, case.v, live)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ck.column_sparse_attention(case.q, case.k, case.v, live, out=out)
    for count in (0, 1, 111, 112, 113, 500):
        mask = random_mask(case.mask.shape, torch.full_like(counts, count))
        lists = lists_of(mask, 192)
        indices[..., : lists.indices.shape[-1]] = lists.indices
        counts.copy_(lists.counts)
        graph.replay()
        torch.cuda.synchronize()
        assert_within_rule(Case(case.q, case.k, case.v, lists, mask), out)


def test_two_streams_at_once() -> None:
    torch.manual_seed(0)
    cases = [plain_case((1, 24, 4_608, 128), count) for count in (336, 784)]
    wants = [case.run() for case in cases]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    results: list[list[Part]] = [[], []]
    for _ in range(50):
        for case, stream, into in zip(cases, streams, results, strict=True):
            with torch.cuda.stream(stream):
                into.append(case.run())
    torch.cuda.synchronize()
    for want, got in zip(wants, results, strict=True):
        assert all(same_bits(part, want) for part in got)


def test_what_has_no_kernel_is_refused_before_anything_is_written() -> None:
    case = plain_case((1, 1, 200, 128), 50)
    odd = torch.randn(1, 1, 200, 136, device="cuda").bfloat16()
    with pytest.raises(ck.UnsupportedError, match=r"column_sparse_attention: q: .*16 bytes"):
        ck.column_sparse_attention(odd[..., 1:129], case.k, case.v, case.columns)
    with pytest.raises(ck.UnsupportedError, match=r"column_sparse_attention: softmax_scale: "):
        ck.column_sparse_attention(case.q, case.k, case.v, case.columns, softmax_scale=-1.0)
    out = torch.full_like(case.q, math.nan)
    with pytest.raises(ValueError, match=r"column_sparse_attention: columns\.indices: "):
        ck.column_sparse_attention(case.q, case.k, case.v, case.columns.to("cpu"), out=(out, None))
    assert out.isnan().all()
