"""How far one picture is from another: PSNR, PSNR of the foreground, SSIM."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def psnr(picture: Tensor, reference: Tensor, mask: Tensor | None = None) -> float:
    """Peak signal-to-noise ratio in dB of uint8 pictures ``[H, W, 3]``; infinite if equal.

    With `mask`, bool ``[H, W]``, only those pixels count; nan if there are none.
    """
    error = (picture.double() - reference.double()).square()
    if mask is not None:
        error = error[mask]
    if error.numel() == 0:
        return math.nan
    mean = error.mean().item()
    return math.inf if mean == 0 else 10 * math.log10(255**2 / mean)


def foreground(reference: Tensor) -> Tensor:
    """The pixels of a uint8 picture ``[H, W, 3]`` that are not nearly white, bool ``[H, W]``."""
    return (reference < 245).any(dim=-1)


def ssim(picture: Tensor, reference: Tensor) -> float:
    """Structural similarity of uint8 pictures ``[H, W, 3]``, mean over pixels and channels.

    The usual form: Gaussian window 11 x 11 with sigma 1.5, K1 = 0.01, K2 = 0.03, population
    moments, only windows that lie inside the picture. Sides must be at least 11.
    """
    offsets = torch.arange(11, dtype=torch.float64) - 5
    line = torch.exp(-offsets.square() / (2 * 1.5**2))
    line = line / line.sum()
    window = (line[:, None] * line)[None, None]

    def blur(x: Tensor) -> Tensor:
        return F.conv2d(x[:, None], window)

    a, b = (x.double().permute(2, 0, 1) for x in (picture, reference))
    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    covariance = blur(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    likeness = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return (likeness / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))).mean().item()


def relative_error(x: Tensor, reference: Tensor) -> float:
    """Norm of the difference over the norm of the reference, in float64."""
    reference = reference.double()
    ratio = (x.double() - reference).square().sum() / reference.square().sum()
    return ratio.sqrt().item()
