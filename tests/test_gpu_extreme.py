"""Scores of any size on a GPU, as far as dot products are finite in float32."""

from __future__ import annotations

from dataclasses import replace

import pytest
from gpu import needs_hopper, torch
from gpu_attention_cases import Case, assert_within_rule, lists_of

import chipmunk_kernels as ck

pytestmark = needs_hopper

SIZES = [
    *((torch.float16, size) for size in (1e1, 1e2, 1e3, 1e4, 3e4, 6e4)),
    *((torch.bfloat16, 10.0**e) for e in (1, 2, 3, 4, 5, 6, 8, 10, 13, 16, 18)),
]


def uniform_case(
    dtype: torch.dtype, size: float, *, head_dim: int = 64, query_group: int = 192
) -> Case:
    torch.manual_seed(0)
    q, k = ((torch.rand(1, 2, n, head_dim, device="cuda") * 2 - 1) * size for n in (400, 500))
    v = torch.randn(1, 2, 500, head_dim, device="cuda")
    mask = torch.rand(1, 2, -(-400 // query_group), 500, device="cuda") < 0.7
    return Case(q.to(dtype), k.to(dtype), v.to(dtype), lists_of(mask, query_group), mask)


@pytest.mark.parametrize("query_group", [64, 128, 192])
@pytest.mark.parametrize(("dtype", "size"), SIZES)
def test_sizes_of_scores(dtype: torch.dtype, size: float, query_group: int) -> None:
    for head_dim in (64, 128):
        case = uniform_case(dtype, size, head_dim=head_dim, query_group=query_group)
        assert_within_rule(case, case.run())


@pytest.mark.parametrize(("dtype", "size"), SIZES)
def test_a_rest_beside_scores_of_any_size(dtype: torch.dtype, size: float) -> None:
    case = uniform_case(dtype, size)
    _, lse = case.run()
    for factor in (1.0, 0.5, -1.0):
        rest_lse = lse * factor + torch.randn_like(lse)
        case.rest = (torch.randn_like(case.q), rest_lse)
        assert_within_rule(case, case.run())


@pytest.mark.parametrize("query_group", [64, 128, 192])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [1e2, 1e4, 6e4])
def test_scores_that_grow_or_shrink_from_tile_to_tile(
    size: float, dtype: torch.dtype, query_group: int
) -> None:
    """Ordinary first tiles before huge ones, and the other way round; some rows stay ordinary."""
    case = uniform_case(dtype, size, query_group=query_group)
    steps = torch.logspace(-6, 0, 500, device="cuda")[:, None]
    few = torch.where(torch.rand(400, 1, device="cuda") < 0.5, 1.0, 1e-4)
    for sizes in (steps, steps.flip(0)):
        for rows in (torch.ones_like(few), few):
            grown = replace(case, k=(case.k * sizes).to(dtype), q=(case.q * rows).to(dtype))
            assert_within_rule(grown, grown.run())


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3, 1e30])
def test_a_scale_that_makes_scores_overflow(scale: float) -> None:
    """Where scaled scores overflow, the greatest still takes all, and lse is infinite."""
    case = uniform_case(torch.bfloat16, 100.0)
    got, lse = ck.column_sparse_attention(case.q, case.k, case.v, case.columns, softmax_scale=scale)
    # The same scores by a factor of the queries that float64 has.
    want, want_lse = _float64(case, scale)
    assert got.isfinite().all()
    in_dtype = torch.finfo(torch.bfloat16).eps * want.abs().max()
    assert ((got.double() - want).abs() <= in_dtype).float().mean() > 0.999
    expected = want_lse.float()
    assert torch.equal(lse.isinf(), expected.isinf())
    finite = expected.isfinite()
    assert ((lse - expected)[finite].abs() <= 2e-5 * expected[finite].abs().clamp(min=1)).all()


def _float64(case: Case, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    scores = case.q.double() @ case.k.double().mT * scale
    per_row = case.mask.repeat_interleave(case.columns.query_group, 2)[:, :, : case.q.shape[2]]
    scores = scores.masked_fill(~per_row, -torch.inf)
    return torch.softmax(scores, -1) @ case.v.double(), torch.logsumexp(scores, -1)
