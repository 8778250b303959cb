"""Token orders that put spatial neighbours into one query group.

A transformer reads an image or a video row by row, so 192 consecutive tokens are a thin strip whose
ends look at different things. One column list serves a whole group: the closer its tokens lie
together, the more columns they share. Attention and MLP do not care about the order of the tokens
(positions live in the rotary embedding, which is permuted along), so reordering at the model's
entry and restoring at its exit changes nothing but rounding.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from chipmunk_kernels.arguments import integer, integers, refuse

if TYPE_CHECKING:
    import torch

TextPlace = Literal["first", "last"]
Array = TypeVar("Array")


@dataclass(frozen=True, eq=False)
class TokenOrder:
    """A permutation of tokens and its inverse.

    Made by `TokenOrder.voxels` or `TokenOrder.patches`. Text tokens, if any, stay where they are,
    before or after the others.
    """

    permutation: NDArray[np.int64]
    """`[tokens]`: where in the model's order the token at each new position stands."""
    inverse: NDArray[np.int64]
    """`[tokens]`: where in the new order each token of the model stands."""
    text_mask: NDArray[np.bool_]
    """`[tokens]`: which positions hold text, the same in both orders."""
    _on_device: dict[tuple[str, torch.device], torch.Tensor] = field(
        default_factory=lambda: {}, repr=False
    )

    @staticmethod
    def voxels(
        shape: Sequence[int],
        voxel: Sequence[int] = (4, 4, 4),
        *,
        text: TextPlace = "last",
        text_tokens: int = 0,
    ) -> TokenOrder:
        """Tokens in blocks of `voxel`, the blocks along a snake, so that consecutive ones touch.

        Three 4 x 4 x 4 voxels fill one query group of 192. Blocks at the far edges are smaller
        where `voxel` does not divide `shape`.

        Args:
            shape: extent of the token grid, slowest dimension first: (frames, height, width).
            voxel: extent of a block, one number per dimension.
            text: whether the text tokens come before ("first") or after ("last") the grid.
            text_tokens: how many there are.

        Raises:
            ValueError: an extent is not positive, or shape and voxel differ in length.
        """
        op = "TokenOrder.voxels"
        shape = integers(op, "shape", shape, "positive extents")
        voxel = integers(op, "voxel", voxel, "positive extents")
        return _order(op, shape, [voxel], text, text_tokens)

    @staticmethod
    def patches(
        shape: Sequence[int],
        sizes: Sequence[int] = (8, 4),
        *,
        text: TextPlace = "first",
        text_tokens: int = 0,
    ) -> TokenOrder:
        """Tokens in nested square patches: 8 x 8 along a snake, in each the 4 x 4 row by row.

        Three 8 x 8 patches fill one query group of 192.

        Args:
            shape: extent of the token grid, slowest dimension first: (height, width).
            sizes: edge of the patches, from the largest; each must divide the one before.
            text: whether the text tokens come before ("first") or after ("last") the grid.
            text_tokens: how many there are.

        Raises:
            ValueError: an extent is not positive, or a size does not divide the one before.
        """
        op = "TokenOrder.patches"
        shape = integers(op, "shape", shape, "positive extents")
        sizes = integers(op, "sizes", sizes)
        for outer, inner in pairwise(sizes):
            if inner <= 0 or outer % inner:
                refuse(op, "sizes", "each to divide the one before", sizes)
        levels = [(size,) * len(shape) for size in sizes]
        return _order(op, shape, levels, text, text_tokens)

    def __len__(self) -> int:
        """The number of tokens, text included."""
        return len(self.permutation)

    def apply(self, x: Array, dim: int = -2) -> Array:
        """x (torch tensor or numpy array) with the tokens along `dim` in the new order; a copy.

        Raises:
            ValueError: `dim` does not hold this order's number of tokens.
            TypeError: x is neither a torch tensor nor a numpy array.
        """
        return self._take("apply", x, dim, self.permutation)

    def restore(self, x: Array, dim: int = -2) -> Array:
        """The inverse of `apply`: x with the tokens along `dim` in the model's order; a copy.

        Raises:
            ValueError, TypeError: as `apply`.
        """
        return self._take("restore", x, dim, self.inverse)

    def _take(self, name: str, x: Array, dim: int, order: NDArray[np.int64]) -> Array:
        dim = integer(f"TokenOrder.{name}", "dim", dim)
        if isinstance(x, np.ndarray):
            array = cast("NDArray[np.generic]", x)
            self._check(name, array.shape, dim)
            return cast(Array, np.take(array, order, axis=dim))
        if "torch" in sys.modules:
            import torch

            if isinstance(x, torch.Tensor):
                self._check(name, x.shape, dim)
                key = (name, x.device)
                if key not in self._on_device:
                    self._on_device[key] = torch.tensor(order, device=x.device)
                return cast(Array, x.index_select(dim, self._on_device[key]))
        raise TypeError(
            f"TokenOrder.{name}: x: expected a torch tensor or a numpy array, "
            f"got {type(x).__name__}"
        )

    def _check(self, name: str, shape: Sequence[int], dim: int) -> None:
        if not -len(shape) <= dim < len(shape) or shape[dim] != len(self):
            raise ValueError(
                f"TokenOrder.{name}: x: expected {len(self)} tokens in dimension {dim}, "
                f"got shape {list(shape)}"
            )


def _order(
    name: str,
    shape: tuple[int, ...],
    levels: Sequence[tuple[int, ...]],
    text: TextPlace,
    text_tokens: int,
) -> TokenOrder:
    """The order of nested blocks; `levels` are block extents, largest first."""
    if text not in ("first", "last"):
        raise ValueError(f'{name}: text: expected "first" or "last", got {text!r}')
    text_tokens = integer(name, "text_tokens", text_tokens)
    if text_tokens < 0:
        raise ValueError(f"{name}: text_tokens: expected at least 0, got {text_tokens}")
    if len(shape) == 0 or min(shape) <= 0:
        raise ValueError(f"{name}: shape: expected positive extents, got {shape}")
    if len(levels) == 0:
        raise ValueError(f"{name}: sizes: expected at least one")
    for level in levels:
        if len(level) != len(shape) or min(level) <= 0:
            raise ValueError(
                f"{name}: block: expected {len(shape)} positive extents, one per dimension of "
                f"shape {shape}, got {level}"
            )
    grid = _block_order(shape, levels)
    text_range = np.arange(text_tokens, dtype=np.int64)
    if text == "first":
        permutation = np.concatenate([text_range, grid + text_tokens])
        text_mask = np.arange(len(permutation)) < text_tokens
    else:
        permutation = np.concatenate([grid, text_range + len(grid)])
        text_mask = np.arange(len(permutation)) >= len(grid)
    inverse = np.empty_like(permutation)
    inverse[permutation] = np.arange(len(permutation))
    for array in (permutation, inverse, text_mask):
        array.setflags(write=False)
    return TokenOrder(permutation, inverse, text_mask)


def _block_order(shape: tuple[int, ...], levels: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    """Grid tokens sorted by outer block along a snake, then by inner blocks, then row by row."""
    tokens = np.arange(math.prod(shape), dtype=np.int64)
    coordinates = np.stack(np.unravel_index(tokens, shape))  # [dimensions, tokens]
    keys = [_snake_rank(coordinates, shape, levels[0])]
    for level in levels[1:]:
        keys.extend(coordinates // np.array(level)[:, None])
    keys.extend(coordinates)
    return np.lexsort(keys[::-1]).astype(np.int64)  # lexsort's last key is the most significant


def _snake_rank(
    coordinates: NDArray[np.int64], shape: tuple[int, ...], block: Sequence[int]
) -> NDArray[np.int64]:
    """Rank of each token's block on a path that turns round at the end of every row of blocks."""
    rank = np.zeros(coordinates.shape[1], dtype=np.int64)
    for dimension, (extent, edge) in enumerate(zip(shape, block, strict=True)):
        blocks = -(-extent // edge)
        position: NDArray[np.int64] = coordinates[dimension] // edge
        turned = np.where(np.remainder(rank, 2) == 1, blocks - 1 - position, position)
        rank = np.add(np.multiply(rank, blocks), turned)
    return rank
