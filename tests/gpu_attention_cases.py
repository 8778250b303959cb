"""Random cases of column-sparse attention on a GPU, and their float64 result."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from gpu import torch

import chipmunk_kernels as ck
from chipmunk_kernels import reference

INT_MAX = 2**31 - 1
Part = tuple[torch.Tensor, torch.Tensor]


@dataclass
class Case:
    """One call. `mask` `[B, Hq, groups, Nk]` says what the lists hold."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    columns: ck.ColumnLists
    mask: torch.Tensor
    rest: Part | None = None

    def run(self) -> Part:
        return ck.column_sparse_attention(self.q, self.k, self.v, self.columns, rest=self.rest)


def lists_of(mask: torch.Tensor, query_group: int, slack: int = 0) -> ck.ColumnLists:
    """The lists of a mask, made without the ops under test; INT_MAX past every count."""
    counts = mask.sum(-1)
    capacity = max(1, int(counts.max()) if counts.numel() else 0) + slack
    n = mask.shape[-1]
    columns = torch.arange(n, device=mask.device).expand(mask.shape)
    ordered = torch.where(mask, columns, INT_MAX).sort(-1).values[..., :capacity]
    ordered = torch.nn.functional.pad(ordered, (0, capacity - ordered.shape[-1]), value=INT_MAX)
    return ck.ColumnLists(ordered.int().contiguous(), counts.int(), query_group)


def random_mask(shape: tuple[int, ...], counts: torch.Tensor) -> torch.Tensor:
    """Rows with `counts` random true entries each."""
    ranks = torch.rand(shape, device="cuda").argsort(-1).argsort(-1)
    return ranks < counts[..., None]


def heads_first(b: int, h: int, n: int, d: int, dtype: torch.dtype, layout: str) -> torch.Tensor:
    """An uninitialised `[B, H, N, D]` view of memory that is laid out as `layout` says."""
    if layout == "contiguous":
        return torch.empty(b, h, n, d, device="cuda", dtype=dtype)
    if layout == "tokens first":
        return torch.empty(b, n, h, d, device="cuda", dtype=dtype).transpose(1, 2)
    wide = torch.full((b, n, 3, h, d + 8), math.nan, device="cuda", dtype=dtype)
    return wide[:, :, 1, :, 8:].transpose(1, 2)


def random_case(
    rng: random.Random,
    *,
    head_dims: tuple[int, ...] = (64, 96, 128, 256),
    query_groups: tuple[int, ...] = (64, 128, 192, 256),
) -> Case:
    """Small shapes, any stride, counts from 0 over tile boundaries to all; NaN where none looks."""
    dtype = rng.choice([torch.bfloat16, torch.float16])
    d, group = rng.choice(head_dims), rng.choice(query_groups)
    b, kv_heads, share = rng.randint(1, 2), rng.randint(1, 2), rng.randint(1, 3)
    heads = kv_heads * share
    queries, keys = rng.randint(1, 500), rng.choice([1, 16, rng.randint(1, 500), 700])
    groups = -(-queries // group)
    layouts = ["contiguous", "tokens first", "packed"]
    q = heads_first(b, heads, queries, d, dtype, rng.choice(layouts))
    k = heads_first(b, kv_heads, keys, d, dtype, rng.choice(layouts))
    v = heads_first(b, kv_heads, keys, d, dtype, rng.choice(layouts))
    for x, scale in ((q, rng.choice([0.3, 1.0, 3.0])), (k, 1.0), (v, 1.0)):
        x.copy_(torch.randn(x.shape, device="cuda") * scale)

    shape = (b, heads, groups)
    kind = rng.randrange(4)
    if kind == 0:
        counts = torch.randint(0, keys + 1, shape)
    elif kind == 1:  # about the boundaries of tiles
        counts = torch.randint(0, 4, shape) * rng.choice([80, 112]) + torch.randint(-1, 2, shape)
    elif kind == 2:
        counts = torch.randint(0, 4, shape)
    else:
        counts = torch.full(shape, keys)
    counts[torch.rand(shape) < 0.1] = 0
    counts = counts.clamp(0, keys).cuda()
    mask = random_mask((*shape, keys), counts)
    unseen = ~mask.unflatten(1, (kv_heads, share)).any(dim=(2, 3))  # [B, Hkv, Nk]
    k[unseen] = math.nan
    v[unseen] = math.nan
    case = Case(q, k, v, lists_of(mask, group, rng.choice([0, 3])), mask)
    if rng.random() < 0.5:
        rest_out = heads_first(b, heads, queries, d, dtype, rng.choice(layouts))
        rest_out.copy_(torch.randn(rest_out.shape, device="cuda"))
        rest_lse = torch.randn(b, heads, queries, device="cuda") * 3 + 2
        rest_lse[torch.rand(rest_lse.shape, device="cuda") < 0.1] = -math.inf
        rest_out[rest_lse == -math.inf] = math.nan  # of an empty rest: not looked at
        case.rest = (rest_out, rest_lse)
    return case


def expected(case: Case, dtype: torch.dtype = torch.float64) -> Part:
    """The reference on inputs of this dtype."""
    q, k, v = (x.to(dtype) for x in (case.q, case.k, case.v))
    columns, rest = case.columns, case.rest
    if rest is not None:
        rest = (rest[0].to(dtype), rest[1].to(torch.promote_types(dtype, torch.float32)))
    return reference.column_sparse_attention(
        q, k, v, columns.indices, columns.counts, columns.query_group, rest=rest
    )


def assert_within_rule(case: Case, got: Part) -> None:
    """Twice the error of the reference in this dtype, and one rounding of the output."""
    out, lse = got
    want, want_lse = expected(case)
    in_dtype = expected(case, case.q.dtype)[0].double()
    allowed = 2 * (in_dtype - want).abs().max() + torch.finfo(out.dtype).eps * want.abs().max()
    assert out.isfinite().all()
    assert (out.double() - want).abs().max() <= allowed
    empty = want_lse == -math.inf
    assert torch.equal(lse == -math.inf, empty)
    assert (out[empty] == 0).all()
    error = (lse.double() - want_lse)[~empty].abs()
    assert (error <= 2e-5 * want_lse[~empty].abs().clamp(min=1)).all()
