"""bench/bench_attention.py from end to end, on a CPU in place of the GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import attention_cases as cases
import attention_report as report
import bench_attention as bench
import pytest
import timing
import torch
from gpu_clocks import ClockSampler
from gpu_timing import Batch, Run, Timer
from shapes import CUDNN, FA3, FLEX, HOT_AND_LOCAL, RANDOM, AttentionCase, AttentionShape
from torch.nn import functional

import chipmunk_kernels as ck

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
SMALL = AttentionCase(AttentionShape("small", heads=2, tokens=400, head_dim=16), 48)


class CpuTimer:
    """The wall clock, for kernels that run while the host waits."""

    def launch_each(self, runs: Sequence[Run]) -> list[float]:
        return [self.back_to_back(self.batch(run), 0.0) for run in runs]

    def batch(self, run: Run) -> Batch:
        return Batch(run, launches=1, captured=False)

    def back_to_back(self, batch: Batch, seconds: float) -> float:
        began, launches = time.perf_counter(), 0
        while launches == 0 or time.perf_counter() - began < seconds:
            batch.start()
            launches += batch.launches
        return (time.perf_counter() - began) * 1e3 / launches

    def finish(self) -> None:
        pass


def dense_torch(
    case: AttentionCase, inputs: cases.Inputs, timer: Timer, _: torch.Generator
) -> cases.Variant:
    """Stands in for FlashAttention-3."""
    qkv = [inputs.q, inputs.k, inputs.v]
    return cases.Variant(
        FA3,
        lambda: functional.scaled_dot_product_attention(*qkv),
        cases.dense_flops(case),
        *qkv,
        lambda head, row: slice(None),
    )


def wrong_peer(*arguments: Any) -> cases.Variant:
    return replace(dense_torch(*arguments), name=CUDNN, keys_of=lambda head, row: slice(0, 7))


def missing_peer(*_: Any) -> cases.Variant:
    raise ImportError("No module named 'flex'")


PEERS = {FA3: dense_torch, CUDNN: wrong_peer, FLEX: missing_peer}
QUICK = ["--turns", "2", "--heat-s", "0.001", "--warm-s", "0.001", "--seconds", "0.001"]


class SteadyClocks(ClockSampler):
    """Whatever the time, 1.5 GHz."""

    def summary(self, spans: Sequence[tuple[float, float]]) -> dict[str, Any]:
        assert len(spans) == 2
        assert spans[0][0] < spans[0][1] <= spans[1][0] < spans[1][1]
        return {"sm_mhz": {"median": 1_500}, "power_w": {"median": 600}}


def run(
    suites: dict[str, list[AttentionCase]], *argv: str, budget: bench.Budget | None = None
) -> int:
    machine = bench.Machine(CPU, CpuTimer(), SteadyClocks(None), {"name": "no GPU"})
    options = bench.arguments([*QUICK, *argv])
    with torch.no_grad():
        return bench.run(options, suites, machine, PEERS, budget or bench.Budget(None))


def test_the_whole_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    anchor = replace(
        SMALL, target=0.001, patterns=(RANDOM, HOT_AND_LOCAL), peers=(FA3, CUDNN, FLEX)
    )
    suites = {
        "anchors": [anchor, replace(anchor, count=80, target=None, peers=(FA3,))],
        "rest": [replace(SMALL, with_rest=True, peers=())],
    }
    assert run(suites, "--out", str(tmp_path), "--commit", "abc") == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "attention_gpu.json",
        "attention_gpu_overhead.json",
        "attention_gpu_rest.json",
        "attention_speedup.png",
    ]
    anchors = json.loads((tmp_path / "attention_gpu.json").read_text())
    assert anchors["complete"] is True
    assert anchors["not_measured"] == []
    assert anchors["environment"]["commit"] == "abc"
    assert anchors["gpu"] == {"name": "no GPU"}
    assert anchors["versions"]["torch"] == torch.__version__
    first, second = anchors["rows"]
    assert list(first["variants"]) == [RANDOM, FA3, HOT_AND_LOCAL]
    assert list(first["left_out"]) == [CUDNN, FLEX]
    assert first["left_out"][CUDNN].startswith("WRONG: ")
    assert first["left_out"][FLEX] == "ImportError: No module named 'flex'"
    assert first["target_met"] is True
    for name in first["variants"]:
        assert first["checks"][name]["error"] <= first["checks"][name]["allowed"]
    sustained = first["variants"][RANDOM]["sustained"]
    assert len(sustained["turns_ms"]) == 2
    assert sustained["in_graph"] is False
    assert sustained["sm_mhz"] == {"median": 1_500}
    ratio = first["variants"][FA3]["sustained"]["median_ms"] / sustained["median_ms"]
    assert sustained["over_fa3"] == pytest.approx(ratio, abs=1e-3)
    assert first["variants"][RANDOM]["gflop"] == pytest.approx(0.12 * first["dense_gflop"])
    assert first["variants"][FA3]["launches"]["rounds"] >= 5
    assert second["variants"][RANDOM]["gflop"] == pytest.approx(0.2 * second["dense_gflop"])
    rest = json.loads((tmp_path / "attention_gpu_rest.json").read_text())["rows"][0]
    assert "rest_costs" in rest["variants"][report.WITH_REST]["sustained"]
    overhead = json.loads((tmp_path / "attention_gpu_overhead.json").read_text())
    assert overhead["variants"]["ck, out given"]["host_us"] > 0
    assert (FA3 in overhead["variants"]) != (FA3 in overhead["left_out"])
    printed = capsys.readouterr().out
    assert "flex              left out: ImportError" in printed
    assert "target 0.001x met" in printed
    assert "ck, rest, out given" in printed


def test_a_written_file_can_be_printed_and_drawn_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run({"anchors": [SMALL]}, "--out", str(tmp_path), "--suite", "anchors")
    shown = capsys.readouterr().out
    (tmp_path / "attention_speedup.png").unlink()
    written = str(tmp_path / "attention_gpu.json")
    argv = ["bench_attention.py", "--report", written, "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", argv)
    assert bench.main() == 0
    assert (tmp_path / "attention_speedup.png").exists()
    for line in capsys.readouterr().out.splitlines():
        assert line in shown


def test_a_wrong_kernel_gets_no_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = ck.column_sparse_attention

    def wrong(*arguments: Any, **options: Any) -> Any:
        out, lse = right(*arguments, **options)
        out[..., -1] *= 1.5
        return out, lse

    monkeypatch.setattr(ck, "column_sparse_attention", wrong)
    assert run({"anchors": [SMALL]}, "--out", str(tmp_path), "--suite", "anchors") == 1
    row = json.loads((tmp_path / "attention_gpu.json").read_text())["rows"][0]
    assert list(row["variants"]) == [FA3]
    assert row["left_out"][RANDOM].startswith("WRONG: ")


def test_what_was_measured_stays_when_the_rest_fails_or_comes_too_late(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = replace(SMALL, dtype="no_such_dtype")
    ticks = iter([0.0, 1.0, 2.0, 11.0, 12.0, 13.0])
    budget = bench.Budget(10.0, clock=lambda: next(ticks))
    suites = {"general": [SMALL, broken, replace(SMALL, count=80)], "rest": [SMALL]}
    argv = ["--out", str(tmp_path), "--suite", "general,rest"]
    assert run(suites, *argv, budget=budget) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["attention_gpu_general.json"]
    written = json.loads((tmp_path / "attention_gpu_general.json").read_text())
    assert [row["count"] for row in written["rows"]] == [48]
    assert written["complete"] is False
    assert written["not_measured"] == [
        "small, 48 columns: AttributeError: module 'torch' has no attribute 'no_such_dtype'",
        "small, 80 columns: the time is spent",
    ]
    assert "not measured: small, 80 columns: the time is spent" in capsys.readouterr().out


def test_every_row_is_on_file_before_the_next_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    path = tmp_path / "attention_gpu.json"
    measure = bench.measure

    def look(*arguments: Any) -> report.Row:
        seen.append(len(json.loads(path.read_text())["rows"]) if path.exists() else 0)
        return measure(*arguments)

    monkeypatch.setattr(bench, "measure", look)
    argv = ["--out", str(tmp_path), "--suite", "anchors", "--mode", "launches"]
    run({"anchors": [SMALL, SMALL, SMALL]}, *argv)
    assert seen == [0, 1, 2]


def test_nothing_is_written_unless_wanted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bench, "RESULTS", tmp_path)
    monkeypatch.setattr(bench, "PLOT", tmp_path / "plot.png")
    quick = ["--suite", "anchors", "--mode", "launches"]
    for more in (["--no-write"], ["--shapes", "small"]):
        run({"anchors": [SMALL]}, *quick, *more)
        assert list(tmp_path.iterdir()) == []
    run({"anchors": [SMALL]}, *quick)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["attention_gpu.json", "plot.png"]


def test_the_environment_is_told_without_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert timing.environment()["commit"] == "unknown"
    assert timing.environment("abc")["commit"] == "abc"


def test_unknown_names_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for argv, name in ((["--suite", "all,rest"], "all"), (["--peers", "fa2"], "fa2")):
        with pytest.raises(SystemExit):
            bench.arguments(argv)
        assert f"unknown: {name}; there are" in capsys.readouterr().err
    assert bench.arguments(["--peers", ""]).peers == ()


def test_without_a_hopper_gpu_there_is_one_message() -> None:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, str(ROOT / "bench" / "bench_attention.py")],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == "bench_attention: needs a Hopper GPU, and torch sees no GPU\n"


def test_reasons_hold_no_folders() -> None:
    error = OSError("/opt/some/where/lib.so: undefined symbol\nmore")
    assert cases.reason(error) == "OSError: lib.so: undefined symbol"
    assert cases.reason(ValueError()) == "ValueError: "
