"""The column-sparse MLP: recompute the selected hidden units, keep the others from a cache.

x is `[B, M, K]`, w1 `[F, K]` (`[2F, K]` for the gated activations), b1 `[F]` (`[2F]`) or None, w2t
`[F, N]`. Tokens are in groups of 128; each group has its list of hidden units. The cache holds the
activations, `[B, F, M]`, token index last.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from chipmunk_kernels.reference.attention import compute_dtype
from chipmunk_kernels.reference.columns import to_mask

MLP_QUERY_GROUP = 128


def hidden_units(x: Tensor, w1: Tensor, b1: Tensor | None, activation: str) -> Tensor:
    """activation(x w1^T + b1), transposed: `[B, F, M]` in the compute dtype, not rounded.

    `activation` is "gelu_tanh", "gelu" (exact erf), "silu", "relu", or gated, where rows [0, F) of
    w1 give the value and rows [F, 2F) the gate: "swiglu" is value * silu(gate), "geglu" is
    value * gelu(gate).
    """
    dtype = compute_dtype(x.dtype)
    z = w1.to(dtype) @ x.to(dtype).transpose(-1, -2)
    if b1 is not None:
        z = z + b1.to(dtype)[:, None]
    if activation == "gelu_tanh":
        return functional.gelu(z, approximate="tanh")
    if activation == "gelu":
        return functional.gelu(z)
    if activation == "silu":
        return functional.silu(z)
    if activation == "relu":
        return functional.relu(z)
    value, gate = z.chunk(2, dim=-2)
    if activation == "swiglu":
        return value * functional.silu(gate)
    if activation == "geglu":
        return value * functional.gelu(gate)
    raise ValueError(f"hidden_units: activation: unknown {activation!r}")


def dense_mlp(
    x: Tensor, w1: Tensor, b1: Tensor | None, w2t: Tensor, b2: Tensor | None, activation: str
) -> tuple[Tensor, Tensor]:
    """The whole MLP: activations `[B, F, M]` and out `[B, M, N]`, both in x's dtype.

    out is computed from the rounded activations.
    """
    activations = hidden_units(x, w1, b1, activation).to(x.dtype)
    dtype = compute_dtype(x.dtype)
    out = activations.to(dtype).transpose(-1, -2) @ w2t.to(dtype)
    if b2 is not None:
        out = out + b2.to(dtype)
    return activations, out.to(x.dtype)


def column_sparse_fc1(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    indices: Tensor,
    counts: Tensor,
    activation_cache: Tensor,
    *,
    activation: str,
) -> Tensor:
    """New activations of the selected hidden units into the cache, their changes into the result.

    For each group and selected f: new = activation(x w1[f] + b1[f]) rounded to x's dtype;
    delta = new - cached, rounded; cached = new.

    Args:
        x, w1, b1, activation: as in `hidden_units`.
        indices: `[B, groups, capacity]` int32, ascending and unique up to the count.
        counts: `[B, groups]` int32.
        activation_cache: `[B, F, M]` in x's dtype, updated in place.

    Returns:
        packed_delta `[B, groups, capacity, 128]` in x's dtype: at [b, g, p, r] the delta of hidden
        unit indices[b, g, p] for token 128 g + r; 0 for tokens past M. Rows p >= count have no
        meaning; here they are 0.
    """
    hidden, tokens = activation_cache.shape[-2:]
    groups, capacity = indices.shape[-2:]
    selected = to_mask(indices, counts, hidden)  # [B, groups, F]
    selected = selected.repeat_interleave(MLP_QUERY_GROUP, dim=1)[:, :tokens].transpose(1, 2)
    new = hidden_units(x, w1, b1, activation).to(x.dtype)
    dtype = compute_dtype(x.dtype)
    delta = (new.to(dtype) - activation_cache.to(dtype)).to(x.dtype)  # [B, F, M]
    activation_cache.copy_(torch.where(selected, new, activation_cache))

    listed = torch.arange(capacity, device=x.device) < counts[..., None]
    row = torch.where(listed, indices.long(), hidden)  # slots past the count: a row of zeros
    delta = functional.pad(delta, (0, groups * MLP_QUERY_GROUP - tokens, 0, 1))
    delta = delta.reshape(x.shape[0], hidden + 1, groups, MLP_QUERY_GROUP).transpose(1, 2)
    return delta.gather(2, row[..., None].expand(-1, -1, -1, MLP_QUERY_GROUP))


def column_sparse_fc2(
    packed_delta: Tensor, w2t: Tensor, indices: Tensor, counts: Tensor, out: Tensor
) -> Tensor:
    """out[b, m] += sum over the selected f of delta[f, m] * w2t[f], in place; rounded once.

    Args:
        packed_delta: `[B, groups, capacity, 128]` from `column_sparse_fc1`.
        w2t: `[F, N]`.
        indices, counts: the lists that packed_delta was made with.
        out: `[B, M, N]`, updated in place.

    Returns:
        out.
    """
    dtype = compute_dtype(out.dtype)
    listed = torch.arange(indices.shape[-1], device=out.device) < counts[..., None]
    rows = functional.pad(w2t, (0, 0, 0, 1))[torch.where(listed, indices.long(), w2t.shape[0])]
    delta = packed_delta.masked_fill(~listed[..., None], 0.0)
    change = delta.to(dtype).transpose(-1, -2) @ rows.to(dtype)  # [B, groups, 128, N]
    return out.copy_(out.to(dtype) + change.flatten(1, 2)[:, : out.shape[1]])


def column_sparse_mlp(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2t: Tensor,
    indices: Tensor,
    counts: Tensor,
    activation_cache: Tensor,
    out: Tensor,
    *,
    activation: str,
) -> Tensor:
    """`column_sparse_fc1` then `column_sparse_fc2`: updates activation_cache and out; gives out."""
    packed_delta = column_sparse_fc1(
        x, w1, b1, indices, counts, activation_cache, activation=activation
    )
    return column_sparse_fc2(packed_delta, w2t, indices, counts, out)
