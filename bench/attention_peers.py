"""The attention kernels that ours is timed against. Whatever keeps one from running is raised."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from attention_cases import Inputs, Variant, dense_flops
from gpu_timing import Timer
from shapes import CUDNN, FA3, FLEX, AttentionCase
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

BLOCK = 128
_COMPILED_SHAPES = 64

Peer = Callable[[AttentionCase, Inputs, Timer, torch.Generator], Variant]


def flash_attention_3(
    case: AttentionCase, inputs: Inputs, timer: Timer, _: torch.Generator
) -> Variant:
    """FlashAttention-3 of the wheel fa3-fwd, dense, in the faster of two layouts."""
    from fa3_fwd_interface import flash_attn_func

    note = ""
    heads_first = [inputs.q, inputs.k, inputs.v]
    if heads_first[0].dtype != torch.bfloat16:
        heads_first = [x.bfloat16() for x in heads_first]
        note = "bfloat16: the wheel holds no float16 kernels"
    views = [x.transpose(1, 2) for x in heads_first]  # it takes [B, N, H, D], of any stride
    runs = [partial(flash_attn_func, *views)]
    runs.append(partial(flash_attn_func, *(x.contiguous() for x in views)))
    timer.launch_each(runs)
    times = timer.launch_each(runs)
    fastest = times.index(min(times))
    layout = ("[B, H, N, D] in memory", "[B, N, H, D] in memory")[fastest]
    note = f"{note}, {layout}".removeprefix(", ")
    return _dense(case, FA3, runs[fastest], heads_first, heads_first=False, note=note)


def cudnn_attention(
    case: AttentionCase, inputs: Inputs, timer: Timer, _: torch.Generator
) -> Variant:
    """cuDNN's attention as torch calls it, dense."""
    qkv = [inputs.q, inputs.k, inputs.v]

    def run() -> Tensor:
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return functional.scaled_dot_product_attention(*qkv)

    return _dense(case, CUDNN, run, qkv)


def flex_attention(
    case: AttentionCase, inputs: Inputs, timer: Timer, generator: torch.Generator
) -> Variant:
    """FlexAttention, compiled, over random blocks of 128 x 128 at about the lists' density."""
    from torch.nn.attention import flex_attention as flex

    # One compilation a shape; past the limit fullgraph raises.
    torch._dynamo.config.recompile_limit = _COMPILED_SHAPES
    compiled = torch.compile(flex.flex_attention, dynamic=False, fullgraph=True)
    tokens = case.shape.tokens
    blocks = random_blocks(case, generator)  # [H, row blocks, kept]
    mask = _block_mask(blocks, tokens)
    qkv = [inputs.q, inputs.k, inputs.v]

    def keys_of(head: int, row: int) -> Tensor:
        first = blocks[head, row // BLOCK].long() * BLOCK
        keys = first[:, None] + torch.arange(BLOCK, device=first.device)
        return keys[keys < tokens]

    flops = block_flops(case, blocks)
    return Variant(
        FLEX,
        lambda: compiled(*qkv, block_mask=mask),
        flops,
        *qkv,
        keys_of,
        note=f"blocks of {BLOCK} x {BLOCK}, {1 - flops / dense_flops(case):.1%} sparse",
    )


PEERS: Mapping[str, Peer] = {
    FA3: flash_attention_3,
    CUDNN: cudnn_attention,
    FLEX: flex_attention,
}


def versions() -> dict[str, Any]:
    """Of everything a time may depend on; None where it is missing."""
    found: dict[str, Any] = {"torch": torch.__version__, "cuda": torch.version.cuda}
    found["cudnn"] = torch.backends.cudnn.version()
    for package in ("triton", "fa3-fwd"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def random_blocks(case: AttentionCase, generator: torch.Generator) -> Tensor:
    """Ascending key blocks `[H, row blocks, kept]` int32, about as many keys as the case keeps."""
    blocks = -(-case.shape.tokens // BLOCK)
    kept = max(1, round(case.count / BLOCK))
    shape = (case.shape.heads, blocks, blocks)
    scores = torch.rand(shape, generator=generator, device=generator.device)
    return scores.topk(kept, sorted=False).indices.sort(-1).values.int()


def block_flops(case: AttentionCase, blocks: Tensor) -> int:
    """Of attention over the blocks; the last block of rows and of keys may be short."""
    tokens, last = case.shape.tokens, blocks.shape[1] - 1
    short = last * BLOCK + BLOCK - tokens
    keys = blocks.shape[2] * BLOCK - short * (blocks == last).sum(-1)  # [H, row blocks]
    rows = torch.full_like(keys, BLOCK)
    rows[:, last] -= short
    return 4 * case.shape.head_dim * int((keys * rows).sum())


def _block_mask(blocks: Tensor, tokens: int) -> Any:
    """All blocks full, so that no element is masked but those past the end."""
    from torch.nn.attention.flex_attention import BlockMask

    heads, rows, kept = blocks.shape
    indices = torch.zeros(1, heads, rows, rows, dtype=torch.int32, device=blocks.device)
    none = torch.zeros(1, heads, rows, dtype=torch.int32, device=blocks.device)
    full = indices.clone()
    full[..., :kept] = blocks
    return BlockMask.from_kv_blocks(
        none,
        indices,
        torch.full_like(none, kept),
        full,
        BLOCK_SIZE=BLOCK,
        seq_lengths=(tokens, tokens),
    )


def _dense(
    case: AttentionCase,
    name: str,
    run: Callable[[], Any],
    qkv: list[Tensor],
    *,
    heads_first: bool = True,
    note: str = "",
) -> Variant:
    return Variant(
        name,
        run,
        dense_flops(case),
        *qkv,
        lambda head, row: slice(None),
        heads_first=heads_first,
        note=note,
    )
