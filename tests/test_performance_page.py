"""docs/performance.md and the README's table are what bench/performance_page.py writes."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
_SPEC = importlib.util.spec_from_file_location(
    "performance_page", ROOT / "bench" / "performance_page.py"
)
assert _SPEC is not None
assert _SPEC.loader is not None
performance_page = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(performance_page)

needs_results = pytest.mark.skipif(
    not performance_page.RESULTS.is_dir(), reason="a source archive is without bench/results"
)


@needs_results
def test_the_page_is_what_the_script_writes() -> None:
    assert performance_page.PAGE.read_text() == performance_page.page()


@needs_results
def test_the_table_of_the_readme_is_what_the_script_writes() -> None:
    readme = performance_page.README.read_text()
    assert readme == performance_page.with_table(readme, performance_page.readme_table())
    assert len(performance_page.readme_table().strip().split("\n")) == 2 + 2 + 5


@needs_results
def test_every_results_file_has_a_table() -> None:
    results = list(performance_page.RESULTS.rglob("*.json"))
    assert performance_page.page().count("\n## ") == len(results)


def test_a_readme_without_marks_is_refused() -> None:
    with pytest.raises(ValueError, match=r"README\.md: expected"):
        performance_page.with_table("text", "table")


def gpu_row(**changes: object) -> dict[str, object]:
    return {
        "shape": "flux-1024",
        "heads": 24,
        "tokens": 4608,
        "head_dim": 128,
        "dtype": "bfloat16",
        "query_group": 192,
        "count": 784,
        "sparsity": 1 - 784 / 4608,
        "target": None,
        "dense_gflop": 260.9,
        "variants": {
            "random": {
                "gflop": 44.4,
                "sustained": {
                    "median_ms": 0.0847,
                    "tflops": 524.2,
                    "over_fa3": 4.9,
                    "share_of_ceiling": 0.83,
                },
            },
            "fa3": {"gflop": 260.9, "sustained": {"median_ms": 0.415, "tflops": 628.0}},
        },
        **changes,
    }


def gpu_results(suite: str, row: dict[str, object]) -> dict[str, object]:
    return {
        "environment": {"commit": "1234567890ab", "date": "2026-12-01T00:00:00+00:00"},
        "suite": suite,
        "gpu": {"name": "NVIDIA H200", "driver": "580.1", "power_limit_w": 700.0},
        "versions": {"torch": "2.11.0", "cuda": "13.0", "fa3-fwd": "0.0.3"},
        "not_measured": ["16k, 2688 columns: the time is spent"],
        "rows": [row],
    }


def test_figures_are_rounded_and_machines_named(tmp_path: Path) -> None:
    found = gpu_results("anchors", gpu_row(target=5.0, target_met=False))
    (tmp_path / "attention_gpu.json").write_text(json.dumps(found))
    page = performance_page.page(tmp_path)
    assert "## Column-sparse attention on one NVIDIA H200 (700 W)" in page
    assert "Commit `1234567`, 2026-12-01, driver 580.1" in page
    assert "Not measured here: 16k, 2688 columns." in page
    assert "| 24 x 4,608 | 784 | 83.0% | 0.0847 | 524 | 0.415 | 4.90x | 5.00x | 5.88x |" in page
    assert "0 of 1 targets are met" in page


def test_a_suite_without_a_section_of_its_own_is_shown(tmp_path: Path) -> None:
    card = tmp_path / "h100"
    card.mkdir()
    (card / "attention_gpu_other.json").write_text(json.dumps(gpu_results("other", gpu_row())))
    page = performance_page.page(tmp_path)
    assert "## Suite “other” on one NVIDIA H200 (700 W)" in page
    assert "| 24 x 4,608 | 784 | 128 | 192 | 0.0847 | 0.415 | 524 | 628 |" in page


def sustained(median_ms: float, **figures: float) -> dict[str, object]:
    return {"gflop": 1.0, "sustained": {"median_ms": median_ms, **figures}}


def test_lists_of_many_lengths_stand_beside_equal_ones(tmp_path: Path) -> None:
    variants = {
        "equal": sustained(0.0847, over_equal=1.0),
        "lengths": sustained(0.0882, over_equal=0.961),
        "lengths, no order": sustained(0.118, over_equal=0.718),
    }
    row = gpu_row(variants=variants, lengths="log-normal", target_over_equal=0.92)
    path = tmp_path / "attention_gpu_lengths.json"
    path.write_text(json.dumps(gpu_results("lengths", row)))
    page = performance_page.page(tmp_path)
    assert "| 784 | log-normal | 0.0847 | 0.0882 | 0.96 | 0.118 | 0.72 | 0.92 |" in page
    assert "run at 96% to 96% of the speed of equal lists" in page


def test_what_an_order_costs_is_shown(tmp_path: Path) -> None:
    row = {
        "lists": 576,
        "columns": 4608,
        "count": 784,
        "dtype": "bfloat16",
        "variants": {
            "count": sustained(0.057, gb_s=93.1),
            "count, order": sustained(0.074, gb_s=71.7, order_us=17.04),
        },
    }
    path = tmp_path / "attention_gpu_select.json"
    path.write_text(json.dumps(gpu_results("select", row)))
    page = performance_page.page(tmp_path)
    assert "| 576 x 4,608 (784) | bfloat16 | count | 0.0570 | 93 |  |" in page
    assert "| 576 x 4,608 (784) | bfloat16 | count, order | 0.0740 | 72 | 17.0 |" in page
