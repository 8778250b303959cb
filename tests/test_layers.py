"""The include rule of CONTRIBUTING.md, by reading the files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CPP = ROOT / "cpp"
PYTHON = ROOT / "python" / "chipmunk_kernels"

# What the backends offer to ops/: nothing else of theirs may be named there.
CPU_ENTRIES = ("cpu/attention.h", "cpu/columns.h", "cpu/mlp.h", "cpu/isa.h", "cpu/parallel.h")
CUDA_ENTRIES = (
    "cuda/attention.h",
    "cuda/columns.h",
    "cuda/mlp.h",
    "cuda/launch_site.h",
    "cuda/no_kernel.h",
    "cuda/host/device_info.h",
)
# Folder under cpp/ -> prefixes of quoted includes that its files may name. The longest folder wins.
ALLOWED_INCLUDES = {
    "include": ("chipmunk_kernels/",),
    "bindings": ("chipmunk_kernels/", "bindings/", "third_party/"),
    "src/params": ("chipmunk_kernels/", "params/"),
    "src/ops": ("chipmunk_kernels/", "params/", "ops/", *CPU_ENTRIES, *CUDA_ENTRIES),
    "src/cpu": ("chipmunk_kernels/", "params/", "cpu/"),
    "src/cpu/kernels": ("cpu/kernels/",),
    "src/no_cuda": ("chipmunk_kernels/", "params/", *CUDA_ENTRIES),
    "src/cuda": ("chipmunk_kernels/", "params/", "cuda/"),
    "src/cuda/host": ("chipmunk_kernels/", "params/", "cuda/host/", "cuda/launch_site.h"),
    "src/cuda/device": ("params/", "cuda/device/"),
}
# Angle-bracket includes that a folder may not use: the core knows nothing of Python or torch, its
# public headers and host code nothing of CUDA, and the CPU loops no C++ library (weak symbols).
FORBIDDEN_SYSTEM = {
    "include": re.compile(r"^(cuda|cute|cutlass|pybind11|torch|Python)"),
    "src": re.compile(r"^(pybind11|torch|Python)"),
    "src/ops": re.compile(r"^(cuda|cute|cutlass|pybind11|torch|Python)"),
    "src/cpu": re.compile(r"^(cuda|cute|cutlass|pybind11|torch|Python)"),
    "src/no_cuda": re.compile(r"^(cuda|cute|cutlass|pybind11|torch|Python)"),
    "src/cpu/kernels": re.compile(r"^(?!\w+\.h$)"),
    "bindings": re.compile(r"^(cuda|cute|cutlass|torch)"),
}
SOURCES = sorted(
    path
    for folder in ("include", "src", "bindings")
    for path in (CPP / folder).rglob("*")
    if path.suffix in {".h", ".cpp", ".inl", ".cu", ".cuh", ".in"}
    and "third_party" not in path.parts
)


def longest_match(path: Path, table: dict[str, object]) -> str | None:
    folder = path.relative_to(CPP).parent.as_posix()
    matches = [key for key in table if folder == key or folder.startswith(key + "/")]
    return max(matches, key=len, default=None)


def includes(path: Path) -> list[tuple[str, str]]:
    return re.findall(r'^\s*#\s*include\s+([<"])([^>"]+)[>"]', path.read_text(), re.MULTILINE)


def test_there_are_sources() -> None:
    assert len(SOURCES) > 20


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.relative_to(CPP).as_posix())
def test_includes_go_downwards_only(path: Path) -> None:
    allowed = ALLOWED_INCLUDES[longest_match(path, dict(ALLOWED_INCLUDES)) or ""]
    forbidden = FORBIDDEN_SYSTEM.get(longest_match(path, dict(FORBIDDEN_SYSTEM)) or "")
    for kind, name in includes(path):
        if kind == '"':
            assert name.startswith(allowed), f"{path.name} may not include {name!r}"
        elif forbidden is not None:
            assert not forbidden.match(name), f"{path.name} may not include <{name}>"


def imports(path: Path) -> list[str]:
    found = re.findall(
        r"^\s*(?:from\s+([\w.]+)\s+import|import\s+([\w.]+))", path.read_text(), re.MULTILINE
    )
    return [a or b for a, b in found]


DIT = sorted((PYTHON / "dit").rglob("*.py"))


@pytest.mark.parametrize("path", DIT, ids=lambda p: p.relative_to(PYTHON).as_posix())
def test_dit_uses_public_ops_only(path: Path) -> None:
    private = re.compile(r"chipmunk_kernels\.(_core|ops|torch_library|reference)\b|\.\.(_core|ops)")
    assert [name for name in imports(path) if private.search(name)] == []


@pytest.mark.parametrize("path", sorted((PYTHON / "reference").glob("*.py")), ids=lambda p: p.name)
def test_the_reference_stands_alone(path: Path) -> None:
    ours = [name for name in imports(path) if name.startswith("chipmunk_kernels")]
    assert all(name.startswith("chipmunk_kernels.reference") for name in ours)


def test_no_file_names_its_machine() -> None:
    pattern = re.compile("/(w" + "ork|ro" + "ot|ho" + "me)/")
    suffixes = {
        ".py",
        ".h",
        ".cpp",
        ".cu",
        ".cuh",
        ".inl",
        ".md",
        ".toml",
        ".cmake",
        ".txt",
        ".json",
    }
    own = ("cpp", "python", "tests", "bench", "docs", "cmake", "build_backend")
    texts = [p for folder in own for p in (ROOT / folder).rglob("*") if p.suffix in suffixes]
    assert [p for p in texts if pattern.search(p.read_text())] == []
