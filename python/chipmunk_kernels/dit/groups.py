"""Means over the groups of tokens that share a list."""

from __future__ import annotations

import torch
from torch import Tensor


def group_mean(x: Tensor, group: int) -> Tensor:
    """Means over consecutive groups of tokens: `[.., tokens, C]` -> `[.., groups, C]`.

    The last group may be smaller. Computed in at least float32 and rounded once, to x's dtype.
    """
    *lead, tokens, channels = x.shape
    groups = -(-tokens // group)
    dtype = torch.promote_types(x.dtype, torch.float32)
    padded = torch.nn.functional.pad(x, (0, 0, 0, groups * group - tokens))
    sums = padded.reshape(*lead, groups, group, channels).sum(dim=-2, dtype=dtype)
    starts = torch.arange(groups, device=x.device) * group
    sizes = (tokens - starts).clamp(max=group)
    return (sums / sizes[:, None]).to(x.dtype)
