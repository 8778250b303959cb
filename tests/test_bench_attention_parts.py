"""What bench/bench_attention.py is made of: shapes, lists, the check, taking turns, the report."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import attention_cases as cases
import attention_peers
import attention_report as report
import pytest
import torch
from gpu_clocks import ClockSampler, Reading
from gpu_timing import Batch, Run, alternate_launches, alternate_sustained
from shapes import ATTENTION_SUITES, CUDNN, RANDOM, AttentionCase, AttentionShape, count_at

import chipmunk_kernels as ck

CPU = torch.device("cpu")
SMALL = AttentionCase(AttentionShape("small", heads=2, tokens=400, head_dim=16), 48)


class ScriptedTimer:
    """Runs what it is given and takes the milliseconds that it returns for the truth."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def launch_each(self, runs: Sequence[Run]) -> list[float]:
        return [float(run()) for run in runs]  # type: ignore[arg-type]

    def batch(self, run: Run) -> Batch:
        return Batch(run, launches=7, captured=True)

    def back_to_back(self, batch: Batch, seconds: float) -> float:
        self.seconds.append(seconds)
        return float(batch.start())  # type: ignore[arg-type]

    def finish(self) -> None:
        pass


def generator() -> torch.Generator:
    return torch.Generator(CPU).manual_seed(0)


def scripted(log: list[str], name: str, ms: float) -> Run:
    def run() -> float:
        log.append(name)
        return ms

    return run


# Shapes and lists


def test_the_suites_hold_the_targets_first_and_every_anchor() -> None:
    anchors = ATTENTION_SUITES["anchors"]
    targets = [(c.shape.heads, c.shape.tokens, c.count, c.target) for c in anchors[:5]]
    assert targets == [
        (24, 119_056, 8_288, 13.6),
        (40, 75_600, 5_264, 13.4),
        (24, 16_384, 1_120, 12.2),
        (24, 4_608, 784, 5.0),
        (24, 4_608, 336, 8.5),
    ]
    assert all(case.target is None for case in anchors[5:])
    sparsities: dict[int, list[float]] = {}
    for case in anchors:
        sparsity = round(100 * (1 - case.count / case.shape.tokens), 1)
        sparsities.setdefault(case.shape.tokens, []).append(sparsity)
        assert case.count % 16 == 0
    assert {tokens: sorted(found) for tokens, found in sparsities.items()} == {
        4_608: [70.8, 83.0, 92.7],
        16_384: [83.6, 93.2],
        32_760: [80.0, 93.0],
        75_600: [80.0, 93.0],
        119_056: [80.0, 93.0, 95.0],
    }
    assert [CUDNN in c.peers for c in anchors] == [True] * 4 + [False] * 3 + [True] + [False] * 4
    rest = ATTENTION_SUITES["rest"]
    assert [c.count for c in rest] == [*(c.count for c in anchors[:5]), 3_280]
    assert all(c.with_rest for c in rest)
    general = {(c.shape.head_dim, c.query_group, c.dtype) for c in ATTENTION_SUITES["general"]}
    assert {d for d, _, _ in general} == {64, 96, 128, 256}
    assert {g for _, g, _ in general} == {128, 192}
    assert (128, 192, "float16") in general


def test_counts_are_the_nearest_multiple_of_16() -> None:
    assert count_at(4_608, 0.708) == 1_344
    assert count_at(119_056, 0.95) == 5_952


def test_random_columns_are_valid_lists_of_their_own() -> None:
    columns = cases.random_columns(SMALL, 400, generator())
    assert columns.indices.shape == (1, 2, 3, 48)
    assert columns.indices.dtype == columns.counts.dtype == torch.int32
    columns.validate(400)
    assert (columns.counts == 48).all()
    rows = columns.indices.reshape(6, 48).tolist()
    assert len(set(map(tuple, rows))) == 6
    again = cases.random_columns(SMALL, 400, generator())
    assert torch.equal(columns.indices, again.indices)


def test_hot_and_local_columns_are_stripes_and_a_window() -> None:
    columns = cases.hot_and_local_columns(SMALL, 400, generator())
    columns.validate(400)
    for head in columns.indices[0].tolist():
        hot = set(head[0]) & set(head[1]) & set(head[2])
        assert len(hot) >= 24
        for row, middle in zip(head, (96, 288, 399), strict=True):  # the last group's is past it
            near = sorted(set(row) - hot)
            assert set(range(near[0], near[-1] + 1)) <= set(row) | hot  # no gap
            assert near[0] <= middle <= near[-1] + 1
    first, second = columns.indices[0].tolist()
    assert set(first[0]) & set(first[1]) != set(second[0]) & set(second[1])


def test_useful_work_counts_real_rows_and_columns() -> None:
    counts = torch.tensor([[[5, 0, 7], [1, 2, 3]]], dtype=torch.int32)
    columns = ck.ColumnLists(torch.zeros(1, 2, 3, 8, dtype=torch.int32), counts, 192)
    pairs = 192 * 5 + 192 * 0 + 16 * 7 + 192 * 1 + 192 * 2 + 16 * 3
    assert cases.useful_flops(columns, 400, 16) == 4 * 16 * pairs
    assert cases.dense_flops(SMALL) == 4 * 2 * 400 * 400 * 16


def test_blocks_are_counted_as_their_mask() -> None:
    case = replace(SMALL, count=200)
    blocks = attention_peers.random_blocks(case, generator())
    assert blocks.shape == (2, 4, 2)
    mask = torch.zeros(2, 512, 512, dtype=torch.bool)
    for head in range(2):
        for row in range(4):
            for block in set(blocks[head, row].tolist()):
                mask[head, row * 128 : (row + 1) * 128, block * 128 : (block + 1) * 128] = True
    pairs = int(mask[:, :400, :400].sum())
    assert attention_peers.block_flops(case, blocks) == 4 * 16 * pairs


# The check


def test_sampled_rows_include_the_ends_of_short_groups() -> None:
    rows = cases.sampled_rows(SMALL)
    assert {head for head, _ in rows} == {0, 1}
    assert {row for _, row in rows} == {0, 96, 191, 192, 288, 383, 384, 392, 399}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("with_rest", [False, True])
def test_the_check_passes_what_is_right_and_nothing_else(dtype: str, with_rest: bool) -> None:
    case = replace(SMALL, dtype=dtype)
    inputs = cases.Inputs.random(case, generator())
    inputs.poison()
    columns = cases.random_columns(case, 400, generator())
    rest = (torch.randn_like(inputs.out), torch.randn_like(inputs.lse)) if with_rest else None
    variant = cases.ours(RANDOM, inputs, columns, rest)
    rows = cases.sampled_rows(case)
    assert cases.check(variant, rows).passed

    def after(out_by: float, lse_by: float, at: Any = ...) -> bool:
        def run() -> tuple[torch.Tensor, torch.Tensor]:
            out, lse = variant.run()
            out[at] += out_by
            lse[at] += lse_by
            return out, lse

        return cases.check(replace(variant, run=run), rows).passed

    assert after(0.0, 0.0)
    assert not after(0.1, 0.0)
    assert not after(0.0, 1e-3)
    assert not after(math.nan, 0.0, (0, 0, 200))  # not a sampled row
    assert not after(0.0, math.nan, (0, 1, 399))
    others = cases.random_columns(case, 400, torch.Generator(CPU).manual_seed(1))
    wrong = replace(variant, keys_of=cases.ours(RANDOM, inputs, others).keys_of)
    assert not cases.check(wrong, rows).passed


# Taking turns


def test_launches_alternate_as_often_as_time_allows() -> None:
    timer, log = ScriptedTimer(), []
    variants = {"a": scripted(log, "a", 10.0), "b": scripted(log, "b", 30.0)}
    times = alternate_launches(timer, variants, seconds=0.4)
    assert times == {"a": [10.0] * 10, "b": [30.0] * 10}
    assert log == ["a", "b"] * 2 + ["a", "b", "b", "a"] * 5  # every round starts with another
    for seconds, rounds in ((0.0, 5), (1e3, 30)):
        assert len(alternate_launches(timer, variants, seconds=seconds)["a"]) == rounds


def test_sustained_turns_alternate_and_are_warm() -> None:
    timer, log, ticks = ScriptedTimer(), [], iter(range(100))
    variants = {"a": scripted(log, "a", 1.0), "b": scripted(log, "b", 2.0)}
    found = alternate_sustained(
        timer, variants, turns=3, heat_s=3.0, warm_s=1.0, seconds=0.5, clock=lambda: next(ticks)
    )
    assert log == list("b" + "aabb" + "bbaa" + "aabb")
    assert timer.seconds == [3.0] + [1.0, 0.5] * 6
    assert found["a"].turns_ms == [1.0] * 3
    assert found["b"].turns_ms == [2.0] * 3
    assert found["a"].spans == [(0, 1), (6, 7), (8, 9)]
    assert found["b"].captured


def test_clocks_are_summed_up_within_the_spans() -> None:
    readings = iter(Reading(1_000 + i, 100 + i) for i in range(10_000))
    began = time.perf_counter()
    with ClockSampler(lambda: next(readings), period_s=0.001) as sampler:
        deadline = time.perf_counter() + 10
        while not sampler.summary([(began, began + 60)]) and time.perf_counter() < deadline:
            time.sleep(0.001)
    found = sampler.summary([(0.0, began), (began, began + 60)])
    assert found["sm_mhz"]["min"] == 1_000
    assert found["power_w"]["min"] == 100
    assert found["sm_mhz"]["min"] <= found["sm_mhz"]["median"] <= found["sm_mhz"]["max"]
    assert sampler.summary([(0.0, began)]) == {}


def test_clocks_that_cannot_be_read_are_left_out() -> None:
    def refuse() -> Reading:
        raise OSError("no such thing")

    for read in (None, refuse):
        with ClockSampler(read, period_s=0.001) as sampler:
            time.sleep(0.01)
        assert sampler.summary([(0.0, time.perf_counter())]) == {}


# The report


def row_of(ms: dict[str, dict[str, float]], gflop: dict[str, float], **fields: Any) -> report.Row:
    variants: dict[str, Any] = {n: {"gflop": g, "note": ""} for n, g in gflop.items()}
    for name, modes in ms.items():
        variants[name].update({mode: {"median_ms": value} for mode, value in modes.items()})
    row: report.Row = {
        "shape": "flux-1024",
        "heads": 24,
        "tokens": 4_608,
        "head_dim": 128,
        "dtype": "bfloat16",
        "query_group": 192,
        "count": 784,
        "sparsity": 0.8,
        "target": 4.0,
        "dense_gflop": 1_000.0,
        "variants": variants,
        "left_out": {"cudnn": "ImportError: none here"},
    }
    row.update(fields)
    report.derive(row)
    return row


def test_derived_figures() -> None:
    row = row_of(
        {
            "random": {"sustained": 0.5, "launches": 0.4},
            "fa3": {"sustained": 2.0, "launches": 1.2},
            "random + rest": {"sustained": 0.55},
        },
        {"random": 200.0, "fa3": 1_000.0, "random + rest": 200.0},
    )
    ours = row["variants"]["random"]
    assert ours["sustained"] == {
        "median_ms": 0.5,
        "tflops": 400.0,
        "over_fa3": 4.0,
        "share_of_ceiling": 0.8,
    }
    assert ours["launches"]["over_fa3"] == 3.0
    assert row["target_met"] is True
    assert row["variants"]["random + rest"]["sustained"]["rest_costs"] == 0.1
    first, second, third, last = report.lines(row)
    assert " ".join(first.split()) == (
        "24 x 4,608 784 80.0% random 0.4 0.5 - - 400 4.00x 5.00x 80% target 4.0x met"
    )
    assert second.split()[:3] == ["fa3", "1.2", "2"]
    assert third.endswith("the rest costs +10.0%")
    assert last.endswith("cudnn             left out: ImportError: none here")


def test_a_target_is_judged_by_sustained_times_alone() -> None:
    both = {"random": 200.0, "fa3": 1_000.0}
    cold = row_of({"random": {"launches": 0.1}, "fa3": {"launches": 2.0}}, both)
    assert "target_met" not in cold
    assert "not judged" in next(report.lines(cold))
    missed = row_of({"random": {"sustained": 0.6}, "fa3": {"sustained": 2.0}}, both)
    assert missed["target_met"] is False


def test_the_plot_needs_a_speed_up(tmp_path: Path) -> None:
    both = {"random": 200.0, "fa3": 1_000.0}
    alone = row_of({"random": {"sustained": 0.6}}, {"random": 200.0})
    assert report.plot([alone], tmp_path / "none.png") is None
    rows = [
        row_of({"random": {"sustained": 0.6}, "fa3": {"sustained": 2.0}}, both),
        row_of({"random": {"sustained": 0.2}, "fa3": {"sustained": 2.0}}, both, sparsity=0.93),
    ]
    path = report.plot(rows, tmp_path / "new" / "plot.png")
    assert path is not None
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [p.name for p in path.parent.iterdir()] == ["plot.png"]
