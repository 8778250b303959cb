"""Devices, seeds and the size of the random sweeps."""

from __future__ import annotations

import importlib.util
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

import chipmunk_kernels as ck

sys.path.append(str(Path(__file__).parents[1] / "bench"))  # last: its modules must hide no others

# "default" is what a plain `pytest` runs: the same cases every time, over 2,000 of them in all.
# "search" (CHIPMUNK_HYPOTHESIS=search) looks for new ones, ten times as many.
_COMMON: dict[str, Any] = {
    "deadline": None,
    "database": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
}
settings.register_profile("default", derandomize=True, max_examples=300, **_COMMON)
settings.register_profile("search", max_examples=3000, **_COMMON)
settings.load_profile(os.environ.get("CHIPMUNK_HYPOTHESIS", "default"))


def _no_gpu() -> str | None:
    """Why there is nothing to run on a GPU here, None if there is."""
    import torch

    info = ck.info()
    if not info.cuda_compiled:
        return "this build has no CUDA kernels"
    if not torch.cuda.is_available():
        return "torch sees no GPU"
    if not any(gpu.compute_capability == (9, 0) for gpu in info.gpus):
        return "no GPU of compute capability 9.0"
    return None


@pytest.fixture(scope="session", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """Where the arrays of a test live."""
    reason = _no_gpu() if request.param == "cuda" else None
    if reason is not None:
        pytest.skip(reason)
    return request.param


@pytest.fixture(scope="session")
def gpu() -> str:
    """A GPU, for tests of what only GPUs have."""
    reason = _no_gpu()
    if reason is not None:
        pytest.skip(reason)
    return "cuda"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """On a GPU, an op that this build has no kernel for skips its tests and says so."""
    on_gpu = item.get_closest_marker("gpu") is not None
    try:
        return (yield)
    except ck.UnsupportedError as error:
        if on_gpu and "this build has no CUDA kernel for it" in str(error):
            pytest.skip(str(error))
        raise


@pytest.fixture(autouse=True)
def same_start() -> None:
    """Every test starts from the same random state, torch with gradients and with one thread.

    The tensors of the tests are small: torch's threads would wait for each other most of the time,
    40 times as long on a busy machine. Our ops follow torch's number; `cases.threads` raises it.
    """
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  (numpy's global state too)
    if importlib.util.find_spec("torch") is not None:
        import torch

        torch.manual_seed(0)
        torch.set_grad_enabled(True)  # the benchmarks' commands switch them off
        torch.set_num_threads(1)
