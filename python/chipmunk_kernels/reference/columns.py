"""Column lists: choosing them by score, and their two forms, lists and masks.

A list is a row of `indices` `[*lead, groups, capacity]` int32, ascending and unique up to its entry
in `counts` `[*lead, groups]` int32. What stands past the count has no meaning; here it is -1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def select_columns(
    scores: Tensor,
    *,
    count: int | Tensor | None = None,
    mass: float | Tensor | None = None,
    min_count: int = 0,
    max_count: int | None = None,
    always: Tensor | None = None,
    random_fraction: float = 0.0,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """The best columns of each row of scores.

    The columns of a row are ranked: `always` columns first, and within both kinds by descending
    score, ties to the lower index; a NaN score counts as -inf. Let A be the number of `always`
    columns and limit = min(n, max_count). Then

    - by `count`: total = min(limit, max(count, A, min_count)), of which
      random = min(floor(random_fraction * total), total - A, but not below 0);
      the first total - random columns of the ranking are taken.
    - by `mass`: the shortest prefix of the ranking that holds all `always` columns, at least
      `min_count` columns, and weights that sum to at least mass * (sum of all weights); at most
      `limit` of it is taken, say p columns. The weight of a column is its score, 0 if that is
      negative or NaN; sums are float64 and run along the ranking.
      random = min(floor(random_fraction * p), limit - p) more are drawn.

    The `random` columns are those with the smallest `random_hash` (as unsigned numbers) among the
    columns not taken by rank. Lists come out ascending.

    Args:
        scores: `[*lead, groups, n]`, any floating dtype.
        count: columns per row; exactly one of `count` and `mass` is given. A number, or integers
            that broadcast to `[*lead, groups]`, clamped to [0, n].
        mass: fraction, 0 to 1, of the sum of a row's scores: a number, or float32 fractions as for
            `count`, clamped, NaN to 0.
        min_count: at least so many columns in every list.
        max_count: at most so many; needed with a tensor of counts or fractions.
        always: bool, broadcastable to scores; columns that come before all others.
        random_fraction: 0 to 1, share of columns drawn uniformly.
        seed: of the draw, an unsigned 64-bit number.

    Returns:
        indices and counts. The capacity is min(n, max_count) if given; else
        min(n, max(count, min_count)) by `count` without `always`; else n.
    """
    if (count is None) == (mass is None):
        raise ValueError("select_columns: expected exactly one of count and mass")
    if max_count is None and (isinstance(count, Tensor) or isinstance(mass, Tensor)):
        raise ValueError("select_columns: expected a max_count with one budget per list")
    n = scores.shape[-1]
    limit = n if max_count is None else min(n, max_count)
    first = torch.zeros_like(scores, dtype=torch.bool)
    if always is not None:
        first = first | always
    ordered = scores.nan_to_num(-math.inf, math.inf, -math.inf)
    by_score = ordered.argsort(dim=-1, descending=True, stable=True)
    by_kind = (
        (~first).gather(-1, by_score).byte().argsort(dim=-1, stable=True)
    )  # `always` to the front
    ranking = by_score.gather(-1, by_kind)  # [*lead, groups, n]

    total_always = first.sum(-1)
    if count is not None:
        if isinstance(count, Tensor):
            count = count.long().clamp(0, n)
        total = _at_least(_at_least(total_always, count), min_count).clamp(max=limit)
        by_chance = (random_fraction * total.double()).floor().long()
        by_chance = torch.minimum(by_chance, (total - total_always).clamp(min=0))
        by_rank = total - by_chance
    else:
        assert mass is not None
        weights = scores.gather(-1, ranking).double().nan_to_num(0.0, math.inf, 0.0).clamp(min=0)
        sums = torch.nn.functional.pad(weights.cumsum(-1), (1, 0))  # [p]: of the first p columns
        if isinstance(mass, Tensor):
            mass = mass.double().nan_to_num(0.0).clamp(0, 1)[..., None]
        needed = (sums < mass * sums[..., -1:]).sum(-1)
        by_rank = _at_least(_at_least(needed, total_always), min_count).clamp(max=limit)
        by_chance = (random_fraction * by_rank.double()).floor().long().clamp(max=limit)
        by_chance = torch.minimum(by_chance, limit - by_rank)

    chosen = _first_of(ranking, by_rank)
    hashes = random_hash(seed, scores.shape, scores.device) ^ _SIGN_BIT  # unsigned order
    lottery = hashes.masked_fill(chosen, torch.iinfo(torch.int64).max).argsort(dim=-1, stable=True)
    chosen = chosen | _first_of(lottery, by_chance)
    capacity = limit
    if max_count is None and isinstance(count, int) and always is None:
        capacity = min(n, max(count, min_count))
    return columns_from_mask(chosen, capacity=capacity)


def columns_from_mask(mask: Tensor, *, capacity: int | None = None) -> tuple[Tensor, Tensor]:
    """Lists the true entries of each row of `mask` `[*lead, groups, n]`.

    A row with more than `capacity` (n if None) of them keeps the lowest.
    """
    n = mask.shape[-1]
    capacity = n if capacity is None else capacity
    ascending = torch.where(mask, _positions(mask), n).sort(-1).values[..., :capacity]
    ascending = torch.nn.functional.pad(ascending, (0, capacity - ascending.shape[-1]), value=n)
    counts = mask.sum(-1).clamp(max=capacity)
    return ascending.masked_fill(ascending == n, -1).int(), counts.int()


def to_mask(indices: Tensor, counts: Tensor, n: int) -> Tensor:
    """The lists as a mask `[*lead, groups, n]` of bool."""
    listed = _positions(indices) < counts[..., None]
    mask = torch.zeros(*indices.shape[:-1], n + 1, dtype=torch.bool, device=indices.device)
    mask.scatter_(-1, torch.where(listed, indices.long(), n), True)
    return mask[..., :n]


def random_hash(seed: int, shape: tuple[int, ...], device: torch.device | None = None) -> Tensor:
    """splitmix64(splitmix64(seed) ^ (row << 32 | column)) for a score tensor of this shape.

    `row` is the flattened index over all dimensions but the last, `column` the last; all arithmetic
    is on unsigned 64-bit numbers. splitmix64(x) is one step of the generator of that name from
    state x, in C: z = x + 0x9E3779B97F4A7C15; z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9;
    z = (z ^ z >> 27) * 0x94D049BB133111EB; return z ^ z >> 31. It is a bijection, so two columns of
    a row never tie.

    Returns:
        The hashes' bits as int64, shaped `shape`.
    """
    rows = torch.arange(math.prod(shape[:-1]), dtype=torch.int64, device=device)
    columns = torch.arange(shape[-1], dtype=torch.int64, device=device)
    state = torch.tensor(_as_signed(seed), dtype=torch.int64, device=device)
    return _splitmix64(_splitmix64(state) ^ ((rows[:, None] << 32) | columns)).reshape(shape)


def _at_least(numbers: Tensor, least: int | Tensor) -> Tensor:
    """The numbers, or `least` where that is more."""
    if isinstance(least, Tensor):
        return torch.maximum(numbers, least)
    return numbers.clamp(min=least)


_SIGN_BIT = torch.iinfo(torch.int64).min


def _as_signed(bits: int) -> int:
    """The int64 with the bits of an unsigned 64-bit number."""
    return (bits + 2**63) % 2**64 - 2**63


def _splitmix64(x: Tensor) -> Tensor:
    """One splitmix64 step on int64 tensors that hold unsigned bits; int64 arithmetic wraps."""

    def shifted(z: Tensor, bits: int) -> Tensor:  # logical, not arithmetic, right shift
        return (z >> bits) & (2 ** (64 - bits) - 1)

    z = x + _as_signed(0x9E3779B97F4A7C15)
    z = (z ^ shifted(z, 30)) * _as_signed(0xBF58476D1CE4E5B9)
    z = (z ^ shifted(z, 27)) * _as_signed(0x94D049BB133111EB)
    return z ^ shifted(z, 31)


def _first_of(order: Tensor, counts: Tensor) -> Tensor:
    """Mask of the first counts[..] columns of each row's order, a permutation of its columns."""
    taken = _positions(order) < counts[..., None]
    return torch.zeros_like(taken).scatter_(-1, order, taken)


def _positions(x: Tensor) -> Tensor:
    """0, 1, 2, .. along the last dimension."""
    return torch.arange(x.shape[-1], device=x.device)
