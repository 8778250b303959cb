"""What the tests that need a Hopper GPU share."""

from __future__ import annotations

import pytest

import chipmunk_kernels as ck

torch = pytest.importorskip("torch")


def has_hopper() -> bool:
    """Whether this build's CUDA kernels run on torch's current GPU."""
    if not ck.info().cuda_compiled or not torch.cuda.is_available():
        return False
    return torch.cuda.get_device_capability() == (9, 0)


# For `pytestmark`.
needs_hopper = [
    pytest.mark.gpu,
    pytest.mark.skipif(not has_hopper(), reason="needs a Hopper GPU and a build with CUDA"),
]
