"""What the sparse modules must know about each supported transformer of diffusers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

import chipmunk_kernels as ck


@dataclass(frozen=True)
class Layout:
    """The tokens of one forward pass."""

    grid: tuple[int, ...] | None
    """Extent of the image tokens' grid, or None if they are no single grid."""
    image_tokens: int
    text_first: int = 0
    """Text tokens before the image in joint attention."""


@dataclass(frozen=True)
class Family:
    """Names and shapes of one transformer class."""

    layout: Callable[[nn.Module, Mapping[str, Any]], Layout]
    """Tells the layout from the transformer and the arguments of its forward."""
    attention: str
    """Name of a block's self-attention."""
    processor: str
    """Class of its processor."""
    feed_forward: str
    """Name of a block's image MLP, in the blocks that have one."""
    block_lists: tuple[str, ...]
    """Names of the block lists, in order."""
    rope: str
    """Name of the module that gives (cos, sin)."""
    rope_dim: int
    """Token dimension of cos and sin."""
    rope_has_text: bool
    """Whether cos and sin cover the text tokens, which come first."""
    hidden_index: int | None
    """Place of the image states in a block's output; None if the output is just them."""
    check: Callable[[nn.Module], None] = lambda transformer: None
    """Raises UnsupportedError for a variant that is not supported."""


def _flux_layout(transformer: nn.Module, inputs: Mapping[str, Any]) -> Layout:
    """Text first; the grid stands in img_ids `[tokens, (0, row, column)]`."""
    del transformer
    ids: Tensor = inputs["img_ids"]
    ids = ids[0] if ids.ndim == 3 else ids
    image, rows, columns = (int(last) + 1 for last in ids.amax(dim=0).cpu())
    tokens = ids.shape[0]
    # several pictures (reference images) come as several grids
    grid = (1, rows, columns) if image == 1 and rows * columns == tokens else None
    return Layout(grid, tokens, inputs["encoder_hidden_states"].shape[1])


def _video_layout(patch: tuple[int, int, int], inputs: Mapping[str, Any]) -> Layout:
    """Latents `[B, C, F, H, W]` cut into patches."""
    frames, height, width = inputs["hidden_states"].shape[2:]
    grid = (frames // patch[0], height // patch[1], width // patch[2])
    return Layout(grid, grid[0] * grid[1] * grid[2])


def _hunyuan_layout(transformer: nn.Module, inputs: Mapping[str, Any]) -> Layout:
    config: Any = transformer.config
    return _video_layout((config.patch_size_t, config.patch_size, config.patch_size), inputs)


def _hunyuan_check(transformer: nn.Module) -> None:
    config: Any = transformer.config
    if config.image_condition_type == "token_replace":
        raise ck.UnsupportedError(
            'apply_chipmunk: transformer: image_condition_type "token_replace" treats the first '
            "frame's tokens apart, which is not supported"
        )


def _wan_layout(transformer: nn.Module, inputs: Mapping[str, Any]) -> Layout:
    config: Any = transformer.config
    return _video_layout(tuple(config.patch_size), inputs)


def _ltx_layout(transformer: nn.Module, inputs: Mapping[str, Any]) -> Layout:
    """Tokens come packed; the pipeline gives the grid's extents."""
    del transformer
    tokens: int = inputs["hidden_states"].shape[1]
    grid = tuple(inputs.get(name) or 0 for name in ("num_frames", "height", "width"))
    return Layout(grid if grid[0] * grid[1] * grid[2] == tokens else None, tokens)


FAMILIES: Mapping[str, Family] = {
    "FluxTransformer2DModel": Family(
        layout=_flux_layout,
        attention="attn",
        processor="FluxAttnProcessor",
        feed_forward="ff",
        block_lists=("transformer_blocks", "single_transformer_blocks"),
        rope="pos_embed",
        rope_dim=0,
        rope_has_text=True,
        hidden_index=1,
    ),
    "HunyuanVideoTransformer3DModel": Family(
        layout=_hunyuan_layout,
        check=_hunyuan_check,
        attention="attn",
        processor="HunyuanVideoAttnProcessor2_0",
        feed_forward="ff",
        block_lists=("transformer_blocks", "single_transformer_blocks"),
        rope="rope",
        rope_dim=0,
        rope_has_text=False,
        hidden_index=0,
    ),
    "WanTransformer3DModel": Family(
        layout=_wan_layout,
        attention="attn1",
        processor="WanAttnProcessor",
        feed_forward="ffn",
        block_lists=("blocks",),
        rope="rope",
        rope_dim=1,
        rope_has_text=False,
        hidden_index=None,
    ),
    "LTXVideoTransformer3DModel": Family(
        layout=_ltx_layout,
        attention="attn1",
        processor="LTXVideoAttnProcessor",
        feed_forward="ff",
        block_lists=("transformer_blocks",),
        rope="rope",
        rope_dim=1,
        rope_has_text=False,
        hidden_index=None,
    ),
}
"""By class name."""
