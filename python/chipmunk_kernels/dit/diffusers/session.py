"""What one sparse transformer shares between its hooks."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, Protocol

import torch
from torch import Tensor

import chipmunk_kernels as ck
from chipmunk_kernels.dit.attention import SparseAttention
from chipmunk_kernels.dit.config import ChipmunkConfig
from chipmunk_kernels.dit.diffusers.families import Family, Layout
from chipmunk_kernels.dit.mlp import SparseMlp
from chipmunk_kernels.dit.schedule import Progress
from chipmunk_kernels.dit.state import StepCache
from chipmunk_kernels.token_order import TokenOrder


class SingleBlock(Protocol):
    """What a session asks of the hooks of a single-stream block."""

    def reset(self) -> None:
        """Ends a generation: lets go of every tensor."""
        ...


class Session:
    """All that one sparse transformer shares: settings, progress, modules, token order."""

    def __init__(self, config: ChipmunkConfig, family: Family) -> None:
        """Nothing is hooked yet; `install` does that."""
        self.config = config
        self.family = family
        self.progress = Progress()
        self.step_cache = StepCache(config, self.progress)
        self.modules: list[SparseAttention | SparseMlp] = []
        self.single_blocks: list[SingleBlock] = []
        self.processors: list[tuple[Any, Any]] = []  # attention module, its own processor
        self.image_order: TokenOrder | None = None
        self.joint_order: TokenOrder | None = None  # with the text that cos and sin cover
        self.skipping = False
        self.blocks_input: Tensor | None = None  # of this forward pass, until the last block
        self._orders: dict[Layout, tuple[TokenOrder, TokenOrder]] = {}
        # of this forward pass, by id of the mask; held, so that no other takes its id
        self._key_counts: dict[int, tuple[Tensor, int]] = {}

    def begin(self, branch: Hashable, step: int | None, layout: Layout) -> None:
        """Announces a forward pass."""
        start = layout.text_first
        self.progress.begin(branch, image=(start, start + layout.image_tokens), step=step)
        self.skipping = False
        self._key_counts.clear()
        self.image_order, self.joint_order = self._orders_of(layout)

    def reset(self) -> None:
        """Ends a generation: lets go of every tensor."""
        self.progress.reset()
        self.step_cache.reset()
        self.image_order = self.joint_order = self.blocks_input = None
        self._orders.clear()
        self._key_counts.clear()
        for part in (*self.modules, *self.single_blocks):
            part.reset()

    def key_count(self, mask: Tensor) -> int:
        """How many leading keys a padding mask `[B, 1, 1, keys]` leaves.

        The host waits for the answer, once a forward pass.

        Raises:
            UnsupportedError: the mask has holes, or leaves different numbers in the batch.
        """
        if id(mask) not in self._key_counts:
            kept = mask.flatten(0, 2).bool()
            leading = kept.cumprod(dim=-1).sum(dim=-1)
            counts = {int(n) for n in torch.cat([leading, kept.sum(dim=-1)]).cpu()}
            if len(counts) != 1:
                raise ck.UnsupportedError(
                    "apply_chipmunk: attention_mask: expected padding at the end, the same for the "
                    f"whole batch, got {sorted(counts)} keys; run the prompts one by one"
                )
            self._key_counts[id(mask)] = mask, counts.pop()
        return self._key_counts[id(mask)][1]

    def _orders_of(self, layout: Layout) -> tuple[TokenOrder | None, TokenOrder | None]:
        config = self.config
        if config.token_order is None or layout.grid is None:
            return None, None
        if layout not in self._orders:

            def make(text_tokens: int) -> TokenOrder:
                assert layout.grid is not None
                if config.token_order == "voxels":
                    return TokenOrder.voxels(
                        layout.grid, config.voxel, text="first", text_tokens=text_tokens
                    )
                flat = layout.grid[1:] if layout.grid[0] == 1 else layout.grid
                return TokenOrder.patches(
                    flat, config.patch_sizes, text="first", text_tokens=text_tokens
                )

            text_tokens = layout.text_first if self.family.rope_has_text else 0
            self._orders[layout] = make(0), make(text_tokens)
        return self._orders[layout]
