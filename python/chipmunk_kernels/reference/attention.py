"""Attention over all keys, over selected columns, and the softmax algebra that joins the two.

q is `[B, Hq, Nq, D]`, k and v are `[B, Hkv, Nk, D]` with Hq a multiple of Hkv. A *part* is a pair
`(out, lse)`: attention over some set of keys, out `[B, Hq, Nq, D]` and lse `[B, Hq, Nq]`, the
natural logarithm of the sum of exp of the scaled scores. The part over no keys at all is out 0,
lse -inf.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

Part = tuple[Tensor, Tensor]  # out [B, Hq, Nq, D], lse [B, Hq, Nq]


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of all arithmetic: float32, or float64 for float64 inputs."""
    return torch.promote_types(dtype, torch.float32)


def dense_attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float | None = None) -> Part:
    """Softmax attention over all keys.

    Args:
        q: queries `[B, Hq, Nq, D]`.
        k: keys `[B, Hkv, Nk, D]`.
        v: values `[B, Hkv, Nk, D]`.
        softmax_scale: factor of the scores; 1 / sqrt(D) if None.

    Returns:
        out `[B, Hq, Nq, D]` in q's dtype, lse `[B, Hq, Nq]` float32 (float64 for float64 inputs).
    """
    out, lse = _softmax_times_v(_scores(q, k, softmax_scale), _per_query_head(v, q))
    return out.to(q.dtype), lse


def dense_attention_column_sums(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    reference_lse: Tensor | None = None,
    key_weights: Tensor | None = None,
    query_rows: Tensor | None = None,
    query_group: int = 192,
    softmax_scale: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Dense attention, and how much weight each group of queries gives to each key.

    `column_sums[b, h, g, j]` = sum over the rows i of group g of exp(score_ij - reference_lse_i).
    A row whose reference is +inf or -inf contributes 0.

    Args:
        q, k, v, softmax_scale: as in `dense_attention`.
        reference_lse: `[B, Hq, Nq]`, usually the previous step's lse; the exact lse if None.
        key_weights: `[B, Hkv, Nk]`; each key's sums are multiplied by its weight. None: all 1.
        query_rows: permutation `[Nq]`; group g holds the queries
            `query_rows[g * query_group : (g + 1) * query_group]`. None: as they come.
        query_group: rows per group.

    Returns:
        out and lse as `dense_attention` gives them, and column_sums `[B, Hq, groups, Nk]` in lse's
        dtype.
    """
    scores = _scores(q, k, softmax_scale)
    out, lse = _softmax_times_v(scores, _per_query_head(v, q))
    reference = lse if reference_lse is None else reference_lse.to(lse.dtype)
    weights = torch.exp(scores - reference[..., None])
    weights = weights.masked_fill(reference.isinf()[..., None], 0.0)
    if query_rows is not None:
        weights = weights[:, :, query_rows.long()]
    sums = _in_groups(weights, query_group).sum(dim=-2)
    if key_weights is not None:
        sums = sums * _per_query_head(key_weights, q).to(sums.dtype)[:, :, None]
    return out.to(q.dtype), lse, sums


def column_sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    indices: Tensor,
    counts: Tensor,
    query_group: int = 192,
    *,
    rest: Part | None = None,
    query_rows: Tensor | None = None,
    softmax_scale: float | None = None,
) -> Part:
    """Attention of each group of queries over its own list of keys, merged with `rest` if given.

    Keys and values that a group does not list do not reach its rows, whatever they hold. Entries at
    positions >= count are not read.

    Args:
        q, k, v, softmax_scale: as in `dense_attention`.
        indices: `[B, Hq, groups, capacity]` int32, ascending and unique up to the count.
        counts: `[B, Hq, groups]` int32, each from 0 to capacity.
        query_group: rows per group.
        rest: the part over all other keys, or a stale copy of it.
        query_rows: as in `dense_attention_column_sums`.

    Returns:
        The part over the listed keys, or the merge of it and `rest`; out in q's dtype.
    """
    if query_rows is not None:
        q = q[:, :, query_rows.long()]
    keys, capacity, head_dim = k.shape[-2], indices.shape[-1], q.shape[-1]
    # [B, Hq, groups, capacity]; slots past the count point at the row of zeros gather() appends
    listed = torch.arange(capacity, device=q.device) < counts[..., None]
    row = torch.where(listed, indices.long(), keys)

    def gather(x: Tensor) -> Tensor:  # [B, Hkv, Nk, D] -> [B, Hq, groups, capacity, D]
        x = torch.nn.functional.pad(_per_query_head(x, q), (0, 0, 0, 1))
        picked = x.gather(2, row.flatten(2)[..., None].expand(-1, -1, -1, head_dim))
        return picked.reshape(*row.shape, head_dim)

    scores = _scores(_in_groups(q, query_group), gather(k), softmax_scale)
    scores = scores.masked_fill(~listed[..., None, :], -math.inf)
    out, lse = _softmax_times_v(scores, gather(v))  # [B, Hq, groups, query_group, ..]
    out, lse = out.flatten(2, 3)[:, :, : q.shape[2]], lse.flatten(2, 3)[:, :, : q.shape[2]]
    if query_rows is not None:
        back = query_rows.argsort()
        out, lse = out[:, :, back], lse[:, :, back]
    if rest is not None:
        out, lse = _merge((out, lse), rest)
    return out.to(q.dtype), lse


def merge_attention(a: Part, b: Part) -> Part:
    """The attention over the union of two disjoint sets of keys.

    A part whose lse is -inf is empty: its out is not looked at.
    """
    out, lse = _merge(a, b)
    return out.to(a[0].dtype), lse


def rest_of_attention(whole: Part, selected: Part) -> Part:
    """The part of `whole` that `selected` leaves: merging the two gives `whole` again.

    With w = exp(lse_selected - lse_whole), the share of the mass that is selected:
    lse_rest = lse_whole + log(1 - w) and o_rest = o_whole + (o_whole - o_selected) w / (1 - w).

    Where 1 - w <= 0 nothing is left: out 0, lse -inf. Where 1 - w is below eps(dtype of out) / 16
    the difference of two rounded outputs is noise, which the division would blow up and a later
    merge with other selected scores would show; there o_rest is o_whole.
    """
    (out_whole, lse_whole), (out_selected, lse_selected) = whole, selected
    dtype = compute_dtype(out_whole.dtype)
    lse_whole, lse_selected = lse_whole.to(dtype), lse_selected.to(dtype)
    left = -torch.expm1(lse_selected - lse_whole)  # 1 - w
    left = left.masked_fill(lse_selected == -math.inf, 1.0).masked_fill(lse_whole == -math.inf, 0.0)
    factor = ((1 - left) / left)[..., None]
    usable = (left < 1) & (left >= torch.finfo(out_whole.dtype).eps / 16)
    difference = out_whole.to(dtype) - out_selected.to(dtype)
    out = out_whole.to(dtype) + torch.where(usable[..., None], difference * factor, 0.0)
    nothing = left <= 0
    lse = torch.where(nothing, -math.inf, lse_whole + torch.log(left))
    return out.masked_fill(nothing[..., None], 0.0).to(out_whole.dtype), lse


def _merge(a: Part, b: Part) -> Part:
    """`merge_attention` before the rounding of out."""
    dtype = compute_dtype(a[0].dtype)
    lse = torch.logaddexp(a[1].to(dtype), b[1].to(dtype))

    def weighted(part: Part) -> Tensor:
        product = torch.exp(part[1].to(dtype) - lse)[..., None] * part[0].to(dtype)
        return product.masked_fill((part[1] == -math.inf)[..., None], 0.0)

    return weighted(a) + weighted(b), lse


def _scores(q: Tensor, k: Tensor, softmax_scale: float | None) -> Tensor:
    """Scaled scores `[.., Nq, Nk]` in the compute dtype."""
    dtype = compute_dtype(q.dtype)
    scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
    return q.to(dtype) @ _per_query_head(k, q).to(dtype).transpose(-1, -2) * scale


def _softmax_times_v(scores: Tensor, v: Tensor) -> Part:
    """softmax(scores) v and the lse; zeros and -inf for a row without any finite score."""
    lse = torch.logsumexp(scores, dim=-1)
    weights = torch.exp(scores - lse[..., None]).masked_fill((lse == -math.inf)[..., None], 0.0)
    return weights @ v.to(scores.dtype), lse


def _per_query_head(x: Tensor, q: Tensor) -> Tensor:
    """`[B, Hkv, ..]` -> `[B, Hq, ..]`: query head h uses key/value head h / (Hq / Hkv)."""
    return x.repeat_interleave(q.shape[1] // x.shape[1], dim=1)


def _in_groups(x: Tensor, query_group: int) -> Tensor:
    """`[B, H, N, C]` -> `[B, H, groups, query_group, C]`, the last group padded with zeros."""
    groups = -(-x.shape[2] // query_group)
    padded = torch.nn.functional.pad(x, (0, 0, 0, groups * query_group - x.shape[2]))
    return padded.reshape(*x.shape[:2], groups, query_group, x.shape[3])
