"""The tolerance rule as one function: measured against float64, never chosen."""

from __future__ import annotations

import torch
from torch import Tensor


def assert_as_good_as_torch(
    ours: Tensor, native: Tensor, exact: Tensor, what: str = "", *, sums: float = 0.0
) -> None:
    """max|ours - exact| <= 2 max|native - exact| + rounding floor.

    The floor is one unit in the last place of the largest output, plus `sums`: what a float32 sum
    behind the output loses when it is taken term by term. torch's own sums are in blocks, and with
    few outputs its error may be small by luck.

    Positions of NaN and of +-inf must agree with `exact`.

    Args:
        ours: the result under test.
        native: the reference run in the dtype of the inputs.
        exact: the reference run in float64 on the same inputs.
        what: name of the output, for the message.
        sums: from `rounding_of_sums`, times what the sums are multiplied by later.
    """
    assert ours.shape == exact.shape, f"{what}: shape {tuple(ours.shape)}, not {tuple(exact.shape)}"
    dtype = ours.dtype
    ours, native, exact = ours.cpu().double(), native.cpu().double(), exact.cpu().double()
    assert torch.equal(ours.isnan(), exact.isnan()), f"{what}: NaN in other places"
    infinite = exact.isinf()
    assert torch.equal(ours.isinf(), infinite), f"{what}: inf in other places"
    assert torch.equal(ours[infinite], exact[infinite]), f"{what}: inf of other sign"
    finite = exact.isfinite()
    if not finite.any():
        return
    error = (ours - exact)[finite].abs().max().item()
    native_error = (native - exact)[finite].abs().nan_to_num(0.0, 0.0, 0.0).max().item()
    floor = torch.finfo(dtype).eps * exact[finite].abs().max().item() + torch.finfo(dtype).tiny
    floor += sums
    assert error <= 2 * native_error + floor, (
        f"{what}: error {error:.3g}, torch's {native_error:.3g}, floor {floor:.3g}"
    )


def rounding_of_sums(terms: int, largest: float) -> float:
    """Error of float32 sums of `terms` products: half a unit each, adding up as a random walk."""
    return terms**0.5 * largest * torch.finfo(torch.float32).eps / 2


def largest(x: Tensor) -> float:
    """The largest magnitude in x, NaN aside."""
    return x.float().nan_to_num(0.0).abs().max().item() if x.numel() else 0.0
