"""Inputs, column lists and exact results for the GPU benchmark of column-sparse attention."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from length_columns import columns_of_lengths, equal_columns, unordered_columns
from shapes import EQUAL, HOT_AND_LOCAL, LENGTHS, RANDOM, UNORDERED, AttentionCase
from torch import Tensor

import chipmunk_kernels as ck
from chipmunk_kernels import reference

HOT_SHARE = 0.5
LSE_ALLOWED = 2e-5


@dataclass(frozen=True)
class Inputs:
    """Random q, k, v `[1, H, N, D]` of one case, and memory for a result."""

    q: Tensor
    k: Tensor
    v: Tensor
    out: Tensor
    lse: Tensor  # [1, H, N] float32

    @classmethod
    def random(cls, case: AttentionCase, generator: torch.Generator) -> Inputs:
        """Standard normal, rounded to the case's dtype."""
        dtype = getattr(torch, case.dtype)
        shape = (1, case.shape.heads, case.shape.tokens, case.shape.head_dim)

        def normal() -> Tensor:
            return torch.randn(shape, generator=generator, device=generator.device, dtype=dtype)

        q, k, v = normal(), normal(), normal()
        lse = torch.empty(shape[:-1], device=generator.device)
        return cls(q, k, v, torch.empty_like(q), lse)

    def poison(self) -> None:
        """Makes what is not written show."""
        self.out.fill_(math.nan)
        self.lse.fill_(math.nan)


def described(case: Any) -> dict[str, Any]:
    """What a row of results says of its case, which has `shape`, `dtype` and `query_group`."""
    return {
        "shape": case.shape.name,
        "heads": case.shape.heads,
        "tokens": case.shape.tokens,
        "head_dim": case.shape.head_dim,
        "dtype": case.dtype,
        "query_group": case.query_group,
    }


@dataclass(frozen=True)
class Variant:
    """Something to time, and what its result must be."""

    name: str
    run: Callable[[], Any]
    """Gives the output, or (output, lse)."""
    flops: int
    """Multiplications and additions that the result needs: no padding, no masked scores."""
    q: Tensor  # [1, H, N, D], as k and v
    k: Tensor
    v: Tensor
    keys_of: Callable[[int, int], Tensor | slice]
    """The keys that a query row attends to, by head and row."""
    rest: tuple[Tensor, Tensor] | None = None
    heads_first: bool = True
    """Whether the output is `[1, H, N, D]`; else `[1, N, H, D]`."""
    note: str = ""


@dataclass(frozen=True)
class Check:
    """Largest errors over the sampled rows, and what the rule of docs/numerics.md allows."""

    error: float
    allowed: float
    lse_error: float
    """Over max(1, |lse|)."""
    finite: bool

    @property
    def passed(self) -> bool:
        return self.finite and self.error <= self.allowed and self.lse_error <= LSE_ALLOWED


def random_columns(case: AttentionCase, keys: int, generator: torch.Generator) -> ck.ColumnLists:
    """`count` columns of each group, all equally likely."""

    def scores(_: int) -> Tensor:
        return torch.rand(case.groups, keys, generator=generator, device=generator.device)

    return _columns_by_score(case, scores, generator.device)


def hot_and_local_columns(
    case: AttentionCase, keys: int, generator: torch.Generator
) -> ck.ColumnLists:
    """Stripes and a diagonal: `HOT_SHARE` of the columns are common to all groups of a head, the
    others are those nearest to the group's middle."""
    device = generator.device
    middles = (torch.arange(case.groups, device=device) + 0.5) * case.query_group
    middles = middles * keys / case.shape.tokens
    distances = (torch.arange(keys, device=device) - middles[:, None]).abs()

    def scores(_: int) -> Tensor:
        hot = torch.rand(keys, generator=generator, device=device).topk(int(HOT_SHARE * case.count))
        return (-distances).index_fill(1, hot.indices, math.inf)

    return _columns_by_score(case, scores, device)


COLUMNS = {
    RANDOM: random_columns,
    HOT_AND_LOCAL: hot_and_local_columns,
    EQUAL: equal_columns,
    LENGTHS: columns_of_lengths,
    UNORDERED: unordered_columns,
}


def _columns_by_score(
    case: AttentionCase, scores: Callable[[int], Tensor], device: torch.device
) -> ck.ColumnLists:
    """The best of each group; one head's scores `[groups, keys]` are in memory at a time."""
    shape = (1, case.shape.heads, case.groups)
    indices = torch.empty(*shape, case.count, dtype=torch.int32, device=device)
    for head in range(case.shape.heads):
        best = scores(head).topk(case.count, sorted=False).indices
        indices[0, head] = best.sort(-1).values
    counts = torch.full(shape, case.count, dtype=torch.int32, device=device)
    return ck.ColumnLists(indices, counts, case.query_group)


def dense_flops(case: AttentionCase) -> int:
    """Of attention over all keys."""
    shape = case.shape
    return 4 * shape.heads * shape.tokens**2 * shape.head_dim


def useful_flops(columns: ck.ColumnLists, queries: int, head_dim: int) -> int:
    """Of attention over the lists: each real row of a group times its group's count."""
    groups = columns.counts.shape[-1]
    starts = torch.arange(groups, device=columns.counts.device) * columns.query_group
    rows = (queries - starts).clamp(max=columns.query_group)
    return 4 * head_dim * int((columns.counts.long() * rows).sum())


def ours(
    name: str, inputs: Inputs, columns: ck.ColumnLists, rest: tuple[Tensor, Tensor] | None = None
) -> Variant:
    """`ck.column_sparse_attention` into given memory."""
    q, k, v, out = inputs.q, inputs.k, inputs.v, (inputs.out, inputs.lse)

    def keys_of(head: int, row: int) -> Tensor:
        group = row // columns.query_group
        return columns.indices[0, head, group, : int(columns.counts[0, head, group])].long()

    return Variant(
        name,
        lambda: ck.column_sparse_attention(q, k, v, columns, rest=rest, out=out),
        useful_flops(columns, q.shape[2], q.shape[3]),
        q,
        k,
        v,
        keys_of,
        rest,
        note=_lengths_note(columns),
    )


def _lengths_note(columns: ck.ColumnLists) -> str:
    """Empty where all lists are equally long."""
    shortest, longest = columns.counts.min().item(), columns.counts.max().item()
    if shortest == longest:
        return ""
    return f"{shortest:,} to {longest:,} columns, mean {columns.counts.double().mean():,.1f}"


def sampled_rows(case: AttentionCase) -> list[tuple[int, int]]:
    """(head, row): of the first, middle and last head and group, the ends and the middle."""
    heads, tokens, group = case.shape.heads, case.shape.tokens, case.query_group
    rows: set[int] = set()
    for index in (0, case.groups // 2, case.groups - 1):
        first, end = index * group, min((index + 1) * group, tokens)
        rows |= {first, (first + end) // 2, end - 1}
    return [(head, row) for head in sorted({0, heads // 2, heads - 1}) for row in sorted(rows)]


def check(variant: Variant, rows: Sequence[tuple[int, int]]) -> Check:
    """Runs the variant once and compares these rows of its result with float64."""
    result = variant.run()
    out, lse = result if isinstance(result, tuple) else (result, None)
    out = out if variant.heads_first else out.transpose(1, 2)
    error = native_error = largest = lse_error = 0.0
    for head, row in rows:
        want, want_lse = _attention_of(variant, head, row, torch.float64)
        native, _ = _attention_of(variant, head, row, out.dtype)
        error = max(error, _largest(out[0, head, row].double() - want))
        native_error = max(native_error, _largest(native.to(out.dtype).double() - want))
        largest = max(largest, _largest(want))
        if lse is not None:
            relative = (lse[0, head, row].double() - want_lse) / want_lse.abs().clamp(min=1)
            lse_error = max(lse_error, _largest(relative))
    allowed = 2 * native_error + torch.finfo(out.dtype).eps * largest
    return Check(error, allowed, lse_error, finite=bool(out.isfinite().all()))


def _attention_of(
    variant: Variant, head: int, row: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """One row by the reference, on inputs of this dtype."""
    keys = variant.keys_of(head, row)
    k, v = (x[:1, head : head + 1, keys].to(dtype) for x in (variant.k, variant.v))
    part = reference.dense_attention(variant.q[:1, head : head + 1, row : row + 1].to(dtype), k, v)
    if variant.rest is not None:
        rest_out, rest_lse = (x[:1, head : head + 1, row : row + 1] for x in variant.rest)
        part = reference.merge_attention(part, (rest_out.to(dtype), rest_lse.to(part[1].dtype)))
    return part[0][0, 0, 0], part[1][0, 0, 0]


def _largest(x: Tensor) -> float:
    """The largest magnitude; infinite where there is a NaN, which no comparison would notice."""
    return x.abs().nan_to_num(math.inf).max().item()


def reason(error: Exception) -> str:
    """The first line of an error, without folders, which say nothing elsewhere."""
    text = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {re.sub(r'(/[^/ ]+)+/', '', text)}"[:200]
