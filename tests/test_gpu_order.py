"""The order of column lists on a GPU: a schedule, which balances lists and changes no result."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from gpu import needs_hopper, torch
from gpu_attention_cases import Case, Part, assert_within_rule, lists_of, random_mask

import chipmunk_kernels as ck

pytestmark = needs_hopper


def log_normal_counts(shape: tuple[int, ...], mean: float, keys: int) -> torch.Tensor:
    counts = torch.exp(0.8 * torch.randn(shape, device="cuda"))
    return (counts * (mean / counts.mean())).round().clamp(0, keys).long()


def case_of(
    counts: torch.Tensor, keys: int, *, query_group: int = 192, head_dim: int = 128
) -> Case:
    """Queries for lists `[B, H, groups]` of these lengths; the lists carry an order."""
    b, h, groups = counts.shape
    shapes = [(b, h, groups * query_group - 5, head_dim)] + 2 * [(b, h, keys, head_dim)]
    q, k, v = (torch.randn(s, device="cuda", dtype=torch.bfloat16) for s in shapes)
    mask = random_mask((*counts.shape, keys), counts)
    return Case(q, k, v, ck.columns_from_mask(mask, query_group=query_group), mask)


def without_order(case: Case) -> Case:
    return replace(case, columns=replace(case.columns, order=None))


def same_bits(a: Part, b: Part) -> bool:
    return torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


def chains(order: torch.Tensor) -> list[list[tuple[int, int]]]:
    """(list, part) of each multiprocessor, in turn."""
    rows = order.tolist()
    found = []
    for link in rows[0]:
        chain = []
        while link != -1:
            chain.append((link // 4, link % 4))
            link = rows[2 if link % 4 == 2 else 1][link // 4]
        if chain:
            found.append(chain)
    return found


@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
@pytest.mark.parametrize("query_group", [64, 128, 192, 256])
def test_an_order_changes_no_bit(query_group: int, head_dim: int) -> None:
    torch.manual_seed(0)
    for shape in ((1, 1, 1), (1, 2, 40), (2, 3, 70), (1, 8, 150)):
        counts = log_normal_counts(shape, 200, 900)
        counts[torch.rand(shape, device="cuda") < 0.05] = 0
        case = case_of(counts, 900, query_group=query_group, head_dim=head_dim)
        case.columns.validate(900)
        got = case.run()
        assert_within_rule(case, got)
        assert same_bits(got, without_order(case).run())
        assert same_bits(got, case.run())


@pytest.mark.parametrize("rest", [False, True])
@pytest.mark.parametrize("longest", [200, 900, 1_000])
def test_long_lists_in_two_parts(longest: int, rest: bool) -> None:
    """One list is longer than all that a multiprocessor would have to do."""
    torch.manual_seed(0)
    counts = torch.full((1, 3, 100), 30, device="cuda")
    counts[0, :, ::40] = longest
    case = case_of(counts, 1_000)
    if rest:
        case.rest = (torch.randn_like(case.q), torch.randn(case.q.shape[:3], device="cuda"))
    order = case.columns.order
    parts = {part for chain in chains(order) for _, part in chain}
    assert parts == ({0, 1, 2} if longest > 200 else {0})
    case.columns.validate(1_000)
    got = case.run()
    assert_within_rule(case, got)
    assert same_bits(got, without_order(case).run())


def test_equal_lists_come_as_they_are() -> None:
    lists = case_of(torch.full((2, 3, 90), 50, device="cuda"), 64).columns
    assert (lists.order == -1).all()


@pytest.mark.parametrize(
    ("heads", "groups", "mean", "n"), [(24, 24, 784, 4_608), (24, 86, 1_120, 16_384)]
)
def test_multiprocessors_end_at_one_time(heads: int, groups: int, mean: int, n: int) -> None:
    """By the costs of order.cu: tiles of 112 keys and 1.2 more; of a split list 54 and 46 / 64."""
    torch.manual_seed(0)
    counts = log_normal_counts((1, heads, groups), mean, n)
    lists = ck.select_columns(
        torch.rand(1, heads, groups, n, device="cuda"), count=counts, max_count=n
    )
    assert torch.equal(lists.counts.long(), counts)
    lists.validate(n)
    costs = [math.ceil(count / 112) + 1.2 for count in counts.flatten().tolist()]
    loads = [
        sum(costs[i] * (1.0, 54 / 64, 46 / 64)[part] for i, part in chain)
        for chain in chains(lists.order)
    ]
    multiprocessors = torch.cuda.get_device_properties(0).multi_processor_count
    assert len(loads) == multiprocessors
    assert max(loads) <= 1.1 * sum(costs) / multiprocessors


def test_an_order_of_other_lists_costs_only_time() -> None:
    torch.manual_seed(0)
    case, other = (case_of(log_normal_counts((1, 4, 90), 200, 900), 900) for _ in range(2))
    swapped = replace(case, columns=replace(case.columns, order=other.columns.order))
    assert same_bits(case.run(), swapped.run())


def test_an_order_for_more_multiprocessors_is_not_used() -> None:
    torch.manual_seed(0)
    case = case_of(log_normal_counts((1, 4, 90), 200, 900), 900)
    order = torch.full((3, 360), -1, device="cuda", dtype=torch.int32)
    order[0] = 4 * torch.arange(360, device="cuda").flip(0)
    swapped = replace(case, columns=replace(case.columns, order=order))
    swapped.columns.validate(900)
    assert same_bits(case.run(), swapped.run())


@pytest.mark.parametrize("query_group", [64, 192, 256])
def test_garbage_for_an_order_is_not_followed_out_of_bounds(query_group: int) -> None:
    """It ends, and writes nothing but its own rows; checked mode tells (test_checked_mode.py)."""
    torch.manual_seed(0)
    case = case_of(log_normal_counts((1, 4, 90), 200, 900), 900, query_group=query_group)
    b, h, n, d = case.q.shape
    around = torch.full((b, h + 2, n, d), 7.0, device="cuda", dtype=case.q.dtype)
    for low, high in ((-(2**31), 2**31 - 1), (0, 1440), (-2, 5), (0, 1)):
        order = torch.randint(low, high, (3, 360), device="cuda").int()
        order[0, 0].clamp_(min=0)
        order[0, torch.cuda.get_device_properties(0).multi_processor_count :] = -1  # else not used
        lists = replace(case.columns, order=order)
        ck.column_sparse_attention(case.q, case.k, case.v, lists, out=around[:, 1:-1])
        torch.cuda.synchronize()
        with pytest.raises(ValueError, match=r"columns\.order: expected"):
            lists.validate(900)
    assert (around[:, [0, -1]] == 7).all()
    assert same_bits(case.run(), without_order(case).run())


def test_rows_that_grow_again_along_a_chain_do_not_hang() -> None:
    """The rows of 192 from 128 on, and then a whole list: two warpgroups have left by then."""
    torch.manual_seed(0)
    case = case_of(torch.full((1, 4, 90), 300, device="cuda"), 900)
    order = torch.full((3, 360), -1, device="cuda", dtype=torch.int32)
    order[0, 0], order[2, 0] = 4 * 0 + 2, 4 * 1
    ck.column_sparse_attention(case.q, case.k, case.v, replace(case.columns, order=order))
    torch.cuda.synchronize()
    with pytest.raises(ValueError, match="second ones last"):
        replace(case.columns, order=order).validate(900)


def test_an_order_made_again_in_a_graph() -> None:
    torch.manual_seed(0)
    case = case_of(log_normal_counts((1, 4, 90), 200, 900), 900)
    scores = torch.rand(1, 4, 90, 900, device="cuda")
    budget = log_normal_counts((1, 4, 90), 200, 900).int()
    lists = ck.select_columns(scores, count=budget, max_count=900)
    out, lse = ck.column_sparse_attention(case.q, case.k, case.v, lists)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ck.select_columns(scores, count=budget, max_count=900, out=lists)
        ck.column_sparse_attention(case.q, case.k, case.v, lists, out=(out, lse))
    for _ in range(3):
        scores.copy_(torch.rand_like(scores))
        budget.copy_(log_normal_counts((1, 4, 90), 200, 900))
        graph.replay()
        lists.validate(900)
        now = replace(case, mask=lists.to_mask(900), columns=lists_of(lists.to_mask(900), 192))
        assert same_bits(now.run(), (out, lse))
