"""Lists of many lengths, and lists of equal length that hold as many columns."""

from __future__ import annotations

import math

import torch
from shapes import FULL_GROUPS, LOG_NORMAL, AttentionCase
from torch import Tensor

import chipmunk_kernels as ck

SIGMA = 0.8  # of the logarithm of log-normal counts
FULL_OF_EACH_HEAD = 3
_SEED = 0


def list_lengths(case: AttentionCase) -> Tensor:
    """Counts `[1, H, groups]` int64 on the CPU, each within [1, tokens]; the same at every call.

    Log-normal counts have a mean of about `case.count` each time; with full groups, the first
    three of each head (text, in a picture model) hold all columns and the others `case.count`.
    """
    shape = (1, case.shape.heads, case.groups)
    if case.lengths == FULL_GROUPS:
        counts = torch.full(shape, case.count)
        counts[..., :FULL_OF_EACH_HEAD] = case.shape.tokens
        return counts
    if case.lengths != LOG_NORMAL:
        raise ValueError(f"list_lengths: lengths: unknown {case.lengths!r}")
    generator = torch.Generator().manual_seed(_SEED)
    drawn = torch.randn(shape, generator=generator, dtype=torch.float64).mul(SIGMA).exp()
    scaled = drawn * (case.count / drawn.mean())
    return scaled.round().long().clamp(1, case.shape.tokens)


def columns_of_lengths(
    case: AttentionCase, keys: int, generator: torch.Generator
) -> ck.ColumnLists:
    """Random columns, as many as `list_lengths` says. On a GPU the lists carry an order."""
    return _random_lists(case, list_lengths(case), keys, generator.device)


def unordered_columns(case: AttentionCase, keys: int, generator: torch.Generator) -> ck.ColumnLists:
    """The same lists without their order."""
    columns = columns_of_lengths(case, keys, generator)
    return ck.ColumnLists(columns.indices, columns.counts, columns.query_group)


def equal_columns(case: AttentionCase, keys: int, generator: torch.Generator) -> ck.ColumnLists:
    """Random columns, in each list the mean of `list_lengths`."""
    lengths = list_lengths(case)
    mean = round(lengths.double().mean().item())
    return _random_lists(case, torch.full_like(lengths, mean), keys, generator.device)


def _random_lists(
    case: AttentionCase, counts: Tensor, keys: int, device: torch.device
) -> ck.ColumnLists:
    """One head's ranks `[groups, keys]` are in memory at a time; the same lists at every call."""
    generator = torch.Generator(device).manual_seed(_SEED)
    mask = torch.empty(*counts.shape, keys, dtype=torch.bool, device=device)
    wanted = counts.to(device)
    for head in range(case.shape.heads):
        scores = torch.rand(case.groups, keys, generator=generator, device=device)
        mask[0, head] = scores.argsort(-1).argsort(-1) < wanted[0, head, :, None]
    capacity = math.ceil(counts.max().item() / 16) * 16
    return ck.columns_from_mask(mask, query_group=case.query_group, capacity=min(capacity, keys))
