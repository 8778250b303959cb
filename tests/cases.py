"""Random inputs for the ops: shapes, dtypes, memory layouts, column lists with poison in them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from hypothesis import strategies as st
from torch import Tensor

import chipmunk_kernels as ck
from chipmunk_kernels import reference

INT_MAX = 2**31 - 1
LAYOUTS = ("contiguous", "transposed", "sliced", "packed", "sparse_rows")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def dtypes_on(device: str) -> tuple[torch.dtype, ...]:
    """float32 runs on the CPU alone."""
    return DTYPES if device == "cpu" else DTYPES[1:]


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Runs our ops with this many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(shape: tuple[int, ...], dtype: torch.dtype, device: str, generator: torch.Generator):
    """Normal numbers; drawn on the CPU, so the same on every device."""
    return torch.randn(shape, generator=generator).to(device, dtype)


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The values of x in another place of memory; what lies between them is NaN (or -1, or True).

    Layouts keep the last dimension contiguous: the two before it swapped, a slice at an odd
    offset, the first of three neighbours as in a packed projection, every other row.
    """
    if layout == "contiguous" or x.ndim < 2:
        return x.contiguous()
    if layout == "transposed":
        a, b = {2: (0, 0), 3: (0, 1), 4: (1, 2)}[x.ndim]
        return x.transpose(a, b).contiguous().transpose(a, b)
    poison = math.nan if x.is_floating_point() else True if x.dtype == torch.bool else -1
    shape = list(x.shape)
    if layout == "sliced":
        pad, at = (16, 8) if x.is_cuda else (5, 3)  # GPU kernels want rows of whole 16 bytes
        shape[-1] += pad
        out = torch.full(shape, poison, dtype=x.dtype, device=x.device)[..., at : at + x.shape[-1]]
    elif layout == "packed":
        shape[-1] *= 3
        out = torch.full(shape, poison, dtype=x.dtype, device=x.device)[..., : x.shape[-1]]
    else:
        shape[-2] *= 2
        out = torch.full(shape, poison, dtype=x.dtype, device=x.device)[..., ::2, :]
    return out.copy_(x)


def poisoned_lists(
    mask: Tensor, query_group: int, *, spare: int = 3, layout: str = "contiguous"
) -> ck.ColumnLists:
    """Lists of a mask `[*lead, groups, n]`: `spare` more entries than needed, INT_MAX past."""
    longest = int(mask.sum(-1).max()) if mask.numel() else 0
    indices, counts = reference.columns_from_mask(mask, capacity=longest + spare)
    past = torch.arange(longest + spare, device=mask.device) >= counts[..., None]
    indices = torch.where(past, INT_MAX, indices)
    return ck.ColumnLists(laid_out(indices, layout), counts, query_group)


def random_mask(shape: tuple[int, ...], density: float, device: str, generator: torch.Generator):
    """Rows of about this density, some empty and some full."""
    mask = torch.rand(shape, generator=generator) < density
    if shape[-1]:
        kind = torch.rand(shape[:-1], generator=generator)[..., None]
        mask = (mask & (kind > 0.1)) | (kind > 0.95)
    return mask.to(device)


@dataclass(frozen=True)
class AttentionCase:
    """Sizes and kinds of one attention call; the numbers come from `seed`."""

    batch: int
    kv_heads: int
    heads_per_kv: int
    queries: int
    keys: int
    head_dim: int
    query_group: int
    dtype: torch.dtype
    layout: str
    density: float
    seed: int
    threads: int = 1

    @property
    def groups(self) -> int:
        return -(-self.queries // self.query_group)

    @property
    def heads(self) -> int:
        return self.kv_heads * self.heads_per_kv

    def qkv(self, device: str, scale: float = 1.5) -> tuple[Tensor, Tensor, Tensor]:
        generator = rng(self.seed)
        q = randn(
            (self.batch, self.heads, self.queries, self.head_dim), self.dtype, device, generator
        )
        shape = (self.batch, self.kv_heads, self.keys, self.head_dim)
        k, v = (randn(shape, self.dtype, device, generator) for _ in range(2))
        return laid_out(q * scale, self.layout), laid_out(k, self.layout), laid_out(v, self.layout)

    def mask(self, device: str) -> Tensor:
        """bool `[batch, heads, groups, keys]`."""
        shape = (self.batch, self.heads, self.groups, self.keys)
        return random_mask(shape, self.density, device, rng(self.seed + 1))

    def for_sums(self, device: str) -> AttentionCase:
        """With groups that column sums take: on a GPU never 256, and 192 to head dim 128."""
        if device == "cpu" or self.query_group in (64, 128):
            return self
        return replace(self, query_group=192 if self.head_dim < 256 else 64)

    def poison_unread(self, mask: Tensor, k: Tensor, v: Tensor) -> None:
        """NaN in the keys and values that no query head of their head selects."""
        selected = mask.unflatten(1, (self.kv_heads, self.heads_per_kv)).any(2).any(2)
        k.masked_fill_(~selected[..., None], math.nan)
        v.masked_fill_(~selected[..., None], math.nan)

    def part(self, device: str, seed: int) -> tuple[Tensor, Tensor]:
        """Some (out, lse); a few rows are empty, and their out is NaN."""
        generator = rng(self.seed + seed)
        shape = (self.batch, self.heads, self.queries, self.head_dim)
        out = randn(shape, self.dtype, device, generator)
        lse = randn(shape[:-1], torch.float32, device, generator) * 3
        empty = (torch.rand(shape[:-1], generator=generator) < 0.1).to(device)
        out = out.masked_fill(empty[..., None], math.nan)
        return laid_out(out, self.layout), lse.masked_fill(empty, -math.inf)


def attention_cases(device: str) -> st.SearchStrategy[AttentionCase]:
    on_cpu = device == "cpu"
    return st.builds(
        AttentionCase,
        batch=st.integers(1, 2),
        kv_heads=st.integers(1, 2),
        heads_per_kv=st.integers(1, 2),
        queries=st.integers(0, 70) | st.integers(0, 270),
        keys=st.integers(0, 70) | st.integers(0, 200),
        head_dim=st.sampled_from([8, 24, 64, 96, 128, 256] if on_cpu else [64, 96, 128, 256]),
        query_group=st.sampled_from([64, 128, 192, 256]),
        dtype=st.sampled_from(dtypes_on(device)),
        layout=st.sampled_from(LAYOUTS),
        density=st.sampled_from([0.0, 0.03, 0.1, 0.3, 0.7, 1.0]),
        seed=st.integers(0, 2**31),
        threads=st.sampled_from([1, 2, 3]),
    )


@dataclass(frozen=True)
class MlpCase:
    """Sizes and kinds of one MLP call; the numbers come from `seed`."""

    batch: int
    tokens: int
    channels: int
    hidden: int
    out_channels: int
    activation: str
    bias: bool
    dtype: torch.dtype
    layout: str
    density: float
    seed: int
    threads: int = 1

    @property
    def groups(self) -> int:
        return -(-self.tokens // 128)

    @property
    def w1_rows(self) -> int:
        return self.hidden * (2 if self.activation in ("swiglu", "geglu") else 1)

    def x(self, device: str, seed: int = 0) -> Tensor:
        generator = rng(self.seed + seed)
        shape = (self.batch, self.tokens, self.channels)
        return laid_out(randn(shape, self.dtype, device, generator), self.layout)

    def weights(self, device: str) -> tuple[Tensor, Tensor | None, Tensor]:
        """w1, b1 (or None), w2t."""
        generator = rng(self.seed + 1)
        scale = max(self.channels, 1) ** -0.5
        w1 = randn((self.w1_rows, self.channels), self.dtype, device, generator) * scale
        b1 = randn((self.w1_rows,), self.dtype, device, generator) * 0.3
        w2t = randn((self.hidden, self.out_channels), self.dtype, device, generator)
        w2t = w2t * max(self.hidden, 1) ** -0.5
        return laid_out(w1, self.layout), b1 if self.bias else None, laid_out(w2t, self.layout)

    def cache(self, device: str) -> tuple[Tensor, Tensor]:
        """Activations `[B, F, M]` and output `[B, M, N]` of some earlier step."""
        generator = rng(self.seed + 2)
        activations = randn((self.batch, self.hidden, self.tokens), self.dtype, device, generator)
        output = randn((self.batch, self.tokens, self.out_channels), self.dtype, device, generator)
        return laid_out(activations, self.layout), laid_out(output, self.layout)

    def mask(self, device: str) -> Tensor:
        """bool `[batch, groups, hidden]`."""
        shape = (self.batch, self.groups, self.hidden)
        return random_mask(shape, self.density, device, rng(self.seed + 3))


def mlp_cases(device: str) -> st.SearchStrategy[MlpCase]:
    sizes = st.integers(1, 40) | st.sampled_from([64, 100, 128])
    return st.builds(
        MlpCase,
        batch=st.integers(1, 3),
        tokens=st.integers(0, 60) | st.integers(100, 300),
        channels=sizes if device == "cpu" else st.sampled_from([64, 128, 192]),
        hidden=st.integers(0, 90) | st.sampled_from([128, 200]),
        out_channels=sizes if device == "cpu" else st.sampled_from([64, 128, 192]),
        activation=st.sampled_from(["gelu_tanh", "gelu", "silu", "relu", "swiglu", "geglu"]),
        bias=st.booleans(),
        dtype=st.sampled_from(dtypes_on(device)),
        layout=st.sampled_from(LAYOUTS),
        density=st.sampled_from([0.0, 0.05, 0.3, 0.7, 1.0]),
        seed=st.integers(0, 2**31),
        threads=st.sampled_from([1, 2, 3]),
    )


def some_attention(
    device: str = "cpu", dtype: torch.dtype = torch.bfloat16, queries: int = 130, keys: int = 90
) -> tuple[Tensor, Tensor, Tensor, ck.ColumnLists]:
    """q, k, v and lists, where the sizes do not matter."""
    q = torch.randn(2, 4, queries, 64, device=device).to(dtype)
    k, v = (torch.randn(2, 2, keys, 64, device=device).to(dtype) for _ in range(2))
    mask = torch.rand(2, 4, -(-queries // 64), keys, device=device) < 0.3
    return q, k, v, poisoned_lists(mask, 64)


def some_mlp(device: str = "cpu", dtype: torch.dtype = torch.bfloat16, tokens: int = 200):
    """x, w1, b1, w2t, lists and cache, where the sizes do not matter."""

    def randn(*shape):
        return torch.randn(*shape, device=device).to(dtype)

    columns = poisoned_lists(torch.rand(2, -(-tokens // 128), 48, device=device) < 0.3, 128)
    cache = ck.MlpCache(randn(2, 48, tokens), randn(2, tokens, 64))
    return randn(2, tokens, 64), randn(48, 64), randn(48), randn(48, 64), columns, cache
