"""Fixtures of the tests of `chipmunk_kernels.dit`."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def inference():
    import torch

    with torch.no_grad():
        yield


@pytest.fixture
def reference_only(monkeypatch):
    """The modules run on the reference instead of the kernels."""
    import reference_ops

    reference_ops.install(monkeypatch)


@pytest.fixture(params=["float64", "float32"])
def dtype(request):
    """float64 runs the modules on the reference, float32 on the kernels."""
    import torch

    if request.param == "float64":
        request.getfixturevalue("reference_only")
    return getattr(torch, request.param)
