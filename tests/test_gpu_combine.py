"""merge_attention and rest_of_attention on a GPU against the float64 reference."""

from __future__ import annotations

import math

import pytest
from gpu import needs_hopper, torch

import chipmunk_kernels as ck
from chipmunk_kernels import reference

pytestmark = needs_hopper

Part = tuple[torch.Tensor, torch.Tensor]
SHAPES = [(1, 1, 1, 64), (2, 3, 100, 96), (2, 2, 333, 128), (1, 5, 77, 256)]


def random_part(shape: tuple[int, ...], dtype: torch.dtype, spread: float) -> Part:
    out = torch.randn(shape, device="cuda").to(dtype)
    return out, torch.randn(shape[:-1], device="cuda") * spread


def in_float64(part: Part) -> Part:
    return part[0].double(), part[1].double()


def assert_close(got: Part, want: Part) -> None:
    """Within one rounding of the largest output, and NaN and infinity in the same places."""
    (out, lse), (want_out, want_lse) = got, want
    finite = want_lse.isfinite()
    assert torch.equal(lse.double()[~finite].nan_to_num(), want_lse[~finite].nan_to_num())
    error = (lse.double() - want_lse)[finite].abs()
    assert (error <= 4e-6 * want_lse[finite].abs().clamp(min=1)).all()
    rounding = max(torch.finfo(out.dtype).eps, 1e-6) * want_out.abs().max()
    assert (out.double() - want_out).abs().max() <= rounding


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("spread", [0.5, 5.0, 60.0])
def test_merge(shape: tuple[int, ...], dtype: torch.dtype, spread: float) -> None:
    torch.manual_seed(0)
    a, b = random_part(shape, dtype, spread), random_part(shape, dtype, spread)
    a[1].flatten()[::7] = -math.inf
    b[1].flatten()[::5] = -math.inf
    a[0][a[1] == -math.inf] = math.nan  # of an empty part: not looked at
    assert_close(ck.merge_attention(a, b), reference.merge_attention(in_float64(a), in_float64(b)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("shape", SHAPES)
def test_rest_of_a_merge_gives_it_again(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    rest, selected = random_part(shape, dtype, 3.0), random_part(shape, dtype, 3.0)
    whole = ck.merge_attention(rest, selected)
    got = ck.rest_of_attention(whole, selected)
    again = ck.merge_attention(got, selected)
    rounding = max(torch.finfo(dtype).eps, 2e-6) * whole[0].double().abs().max()
    assert (again[0].double() - whole[0].double()).abs().max() <= 2 * rounding
    assert (again[1] - whole[1]).abs().max() <= 1e-5
    # The rest itself, where the subtraction leaves it some digits.
    share = torch.exp(selected[1] - whole[1])
    good = share < 0.5
    assert ((got[0] - rest[0]).double().abs()[good] <= 6 * rounding).all()


def test_rest_when_nothing_or_everything_is_selected() -> None:
    whole = random_part((1, 2, 40, 128), torch.bfloat16, 2.0)
    out, lse = ck.rest_of_attention(whole, whole)
    assert (lse == -math.inf).all()
    assert (out == 0).all()
    nothing = (torch.full_like(whole[0], math.nan), torch.full_like(whole[1], -math.inf))
    out, lse = ck.rest_of_attention(whole, nothing)
    assert torch.equal(lse, whole[1])
    assert torch.equal(out, whole[0])


@pytest.mark.parametrize("head_dim", [8, 72, 128])
def test_strides(head_dim: int) -> None:
    torch.manual_seed(2)
    b, h, n = 2, 3, 150
    a = random_part((b, h, n, head_dim), torch.bfloat16, 2.0)
    wide = torch.randn(b, n, h, 2 * head_dim + 1, device="cuda").bfloat16()
    strided = (wide.transpose(1, 2)[..., 1 : head_dim + 1], torch.randn(b, n, h, device="cuda"))
    strided = (strided[0], strided[1].transpose(1, 2))
    want = ck.merge_attention(a, (strided[0].contiguous(), strided[1].contiguous()))
    got = ck.merge_attention(a, strided)
    assert torch.equal(got[0], want[0])
    assert torch.equal(got[1], want[1])
