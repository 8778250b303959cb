"""Times column-sparse attention on a Hopper GPU beside FlashAttention-3, cuDNN and FlexAttention.

    python bench/bench_attention.py [--suite all] [--mode both] [--budget-s 480] [--out FOLDER]

Each row is one shape and one length of lists; random data, batch 1. Before anything is timed, rows
of every variant's result are compared with float64; a wrong kernel gets no time. Two modes:

launches   one launch of each variant in turn, the L2 cache flushed before each; medians
sustained  the figure of record: the card is heated up for --heat-s seconds; then each variant in
           turn runs back to back for --warm-s seconds, and for --seconds more while it is measured;
           several turns, their median. The L2 cache is not flushed. Launches are captured in a CUDA
           graph, so that launch overhead does not count; where capture failed, the JSON says
           `in_graph: false`.

Suites, a JSON file each: "anchors" (attention_gpu.json, and the plot), "rest" (what a merged rest
costs), "general" (other head dims, groups, float16), "overhead" (what a call costs the host).
FlashAttention-3 is the wheel fa3-fwd 0.0.3 (`pip install --no-deps fa3-fwd==0.0.3`). FlexAttention
attends to random 128 x 128 blocks, about as many keys as the lists hold. cuDNN is dense, so it is
timed once a shape. A file is rewritten, all or nothing, after every row.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import attention_overhead
import torch
from attention_cases import (
    COLUMNS,
    Inputs,
    Variant,
    check,
    dense_flops,
    ours,
    reason,
    sampled_rows,
)
from attention_peers import PEERS, Peer, versions
from attention_report import HEADER, WITH_REST, Row, derive, lines, plot
from gpu_clocks import ClockSampler, Nvml
from gpu_timing import CudaTimer, Timer, alternate_launches, alternate_sustained
from shapes import ATTENTION_SUITES, FA3, RANDOM, AttentionCase
from timing import RESULTS, write

import chipmunk_kernels as ck

OVERHEAD = "overhead"
PLOT = Path(__file__).parents[1] / "docs" / "images" / "attention_speedup.png"
LAUNCHES_S = 3.0
LEGEND = (
    "cold: L2 flushed, launch by launch; sustained: back to back in CUDA graphs, no launch cost"
)


@dataclass(frozen=True)
class Machine:
    """Where it runs."""

    device: torch.device
    timer: Timer
    clocks: ClockSampler
    description: Mapping[str, Any]


class Budget:
    """Seconds after which nothing new is started; None: no end."""

    def __init__(self, seconds: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._end = None if seconds is None else clock() + seconds

    def is_spent(self) -> bool:
        return self._end is not None and self._clock() >= self._end


def hopper() -> Machine:
    """Torch's current GPU; SystemExit where the kernels cannot run."""
    if not torch.cuda.is_available():
        raise SystemExit("bench_attention: needs a Hopper GPU, and torch sees no GPU")
    properties = torch.cuda.get_device_properties()
    if (properties.major, properties.minor) != (9, 0):
        raise SystemExit(
            f"bench_attention: needs a Hopper GPU (compute capability 9.0), this is a "
            f"{properties.name} ({properties.major}.{properties.minor})"
        )
    if not ck.info().cuda_compiled:
        raise SystemExit("bench_attention: this build of chipmunk_kernels has no CUDA kernels")
    description: dict[str, Any] = {
        "name": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "memory_gb": round(properties.total_memory / 1e9, 1),
    }
    try:
        nvml = Nvml()
        description.update(nvml.description())
        read = nvml.read
    except (OSError, AttributeError) as error:
        print(f"clocks and power are not recorded: {error}", flush=True)
        read = None
    return Machine(torch.device("cuda"), CudaTimer(), ClockSampler(read), description)


def prepare(
    case: AttentionCase, peers: Mapping[str, Peer], machine: Machine
) -> tuple[list[Variant], dict[str, Any], dict[str, str]]:
    """The case's variants that give the right result, their errors, and why others are missing."""
    generator = torch.Generator(machine.device).manual_seed(0)
    inputs = Inputs.random(case, generator)
    candidates: dict[str, Callable[[], Variant]] = {}
    for pattern in case.patterns:
        columns = COLUMNS[pattern](case, case.shape.tokens, generator)
        candidates[pattern] = partial(ours, pattern, inputs, columns)
        if case.with_rest and pattern == RANDOM:
            rest = (torch.randn_like(inputs.out), torch.randn_like(inputs.lse) + 7.0)
            candidates[WITH_REST] = partial(ours, WITH_REST, inputs, columns, rest)
    for name in case.peers:
        if name in peers:
            candidates[name] = partial(peers[name], case, inputs, machine.timer, generator)
    # FlashAttention-3 right after the random columns: its turns are next to theirs.
    order = sorted(candidates, key=lambda name: (name != RANDOM, name != FA3))
    variants, checks, left_out = [], {}, {}
    for name in order:
        try:
            variant = candidates[name]()
            inputs.poison()
            found = check(variant, sampled_rows(case))
        except Exception as error:  # somebody else's kernel, or no memory: the others go on
            left_out[name] = reason(error)
            continue
        checks[name] = vars(found)
        if found.passed:
            variants.append(variant)
        else:
            left_out[name] = f"WRONG: {found}"
    return variants, checks, left_out


def measure(
    case: AttentionCase, options: argparse.Namespace, peers: Mapping[str, Peer], machine: Machine
) -> Row:
    """One row: checked, timed, with derived figures."""
    started = time.perf_counter()
    variants, checks, left_out = prepare(case, peers, machine)
    runs = {variant.name: variant.run for variant in variants}
    dense = dense_flops(case)
    row: Row = {
        "shape": case.shape.name,
        "heads": case.shape.heads,
        "tokens": case.shape.tokens,
        "head_dim": case.shape.head_dim,
        "dtype": case.dtype,
        "query_group": case.query_group,
        "count": case.count,
        "sparsity": 1 - case.count / case.shape.tokens,
        "target": case.target,
        "dense_gflop": dense / 1e9,
        "variants": {v.name: {"gflop": v.flops / 1e9, "note": v.note} for v in variants},
        "checks": checks,
        "left_out": left_out,
    }
    if options.mode in ("launches", "both") and runs:
        for name, ms in alternate_launches(machine.timer, runs, seconds=LAUNCHES_S).items():
            row["variants"][name]["launches"] = {
                "median_ms": round(statistics.median(ms), 5),
                "min_ms": round(min(ms), 5),
                "max_ms": round(max(ms), 5),
                "rounds": len(ms),
            }
    if options.mode in ("sustained", "both") and runs:
        turns = alternate_sustained(
            machine.timer,
            runs,
            turns=options.turns,
            heat_s=options.heat_s,
            warm_s=options.warm_s,
            seconds=options.seconds,
        )
        for name, result in turns.items():
            row["variants"][name]["sustained"] = {
                "median_ms": round(statistics.median(result.turns_ms), 5),
                "turns_ms": [round(ms, 5) for ms in result.turns_ms],
                "in_graph": result.captured,
                **machine.clocks.summary(result.spans),
            }
    derive(row)
    row["seconds"] = round(time.perf_counter() - started, 1)
    return row


class Output:
    """Where results go: bench/results and docs/images, the folder given, or nowhere."""

    def __init__(self, options: argparse.Namespace, machine: Machine) -> None:
        self._options, self._machine = options, machine
        # A narrowed run must not take the place of a whole one unasked.
        self._writes = not options.no_write and (options.out is not None or not options.shapes)

    def save(self, suite: str, **result: Any) -> None:
        if not self._writes:
            return
        options, machine = self._options, self._machine
        names = ("mode", "turns", "heat_s", "warm_s", "seconds", "peers")
        settings = {name: getattr(options, name) for name in names}
        name = "attention_gpu" if suite == "anchors" else f"attention_gpu_{suite}"
        write(
            name,
            {
                "op": "column_sparse_attention",
                "suite": suite,
                "gpu": dict(machine.description),
                "versions": versions(),
                "settings": settings,
                **result,
            },
            folder=options.out or RESULTS,
            commit=options.commit,
        )

    def draw(self, rows: Sequence[Row]) -> None:
        if not self._writes:
            return
        out = self._options.out
        try:
            path = plot(rows, PLOT if out is None else out / PLOT.name)
            print(path or "no plot: there are no speed-ups")
        except Exception as error:  # the measurements that follow matter more
            print(f"no plot: {reason(error)}; --report draws it elsewhere")


def overhead(machine: Machine, output: Output) -> int:
    """The suite of that name; 1 if it failed."""
    try:
        calls, left_out = attention_overhead.calls(machine.device)
        found = attention_overhead.measure(calls, machine.timer)
    except Exception as error:
        traceback.print_exc()
        print(f"not measured: {OVERHEAD}: {reason(error)}", flush=True)
        return 1
    print(f"\n{OVERHEAD}: us a call outside graphs, until the host is free / the result is there")
    for name, us in found.items():
        print(f"{name:20} {us['host_us']:7.2f} {us['until_done_us']:7.2f}", flush=True)
    for name, why in left_out.items():
        print(f"{name:20} left out: {why}", flush=True)
    calls_per_round = attention_overhead.CALLS
    output.save(OVERHEAD, calls_per_round=calls_per_round, left_out=left_out, variants=found)
    return 0


def run(
    options: argparse.Namespace,
    suites: Mapping[str, Sequence[AttentionCase]],
    machine: Machine,
    peers: Mapping[str, Peer],
    budget: Budget,
) -> int:
    """Measures the suites in order; 1 if a row failed or a kernel of ours was wrong, else 0."""
    output = Output(options, machine)
    status = overhead(machine, output) if OVERHEAD in options.suites else 0
    for suite, cases in suites.items():
        rows: list[Row] = []
        skipped: list[str] = []
        print(f"\n{suite}; {LEGEND}\n{HEADER}", flush=True)
        for case in cases:
            if budget.is_spent():
                skipped.append(f"{case.shape.name}, {case.count} columns: the time is spent")
                continue
            try:
                row = measure(case, options, peers, machine)
            except Exception as error:  # a row that fails does not take the others with it
                traceback.print_exc()
                skipped.append(f"{case.shape.name}, {case.count} columns: {reason(error)}")
                status = 1
                continue
            finally:
                gc.collect()
                torch.cuda.empty_cache()
            rows.append(row)
            if any(name in row["left_out"] for name in (*case.patterns, WITH_REST)):
                status = 1
            print("\n".join(lines(row)), flush=True)
            output.save(suite, complete=False, not_measured=skipped, rows=rows)
        for what in skipped:
            print(f"not measured: {what}", flush=True)
        if rows:
            output.save(suite, complete=not skipped, not_measured=skipped, rows=rows)
        if suite == "anchors" and rows:
            output.draw(rows)
    return status


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; `suites` holds the names of those wanted."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    names = (*ATTENTION_SUITES, OVERHEAD)
    parser.add_argument("--suite", default="all", help=f"{', '.join(names)} (commas), or all")
    parser.add_argument("--shapes", default="", help="parts of shape names, commas between")
    parser.add_argument("--mode", choices=("launches", "sustained", "both"), default="both")
    parser.add_argument("--turns", type=int, default=3, help="sustained turns of each variant")
    parser.add_argument("--heat-s", type=float, default=3.0, help="before a row's first turn")
    parser.add_argument("--warm-s", type=float, default=1.0, help="before each turn's measurement")
    parser.add_argument("--seconds", type=float, default=0.5, help="measured in each turn")
    parser.add_argument("--peers", default=",".join(PEERS), help="commas between; empty: none")
    parser.add_argument("--budget-s", type=float, help="start no row after so many seconds")
    parser.add_argument("--out", type=Path, help="folder for JSON and plot")
    parser.add_argument("--commit", help="what is measured, where the tree has no git")
    parser.add_argument("--no-write", action="store_true", help="print only")
    parser.add_argument("--report", type=Path, help="print and draw a written JSON; needs no GPU")
    options = parser.parse_args(argv)
    options.suites = names if options.suite == "all" else tuple(options.suite.split(","))
    options.peers = tuple(filter(None, options.peers.split(",")))
    for given, known in ((options.suites, names), (options.peers, tuple(PEERS))):
        unknown = sorted(set(given) - set(known))
        if unknown:
            parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(known)}")
    return options


def main() -> int:
    """Measures, prints, writes; or prints and draws what was written."""
    options = arguments()
    torch.set_grad_enabled(False)
    if options.report is not None:
        written = json.loads(options.report.read_text())
        print("\n".join([HEADER, *(line for row in written["rows"] for line in lines(row))]))
        if written["suite"] == "anchors":
            print(plot(written["rows"], options.out / PLOT.name if options.out else PLOT))
        return 0
    budget = Budget(options.budget_s)
    machine = hopper()
    wanted = tuple(filter(None, options.shapes.split(",")))
    suites = {
        suite: [
            case
            for case in ATTENTION_SUITES[suite]
            if not wanted or any(part in case.shape.name for part in wanted)
        ]
        for suite in options.suites
        if suite != OVERHEAD
    }
    peers = {name: PEERS[name] for name in options.peers}
    print(f"{machine.description}\n{versions()}", flush=True)
    with machine.clocks:
        return run(options, suites, machine, peers, budget)


if __name__ == "__main__":
    raise SystemExit(main())
