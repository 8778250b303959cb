"""The suites "lengths", "select" and "guard" of bench/bench_attention.py, on a CPU."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import attention_cases as cases
import attention_report as report
import bench_attention as bench
import length_columns
import pytest
import select_suite
import torch
from gpu_clocks import ClockSampler
from shapes import (
    ATTENTION_SUITES,
    EQUAL,
    FA3,
    FULL_GROUPS,
    GUARD,
    LENGTHS,
    LOG_NORMAL,
    UNORDERED,
    AttentionCase,
    AttentionShape,
)
from test_bench_attention import QUICK, CpuTimer

import chipmunk_kernels as ck

CPU = torch.device("cpu")
RESULTS = Path(__file__).resolve().parents[1] / "bench" / "results"
SMALL = AttentionCase(
    AttentionShape("small", heads=2, tokens=400, head_dim=16),
    48,
    query_group=64,
    patterns=(EQUAL, LENGTHS, UNORDERED),
    peers=(),
    lengths=LOG_NORMAL,
    target_over_equal=1e-9,
)
SCORES = select_suite.SelectCase("small", heads=2, groups=3, columns=500, count=40)


def run(suites: dict[str, Sequence[bench.Case]], out: Path, *argv: str) -> int:
    machine = bench.Machine(CPU, CpuTimer(), ClockSampler(None), {"name": "no GPU"})
    options = bench.arguments([*QUICK, "--suite", ",".join(suites), "--out", str(out), *argv])
    with torch.no_grad():
        return bench.run(options, suites, machine, {}, bench.Budget(None))


def written(out: Path, suite: str) -> dict[str, Any]:
    return json.loads((out / f"attention_gpu_{suite}.json").read_text())


# Lengths


def test_the_suite_holds_the_rows_with_a_target() -> None:
    rows = [
        (c.shape.heads, c.shape.tokens, c.count, c.lengths, round(c.target_over_equal or 0, 3))
        for c in ATTENTION_SUITES["lengths"]
    ]
    assert rows == [
        (24, 16_384, 1_120, LOG_NORMAL, 0.92),
        (24, 4_608, 784, LOG_NORMAL, 0.92),
        (24, 4_608, 784, FULL_GROUPS, 0.98),
    ]


@pytest.mark.parametrize("case", ATTENTION_SUITES["lengths"][:2], ids=lambda c: c.title)
def test_log_normal_lengths(case: AttentionCase) -> None:
    lengths = length_columns.list_lengths(case)
    assert lengths.shape == (1, case.shape.heads, case.groups)
    assert lengths.min() >= 1
    assert lengths.max() <= case.shape.tokens
    assert lengths.double().mean().item() == pytest.approx(case.count, rel=0.02)
    assert lengths.double().log().std().item() == pytest.approx(0.8, rel=0.05)
    assert torch.equal(lengths, length_columns.list_lengths(case))


def test_full_groups() -> None:
    lengths = length_columns.list_lengths(ATTENTION_SUITES["lengths"][2])
    assert lengths[0, 5].tolist() == [4_608] * 3 + [784] * 21
    with pytest.raises(ValueError, match="lengths: unknown 'even'"):
        length_columns.list_lengths(replace(SMALL, lengths="even"))


def test_the_lists_are_as_long_as_wanted_and_hold_as_many_columns_as_equal_ones() -> None:
    generator = torch.Generator(CPU).manual_seed(5)
    made = cases.COLUMNS[LENGTHS](SMALL, 400, generator)
    made.validate(400)
    assert torch.equal(made.counts.long(), length_columns.list_lengths(SMALL))
    bare = cases.COLUMNS[UNORDERED](SMALL, 400, generator)
    assert torch.equal(bare.to_mask(400), made.to_mask(400))
    equal = cases.COLUMNS[EQUAL](SMALL, 400, generator)
    equal.validate(400)
    assert (equal.counts == made.counts.double().mean().round()).all()
    full = cases.COLUMNS[EQUAL](replace(SMALL, lengths=FULL_GROUPS), 400, generator)
    assert (full.counts == round((3 * 400 + 4 * 48) / 7)).all()


def test_lengths_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    full = replace(SMALL, lengths=FULL_GROUPS, target_over_equal=1e9)
    assert run({"lengths": [SMALL, full]}, tmp_path) == 0
    first, second = written(tmp_path, "lengths")["rows"]
    assert list(first["variants"]) == [EQUAL, LENGTHS, UNORDERED]
    assert (first["lengths"], second["lengths"]) == (LOG_NORMAL, FULL_GROUPS)
    for mode in ("launches", "sustained"):
        ours, equal = (first["variants"][name] for name in (UNORDERED, EQUAL))
        time = ours[mode]["median_ms"] / equal[mode]["median_ms"]
        work = ours["gflop"] / equal["gflop"]
        assert ours[mode]["time_over_equal"] == pytest.approx(time, abs=1e-3)
        assert ours[mode]["over_equal"] == pytest.approx(work / time, rel=1e-3)
    assert first["variants"][LENGTHS]["note"].startswith("7 to 144 columns, mean ")
    assert first["target_met"] is True
    assert second["target_met"] is False
    printed = capsys.readouterr().out
    assert "2 x 400 D16 G64 bf16 log-normal" in printed
    assert "of equal lists' TFLOP/s" in printed
    assert "target 0.00 met" in printed
    assert "target 1000000000.00 missed" in printed
    again = "\n".join(report.lines(first))
    assert again in printed


# Selecting


def test_selecting_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run({"select": [SCORES]}, tmp_path) == 0
    result = written(tmp_path, "select")
    assert result["op"] == "select_columns"
    (row,) = result["rows"]
    assert (row["lists"], row["columns"], row["count"]) == (6, 500, 40)
    assert list(row["variants"]) == ["count", "count per list", "mass", "torch.topk"]
    seconds = row["variants"]["mass"]["sustained"]["median_ms"] / 1e3
    rate = 6 * 500 * 2 / seconds / 1e9
    assert row["variants"]["mass"]["sustained"]["gb_s"] == pytest.approx(rate, abs=0.1)
    printed = capsys.readouterr().out
    assert "6 x 500 (40)" in printed
    assert "torch.topk" in printed


def test_what_an_order_costs() -> None:
    row: report.Row = {
        "lists": 576,
        "columns": 4_608,
        "count": 784,
        "variants": {
            "count": {"sustained": {"median_ms": 0.05}},
            "count, order": {"sustained": {"median_ms": 0.062}},
        },
        "left_out": {"mass": "RuntimeError: no"},
    }
    select_suite.derive(row, 5_308_416)
    ordered = row["variants"]["count, order"]["sustained"]
    assert ordered == {"median_ms": 0.062, "gb_s": 85.6, "order_us": 12.0}
    plain, other, last = select_suite.lines(row)
    assert plain.split() == ["576", "x", "4,608", "(784)", "count", "-", "0.05", "106"]
    assert other.split() == ["count,", "order", "-", "0.062", "86", "12.0"]
    assert last.split() == ["mass", "left", "out:", "RuntimeError:", "no"]


def test_wrong_lists_get_no_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = ck.select_columns

    def wrong(scores: Any, **options: Any) -> ck.ColumnLists:
        return right(-scores, **options)

    monkeypatch.setattr(ck, "select_columns", wrong)
    assert run({"select": [SCORES]}, tmp_path) == 1
    (row,) = written(tmp_path, "select")["rows"]
    assert list(row["variants"]) == ["torch.topk"]
    assert row["left_out"]["count"] == "RuntimeError: WRONG: list 0 is not the reference's"


# The guard


def test_the_guard_has_the_shapes_of_record_and_is_not_part_of_all() -> None:
    assert GUARD not in bench.arguments([]).suites
    assert bench.arguments(["--suite", GUARD]).suites == (GUARD,)
    guarded = ATTENTION_SUITES[GUARD]
    assert all(case.peers == (FA3,) for case in guarded)
    if not RESULTS.exists():
        pytest.skip("no results of record in a source distribution")
    for path in (RESULTS, RESULTS / "h100"):
        rows = json.loads((path / "attention_gpu.json").read_text())["rows"]
        recorded = {(row["heads"], row["tokens"], row["count"]) for row in rows}
        assert {(c.shape.heads, c.shape.tokens, c.count) for c in guarded} <= recorded
