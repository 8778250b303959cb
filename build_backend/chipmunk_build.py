"""PEP 517 backend: scikit-build-core, plus the CUTLASS headers where nvcc can use them.

nvidia-cutlass as a plain build requirement would bring some 70 MB of unrelated packages into
every isolated build. Here its wheel is unpacked without them, and only when CUDA is compiled and
no headers are at hand (CUTLASS_PATH, or an installed nvidia-cutlass).
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scikit_build_core import build as _backend
from scikit_build_core.build import (
    build_sdist,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

CUTLASS = "nvidia-cutlass==4.2.0.0"


def _wants_cuda(settings: dict[str, Any]) -> bool:
    chosen = str(settings.get("cmake.define.CHIPMUNK_CUDA", "AUTO")).upper()
    if chosen == "AUTO":
        return bool(os.environ.get("CUDACXX") or shutil.which("nvcc"))
    return chosen not in {"OFF", "0", "FALSE", "NO"}


def _lacks_cutlass(settings: dict[str, Any]) -> bool:
    if not _wants_cuda(settings) or os.environ.get("CUTLASS_PATH"):
        return False
    return (
        "cmake.define.CUTLASS_PATH" not in settings
        and importlib.util.find_spec("cutlass_library") is None
    )


def _bring_cutlass(settings: dict[str, Any]) -> None:
    if not _lacks_cutlass(settings):
        return
    target = Path("build", "cutlass").resolve()
    if not (target / "cutlass_library").is_dir():
        pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-compile"]
        subprocess.run([*pip, "--target", str(target), CUTLASS], check=True)
    os.environ["CUTLASS_PATH"] = str(target)


def _requires(backend_requires: list[str], settings: dict[str, Any] | None) -> list[str]:
    # An isolated build environment has no pip of its own.
    return [*backend_requires, "pip"] if _lacks_cutlass(settings or {}) else backend_requires


def get_requires_for_build_wheel(config_settings: dict[str, Any] | None = None) -> list[str]:
    """What else a wheel's build environment needs; the hook of PEP 517."""
    return _requires(_backend.get_requires_for_build_wheel(config_settings), config_settings)


def get_requires_for_build_editable(config_settings: dict[str, Any] | None = None) -> list[str]:
    """What else an editable wheel's build environment needs; the hook of PEP 660."""
    return _requires(_backend.get_requires_for_build_editable(config_settings), config_settings)


def _build(
    make: Callable[..., str],
    wheel_directory: str,
    config_settings: dict[str, Any] | None,
    metadata_directory: str | None,
) -> str:
    _bring_cutlass(config_settings or {})
    return make(wheel_directory, config_settings, metadata_directory)


def build_wheel(
    wheel_directory: str,
    config_settings: dict[str, Any] | None = None,
    metadata_directory: str | None = None,
) -> str:
    """Build a wheel; the hook of PEP 517."""
    return _build(_backend.build_wheel, wheel_directory, config_settings, metadata_directory)


def build_editable(
    wheel_directory: str,
    config_settings: dict[str, Any] | None = None,
    metadata_directory: str | None = None,
) -> str:
    """Build an editable wheel; the hook of PEP 660."""
    return _build(_backend.build_editable, wheel_directory, config_settings, metadata_directory)
