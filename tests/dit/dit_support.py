"""Shared by the tests of the modules for diffusion transformers."""

from __future__ import annotations

import torch

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5}


def close(a, b):
    assert a.dtype == b.dtype
    tolerance = TOLERANCE[a.dtype]
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def different(a, b):
    return (a - b).abs().max() > 1e-3


def randn(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype)
