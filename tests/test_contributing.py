"""CONTRIBUTING.md against the tree: the places of an op, the include rule."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from test_layers import ALLOWED_INCLUDES

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
# Ops and their parts are named in these folders; tests, benches and documents follow from them.
SOURCES = ("cpp/include", "cpp/src", "cpp/bindings", "python/chipmunk_kernels")
# What installing an editable build leaves in the package.
INSTALLED = ("python/chipmunk_kernels/include", "python/chipmunk_kernels/lib")


def section(title: str) -> str:
    level = title.split(" ")[0]
    found = TEXT.split(f"\n{title}\n", 1)[1]
    return re.split(rf"\n#{{1,{len(level)}}} ", found, maxsplit=1)[0]


def places() -> dict[str, list[str]]:
    """Number of each place of an op -> its paths, which may be patterns."""
    items = re.findall(r"^(\d+)\. (.*?): ", section("## Adding an op"), re.MULTILINE)
    return {number: re.findall(r"`([^`]+)`", paths) for number, paths in items}


PLACES = places()
PATTERNS = [path for paths in PLACES.values() for path in paths]


def test_an_op_has_ten_places() -> None:
    assert list(PLACES) == [str(n) for n in range(1, 11)]
    assert all(PLACES.values())


@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_place_exists(pattern: str) -> None:
    assert any(path.is_file() for path in ROOT.glob(pattern)), pattern


@pytest.mark.parametrize("op", ["columns_from_mask", "column_sparse_fc1"])
def test_no_other_file_must_know_an_op(op: str) -> None:
    listed = {path for pattern in PATTERNS for path in ROOT.glob(pattern)}
    named = re.compile(rf"\b{op}\b")
    unlisted = [
        path.relative_to(ROOT).as_posix()
        for folder in SOURCES
        for path in (ROOT / folder).rglob("*")
        if path.suffix in {".h", ".cpp", ".inl", ".cu", ".cuh", ".py", ".pyi"}
        and not path.relative_to(ROOT).as_posix().startswith(INSTALLED)
        and path not in listed
        and named.search(path.read_text())
    ]
    assert unlisted == []


def test_the_include_rule_is_that_of_the_test() -> None:
    rows = re.findall(r"^\| `([\w/]+)` \| (.*) \|$", section("### Include rule"), re.MULTILINE)
    written = {folder: tuple(re.findall(r"`([^`]+)`", allowed)) for folder, allowed in rows}
    assert written == ALLOWED_INCLUDES
