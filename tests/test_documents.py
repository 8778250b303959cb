"""What the documents promise of themselves: lengths, links, commands, an example that runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
FOLDERS = ("", "docs", "docs/design", "docs/lab", "examples")
PAGES = sorted(page for folder in FOLDERS for page in (ROOT / folder).glob("*.md"))
# These may name commits.
RECORDS = ("docs/lab/", "docs/performance.md")


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def test_the_readme_fits_on_two_screens() -> None:
    assert len(README.splitlines()) <= 120


@pytest.mark.parametrize(
    "command",
    [
        "pip install -c constraints.txt '.[demo]' && python -m chipmunk_kernels demo",
        "pip install -c constraints.txt '.[test]' && pytest -q",
    ],
)
def test_the_readme_has_the_two_commands(command: str) -> None:
    assert f"\n{command}\n" in README


def test_the_example_of_the_readme_runs() -> None:
    torch = pytest.importorskip("torch")
    example = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[0]
    for large, small in (("24, 4608, 128", "2, 768, 64"), ("count=768", "count=96")):
        assert large in example
        example = example.replace(large, small)
    names: dict[str, object] = {}
    torch.manual_seed(0)
    exec(example, names)  # our own README
    import chipmunk_kernels as ck

    dense = ck.dense_attention(names["q"], names["k"], names["v"])[0]
    assert torch.allclose(names["out"], dense, rtol=0, atol=0.02)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", prose(page))
    local = [link for link in links if not re.match(r"\w+://", link)]
    assert [link for link in local if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_only_records_name_commits(page: Path) -> None:
    if name(page).startswith(RECORDS):
        return
    # seven digits or more, a letter and a figure among them
    hashes = re.findall(r"\b(?=[0-9a-f]*[a-f])(?=[0-9a-f]*[0-9])[0-9a-f]{7,40}\b", page.read_text())
    assert hashes == []


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "design").glob("*.md")), ids=name)
def test_a_design_page_is_short(page: Path) -> None:
    assert len([word for word in page.read_text().split() if re.search(r"\w", word)]) <= 1500


def test_only_design_pages_lead_to_the_lab() -> None:
    others = [page for page in PAGES if page.parent.name not in ("design", "lab")]
    assert [name(page) for page in others if re.search(r"\]\([^)]*lab/\d{4}-", prose(page))] == []
