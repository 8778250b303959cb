"""Rectified flow: the time axis, guidance and the steps from noise to picture.

Time t runs from 1 (noise) to 0 (picture) along ``x_t = (1 - t) picture + t noise``; the model
predicts the velocity ``noise - picture``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .words import PAD

Model = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``model(x [B, 3, H, W], t [B], words [B, L]) -> velocity [B, 3, H, W]``."""


def shift_time(t: Tensor, resolution: float) -> Tensor:
    """Moves times towards noise on large pictures, where averaging over many pixels hides it.

    The odds t / (1 - t) are multiplied by resolution / 32: the noise that a mean over a fixed part
    of the picture sees then has the same strength at every resolution.
    """
    odds = resolution / 32
    return odds * t / (1 + (odds - 1) * t)


def time_grid(steps: int, resolution: int) -> Tensor:
    """steps + 1 falling times from 1 to 0, float32.

    Shifted half as far as in training: detail forms in the last steps, which would else be long.
    """
    if steps < 1:
        raise ValueError(f"demo: steps: expected at least 1, got {steps}")
    return shift_time(torch.linspace(1, 0, steps + 1, dtype=torch.float64), resolution / 2).float()


def noise(seeds: list[int], resolution: int, device: torch.device | str = "cpu") -> Tensor:
    """Start noise ``[len(seeds), 3, resolution, resolution]``, each picture from its own seed.

    Drawn on the CPU, so that a seed means the same picture on every device.
    """
    draws = [
        torch.randn(3, resolution, resolution, generator=torch.Generator().manual_seed(seed))
        for seed in seeds
    ]
    return torch.stack(draws).to(device)


def integrate(
    conditional: Model,
    unconditional: Model,
    start: Tensor,
    words: Tensor,
    *,
    steps: int,
    guidance: float,
) -> Iterator[Tensor]:
    """Euler steps from noise to picture with classifier-free guidance; gives the state after each.

    `conditional` and `unconditional` are the same network behind two entries, so that a caller can
    tell the branches apart. start ``[B, 3, R, R]``; words ``[B, L]``. The state is float32.
    """
    x = start.float()
    times = time_grid(steps, start.shape[-1])
    empty = torch.full_like(words, PAD)
    for index in range(steps):
        t = times[index].to(x.device).expand(x.shape[0])
        velocity = conditional(x, t, words).float()
        if guidance != 1:
            without = unconditional(x, t, empty).float()
            velocity = without + guidance * (velocity - without)
        x = x + (times[index + 1] - times[index]).item() * velocity
        yield x


def to_pixels(x: Tensor) -> Tensor:
    """States ``[B, 3, H, W]`` in about [-1, 1] as uint8 pixels ``[B, H, W, 3]`` on the CPU."""
    return ((x.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu()
